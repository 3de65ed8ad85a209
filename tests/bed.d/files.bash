# shellcheck shell=bash
# What the bed writes into BED_DIR before its hosts start.

ordinary_users=(alice bob)

write_files() {
  local host
  mkdir -p "$BED_DIR"/{run,log,home,service,ssh,slurm/state,munge/run,etcd,tmp}
  for host in $(all_hosts); do
    # A machine makes the folder of X's sockets at boot: the first user of X would own it otherwise.
    mkdir -p "$BED_DIR/slurm/spool/$host" "$BED_DIR/tmp/$host/.X11-unix"
    chmod 1777 "$BED_DIR/tmp/$host" "$BED_DIR/tmp/$host/.X11-unix"
  done
  chmod 755 "$BED_DIR" "$BED_DIR"/{run,log,home,service,slurm,tmp}
  chmod 700 "$BED_DIR"/{ssh,etcd}
  write_etcs
  write_users
  write_sudoers
  write_ssh
  write_slurm
  write_munge
}

# Copies, not single files mounted over the machine's: a mounted file vanishes when a package
# on the machine replaces the one beneath.
write_etcs() {
  local host etc
  write_etc /etc "$BED_DIR/etc"
  for host in ctl cmd0 gw0 c0; do
    etc=$BED_DIR/$(etc_of "$host")
    if [[ ! -e $etc ]]; then
      write_etc "$(lowest_root "$(root_of "$host")")/etc" "$etc"
      use_our_daemons_numbers "$etc"
    fi
  done
}

write_etc() {
  local from=$1 etc=$2
  cp -a "$from" "$etc"
  rm -rf "$etc/sudoers.d" "$etc/resolv.conf" "$etc/slurm"
  mkdir -p "$etc/sudoers.d" "$etc/slurm"
  # No name is ever looked up outside the bed.
  sed -i 's/^hosts:.*/hosts: files/' "$etc/nsswitch.conf"
  echo 'nameserver 127.0.0.1' >"$etc/resolv.conf"
  write_hosts >"$etc/hosts"
}

# Of LAYER:FOLDER the folder, which has everything.
lowest_root() {
  echo "${1##*:}"
}

# Files of the bed belong to these two, and Slurm's daemons compare their numbers.
use_our_daemons_numbers() {
  local user file
  for user in slurm munge; do
    for file in passwd group; do
      sed -i "/^$user:/d" "$1/$file"
      grep "^$user:" "/etc/$file" >>"$1/$file"
    done
  done
}

write_hosts() {
  local host net address
  echo '127.0.0.1 localhost'
  echo '::1 localhost ip6-localhost'
  for host in $(all_hosts); do
    while read -r net _ address; do
      case $net-$host in
        inside-* | outside-outside) echo "$address $host" ;;
        ib-*) echo "$address $host-ib0" ;;
        outside-*) echo "$address $host-out" ;;
      esac
    done < <(links_of "$host")
  done
}

write_users() {
  local user uid=20101
  for user in "${ordinary_users[@]}"; do
    add_user "$user" $uid "home/$user"
    uid=$((uid + 1))
  done
  add_user carol 919 home/carol
  add_user bwvisurunner 918 service/bwvisurunner
}

add_user() {
  local user=$1 uid=$2 home=$3 etc
  for etc in "$BED_DIR"/etc "$BED_DIR"/etc-*; do
    [[ -d $etc ]] || continue
    sed -i "/^$user:/d" "$etc/passwd" "$etc/group" "$etc/shadow"
    echo "$user:x:$uid:$uid:$user of the bed:$BED_MOUNT/$home:/bin/bash" >>"$etc/passwd"
    echo "$user:x:$uid:" >>"$etc/group"
    # No password is right, and the account is not locked: sshd lets the key in.
    echo "$user:*:19000:0:99999:7:::" >>"$etc/shadow"
  done
  mkdir -p "$BED_DIR/$home"
  chown "$uid:$uid" "$BED_DIR/$home"
  chmod 700 "$BED_DIR/$home"
}

write_sudoers() {
  mkdir -p "$BED_DIR"/sudoers/{command,gateway,none}
  echo 'bwvisurunner ALL=(ALL) NOPASSWD: /usr/bin/sbatch, /usr/bin/squeue, /usr/bin/scancel' \
    >"$BED_DIR/sudoers/command/bwvisurunner"
  echo 'bwvisurunner ALL=(root) NOPASSWD: /usr/sbin/iptables, /usr/sbin/iptables-save, /usr/sbin/iptables-restore' \
    >"$BED_DIR/sudoers/gateway/bwvisurunner"
  chmod 440 "$BED_DIR"/sudoers/*/bwvisurunner
}

write_ssh() {
  local ssh=$BED_DIR/ssh host home=$BED_DIR/service/bwvisurunner
  ssh-keygen -q -t ed25519 -N '' -C bed -f "$ssh/id_ed25519"
  for host in cmd0 cmd1 gw0 gw1; do
    ssh-keygen -q -t ed25519 -N '' -C "$host" -f "$ssh/host_$host"
    echo "$host,$BED_INSIDE.$(octet_of "$host") $(cut -d' ' -f1,2 "$ssh/host_$host.pub")" >>"$ssh/known_hosts"
    write_sshd_config "$host" >"$ssh/sshd_config_$host"
  done
  write_ssh_config >"$ssh/config"
  install -d -o 918 -g 918 -m 700 "$home/.ssh"
  install -o 918 -g 918 -m 600 "$ssh/id_ed25519.pub" "$home/.ssh/authorized_keys"
}

# Debian's stock limits (MaxSessions 10, MaxStartups 10:30:100) on purpose.
write_sshd_config() {
  cat <<-END
	HostKey $BED_MOUNT/ssh/host_$1
	AllowUsers bwvisurunner
	PasswordAuthentication no
	KbdInteractiveAuthentication no
	UsePAM yes
	PrintMotd no
	AcceptEnv LANG LC_*
	Subsystem sftp /usr/lib/openssh/sftp-server
	END
}

# For people: ssh -F $BED_DIR/ssh/config cmd0, on the host runner.
write_ssh_config() {
  cat <<-END
	Host *
	  User bwvisurunner
	  IdentityFile $BED_MOUNT/ssh/id_ed25519
	  IdentitiesOnly yes
	  UserKnownHostsFile $BED_MOUNT/ssh/known_hosts
	  StrictHostKeyChecking yes
	  BatchMode yes
	END
}

write_slurm() {
  local etc=$BED_DIR/etc/slurm log
  slurm_conf >"$etc/slurm.conf"
  cgroup_conf >"$etc/cgroup.conf"
  if [[ -n $BED_ACCOUNTING ]]; then
    write_accounting
  fi
  log=$BED_DIR/log/slurmctld-ctl.log
  touch "$log"
  chown slurm: "$log" "$BED_DIR/slurm/state"
}

# 64 processors are claimed for each node, whatever the machine has. Timeouts are Slurm's own, but
# that finished jobs are forgotten and stubborn ones killed sooner, so that tests need not wait.
slurm_conf() {
  cat <<-END
	ClusterName=$BED_PREFIX
	SlurmctldHost=ctl($BED_INSIDE.4)
	SlurmUser=slurm
	AuthType=auth/munge
	StateSaveLocation=$BED_MOUNT/slurm/state
	SlurmdSpoolDir=$BED_MOUNT/slurm/spool/%n
	SlurmctldPidFile=/run/slurmctld.pid
	SlurmdPidFile=/run/slurmd.pid
	SlurmctldLogFile=$BED_MOUNT/log/slurmctld-ctl.log
	SlurmdLogFile=$BED_MOUNT/log/slurmd-%n.log
	ProctrackType=proctrack/linuxproc
	TaskPlugin=task/none
	JobAcctGatherType=jobacct_gather/none
	MpiDefault=none
	SelectType=select/cons_tres
	SelectTypeParameters=CR_CPU
	SlurmdParameters=config_overrides
	SchedulerType=sched/backfill
	SchedulerParameters=batch_sched_delay=0,sched_interval=1
	JobRequeue=1
	MinJobAge=60
	MaxJobCount=30000
	KillWait=10
	ReturnToService=2
	MessageTimeout=30
	NodeName=c[0-$((BED_NODES - 1))] CPUs=64 RealMemory=1000 State=UNKNOWN
	PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
	END
  if [[ -n $BED_ACCOUNTING ]]; then
    printf '%s\n' AccountingStorageType=accounting_storage/slurmdbd AccountingStorageHost=ctl
  fi
}

# slurmdbd reads the file of its configuration only if it is slurm's own.
write_accounting() {
  local conf=$BED_DIR/etc/slurm/slurmdbd.conf
  cat >"$conf" <<-END
	AuthType=auth/munge
	DbdHost=ctl
	SlurmUser=slurm
	LogFile=$BED_MOUNT/log/slurmdbd-ctl.log
	PidFile=/run/slurmdbd.pid
	StorageType=accounting_storage/mysql
	StorageHost=localhost
	StorageUser=slurm
	StorageLoc=slurm_acct_db
	END
  chown slurm: "$conf"
  chmod 600 "$conf"
  touch "$BED_DIR/log/slurmdbd-ctl.log"
  chown slurm: "$BED_DIR/log/slurmdbd-ctl.log"
  mkdir -p "$BED_DIR/mariadb"
}

# The version of the control host's Slurm: 24, say.
slurm_version() {
  local words
  if [[ -n $BED_ROOT_CONTROL ]]; then
    words=$(chroot "$(lowest_root "$BED_ROOT_CONTROL")" slurmctld -V)
  else
    words=$(slurmctld -V)
  fi
  words=${words##* }
  echo "${words%%.*}"
}

cgroup_conf() {
  if (($(slurm_version) >= 24)); then
    echo CgroupPlugin=disabled
  elif [[ -e /sys/fs/cgroup/cgroup.controllers ]]; then
    printf 'CgroupPlugin=cgroup/v2\nIgnoreSystemd=yes\n'
  else
    printf 'CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n'
  fi
}

write_munge() {
  local key=$BED_DIR/munge/munge.key
  head -c 128 /dev/urandom >"$key"
  chown -R munge: "$BED_DIR/munge"
  chmod 400 "$key"
  chmod 755 "$BED_DIR/munge" "$BED_DIR/munge/run"
}

bed_env() {
  local host
  printf 'BED_%s=%q\n' PREFIX "$BED_PREFIX" DIR "$BED_DIR" MOUNT "$BED_MOUNT" INSIDE "$BED_INSIDE" IB "$BED_IB" \
    OUTSIDE "$BED_OUTSIDE" NODES "$BED_NODES" LOG "$BED_DIR/log" \
    HOME_PREFIX "$BED_MOUNT/home" HOME_ON_MACHINE "$BED_DIR/home" SSH_USER bwvisurunner \
    SSH_KEY "$BED_DIR/ssh/id_ed25519" SSH_KNOWN_HOSTS "$BED_DIR/ssh/known_hosts" SSH_CONFIG "$BED_DIR/ssh/config" \
    ETCD "$BED_INSIDE.7:2379" ETCD_SYNC "$BED_ETCD_SYNC" OUTSIDE_ADDRESS "$BED_OUTSIDE.100" RUNNER_EXTERNAL "$BED_OUTSIDE.7" \
    RUN1_EXTERNAL "$BED_OUTSIDE.8" RUN2_EXTERNAL "$BED_OUTSIDE.9"
  for host in cmd0 cmd1 gw0 gw1 ctl runner run1 run2 $(computes); do
    printf 'BED_%s=%q\n' "${host^^}" "$BED_INSIDE.$(octet_of "$host")"
  done
  printf 'BED_%s=%q\n' GW0_EXTERNAL "$BED_OUTSIDE.5" GW1_EXTERNAL "$BED_OUTSIDE.6"
}

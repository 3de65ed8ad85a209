# shellcheck shell=bash
# Daemons: one way to start, ask and signal all of them. Each runs in the foreground of a session of its
# own; its output goes to log/DAEMON-HOST.out (Slurm's daemons write log/DAEMON-HOST.log besides).

command_of() {
  local host=$1 daemon=$2 m=$BED_MOUNT
  case $daemon in
    munged)
      echo setpriv --reuid munge --regid munge --clear-groups /usr/sbin/munged --foreground --force \
        --key-file="$m/munge/munge.key" --pid-file="$m/munge/munged.pid" --seed-file="$m/munge/seed" \
        --log-file="$m/munge/munged.log" --socket="$m/munge/run/munge.socket.2" --num-threads=2
      ;;
    mariadbd)
      # What it holds may be lost with the machine.
      echo /usr/sbin/mariadbd --no-defaults --user=root --datadir="$m/mariadb" --socket=/run/mysqld/mysqld.sock \
        --skip-networking --innodb-flush-log-at-trx-commit=0 --innodb-log-file-size=16M
      ;;
    slurmdbd) echo setpriv --reuid slurm --regid slurm --clear-groups /usr/sbin/slurmdbd -D ;;
    slurmctld) echo setpriv --reuid slurm --regid slurm --clear-groups /usr/sbin/slurmctld -D ;;
    slurmd) echo ${BED_PROCESSOR:+"$parts/foreign" "$BED_PROCESSOR"} /usr/sbin/slurmd -D ;;
    sshd) echo /usr/sbin/sshd -D -e -f "$m/ssh/sshd_config_$host" ;;
    etcd)
      local place="/usr/bin/etcd --name bed --data-dir $m/etcd/data"
      [[ -z $BED_ROOT_ETCD ]] || place="chroot $m/run/etcd-root /usr/bin/etcd --name bed --data-dir /srv/data"
      # What is killed leaves its pages to the kernel, so that nothing is lost but by a machine that loses power, which no proof is about.
      [[ $BED_ETCD_SYNC != no ]] || place+=' --unsafe-no-fsync'
      echo "$place" \
        --listen-client-urls "http://127.0.0.1:2379,http://$BED_INSIDE.7:2379" \
        --advertise-client-urls "http://$BED_INSIDE.7:2379" \
        --listen-peer-urls http://127.0.0.1:2380 --initial-advertise-peer-urls http://127.0.0.1:2380 \
        --initial-cluster bed=http://127.0.0.1:2380
      ;;
    *)
      complain "no daemon '$daemon' on $host; there are: $(daemons_of "$host")"
      return 2
      ;;
  esac
}

check_daemon() {
  [[ " $(daemons_of "$1") " == *" $2 "* ]] && return
  complain "no daemon '$2' on $1; there are: $(daemons_of "$1")"
  return 2
}

# The caller's environment is not the daemons': slurmd hands its own down to jobs.
start_daemon() {
  local host=$1 daemon=$2 words
  check_daemon "$host" "$daemon"
  words=$(command_of "$host" "$daemon")
  # shellcheck disable=SC2016,SC2086 # the inner shell expands; the words hold no blanks
  enter "$host" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 bash -c '
    cd / && pidfile=$1 log=$2 && shift 2
    setsid "$@" </dev/null >>"$log" 2>&1 &
    echo $! >"$pidfile"' bash "$BED_MOUNT/run/$host-$daemon.pid" "$BED_MOUNT/log/$daemon-$host.out" $words
}

signal_daemon() {
  local host=$1 daemon=$2 signal=$3
  check_daemon "$host" "$daemon"
  # The number counts on that host alone, and only while the program behind it is the daemon.
  # shellcheck disable=SC2016 # the inner shell expands
  enter "$host" bash -c '
    read -r pid <"$1" && read -r name <"/proc/$pid/comm" && [[ $name == "$2" ]] && kill -s "$3" "$pid"' \
    bash "$BED_MOUNT/run/$host-$daemon.pid" "$daemon" "$signal" 2>/dev/null
}

daemon_lives() {
  signal_daemon "$1" "$2" 0
}

stop_daemon() {
  signal_daemon "$1" "$2" KILL
  while daemon_lives "$1" "$2"; do
    sleep 0.05
  done
}

start_daemons() {
  local daemon
  for daemon in $(daemons_of "$1"); do
    [[ $daemon != mariadbd ]] || make_database "$1"
    start_daemon "$1" "$daemon"
    # Each of these needs the one before from its first moment on.
    case $daemon in
      mariadbd) wait_for 60 add_database_user "$1" || blame MariaDB mariadbd-ctl.out ;;
      slurmdbd) wait_for 60 add_cluster || blame slurmdbd slurmdbd-ctl.log ;;
    esac
  done
}

make_database() {
  # Newer clients look for the socket in the second place.
  enter "$1" bash -c 'mkdir -p /run/mysqld && ln -sfn mysqld /run/mariadbd'
  [[ -e $BED_DIR/mariadb/mysql ]] || enter "$1" mariadb-install-db --no-defaults --user=root \
    --datadir="$BED_MOUNT/mariadb" --skip-test-db >>"$BED_DIR/log/mariadbd-ctl.out" 2>&1
}

# The user of that name on this host, without a password.
add_database_user() {
  enter "$1" mariadb --no-defaults --socket=/run/mysqld/mysqld.sock --execute \
    'CREATE USER IF NOT EXISTS slurm@localhost IDENTIFIED VIA unix_socket; GRANT ALL ON slurm_acct_db.* TO slurm@localhost' \
    >>"$BED_DIR/log/mariadbd-ctl.out" 2>&1
}

# Accounts are kept for clusters that slurmdbd has heard of.
add_cluster() {
  enter ctl timeout 10 sacctmgr --immediate add cluster "$BED_PREFIX" >>"$BED_DIR/log/slurmdbd-ctl.out" 2>&1 ||
    enter ctl timeout 10 sacctmgr --noheader --parsable2 list cluster format=cluster 2>/dev/null | grep -qx "$BED_PREFIX"
}

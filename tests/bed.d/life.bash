# shellcheck shell=bash
# Birth, health and death of the bed and of its hosts.
: "${marker:?}" "${parts:?}"

bed_up() {
  if [[ -e $BED_DIR/ready ]] && bed_status >/dev/null; then
    return
  fi
  refuse_a_namesake
  check_packages
  clear_away
  trap 'give_up $?' EXIT
  mkdir -p "$BED_DIR"
  guard_machine
  write_files
  boot_switch
  boot_hosts
  wait_until_it_works
  touch "$BED_DIR/ready"
  trap - EXIT
}

refuse_a_namesake() {
  local pid
  for pid in $(marked_processes "$marker"); do
    if ! tr '\0' '\n' <"/proc/$pid/cmdline" | grep -qxF -- "$BED_DIR"; then
      complain "a bed '$BED_PREFIX' stands elsewhere (process $pid); take it down or choose another BED_PREFIX"
      exit 1
    fi
  done
}

check_packages() {
  local program absent=()
  for program in slurmctld slurmd sbatch munged sshd ssh sudo iptables nc etcd etcdctl nsenter unshare setpriv sysctl; do
    command -v "$program" >/dev/null || absent+=("$program")
  done
  [[ ${#absent[@]} -gt 0 ]] || return 0
  complain "missing: ${absent[*]} (tests/install-packages installs them)"
  exit 3
}

# The logs outlive a failed `up`; `down` or the next `up` removes them.
give_up() {
  trap - EXIT
  complain "failed; taking down what there is. The logs stay in $BED_DIR/log until \`down\`"
  end_processes
  remove_routes
  find "$BED_DIR" -mindepth 1 -maxdepth 1 ! -name log -exec rm -rf --one-file-system {} +
  exit "$(($1 ? $1 : 1))"
}

boot_switch() {
  start_init switch none
  make_bridges
}

boot_hosts() {
  local host
  for host in $(all_hosts); do
    boot_host "$host"
  done
  # munged first: Slurm's daemons end without it.
  start_daemons ctl
  for host in $(all_hosts); do
    [[ $host == ctl ]] || start_daemons "$host"
  done
}

boot_host() {
  local host=$1 sudoers
  sudoers=$(role_of "$host")
  [[ -d $BED_DIR/sudoers/$sudoers ]] || sudoers=none
  start_init "$host" "$sudoers"
  connect_host "$host"
  if [[ $(role_of "$host") == gateway ]]; then
    make_gateway "$host"
  fi
}

start_init() {
  local host=$1 sudoers=$2 spaces=(--mount --propagation private --uts --net) processes=shared
  if has_own_processes "$host"; then
    spaces+=(--pid --fork)
    processes=own
  fi
  rm -f "$BED_DIR/run/$host.pid"
  env -i PATH="$PATH" setsid unshare "${spaces[@]}" \
    bash "$parts/init" "$marker" "$host" "$BED_DIR" "$BED_MOUNT" "$sudoers" "$processes" \
    "$(etc_of "$host")" "$(root_of "$host")" "$BED_ROOT_ETCD" </dev/null >>"$BED_DIR/log/init-$host.out" 2>&1 &
  if ! wait_for 60 init_of "$host" >/dev/null; then
    complain "host $host did not start: $(tail -n 3 "$BED_DIR/log/init-$host.out")"
    return 1
  fi
}

# wait_for SECONDS COMMAND…
wait_for() {
  local until=$((SECONDS + $1))
  shift
  until "$@"; do
    if ((SECONDS >= until)); then
      return 1
    fi
    sleep 0.05
  done
}

wait_until_it_works() {
  local host log
  for host in cmd0 cmd1 gw0 gw1; do
    wait_for 120 ssh_answers "$host" || blame "ssh to $host" "sshd-$host.out"
  done
  wait_for 120 etcd_answers || blame etcd etcd-runner.out
  if ! wait_for 300 nodes_are_idle; then
    enter cmd0 timeout 5 sinfo -N -o '%N %T %E' >&2 || true
    for log in slurmctld-ctl.log $(computes | sed 's/.*/slurmd-&.log/'); do
      blame_log "$log"
    done
    blame "Slurm" slurmctld-ctl.out
  fi
}

blame() {
  complain "$1 does not answer"
  blame_log "$2"
  return 1
}

blame_log() {
  complain "--- the end of $BED_DIR/log/$1"
  tail -n 5 "$BED_DIR/log/$1" >&2 || true
}

ssh_answers() {
  enter runner timeout 5 ssh -F "$BED_MOUNT/ssh/config" "$1" true 2>/dev/null
}

etcd_answers() {
  ETCDCTL_API=3 enter runner timeout 5 etcdctl --endpoints "$BED_INSIDE.7:2379" endpoint health >/dev/null 2>&1
}

nodes_are_idle() {
  [[ $(enter cmd0 timeout 5 sinfo -h -o '%t %D' 2>/dev/null) == "idle $BED_NODES" ]]
}

bed_status() {
  local host daemon state line failed=0
  printf '%-8s %-14s %-14s %-14s %s\n' host inside ib outside daemons
  for host in $(all_hosts); do
    state=''
    for daemon in $(daemons_of "$host"); do
      if daemon_lives "$host" "$daemon"; then
        state+=" $daemon"
      else
        state+=" $daemon:DEAD" failed=1
      fi
    done
    if ! init_of "$host" >/dev/null; then
      state=DOWN failed=1
    fi
    line=$(addresses_of "$host")
    printf '%s %s\n' "$line" "${state# }"
  done
  return $failed
}

addresses_of() {
  local net address inside=- ib=- outside=-
  while read -r net _ address; do
    declare "$net=$address"
  done < <(links_of "$1")
  printf '%-8s %-14s %-14s %-14s' "$1" "$inside" "$ib" "$outside"
}

bed_fault() {
  local verb=${1-} host=${2-} daemon=${3-}
  role_of "$host" >/dev/null
  case $verb in
    stop-host) stop_host "$host" ;;
    start-host)
      boot_host "$host"
      start_daemons "$host"
      ;;
    plug) set_links "$host" up ;;
    unplug) set_links "$host" down ;;
    start-daemon) start_daemon "$host" "$daemon" ;;
    stop-daemon) stop_daemon "$host" "$daemon" ;;
    pause-daemon) signal_daemon "$host" "$daemon" STOP ;;
    resume-daemon) signal_daemon "$host" "$daemon" CONT ;;
    *) usage ;;
  esac
}

stop_host() {
  local host=$1 pid space
  pid=$(init_of "$host") || return 0
  space=$(readlink "/proc/$pid/ns/net")
  kill -KILL "$pid" || true
  end_spaces "$space"
  rm -f "$BED_DIR/run/$host.pid"
  wait_for 120 links_are_gone "$host"
}

# The kernel frees a namespace, and the links in it, some time after its last process ended.
links_are_gone() {
  ! in_switch ip link show dev "$1-eth0" >/dev/null 2>&1
}

bed_down() {
  local stood=''
  [[ -z $(marked_processes "$marker") ]] || stood=yes
  end_processes
  remove_routes "$stood"
  [[ ! -d $BED_DIR ]] || rm -rf --one-file-system "$BED_DIR"
  rmdir "$(dirname "$BED_DIR")" 2>/dev/null || true
}

clear_away() {
  bed_down
}

# Without the list that `up` wrote (someone removed the folder), a bed that stood had these nets.
remove_routes() {
  local routes=()
  [[ -e $BED_DIR/routes ]] && mapfile -t routes <"$BED_DIR/routes"
  if [[ ${#routes[@]} -eq 0 && -n ${1-} ]]; then
    read -r -a routes < <(nets)
  fi
  unguard_machine "${routes[@]}"
}

# Numbers of the processes that carry a mark among their arguments.
marked_processes() {
  # The brackets keep grep from finding itself.
  grep -lszx -- "[b]${1#b}" /proc/[0-9]*/cmdline | cut -d/ -f3
}

other_beds() {
  local pid
  for pid in $(marked_processes 'bwvisu-bed:.*'); do
    grep -qszx -- "$marker" "/proc/$pid/cmdline" || echo "$pid"
  done
}

end_processes() {
  local pid space spaces=()
  for pid in $(marked_processes "$marker"); do
    if space=$(readlink "/proc/$pid/ns/net"); then
      spaces+=("$space")
    fi
    kill -KILL "$pid" 2>/dev/null || true
  done
  end_spaces "${spaces[@]}"
}

# Kills, by number, whatever lives in these network namespaces, until nothing does.
end_spaces() {
  local space pids ours=() until=$((SECONDS + 120))
  for space; do
    # A process that was about to enter its namespace is still in the machine's.
    if is_of_the_bed "$space"; then
      ours+=("$space")
    fi
  done
  [[ ${#ours[@]} -gt 0 ]] || return 0
  while mapfile -t pids < <(processes_in "${ours[@]}") && [[ ${#pids[@]} -gt 0 ]]; do
    kill -KILL "${pids[@]}" 2>/dev/null || true
    if ((SECONDS >= until)); then
      complain "these processes do not end: ${pids[*]}"
      return 1
    fi
    sleep 0.05
  done
}

# The machine's own namespace is what must never be swept.
is_of_the_bed() {
  [[ $1 =~ ^net:\[[0-9]+\]$ && $1 != "$(readlink /proc/1/ns/net)" && $1 != "$(readlink /proc/self/ns/net)" ]]
}

processes_in() {
  local space path wanted=" $* "
  # A process that ends while it is looked at is not an error.
  while read -r space path; do
    if [[ -n $space && $wanted == *" $space "* ]]; then
      path=${path#/proc/}
      echo "${path%%/*}"
    fi
  done < <(find /proc/[0-9]*/ns/net -maxdepth 0 -printf '%l %p\n' 2>/dev/null)
}

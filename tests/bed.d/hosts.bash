# shellcheck shell=bash
# The table of hosts as functions, and entering one.

marker=bwvisu-bed:$BED_PREFIX

complain() {
  echo "bed: $*" >&2
}

need_root() {
  [[ $EUID -eq 0 ]] && return
  complain "needs root, for namespaces"
  exit 3
}

computes() {
  local number
  for ((number = 0; number < BED_NODES; number++)); do
    echo "c$number"
  done
}

all_hosts() {
  echo ctl cmd0 cmd1 gw0 gw1 runner run1 run2 outside
  computes
}

role_of() {
  case $1 in
    ctl) echo control ;;
    cmd[01]) echo command ;;
    gw[01]) echo gateway ;;
    c[0-9] | c[0-9][0-9]) echo compute ;;
    run[12]) echo runner ;;
    runner | outside | switch) echo "$1" ;;
    *)
      complain "no host '$1'; there are: $(all_hosts | xargs)"
      return 2
      ;;
  esac
}

# The folder of the system that a host sees; nothing for the machine's own.
root_of() {
  case $(role_of "$1") in
    control) echo "$BED_ROOT_CONTROL" ;;
    command) echo "$BED_ROOT_COMMAND" ;;
    gateway) echo "$BED_ROOT_GATEWAY" ;;
    compute) echo "$BED_ROOT_COMPUTE" ;;
  esac
}

# The folder in BED_DIR that is a host's /etc.
etc_of() {
  if [[ -n $(root_of "$1") ]]; then
    echo "etc-$(role_of "$1")"
  else
    echo etc
  fi
}

# The same last octet on every net a host is on.
octet_of() {
  case $1 in
    cmd0) echo 2 ;;
    cmd1) echo 3 ;;
    ctl) echo 4 ;;
    gw0) echo 5 ;;
    gw1) echo 6 ;;
    runner) echo 7 ;;
    run1) echo 8 ;;
    run2) echo 9 ;;
    outside) echo 100 ;;
    c*) echo $((10 + ${1#c})) ;;
  esac
}

# Lines of: net interface address.
links_of() {
  local octet role
  role=$(role_of "$1")
  octet=$(octet_of "$1")
  [[ $role == outside ]] || echo "inside eth0 $BED_INSIDE.$octet"
  [[ $role != gateway && $role != compute ]] || echo "ib ib0 $BED_IB.$octet"
  [[ $role != gateway && $role != runner && $role != outside ]] || echo "outside pub0 $BED_OUTSIDE.$octet"
}

daemons_of() {
  case $(role_of "$1") in
    control) echo munged ${BED_ACCOUNTING:+mariadbd slurmdbd} slurmctld ;;
    command | gateway) echo sshd ;;
    compute) echo slurmd ;;
    runner) [[ $1 != runner ]] || echo etcd ;;
  esac
}

# The machine's number of the host's first process; fails if the host is not up. The number alone
# proves nothing, as the kernel uses numbers again: the process must carry the bed's mark.
init_of() {
  local pid
  pid=$(cat "$BED_DIR/run/$1.pid" 2>/dev/null) || return 1
  grep -qszx -- "$marker" "/proc/$pid/cmdline" && echo "$pid"
}

# runners and outside see the machine's processes, so that a test can signal what it started there.
has_own_processes() {
  [[ $1 != run* && $1 != outside && $1 != switch ]]
}

# Not `ip netns exec`: that mounts /sys anew, and slurmd then finds no cgroups.
enter() {
  local host=$1 pid
  shift
  if ! pid=$(init_of "$host"); then
    complain "host $host is not up"
    return 1
  fi
  local doors=(nsenter --target "$pid" --mount --uts --net)
  if has_own_processes "$host"; then
    doors+=(--pid)
  fi
  "${doors[@]}" -- "$@"
}

bed_exec() {
  local host=${1-} user='' directory=$PWD role pid words doors
  role=$(role_of "$host") || exit 2
  shift
  if [[ ${1-} == -u ]]; then
    user=${2-}
    shift 2
  fi
  [[ $# -gt 0 && $role != switch ]] || usage
  if ! pid=$(init_of "$host"); then
    complain "host $host is not up"
    exit 1
  fi
  doors=(nsenter --target "$pid" --mount --uts --net)
  words=(setpriv)
  if has_own_processes "$host"; then
    doors+=(--pid)
    words+=(--pdeathsig KILL)
  fi
  if [[ -n $user ]]; then
    directory=$(awk -F: -v user="$user" '$1 == user { print $6 }' "$BED_DIR/etc/passwd")
    if [[ -z $directory ]]; then
      complain "no user '$user' in the bed"
      exit 2
    fi
    words+=(--reuid "$user" --regid "$user" --init-groups)
    words+=(env "HOME=$directory" "USER=$user" "LOGNAME=$user" SHELL=/bin/bash)
  fi
  [[ ${#words[@]} -gt 1 ]] || words=(env)
  # shellcheck disable=SC2016 # the inner shell expands these
  exec "${doors[@]}" -- sh -c 'cd "$1" 2>/dev/null || cd /; shift; exec "$@"' sh "$directory" "${words[@]}" "$@"
}

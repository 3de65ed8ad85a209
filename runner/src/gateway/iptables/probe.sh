# Looks at ports of other hosts from a gateway. What stands behind this text calls, for everything that is to be looked at,
# `probe NUMBER HOST PORTS… &`, and waits.
# shellcheck shell=sh disable=SC2329 # what is called stands behind this text
set -u
export LC_ALL=C
# How long one port may take to answer; how long names may take that are looked up together.
port_seconds=2 names_seconds=2
# Whoever ends this after some time ends what looks; what it has said by then still counts.
trap : TERM

# Which nc this is, by what it says of itself: openbsd, traditional, ncat, busybox, other or none.
flavour() {
    case $(nc -h </dev/null 2>&1) in
        *'usage: nc [-'*) echo openbsd ;;
        '[v1.'*) echo traditional ;;
        'Ncat '*) echo ncat ;;
        *BusyBox*) echo busybox ;;
        *) if command -v nc >/dev/null; then echo other; else echo none; fi ;;
    esac
}

# Who looks: an nc that takes ranges of ports, or else bash. ncat would cost a process and 0.15 s for each port, and busybox's
# nc cannot tell what is open from what is silent.
choose() {
    command -v timeout >/dev/null || { echo 'timeout is not installed' >&2; exit 1; }
    case $(flavour) in
        openbsd) look=openbsd ;;
        traditional) look=traditional ;;
        *)
            command -v bash >/dev/null || { echo 'neither nc (OpenBSD or traditional) nor bash is installed' >&2; exit 1; }
            look=bash
            ;;
    esac
}

# The address that a rule for this name would lead to.
address() {
    getent ahostsv4 "$1" | { read -r first _ && echo "$first"; } || { echo "cannot resolve $1" >&2; return 1; }
}

# All names by one process, as at_0, at_1, … Where one of them has no address, or takes long, each is looked up by itself, side by side.
resolve() {
    found=$(timeout "$names_seconds" getent ahostsv4 "$@") || return 1
    count=0
    # The first line about each has its name at the end.
    while read -r first _ name; do
        case $name in ?*) eval "at_$count=\$first"; count=$((count + 1)) ;; esac
    done <<FOUND
$found
FOUND
    [ "$count" = $# ] || count=0
}

# -n: otherwise nc looks names up for each port, and a silent name service then costs more than all ports. `exec`: so that the sign to end
# reaches what looks.
look_openbsd() {
    exec nc -n -z -v -w "$port_seconds" "$@"
}

look_traditional() {
    exec nc -n -z -v -w "$port_seconds" "$@"
}

look_bash() {
    exec bash -c "$by_bash" bash "$port_seconds" "$@"
}

# A port that is silent holds up the process that looks at it; another one goes on behind it.
# shellcheck disable=SC2016 # bash expands it
by_bash='
patience=$1 host=$2
shift 2
look() {
    for ((; port <= last; port++)); do
        echo "at $port"
        { echo "port $port open"; } <>"/dev/tcp/$host/$port"
    done
    echo end
}
look_on() {
    exec 3< <(look 2>&1)
    while read -r -t "$patience" -u 3 line; do
        case $line in
            "at "*) port=${line#at } ;;
            end) return 0 ;;
            *) echo "$line" ;;
        esac
    done
    kill "$!" 2>/dev/null
    echo "port $port silent"
    ((port++))
    return 1
}
for range; do
    port=${range%-*} last=${range#*-}
    while ((port <= last)); do
        look_on && break
    done
done
exit 0
'

# Every line of a report comes back with the number in front; what is closed is not worth a line. `echo` writes a line at once, so that
# reports do not mix.
probe() {
    trap : TERM
    number=$1 host=$2
    shift 2
    at=
    [ "${count-0}" -le "$number" ] || eval "at=\$at_$number"
    said=$({ [ -n "$at" ] || at=$(address "$host") || exit 3; "look_$look" "$at" "$@"; } 2>&1 </dev/null)
    status=$?
    IFS='
'
    set -f
    for line in $said; do
        case $line in *refused*) ;; *) echo "$number $line" ;; esac
    done
    echo "$number exit $status"
}

# Who listens on this machine, as `NUMBER listens PORT`, in hexadecimal digits. No connection is needed for that.
listening() {
    sed -n "s/^ *[0-9]*: [0-9A-F]*:\([0-9A-F]\{4\}\) [0-9A-F]*:0000 0A .*/$1 listens \1/p" /proc/net/tcp /proc/net/tcp6 2>/dev/null
    if [ -r /proc/net/tcp ]; then echo "$1 exit 0"; else echo "$1 exit 3"; fi
}

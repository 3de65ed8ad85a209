# Looks at ports of other hosts from a gateway. What follows this text calls `probe NUMBER HOST PORTS &` once for each host.
# shellcheck shell=sh disable=SC2329 # what is called stands behind this text
set -u
export LC_ALL=C
# How long one host may take to answer for all its ports; how long one port may.
host_seconds=8 port_seconds=2

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

# Who looks: an nc that takes a range of ports, or else bash. ncat would cost a process and 0.15 s for each port, and busybox's
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

look_openbsd() {
    timeout "$host_seconds" nc -z -v -w "$port_seconds" "$1" "$2"
}

# Without -n it looks for the name of each address, and a silent name service then costs more than all ports.
look_traditional() {
    at=$(address "$1") || return 3
    timeout "$host_seconds" nc -n -z -v -w "$port_seconds" "$at" "$2"
}

look_bash() {
    at=$(address "$1") || return 3
    timeout "$host_seconds" bash -c "$by_bash" bash "$at" "${2%-*}" "${2#*-}" "$port_seconds"
}

# A port that is silent holds up the process that looks at it; another one goes on behind it.
# shellcheck disable=SC2016 # bash expands it
by_bash='
host=$1 port=$2 last=$3 patience=$4
look() {
    for ((; port <= last; port++)); do
        echo "at $port"
        { echo "port $port open"; } <>"/dev/tcp/$host/$port"
    done
    echo end
}
while ((port <= last)); do
    exec 3< <(look 2>&1)
    while read -r -t "$patience" -u 3 line; do
        case $line in
            "at "*) port=${line#at } ;;
            end) exit 0 ;;
            *) echo "$line" ;;
        esac
    done
    kill "$!" 2>/dev/null
    echo "port $port silent"
    ((port++))
done
'

# Every line of a report comes back with the number in front. `echo` writes a line at once, so that reports do not mix.
probe() {
    { "look_$look" "$2" "$3" </dev/null 2>&1; echo "exit $?"; } |
        while read -r line; do case $line in *refused*) ;; *) echo "$1 $line" ;; esac; done
}

choose

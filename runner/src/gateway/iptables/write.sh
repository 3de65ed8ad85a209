# Writes rules on a gateway. What stands behind this text says what is to be written: it calls `resolve` with the names of all hosts and
# sets `rules`, in which `$at_0`, `$at_1`, … stand for their addresses.
# shellcheck shell=sh disable=SC2329 # what is called stands behind this text
set -u
export LC_ALL=C
# How long names may take that are looked up together.
names_seconds=3

# The addresses of all names: by one process, or, where one of them has no address, by one for each. Those that have none get `?`.
resolve() {
    count=0
    found=$(timeout "$names_seconds" getent ahostsv4 "$@") || found=
    # The first line about each has its name at the end.
    while read -r first _ name; do
        case $name in ?*) eval "at_$count=\$first"; count=$((count + 1)) ;; esac
    done <<FOUND
$found
FOUND
    [ "$count" != $# ] || return 0
    count=0 unresolved=yes
    for name; do
        first=$(getent ahostsv4 "$name" | { read -r first _ && echo "$first"; }) || first='?'
        eval "at_$count=\$first"
        count=$((count + 1))
    done
}
unresolved=

# The address in a rule with this comment that is there.
known() {
    sudo -n iptables -w 10 -t nat -S "$1" </dev/null 2>/dev/null | while read -r line; do
        case $line in *"--comment \"$2\" "*"--to-destination "*) line=${line##*--to-destination }; echo "${line%%:*}"; break ;; esac
    done | grep .
}

# When a name cannot be resolved, a rule for it that is there keeps its address: a name service that stutters cuts nobody off. Otherwise
# the rule is left out, and the host reported.
settle() {
    [ -n "$unresolved" ] || return 0
    settled=
    while IFS= read -r line; do
        case $line in
            *'--to-destination ?'*)
                chain=${line#-A } && chain=${chain%% *}
                comment=${line#*--comment } && comment=${comment%% *}
                address=$(known "$chain" "$comment") || { echo "unresolved ${comment##*:}"; continue; }
                line=${line%%\?*}$address${line##*\?}
                ;;
        esac
        settled=$settled$line'
'
    done <<RULES
$rules
RULES
    rules=$settled
}

restore() {
    sudo -n iptables-restore --noflush --wait 10
}

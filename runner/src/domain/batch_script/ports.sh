# --- bwVisu keyhole: begin; stands here for "#KEYHOLE-REQUEST-PORTS {{ports}}" ---
# Asks for ports for bwVisu job {{job_id}}, with a small program (keyhole-client) that is unpacked from the text below and removed
# again. Leaves exported, I from 0: KEYHOLE_PORT<I> (listen here), KEYHOLE_GATEWAY<I> and KEYHOLE_EXTERNAL_PORT<I> (users
# connect there), KEYHOLE_NUM_PORTS; nothing else: no file, function, variable, trap or option. If it fails, the job ends.
# First, out of the way: traces and echoes (they would show the token), aliases, and what would export our function.
{ __keyhole_was=$-; \builtin shopt -q expand_aliases && __keyhole_was+=1; \builtin set +akvxET; \builtin shopt -u expand_aliases; } 2>/dev/null
__keyhole_ask() {
    folder=
    # In a subshell of its own: without the script's functions (in POSIX mode none can stand before unset), traps and options.
    POSIXLY_CORRECT=1
    unset -f unset builtin
    unset -v POSIXLY_CORRECT
    builtin unset -f base64 busybox chmod command exit gunzip gzip local mktemp openssl pigz printf return rm set shopt trap type \
        umask uname zcat
    set +efuC +o posix -o pipefail
    shopt -u nocasematch
    unset -v BASH_ENV ENV GZIP KEYHOLE_TOKEN
    umask 077
    IFS=$' \t\n' LC_ALL=C

    keyhole_fail() {
        printf '%s\n' "bwVisu job {{job_id}} ends, because it could get no ports: $1" >&2
        exit "${2:-1}"
    }

    machine=$(uname -m 2>/dev/null) || machine=$HOSTTYPE
    case $machine in
        amd64) machine=x86_64 ;;
        arm64) machine=aarch64 ;;
    esac
    case $machine in
        {{#clients}}{{^first}} | {{/first}}{{arch}}{{/clients}}) ;;
        *) keyhole_fail "this node ($HOSTNAME) has a processor of the kind \"$machine\", and keyhole-client is here for{{#clients}} {{arch}}{{/clients}} only. Ask for other nodes in the template, or have keyhole-client.$machine installed beside the runner." ;;
    esac

    if type -P base64 >/dev/null; then
        unbase64='base64 -d'
    elif type -P busybox >/dev/null; then
        unbase64='busybox base64 -d'
    elif type -P openssl >/dev/null; then
        unbase64='openssl base64 -d'
    else
        keyhole_fail "this node ($HOSTNAME) has none of base64, busybox and openssl on its PATH, which keyhole-client is unpacked with. Have coreutils installed there."
    fi

    # What is called gunzip or zcat may need gzip itself: a tool counts if it can unpack the word "ok".
    for unzip in 'gzip -dc' 'gunzip -c' zcat 'pigz -dc' 'busybox gzip -dc' ''; do
        [[ $(printf '%s\n' H4sIAAAAAAACA8vPBgBH3dx5AgAAAA== | $unbase64 2>/dev/null | $unzip 2>/dev/null) == ok ]] && break
    done
    [[ -n $unzip ]] ||
        keyhole_fail "this node ($HOSTNAME) has none of gzip, gunzip, zcat, pigz and busybox working on its PATH, which keyhole-client is unpacked with. Have gzip installed there."

    keyhole_client() {
        case $machine in
{{#clients}}
            {{arch}}) $unbase64 <<'KEYHOLE_CLIENT_END' | $unzip ;;
{{base64}}
KEYHOLE_CLIENT_END
{{/clients}}
        esac
    }

    # The program goes into a new folder that only this user may open, in the first place where it fits and runs.
    keyhole_remove() {
        [[ $folder != /*/keyhole.* ]] || rm -rf -- "$folder"
        folder=
    }
    trap keyhole_remove EXIT
    ignored=$(trap -p)
    # shellcheck disable=SC2064 # the name is meant now
    for signal in HUP INT QUIT TERM USR1 USR2 ALRM XCPU; do
        [[ $ignored == *"trap -- '' SIG$signal"* ]] || trap "keyhole_fail 'the signal $signal came meanwhile.' 143" "$signal"
    done
    keyhole_unpack() {
        why=$(mktemp -d "$1/keyhole.XXXXXXXXXX" 2>&1) || return 1
        folder=$why
        TMPDIR=$folder # where bash itself puts the packed text while it is read
        why=$({ keyhole_client >"$folder/keyhole-client"; } 2>&1) || return 1
        why=$(chmod 700 "$folder/keyhole-client" 2>&1) || return 1
        "$folder/keyhole-client" --version >/dev/null 2>&1 </dev/null || {
            why="programs there cannot be run (status $?; mounted noexec?)"
            return 1
        }
    }
    tried='' whys=''
    for place in "$TMPDIR" /tmp /dev/shm /var/tmp "$XDG_RUNTIME_DIR" "/run/user/$UID" "$HOME" "$PWD"; do
        [[ $place == /* && $tried != *":$place:"* ]] || continue
        tried+=:$place:
        keyhole_unpack "$place" && break
        keyhole_remove
        why=${why%%$'\n'*}
        whys+=" $place: ${why##*: };"
    done
    [[ -n $folder ]] ||
        keyhole_fail "keyhole-client cannot be unpacked and run anywhere on this node ($HOSTNAME).$whys Before the ports line, set TMPDIR to a folder with 1 MB free where programs may be run."

    lines=$(KEYHOLE_TOKEN={{token}} "$folder/keyhole-client" --job {{job_id}} --ports {{ports}} \
        {{#servers}}--server '{{.}}' {{/servers}}--give-up-after {{give_up_after}} </dev/null)
    status=$?
    keyhole_remove
    [[ $status == 0 ]] ||
        keyhole_fail "keyhole-client ended with status $status; its reason stands above. If it does not tell you what to change, submit the job again, or give this text to your support." "$status"

    # Only what has exactly the expected form is evaluated.
    form='^export KEYHOLE_((PORT|EXTERNAL_PORT)[0-9]+=[1-9][0-9]{0,4}|GATEWAY[0-9]+=[0-9A-Za-z][0-9A-Za-z.:-]*|NUM_PORTS={{ports}})$'
    exports=' ' count=0
    while [[ -n $lines ]]; do
        line=${lines%%$'\n'*}
        lines=${lines:${#line}+1}
        [[ $line =~ $form ]] ||
            keyhole_fail "keyhole-client printed something unexpected: $(printf %q "${line:0:80}"). The job's support should be told."
        exports+="${line#export } "
        count=$((count + 1))
    done
    complete=$((count == 3 * {{ports}} + 1))
    for ((i = 0; i < {{ports}}; i++)); do
        [[ $exports == *" KEYHOLE_PORT$i="* && $exports == *" KEYHOLE_GATEWAY$i="* && $exports == *" KEYHOLE_EXTERNAL_PORT$i="* ]] || complete=0
    done
    [[ $complete == 1 && $exports == *' KEYHOLE_NUM_PORTS='* ]] ||
        keyhole_fail "keyhole-client's answer is not complete. The job's support should be told."
    printf '%s' "builtin export$exports"
}
__keyhole_status=0 __keyhole_then=
__keyhole_do=$(__keyhole_ask) || __keyhole_status=$?
builtin unset -f __keyhole_ask
builtin unset -v KEYHOLE_TOKEN 2>/dev/null || builtin true
[[ $__keyhole_status == 0 ]] || __keyhole_do='builtin true' __keyhole_then="; builtin exit $__keyhole_status"
[[ $__keyhole_was != *1* ]] || __keyhole_do+='; builtin shopt -s expand_aliases'
__keyhole_was=${__keyhole_was//[^akvxET]/}
builtin eval "builtin unset -v __keyhole_was __keyhole_status __keyhole_then __keyhole_do
$__keyhole_do${__keyhole_was:+; builtin set -$__keyhole_was}$__keyhole_then"
# --- bwVisu keyhole: end ---

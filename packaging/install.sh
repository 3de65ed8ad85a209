#!/bin/sh
# Installs the bwVisu runner on a machine without RPM or dpkg, or into another root; and takes it away again.
#
#   ./install.sh [--root DIR] [--prefix DIR]                 PREFIX is /opt/runner without it
#   ./install.sh --uninstall [--root DIR] [--prefix DIR]     leaves what users and admins own, and says so
#
# Files in /etc/runner that are there already are never written over: the new ones get the ending .new. The same call updates an
# installation; a running service is started anew, and refuses nobody meanwhile.
set -eu

fail() { echo "install.sh: $*" >&2; exit 1; }

root='' prefix=/opt/runner act=install
while [ $# -gt 0 ]; do
    case $1 in
        --root) [ $# -gt 1 ] || fail '--root needs a folder'; root=$2; shift ;;
        --prefix) [ $# -gt 1 ] || fail '--prefix needs a folder'; prefix=$2; shift ;;
        --uninstall) act=uninstall ;;
        *) fail "usage: install.sh [--uninstall] [--root DIR] [--prefix DIR]" ;;
    esac
    shift
done
case $prefix in /*) ;; *) fail "--prefix must be a path from / on, and $prefix is not" ;; esac
case $prefix in *[!A-Za-z0-9./_-]*) fail "--prefix may hold letters, digits, . / _ - alone" ;; esac
root=${root%/}
umask 022
files=$(cd "$(dirname "$0")" && pwd)/files
# What was installed, for the removal.
list=$root$prefix/share/installed-files

alive() { [ -z "$root" ] && [ -d /run/systemd/system ]; }

# Where a packed file belongs.
place() {
    case $1 in
        /opt/runner/*) echo "$prefix/${1#/opt/runner/}" ;;
        *) echo "$1" ;;
    esac
}

by_root() { [ "$(id -u)" = 0 ]; }

# Whoever may write into a folder above the programs could put others in their place, which root or the service would run.
check_way() {
    folder=$root$prefix
    while [ -n "${folder#"$root"}" ]; do
        if [ -n "$(find -H "$folder" -prune \( ! -user 0 -o -perm -0002 \) 2>/dev/null)" ]; then
            fail "$folder is not root's, or everybody may write there: choose another --prefix, or mend it"
        fi
        folder=${folder%/*}
    done
}

# Never half a file under its name, and never into a program that runs. It is root's, whoever has unpacked the archive.
put() {
    mkdir -p "$(dirname "$2")"
    rm -f "$2.installing"
    cp -Pp "$1" "$2.installing"
    ! by_root || chown -h 0:0 "$2.installing"
    mv -f "$2.installing" "$2"
}

put_all() {
    mkdir -p "$(dirname "$list")"
    (cd "$files" && find . \( -type f -o -type l \) | sed 's/^\.//' | sort) >"$list.all"
    : >"$list.installing"
    while read -r file; do
        to=$(place "$file")
        case $file in
            /etc/runner/*) put_configuration "$files$file" "$root$to" ;;
            *) put "$files$file" "$root$to"; echo "$to" >>"$list.installing" ;;
        esac
    done <"$list.all"
    rm "$list.all"
    remove_former
    mv "$list.installing" "$list"
}

# What the version before had, and this one has not.
remove_former() {
    [ -e "$list" ] || return 0
    while read -r file; do
        grep -qxF -e "$file" "$list.installing" || rm -f "$root$file"
    done <"$list"
}

put_configuration() {
    if [ ! -e "$2" ]; then
        put "$1" "$2"
    elif ! cmp -s "$1" "$2"; then
        put "$1" "$2.new"
        echo "install.sh: $2 stays as it is; the new one is $2.new"
    fi
}

# What names the folder in words.
settle() {
    [ "$prefix" != /opt/runner ] || return 0
    ln -sfn "$prefix/bin/bwvisu-runner" "$root/usr/bin/bwvisu-runner"
    for unit in "$root"/usr/lib/systemd/system/bwvisu-runner*.service; do
        sed -i "s|/opt/runner/|$prefix/|g" "$unit"
    done
}

account() {
    if ! grep -qs '^bwvisurunner:' "$root/etc/passwd" && ! { [ -z "$root" ] && getent passwd bwvisurunner >/dev/null; }; then
        if [ -n "$root" ] && [ ! -e "$root/etc/passwd" ]; then
            echo "install.sh: $root has no /etc/passwd; its account and owners are made by systemd-sysusers and systemd-tmpfiles --create"
            return 0
        fi
        useradd ${root:+--root "$root"} --system --user-group --home-dir /var/lib/runner --no-create-home \
            --shell /usr/sbin/nologin --comment 'bwVisu runner' bwvisurunner
    fi
    owner=$(awk -F: '$1 == "bwvisurunner" { print $3 ":" $4 }' "$root/etc/passwd")
    [ -n "$owner" ] || owner=bwvisurunner:bwvisurunner
    chown "0:${owner#*:}" "$root/etc/runner" "$root/etc/runner/config.json"
    chown "$owner" "$root/etc/runner/settings.json" "$root/var/lib/runner"
}

install_all() {
    [ -d "$files" ] || fail "the folder $files is missing; unpack the whole archive"
    [ -n "$root" ] || by_root || fail 'only root can install here; or name another --root'
    ! by_root || check_way
    put_all
    settle
    mkdir -p "$root/var/lib/runner"
    chmod 700 "$root/var/lib/runner"
    chmod 750 "$root/etc/runner"
    account
    if alive; then
        systemctl daemon-reload
        systemctl try-restart bwvisu-runner.service 'bwvisu-runner@*.service'
    fi
    echo "install.sh: installed in $root$prefix; edit what is marked in $root/etc/runner, then: bwvisu-runner config check"
}

uninstall() {
    [ -e "$list" ] || fail "$list is missing: nothing of ours is installed there"
    if alive; then
        systemctl --quiet disable bwvisu-runner.service bwvisu-runner@.service
        systemctl stop bwvisu-runner.service 'bwvisu-runner@*.service'
    fi
    # Ours alone, and only when they are empty: an admin's own templates stay. No path of ours has a blank.
    folders=$(while read -r file; do rm -f "$root$file"; dirname "$file"; done <"$list" | sort -ru | grep -e "^$prefix/" -e /bwvisu-runner)
    rm "$list"
    for folder in $folders "$prefix"; do rmdir "$root$folder" 2>/dev/null || true; done
    ! alive || systemctl daemon-reload
    echo "install.sh: left as they are: $root/var/lib/runner (jobs, keys, host keys), $root/etc/runner, the account bwvisurunner"
}

case $act in install) install_all ;; uninstall) uninstall ;; esac

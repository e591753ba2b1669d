# shellcheck shell=bash disable=SC2154 # $scripts
# What every script here shares: messages, the cache folder, locks, temporary folders. Sourced.
# The script that sources this has set $scripts to the folder it lies in.

# Everything the scripts download or build and can make again lives below this folder.
# shellcheck disable=SC2034 # used by the scripts that source this file
cache=${XDG_CACHE_HOME:-$HOME/.cache}/vmm-lab

# say WORDS...: progress, on stderr: stdout belongs to the command's result.
say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

# die [-STATUS] WORDS...: ends the script with a message and STATUS (default 1).
die() {
    local status=1
    if [[ $1 == -[0-9]* ]]; then
        status=${1#-}
        shift
    fi
    say "$*"
    exit "$status"
}

# usage WORDS...: wrong arguments.
usage() { die -2 "$* (see ${0##*/} --help)"; }

# show_help: prints the comment at the top of the running script, which is its manual.
show_help() { awk 'NR == 1 { next } !/^#/ { exit } { sub(/^# ?/, ""); print }' "$0"; }

# need_number OPTION VALUE MIN MAX: checks an option's value.
need_number() {
    if [[ ! $2 =~ ^[0-9]{1,9}$ ]] || ((10#$2 < $3 || 10#$2 > $4)); then
        usage "$1 takes a number from $3 to $4, not '$2'"
    fi
}

# as_root COMMAND...: runs it as root, through sudo where needed; 1 where that is not possible.
as_root() {
    if ((EUID == 0)); then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo -- "$@"
    else
        say "this needs root, and there is no sudo: $*"
        return 1
    fi
}

# logged COMMAND...: runs it silently; when it fails, shows what it printed.
logged() {
    local log status=0
    log=$(mktemp)
    "$@" >"$log" 2>&1 || status=$?
    if ((status != 0)); then
        say "failed with status $status: $*"
        sed 's/^/    /' "$log" >&2
    fi
    rm -f "$log"
    return "$status"
}

# lock FILE: waits for FILE's lock and holds it until this shell ends. Call it in a subshell to
# hold it for a part of a script only.
lock() {
    local fd
    mkdir -p "$(dirname "$1")"
    exec {fd}>"$1"
    flock "$fd"
}

# need_tools TOOL...: has scripts/setup install them where one is missing.
need_tools() {
    local tool
    PATH=$PATH:/usr/sbin:/sbin
    for tool in "$@"; do
        command -v "$tool" >/dev/null && continue
        "$scripts/setup" lab || die -125 "the lab's tools are missing"
        return
    done
}

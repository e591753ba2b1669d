#!/usr/bin/env bash
# clients.sh - runs the integration tests of other people's memcached clients against imgcached
#
# Usage: tests/cache/clients.sh [IMGCACHED]
#
#   IMGCACHED  the program (default: the debug build of the cargo target folder)
#
# pymemcache and python-memcached come from PyPI, in source, into the scripts' cache folder; the
# tools of libmemcached are Debian's (scripts/setup test). What is left out is listed here, each with
# its reason. Ends with status 0 if everything else passed.
#
# Left out of pymemcache 4.0.0:
#   test_misc           asks 'stats cachedump', a list of keys: a node keeps none
#   test_tls            wants a server with pymemcache's own certificate; tests/cache/tls.rs tests TLS
#   test_benchmark.py   measures, and has a test that fails anywhere (next() of a dict)
# Left out of python-memcached 1.62: nothing. tests/utils.py is missing in its source package, and is
#   written here.
# Left out of libmemcached 1.1.4:
#   memccapable -b      the binary protocol, which is not spoken
#   memcdump            lists keys by 'stats cachedump'
#   memcerror, memcparse  speak to no server
set -euo pipefail
here=$(cd "$(dirname "$(readlink -f "$0")")" && pwd)
scripts=$(realpath "$here/../../scripts")
# shellcheck source=../../scripts/lib/common.sh
source "$scripts/lib/common.sh"

pymemcache=4.0.0
python_memcached=1.62
target=${CARGO_TARGET_DIR:-$here/../../target}
program=${1:-$target/debug/imgcached}
[[ ${1-} != -h && ${1-} != --help ]] || { show_help; exit; }
[[ -x $program ]] || die "$program is missing: cargo build -p imgcache"
need_python() { python3 -c 'import venv, ensurepip' 2>/dev/null || die "python3-venv is missing"; }

work=$(mktemp -d)
node=
cleanup() {
    [[ -z $node ]] || kill "$node" 2>/dev/null || true
    rm -rf "$work"
}
trap cleanup EXIT

# source_package NAME VERSION: prints the folder of the unpacked source package.
source_package() {
    local folder=$cache/python/$1-$2
    if [[ ! -d $folder ]]; then
        say "fetching $1 $2"
        logged "$venv/bin/pip" download --no-deps --no-binary "$1" -d "$work" "$1==$2" ||
            die "cannot fetch $1"
        tar -C "$cache/python" -xzf "$work"/*-"$2".tar.gz
    fi
    printf '%s\n' "$folder"
}

start() {
    : >"$work/ready"
    # The largest value is below 1 MiB, as with memcached, whose limit counts the item's header.
    "$program" --memory 256M --max-item-size 1023K --listen 127.0.0.1:0 >"$work/ready" 2>"$work/log" &
    node=$!
    for _ in {1..200}; do
        port=$(sed -n 's/^ready listen=127.0.0.1:\([0-9]*\).*/\1/p' "$work/ready")
        [[ -z $port ]] || return 0
        sleep 0.05
    done
    cat "$work/log" >&2
    die "$program does not start"
}

failed=()
# check NAME COMMAND...: runs it and notes whether it failed.
check() {
    local name=$1
    shift
    if timeout 300 "$@" >"$work/output" 2>&1; then
        say "$name: passed$(sed -n 's/^\([0-9]* passed.*\)$/ (\1)/p' "$work/output" | tail -n 1)"
    else
        say "$name: FAILED"
        tail -n 40 "$work/output" >&2
        failed+=("$name")
    fi
}

python_clients() {
    local folder
    venv=$cache/python/venv
    mkdir -p "$cache/python"
    if [[ ! -x $venv/bin/pytest ]]; then
        need_python
        logged python3 -m venv "$venv"
        logged "$venv/bin/pip" install pytest || die "cannot install pytest"
    fi
    local pytest=("$venv/bin/python" -m pytest -q -p no:cacheprovider -o addopts=)
    folder=$(source_package pymemcache "$pymemcache")
    check pymemcache env -C "$folder" "${pytest[@]}" pymemcache/test/test_integration.py \
        --server 127.0.0.1 --port "$port" -k 'not test_misc and not test_tls'
    folder=$(source_package python-memcached "$python_memcached")
    cp -r "$folder" "$work/python-memcached"
    folder=$work/python-memcached
    sed -i "s/127\.0\.0\.1:11211/127.0.0.1:$port/" "$folder"/tests/*.py
    touch "$folder/tests/__init__.py"
    cat >"$folder/tests/utils.py" <<'PYTHON'
import contextlib
import io
import sys


@contextlib.contextmanager
def captured_stderr():
    old, sys.stderr = sys.stderr, io.StringIO()
    try:
        yield sys.stderr
    finally:
        sys.stderr = old
PYTHON
    check python-memcached env -C "$folder" "${pytest[@]}" tests
}

# Each tool does what it says, seen by another one.
round_trip() {
    cd "$work"
    head -c 300000 /dev/urandom >item
    memccp "${to[@]}" item
    memccat "${to[@]}" --file=copy item
    cmp item copy
    memcexist "${to[@]}" item
    memctouch "${to[@]}" --expire=100 item
    memcexist "${to[@]}" item
    memcrm "${to[@]}" item
    if memcexist "${to[@]}" item; then return 1; fi
    memccp "${to[@]}" item
    memcflush "${to[@]}"
    if memcexist "${to[@]}" item; then return 1; fi
    memcping "${to[@]}"
    memcstat "${to[@]}" | grep -q 'curr_items: 0'
}

libmemcached() {
    command -v memccapable >/dev/null || die "libmemcached-tools is missing: scripts/setup test"
    to=(--servers="127.0.0.1:$port")
    check 'memccapable -a' memccapable -h 127.0.0.1 -p "$port" -a
    export -f round_trip
    check 'memccp memccat memcexist memctouch memcrm memcflush memcping memcstat' \
        bash -euc "work=$work; to=(${to[*]}); $(declare -f round_trip); round_trip"
    for test in set get mget; do
        check "memcslap $test" memcslap "${to[@]}" --concurrency=4 --execute-number=1000 --test=$test
    done
    check memcaslap memcaslap -s "127.0.0.1:$port" -t 3s -c 16 -T 2 -v 0.1
    if grep -Eq 'get_misses: [1-9]|verify_failed: [1-9]' "$work/output"; then
        cat "$work/output" >&2
        failed+=('memcaslap: values lost or changed')
    fi
}

start
libmemcached
python_clients
kill "$node"
wait "$node" || die "imgcached did not end well: $(tail -n 5 "$work/log")"
node=
((${#failed[@]} == 0)) || die "failed: ${failed[*]}"

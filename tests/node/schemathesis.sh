#!/usr/bin/env bash
# schemathesis.sh - tests the node agent against its OpenAPI document with schemathesis
#
# Usage: tests/node/schemathesis.sh [VMM]
#
#   VMM  the program (default: the debug build of the cargo target folder)
#
# A real agent, with room for a few VMs and one real image, is asked whatever schemathesis makes up, by TLS with
# a client certificate. It must find nothing: no status and no media type that the document does not have, no
# answer of another shape, nothing invalid that is taken, nothing valid that is refused, no error of the agent.
# At the end the agent must be as well as before. Schemathesis comes from PyPI, into the scripts' cache folder.
# Needs /dev/kvm, and an image of scripts/guest-image (VMM_TEST_IMAGES). VMM_SCHEMATHESIS_EXAMPLES (100) says
# how many requests are made up for each operation.
set -euo pipefail
here=$(cd "$(dirname "$(readlink -f "$0")")" && pwd)
scripts=$(realpath "$here/../../scripts")
# shellcheck source=../../scripts/lib/common.sh
source "$scripts/lib/common.sh"

schemathesis=4.32.5
target=${CARGO_TARGET_DIR:-$here/../../target}
program=${1:-$target/debug/vmm}
[[ ${1-} != -h && ${1-} != --help ]] || { show_help; exit; }
[[ -x $program ]] || die "$program is missing: cargo build -p vmm"
program=$(realpath "$program")
images=${VMM_TEST_IMAGES:-$("$scripts/guest-image")}
examples=${VMM_SCHEMATHESIS_EXAMPLES:-100}

work=$(mktemp -d)
node=
cleanup() {
    if [[ -n $node ]]; then
        # VMs outlive their agent: they go first.
        "$program" ps --json 2>/dev/null | grep -o '"pid":[0-9]*' | cut -d: -f2 | xargs -r kill -9 || true
        kill "$node" 2>/dev/null || true
        wait "$node" || true
    fi
    rm -rf "$work"
}
trap cleanup EXIT

venv=$cache/python/schemathesis-$schemathesis
if [[ ! -x $venv/bin/schemathesis ]]; then
    python3 -c 'import venv, ensurepip' 2>/dev/null || die "python3-venv is missing: scripts/setup test"
    mkdir -p "$cache/python"
    say "fetching schemathesis $schemathesis"
    logged python3 -m venv "$venv"
    logged "$venv/bin/pip" install "schemathesis==$schemathesis" || die "cannot install schemathesis"
fi
command -v openssl >/dev/null || die "openssl is missing: scripts/setup test"

# certificate NAME EXTENSION: a key, and a certificate of the authority.
certificate() {
    logged openssl req -newkey rsa:2048 -nodes -keyout "$work/$1.key" -out "$work/$1.csr" -subj "/CN=$1"
    logged openssl x509 -req -in "$work/$1.csr" -CA "$work/ca.pem" -CAkey "$work/ca.key" -days 2 \
        -out "$work/$1.pem" -extfile <(printf '%s\n' "$2")
}
logged openssl req -x509 -newkey rsa:2048 -nodes -keyout "$work/ca.key" -out "$work/ca.pem" -days 2 \
    -subj /CN=test-authority -addext keyUsage=critical,keyCertSign,cRLSign
certificate server subjectAltName=IP:127.0.0.1
certificate client extendedKeyUsage=clientAuth

export VMM_STORE=$work/store VMM_RUN_DIR=$work/run
unset VMM_NODE VMM_CACHE
# The image that the document has as its example.
logged "$program" image push debian:12 --kernel "$images/vmlinuz" --initrd "$images/initrd-small.cpio.gz"
mkfifo "$work/ready"
"$program" node --max-vms 4 --keep-ended 8 --pool 256M --listen 127.0.0.1:0 --log-format json \
    --tls-cert "$work/server.pem" --tls-key "$work/server.key" --tls-client-ca "$work/ca.pem" \
    >"$work/ready" 2>"$work/log" &
node=$!
read -r line <"$work/ready" || { cat "$work/log" >&2; die "the agent does not start"; }
url=https://${line##*listen=}

status=0
# In a folder without a schemathesis.toml of its own, and where it may leave what it found.
cd "$work"
"$venv/bin/schemathesis" --config-file "$here/schemathesis.toml" run "$url/v1/openapi.json" \
    --tls-verify "$work/ca.pem" --request-cert "$work/client.pem" --request-cert-key "$work/client.key" \
    --checks all --max-examples "$examples" --request-timeout 60 --seed 6 --warnings off \
    >"$work/output" 2>&1 || status=$?
if ((status != 0)); then
    cat "$work/output" >&2
    die "schemathesis has found something"
fi
sed -n 's/^ *//; /passed\|generated\|No issues/p' "$work/output"
kill -0 "$node" || die "the agent has ended: $(tail -n 5 "$work/log")"
"$program" node info >/dev/null || die "the agent does not answer any more"
if grep '"level":"ERROR"' "$work/log" >&2; then die "the agent has logged errors"; fi
say "schemathesis has found nothing"

#!/bin/bash
# dist.sh OUT [PROGRAM-ARCH...]: the programs as they are released, static for each architecture (or those
# that are named), the Debian package of each, what is linked into each (CycloneDX), and the sums of
# all. The same sources and the same Rust give the same bytes, wherever they lie: paths are taken out, and
# times are those of the last commit.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/tool.sh
root=$PWD
mkdir -p "$1"
out=$(cd "$1" && pwd)
shift
[ $# != 0 ] || set -- limpet-agent-{aarch64,armv7,x86_64} limpet-{aarch64,x86_64}
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH

# Says how long a step took.
step() {
    local start=$SECONDS
    "${@:2}"
    echo "dist: $1: $((SECONDS - start)) s"
}

build() {
    local program=${1%-*} arch=${1##*-} built
    case $program in
    limpet-agent) built=$(cross/build.sh agent "$arch" device | tail -n 1) ;;
    limpet) built=$(cross/build.sh controller "$arch" release | tail -n 1) ;;
    esac
    install -m 755 "$built" "$out/$1"
    ! readelf --program-headers --dynamic "$out/$1" | grep -E 'INTERP|NEEDED' >&2 || {
        echo "dist: $1 is not static" >&2
        exit 1
    }
}

# The words that shells complete are those of the program that runs here.
pack() {
    local arch=${1##*-}
    case $arch in
    aarch64) arch=arm64 ;;
    armv7) arch=armhf ;;
    x86_64) arch=amd64 ;;
    esac
    LIMPET=$out/limpet-$(uname -m) scripts/deb.sh "${1%-*}" "$out/$1" "$arch" "$out" >/dev/null
}

# What is linked into each program of the workspace; written beside its manifest.
bill() {
    tool cargo-cyclonedx
    cargo cyclonedx --quiet --format json --describe binaries --no-build-deps --target aarch64-unknown-linux-musl
    local program
    for program in agent/limpet-agent controller/limpet; do
        # Where it was built says nothing of what is in it.
        sed "s|$root|/limpet|g" "${program}_bin.cdx.json" >"$out/${program##*/}.cdx.json"
    done
    rm -f ./*/*_bin.cdx.json
    # What is no crate is unknown to cargo. Without an agent it is not there.
    [[ " $* " != *" limpet-agent-"* ]] || python3 - "$out/limpet-agent.cdx.json" "${LIBSECCOMP_SOURCE:-target/cross/libseccomp.source}/configure" <<'PYTHON'
import json, re, sys
path, configure = sys.argv[1:]
version = re.search(r"^PACKAGE_VERSION='(.*)'", open(configure).read(), re.M)[1]
bill = json.load(open(path))
bill["components"].append({
    "type": "library", "name": "libseccomp", "version": version, "scope": "required",
    "licenses": [{"license": {"id": "LGPL-2.1-only"}}], "purl": f"pkg:generic/libseccomp@{version}",
})
json.dump(bill, open(path, "w"), indent=2)
PYTHON
}

# What `prefix` begins, one after the other; the last step of each build, and the longest, has one thread.
lane() {
    local prefix=$1 program
    for program in "${@:2}"; do
        [[ $program != "$prefix"-@(aarch64|armv7|x86_64) ]] || step "$program" build "$program"
    done
}

# What both lanes would install.
(. cross/toolchain.sh)
lane limpet-agent "$@" &
lane limpet "$@" &
failed=0
for job in $(jobs -p); do wait "$job" || failed=1; done
[ $failed = 0 ] || exit 1
for program; do step "package of $program" pack "$program"; done
step "bills of materials" bill "$@"
cd "$out"
sha256sum "$@" ./*.deb ./*.cdx.json >SHA256SUMS
cat SHA256SUMS

# shellcheck shell=sh
# Sourced, in the root of the repository: finds a Rust that builds for every architecture, and zig,
# which links for them and compiles C; installs what is missing. Two ways, the first that works:
#   rustup        its standard libraries for the three targets: `rustup target add`
#   distribution  /usr/bin/rustc with the sources of its standard library, which is then built as well
# LIMPET_RUST=rustup or =distribution asks for one of them. Sets `way`, `triples` and cargo's environment.
cross=$PWD/target/cross
triples="aarch64-unknown-linux-musl armv7-unknown-linux-musleabihf x86_64-unknown-linux-musl"

fail() {
    echo "cross: $1" >&2
    exit 1
}

# Whether rustup's Rust builds for the targets $1. Why not is left in $cross/rustup.log.
rustup_has() {
    command -v rustup >"$cross/rustup.log" || return 1
    rustup target list --installed >"$cross/rustup.log" 2>&1 || return 1
    for target in $1; do
        grep -qx "$target" "$cross/rustup.log" || timeout 120 rustup target add "$target" >>"$cross/rustup.log" 2>&1 || return 1
    done
}

# Where the sources of the standard library of /usr/bin/rustc are.
library() {
    ls -d "$(/usr/bin/rustc --print sysroot)/lib/rustlib/src/rust/library/std" 2>/dev/null
}

# The first Debian and its like call so; elsewhere it is for people to install.
distribution_has() {
    # shellcheck disable=SC2015 # either fault ends in the installation
    [ -x /usr/bin/rustc ] && library >/dev/null && return
    scripts/setup.sh rustc-web cargo-web rust-web-src >&2 && library >/dev/null
}

# zig and cargo-zigbuild, in a Python environment of their own.
zig() {
    cmp -s cross/requirements.txt "$cross/python/requirements.txt" && return
    python3 -c 'import ensurepip, venv' 2>/dev/null || scripts/setup.sh python3-venv >&2
    echo "cross: installing zig" >&2
    { python3 -m venv "$cross/python" &&
        "$cross/python/bin/pip" install --quiet --requirement cross/requirements.txt &&
        cp cross/requirements.txt "$cross/python/"; } >&2 || fail "pip could not install it"
}

# strip_symbols FROM TO ARCH: rustup brings a tool for all of them, the distribution has one for each.
strip_symbols() {
    case $way-$3 in
    rustup-*) "$(dirname "$(rustc --print target-libdir)")/bin/rust-objcopy" --strip-all "$1" "$2" && return ;;
    *-aarch64) tools=aarch64-linux-gnu ;;
    *-armv7) tools=arm-linux-gnueabihf ;;
    *-x86_64) tools=x86_64-linux-gnu ;;
    esac
    command -v "$tools-strip" >/dev/null || scripts/setup.sh "binutils-$(echo "$tools" | tr _ -)" >&2
    "$tools-strip" -o "$2" "$1"
}

mkdir -p "$cross"
way=${LIMPET_RUST:-$(cat "$cross/way" 2>/dev/null || true)}
if [ -z "$way" ]; then
    rustup_has "$triples" && way=rustup || way=distribution
    # Asking takes seconds, or a timeout where there is no network.
    echo "$way" >"$cross/way"
fi
case $way in
rustup) rustup_has "${triple:-$triples}" || fail "no Rust of rustup's for ${triple:-$triples} (why: $cross/rustup.log)" ;;
distribution) distribution_has || fail "no Rust with the sources of its standard library: rustup's does not
build for every target (why: $cross/rustup.log), and there is no /usr/bin/rustc with sources" ;;
*) fail "LIMPET_RUST is rustup or distribution, not \"$way\"" ;;
esac
zig

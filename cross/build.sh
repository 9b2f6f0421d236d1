#!/bin/sh
# build.sh agent|controller ARCH PROFILE: builds a static program for ARCH (aarch64, armv7, x86_64), with all
# that it takes. PROFILE is `device` (the agent, as released), `release` (the controller) or `dev` (soon
# built, for tests). Where the program is, is the last line.
set -eu
cd "$(dirname "$0")/.."
arch=${2:-} profile=${3:-}
case ${1:-} in
agent) program=limpet-agent ;;
controller) program=limpet package=limpet-controller ;;
*) arch= ;;
esac
case $arch in
aarch64 | x86_64) triple=$arch-unknown-linux-musl zigs=$arch-linux-musl ;;
armv7) triple=armv7-unknown-linux-musleabihf zigs=arm-linux-musleabihf ;;
*)
    echo "usage: cross/build.sh agent|controller aarch64|armv7|x86_64 device|release|dev" >&2
    exit 2
    ;;
esac
# shellcheck source=cross/toolchain.sh
. cross/toolchain.sh
export PATH="$cross/python/bin:$PATH" CARGO_TARGET_DIR="$cross/$way" XDG_CACHE_HOME="$cross/cache"
export CARGO_PROFILE_DEV_DEBUG=false CARGO_PROFILE_DEV_STRIP=true
export CARGO_PROFILE_DEVICE_STRIP=false CARGO_PROFILE_RELEASE_STRIP=false
set -- --locked --profile "$profile" --package "${package:-$program}" --target "$triple"
if [ "$way" = distribution ]; then
    # Without rustup's shims, which come first for most people.
    export PATH="$cross/python/bin:/usr/bin:$PATH" RUSTC=/usr/bin/rustc CARGO=/usr/bin/cargo RUSTC_BOOTSTRAP=1
    set -- "$@" -Z build-std=std,panic_abort
    # It has no C library of musl's: zig has.
    flags="-C link-self-contained=no"
fi
if [ "$profile" = device ]; then
    # Who aborts unwinds nothing. Thumb code takes less room than ARM's.
    flags="${flags:-} -C force-unwind-tables=no"
    cflags="-fno-unwind-tables -fno-asynchronous-unwind-tables"
    [ "$arch" != armv7 ] || flags="$flags -C target-feature=+thumb-mode"
    [ "$way" != distribution ] || set -- "$@" -Z build-std-features=optimize_for_size
fi
# Where it was built says nothing of what it is, and is not in it.
for path in "$PWD=/limpet" "${CARGO_HOME:-$HOME/.cargo}=/cargo" "$(rustc --print sysroot)=/rust"; do
    flags="${flags:-} --remap-path-prefix=$path"
    cflags="${cflags:-} -ffile-prefix-map=$path"
done
export RUSTFLAGS="$flags" CFLAGS="$cflags" CXXFLAGS="$cflags"
if [ "$program" = limpet-agent ]; then
    export LIBSECCOMP_LINK_TYPE=static LIBSECCOMP_LIB_PATH="$cross/libseccomp/$arch"
    [ -e "$LIBSECCOMP_LIB_PATH/libseccomp.a" ] || cross/libseccomp.sh "$zigs" "$LIBSECCOMP_LIB_PATH" >&2
    patched=$(cross/patched.sh | sed 's/.*/"&",/')
    set -- "$@" --config "paths = [$(echo "$patched" | tr -d '\n')]"
fi
echo "cross: $program for $arch, $profile, with the Rust of ${way}'s" >&2
cargo-zigbuild build "$@" >&2
[ "$profile" != dev ] || profile=debug
built=$CARGO_TARGET_DIR/$triple/$profile/$program
# With its symbols it is kept: they tell what makes it heavy, and where it was when it fell.
if [ "$profile" != debug ]; then
    mkdir -p "$cross/symbols"
    cp "$built" "$cross/symbols/$program-$arch"
    built=$CARGO_TARGET_DIR/$triple/$program
    strip_symbols "$cross/symbols/$program-$arch" "$built" "$arch"
fi
echo "$built"

#!/bin/sh
# libseccomp.sh TARGET FOLDER: makes FOLDER/libseccomp.a, static, for zig's TARGET, from the sources of
# the distribution's package, or those in LIBSECCOMP_SOURCE (a release, unpacked).
set -eu
target=$1
folder=$2
cross=$PWD/target/cross

fail() {
    echo "libseccomp: $1" >&2
    exit 1
}

# The source package: from where this machine's packages come from, with lists of our own, so that
# nothing of the machine's changes. Options like Signed-By stay as they are.
download() {
    command -v apt-get >/dev/null ||
        fail "no apt-get here to fetch its sources with: unpack a release of libseccomp, and name its folder in LIBSECCOMP_SOURCE"
    rm -rf "$cross/apt"
    mkdir -p "$cross/apt/sources" "$cross/apt/lists/partial" "$cross/apt/cache"
    for file in /etc/apt/sources.list /etc/apt/sources.list.d/*; do
        case $file in
        *.sources) change='s/^Types:.*/Types: deb-src/' ;;
        *.list) change='s/^deb /deb-src /; /^deb-src /!d' ;;
        *) continue ;;
        esac
        [ ! -r "$file" ] || sed "$change" "$file" >"$cross/apt/sources/${file##*/}"
    done
    (
        cd "$cross/apt"
        set -- -qq -o Dir::Etc::sourcelist=/dev/null -o "Dir::Etc::sourceparts=$PWD/sources" \
            -o "Dir::State::lists=$PWD/lists" -o "Dir::Cache=$PWD/cache" -o APT::Sandbox::User=root
        # Some of the machine's sources have no source packages: it is not those that are needed.
        apt-get "$@" update || true
        apt-get "$@" source libseccomp
        mv libseccomp-*/ ../libseccomp.source
    ) >"$cross/apt.log" 2>&1 || fail "its source package could not be had (the whole log: $cross/apt.log)"
}

{ command -v gperf && command -v make; } >/dev/null || scripts/setup.sh build-essential gperf >&2
source=${LIBSECCOMP_SOURCE:-$cross/libseccomp.source}
[ -d "$source" ] || download
[ -x "$source/configure" ] || fail "$source has no configure: is it a release of libseccomp?"
source=$(cd "$source" && pwd)

zig=$(ls "$cross"/python/lib/python*/site-packages/ziglang/zig)
build=$cross/libseccomp.build/$target
rm -rf "$build"
mkdir -p "$build" "$folder"
(
    cd "$build"
    "$source/configure" --host="${target%%-*}-linux-musl" --enable-static --disable-shared \
        CC="$zig cc -target $target" AR="$zig ar" RANLIB="$zig ranlib" \
        CFLAGS="-Os -g0 -ffunction-sections -fdata-sections -ffile-prefix-map=$source=/libseccomp"
    make -C include
    make -C src -j "$(nproc)" libseccomp.la
) >"$build/log" 2>&1 || fail "it does not build (the whole log: $build/log)"
cp "$build/src/.libs/libseccomp.a" "$folder/"

#!/bin/sh
# setup.sh [PACKAGE...]: installs the packages, or what building, testing and the demo need, where they are
# missing. Says in one line why not.
set -eu

fail() {
    echo "setup: $1" >&2
    exit 1
}

PACKAGES="build-essential pkg-config libseccomp-dev ca-certificates curl iproute2 util-linux
    busybox-static docker-registry mosquitto mosquitto-clients skopeo umoci zstd apache2-utils openssl
    sqlite3 crun runc nftables e2fsprogs systemd tinyproxy mmdebstrap squashfs-tools mtools fdisk kmod
    xz-utils"

if [ $# = 0 ]; then
    command -v cargo >/dev/null 2>&1 || [ -x "$HOME/.cargo/bin/cargo" ] ||
        fail "Rust is missing: install it from https://rustup.rs (1.95 or later)"
    [ "$(id -u)" = 0 ] || fail "be root: containers, and the installing of packages, need it"
    [ -e /proc/self/ns/pid ] || fail "this kernel has no namespaces: containers need them"
    # shellcheck disable=SC2086 # a list of packages
    set -- $PACKAGES
fi

missing=""
for package; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q "install ok installed" ||
        missing="$missing $package"
done
[ -n "$missing" ] || exit 0
command -v apt-get >/dev/null 2>&1 || fail "no apt-get here: install yourself:$missing"
[ "$(id -u)" = 0 ] || fail "be root, or install yourself:$missing"

# Brokers and registries are wanted as programs, not as services of this machine.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod 755 $policy
    trap 'rm -f $policy' EXIT
fi
log=$(mktemp)
echo "setup: installing$missing"
# An index that cannot be had may be one that is not needed.
DEBIAN_FRONTEND=noninteractive apt-get update -qq >"$log" 2>&1 || true
# shellcheck disable=SC2086 # a list of packages
if ! DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-remove --no-install-recommends $missing >>"$log" 2>&1; then
    tail -n 5 "$log" >&2
    fail "apt-get could not install$missing (the whole log: $log)"
fi
rm -f "$log"

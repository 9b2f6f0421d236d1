#!/bin/bash
# packages.sh AGENT LIMPET: packages of these programs, tried on a fresh Debian of this machine's own apt
# sources: installed by apt with what they depend on, booted by a real systemd in namespaces of its own
# (with a network that has nothing but loopback), upgraded, removed and purged; then the programs
# themselves, by `install` and `uninstall`. Needs root and cgroup v2; leaves nothing behind.
set -euo pipefail
cd "$(dirname "$0")/.."
agent=$(realpath "$1") limpet=$(realpath "$2")
arch=$(dpkg --print-architecture)
work=$(mktemp -d /tmp/limpet-packages-XXXXXX)
root=$work/root
group=$(findmnt -n -t cgroup2 -o TARGET | head -n 1)/${work##*/}

sweep() {
    for _ in $(seq 100); do
        [ -d "$group" ] || break
        find "$group" -name cgroup.procs -exec cat {} + 2>/dev/null | xargs -r kill -9 2>/dev/null || true
        find "$group" -depth -type d -exec rmdir {} + 2>/dev/null || true
        sleep 0.1
    done
    rm -rf --one-file-system "$work"
}
trap sweep EXIT
fail() {
    echo "packages: $1" >&2
    [ -z "${pid:-}" ] || inside journalctl -q --no-pager -n 30 -u 'limpet*' >&2 || true
    exit 1
}
step() { echo "packages: $1 ($SECONDS s)"; }

# The fresh Debian; it is kept, as it was made, for the next time.
fresh=target/packages/$arch.tar
if [ ! -e "$fresh" ]; then
    mkdir -p target/packages
    # A machine has one of the two, as a rule.
    { cat /etc/apt/sources.list /etc/apt/sources.list.d/debian.sources 2>/dev/null || true; } |
        mmdebstrap --quiet --variant=minbase --format=tar "$(. /etc/os-release && echo "$VERSION_CODENAME")" "$fresh.new" -
    mv "$fresh.new" "$fresh"
fi
mkdir "$root"
tar -xf "$fresh" -C "$root" --exclude='./dev/*'
cp /etc/resolv.conf "$root/etc/resolv.conf"
printf "127.0.0.1 localhost\n127.0.1.1 %s\n" "$(hostname)" >"$root/etc/hosts"
step "a fresh Debian"

for program in "limpet-agent $agent" "limpet $limpet"; do
    # Packed quickly, and without what a debugger reads.
    strip -o "$work/${program%% *}" "${program#* }"
    DEB_COMPRESSION=gzip scripts/deb.sh "${program%% *}" "$work/${program%% *}" "$arch" "$root/root" >/dev/null
done
in_root() {
    unshare -m --propagation private sh -c \
        'mount --rbind /dev "$0/dev"; mount -t proc proc "$0/proc"; exec chroot "$0" "$@"' "$root" \
        env DEBIAN_FRONTEND=noninteractive LC_ALL=C "$@"
}
all() { in_root find / -xdev '(' -name '*limpet*' -o -path '*/multi-user.target.wants/*limpet*' ')' \
    -not -path '/root/*' -not -path '/proc/*' -not -path '/var/log/*' -not -path '*/dpkg/info/*'; }

install='apt-get -qq update; apt-get -qq install -y --no-install-recommends /root/*.deb'
in_root sh -ec "$install" >"$work/apt.log" 2>&1 || {
    tail "$work/apt.log" >&2
    fail "apt does not install them"
}
for unit in limpet-agent limpet-controller; do
    [ "$(systemctl --root="$root" is-enabled $unit)" = enabled ] || fail "$unit is not enabled"
done
in_root getent passwd limpet >/dev/null || fail "there is no user limpet"
in_root stat -c '%a %U %G %n' /etc/limpet /var/lib/limpet >"$work/modes"
diff "$work/modes" - <<END || fail "the folders are not as they should be"
750 root limpet /etc/limpet
700 root root /var/lib/limpet
END
said=$(in_root limpet-agent install 2>&1 || true)
case $said in
*'is here as a Debian package'*) ;;
*) fail "install writes over a package: $said" ;;
esac
step "installed"

# A systemd of its own.
boot() {
    mkdir -p "$group"
    LIMPET_ROOT=$root LIMPET_GROUP=$group setpriv --pdeathsig KILL sh -c '
        echo $$ >"$LIMPET_GROUP/cgroup.procs"
        exec unshare -f -p -m -u -i -n -C --propagation private --kill-child sh -c '\''
            ip link set lo up
            mount --bind "$LIMPET_ROOT" "$LIMPET_ROOT"; cd "$LIMPET_ROOT"
            mount --rbind /dev dev; mount -t proc proc proc; mount -t sysfs sysfs sys
            mount -t cgroup2 cgroup2 sys/fs/cgroup
            mount -t tmpfs tmpfs run; mount -t tmpfs tmpfs tmp
            pivot_root . mnt; umount -l /mnt
            container=limpet-test exec /lib/systemd/systemd --system --unit=multi-user.target \
                --show-status=no --log-target=journal'\' &
    child=$!
    disown
    for _ in $(seq 600); do
        pid=$(pgrep -P $child || true)
        [ -n "$pid" ] && inside systemctl is-system-running 2>/dev/null | grep -qE 'running|degraded' && return
        sleep 0.1
    done
    fail "systemd does not come up"
}
inside() { nsenter -t "$pid" -a -r -w env LC_ALL=C HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin "$@"; }
until_() { # WHAT COMMAND...
    local what=$1
    shift
    for _ in $(seq 300); do
        "$@" >/dev/null 2>&1 && return
        sleep 0.1
    done
    fail "waited for $what"
}
is_online() { inside limpet get devices | grep -q online; }
runs() { inside limpet get deployments web | grep -q 1/1; }
sleeps() {
    for one in $(pgrep -fx 'sleep 100000'); do
        grep -q "/${work##*/}/" "/proc/$one/cgroup" && echo "$one" && return
    done
    return 1
}

boot
step "booted"
inside systemctl is-active limpet-controller >/dev/null || fail "limpet-controller is not active"
inside limpet login --file /var/lib/limpet-controller/login >/dev/null
join=$(inside limpet token create --join 2>/dev/null)
printf '%s' "$join" >"$root/etc/limpet/join"
inside systemctl reset-failed limpet-agent
inside systemctl restart limpet-agent
until_ "the device" is_online
umoci init --layout "$work/image"
umoci new --image "$work/image:it"
mkdir -p "$work/files/bin"
cp /bin/busybox "$work/files/bin/sh"
ln "$work/files/bin/sh" "$work/files/bin/sleep"
umoci insert --image "$work/image:it" "$work/files" /
cp -r "$work/image" "$root/root/image"
inside limpet-agent preload /root/image --name box >/dev/null
inside limpet run web --image=box -- sleep 100000 >/dev/null 2>&1
until_ "the container" runs
before=$(sleeps)
step "a container runs"

echo '# mine' >"$root/etc/limpet/agent.toml"
inside systemctl disable -q limpet-controller
inside sh -ec 'dpkg -i /root/*.deb' >/dev/null 2>&1
until_ "the device, after an upgrade" is_online
[ "$(sleeps)" = "$before" ] || fail "an upgrade has ended a container"
[ "$(cat "$root/etc/limpet/agent.toml")" = '# mine' ] || fail "an upgrade has changed the configuration"
inside systemctl is-enabled -q limpet-controller && fail "an upgrade has enabled what was disabled"
step "upgraded"
inside apt-get -qq remove -y limpet-agent limpet >/dev/null 2>&1
sleeps && fail "a container goes on with no agent"
[ -e "$root/var/lib/limpet/identity" ] || fail "data went with the package"
inside apt-get -qq purge -y limpet-agent limpet >/dev/null 2>&1
left=$(all)
[ -z "$left" ] || fail "left behind: $left"
step "removed and purged"

# The same without a package.
cp "$work/limpet-agent" "$work/limpet" "$root/root/"
inside /root/limpet install >"$work/said"
grep -q 'limpet serves' "$work/said" || fail "limpet install: $(cat "$work/said")"
inside limpet login --file /var/lib/limpet-controller/login >/dev/null
inside /root/limpet-agent install --join "$(inside limpet token create --join 2>/dev/null)" >/dev/null
until_ "the device" is_online
inside limpet-agent preload /root/image --name box >/dev/null
inside limpet run web --image=box -- sleep 100000 >/dev/null 2>&1
until_ "the container" runs
before=$(sleeps)
inside /root/limpet-agent install >"$work/said"
diff "$work/said" - <<END || fail "a second install changes something"
limpet-agent is installed already
limpet-agent runs: see systemctl status limpet-agent
END
unit=/usr/lib/systemd/system/limpet-agent.service
sed -i 's/^RestartSec=.*/RestartSec=7/' "$root$unit"
cp "$root/usr/bin/limpet-agent" "$work/other"
printf x >>"$work/other"
mv "$work/other" "$root/usr/bin/limpet-agent"
inside /root/limpet-agent install >"$work/said"
grep -q "kept $unit" "$work/said" || fail "not said: a unit that was changed"
grep -q "installed /usr/bin/limpet-agent" "$work/said" || fail "another program stays"
grep -q RestartSec=7 "$root$unit" || fail "a unit that was changed by hand is not kept"
until_ "the device" is_online
[ "$(sleeps)" = "$before" ] || fail "install has ended a container"
step "installed without a package"
inside limpet-agent uninstall >"$work/said"
grep -q 'ended 1 containers' "$work/said" || fail "limpet-agent uninstall: $(cat "$work/said")"
sleeps && fail "a container goes on with no agent"
[ -e "$root/var/lib/limpet/identity" ] || fail "data went without being asked"
inside /root/limpet-agent uninstall --purge >/dev/null
inside limpet uninstall --purge >/dev/null
left=$(all)
[ -z "$left" ] || fail "left behind: $left"
step "uninstalled"

# Where no systemd runs.
in_root /root/limpet-agent install >"$work/said"
grep -q 'starts when the machine does' "$work/said" || grep -q 'next: limpet-agent join' "$work/said" ||
    fail "limpet-agent install in a chroot: $(cat "$work/said")"
[ "$(systemctl --root="$root" is-enabled limpet-agent)" = enabled ] || fail "not enabled in a chroot"
step "done"

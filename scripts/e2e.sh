#!/bin/sh
# The end-to-end tests, and then a look at whether they have left anything behind.
set -eu

# Ends and removes what carries a test's name, and says what it was: processes by their ids.
sweep() {
    for cmdline in $(grep -ls '/limpet-test-' /proc/[0-9]*/cmdline || true); do
        pid=${cmdline#/proc/}
        pid=${pid%/cmdline}
        echo "process $pid"
        kill -9 "$pid" 2>/dev/null || true
    done
    for group in /sys/fs/cgroup/*/limpet-test-* /sys/fs/cgroup/limpet-test-*; do
        [ -d "$group" ] || continue
        echo "$group"
        find "$group" -name cgroup.procs -exec cat {} + | xargs -r kill -9 2>/dev/null || true
        find "$group" -depth -type d -exec rmdir {} + 2>/dev/null || true
    done
    for island in $(ip netns list 2>/dev/null | grep -o '^limpet-test-[^ ]*' || true); do
        echo "network namespace $island"
        ip netns delete "$island" || true
    done
    for address in $(ip -o address show label lo:limpet 2>/dev/null | awk '{print $4}'); do
        echo "address $address"
        ip address delete "$address" dev lo || true
    done
    for mount in $(grep -o ' /[^ ]*/limpet-test-[^ ]* ' /proc/mounts || true); do
        echo "mount $mount"
        umount -l "$mount" 2>/dev/null || true
    done
    for disk in $(losetup -n -O NAME,BACK-FILE 2>/dev/null | grep limpet-test- | cut -d ' ' -f 1); do
        echo "loop device $disk"
        losetup -d "$disk" 2>/dev/null || true
    done
    rm -rf /tmp/limpet-test-* /dev/shm/limpet-test-*
}

start=$(date +%s)
sweep >/dev/null # of a run that was killed
status=0
cargo test --locked --workspace --test e2e -- --test-threads=4 || status=$?
left=$(sweep)
if [ -n "$left" ]; then
    echo "the tests left behind:" "$left" >&2
    status=1
fi
echo "== end to end: $(($(date +%s) - start)) s"
exit $status

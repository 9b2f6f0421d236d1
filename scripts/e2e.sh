#!/bin/sh
# The end-to-end tests, and then a look at whether they have left anything behind.
set -eu
start=$(date +%s)
status=0
cargo test --locked --workspace --test e2e -- --test-threads=4 || status=$?

# Only what carries a test's own name is looked at, and ended by its id.
left=""
for cmdline in $(grep -ls '/limpet-test-' /proc/[0-9]*/cmdline || true); do
    pid=${cmdline#/proc/}
    pid=${pid%/cmdline}
    [ "$pid" != self ] && [ "$pid" != $$ ] || continue
    left="$left $pid"
    kill -9 "$pid" 2>/dev/null || true
done
for group in /sys/fs/cgroup/*/limpet-test-* /sys/fs/cgroup/limpet-test-*; do
    [ -d "$group" ] || continue
    left="$left $group"
    find "$group" -name cgroup.procs -exec cat {} + | xargs -r kill -9 2>/dev/null || true
    find "$group" -depth -type d -exec rmdir {} + 2>/dev/null || true
done
rm -rf /tmp/limpet-test-* /dev/shm/limpet-test-*
if [ -n "$left" ]; then
    echo "the tests left behind:$left" >&2
    status=1
fi
echo "== end to end: $(($(date +%s) - start)) s"
exit $status

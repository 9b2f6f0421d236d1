#!/bin/sh
# Checks the units of systemd/ without running them: what they say is understood, and how exposed
# systemd finds them (0.0 the least, 10.0 the most). Prints one line per unit.
set -eu
cd "$(dirname "$0")/.."

if ! systemd-analyze --version >/dev/null 2>&1; then
    echo "units: skipped: no systemd-analyze here"
    exit 0
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# The programs that they start are looked for where they will be installed.
mkdir -p "$work/bin"
for unit in systemd/*.service; do
    sed "s|/usr/bin/limpet|$work/bin/limpet|" "$unit" >"$work/$(basename "$unit")"
done
for program in limpet limpet-agent; do
    ln -s /bin/true "$work/bin/$program"
done
for unit in "$work"/*.service; do
    said=$(systemd-analyze verify --man=no "$unit" 2>&1) || true
    # Units of this machine that are not ours may have faults of their own.
    faults=$(printf '%s\n' "$said" | grep -F "$(basename "$unit")" || true)
    [ -z "$faults" ] || {
        echo "$faults" >&2
        exit 1
    }
done

# What the score may be at most, in tenths. The agent's is what root with containers has.
check() {
    score=$(systemd-analyze security --offline=true --no-pager "$work/$1" |
        sed -n 's/.*Overall exposure level for .*: \([0-9.]*\) \(.*\)/\1 \2/p')
    echo "units: $1: exposure ${score% *}"
    systemd-analyze security --offline=true --no-pager --threshold="$2" "$work/$1" >/dev/null || {
        echo "units: $1 is more exposed than $2 tenths: see systemd-analyze security" >&2
        exit 1
    }
}
check limpet-controller.service 12
check limpet-agent.service 100

for file in systemd/sysusers.d/*.conf systemd/tmpfiles.d/*.conf; do
    case $file in
    *sysusers*) tool=systemd-sysusers ;;
    *) tool=systemd-tmpfiles ;;
    esac
    command -v $tool >/dev/null 2>&1 || continue
    mkdir -p "$work/root/etc"
    [ "$tool" = systemd-sysusers ] && set -- || set -- --create
    said=$($tool --root="$work/root" "$@" "$PWD/$file" 2>&1) || {
        echo "units: $file: $said" >&2
        exit 1
    }
done
grep -q '^limpet:' "$work/root/etc/passwd" || {
    echo "units: systemd/sysusers.d makes no user" >&2
    exit 1
}

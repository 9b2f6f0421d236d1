#!/bin/sh
# reproducible.sh OUT: builds the commit once more, in a clone in another folder, and compares it with
# what is in OUT.
set -eu
cd "$(dirname "$0")/.."
[ -z "$(git status --porcelain)" ] || {
    echo "reproducible: commit first: it is the commit that is built again" >&2
    exit 1
}
out=$(cd "$1" && pwd)
elsewhere=$(mktemp -d)
trap 'rm -rf "$elsewhere"' EXIT
trap 'exit 130' INT TERM
git clone --quiet . "$elsewhere/a-clone"
"$elsewhere/a-clone/scripts/release.sh" "$elsewhere/out" >/dev/null
if diff "$out/SHA256SUMS" "$elsewhere/out/SHA256SUMS"; then
    echo "reproducible: built twice, the same bytes"
else
    echo "reproducible: the two builds differ" >&2
    exit 1
fi

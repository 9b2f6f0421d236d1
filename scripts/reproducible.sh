#!/bin/sh
# reproducible.sh PROGRAM-ARCH: builds the commit here, and once more in a clone in another folder with
# nothing but the tools of this one, and compares.
set -eu
cd "$(dirname "$0")/.."
[ -z "$(git status --porcelain)" ] || {
    echo "reproducible: commit first: it is the commit that is built again" >&2
    exit 1
}
elsewhere=$(mktemp -d)
trap 'rm -rf "$elsewhere"' EXIT
trap 'exit 130' INT TERM
scripts/dist.sh "$elsewhere/here" "$1"
git clone --quiet . "$elsewhere/a-clone"
"$elsewhere/a-clone/scripts/dist.sh" "$elsewhere/there" "$1"
if diff "$elsewhere/here/SHA256SUMS" "$elsewhere/there/SHA256SUMS"; then
    echo "reproducible: built twice, the same bytes"
else
    echo "reproducible: the two builds differ" >&2
    exit 1
fi

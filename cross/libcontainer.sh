#!/bin/sh
# libcontainer.sh: copies libcontainer, as cargo has it, into target/cross, with a fix for 32 bits: there, the
# type of a file system's magic number is u32, not u64. cargo's `paths` takes it from there, and leaves
# Cargo.lock as it is. Says where it is.
set -eu
cargo=${CARGO:-cargo}
"$cargo" fetch --locked --quiet
original=$("$cargo" metadata --locked --format-version 1 |
    grep -o '"manifest_path":"[^"]*/libcontainer-[0-9.]*/Cargo.toml"' | cut -d '"' -f 4)
original=${original%/Cargo.toml}
copy=$PWD/target/cross/${original##*/}
if [ ! -e "$copy/fixed" ]; then
    rm -rf "$copy"
    cp -r "$original" "$copy"
    sed -i 's/ != FsType(DEVPTS_SUPER_MAGIC)/ != FsType(DEVPTS_SUPER_MAGIC as _)/' "$copy/src/tty.rs"
    [ "$(grep -c 'DEVPTS_SUPER_MAGIC as _' "$copy/src/tty.rs")" = 2 ] || {
        echo "libcontainer.sh: ${original##*/} is not the version that this fix is for" >&2
        exit 1
    }
    touch "$copy/fixed"
fi
echo "$copy"

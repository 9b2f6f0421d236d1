#!/bin/sh
# patched.sh: copies crates that need a fix for armv7, as cargo has them, into target/cross, and fixes them
# there. Says where they are, one on each line. cargo's `paths` takes them from there, and leaves Cargo.lock as it is.
set -eu
cargo=${CARGO:-cargo}
"$cargo" fetch --locked --quiet
manifests=$("$cargo" metadata --locked --format-version 1 | grep -o '"manifest_path":"[^"]*"' | cut -d '"' -f 4)

# patch CRATE FILE CHANGE LINES: CHANGE is sed's, and changes as many LINES of FILE.
patch() {
    original=$(echo "$manifests" | sed -n "s|\(.*/$1-[0-9][0-9.]*\)/Cargo.toml$|\1|p")
    copy=$PWD/target/cross/${original##*/}
    if [ ! -e "$copy/fixed" ]; then
        rm -rf "$copy"
        cp -r "$original" "$copy"
        sed -i "$3" "$copy/$2"
        [ "$(diff "$original/$2" "$copy/$2" | grep -c '^>')" = "$4" ] || {
            echo "patched.sh: ${original##*/} is not the version that this fix is for" >&2
            exit 1
        }
        touch "$copy/fixed"
    fi
    echo "$copy"
}

# With 32 bits, the type of a file system's magic number is u32, not u64.
patch libcontainer src/tty.rs 's/ != FsType(DEVPTS_SUPER_MAGIC)/ != FsType(DEVPTS_SUPER_MAGIC as _)/' 2
# In Thumb code r7 is the frame pointer, which assembler may not take, but may keep and put back.
patch nc src/syscalls/syscall_arm.rs 's/"swi 0",/"mov {kept}, r7", "mov r7, {n}", "swi 0", "mov r7, {kept}", kept = out(reg) _,/
    s/in("r7") n,/n = in(reg) n,/' 14

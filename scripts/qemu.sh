#!/bin/sh
# qemu.sh CUTS [TEST...]: cards of `limpet flash build` in emulated boards, with so many power cuts. All
# boards of tests/qemu run the agent as it is released. Of tests that are named only generic_arm64 is
# known here, and its agent is one that is soon built. Installs QEMU, and builds the agents that are missing.
set -eu
cd "$(dirname "$0")/.."
cuts=$1
shift
architectures="aarch64 armv7 x86_64" profile=device threads=1
[ "$*" != generic_arm64 ] || architectures=aarch64 profile=dev
# Many cuts take hours one after the other; the times that a lone board takes are those of few.
[ "$cuts" -lt 20 ] || threads=2
scripts/setup.sh qemu-system-arm qemu-system-x86 qemu-efi-aarch64 ovmf openssh-client
for arch in $architectures; do
    built=$(cross/build.sh agent "$arch" $profile | tail -n 1)
    cp "$built" "target/debug/limpet-agent-$arch"
done
CUTS=$cuts cargo test --locked --workspace --test qemu -- --test-threads=$threads --nocapture "$@"

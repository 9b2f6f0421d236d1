#!/bin/sh
# qemu.sh CUTS [TEST...]: cards of `limpet flash build` in emulated boards (all of tests/qemu, or these), with
# so many power cuts. Installs QEMU, and builds the agents for ARM, where they are missing.
set -eu
cd "$(dirname "$0")/.."
scripts/setup.sh qemu-system-arm qemu-efi-aarch64 openssh-client
cuts=$1
shift
architectures="aarch64 armv7"
[ "$*" != generic_arm64 ] || architectures=aarch64
for arch in $architectures; do
    built=$(cross/build.sh agent "$arch" dev | tail -n 1)
    cp "$built" "target/debug/limpet-agent-$arch"
done
CUTS=$cuts cargo test --locked --workspace --test qemu -- --test-threads=1 --nocapture "$@"

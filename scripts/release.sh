#!/bin/sh
# release.sh OUT: builds both programs as they are released, into OUT: the programs, what is linked into
# each (CycloneDX), and the sums of all. The same sources and the same Rust give the same bytes,
# wherever they lie: paths are taken out, and times are those of the last commit.
set -eu
cd "$(dirname "$0")/.."
. scripts/tool.sh
tool cargo-cyclonedx
root=$PWD
out=$1
mkdir -p "$out"
out=$(cd "$out" && pwd)
home=${CARGO_HOME:-$HOME/.cargo}
sysroot=$(rustc --print sysroot)
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH
export RUSTFLAGS="--remap-path-prefix=$root=/limpet --remap-path-prefix=$home=/cargo --remap-path-prefix=$sysroot=/rust"
export CFLAGS="-ffile-prefix-map=$root=/limpet -ffile-prefix-map=$home=/cargo"
export CXXFLAGS="$CFLAGS" CARGO_TARGET_DIR="$root/target/dist"

cargo build --locked --profile device -p limpet-agent
cargo build --locked --release -p limpet-controller
cp "$CARGO_TARGET_DIR/device/limpet-agent" "$CARGO_TARGET_DIR/release/limpet" "$out/"
# One is written for each program of the workspace, beside its manifest.
cargo cyclonedx --quiet --format json --describe binaries --no-build-deps
for program in agent/limpet-agent controller/limpet; do
    # Where it was built says nothing of what is in it.
    sed "s|$root|/limpet|g" "${program}_bin.cdx.json" >"$out/${program##*/}.cdx.json"
done
rm -f ./*/*_bin.cdx.json
cd "$out"
sha256sum limpet limpet-agent *.cdx.json >SHA256SUMS
cat SHA256SUMS

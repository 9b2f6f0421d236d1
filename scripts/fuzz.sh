#!/bin/sh
# fuzz.sh SECONDS [CORPUS]: feeds each fuzz target (or those in TARGETS) for so long, two side by
# side, beginning with the committed seeds and all that was ever found. What leads somewhere is kept
# in CORPUS, where one is named. A finding is kept in fuzz/regressions, and is replayed by every run
# and by the unit tests from then on.
set -eu
cd "$(dirname "$0")/.."
root=$PWD
program=$root/target/fuzz/debug/fuzz

# Of what libFuzzer wrote: the value of its last `NAME: VALUE`.
figure() {
    sed -n "s/.*$1: *\([0-9][0-9]*\).*/\1/p" "$2" | tail -n 1
}

# feed TARGET: one target, in a folder of its own in memory. The bound on time is that of the wall:
# a process that stood still for a minute, on a machine that had other things to do, is no finding.
feed() {
    log=$root/target/fuzz/$1.log
    known=$root/fuzz/regressions/$1
    corpus=${CORPUS:-$WORK/corpus}/$1
    mkdir -p "$corpus" "$WORK/$1"
    status=0
    (cd "$WORK/$1" && TARGET=$1 RUST_BACKTRACE=0 "$program" "$corpus" "$root/fuzz/seeds/$1" "$known" \
        -max_total_time="$SECONDS_EACH" -max_len=32768 -timeout=120 -rss_limit_mb=512 \
        -print_final_stats=1 -artifact_prefix="$known/" >"$log" 2>&1) || status=$?
    printf 'fuzz: %-9s %9s inputs, %6s a second, %5s places, %5s features, slowest %s s, ' "$1" \
        "$(figure stat::number_of_executed_units "$log")" \
        "$(figure stat::average_exec_per_sec "$log")" "$(figure cov "$log")" "$(figure ft "$log")" \
        "$(figure stat::slowest_unit_time_sec "$log")"
    [ $status != 0 ] || {
        echo "no finding"
        return 0
    }
    echo "A FINDING (all of it: $log)"
    grep -A 3 -E 'panicked at|ERROR: libFuzzer|memory allocation of|written to' "$log" | cut -c 1-400
    return 1
}

if [ "${1:-}" = feed ]; then
    feed "$2"
    exit
fi

SECONDS_EACH=$1
CORPUS=${2:+$(mkdir -p "$2" && cd "$2" && pwd)}
CARGO_TARGET_DIR=$root/target/fuzz RUSTC_WRAPPER=$root/fuzz/rustc \
    cargo build --quiet --locked --manifest-path fuzz/Cargo.toml
WORK=$(mktemp -d /dev/shm/limpet-fuzz.XXXXXX)
trap 'rm -rf "$WORK"' EXIT
trap 'exit 130' INT TERM
export SECONDS_EACH CORPUS WORK
# shellcheck disable=SC2086 # a list of targets
printf '%s\n' ${TARGETS:-layers messages manifests state images certificates requests answers} | xargs -n 1 -P 2 scripts/fuzz.sh feed

# Sourced: installs a tool of cargo's where it is missing, built quickly: it runs for seconds.
tool() {
    command -v "$1" >/dev/null && return
    echo "installing $1"
    log=$(mktemp)
    CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_OPT_LEVEL=0 CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
        cargo install --quiet --locked "$1" >"$log" 2>&1 || {
        tail -n 5 "$log" >&2
        echo "$1 could not be installed (the whole log: $log)" >&2
        exit 1
    }
    rm -f "$log"
}

#!/bin/sh
# Licences, bans and sources of all that is linked, as deny.toml has them; and advisories, where the
# database of RustSec can be had. Installs cargo-deny where it is missing.
set -eu
. "$(dirname "$0")/tool.sh"
tool cargo-deny
cargo deny --workspace check bans licenses sources
if said=$(timeout 60 cargo deny fetch db 2>&1); then
    cargo deny --workspace check --disable-fetch advisories
else
    echo "skipped: advisories: the database of RustSec cannot be fetched ($(echo "$said" | tail -n 1))"
fi

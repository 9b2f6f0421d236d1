//! Members, for tests.

use std::path::Path;

use super::super::Terms;
use crate::server::authority::Authority;

/// What members of a controller are told whose data folder this is.
pub(in crate::server) fn terms(folder: &Path) -> Terms {
    Terms {
        authority: Authority::open(folder, &[], 0).unwrap(),
        brokers: vec!["mqtts://limpet.example:8883".to_owned()],
        servers: vec!["limpet.example:8420".to_owned()],
        certificate_ms: 90_000,
        renew_expired_ms: 0,
    }
}

//! What the device's owner says of registries.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use crate::proxy::Proxies;

/// A transfer that brings nothing for this long has stalled, unless the device's owner says
/// otherwise.
const STALL_TIMEOUT_S: u16 = 30;
/// Below the one, a link that is merely bad would count as stalled; beyond the other, nobody would
/// wait.
const STALL_TIMEOUT_S_RANGE: RangeInclusive<u16> = 5..=600;

/// How images are had: the `[registries]` table of `agent.toml`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Registries {
    /// By registry, the hosts or URLs that are asked before it.
    pub mirrors: BTreeMap<String, Vec<String>>,
    /// Hosts that are spoken to without TLS, besides loopback.
    pub insecure: Vec<String>,
    /// A file in the format of Docker's `config.json`.
    pub credentials: Option<PathBuf>,
    /// Certificates in PEM of authorities that are trusted besides the system's.
    pub certificates: Option<PathBuf>,
    /// Seconds after which a transfer that brings nothing, or less than 4 KiB in them, is given up and
    /// resumed; 30 unless said.
    pub stall_timeout_s: StallTimeout,
    /// What leads to them: of another table.
    #[serde(skip)]
    pub proxies: Proxies,
}

/// A bound on silence, in seconds from 5 to 600.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "u16")]
pub struct StallTimeout(u16);

impl StallTimeout {
    pub(super) fn duration(self) -> Duration {
        Duration::from_secs(self.0.into())
    }
}

impl Default for StallTimeout {
    fn default() -> Self {
        Self(STALL_TIMEOUT_S)
    }
}

impl TryFrom<u16> for StallTimeout {
    type Error = String;

    fn try_from(seconds: u16) -> Result<Self, String> {
        let (least, most) = STALL_TIMEOUT_S_RANGE.into_inner();
        if STALL_TIMEOUT_S_RANGE.contains(&seconds) {
            Ok(Self(seconds))
        } else {
            Err(format!("a stall timeout of {seconds} s: use {least} to {most} seconds"))
        }
    }
}

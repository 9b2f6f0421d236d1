//! TLS with the fleet's controller: who it must be, and who this device is.
//!
//! Time is the device's clock floor, never its own clock: in 1970 and in 2099 the same connections
//! come about. The fleet's certificates are valid from 1970 on, so that a floor that lags behind
//! refuses none of them.

use std::sync::Arc;
use std::time::Duration;

use limpet_protocol::{Membership, SigningKey};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, UnixTime};
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, RootCertStore};

use ureq::tls::{Certificate, PemItem};

use crate::clock;

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;

/// What this device does cryptography with.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// The certificates in a text (PEM); what else is in it is left out.
pub fn certificates(pem: &[u8]) -> impl Iterator<Item = Certificate<'static>> {
    ureq::tls::parse_pem(pem).filter_map(|item| match item {
        Ok(PemItem::Certificate(certificate)) => Some(certificate),
        Ok(_) | Err(_) => None,
    })
}

/// How this device connects to its fleet.
///
/// # Errors
/// When the membership's certificates are none.
pub fn client(
    membership: &Membership,
    key: &SigningKey,
) -> Result<Arc<ClientConfig>, rustls::Error> {
    let certificate = |der: &serde_bytes::ByteBuf| CertificateDer::from(der.to_vec());
    let mut roots = RootCertStore::empty();
    for root in &membership.roots {
        roots.add(certificate(root))?;
    }
    let chain = membership.certificates.iter().map(certificate).collect();
    let config = ClientConfig::builder_with_details(provider(), Arc::new(ClockFloor))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, PrivatePkcs8KeyDer::from(key.pkcs8()).into())?;
    Ok(Arc::new(config))
}

#[derive(Debug)]
struct ClockFloor;

impl TimeProvider for ClockFloor {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_millis(clock::floor_ms())))
    }
}

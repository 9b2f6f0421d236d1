//! TLS with the fleet's controller: who it must be, and who this device is.
//!
//! Time is the device's clock floor, never its own clock: in 1970 and in 2099 the same connections
//! come about. The fleet's certificates are valid from 1970 on, so that a floor that lags behind
//! refuses none of them; the beginning of a foreign broker's certificates is not asked for.

use std::sync::Arc;
use std::time::Duration;

use limpet_protocol::{Membership, SigningKey};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::time_provider::TimeProvider;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};

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

/// How this device connects to its fleet's brokers.
///
/// # Errors
/// When the membership's certificates are none.
pub fn client(
    membership: &Membership,
    key: &SigningKey,
) -> Result<Arc<ClientConfig>, rustls::Error> {
    let certificate = |der: &serde_bytes::ByteBuf| CertificateDer::from(der.to_vec());
    let mut roots = RootCertStore::empty();
    let authorities = match membership.broker_roots.as_slice() {
        [] => &membership.roots,
        foreign => foreign,
    };
    for root in authorities {
        roots.add(certificate(root))?;
    }
    let verifier = WebPkiServerVerifier::builder_with_provider(roots.into(), provider()).build();
    let verifier = verifier.map_err(|e| rustls::Error::General(e.to_string()))?;
    let chain = membership.certificates.iter().map(certificate).collect();
    let config = ClientConfig::builder_with_details(provider(), Arc::new(ClockFloor))
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Lagging(verifier)))
        .with_client_auth_cert(chain, PrivatePkcs8KeyDer::from(key.pkcs8()).into())?;
    Ok(Arc::new(config))
}

/// Verifies as of the clock floor, or of the certificates' beginning, where that is later: the floor
/// lags behind, and a certificate that somebody shows was made by then.
#[derive(Debug)]
struct Lagging(Arc<WebPkiServerVerifier>);

/// Certificates of a chain whose beginnings may follow one another.
const CHAIN_MAX: usize = 4;

impl ServerCertVerifier for Lagging {
    fn verify_server_cert(
        &self,
        server: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        mut now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let mut verified = self.0.verify_server_cert(server, others, name, ocsp, now);
        for _ in 0..CHAIN_MAX {
            let Err(rustls::Error::InvalidCertificate(CertificateError::NotValidYetContext {
                not_before,
                ..
            })) = verified
            else {
                break;
            };
            now = not_before;
            verified = self.0.verify_server_cert(server, others, name, ocsp, now);
        }
        verified
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

#[derive(Debug)]
struct ClockFloor;

impl TimeProvider for ClockFloor {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_millis(clock::floor_ms())))
    }
}

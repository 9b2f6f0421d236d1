//! The fleet's certificate authority (RFC 5280): whom members, and the controller, are known by.
//!
//! Certificates are valid from 1970 on, so that a device whose clock begins there believes them. The
//! authority is an ECDSA key on P-256, which everybody's TLS knows; a device's certificate is over
//! its own Ed25519 key. Subjects: `CN=DEVICE, O=FINGERPRINT of its key`, and for those who publish
//! manifests `CN=publisher/NAME, O=TOKEN`; no device's id has a slash.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use limpet_protocol::{DeviceId, Digest, PublicKey, TokenId, cbor};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SerialNumber,
};
use ring::rand::{SecureRandom, SystemRandom};
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use time::OffsetDateTime;

use super::store;
use crate::pem::pem;

/// The file of the authority in the data folder; it holds its key.
pub(super) const AUTHORITY: &str = "authority";
/// What the names of publishers begin with in certificates.
pub(crate) const PUBLISHER: &str = "publisher/";
/// The name of the controller where it is a client of somebody else's broker; no device's id has a
/// slash.
pub(crate) const CONTROLLER: &str = "limpet/controller";
/// The authority's own certificate lives this long.
const AUTHORITY_DAYS: u64 = 20 * 365;
/// The controller's certificate as a client of somebody else's broker; it is made anew at each start.
const CLIENT_DAYS: u64 = 5 * 365;
const DAY_MS: u64 = 86_400_000;

/// Why certificates cannot be made.
#[derive(Debug, thiserror::Error)]
pub(super) enum AuthorityError {
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error(
        "{0} is damaged: restore it from a backup; without it no device believes this controller"
    )]
    Damaged(PathBuf),
    #[error("a certificate cannot be made: {0}")]
    Certificate(#[from] rcgen::Error),
    #[error("the system gave no random bytes for a certificate")]
    NoRandomness,
    #[error(transparent)]
    Store(#[from] store::StoreError),
}

/// What the file holds.
#[derive(Serialize, Deserialize)]
struct Stored {
    certificate: ByteBuf,
    key: ByteBuf,
    /// All names that the controller was ever reached by: its certificate keeps them.
    names: BTreeSet<String>,
}

/// The authority.
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    names: BTreeSet<String>,
}

/// What the controller proves itself with, and whose clients it lets in; in PEM.
#[derive(Debug)]
pub(super) struct Served {
    /// Its certificate, and those that lead from it to an authority.
    pub(super) chain: String,
    pub(super) key: String,
    /// Of the authorities whose clients are let in.
    pub(super) authorities: String,
    /// When the certificate ends, in milliseconds since 1970.
    pub(super) until_ms: u64,
}

impl Authority {
    /// Reads the authority of a data folder, or makes one; the controller is reached by `names`.
    pub(super) fn open(
        folder: &Path,
        names: &[String],
        now_ms: u64,
    ) -> Result<Self, AuthorityError> {
        let path = folder.join(AUTHORITY);
        let mut stored = match std::fs::read(&path) {
            Ok(bytes) => cbor::decode(&bytes, bytes.len())
                .map_err(|_| AuthorityError::Damaged(path.clone()))?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => made(now_ms)?,
            Err(source) => return Err(AuthorityError::Read { path, source }),
        };
        let known = stored.names.len();
        stored.names.extend(names.iter().cloned());
        if stored.names.len() > known {
            store::write_key(&path, &cbor::encode(&stored))?;
        }
        let Stored { certificate, key, names } = stored;
        let certificate = CertificateDer::from(certificate.into_vec());
        let key = KeyPair::try_from(key.into_vec()).map_err(|_| AuthorityError::Damaged(path))?;
        let issuer = Issuer::new(authority_params(now_ms)?, key);
        Ok(Self { issuer, certificate, names })
    }

    /// What an invitation pins.
    pub(super) fn pin(&self) -> Digest {
        Digest::of(&self.certificate)
    }

    /// The authority's certificate, in DER.
    pub(super) fn root(&self) -> ByteBuf {
        ByteBuf::from(self.certificate.to_vec())
    }

    /// The authority's certificate, in PEM.
    pub(super) fn pem(&self) -> String {
        pem("CERTIFICATE", &self.certificate)
    }

    /// A certificate for the controller itself, over a key that is made for it.
    pub(super) fn serve(&self, now_ms: u64, lives_ms: u64) -> Result<Served, AuthorityError> {
        let key = KeyPair::generate()?;
        let names: Vec<String> = self.names.iter().cloned().collect();
        let mut params = params(CertificateParams::new(names)?, now_ms, lives_ms)?;
        params.distinguished_name.push(DnType::CommonName, "Limpet controller");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Served {
            chain: certificate.pem(),
            key: key.serialize_pem(),
            authorities: self.pem(),
            until_ms: now_ms.saturating_add(lives_ms),
        })
    }

    /// A certificate with which the controller itself is a client of a broker.
    pub(super) fn certify_controller(&self, now_ms: u64) -> Result<Served, AuthorityError> {
        let key = KeyPair::generate()?;
        let lives_ms = CLIENT_DAYS * DAY_MS;
        let mut params = params(CertificateParams::default(), now_ms, lives_ms)?;
        params.distinguished_name.push(DnType::CommonName, CONTROLLER);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Served {
            chain: certificate.pem(),
            key: key.serialize_pem(),
            authorities: self.pem(),
            until_ms: now_ms.saturating_add(lives_ms),
        })
    }

    /// A certificate, in DER, for a device's key.
    pub(super) fn certify(
        &self,
        device: &DeviceId,
        key: &PublicKey,
        now_ms: u64,
        lives_ms: u64,
    ) -> Result<Vec<u8>, AuthorityError> {
        let params = params(CertificateParams::default(), now_ms, lives_ms)?;
        let made = self.client(params, device.as_str(), &key.fingerprint(), key)?;
        Ok(made.der().to_vec())
    }

    /// A certificate, in PEM, for a publisher's key, which the broker knows by its token.
    pub(super) fn certify_publisher(
        &self,
        name: &str,
        token: TokenId,
        key: &PublicKey,
        (now_ms, lives_ms): (u64, u64),
    ) -> Result<String, AuthorityError> {
        let params = params(CertificateParams::default(), now_ms, lives_ms)?;
        let name = format!("{PUBLISHER}{name}");
        Ok(self.client(params, &name, &token.to_string(), key)?.pem())
    }

    fn client(
        &self,
        mut params: CertificateParams,
        name: &str,
        organization: &str,
        key: &PublicKey,
    ) -> Result<Certificate, AuthorityError> {
        params.distinguished_name.push(DnType::CommonName, name);
        params.distinguished_name.push(DnType::OrganizationName, organization);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        Ok(params.signed_by(&ClientKey(*key), &self.issuer)?)
    }
}

/// A new authority.
fn made(now_ms: u64) -> Result<Stored, AuthorityError> {
    let key = KeyPair::generate()?;
    let certificate = authority_params(now_ms)?.self_signed(&key)?;
    Ok(Stored {
        certificate: ByteBuf::from(certificate.der().to_vec()),
        key: ByteBuf::from(key.serialize_der()),
        names: BTreeSet::new(),
    })
}

fn authority_params(now_ms: u64) -> Result<CertificateParams, AuthorityError> {
    let mut params = params(CertificateParams::default(), now_ms, AUTHORITY_DAYS * DAY_MS)?;
    params.distinguished_name.push(DnType::CommonName, "Limpet fleet authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

/// Valid from 1970 on, for this long from now.
fn params(
    mut params: CertificateParams,
    now_ms: u64,
    lives_ms: u64,
) -> Result<CertificateParams, AuthorityError> {
    let mut serial = [0; 16];
    SystemRandom::new().fill(&mut serial).map_err(|_| AuthorityError::NoRandomness)?;
    // RFC 5280 section 4.1.2.2: positive.
    serial[0] &= 0x7f;
    let end_s = i64::try_from(now_ms.saturating_add(lives_ms) / 1000).unwrap_or(i64::MAX);
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.not_before = OffsetDateTime::UNIX_EPOCH;
    params.not_after = OffsetDateTime::from_unix_timestamp(end_s)
        .map_err(|_| AuthorityError::Certificate(rcgen::Error::Time))?;
    params.distinguished_name = DistinguishedName::new();
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// A client's key, of which only the public half is here.
struct ClientKey(PublicKey);

impl PublicKeyData for ClientKey {
    fn der_bytes(&self) -> &[u8] {
        &self.0.0
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ED25519
    }
}

/// Names that a controller on this address is reached by.
pub(super) fn names(listen: IpAddr, advertised: &[String]) -> Vec<String> {
    let own = ["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    let listen = (!listen.is_unspecified()).then(|| listen.to_string());
    own.into_iter().chain(listen).chain(advertised.iter().cloned()).collect()
}

#[cfg(test)]
mod tests {
    use limpet_protocol::SigningKey;

    use super::*;

    #[test]
    fn an_authority_is_the_same_after_a_restart_and_keeps_its_names() {
        let folder = tempfile::tempdir().unwrap();
        let open = |name: &str| Authority::open(folder.path(), &[name.to_owned()], 1).unwrap();
        let first = open("a.example");
        let again = open("b.example");
        assert_eq!(first.pin(), again.pin());
        assert_eq!(again.names.iter().collect::<Vec<_>>(), ["a.example", "b.example"]);
        std::fs::write(folder.path().join(AUTHORITY), b"x").unwrap();
        let broken = Authority::open(folder.path(), &[], 1).err().unwrap().to_string();
        assert!(broken.contains("is damaged"), "{broken}");
    }

    #[test]
    fn certificates_come_from_the_authority_and_name_the_device() {
        use rustls::server::WebPkiClientVerifier;
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::open(folder.path(), &[], 1).unwrap();
        let key = SigningKey::from_seed(&[7; 32]).unwrap().public();
        let now_ms = 1_800_000_000_000;
        let made = authority.certify(&"pi-1".parse().unwrap(), &key, now_ms, 1000).unwrap();
        let made = CertificateDer::from(made);
        let mut roots = rustls::RootCertStore::empty();
        roots.add(authority.certificate.clone()).unwrap();
        let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(roots.into(), provider).build().unwrap();
        let at = |ms: u64| {
            let time = std::time::Duration::from_millis(ms);
            verifier.verify_client_cert(
                &made,
                &[],
                rustls::pki_types::UnixTime::since_unix_epoch(time),
            )
        };
        assert!(at(now_ms).is_ok() && at(0).is_ok());
        assert!(at(now_ms + 2000).unwrap_err().to_string().contains("expired"));
    }
}

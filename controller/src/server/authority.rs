//! The fleet's certificate authority (RFC 5280): whom members, and the controller, are known by.
//!
//! Certificates are valid from 1970 on, so that a device whose clock begins there believes them. The
//! authority is an ECDSA key on P-256, which everybody's TLS knows; a device's certificate is over
//! its own Ed25519 key. An authority that takes the place of another has the same name and a
//! certificate by the other over its key (RFC 4210 section 4.4, "new with old"), which is served:
//! whoever believes the former alone believes the controller all the same. Subjects: `CN=DEVICE, O=FINGERPRINT of its key`, and for those who publish
//! manifests `CN=publisher/NAME, O=TOKEN`; no device's id has a slash.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use limpet_protocol::{DeviceId, Digest, PublicKey, TokenId};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SerialNumber,
};
use ring::rand::{SecureRandom, SystemRandom};
use serde_bytes::ByteBuf;
use time::OffsetDateTime;

use super::store;
use crate::pem::pem;

mod file;

use file::{Kept, Stored};

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
/// Former authorities whose believers believe the controller still: each makes handshakes longer by
/// some 400 bytes.
const LINKS_MAX: usize = 4;

/// Why certificates cannot be made.
#[derive(Debug, thiserror::Error)]
pub(super) enum AuthorityError {
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error(
        "{0} is damaged: restore it from a backup; without it no device believes this controller"
    )]
    Damaged(PathBuf),
    #[error(
        "{path} was written by a newer version of limpet (format {format}): install that version, \
         or restore a backup"
    )]
    Newer { path: PathBuf, format: u8 },
    #[error("a certificate cannot be made: {0}")]
    Certificate(#[from] rcgen::Error),
    #[error("the system gave no random bytes for a certificate")]
    NoRandomness,
    #[error(transparent)]
    Store(#[from] store::StoreError),
}

/// The authority, and the one whose place it is taking.
pub(super) struct Authority {
    path: PathBuf,
    stored: Stored,
    issuer: Issuer<'static, KeyPair>,
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
        let mut stored = match Stored::read(&path)? {
            Some(stored) => stored,
            None => Stored::first(made(now_ms)?.0),
        };
        let known = stored.names.len();
        stored.names.extend(names.iter().cloned());
        if stored.names.len() > known {
            stored.write(&path)?;
        }
        let key = KeyPair::try_from(stored.present.key.to_vec());
        let key = key.map_err(|_| AuthorityError::Damaged(path.clone()))?;
        let issuer = Issuer::new(authority_params(now_ms)?, key);
        Ok(Self { path, stored, issuer })
    }

    /// Another authority takes the place of this one; both are believed until [`Authority::finish`].
    /// On disk when this returns.
    pub(super) fn replace(&mut self, now_ms: u64) -> Result<(), AuthorityError> {
        let (present, key) = made(now_ms)?;
        let mut params = authority_params(now_ms)?;
        // Others may follow it, and not all count those of one name as one.
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let link = params.signed_by(&key, &self.issuer)?.der().to_vec();
        let mut stored = self.stored.clone();
        stored.former = Some(std::mem::replace(&mut stored.present, present).certificate);
        stored.links.insert(0, ByteBuf::from(link));
        stored.links.truncate(LINKS_MAX);
        stored.write(&self.path)?;
        self.stored = stored;
        self.issuer = Issuer::new(authority_params(now_ms)?, key);
        Ok(())
    }

    /// The former authority is no more. On disk when this returns.
    pub(super) fn finish(&mut self) -> Result<(), AuthorityError> {
        let mut stored = self.stored.clone();
        stored.former = None;
        stored.write(&self.path)?;
        self.stored = stored;
        Ok(())
    }

    /// Whether it is taking the place of another.
    pub(super) fn replaces(&self) -> bool {
        self.stored.former.is_some()
    }

    /// When it was made, in milliseconds since 1970; 0 where that is not known.
    pub(super) fn made_ms(&self) -> u64 {
        self.stored.present.made_ms
    }

    /// What an invitation pins.
    pub(super) fn pin(&self) -> Digest {
        Digest::of(&self.stored.present.certificate)
    }

    /// The certificates, in DER, of the authorities in force; the former first.
    pub(super) fn roots(&self) -> Vec<ByteBuf> {
        let Stored { present, former, .. } = &self.stored;
        former.iter().chain([&present.certificate]).cloned().collect()
    }

    /// Names those.
    pub(super) fn digest(&self) -> Digest {
        let roots: Vec<u8> = self.roots().into_iter().flat_map(ByteBuf::into_vec).collect();
        Digest::of(&roots)
    }

    /// Whether who was told of these believes those in force and no other; before any was replaced,
    /// nobody noted it.
    pub(super) fn is_told(&self, roots: Option<Digest>) -> bool {
        match roots {
            Some(roots) => roots == self.digest(),
            None => self.stored.links.is_empty(),
        }
    }

    /// The same in PEM.
    pub(super) fn pem(&self) -> String {
        self.roots().iter().map(|root| pem("CERTIFICATE", root)).collect()
    }

    /// A certificate for the controller itself, over a key that is made for it.
    pub(super) fn serve(&self, now_ms: u64, lives_ms: u64) -> Result<Served, AuthorityError> {
        let key = KeyPair::generate()?;
        let names: Vec<String> = self.stored.names.iter().cloned().collect();
        let mut params = params(CertificateParams::new(names)?, now_ms, lives_ms)?;
        params.distinguished_name.push(DnType::CommonName, "Limpet controller");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.signed_by(&key, &self.issuer)?;
        let links = self.stored.links.iter().map(|link| pem("CERTIFICATE", link));
        Ok(Served {
            chain: std::iter::once(certificate.pem()).chain(links).collect(),
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

/// A new authority, and its key.
fn made(now_ms: u64) -> Result<(Kept, KeyPair), AuthorityError> {
    let key = KeyPair::generate()?;
    let certificate = authority_params(now_ms)?.self_signed(&key)?;
    let certificate = ByteBuf::from(certificate.der().to_vec());
    Ok((Kept { certificate, key: ByteBuf::from(key.serialize_der()), made_ms: now_ms }, key))
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
    use std::time::Duration;

    use limpet_protocol::SigningKey;
    use rustls::RootCertStore;
    use rustls::client::WebPkiServerVerifier;
    use rustls::client::danger::ServerCertVerifier;
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, UnixTime};
    use rustls::server::WebPkiClientVerifier;

    use super::*;

    const NOW_MS: u64 = 1_800_000_000_000;

    fn believing(roots: &[ByteBuf]) -> std::sync::Arc<RootCertStore> {
        let mut store = RootCertStore::empty();
        for root in roots {
            store.add(CertificateDer::from(root.to_vec())).unwrap();
        }
        store.into()
    }

    fn now() -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_millis(NOW_MS))
    }

    /// Whether who believes these believes a controller.
    fn is_believed(roots: &[ByteBuf], served: &Served) -> bool {
        let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
        let verifier =
            WebPkiServerVerifier::builder_with_provider(believing(roots), provider).build();
        let chain: Vec<_> =
            CertificateDer::pem_slice_iter(served.chain.as_bytes()).map(Result::unwrap).collect();
        let name = "a.example".try_into().unwrap();
        let verified =
            verifier.unwrap().verify_server_cert(&chain[0], &chain[1..], &name, &[], now());
        verified.is_ok()
    }

    /// Whether a client is let in by who believes these.
    fn is_let_in(roots: &[ByteBuf], certificate: &[u8]) -> bool {
        let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(believing(roots), provider).build();
        let certificate = CertificateDer::from(certificate.to_vec());
        verifier.unwrap().verify_client_cert(&certificate, &[], now()).is_ok()
    }

    #[test]
    fn who_believes_a_former_authority_believes_the_controller_still() {
        let folder = tempfile::tempdir().unwrap();
        let open = || Authority::open(folder.path(), &["a.example".to_owned()], NOW_MS).unwrap();
        let mut authority = open();
        let first = authority.roots();
        let key = SigningKey::from_seed(&[7; 32]).unwrap().public();
        let client = |authority: &Authority| {
            authority.certify(&"pi-1".parse().unwrap(), &key, NOW_MS, 1000).unwrap()
        };
        let (of_first, untold) = (client(&authority), Digest([0; 32]));
        assert!(authority.is_told(None) && authority.is_told(Some(authority.digest())));
        assert!(!authority.is_told(Some(untold)) && !authority.replaces());
        for round in 1..=LINKS_MAX {
            authority.replace(NOW_MS).unwrap();
            authority = open();
            assert!(authority.replaces() && !authority.is_told(None), "{round}");
            assert_eq!(authority.roots().len(), 2);
            assert_eq!(authority.pin(), Digest::of(&authority.roots()[1]));
            let served = authority.serve(NOW_MS, 1000).unwrap();
            assert!(is_believed(&first, &served), "{round}");
            assert!(is_believed(&authority.roots()[1..], &served), "{round}");
            assert_eq!(is_let_in(&authority.roots(), &of_first), round == 1, "{round}");
            assert!(is_let_in(&authority.roots(), &client(&authority)), "{round}");
            authority.finish().unwrap();
            authority = open();
            assert!(!authority.replaces() && authority.roots().len() == 1);
            let served = authority.serve(NOW_MS, 1000).unwrap();
            assert!(is_believed(&first, &served) && is_believed(&authority.roots(), &served));
            assert!(!is_let_in(&authority.roots(), &of_first), "{round}");
        }
        // Nobody who merely says so.
        let other = tempfile::tempdir().unwrap();
        let other = Authority::open(other.path(), &["a.example".to_owned()], NOW_MS).unwrap();
        assert!(!is_believed(&first, &other.serve(NOW_MS, 1000).unwrap()));
    }

    #[test]
    fn an_authority_is_the_same_after_a_restart_and_keeps_its_names() {
        let folder = tempfile::tempdir().unwrap();
        let open = |name: &str| Authority::open(folder.path(), &[name.to_owned()], 1).unwrap();
        let first = open("a.example");
        let again = open("b.example");
        assert_eq!(first.pin(), again.pin());
        assert_eq!(again.stored.names.iter().collect::<Vec<_>>(), ["a.example", "b.example"]);
        std::fs::write(folder.path().join(AUTHORITY), b"x").unwrap();
        let broken = Authority::open(folder.path(), &[], 1).err().unwrap().to_string();
        assert!(broken.contains("is damaged"), "{broken}");
    }

    #[test]
    fn certificates_come_from_the_authority_and_name_the_device() {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::open(folder.path(), &[], 1).unwrap();
        let key = SigningKey::from_seed(&[7; 32]).unwrap().public();
        let now_ms = 1_800_000_000_000;
        let made = authority.certify(&"pi-1".parse().unwrap(), &key, now_ms, 1000).unwrap();
        let made = CertificateDer::from(made);
        let roots = believing(&authority.roots());
        let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(roots, provider).build().unwrap();
        let at = |ms: u64| {
            let time = UnixTime::since_unix_epoch(Duration::from_millis(ms));
            verifier.verify_client_cert(&made, &[], time)
        };
        assert!(at(now_ms).is_ok() && at(0).is_ok());
        assert!(at(now_ms + 2000).unwrap_err().to_string().contains("expired"));
    }
}

//! What fuzzing feeds the handling of certificates with: whoever stands in between, or a controller
//! gone bad, decides it all.

use limpet_protocol::{Membership, SigningKey, cbor};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;

/// As the first byte says: a membership, as a controller answers or signs it, that TLS is made of;
/// or certificates in PEM, as `/api/v1/authorities` gives them, which an invitation's pin is looked
/// for in.
pub(crate) fn certificates(data: &[u8]) {
    let Some((what, data)) = data.split_first() else {
        return;
    };
    if what % 2 == 0 {
        let key = SigningKey::from_seed(&[7; 32]);
        if let (Ok(membership), Ok(key)) = (cbor::decode::<Membership>(data, data.len()), key) {
            drop(super::client(&membership, &key));
        }
        return;
    }
    let mut roots = RootCertStore::empty();
    for certificate in super::certificates(data) {
        assert!(!certificate.der().is_empty() && certificate.der().len() < data.len());
        // It may be none; then it vouches for nobody.
        drop(roots.add(CertificateDer::from(certificate.der())));
    }
}

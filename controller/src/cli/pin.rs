//! TLS with a controller whose authority is known by its pin, or by its certificate.

use std::sync::Arc;

use limpet_protocol::Digest;
use rustls::crypto::ring;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, TlsConfigBuilder, TlsProvider};

use super::client::{self, read_bytes};

/// Answers at most.
const AUTHORITIES_BYTES_MAX: u64 = 256 * 1024;

/// Why a controller is not believed.
#[derive(Debug, thiserror::Error)]
pub(super) enum PinError {
    #[error("no controller answers at {server}: {why}")]
    Unreachable { server: String, why: String },
    #[error(
        "the controller at {0} is not the one that made this string: none of its authorities has \
         the pinned certificate. Make another with `limpet token create`; if this stays so, somebody \
         stands in between"
    )]
    Pin(String),
    #[error("the certificates of the controller's authorities are damaged: `limpet login` again")]
    Roots,
}

/// The certificates (PEM) of a controller's authorities. They are believed because one of them has
/// the pin, and vouches for a connection over which they are all fetched again.
pub(super) fn authorities(server: &str, pin: &Digest) -> Result<String, PinError> {
    // Nothing is sent, and what comes is believed only where its digest is the pin.
    let anybody = TlsConfig::builder().disable_verification(true);
    let all = fetch(server, anybody)?;
    let mut pinned = certificates(&all).filter(|root| Digest::of(root.der()) == *pin);
    let pinned = pinned.next().ok_or_else(|| PinError::Pin(server.to_owned()))?;
    let only = RootCerts::new_with_certs(&[pinned]);
    fetch(server, TlsConfig::builder().root_certs(only))
}

/// How to connect to a controller whose certificate comes from one of these (PEM), and to no other.
pub(super) fn tls(roots: &str) -> Result<TlsConfig, PinError> {
    let roots: Vec<_> = certificates(roots).collect();
    if roots.is_empty() {
        return Err(PinError::Roots);
    }
    Ok(with_provider(TlsConfig::builder().root_certs(RootCerts::new_with_certs(&roots))))
}

fn certificates(pem: &str) -> impl Iterator<Item = Certificate<'static>> {
    ureq::tls::parse_pem(pem.as_bytes()).filter_map(|item| match item {
        Ok(PemItem::Certificate(certificate)) => Some(certificate),
        Ok(_) | Err(_) => None,
    })
}

fn fetch(server: &str, tls: TlsConfigBuilder) -> Result<String, PinError> {
    let agent = client::agent(Some(with_provider(tls)));
    let asked = agent.get(format!("https://{server}/api/v1/authorities")).call();
    let read = asked.and_then(|answer| read_bytes(answer, AUTHORITIES_BYTES_MAX));
    let bytes = read
        .map_err(|why| PinError::Unreachable { server: server.to_owned(), why: why.to_string() })?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn with_provider(tls: TlsConfigBuilder) -> TlsConfig {
    tls.provider(TlsProvider::Rustls)
        .unversioned_rustls_crypto_provider(Arc::new(ring::default_provider()))
        .build()
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    use rustls::pki_types::PrivateKeyDer;
    use rustls::{ServerConfig, ServerConnection, StreamOwned};

    use super::*;

    type Authority = CertifiedIssuer<'static, KeyPair>;

    fn authority() -> Authority {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    }

    /// Serves whoever connects with a certificate of an authority, and says that these are its
    /// authorities; gives its address. It ends with the test.
    fn serve(authority: &Authority, said: String) -> String {
        let key = KeyPair::generate().unwrap();
        let own = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        let own = own.signed_by(&key, authority).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![own.der().clone()], key)
            .unwrap();
        let config = Arc::new(config);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let connection = ServerConnection::new(config.clone()).unwrap();
                let mut tls = StreamOwned::new(connection, stream);
                // Whoever does not believe us hangs up.
                let _ = tls.read(&mut [0; 4096]).and_then(|_| {
                    let length = said.len();
                    write!(tls, "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{said}")
                });
            }
        });
        address
    }

    #[test]
    fn only_who_proves_the_pin_is_believed() {
        let (ours, next, foreign) = (authority(), authority(), authority());
        let pin = Digest::of(ours.der());
        let all = [next.pem(), ours.pem()].concat();
        let server = serve(&ours, all.clone());
        assert_eq!(authorities(&server, &pin).unwrap(), all);

        // One that has not the pin, and one that says it has, but cannot prove it.
        let server = serve(&foreign, foreign.pem());
        let why = authorities(&server, &pin).unwrap_err().to_string();
        assert!(why.contains("is not the one that made this string"), "{why}");
        let server = serve(&foreign, all.clone());
        let why = authorities(&server, &pin).unwrap_err().to_string();
        assert!(why.contains("invalid peer certificate"), "{why}");

        let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let why = authorities(&gone, &pin).unwrap_err().to_string();
        assert!(why.starts_with(&format!("no controller answers at {gone}")), "{why}");
        assert!(matches!(tls("nothing"), Err(PinError::Roots)));
    }
}

//! The least of an MQTT 3.1.1 client: what it costs itself is little beside what is measured.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

/// How a client proves itself: every connection is a handshake of its own.
pub(crate) type Tls = Arc<ClientConfig>;

/// From files in PEM: authority, certificate, key.
pub(crate) fn tls([ca, certificate, key]: [&str; 3]) -> Tls {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca).unwrap()).unwrap();
    let chain = vec![CertificateDer::from_pem_file(certificate).unwrap()];
    let key = PrivateKeyDer::from_pem_file(key).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider);
    let builder = builder.with_safe_default_protocol_versions().unwrap();
    let mut config =
        builder.with_root_certificates(roots).with_client_auth_cert(chain, key).unwrap();
    config.resumption = Resumption::disabled();
    Arc::new(config)
}

/// A connection to a broker on loopback.
pub(crate) struct Client(Box<dyn Link>);

trait Link: Read + Write {}

impl<T: Read + Write> Link for T {}

impl Client {
    /// Connects as the client of this id; without `tls`, in plain MQTT. None where the broker is not
    /// yet done with the connection before it.
    pub(crate) fn connect(port: u16, tls: Option<&Tls>, id: &str) -> Option<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_nodelay(true).unwrap();
        let mut link: Box<dyn Link> = match tls {
            None => Box::new(stream),
            Some(config) => {
                let name = "127.0.0.1".try_into().unwrap();
                let session = ClientConnection::new(Arc::clone(config), name).unwrap();
                Box::new(StreamOwned::new(session, stream))
            }
        };
        // MQTT 3.1.1 section 3.1: clean session, no keep-alive.
        let id_length = u16::try_from(id.len()).unwrap().to_be_bytes();
        let body = [b"\x00\x04MQTT\x04\x02\x00\x00", &id_length[..], id.as_bytes()].concat();
        link.write_all(&packet(0x10, &body)).unwrap();
        let mut connack = [0; 4];
        link.read_exact(&mut connack).unwrap();
        // Section 3.2.2.3: accepted, or unavailable.
        assert!(matches!(connack, [0x20, 2, 0, 0 | 3]), "{connack:?}");
        (connack[3] == 0).then_some(Self(link))
    }

    /// Publishes at QoS 1 and waits for the acknowledgement (section 3.3).
    pub(crate) fn publish(&mut self, topic: &str, payload: &[u8]) {
        let topic_length = u16::try_from(topic.len()).unwrap().to_be_bytes();
        let body = [&topic_length[..], topic.as_bytes(), &[0, 1], payload].concat();
        self.0.write_all(&packet(0x32, &body)).unwrap();
        let mut puback = [0; 4];
        self.0.read_exact(&mut puback).unwrap();
        assert_eq!(puback, [0x40, 2, 0, 1]);
    }
}

/// A short packet (section 2.2).
fn packet(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u8::try_from(body.len()).ok().filter(|length| *length < 128);
    [&[kind, length.unwrap()][..], body].concat()
}

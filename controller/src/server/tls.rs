//! TLS of the API: connections whose handshake is done, however slow others are with theirs.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::serve::Listener;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::authority::Served;

/// How long a handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(15);
/// Handshakes under way at most: others wait in the kernel's queue.
const HANDSHAKES: usize = 1024;
/// Connections that wait to be served.
const WAITING: usize = 64;

/// Accepts connections that speak TLS 1.2 or later.
pub(super) struct TlsListener {
    ready: mpsc::Receiver<(TlsStream<TcpStream>, SocketAddr)>,
    address: SocketAddr,
}

/// How handshakes are made; it may change between any two.
pub(super) type Shown = watch::Receiver<Arc<ServerConfig>>;

/// What the API serves with. Whoever has a certificate of one of the authorities may show it; nobody
/// has to.
///
/// # Errors
/// When a certificate cannot be used.
pub(super) fn config(served: &Served) -> anyhow::Result<Arc<ServerConfig>> {
    let chain = CertificateDer::pem_slice_iter(served.chain.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .context("the controller's certificate")?;
    let key = PrivateKeyDer::from_pem_slice(served.key.as_bytes())
        .context("the key of the controller's certificate")?;
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(served.authorities.as_bytes()) {
        roots.add(root.context("the authority's certificate")?)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), Arc::clone(&provider))
        .allow_unauthenticated()
        .build()
        .context("the authority's certificate")?;
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    Ok(Arc::new(config))
}

impl TlsListener {
    /// Listens in the background.
    pub(super) fn new(listener: TcpListener, shown: Shown) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let (done, ready) = mpsc::channel(WAITING);
        tokio::spawn(accept(listener, shown, done));
        Ok(Self { ready, address })
    }
}

async fn accept(
    mut listener: TcpListener,
    shown: Shown,
    done: mpsc::Sender<(TlsStream<TcpStream>, SocketAddr)>,
) {
    let places = Arc::new(Semaphore::new(HANDSHAKES));
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        let (stream, from) = Listener::accept(&mut listener).await;
        if done.is_closed() {
            return;
        }
        let acceptor = TlsAcceptor::from(Arc::clone(&shown.borrow()));
        let done = done.clone();
        tokio::spawn(async move {
            let _ = stream.set_nodelay(true);
            let greeted = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await;
            drop(place);
            match greeted {
                Ok(Ok(stream)) => drop(done.send((stream, from)).await),
                Ok(Err(error)) => log::debug!("{from}: no TLS: {error}"),
                Err(_) => log::debug!("{from}: a handshake that never ended"),
            }
        });
    }
}

impl Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.ready.recv().await {
            Some(ready) => ready,
            // The listener's task ends with the process.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

//! The way to a broker that rumqttc does not know: through a proxy, over WebSocket, or both.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::broker::{Broker, Over};
use super::head::Head;
use super::websocket::{self, UpgradeError};
use crate::proxy::{Proxy, ProxyError};

/// How long a proxy may take for a connection, and for its answer: less than a connection to a broker
/// may take in all, so that it is the proxy that is named.
const PROXY_TIMEOUT: Duration = Duration::from_secs(7);

/// What carries MQTT.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Why a broker is not reached.
#[derive(Debug, thiserror::Error)]
pub(super) enum DialError {
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    #[error("{0}")]
    Tcp(#[source] io::Error),
    #[error("{0}")]
    Tls(#[source] io::Error),
    #[error("{0:?} is no name that a certificate could have")]
    Name(String),
    #[error(transparent)]
    Upgrade(#[from] UpgradeError),
}

/// Connects.
///
/// # Errors
/// With the one of all on the way that fails.
pub(super) async fn dial(
    broker: &Broker,
    tls: Option<&Arc<ClientConfig>>,
    proxy: Option<&Proxy>,
) -> Result<Box<dyn Stream>, DialError> {
    let tcp = match proxy {
        Some(proxy) => through(proxy, &broker.authority()).await?,
        None => {
            TcpStream::connect((broker.host.as_str(), broker.port)).await.map_err(DialError::Tcp)?
        }
    };
    tcp.set_nodelay(true).map_err(DialError::Tcp)?;
    let stream: Box<dyn Stream> = match tls {
        None => Box::new(tcp),
        Some(config) => {
            let name = ServerName::try_from(broker.host.clone())
                .map_err(|_| DialError::Name(broker.host.clone()))?;
            let connector = TlsConnector::from(Arc::clone(config));
            Box::new(connector.connect(name, tcp).await.map_err(DialError::Tls)?)
        }
    };
    match &broker.over {
        Over::Tcp | Over::Tls => Ok(stream),
        Over::WebSocket(path) => {
            Ok(Box::new(websocket::open(stream, &broker.authority(), path).await?))
        }
    }
}

/// A connection that a proxy has made.
async fn through(proxy: &Proxy, target: &str) -> Result<TcpStream, ProxyError> {
    let named = || proxy.to_string();
    let connected = timeout(PROXY_TIMEOUT, TcpStream::connect((proxy.host.as_str(), proxy.port)));
    let mut stream = connected
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(|why| ProxyError::Unreached { proxy: named(), why: why.to_string() })?;
    let asked = async {
        stream.write_all(proxy.request(target).as_bytes()).await?;
        Head::read(&mut stream).await
    };
    match timeout(PROXY_TIMEOUT, asked).await {
        Ok(Ok(head)) => proxy.answered(head.status(), target)?,
        Ok(Err(error)) if error.kind() == io::ErrorKind::InvalidData => {
            proxy.answered(None, target)?
        }
        Ok(Err(_)) | Err(_) => return Err(ProxyError::Silent { proxy: named() }),
    }
    Ok(stream)
}

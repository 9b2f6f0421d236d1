//! MQTT over WebSocket, beside the API: for sites that let nothing but HTTPS out.
//!
//! The broker takes connections from its own sockets alone, so that each of these has a second one, on
//! loopback. What it says of itself there, in a PROXY header, is an address of 128 random bits: they
//! stand for whom TLS has proved, and whoever does not know such bits is nobody.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{ConnectInfo, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use ring::rand::{SecureRandom, SystemRandom};
use rmqtt::codec::cert::CertInfo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};

use super::api::{Failure, Peer};
use super::broker::PACKET_BYTES_MAX;

/// Where it is served.
pub(super) const PATH: &str = "/mqtt";
/// What whoever shows no certificate is told.
pub(super) const NOBODY: &str = "this needs a certificate of the fleet";
/// The name of MQTT among what WebSocket carries (MQTT 5.0 section 6).
const SUBPROTOCOL: &str = "mqtt";
/// What is read of a client at once: a connection at rest holds this.
const READ_BYTES: usize = 4 * 1024;
/// How long the broker may take to end a connection whose client has gone.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// Who is connected over WebSocket, by the addresses that the broker knows them by.
#[derive(Clone, Default)]
pub(super) struct Guests(Arc<Mutex<HashMap<IpAddr, Guest>>>);

/// Somebody whom TLS has proved.
#[derive(Debug, Clone)]
pub(super) struct Guest {
    pub(super) certificate: CertInfo,
    pub(super) from: SocketAddr,
}

impl Guests {
    /// Whom an address stands for.
    pub(super) fn find(&self, address: Option<SocketAddr>) -> Option<Guest> {
        self.lock().get(&address?.ip()).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, Guest>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where clients that speak WebSocket get in.
#[derive(Clone)]
pub(super) struct Door {
    pub(super) guests: Guests,
    /// Where the broker listens for them.
    pub(super) broker: SocketAddr,
}

/// `GET /mqtt`: MQTT over WebSocket (MQTT 5.0 section 6), for clients with a certificate.
pub(super) async fn mqtt(
    State(door): State<Door>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    upgrade: Result<WebSocketUpgrade, axum::extract::ws::rejection::WebSocketUpgradeRejection>,
) -> Response {
    let refused = |status, why: &str| Failure(status, why.to_owned()).into_response();
    let Some(certificate) = peer.certificate.map(Arc::unwrap_or_clone) else {
        return refused(StatusCode::UNAUTHORIZED, NOBODY);
    };
    let Ok(upgrade) = upgrade else {
        return refused(StatusCode::BAD_REQUEST, "this is MQTT over WebSocket: upgrade to it");
    };
    let bytes_max = PACKET_BYTES_MAX as usize;
    let upgrade = upgrade
        .protocols([SUBPROTOCOL])
        .read_buffer_size(READ_BYTES)
        .write_buffer_size(0)
        .max_frame_size(bytes_max)
        .max_message_size(bytes_max);
    if upgrade.selected_protocol().is_none() {
        return refused(StatusCode::BAD_REQUEST, "WebSocket carries the subprotocol mqtt here");
    }
    let guest = Guest { certificate, from: peer.from };
    upgrade.on_upgrade(async move |socket| {
        let from = guest.from;
        if let Err(error) = door.lead(guest, socket).await {
            log::debug!("{from}: MQTT over WebSocket: {error}");
        }
    })
}

impl Door {
    /// Carries a client's bytes to the broker and back, until either has had enough.
    async fn lead(&self, guest: Guest, socket: WebSocket) -> io::Result<()> {
        let mut bits = [0; 16];
        SystemRandom::new().fill(&mut bits).map_err(|_| io::Error::other("no random bytes"))?;
        let mut broker = TcpStream::connect(self.broker).await?;
        broker.set_nodelay(true)?;
        broker.write_all(&proxy_header(Ipv6Addr::from(bits))).await?;
        let address = IpAddr::from(Ipv6Addr::from(bits));
        self.guests.lock().insert(address, guest);
        let done = carry(socket, &mut broker).await;
        // What the client sent last is still its own.
        let _ = broker.shutdown().await;
        let _ = tokio::time::timeout(END_TIMEOUT, drain(&mut broker)).await;
        self.guests.lock().remove(&address);
        done
    }
}

/// The header of the PROXY protocol, version 2, for TCP over IPv6.
fn proxy_header(from: Ipv6Addr) -> Vec<u8> {
    const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
    const PROXY_TCP6: &[u8] = &[0x21, 0x21, 0, 36];
    let ports = [0; 4];
    [SIGNATURE, PROXY_TCP6, &from.octets(), &[0; 16], &ports].concat()
}

async fn carry(socket: WebSocket, broker: &mut TcpStream) -> io::Result<()> {
    let (to_client, from_client) = socket.split();
    let (from_broker, to_broker) = broker.split();
    tokio::select! {
        ended = up(from_client, to_broker) => ended,
        ended = down(from_broker, to_client) => ended,
    }
}

async fn up(mut client: SplitStream<WebSocket>, mut broker: WriteHalf<'_>) -> io::Result<()> {
    while let Some(message) = client.next().await {
        match message.map_err(io::Error::other)? {
            Message::Binary(bytes) => broker.write_all(&bytes).await?,
            // Answered below us.
            Message::Ping(_) | Message::Pong(_) => {}
            Message::Text(_) => return Err(io::Error::other("MQTT is in binary frames")),
            Message::Close(_) => return Ok(()),
        }
    }
    Ok(())
}

async fn down(
    mut broker: ReadHalf<'_>,
    mut client: SplitSink<WebSocket, Message>,
) -> io::Result<()> {
    let mut buffer = [0; READ_BYTES];
    loop {
        let read = broker.read(&mut buffer).await?;
        let message = match buffer.get(..read) {
            Some([]) | None => return client.close().await.map_err(io::Error::other),
            Some(bytes) => Message::Binary(Bytes::copy_from_slice(bytes)),
        };
        client.send(message).await.map_err(io::Error::other)?;
    }
}

async fn drain(broker: &mut TcpStream) -> io::Result<()> {
    let mut buffer = [0; 1024];
    while broker.read(&mut buffer).await? > 0 {}
    Ok(())
}

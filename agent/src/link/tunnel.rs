//! A connection that is made here, handed to rumqttc, which makes its own and knows TCP, TLS and Unix
//! sockets: it connects to a socket of this process, behind which the real one is.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net;
use std::time::Duration;

use ring::rand::{SecureRandom, SystemRandom};
use tokio::io::{AsyncWriteExt, copy, split};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::dial::Stream;

/// How long what was said last may take to leave.
const END_TIMEOUT: Duration = Duration::from_secs(2);

/// A way through; what it carries goes on for a moment when it is dropped.
pub(super) struct Tunnel {
    /// What rumqttc connects to: an abstract name (unix(7)) that nobody can guess.
    pub(super) address: String,
    carried: Option<JoinHandle<io::Result<()>>>,
}

impl Tunnel {
    /// One that leads to this stream.
    ///
    /// # Errors
    /// When the system gives no socket.
    pub(super) fn open(stream: Box<dyn Stream>) -> io::Result<Self> {
        let mut bits = [0; 16];
        SystemRandom::new().fill(&mut bits).map_err(|_| io::Error::other("no random bytes"))?;
        let name = format!("limpet-agent/{:032x}", u128::from_be_bytes(bits));
        let listener = net::UnixListener::bind_addr(&net::SocketAddr::from_abstract_name(&name)?)?;
        listener.set_nonblocking(true)?;
        let carried = tokio::spawn(carry(UnixListener::from_std(listener)?, stream));
        Ok(Self { address: format!("\0{name}"), carried: Some(carried) })
    }

    /// What ended it; None where it is still open, or was ended in order.
    pub(super) async fn failure(&mut self) -> Option<io::Error> {
        let ended = self.carried.take_if(|carried| carried.is_finished())?;
        ended.await.unwrap_or_else(|error| Err(io::Error::other(error))).err()
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        if let Some(mut carried) = self.carried.take() {
            tokio::spawn(async move {
                if timeout(END_TIMEOUT, &mut carried).await.is_err() {
                    carried.abort();
                }
            });
        }
    }
}

async fn carry(listener: UnixListener, stream: Box<dyn Stream>) -> io::Result<()> {
    let client = own(&listener).await?;
    drop(listener);
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_broker, mut to_broker) = split(stream);
    let up = async {
        copy(&mut from_client, &mut to_broker).await?;
        to_broker.shutdown().await
    };
    let down = async { copy(&mut from_broker, &mut to_client).await.map(drop) };
    tokio::select! {
        ended = up => ended,
        ended = down => ended,
    }
}

/// The connection that comes from this process: a container on the host's network sees the name, too.
async fn own(listener: &UnixListener) -> io::Result<UnixStream> {
    loop {
        let (stream, _) = listener.accept().await?;
        if stream.peer_cred()?.pid() == i32::try_from(std::process::id()).ok() {
            return Ok(stream);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, duplex};

    use super::*;

    #[test]
    fn bytes_go_through_and_what_broke_it_is_known() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (ours, mut theirs) = duplex(64);
            let mut tunnel = Tunnel::open(Box::new(ours)).unwrap();
            let mut client = UnixStream::connect(&tunnel.address).await.unwrap();
            client.write_all(b"hello").await.unwrap();
            let mut read = [0; 5];
            theirs.read_exact(&mut read).await.unwrap();
            theirs.write_all(&read).await.unwrap();
            client.read_exact(&mut read).await.unwrap();
            assert_eq!(&read, b"hello");
            assert!(tunnel.failure().await.is_none());
            // What was said last arrives, though the tunnel is dropped.
            client.write_all(b"bye").await.unwrap();
            drop((client, tunnel));
            let mut last = Vec::new();
            theirs.read_to_end(&mut last).await.unwrap();
            assert_eq!(last, b"bye");
        });
    }
}

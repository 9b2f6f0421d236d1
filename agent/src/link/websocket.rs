//! MQTT over WebSocket (RFC 6455, MQTT 5.0 section 6), from the client's side.
//!
//! To MQTT a connection is a stream of bytes: what comes in data frames is handed on as it comes, and
//! nothing of it is kept, however long a frame claims to be.

use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use ring::rand::{SecureRandom, SystemRandom};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};

use super::head::Head;

mod frame;

pub(crate) use frame::{Frame, Kind};

/// What a server adds to a key to show that it knows WebSocket (RFC 6455 section 1.3).
const ANSWER_SUFFIX: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// Payload of one frame at most.
const FRAME_BYTES_MAX: usize = 4 * 1024;
/// Pongs are not sent while this much waits to be sent: whoever asks for more gets none.
const WAITING_BYTES_MAX: usize = 2 * FRAME_BYTES_MAX;

/// Why a server does not speak WebSocket with us.
#[derive(Debug, thiserror::Error)]
pub(super) enum UpgradeError {
    #[error("it does not upgrade to WebSocket: {0}")]
    Io(#[from] io::Error),
    #[error("it answers {0} and does not upgrade to WebSocket: is something in between?")]
    Status(u16),
    #[error("it does not speak MQTT over WebSocket as RFC 6455 has it: is something in between?")]
    Answer,
}

/// A stream in frames.
pub(super) struct WebSocket<S> {
    stream: S,
    /// The bytes of a frame's head that have come.
    head: Vec<u8>,
    /// The frame that comes, and how much of it is left.
    frame: Option<(Frame, u64)>,
    /// The payload of a frame that is not MQTT's.
    control: Vec<u8>,
    /// Frames that wait to be sent, and how much of them was.
    out: Vec<u8>,
    sent: usize,
    closed: bool,
    random: SystemRandom,
}

/// Upgrades a connection to `HOST:PORT`.
///
/// # Errors
/// When the connection breaks, or the server has something else in mind.
pub(super) async fn open<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    authority: &str,
    path: &str,
) -> Result<WebSocket<S>, UpgradeError> {
    let random = SystemRandom::new();
    let mut key = [0; 16];
    random.fill(&mut key).map_err(|_| io::Error::other("no random bytes"))?;
    let key = STANDARD.encode(key);
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {authority}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    stream.flush().await?;
    let head = Head::read(&mut stream).await?;
    match head.status() {
        Some(101) if is_upgrade(&head, &key) => Ok(WebSocket {
            stream,
            head: Vec::new(),
            frame: None,
            control: Vec::new(),
            out: Vec::new(),
            sent: 0,
            closed: false,
            random,
        }),
        Some(101) | None => Err(UpgradeError::Answer),
        Some(status) => Err(UpgradeError::Status(status)),
    }
}

/// Whether an answer is one to this key (RFC 6455 section 4.1).
fn is_upgrade(head: &Head, key: &str) -> bool {
    let hash = digest(&SHA1_FOR_LEGACY_USE_ONLY, format!("{key}{ANSWER_SUFFIX}").as_bytes());
    let accept = STANDARD.encode(hash);
    head.header("sec-websocket-accept") == Some(accept.as_str())
        && head.header("sec-websocket-protocol") == Some("mqtt")
        && head.header("upgrade").is_some_and(|to| to.eq_ignore_ascii_case("websocket"))
}

impl<S: AsyncRead + AsyncWrite + Unpin> WebSocket<S> {
    /// Puts a frame behind what waits to be sent.
    fn put(&mut self, kind: Kind, payload: &[u8]) -> io::Result<()> {
        let mut mask = [0; 4];
        self.random.fill(&mut mask).map_err(|_| io::Error::other("no random bytes"))?;
        frame::write(&mut self.out, kind, payload, mask);
        Ok(())
    }

    /// Sends what waits.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(rest @ [_, ..]) = self.out.get(self.sent..) {
            match ready!(Pin::new(&mut self.stream).poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(ErrorKind::WriteZero.into())),
                written => self.sent = self.sent.saturating_add(written),
            }
        }
        self.out.clear();
        self.sent = 0;
        Poll::Ready(Ok(()))
    }

    /// Reads into `buffer`, at most `most` bytes of it; gives how many came, none at the end.
    fn poll_take(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
        most: u64,
    ) -> Poll<io::Result<usize>> {
        let most = usize::try_from(most).unwrap_or(usize::MAX).min(buffer.remaining());
        let mut part = ReadBuf::new(buffer.initialize_unfilled_to(most));
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut part))?;
        let came = part.filled().len();
        buffer.advance(came);
        Poll::Ready(Ok(came))
    }

    /// Reads a frame's head, byte by byte: what follows is somebody else's.
    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Frame>>> {
        loop {
            if let Some(frame) = Frame::parse(&self.head)? {
                self.head.clear();
                return Poll::Ready(Ok(Some(frame)));
            }
            let mut byte = [0];
            let mut buffer = ReadBuf::new(&mut byte);
            ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer))?;
            match buffer.filled() {
                [] if self.head.is_empty() => return Poll::Ready(Ok(None)),
                [] => return Poll::Ready(Err(ErrorKind::UnexpectedEof.into())),
                filled => self.head.extend_from_slice(filled),
            }
        }
    }

    /// Takes a frame that is not MQTT's to its end.
    fn poll_control(&mut self, cx: &mut Context<'_>, left: u64) -> Poll<io::Result<u64>> {
        let mut bytes = [0; frame::CONTROL_BYTES_MAX];
        let mut buffer = ReadBuf::new(&mut bytes);
        let came = ready!(self.poll_take(cx, &mut buffer, left))?;
        if came == 0 {
            return Poll::Ready(Err(ErrorKind::UnexpectedEof.into()));
        }
        self.control.extend_from_slice(buffer.filled());
        Poll::Ready(Ok(left.saturating_sub(came as u64)))
    }

    /// What a frame that is not MQTT's asks for.
    fn heed(&mut self, cx: &mut Context<'_>, kind: Kind) -> io::Result<()> {
        let payload = std::mem::take(&mut self.control);
        match kind {
            Kind::Ping if self.out.len() < WAITING_BYTES_MAX => self.put(Kind::Pong, &payload)?,
            Kind::Close if !self.closed => {
                self.closed = true;
                self.put(Kind::Close, &payload)?;
            }
            Kind::Ping | Kind::Close | Kind::Pong | Kind::Data => return Ok(()),
        }
        // What cannot be sent yet goes before the next that is.
        let _ = self.poll_send(cx)?;
        Ok(())
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for WebSocket<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            match this.frame {
                None => {
                    let Some(frame) = ready!(this.poll_head(cx))? else {
                        return Poll::Ready(Ok(()));
                    };
                    this.frame = Some((frame, frame.length));
                }
                Some((Frame { kind: Kind::Data, .. }, 0)) => this.frame = None,
                Some((frame @ Frame { kind: Kind::Data, .. }, left)) => {
                    let came = ready!(this.poll_take(cx, buffer, left))?;
                    if came == 0 && buffer.remaining() > 0 {
                        return Poll::Ready(Err(ErrorKind::UnexpectedEof.into()));
                    }
                    this.frame = Some((frame, left.saturating_sub(came as u64)));
                    return Poll::Ready(Ok(()));
                }
                Some((frame, 0)) => {
                    this.frame = None;
                    this.heed(cx, frame.kind)?;
                    if this.closed {
                        return Poll::Ready(Ok(()));
                    }
                }
                Some((frame, left)) => {
                    let left = ready!(this.poll_control(cx, left))?;
                    this.frame = Some((frame, left));
                }
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for WebSocket<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_send(cx))?;
        let part = bytes.get(..FRAME_BYTES_MAX).unwrap_or(bytes);
        self.put(Kind::Data, part)?;
        // It is taken: the rest goes with the next write, or flush.
        let _ = self.poll_send(cx)?;
        Poll::Ready(Ok(part.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(cx))?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.closed {
            self.closed = true;
            self.put(Kind::Close, &[])?;
        }
        ready!(self.poll_send(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;

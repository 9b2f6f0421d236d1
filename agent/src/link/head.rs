//! The head of an HTTP/1.1 answer (RFC 9112): what a proxy says to CONNECT, and a server to an upgrade.

use std::io::{Error, ErrorKind, Result};

use tokio::io::{AsyncRead, AsyncReadExt};

/// Far above what either has to say.
pub(crate) const HEAD_BYTES_MAX: usize = 8 * 1024;
/// What every answer begins with.
const BEGIN: &[u8] = b"HTTP/1.";
const END: &[u8] = b"\r\n\r\n";

/// A head, up to the empty line.
#[derive(Debug)]
pub(crate) struct Head(String);

impl Head {
    /// Reads one, and not a byte of what follows it.
    ///
    /// # Errors
    /// When the stream ends or breaks, or what comes is no head (`InvalidData`).
    pub(crate) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Result<Self> {
        let mut bytes = Vec::new();
        loop {
            bytes.push(stream.read_u8().await?);
            if let Some(head) = Self::parse(&bytes)? {
                return Ok(head);
            }
        }
    }

    /// What has come so far as a head; None where more is to come.
    ///
    /// # Errors
    /// `InvalidData` where this becomes none, whatever comes.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Option<Self>> {
        let begun = bytes.len().min(BEGIN.len());
        if bytes.get(..begun) != BEGIN.get(..begun) || bytes.len() > HEAD_BYTES_MAX {
            return Err(ErrorKind::InvalidData.into());
        }
        if !bytes.ends_with(END) {
            return Ok(None);
        }
        let text =
            String::from_utf8(bytes.to_vec()).map_err(|_| Error::from(ErrorKind::InvalidData))?;
        Ok(Some(Self(text)))
    }

    /// What it says of the whole: 200 and the like.
    pub(crate) fn status(&self) -> Option<u16> {
        let status = self.0.lines().next()?.split(' ').nth(1)?;
        status.parse().ok().filter(|status| (100..1000).contains(status))
    }

    /// The first header of a name.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.0.lines().skip(1).filter_map(|line| line.split_once(':'));
        let found = headers.find(|(own, _)| own.trim().eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.trim())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_read_and_nothing_else_is() {
        let head = Head::parse(b"HTTP/1.1 101 Switching Protocols\r\nUPGRADE: websocket\r\n\r\n");
        let head = head.unwrap().unwrap();
        assert_eq!(head.status(), Some(101));
        assert_eq!(head.header("upgrade"), Some("websocket"));
        assert_eq!(head.header("connection"), None);
        assert!(Head::parse(b"HTTP/1.1 200 OK\r\n").unwrap().is_none());
        for wrong in
            [&b"SSH-2.0"[..], b"\x10\x20", &[b"HTTP/1.1 ", &[b'x'; HEAD_BYTES_MAX][..]].concat()]
        {
            assert!(Head::parse(wrong).is_err());
        }
        let odd = Head::parse(b"HTTP/1.1 99999 x\r\n\r\n").unwrap().unwrap();
        assert_eq!(odd.status(), None);
    }
}

//! Frames of WebSocket (RFC 6455 section 5).

use std::io::{self, ErrorKind};

/// Payload of a frame that is not data at most (section 5.5).
pub(crate) const CONTROL_BYTES_MAX: usize = 125;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Bytes of MQTT; to MQTT the boundaries of frames and messages mean nothing.
    Data,
    /// The end.
    Close,
    /// To be answered.
    Ping,
    /// An answer.
    Pong,
}

/// The head of a frame from a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Frame {
    /// What it is.
    pub(crate) kind: Kind,
    /// Bytes that follow.
    pub(crate) length: u64,
}

impl Frame {
    /// What has come so far as a head; None where more is to come.
    ///
    /// # Errors
    /// `InvalidData` where a server must not send such a frame.
    pub(crate) fn parse(bytes: &[u8]) -> io::Result<Option<Self>> {
        let wrong =
            || io::Error::new(ErrorKind::InvalidData, "a frame that WebSocket does not have");
        let [first, second, rest @ ..] = bytes else {
            return Ok(None);
        };
        let (last, reserved, masked) = (first & 0x80 != 0, first & 0x70, second & 0x80 != 0);
        let kind = match first & 0x0f {
            0 | 2 => Kind::Data,
            8 => Kind::Close,
            9 => Kind::Ping,
            10 => Kind::Pong,
            _ => return Err(wrong()),
        };
        let short = second & 0x7f;
        let control = kind != Kind::Data;
        if reserved != 0 || masked || control && (!last || usize::from(short) > CONTROL_BYTES_MAX) {
            return Err(wrong());
        }
        let length = match (short, rest) {
            (126, [high, low, ..]) => u16::from_be_bytes([*high, *low]).into(),
            (127, rest) => match rest.first_chunk() {
                Some(bytes) => u64::from_be_bytes(*bytes),
                None => return Ok(None),
            },
            (126, _) => return Ok(None),
            (short, _) => short.into(),
        };
        // The highest bit must be zero (section 5.2).
        if length >> 63 == 1 { Err(wrong()) } else { Ok(Some(Self { kind, length })) }
    }
}

/// Writes a whole frame as clients do, masked.
pub(super) fn write(out: &mut Vec<u8>, kind: Kind, payload: &[u8], mask: [u8; 4]) {
    out.push(match kind {
        Kind::Data => 0x82,
        Kind::Close => 0x88,
        Kind::Ping => 0x89,
        Kind::Pong => 0x8a,
    });
    match (u8::try_from(payload.len()), u16::try_from(payload.len())) {
        (Ok(length @ ..=125), _) => out.push(0x80 | length),
        (_, Ok(length)) => {
            out.push(0xfe);
            out.extend_from_slice(&length.to_be_bytes());
        }
        (_, Err(_)) => {
            out.push(0xff);
            out.extend_from_slice(&(payload.len() as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&mask);
    out.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_of_frames_are_read() {
        let frame = |kind, length| Some(Frame { kind, length });
        for (bytes, read) in [
            (&[][..], None),
            (&[0x82], None),
            (&[0x82, 5], frame(Kind::Data, 5)),
            (&[0x00, 5], frame(Kind::Data, 5)),
            (&[0x82, 126, 1], None),
            (&[0x82, 126, 1, 0], frame(Kind::Data, 256)),
            (&[0x82, 127, 0, 0, 0, 0, 0, 1, 0], None),
            (&[0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0], frame(Kind::Data, 65_536)),
            (&[0x89, 125], frame(Kind::Ping, 125)),
            (&[0x88, 0], frame(Kind::Close, 0)),
        ] {
            assert_eq!(Frame::parse(bytes).unwrap(), read, "{bytes:?}");
        }
        for (what, bytes) in [
            ("text", &[0x81, 1][..]),
            ("a kind that is none", &[0x83, 1]),
            ("a bit of an extension", &[0xc2, 1]),
            ("a mask", &[0x82, 0x81]),
            ("a ping in pieces", &[0x09, 1]),
            ("a long ping", &[0x89, 126]),
            ("a length with a sign", &[0x82, 127, 0x80, 0, 0, 0, 0, 0, 0, 0]),
        ] {
            assert!(Frame::parse(bytes).is_err(), "{what}");
        }
    }

    /// RFC 6455 section 5.7.
    #[test]
    fn frames_are_written_masked() {
        let mut out = Vec::new();
        write(&mut out, Kind::Pong, b"Hello", [0x37, 0xfa, 0x21, 0x3d]);
        assert_eq!(out, [0x8a, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58]);
        for (length, head) in [(126, 4), (65_535, 4), (65_536, 10)] {
            out.clear();
            write(&mut out, Kind::Data, &vec![0; length], [0; 4]);
            assert_eq!(out.len(), head + 4 + length);
        }
    }
}

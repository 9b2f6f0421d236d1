//! The least of an MQTT 3.1.1 client: a publisher whose own start costs the measurement nothing.

use std::io::{Read, Write};
use std::net::TcpStream;

/// A connection to a broker.
pub(crate) struct Publisher(TcpStream);

impl Publisher {
    pub(crate) fn connect(port: u16) -> Self {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_nodelay(true).unwrap();
        // MQTT 3.1.1 section 3.1: clean session, no keep-alive, client id `bench`.
        stream.write_all(b"\x10\x11\x00\x04MQTT\x04\x02\x00\x00\x00\x05bench").unwrap();
        let mut connack = [0; 4];
        stream.read_exact(&mut connack).unwrap();
        assert_eq!(connack, [0x20, 2, 0, 0]);
        Self(stream)
    }

    /// Publishes at QoS 1 and waits for the acknowledgement (section 3.3).
    pub(crate) fn publish(&mut self, topic: &str, payload: &[u8]) {
        let topic_length = u16::try_from(topic.len()).unwrap().to_be_bytes();
        let body = [&topic_length[..], topic.as_bytes(), &[0, 1], payload].concat();
        let length = u8::try_from(body.len()).ok().filter(|length| *length < 128);
        let packet = [&[0x32, length.unwrap()][..], &body].concat();
        self.0.write_all(&packet).unwrap();
        let mut puback = [0; 4];
        self.0.read_exact(&mut puback).unwrap();
        assert_eq!(puback, [0x40, 2, 0, 1]);
    }
}

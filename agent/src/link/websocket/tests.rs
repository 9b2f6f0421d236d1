use tokio::io::{AsyncReadExt, DuplexStream, duplex};

use super::*;

fn connected() -> (WebSocket<DuplexStream>, DuplexStream) {
    let (stream, server) = duplex(1 << 20);
    let socket = WebSocket {
        stream,
        head: Vec::new(),
        frame: None,
        control: Vec::new(),
        out: Vec::new(),
        sent: 0,
        closed: false,
        random: SystemRandom::new(),
    };
    (socket, server)
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

#[test]
fn bytes_come_through_whatever_the_frames_are() {
    block_on(async {
        let (mut socket, mut server) = connected();
        let frames: &[&[u8]] = &[
            &[0x02, 2],
            b"MQ",
            &[0x89, 1],
            b"!",
            &[0x00, 0],
            &[0x80, 126, 0, 2],
            b"TT",
            &[0x88, 0],
        ];
        server.write_all(&frames.concat()).await.unwrap();
        let mut read = Vec::new();
        socket.read_to_end(&mut read).await.unwrap();
        assert_eq!(read, b"MQTT");
        // A pong with what the ping had, and the end, both masked.
        let mut said = [0; 13];
        server.read_exact(&mut said).await.unwrap();
        assert_eq!((said[0], said[1], said[6] ^ said[2]), (0x8a, 0x81, b'!'));
        assert_eq!((said[7], said[8]), (0x88, 0x80));
    });
}

#[test]
fn what_is_written_arrives_in_masked_frames() {
    block_on(async {
        let (mut socket, mut server) = connected();
        let sent: Vec<u8> = (0..10_000_u32).map(|n| n as u8).collect();
        socket.write_all(&sent).await.unwrap();
        socket.shutdown().await.unwrap();
        let (mut raw, mut read) = (Vec::new(), Vec::new());
        server.read_to_end(&mut raw).await.unwrap();
        let mut rest = &raw[..];
        while rest[0] == 0x82 {
            assert_eq!(rest[1], 0xfe);
            let length = usize::from(u16::from_be_bytes([rest[2], rest[3]]));
            let (mask, payload) = (&rest[4..8], &rest[8..8 + length]);
            read.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
            rest = &rest[8 + length..];
        }
        assert_eq!(read, sent);
        assert_eq!(rest[..2], [0x88, 0x80]);
    });
}

#[test]
fn a_server_that_breaks_the_rules_is_left() {
    block_on(async {
        for frames in [&[0x81, 1, b'x'][..], &[0x82, 0x81, 0, 0, 0, 0, 1], &[0x82, 5, b'x']] {
            let (mut socket, mut server) = connected();
            server.write_all(frames).await.unwrap();
            drop(server);
            assert!(socket.read_to_end(&mut Vec::new()).await.is_err(), "{frames:?}");
        }
    });
}

#[test]
fn an_answer_to_another_key_is_none() {
    // RFC 6455 section 1.3.
    let head = |accept: &str| {
        let text = format!(
            "HTTP/1.1 101 x\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {accept}\r\n\
             Sec-WebSocket-Protocol: mqtt\r\n\r\n"
        );
        Head::parse(text.as_bytes()).unwrap().unwrap()
    };
    let key = "dGhlIHNhbXBsZSBub25jZQ==";
    assert!(is_upgrade(&head("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), key));
    assert!(!is_upgrade(&head("t3pPLMBiTxaQ9kYGzzhZRbK+xOo="), key));
}

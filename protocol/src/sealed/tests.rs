//! What is sealed opens with its own key, as what it is, and in no other way.

use proptest::prelude::*;

use super::*;
use crate::command::{LogLine, LogStream};
use crate::key::SigningKey;

fn device(name: &str) -> DeviceId {
    name.parse().unwrap()
}

fn key(seed: u8) -> OpeningKey {
    OpeningKey::of(&SigningKey::from_seed(&[seed; 32]).unwrap())
}

fn secret(value: &[u8]) -> SealedSecret {
    let name = "db".parse().unwrap();
    SealedSecret::seal(&key(1).public(), &device("pi-1"), (&name, 3), &value.to_vec().into())
        .unwrap()
}

fn chunk(text: &str) -> StreamChunk {
    let line = LogLine { stream: LogStream::Stdout, at_ms: 1, bytes: text.as_bytes().to_vec() };
    StreamChunk { lines: vec![line], gap_bytes: 0, end: false }
}

fn stream() -> (StreamSealer, StreamOpener) {
    let opener = StreamOpener::new(device("pi-1"), StreamId([1; 8])).unwrap();
    let sealer = StreamSealer::new(&opener.sealing_key(), device("pi-1"), StreamId([1; 8]));
    (sealer.unwrap(), opener)
}

/// Sealed by another implementation of HPKE (Python's `cryptography`), as the controller seals.
#[test]
fn a_secret_that_was_sealed_before_opens() {
    let sealed = "afded2af29ae47b0fff142f2ba7dc76ca051219d5e94f5e8dc8a229e8ce8aa10674b27b4\
                  bbb74be09318d9c4a7d233ada284459b5dbe1e";
    let digits = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    let sealed = sealed.as_bytes().chunks(2).map(digits).collect();
    let golden = SealedSecret { name: "db".parse().unwrap(), version: 3, sealed };
    assert_eq!(golden.open(&key(1), &device("pi-1")).unwrap().expose(), b"hunter2");
}

#[test]
fn a_secret_is_for_one_device_name_and_version() {
    let sealed = secret(b"hunter2");
    assert_eq!(sealed.open(&key(1), &device("pi-1")).unwrap().expose(), b"hunter2");
    assert_eq!(sealed.open(&key(2), &device("pi-1")), Err(SealError::Sealed));
    assert_eq!(sealed.open(&key(1), &device("pi-2")), Err(SealError::Sealed));
    let later = SealedSecret { version: 4, ..sealed.clone() };
    assert_eq!(later.open(&key(1), &device("pi-1")), Err(SealError::Sealed));
    let other = SealedSecret { name: "dc".parse().unwrap(), ..sealed.clone() };
    assert_eq!(other.open(&key(1), &device("pi-1")), Err(SealError::Sealed));
    assert_ne!(secret(b"hunter2").sealed, sealed.sealed, "each time other bytes");
    assert_eq!(sealed.sealed.len(), 7 + SEALED_BYTES_MORE);
}

#[test]
fn no_changed_byte_and_no_part_of_a_secret_opens() {
    let good = secret(b"hunter2");
    for at in 0..good.sealed.len() {
        for flip in [1, 0x80, 0xff] {
            let mut bad = good.clone();
            bad.sealed[at] ^= flip;
            // The highest bit of a key is none of it (RFC 7748 section 5): it is bound all the same.
            assert!(bad.open(&key(1), &device("pi-1")).is_err(), "{at} ^ {flip}");
        }
        let short = SealedSecret { sealed: good.sealed[..at].to_vec(), ..good.clone() };
        assert!(short.open(&key(1), &device("pi-1")).is_err(), "cut at {at}");
    }
}

#[test]
fn no_value_is_shown() {
    let value = Plaintext::from(b"hunter2".to_vec());
    assert_eq!(format!("{value:?}"), "7 bytes");
    let shown = format!("{:?} {:?}", secret(b"hunter2"), key(1));
    assert!(!shown.contains("hunter2") && !shown.contains("[104, 117, 110"), "{shown}");
}

#[test]
fn chunks_open_in_their_order_once() {
    let (mut sealer, mut opener) = stream();
    let sealed: Vec<_> =
        (0..5).map(|n| sealer.seal(&chunk(&format!("line {n}"))).unwrap()).collect();
    let mut open = |at: usize| opener.open(sealed[at].0, &sealed[at].1);
    assert_eq!(open(0).unwrap(), (0, chunk("line 0")));
    assert_eq!(open(3).unwrap(), (2, chunk("line 3")), "two are missing");
    for late in [0, 1, 3] {
        let why = open(late).unwrap_err().to_string();
        assert!(why.contains(&format!("chunk {late} of a stream came again, or behind chunk 3")));
    }
    assert_eq!(open(4).unwrap(), (0, chunk("line 4")));
}

#[test]
fn a_chunk_is_of_one_stream_sender_and_number() {
    let (mut sealer, mut opener) = stream();
    let (number, first) = sealer.seal(&chunk("first")).unwrap();
    assert!(matches!(opener.open(1, &first), Err(ChunkError::Seal { number: 1, .. })));
    let (_, stranger) = stream().0.seal(&chunk("x")).unwrap();
    assert!(matches!(opener.open(0, &stranger), Err(ChunkError::Seal { .. })));
    let key = opener.sealing_key();
    for (id, of) in [("pi-2", [1; 8]), ("pi-1", [2; 8])] {
        let mut other = StreamSealer::new(&key, device(id), StreamId(of)).unwrap();
        let (_, chunk) = other.seal(&chunk("x")).unwrap();
        assert!(opener.open(0, &chunk).is_err(), "{id}");
    }
    opener.open(number, &first).unwrap();
    let mut again = StreamSealer::new(&key, device("pi-1"), StreamId([1; 8])).unwrap();
    again.seal(&chunk("x")).unwrap();
    let (number, second) = again.seal(&chunk("x")).unwrap();
    assert!(matches!(opener.open(number, &second), Err(ChunkError::Sender(1))));
    let (number, second) = sealer.seal(&chunk("second")).unwrap();
    assert_eq!(opener.open(number, &second).unwrap(), (0, chunk("second")));
}

#[test]
fn no_changed_byte_of_a_chunk_opens() {
    let (mut sealer, mut opener) = stream();
    let (number, good) = sealer.seal(&chunk("hello")).unwrap();
    for at in 0..good.body.len() {
        let mut bad = good.clone();
        bad.body[at] ^= 1;
        assert!(opener.open(number, &bad).is_err(), "{at}");
        let short = SealedChunk { body: good.body[..at].to_vec(), ..good.clone() };
        assert!(opener.open(number, &short).is_err(), "cut at {at}");
    }
    for at in 0..32 {
        let mut bad = good.clone();
        bad.sender.0[at] ^= 1;
        assert!(opener.open(number, &bad).is_err(), "sender {at}");
    }
    assert!(opener.open(number, &good).is_ok(), "what was refused does no harm");
}

#[test]
fn what_opens_and_is_no_chunk_is_refused() {
    let (sealer, mut opener) = stream();
    let aad = chunk_aad(&device("pi-1"), StreamId([1; 8]), 0);
    let body = sealer.context.seal(0, &aad, b"\x9b\xff\xff\xff\xff\xff\xff\xff\xff").unwrap();
    let chunk = SealedChunk { sender: sealer.sender, body };
    assert!(matches!(opener.open(0, &chunk), Err(ChunkError::Body { .. })));
}

proptest! {
    #[test]
    fn what_is_sealed_opens(value in prop::collection::vec(any::<u8>(), 0..2000), seed in 1u8..9) {
        let name = "a-name".parse().unwrap();
        let value = Plaintext::from(value);
        let sealed =
            SealedSecret::seal(&key(seed).public(), &device("d"), (&name, 1), &value).unwrap();
        prop_assert_eq!(sealed.open(&key(seed), &device("d")).unwrap(), value);
        prop_assert!(sealed.open(&key(seed + 1), &device("d")).is_err());
    }

    #[test]
    fn noise_never_opens(bytes in prop::collection::vec(any::<u8>(), 0..300), number in any::<u64>()) {
        let sealed = SealedSecret { sealed: bytes.clone(), ..secret(b"x") };
        prop_assert!(sealed.open(&key(1), &device("pi-1")).is_err());
        let sender = SealingKey(bytes.first_chunk().copied().unwrap_or([9; 32]));
        let (_, mut opener) = stream();
        let chunk = SealedChunk { sender, body: bytes };
        prop_assert!(opener.open(number, &chunk).is_err());
    }
}

//! What fuzzing feeds the decoders of messages with. Whoever holds a key can sign: what is behind a
//! signature is as foreign as what is not.

use std::fmt::Debug;

use serde::Serialize;

use super::*;
use crate::{
    Ack, Command, CommandResult, DesiredState, EventBatch, Hello, Invitation, Join, Membership,
    Presence, Purpose, Renew, Reported, Returned, SealedChunk, SignedManifest, StreamChunk, Token,
    Topic,
};

/// Reads `data` as its first byte says: a whole message, a protected header, topics, or the body
/// of each kind. What is accepted must read back as the same.
pub fn messages(data: &[u8]) {
    let Some((what, data)) = data.split_first() else {
        return;
    };
    match what % 16 {
        0 => message(data),
        1 => protected(data),
        2 => topics(data),
        3 => body::<DesiredState>(Kind::Desired, data),
        4 => body::<Command>(Kind::Command, data),
        5 => body::<Ack>(Kind::Ack, data),
        6 => body::<Presence>(Kind::Presence, data),
        7 => body::<Hello>(Kind::Hello, data),
        8 => body::<Reported>(Kind::Reported, data),
        9 => body::<EventBatch>(Kind::Event, data),
        10 => body::<CommandResult>(Kind::Result, data),
        11 => {
            body::<StreamChunk>(Kind::Stream, data);
            body::<SealedChunk>(Kind::Stream, data);
        }
        12 => body::<Returned>(Kind::Returned, data),
        13 => joining(data),
        14 => invitations(data),
        _ => manifests(data),
    }
}

fn key() -> Option<SigningKey> {
    SigningKey::from_seed(&[7; 32]).ok()
}

fn opened(message: &[u8], kind: Kind) -> Option<Envelope> {
    let (prefix, device) = (Prefix::default(), "pi-1".parse().ok()?);
    let signer = key()?.public();
    let known = Expected { prefix: &prefix, device: &device, kind, signer: Some(&signer) };
    let first = open(message, Expected { signer: None, ..known });
    let opened = open(message, known);
    for error in [&first, &opened].into_iter().filter_map(|opened| opened.as_ref().err()) {
        assert!(error.to_string().len() < 4096);
    }
    opened.ok()
}

/// A whole message, which may be signed with the key that is expected, or be for another device.
fn message(data: &[u8]) {
    for kind in Kind::ALL {
        let body = opened(data, kind).map(|envelope| envelope.read::<serde_cbor::Value>());
        assert!(body.is_none_or(|body| format!("{body:?}").len() < 1 << 24));
    }
}

/// The protected header of a message whose signature holds.
fn protected(data: &[u8]) {
    let payload = cbor::encode(&CommandResult { error: None });
    let signature = key().map(|key| key.sign(&to_be_signed(data, &payload))).unwrap_or_default();
    for kind in Kind::ALL {
        if let Some(envelope) = opened(&sign1(data, &payload, &signature), kind) {
            let again =
                key().map(|key| seal(&key, &envelope.header, &CommandResult { error: None }));
            assert_eq!(again.and_then(|again| opened(&again, kind)), Some(envelope));
        }
    }
}

/// What a stranger sends to join or renew, signed by whatever key it names; and what it is answered.
fn joining(data: &[u8]) {
    for kind in [Kind::Join, Kind::Renew] {
        if let Err(error) = open_first(data, &Prefix::default(), kind) {
            assert!(error.to_string().len() < 4096);
        }
    }
    body::<Join>(Kind::Join, data);
    body::<Renew>(Kind::Renew, data);
    if let Ok(membership) = cbor::decode::<Membership>(data, cbor::MESSAGE_BYTES_MAX) {
        let again = cbor::encode(&membership);
        assert_eq!(cbor::decode::<Membership>(&again, again.len()).ok(), Some(membership));
    }
}

/// What anybody can publish as a manifest; and what is behind a signature that holds.
fn manifests(data: &[u8]) {
    let (Some(key), Ok(name)) = (key(), "web".parse()) else {
        return;
    };
    let prefix = Prefix::default();
    let opened = |message: &[u8]| {
        let opened = SignedManifest::open(message, &prefix, &name);
        let claimed = claimed_signer(message);
        if let Err(error) = &opened {
            assert!(error.to_string().len() < 4096);
        }
        // Whose key counts is decided by what is claimed.
        opened.ok().map(|(envelope, manifest)| {
            assert_eq!(claimed.ok(), Some(envelope.signer));
            (envelope.header.number, manifest)
        })
    };
    if let Some((at_ms, manifest)) = opened(data) {
        assert_eq!(opened(&manifest.seal(&key, &prefix, &name, at_ms)), Some((at_ms, manifest)));
    }
    if let Ok(manifest) = cbor::decode::<SignedManifest>(data, cbor::MESSAGE_BYTES_MAX) {
        let sealed = manifest.seal(&key, &prefix, &name, u64::MAX);
        assert_eq!(opened(&sealed), Some((u64::MAX, manifest)));
    }
}

/// Strings that people copy.
fn invitations(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    for purpose in [Purpose::Join, Purpose::Login] {
        if let Ok(invitation) = Invitation::parse(&text, purpose) {
            let again = Invitation::parse(&invitation.to_string(), purpose);
            assert_eq!(again, Ok(invitation));
        }
    }
    if let Ok(token) = text.parse::<Token>() {
        assert_eq!(token.to_string().parse(), Ok(token));
    }
}

fn topics(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let (prefix, text) = text.split_once('\n').unwrap_or(("limpet/v1", text));
    if let Ok(prefix) = prefix.parse::<Prefix>()
        && let Ok(topic) = Topic::parse(&prefix, text)
    {
        assert_eq!(Topic::parse(&prefix, &topic.under(&prefix)), Ok(topic));
    }
}

fn body<T: Serialize + DeserializeOwned + PartialEq + Debug>(kind: Kind, data: &[u8]) {
    let value: T = match cbor::decode(data, cbor::MESSAGE_BYTES_MAX) {
        Ok(value) => value,
        Err(error) => return assert!(error.to_string().len() < 4096),
    };
    assert!(!format!("{value:?}").is_empty());
    let envelope = key().zip("pi-1".parse().ok()).and_then(|(key, device)| {
        let prefix = Prefix::default().to_string();
        let header = Header { prefix, device, kind, epoch: 1, number: u64::MAX };
        opened(&seal(&key, &header, &value), kind)
    });
    assert_eq!(envelope.and_then(|envelope| envelope.read().ok()), Some(value));
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    #[test]
    fn what_fuzzing_begins_with_and_what_it_has_found() {
        for folder in ["seeds", "regressions"] {
            let inputs = Path::new("../fuzz").join(folder).join("messages");
            for input in std::fs::read_dir(inputs).unwrap() {
                super::messages(&std::fs::read(input.unwrap().path()).unwrap());
            }
        }
    }
}

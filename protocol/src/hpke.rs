//! HPKE (RFC 9180) in base mode: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, ChaCha20-Poly1305.
//!
//! Secrets are sealed with it to a device's lasting key, streams to a key that lives as long as
//! somebody looks. What it binds, beside both public halves, is in `sealed.rs`.

use std::fmt;
use std::str::FromStr;

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use ring::hmac::{HMAC_SHA256, Key, sign};
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};
use x25519_dalek::{X25519_BASEPOINT_BYTES, x25519};
use zeroize::Zeroizing;

use crate::id::{IdError, byte_id};
use crate::key::SigningKey;

/// Bytes that sealing adds to a text: its tag.
pub(crate) const TAG_BYTES: usize = 16;

/// Section 7.1.3: `"KEM"`, 0x0020.
const SUITE_KEM: &[u8] = b"KEM\x00\x20";
/// Section 5.1: `"HPKE"`, KEM 0x0020, KDF 0x0001, AEAD 0x0003.
const SUITE_HPKE: &[u8] = b"HPKE\x00\x20\x00\x01\x00\x03";
/// What a device's key for opening is derived from its signing key with.
const DERIVED: &[u8] = b"limpet/v1 opening key";

byte_id!(
    /// A key that one seals to (X25519): the public half of an [`OpeningKey`].
    SealingKey, 32
);

/// A key that opens what was sealed to its public half.
#[derive(Clone)]
pub struct OpeningKey(Zeroizing<[u8; 32]>);

/// Why something cannot be sealed or opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The system has no randomness.
    #[error("the system gave no random bytes for a key")]
    NoRandomness,
    /// A point of low order: whoever chose it would know what is sealed.
    #[error("the key that it should be sealed to, or was sealed with, is none")]
    WeakKey,
    /// Sealed to another key or for another purpose, or changed since.
    #[error(
        "it does not open: it was sealed to another key, for another purpose, or changed since"
    )]
    Sealed,
    /// Too short to be anything sealed.
    #[error("it is too short to be sealed")]
    Short,
}

impl OpeningKey {
    /// Makes a key from the system's randomness.
    ///
    /// # Errors
    /// When the system gives none.
    pub fn generate() -> Result<Self, SealError> {
        let mut bytes = Zeroizing::new([0; 32]);
        SystemRandom::new().fill(bytes.as_mut()).map_err(|_| SealError::NoRandomness)?;
        Ok(Self(bytes))
    }

    /// The key of the owner of a signing key: HKDF-SHA256 (RFC 5869) of its seed under a label of
    /// its own, so that neither key says anything of the other, and one seed is all that is kept.
    pub fn of(owner: &SigningKey) -> Self {
        let prk = extract(&[], &[owner.seed()]);
        Self(expand(&prk, &[DERIVED]))
    }

    /// The public half.
    pub fn public(&self) -> SealingKey {
        SealingKey(x25519(*self.0, X25519_BASEPOINT_BYTES))
    }

    /// Diffie-Hellman (RFC 7748 section 6.1).
    fn agree(&self, with: &SealingKey) -> Result<Zeroizing<[u8; 32]>, SealError> {
        let shared = Zeroizing::new(x25519(*self.0, with.0));
        let is_zero = shared.iter().fold(0, |all, byte| all | byte) == 0;
        if is_zero { Err(SealError::WeakKey) } else { Ok(shared) }
    }
}

impl fmt::Debug for OpeningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OpeningKey({})", self.public())
    }
}

/// What both sides have come to share (section 5.2).
pub(crate) struct Context {
    key: LessSafeKey,
    nonce: [u8; 12],
}

impl Context {
    /// A context to seal with, and the public key that its receiver needs.
    pub(crate) fn sender(to: &SealingKey, info: &[u8]) -> Result<(SealingKey, Self), SealError> {
        let own = OpeningKey::generate()?;
        Ok((own.public(), Self::sender_with(&own, to, info)?))
    }

    fn sender_with(own: &OpeningKey, to: &SealingKey, info: &[u8]) -> Result<Self, SealError> {
        let shared = own.agree(to)?;
        Self::agreed(&shared, [&own.public(), to], info)
    }

    /// A context to open with, from what the sender gave.
    pub(crate) fn receiver(
        from: &SealingKey,
        key: &OpeningKey,
        info: &[u8],
    ) -> Result<Self, SealError> {
        let shared = key.agree(from)?;
        Self::agreed(&shared, [from, &key.public()], info)
    }

    /// `ExtractAndExpand` (section 4.1), then `KeySchedule` (section 5.1) in base mode.
    fn agreed(
        shared: &[u8; 32],
        [sender, receiver]: [&SealingKey; 2],
        info: &[u8],
    ) -> Result<Self, SealError> {
        let eae = labeled_extract(SUITE_KEM, &[], b"eae_prk", shared);
        let both = [sender.0, receiver.0].concat();
        let shared = labeled_expand(SUITE_KEM, &eae, b"shared_secret", &both, 32);
        let psk_id = labeled_extract(SUITE_HPKE, &[], b"psk_id_hash", &[]);
        let info = labeled_extract(SUITE_HPKE, &[], b"info_hash", info);
        let context = [&[0], psk_id.as_slice(), info.as_slice()].concat();
        let secret = labeled_extract(SUITE_HPKE, shared.as_slice(), b"secret", &[]);
        let key = labeled_expand(SUITE_HPKE, &secret, b"key", &context, 32);
        let long = labeled_expand(SUITE_HPKE, &secret, b"base_nonce", &context, 12);
        let mut nonce = [0; 12];
        nonce.copy_from_slice(long.get(..12).ok_or(SealError::Short)?);
        let key = UnboundKey::new(&CHACHA20_POLY1305, key.as_slice());
        Ok(Self { key: LessSafeKey::new(key.map_err(|_| SealError::Sealed)?), nonce })
    }

    /// `ComputeNonce` (section 5.2).
    fn nonce(&self, number: u64) -> Nonce {
        let mut nonce = self.nonce;
        for (byte, number) in nonce.iter_mut().skip(4).zip(number.to_be_bytes()) {
            *byte ^= number;
        }
        Nonce::assume_unique_for_key(nonce)
    }

    /// Seals one text. The caller counts: a number is used once.
    pub(crate) fn seal(&self, number: u64, aad: &[u8], text: &[u8]) -> Result<Vec<u8>, SealError> {
        let mut sealed = text.to_vec();
        self.key
            .seal_in_place_append_tag(self.nonce(number), Aad::from(aad), &mut sealed)
            .map_err(|_| SealError::Sealed)?;
        Ok(sealed)
    }

    /// Opens one text.
    pub(crate) fn open(
        &self,
        number: u64,
        aad: &[u8],
        sealed: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let length = sealed.len().checked_sub(TAG_BYTES).ok_or(SealError::Short)?;
        let mut text = Zeroizing::new(sealed.to_vec());
        self.key
            .open_in_place(self.nonce(number), Aad::from(aad), text.as_mut_slice())
            .map_err(|_| SealError::Sealed)?;
        text.truncate(length);
        Ok(text)
    }
}

/// `LabeledExtract` (section 4).
fn labeled_extract(suite: &[u8], salt: &[u8], label: &[u8], ikm: &[u8]) -> Zeroizing<[u8; 32]> {
    extract(salt, &[b"HPKE-v1", suite, label, ikm])
}

/// `LabeledExpand` (section 4), for `length` up to 32, of which the first bytes are meant.
fn labeled_expand(
    suite: &[u8],
    prk: &[u8; 32],
    label: &[u8],
    info: &[u8],
    length: u8,
) -> Zeroizing<[u8; 32]> {
    expand(prk, &[&[0, length], b"HPKE-v1", suite, label, info])
}

/// `HKDF-Extract` (RFC 5869 section 2.2). ring's own does not give out what it extracts.
fn extract(salt: &[u8], ikm: &[&[u8]]) -> Zeroizing<[u8; 32]> {
    hmac(salt, &ikm.concat())
}

/// The first block of `HKDF-Expand` (RFC 5869 section 2.3), 32 bytes: nothing here needs more.
fn expand(prk: &[u8; 32], info: &[&[u8]]) -> Zeroizing<[u8; 32]> {
    hmac(prk, &[info.concat().as_slice(), &[1]].concat())
}

fn hmac(key: &[u8], text: &[u8]) -> Zeroizing<[u8; 32]> {
    let mut out = Zeroizing::new([0; 32]);
    out.copy_from_slice(sign(&Key::new(HMAC_SHA256, key), text).as_ref());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(hex: &str) -> Vec<u8> {
        let pair = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16);
        hex.as_bytes().chunks(2).map(|digits| pair(digits).unwrap()).collect()
    }

    fn opening(hex: &str) -> OpeningKey {
        OpeningKey(Zeroizing::new(bytes(hex).try_into().unwrap()))
    }

    /// RFC 9180 appendix A.2.1.
    #[test]
    fn the_vectors_of_the_rfc() {
        let own = opening("f4ec9b33b792c372c1d2c2063507b684ef925b8c75a42dbcbf57d63ccd381600");
        let to = opening("8057991eef8f1f1af18f4a9491d16a1ce333f695d4db8e38da75975c4478e0fb");
        let enc: SealingKey =
            "1afa08d3dec047a643885163f1180476fa7ddb54c6a8029ea33f95796bf2ac4a".parse().unwrap();
        let public = "4310ee97d88cc1f088a5576c77ab0cf5c3ac797f3d95139c6c84b5429c59662a";
        assert_eq!((own.public(), to.public().to_string().as_str()), (enc, public));
        let info = b"Ode on a Grecian Urn";
        let sender = Context::sender_with(&own, &to.public(), info).unwrap();
        let receiver = Context::receiver(&enc, &to, info).unwrap();
        let text = b"Beauty is truth, truth beauty";
        for (number, sealed) in [
            (
                0,
                "1c5250d8034ec2b784ba2cfd69dbdb8af406cfe3ff938e131f0def8c8b60b4db21993c62ce81883d\
                 2dd1b51a28",
            ),
            (
                1,
                "6b53c051e4199c518de79594e1c4ab18b96f081549d45ce015be002090bb119e85285337cc95ba5f\
                 59992dc98c",
            ),
        ] {
            let aad = format!("Count-{number}");
            let ours = sender.seal(number, aad.as_bytes(), text).unwrap();
            assert_eq!(ours, bytes(sealed), "{number}");
            assert_eq!(*receiver.open(number, aad.as_bytes(), &ours).unwrap(), text);
        }
    }

    /// RFC 7748 section 5.2.
    #[test]
    fn the_vector_of_x25519() {
        let key = opening("a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4");
        let with: SealingKey =
            "e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c".parse().unwrap();
        let shared = bytes("c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552");
        assert_eq!(key.agree(&with).unwrap().as_slice(), shared);
    }

    #[test]
    fn a_point_of_low_order_is_refused() {
        let key = OpeningKey::generate().unwrap();
        let mut one = [0; 32];
        one[0] = 1;
        for weak in [SealingKey([0; 32]), SealingKey(one)] {
            assert_eq!(Context::sender(&weak, b"").err(), Some(SealError::WeakKey));
            assert_eq!(Context::receiver(&weak, &key, b"").err(), Some(SealError::WeakKey));
        }
    }

    #[test]
    fn a_device_s_key_follows_from_its_seed_and_tells_nothing_of_itself() {
        let owner = SigningKey::from_seed(&[7; 32]).unwrap();
        let key = OpeningKey::of(&owner);
        expect_test::expect![
            "OpeningKey(55c794e9919e270eac6f4e0a3277d618fbf8c87dee7e369f50bc9e6dac29905d)"
        ]
        .assert_eq(&format!("{key:?}"));
        assert_ne!(key.public().0, owner.public().0);
    }
}

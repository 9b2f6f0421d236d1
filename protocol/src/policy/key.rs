//! Public keys that sign images: read from PEM as cosign and openssl write it (RFC 7468, RFC 5280
//! section 4.1.2.7), told to devices as DER, verified by `ring`.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA256_ASN1, ED25519, RSA_PKCS1_2048_8192_SHA256,
    UnparsedPublicKey, VerificationAlgorithm,
};
use serde::{Deserialize, Serialize};

use crate::id::Digest;

/// A text that holds a key at most, in bytes: RSA's largest has 1.5 KB.
const PEM_BYTES_MAX: usize = 4096;
const BEGIN: &str = "-----BEGIN PUBLIC KEY-----";
const END: &str = "-----END PUBLIC KEY-----";

/// A public key, as its SubjectPublicKeyInfo in DER. From the wire it may be anything: what is no
/// key verifies nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ImageKey(#[serde(with = "serde_bytes")] Vec<u8>);

/// Why a text is no key that signatures can be verified by.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageKeyError {
    /// A secret one.
    #[error("is a private key, which must stay where images are signed: give its public half")]
    Private,
    /// A certificate.
    #[error("is a certificate: give a public key, as `cosign generate-key-pair` writes it")]
    Certificate,
    /// Not PEM of a public key.
    #[error("is no public key in PEM (`{BEGIN}` and so on, as in cosign.pub): {0}")]
    Pem(&'static str),
    /// Another algorithm.
    #[error(
        "is a key of a kind that is not known: ECDSA on P-256 or P-384, Ed25519, and RSA of 2048 to \
         8192 bits are"
    )]
    Kind,
}

impl ImageKey {
    /// Reads one key from PEM.
    ///
    /// # Errors
    /// When it is something else, or of a kind that is not known.
    pub fn from_pem(text: &str) -> Result<Self, ImageKeyError> {
        let text = text.trim();
        if text.len() > PEM_BYTES_MAX {
            return Err(ImageKeyError::Pem("it is too long"));
        }
        if text.contains("PRIVATE KEY-----") {
            return Err(ImageKeyError::Private);
        }
        if text.contains("-----BEGIN CERTIFICATE-----") {
            return Err(ImageKeyError::Certificate);
        }
        let body = text.strip_prefix(BEGIN).ok_or(ImageKeyError::Pem("it does not begin so"))?;
        let body = body.strip_suffix(END).ok_or(ImageKeyError::Pem("it does not end so"))?;
        if body.contains("-----") {
            return Err(ImageKeyError::Pem("it holds several: write each as an item of its own"));
        }
        let body: String = body.split_ascii_whitespace().collect();
        let der = STANDARD.decode(body).map_err(|_| ImageKeyError::Pem("it is no base64"))?;
        let key = Self(der);
        match key.parts() {
            Some((kind, bits)) if kind.fits(bits) => Ok(key),
            Some(_) | None => Err(ImageKeyError::Kind),
        }
    }

    /// PEM that [`ImageKey::from_pem`] reads, with a line end after each line.
    pub fn to_pem(&self) -> String {
        let body = STANDARD.encode(&self.0);
        let mut pem = format!("{BEGIN}\n");
        for line in body.as_bytes().chunks(64) {
            pem.extend(line.iter().map(|byte| char::from(*byte)));
            pem.push('\n');
        }
        pem + END + "\n"
    }

    /// Whether it has signed this message: ECDSA in ASN.1 and RSA in PKCS #1 over SHA-256, or
    /// Ed25519, as cosign does.
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        self.parts().is_some_and(|(kind, bits)| {
            UnparsedPublicKey::new(kind.algorithm(), bits).verify(message, signature).is_ok()
        })
    }

    /// What kind of key it is, and its bits as `ring` takes them.
    fn parts(&self) -> Option<(Kind, &[u8])> {
        let (info, []) = element(&self.0, 0x30)? else { return None };
        let (algorithm, rest) = element(info, 0x30)?;
        let (bits, []) = element(rest, 0x03)? else { return None };
        let kind = Kind::ALL.into_iter().find(|kind| kind.identifier() == algorithm)?;
        // No unused bits.
        Some((kind, bits.strip_prefix(&[0])?))
    }
}

/// The beginning of its SHA-256: tells keys apart in messages.
impl fmt::Display for ImageKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&Digest::of(&self.0).short())
    }
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    P256,
    P384,
    Ed25519,
    Rsa,
}

impl Kind {
    const ALL: [Self; 4] = [Self::P256, Self::P384, Self::Ed25519, Self::Rsa];

    /// The content of its AlgorithmIdentifier (RFC 5480, RFC 8410, RFC 3279).
    fn identifier(self) -> &'static [u8] {
        match self {
            Self::P256 => {
                b"\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07"
            }
            Self::P384 => b"\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x05\x2b\x81\x04\x00\x22",
            Self::Ed25519 => b"\x06\x03\x2b\x65\x70",
            Self::Rsa => b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01\x05\x00",
        }
    }

    fn algorithm(self) -> &'static dyn VerificationAlgorithm {
        match self {
            Self::P256 => &ECDSA_P256_SHA256_ASN1,
            Self::P384 => &ECDSA_P384_SHA256_ASN1,
            Self::Ed25519 => &ED25519,
            Self::Rsa => &RSA_PKCS1_2048_8192_SHA256,
        }
    }

    /// Whether bits have the length of such a key; that they are one is seen when they verify.
    fn fits(self, bits: &[u8]) -> bool {
        match self {
            Self::P256 => bits.len() == 65 && bits.first() == Some(&4),
            Self::P384 => bits.len() == 97 && bits.first() == Some(&4),
            Self::Ed25519 => bits.len() == 32,
            // Modulus and exponent, with their heads.
            Self::Rsa => (256..=1056).contains(&bits.len()),
        }
    }
}

/// The content of the element that DER begins with, where it has this tag, and what follows it
/// (X.690 section 8.1; lengths up to 65,535).
fn element(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (found, rest) = der.split_first()?;
    let (first, rest) = rest.split_first()?;
    let (length, rest) = match (first, rest) {
        (0..=0x7f, rest) => (usize::from(*first), rest),
        (0x81, [length, rest @ ..]) => (usize::from(*length), rest),
        (0x82, [high, low, rest @ ..]) => (usize::from(u16::from_be_bytes([*high, *low])), rest),
        _ => return None,
    };
    (*found == tag).then_some(())?;
    rest.split_at_checked(length)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `openssl genpkey`, of each kind, with what `openssl pkeyutl -sign -rawin` (Ed25519) and
    /// `openssl dgst -sha256 -sign` (all others) made of `MESSAGE`.
    const OPENSSL: &str = include_str!("keys.txt");
    const MESSAGE: &[u8] = b"limpet\n";

    fn openssl() -> impl Iterator<Item = (&'static str, ImageKey, Vec<u8>)> {
        OPENSSL.split("== ").skip(1).map(|part| {
            let (name, rest) = part.split_once('\n').unwrap();
            let (pem, signature) = rest.split_once("\n\n").unwrap();
            let signature: String = signature.split_ascii_whitespace().collect();
            (name, ImageKey::from_pem(pem).unwrap(), STANDARD.decode(signature).unwrap())
        })
    }

    #[test]
    fn keys_of_every_kind_verify_what_they_have_signed_and_nothing_else() {
        let all: Vec<_> = openssl().collect();
        assert_eq!(all.len(), Kind::ALL.len());
        for (name, key, signature) in &all {
            assert!(key.verifies(MESSAGE, signature), "{name}");
            assert!(!key.verifies(b"limpet", signature), "{name}");
            assert!(!key.verifies(MESSAGE, &signature[1..]), "{name}");
            for (other, other_key, _) in all.iter().filter(|(other, ..)| other != name) {
                assert!(!other_key.verifies(MESSAGE, signature), "{other} for {name}");
            }
            assert_eq!(ImageKey::from_pem(&key.to_pem()).as_ref(), Ok(key), "{name}");
        }
    }

    #[test]
    fn what_is_no_public_key_is_told_apart() {
        let pem = |label: &str, body: &str| {
            format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n")
        };
        let (_, key, _) = openssl().next().unwrap();
        let twice = key.to_pem() + &key.to_pem();
        for (text, expected) in [
            (pem("ENCRYPTED SIGSTORE PRIVATE KEY", "AAAA"), "is a private key"),
            (pem("PRIVATE KEY", "AAAA"), "is a private key"),
            (pem("CERTIFICATE", "AAAA"), "is a certificate"),
            (pem("PUBLIC KEY", "AAAA"), "of a kind that is not known"),
            (pem("PUBLIC KEY", "?"), "it is no base64"),
            (twice, "it holds several"),
            (String::new(), "it does not begin so"),
            ("x".repeat(5000), "it is too long"),
            // P-521, a kind that ring does not have.
            (pem("PUBLIC KEY", "MBAGByqGSM49AgEGBSuBBAAj"), "of a kind that is not known"),
        ] {
            let told = ImageKey::from_pem(&text).unwrap_err().to_string();
            assert!(told.contains(expected), "{text}: {told}");
        }
    }

    proptest! {
        #[test]
        fn no_changed_byte_is_the_same_key(at in any::<prop::sample::Index>(), flip in 1u8..) {
            for (_, key, signature) in openssl() {
                let mut der = key.0.clone();
                let at = at.index(der.len());
                der[at] ^= flip;
                prop_assert!(!ImageKey(der).verifies(MESSAGE, &signature));
            }
        }

        #[test]
        fn noise_is_no_key(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(ImageKey::from_pem(&String::from_utf8_lossy(&bytes)).is_err());
            prop_assert!(!ImageKey(bytes).verifies(MESSAGE, &[]));
        }
    }
}

//! Signs images in cosign's form, with a key of its own.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use limpet_protocol::Digest;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};
use serde_json::{Value, json};

use crate::Registry;

/// What stands before the bits of a key on P-256 in DER (RFC 5480).
const HEAD: &[u8] = b"\x30\x59\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\
                      \x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07\x03\x42\x00";

/// Whoever signs images.
pub struct Signer(EcdsaKeyPair);

/// What is kept beside a signed image.
pub struct Signed {
    /// The manifest of its signatures.
    pub manifest: Value,
    /// Its blobs.
    pub blobs: Vec<Vec<u8>>,
}

impl Signer {
    /// One with a fresh key.
    #[expect(clippy::new_without_default, reason = "a step of making one, not a value")]
    pub fn new() -> Self {
        let (random, algorithm) = (SystemRandom::new(), &ECDSA_P256_SHA256_ASN1_SIGNING);
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        Self(EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &random).unwrap())
    }

    /// Its public key, as `cosign.pub` has it.
    pub fn public(&self) -> String {
        let der = STANDARD.encode([HEAD, self.0.public_key().as_ref()].concat());
        let (first, second) = der.split_at(64);
        format!("-----BEGIN PUBLIC KEY-----\n{first}\n{second}\n-----END PUBLIC KEY-----\n")
    }

    fn layer(&self, payload: &[u8]) -> Value {
        let signature = self.0.sign(&SystemRandom::new(), payload).unwrap();
        json!({
            "mediaType": "application/vnd.dev.cosign.simplesigning.v1+json",
            "size": payload.len(), "digest": format!("sha256:{}", Digest::of(payload)),
            "annotations": { "dev.cosignproject.cosign/signature": STANDARD.encode(signature) },
        })
    }
}

/// Has all of `signers` sign a manifest, or an index, as that of this name.
pub fn sign(signers: &[&Signer], name: &str, digest: &str) -> Signed {
    let payload = json!({
        "critical": {
            "identity": { "docker-reference": name },
            "image": { "docker-manifest-digest": digest },
            "type": "cosign container image signature",
        },
        "optional": null,
    });
    let (payload, config) = (payload.to_string().into_bytes(), b"{}".to_vec());
    let layers: Vec<Value> = signers.iter().map(|signer| signer.layer(&payload)).collect();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "size": config.len(), "digest": format!("sha256:{}", Digest::of(&config)),
        },
        "layers": layers,
    });
    Signed { manifest, blobs: vec![config, payload] }
}

impl Registry {
    /// Signs what the registry has under a digest, and keeps that beside it, in place of what was
    /// there before.
    pub fn sign(&self, repository: &str, digest: &str, signers: &[&Signer]) {
        let Signed { manifest, blobs } =
            sign(signers, &format!("{}/{repository}", self.host), digest);
        for blob in blobs {
            self.push_blob(repository, &blob);
        }
        self.push_manifest(repository, &format!("{}.sig", digest.replace(':', "-")), &manifest);
    }
}

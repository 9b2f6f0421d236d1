//! Signatures that cosign made are good, and nothing that differs from them in anything is.

use limpet_protocol::ImagePolicy;
use proptest::prelude::*;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};
use serde_json::{Value, json};

use super::*;

/// Made by cosign, and by others in its form; the file says where they are from.
fn vectors() -> Value {
    serde_json::from_str(include_str!("vectors.json")).unwrap()
}

fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", Digest::of(bytes))
}

fn layer(kind: &str, payload: &[u8], annotations: &Value) -> Value {
    json!({
        "mediaType": kind, "digest": sha256(payload), "size": payload.len(),
        "annotations": annotations,
    })
}

fn manifest(layers: &[Value]) -> Vec<u8> {
    let config = json!({ "digest": sha256(b"{}"), "size": 2 });
    json!({ "schemaVersion": 2, "config": config, "layers": layers }).to_string().into_bytes()
}

/// An image, what vouches for it, and who must: all that a verdict depends on.
#[derive(Clone)]
struct Case {
    name: String,
    digests: Vec<String>,
    manifest: Vec<u8>,
    payloads: Vec<Vec<u8>>,
    keys: Vec<ImageKey>,
}

impl Case {
    /// A fixture of containers/image, for an image of this name.
    fn fixture(file: &str, name: &str) -> Self {
        let fixtures = &vectors()["fixtures"];
        let all = fixtures["signatures"].as_array().unwrap();
        let one = all.iter().find(|one| one["file"] == format!("{file}/signature-1")).unwrap();
        let payload = STANDARD.decode(one["payload"].as_str().unwrap()).unwrap();
        let kind = one["mediaType"].as_str().unwrap();
        let key = one["key"].as_str().unwrap_or("cosign.pub");
        Self {
            name: name.to_owned(),
            digests: vec![sha256(fixtures["manifest"].as_str().unwrap().as_bytes())],
            manifest: manifest(&[layer(kind, &payload, &one["annotations"])]),
            payloads: vec![payload],
            keys: vec![ImageKey::from_pem(fixtures["keys"][key].as_str().unwrap()).unwrap()],
        }
    }

    /// What cosign 3 has pushed.
    fn cosign3() -> Self {
        let vector = &vectors()["cosign3"];
        let text = |key: &str| vector[key].as_str().unwrap().to_owned();
        Self {
            name: "localhost:15381/tobby/fixture:1".to_owned(),
            digests: vec![text("digest")],
            manifest: text("manifest").into_bytes(),
            payloads: vec![text("payload").into_bytes()],
            keys: vec![ImageKey::from_pem(&text("key")).unwrap()],
        }
    }

    /// The same image with this signed by a key that is listed.
    fn signed(payload: &[u8]) -> Self {
        let random = SystemRandom::new();
        let algorithm = &ECDSA_P256_SHA256_ASN1_SIGNING;
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &random).unwrap();
        let signature = STANDARD.encode(pair.sign(&random, payload).unwrap());
        let head = b"\x30\x59\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\
                     \x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07\x03\x42\x00";
        let der = STANDARD.encode([&head[..], pair.public_key().as_ref()].concat());
        let pem = format!("-----BEGIN PUBLIC KEY-----\n{der}\n-----END PUBLIC KEY-----");
        Self {
            manifest: manifest(&[layer(MEDIA_TYPE, payload, &json!({ ANNOTATION: signature }))]),
            payloads: vec![payload.to_vec()],
            keys: vec![ImageKey::from_pem(&pem).unwrap()],
            ..Self::cosign3()
        }
    }

    fn verdict(&self) -> Result<(), String> {
        let policy = ImagePolicy { keys: self.keys.clone(), ..ImagePolicy::default() };
        let policies = ImagePolicies { fleet: Some(policy), deployment: None };
        let digests: Vec<&str> = self.digests.iter().map(String::as_str).collect();
        let listed = listed(&self.manifest)?;
        let seen = listed.into_iter().zip(self.payloads.iter().cloned()).collect();
        let name = self.name.parse().unwrap();
        Subject { name: &name, digests: &digests }.satisfies(&policies, &seen)
    }

    fn refused(&self, expected: &str) {
        let why = self.verdict().unwrap_err();
        assert!(why.contains(expected), "{expected}: {why}");
    }

    /// Changes the manifest's only layer.
    fn with_layer(mut self, change: impl FnOnce(&mut Value)) -> Self {
        let mut parsed: Value = serde_json::from_slice(&self.manifest).unwrap();
        change(&mut parsed["layers"][0]);
        self.manifest = parsed.to_string().into_bytes();
        self
    }
}

#[test]
fn what_cosign_has_signed_is_good() {
    for (file, name) in [
        ("dir-img-cosign-valid", "192.168.64.2:5000/cosign-signed-single-sample:any"),
        ("dir-img-cosign-valid-with-tag", "192.168.64.2:5000/skopeo-signed:tag"),
    ] {
        assert_eq!(Case::fixture(file, name).verdict(), Ok(()), "{file}");
    }
    let rekor = "192.168.64.2:5000/cosign-signed/key-1";
    let mut rekor = Case::fixture("dir-img-cosign-key-rekor-valid", rekor);
    rekor.digests = vec![subject(&rekor.payloads[0]).unwrap()];
    assert_eq!(rekor.verdict(), Ok(()), "with what a transparency log says beside it");
    assert_eq!(Case::cosign3().verdict(), Ok(()));
    let digest = vectors()["cosign3"]["digest"].as_str().unwrap().to_owned();
    assert_eq!(tag(&digest), format!("{}.sig", digest.replace(':', "-")));
}

#[test]
fn every_way_to_be_wrong_is_told() {
    let good = Case::cosign3();
    let other = Case::fixture("dir-img-cosign-valid", "localhost:15381/tobby/fixture");
    Case { keys: other.keys.clone(), ..good.clone() }.refused("by another key");
    Case { digests: other.digests.clone(), ..good.clone() }.refused("a signature is for");
    for name in ["localhost:15381/tobby/other", "localhost/tobby/fixture", "tobby/fixture"] {
        Case { name: name.to_owned(), ..good.clone() }.refused("is for the name");
    }
    let mut tampered = good.clone();
    tampered.payloads[0][100] ^= 1;
    tampered.refused("another digest");
    // A manifest that names what was tampered with: the signature is not for that.
    let digest = sha256(&tampered.payloads[0]);
    tampered.with_layer(|layer| layer["digest"] = json!(digest)).refused("for other bytes");
    let changed = |change: fn(&mut Value)| good.clone().with_layer(change);
    changed(|layer| layer["mediaType"] = json!("text/plain")).refused("it has none");
    changed(|layer| layer["annotations"][ANNOTATION] = json!("not base64!")).refused("no base64");
    changed(|layer| layer["annotations"][ANNOTATION] = json!("AAAA")).refused("by another key");
    changed(|layer| drop(layer.as_object_mut().unwrap().remove("annotations")))
        .refused("by another key");
    changed(|layer| layer["digest"] = json!("sha256:../x")).refused("no SHA-256 digest");
    changed(|layer| layer["size"] = json!(1 << 20)).refused("at most 16 KiB");
    let manifest = good.manifest[..good.manifest.len() / 2].to_vec();
    Case { manifest, ..good.clone() }.refused("EOF");
    let manifest = [good.manifest.clone(), vec![b' '; MANIFEST_BYTES_MAX]].concat();
    Case { manifest, ..good.clone() }.refused("at most 256 KiB");
    Case { payloads: vec![], ..good.clone() }.refused("it has none");
    Case::fixture("dir-img-cosign-other-attachment", "localhost:15381/tobby/fixture")
        .refused("it has none");
    let stranger = "192.168.64.2:5000/cosign-signed-single-sample";
    let stranger = Case::fixture("dir-img-cosign-valid", stranger);
    let unknown = &vectors()["fixtures"]["signatures"][3];
    assert_eq!(unknown["file"], "unknown-cosign-key.signature");
    let signature = unknown["annotations"][ANNOTATION].clone();
    stranger
        .with_layer(|layer| layer["annotations"][ANNOTATION] = signature)
        .refused("by another key");
}

/// What cosign would sign, for [`Case::cosign3`]'s image.
fn payload(reference: &str, digest: &str, kind: &str) -> Value {
    json!({
        "critical": {
            "identity": { "docker-reference": reference },
            "image": { "docker-manifest-digest": digest },
            "type": kind,
        },
        "optional": null,
    })
}

#[test]
fn what_a_listed_key_has_signed_must_speak_of_this_image() {
    let digest = Case::cosign3().digests.remove(0);
    let verdict = |payload: &Value| Case::signed(payload.to_string().as_bytes()).verdict();
    let good = payload("localhost:15381/tobby/fixture", &digest, TYPE);
    assert_eq!(verdict(&good), Ok(()));
    for (payload, expected) in [
        (
            payload("localhost:15381/tobby/fixture", &digest, "atomic container signature"),
            "of type",
        ),
        (payload("localhost:15381/tobby/fixture", "sha256:00", TYPE), "is for \"sha256:00\""),
        (payload("", &digest, TYPE), "is for the name"),
        (payload("localhost:15381/tobby/fixture:2", &digest, TYPE), "is for the name"),
        (json!({ "critical": {} }), "nothing that cosign signs"),
        (json!("limpet"), "nothing that cosign signs"),
    ] {
        let why = verdict(&payload).unwrap_err();
        assert!(why.contains(expected), "{payload}: {why}");
    }
    let mut unknown = good.clone();
    unknown["critical"]["until"] = json!(1);
    assert!(verdict(&unknown).is_err(), "a critical field that nobody here understands");
    // Twice the same field: whoever reads the other one sees another image.
    let twice = good.to_string().replacen("\"type\"", "\"type\":\"x\",\"type\"", 1);
    assert!(Case::signed(twice.as_bytes()).verdict().is_err());
    // A tag that was signed counts where the image is named by tag.
    let tagged = payload("localhost:15381/tobby/fixture:1", &digest, TYPE).to_string();
    let tagged = Case::signed(tagged.as_bytes());
    assert_eq!(tagged.verdict(), Ok(()));
    let by_digest = format!("localhost:15381/tobby/fixture:2@{digest}");
    assert_eq!(Case { name: by_digest, ..tagged.clone() }.verdict(), Ok(()));
    // One good signature among others will do, and lines in it do no harm.
    let broken = tagged.clone().with_layer(|layer| {
        let text = layer["annotations"][ANNOTATION].as_str().unwrap().to_owned();
        let (a, b) = text.split_at(60);
        layer["annotations"][ANNOTATION] = json!(format!("{a}\n{b}\n"));
    });
    assert_eq!(broken.verdict(), Ok(()));
    let mut both: Value = serde_json::from_slice(&Case::cosign3().manifest).unwrap();
    let second: Value = serde_json::from_slice(&tagged.manifest).unwrap();
    both["layers"].as_array_mut().unwrap().push(second["layers"][0].clone());
    let payloads = [Case::cosign3().payloads, tagged.payloads.clone()].concat();
    let manifest = both.to_string().into_bytes();
    assert_eq!(Case { manifest, payloads, ..tagged }.verdict(), Ok(()));
}

#[test]
fn each_policy_wants_a_signature_of_its_own() {
    let case = Case::cosign3();
    let policy = |case: &Case| ImagePolicy { keys: case.keys.clone(), ..ImagePolicy::default() };
    let other = Case::fixture("dir-img-cosign-valid", &case.name);
    let name = case.name.parse().unwrap();
    let seen: Seen =
        listed(&case.manifest).unwrap().into_iter().zip(case.payloads.clone()).collect();
    let told = |fleet: Option<ImagePolicy>, deployment: Option<ImagePolicy>| {
        let subject = Subject { name: &name, digests: &[&case.digests[0]] };
        subject.satisfies(&ImagePolicies { fleet, deployment }, &seen)
    };
    assert_eq!(told(Some(policy(&case)), Some(policy(&case))), Ok(()));
    assert_eq!(told(Some(ImagePolicy::default()), Some(policy(&case))), Ok(()));
    let why = told(Some(policy(&case)), Some(policy(&other))).unwrap_err();
    assert!(why.starts_with("its deployment's image_policy (keys)"), "{why}");
    let why = told(Some(policy(&other)), Some(policy(&case))).unwrap_err();
    assert!(why.starts_with("the fleet's policy (keys)"), "{why}");
}

proptest! {
    #[test]
    fn no_changed_byte_of_what_was_signed_is_good(
        at in any::<prop::sample::Index>(),
        flip in 1u8..,
        renamed in any::<bool>(),
    ) {
        let mut case = Case::cosign3();
        let at = at.index(case.payloads[0].len());
        case.payloads[0][at] ^= flip;
        if renamed {
            let digest = sha256(&case.payloads[0]);
            case = case.with_layer(|layer| layer["digest"] = json!(digest));
        }
        prop_assert!(case.verdict().is_err());
    }

    #[test]
    fn no_changed_byte_of_a_manifest_makes_another_key_good(
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut case = Case::cosign3();
        case.keys = Case::fixture("dir-img-cosign-valid", &case.name).keys;
        let at = at.index(case.manifest.len());
        case.manifest[at] = byte;
        prop_assert!(case.verdict().is_err());
    }

    #[test]
    fn noise_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        fuzz::signatures(&bytes);
        let case = Case { manifest: bytes, ..Case::cosign3() };
        prop_assert!(case.verdict().is_err());
    }
}

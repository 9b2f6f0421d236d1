//! What shows that an image is what policies ask for: its signatures, brought from where the image
//! comes from, kept beside it, and looked at again each time, with a network or without.

use limpet_protocol::{ImageName, ImagePolicies};

use super::manifest::Manifest;
use super::registry::Source;
use super::signature::{self, PAYLOAD_BYTES_MAX, Seen, Subject};
use super::{Image, ImageError, Images, Named, read_named, write_named};

/// A document that is kept, under its digest.
pub(super) type Document = (String, Vec<u8>);

/// What an image's name stood for, and what vouches for that: all of it is kept.
#[derive(Debug, Default)]
pub(super) struct Proof {
    /// The index that lists the manifest, where the name stood for one.
    pub(super) index: Option<Document>,
    /// Manifests of signatures.
    pub(super) manifests: Vec<Document>,
    /// What was signed.
    pub(super) payloads: Vec<Document>,
}

impl Proof {
    pub(super) fn documents(&self) -> impl Iterator<Item = &Document> {
        self.index.iter().chain(&self.payloads).chain(&self.manifests)
    }

    /// Takes a manifest of signatures in, with what was signed, as far as `payload` has it.
    pub(super) fn add(
        &mut self,
        manifest: Document,
        mut payload: impl FnMut(&str) -> Result<Vec<u8>, ImageError>,
    ) -> Result<(), ImageError> {
        let Ok(listed) = signature::listed(&manifest.1) else {
            return Ok(());
        };
        for signature in listed {
            if self.payloads.iter().all(|(digest, _)| *digest != signature.payload) {
                let bytes = payload(&signature.payload)?;
                self.payloads.push((signature.payload, bytes));
            }
        }
        self.manifests.push(manifest);
        Ok(())
    }

    fn seen(&self) -> Seen {
        let listed = self.manifests.iter().filter_map(|(_, bytes)| signature::listed(bytes).ok());
        let seen = listed.flatten().filter_map(|listed| {
            let (_, payload) =
                self.payloads.iter().find(|(digest, _)| *digest == listed.payload)?;
            Some((listed, payload.clone()))
        });
        seen.collect()
    }
}

impl Images {
    /// The image if it is complete here and is what policies ask for; asks nobody. None where it, or
    /// a signature of it, may be had elsewhere.
    ///
    /// # Errors
    /// When policies refuse its name.
    pub fn ready(
        &self,
        name: &ImageName,
        policies: &ImagePolicies,
    ) -> Result<Option<Image>, ImageError> {
        admit(name, policies)?;
        // Read once: what is vouched for is what is used.
        let Some(named) = self.stands_for(name) else { return Ok(None) };
        let vouched_for = || self.vouched_for(name, &named, policies).is_ok();
        let image = self.complete_image(&named);
        Ok(image.filter(|_| !asks_for_keys(policies) || vouched_for()))
    }

    /// Whether what is kept beside an image vouches for it.
    fn vouched_for(
        &self,
        name: &ImageName,
        named: &Named,
        policies: &ImagePolicies,
    ) -> Result<(), String> {
        let proof = self.kept_proof(named);
        let digests = digests(&named.manifest, proof.index.as_ref());
        Subject { name, digests: &digests }.satisfies(policies, &proof.seen())
    }

    /// What is kept beside an image, as far as it is still what it was.
    pub(super) fn kept_proof(&self, named: &Named) -> Proof {
        let kept = |digest: &String| Some((digest.clone(), self.blobs.document(digest)?));
        let index = named.index.as_ref().and_then(kept);
        let index = index.filter(|(_, bytes)| {
            Manifest::parse(bytes).is_ok_and(|index| index.lists(&named.manifest))
        });
        let manifests: Vec<_> = named.signatures.iter().filter_map(kept).collect();
        let listed = manifests.iter().filter_map(|(_, bytes)| signature::listed(bytes).ok());
        let payloads = listed.flatten().filter_map(|listed| kept(&listed.payload)).collect();
        Proof { index, manifests, payloads }
    }

    /// Brings signatures for an image that is here and lacks nothing else.
    pub(super) fn vouch(
        &self,
        source: Source<'_>,
        policies: &ImagePolicies,
    ) -> Result<(), ImageError> {
        let _beside = self.begin();
        let path = self.named(source.name);
        let Some(named) = read_named(&path) else {
            return Err(refusal(source.name, "it is not here".to_owned()));
        };
        let index = self.kept_proof(&named).index;
        let proof = prove(source, &named.manifest, index, policies)?;
        proof.documents().try_for_each(|(digest, bytes)| self.blobs.keep(digest, bytes))?;
        let signatures = proof.manifests.into_iter().map(|(digest, _)| digest).collect();
        write_named(&path, &Named { signatures, ..named })
    }
}

/// Refuses a name that policies do not permit.
pub(super) fn admit(name: &ImageName, policies: &ImagePolicies) -> Result<(), ImageError> {
    for (whose, policy) in policies.each() {
        if let Some(broken) = policy.violations(name).first() {
            let reason = format!("{whose} ({}): {broken}", broken.rule());
            return Err(refusal(name, reason));
        }
    }
    Ok(())
}

pub(super) fn asks_for_keys(policies: &ImagePolicies) -> bool {
    policies.each().any(|(_, policy)| !policy.keys.is_empty())
}

/// Fetches what vouches for a manifest, and for the index that lists it, from where they are; nothing
/// where no key is asked for.
///
/// # Errors
/// When there is nothing that satisfies the policies, or the registry cannot be asked.
pub(super) fn prove(
    source: Source<'_>,
    manifest: &str,
    index: Option<Document>,
    policies: &ImagePolicies,
) -> Result<Proof, ImageError> {
    let mut proof = Proof { index, ..Proof::default() };
    if !asks_for_keys(policies) {
        return Ok(proof);
    }
    let index = proof.index.as_ref().map(|(digest, _)| digest.clone());
    let mut why = String::new();
    for digest in index.iter().map(String::as_str).chain([manifest]) {
        match fetch(source, digest, &mut proof) {
            Ok(()) => {}
            Err(ImageError::Registry { reason, .. }) => {
                why = format!("; {} cannot be had: {reason}", signature::tag(digest));
            }
            Err(error) => return Err(error),
        }
        let all = index.iter().map(String::as_str).chain([manifest]).collect::<Vec<_>>();
        match (Subject { name: source.name, digests: &all }).satisfies(policies, &proof.seen()) {
            Ok(()) => return Ok(proof),
            Err(reason) if digest == manifest => {
                let hint = if proof.manifests.is_empty() { HINT } else { "" };
                return Err(refusal(source.name, format!("{reason}{why}{hint}")));
            }
            Err(_) => {}
        }
    }
    Ok(proof)
}

/// cosign 3 keeps signatures in another form unless it is told otherwise.
const HINT: &str = " (`cosign sign --key KEY IMAGE`; of cosign 3 with --new-bundle-format=false \
                    --use-signing-config=false)";

/// Fetches the signatures of one digest, and what was signed; there may be none.
fn fetch(source: Source<'_>, digest: &str, proof: &mut Proof) -> Result<(), ImageError> {
    let Some(bytes) = source.manifest_if_there(&signature::tag(digest))? else {
        return Ok(());
    };
    let fault = |reason| ImageError::Registry { endpoint: source.endpoint.to_string(), reason };
    signature::listed(&bytes).map_err(fault)?;
    let manifest = (format!("sha256:{}", limpet_protocol::Digest::of(&bytes)), bytes);
    proof.add(manifest, |digest| source.document("what was signed,", digest, PAYLOAD_BYTES_MAX))
}

/// The digests that a signature may be for.
fn digests<'a>(manifest: &'a str, index: Option<&'a Document>) -> Vec<&'a str> {
    index.map(|(digest, _)| digest.as_str()).into_iter().chain([manifest]).collect()
}

fn refusal(name: &ImageName, reason: String) -> ImageError {
    ImageError::Policy { name: name.clone(), reason }
}

//! An image from a registry.

use std::fs::File;

use limpet_protocol::{Digest, ImagePolicies};

use super::manifest::Manifest;
use super::proof::{admit, prove};
use super::registry::Source;
use super::room::Wanted;
use super::{DOCUMENT_BYTES_MAX, Image, ImageError, ImageName, Images, Keep, Progress, io};

impl Images {
    /// Makes the image complete here, from a mirror or its own registry, and nothing of it before
    /// it is known to be what policies ask for. Runs beside other pulls, [`Images::preload`] and
    /// [`Images::collect`].
    ///
    /// # Errors
    /// When nobody has it, when what came is not what was asked for, or when there is no room. What
    /// was received stays and is not asked for again, unless there is no room for it.
    pub fn pull(
        &self,
        name: &ImageName,
        policies: &ImagePolicies,
        progress: &dyn Fn(Progress),
    ) -> Result<Image, ImageError> {
        admit(name, policies)?;
        let mut reasons = Vec::new();
        if self.local(name).is_some() {
            reasons.push("it is here, without a signature that its policies ask for".to_owned());
        }
        let agent = self.registry.agent()?;
        for endpoint in self.registry.endpoints(name) {
            if let Err(reason) = self.registry.ask(&endpoint) {
                reasons.push(reason);
                continue;
            }
            let source =
                Source { registry: &self.registry, agent: &agent, endpoint: &endpoint, name };
            let pulled = self.pull_from(source, policies, progress);
            self.note_room(&pulled);
            match pulled {
                Ok(()) => match self.local(name) {
                    Some(image) => return Ok(image),
                    None => reasons.push("the store lost it; is the disk failing?".to_owned()),
                },
                Err(error) if error.is_for_want_of_room() => return Err(error),
                Err(ImageError::Unreachable { reason, .. }) => {
                    reasons.push(self.registry.failed(&endpoint, reason, None));
                }
                Err(ImageError::Busy { reason, wait, .. }) => {
                    reasons.push(self.registry.failed(&endpoint, reason, wait));
                }
                Err(ImageError::Registry { endpoint: base, reason }) => {
                    self.registry.answered(&endpoint);
                    reasons.push(format!("{base}: {reason}"));
                }
                // Signatures need not be where a mirror has the image.
                Err(ImageError::Policy { reason, .. }) => {
                    self.registry.answered(&endpoint);
                    reasons.push(format!("{endpoint}: {reason}"));
                }
                // What one has spoilt another may have whole.
                Err(
                    error @ (ImageError::Digest { .. }
                    | ImageError::Document { .. }
                    | ImageError::Layer { .. }),
                ) => {
                    self.registry.answered(&endpoint);
                    reasons.push(format!("{endpoint}: {error}"));
                }
                Err(
                    error @ (ImageError::Name(_)
                    | ImageError::Io { .. }
                    | ImageError::Unavailable { .. }
                    | ImageError::Space { .. }
                    | ImageError::Archive { .. }),
                ) => return Err(error),
            }
        }
        Err(ImageError::Unavailable { name: name.clone(), reasons })
    }

    fn pull_from(
        &self,
        source: Source<'_>,
        policies: &ImagePolicies,
        progress: &dyn Fn(Progress),
    ) -> Result<(), ImageError> {
        if self.local(source.name).is_some() {
            match self.vouch(source, policies) {
                // What the name stands for by now may be what policies ask for.
                Err(ImageError::Policy { .. }) => {}
                vouched => return vouched,
            }
        }
        let document = |reason: String| ImageError::Document { name: source.name.clone(), reason };
        let beside = self.begin();
        let (mut digest, mut bytes) = self.fetch_manifest(source, source.name.reference())?;
        source.registry.answered(source.endpoint);
        let mut manifest = Manifest::parse(&bytes).map_err(document)?;
        let mut index = None;
        if manifest.config.is_none() {
            let chosen = manifest.choose(&self.platform).map_err(document)?.digest.clone();
            index = Some((digest, bytes));
            (digest, bytes) = self.fetch_manifest(source, &chosen)?;
            manifest = Manifest::parse(&bytes).map_err(document)?;
        }
        let proof = prove(source, &digest, index, policies)?;
        let described = manifest.config.as_ref();
        let described = described.ok_or_else(|| document("its manifest names no config".into()))?;
        let config = source.document("config", &described.digest, DOCUMENT_BYTES_MAX)?;
        let diff_ids = self.diff_ids(&manifest, &config).map_err(document)?;
        let pairs: Vec<_> = manifest.layers.iter().zip(&diff_ids).collect();
        let missing =
            self.missing(&pairs, |layer| layer.size.saturating_sub(self.blobs.received(layer)));
        if let Err(error) = self.fetch_layers(source, &missing, progress) {
            drop(beside);
            if error.is_for_want_of_room() {
                self.give_back(&missing)?;
            }
            return Err(error);
        }
        let parts = [(&digest, &bytes), (&described.digest, &config)];
        self.complete(source.name, (parts, &proof), Keep::WhileNeeded)
    }

    fn fetch_manifest(
        &self,
        source: Source<'_>,
        reference: &str,
    ) -> Result<(String, Vec<u8>), ImageError> {
        let bytes = source.manifest(reference)?;
        let actual = format!("sha256:{}", Digest::of(&bytes));
        if reference.contains(':') && actual != reference {
            let (name, expected) = (source.name.clone(), reference.to_owned());
            return Err(ImageError::Digest { name, what: "manifest", expected, actual });
        }
        Ok((actual, bytes))
    }

    fn fetch_layers(
        &self,
        source: Source<'_>,
        missing: &[Wanted<'_>],
        progress: &dyn Fn(Progress),
    ) -> Result<(), ImageError> {
        self.check_room(source.name, missing)?;
        let total = missing.iter().map(|wanted| wanted.layer.size).fold(0, u64::saturating_add);
        let mut before: u64 = 0;
        for Wanted { layer, diff_id, .. } in missing {
            let tell = |received: u64| {
                progress(Progress { received: before.saturating_add(received), total });
            };
            let had = self.layers.once(diff_id, || {
                let path = self.blobs.download(source, layer, &tell)?;
                let mut file = File::open(&path).map_err(io("read", &path))?;
                self.layers.unpack(source.name, layer, diff_id, &mut file)?;
                std::fs::remove_file(&path).map_err(io("remove", &path))
            });
            if had.as_ref().is_err_and(ImageError::is_for_want_of_room) {
                self.blobs.drop_part(layer)?;
            }
            had?;
            before = before.saturating_add(layer.size);
        }
        Ok(())
    }
}

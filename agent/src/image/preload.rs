//! Images from files, for places with no registry: archives and folders of OCI's layout, and what
//! `docker save` writes. A stranger made them: they are verified and bounded as what a registry
//! sends is, and layers are unpacked straight from where they are.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use super::archive::Files;
use super::manifest::{Manifest, Platform};
use super::proof::Proof;
use super::room::Wanted;
use super::{
    ImageError, ImageName, Images, Keep, Named, Progress, entries, read_named, write_named,
};

mod docker;
#[cfg(any(test, fuzzing))]
pub(super) mod fuzz;
mod oci;
mod passing;

use passing::Passing;

/// Images of one archive at most.
const IMAGES_MAX: usize = 64;

/// A name that stands for an image that collection never removes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Preloaded {
    /// The image's full name.
    pub name: String,
    /// Digest of its manifest.
    pub digest: String,
}

impl fmt::Display for Preloaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.digest)
    }
}

/// The preloaded images of the store in `folder`, by name. Needs no open store: it may be another
/// process's.
///
/// # Errors
/// When the folder cannot be read.
pub fn pinned(folder: &Path) -> Result<Vec<Preloaded>, ImageError> {
    let names = folder.join("names");
    if !names.exists() {
        return Ok(Vec::new());
    }
    let named = entries(&names)?.into_iter().filter_map(|path| read_named(&path));
    let pinned = named.filter(|named| named.keep == Keep::Pinned);
    let mut pinned: Vec<Preloaded> =
        pinned.map(|Named { name, manifest, .. }| Preloaded { name, digest: manifest }).collect();
    pinned.sort();
    Ok(pinned)
}

/// An image that a file offers: its documents are verified, its layers are not.
struct Offered {
    names: Vec<ImageName>,
    /// What a name may give as its digest.
    answers_to: Vec<String>,
    digest: String,
    bytes: Vec<u8>,
    manifest: Manifest,
    config: Vec<u8>,
    /// The files of the layers, by their digest.
    files: BTreeMap<String, String>,
    /// What vouches for it; nobody has looked into that.
    proof: Proof,
}

/// The file that a layer is in, and the image that it belongs to, by its digest.
type Places<'a> = BTreeMap<&'a str, (&'a str, &'a ImageName)>;

impl Images {
    /// The same store, for images of another platform: that of the device whose disk this is.
    #[must_use]
    pub fn made_for(mut self, platform: Platform) -> Self {
        self.platform = platform;
        self
    }

    /// Makes all images of an archive or a folder complete here, and pins them: collection never
    /// removes them. `name` overrules the one name that a single image has, or supplies it. Runs
    /// beside pulls and [`Images::collect`].
    ///
    /// # Errors
    /// When something in it is missing, is not what its digest says, or must not be unpacked; when it
    /// is for another platform, when it has no name, or when there is no room. Nothing of it stays.
    pub fn preload(
        &self,
        path: &Path,
        name: Option<&ImageName>,
        progress: &dyn Fn(Progress),
    ) -> Result<Vec<Preloaded>, ImageError> {
        let files = Files::open(path)?;
        let offered = if files.has("oci-layout") && files.has("index.json") {
            oci::offered(&files, &self.platform)?
        } else if files.has("manifest.json") {
            docker::offered(&files)?
        } else {
            let reason = "it has neither oci-layout and index.json, as OCI layouts have, nor \
                          manifest.json, as `docker save` writes it";
            return Err(files.fault_of_all(reason.to_owned()));
        };
        let offered = named(&files, offered, name)?;
        self.take_in(&files, &offered, progress).map_err(|error| located(&files, error))
    }

    /// Lets a preloaded image go when room is short and nothing needs it. False where the name is
    /// not pinned.
    ///
    /// # Errors
    /// When it cannot be written down.
    pub fn unpin(&self, name: &ImageName) -> Result<bool, ImageError> {
        let path = self.named(name);
        match read_named(&path) {
            Some(named) if named.keep == Keep::Pinned => {
                write_named(&path, &Named { keep: Keep::WhileNeeded, ..named }).map(|()| true)
            }
            Some(_) | None => Ok(false),
        }
    }

    fn take_in(
        &self,
        files: &Files,
        offered: &[Offered],
        progress: &dyn Fn(Progress),
    ) -> Result<Vec<Preloaded>, ImageError> {
        let beside = self.begin();
        let mut diff_ids = Vec::new();
        for image in offered {
            let ids = self.diff_ids(&image.manifest, &image.config);
            diff_ids.push(ids.map_err(|reason| {
                files.fault_of_all(format!("image {}: {reason}", image.called()))
            })?);
        }
        let (missing, places) = self.missing_of(offered, &diff_ids);
        let taken = self.take_layers(files, &missing, &places, progress);
        if let Err(error) = taken.and_then(|()| self.name_all(offered)) {
            drop(beside);
            self.give_back(&missing)?;
            return Err(error);
        }
        let preloaded = offered.iter().flat_map(|image| {
            let digest = &image.digest;
            image.names.iter().map(|n| Preloaded { name: n.to_string(), digest: digest.clone() })
        });
        Ok(preloaded.collect())
    }

    /// The layers of all images that are not here, each once, and where they are.
    fn missing_of<'a>(
        &self,
        offered: &'a [Offered],
        diff_ids: &'a [Vec<String>],
    ) -> (Vec<Wanted<'a>>, Places<'a>) {
        let (mut missing, mut places) = (BTreeMap::new(), Places::new());
        for (image, diff_ids) in offered.iter().zip(diff_ids) {
            let pairs: Vec<_> = image.manifest.layers.iter().zip(diff_ids).collect();
            for wanted in self.missing(&pairs, |_| 0) {
                missing.entry(wanted.diff_id).or_insert(wanted);
            }
            let files = image.files.iter();
            places.extend(image.names.first().into_iter().flat_map(|name| {
                files.clone().map(move |(digest, file)| (digest.as_str(), (file.as_str(), name)))
            }));
        }
        (missing.into_values().collect(), places)
    }

    fn take_layers(
        &self,
        files: &Files,
        missing: &[Wanted<'_>],
        places: &Places<'_>,
        progress: &dyn Fn(Progress),
    ) -> Result<(), ImageError> {
        if let Some((_, name)) = places.values().next() {
            self.check_room(name, missing)?;
        }
        let total = missing.iter().map(|wanted| wanted.layer.size).fold(0, u64::saturating_add);
        let mut before: u64 = 0;
        for Wanted { layer, diff_id, .. } in missing {
            let tell = |received: u64| {
                progress(Progress { received: before.saturating_add(received), total });
            };
            let place = places.get(layer.digest.as_str());
            let (file, name) = place.ok_or_else(|| files.fault(&layer.digest, "is not there"))?;
            self.layers.once(diff_id, || {
                let mut packed = Passing::new(files, file, layer, &tell)?;
                if layer.digest == **diff_id {
                    packed.is_verified_unpacked();
                }
                self.layers.unpack(name, layer, diff_id, &mut packed)
            })?;
            before = before.saturating_add(layer.size);
        }
        Ok(())
    }

    fn name_all(&self, offered: &[Offered]) -> Result<(), ImageError> {
        for image in offered {
            let Some(config) = &image.manifest.config else { continue };
            let parts = [(&image.digest, &image.bytes), (&config.digest, &image.config)];
            image
                .names
                .iter()
                .try_for_each(|name| self.complete(name, (parts, &image.proof), Keep::Pinned))?;
        }
        Ok(())
    }
}

impl Offered {
    /// Its first name, or what else it is known by.
    fn called(&self) -> String {
        self.names.first().map_or_else(|| self.digest.clone(), ToString::to_string)
    }
}

/// Gives every image the name that it is kept under.
fn named(
    files: &Files,
    mut offered: Vec<Offered>,
    name: Option<&ImageName>,
) -> Result<Vec<Offered>, ImageError> {
    match (offered.as_mut_slice(), name) {
        ([], _) => return Err(files.fault_of_all("it holds no image".to_owned())),
        ([one], Some(name)) => one.names = vec![name.clone()],
        (_, Some(_)) => {
            let all = offered.iter().map(Offered::called).collect::<Vec<_>>().join(", ");
            let count = offered.len();
            let reason = format!("it holds {count} images, and `--name` names one: {all}");
            return Err(files.fault_of_all(reason));
        }
        (_, None) => {}
    }
    for image in &offered {
        if image.names.is_empty() {
            let reason =
                format!("image {} has no full name in it: say `--name NAME`", image.digest);
            return Err(files.fault_of_all(reason));
        }
        let lies = |name: &&ImageName| {
            let asked = name.reference();
            asked.contains(':') && !image.answers_to.iter().any(|digest| digest == asked)
        };
        if let Some(name) = image.names.iter().find(lies) {
            let have = image.answers_to.join(" and ");
            let reason = format!("image {name} is wanted, what is here has {have}");
            return Err(files.fault_of_all(reason));
        }
    }
    Ok(offered)
}

/// The same error, with the name of the archive where it has none.
fn located(files: &Files, error: ImageError) -> ImageError {
    match error {
        ImageError::Digest { .. } | ImageError::Document { .. } | ImageError::Layer { .. } => {
            files.fault_of_all(error.to_string())
        }
        ImageError::Name(_)
        | ImageError::Io { .. }
        | ImageError::Unavailable { .. }
        | ImageError::Registry { .. }
        | ImageError::Unreachable { .. }
        | ImageError::Busy { .. }
        | ImageError::Space { .. }
        | ImageError::Policy { .. }
        | ImageError::Archive { .. } => error,
    }
}

#[cfg(test)]
mod tests;

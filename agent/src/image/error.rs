//! Why an image cannot be had, for the person who reads it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::unpack::UnpackError;
use super::{ImageName, NameError};

/// Why an image cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Not a name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A file or folder of the store.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Nobody has it.
    #[error("image {name}: {}", reasons.join("; "))]
    Unavailable {
        /// The image.
        name: ImageName,
        /// What each registry answered.
        reasons: Vec<String>,
    },
    /// A registry did not answer as it should.
    #[error("{endpoint}: {reason}")]
    Registry {
        /// The registry.
        endpoint: String,
        /// What it did.
        reason: String,
    },
    /// A registry gives no answer.
    #[error("{endpoint}: {reason}")]
    Unreachable {
        /// The registry.
        endpoint: String,
        /// What happened.
        reason: String,
    },
    /// A registry answers that it cannot serve, or not so often.
    #[error("{endpoint}: {reason}")]
    Busy {
        /// The registry.
        endpoint: String,
        /// What it said.
        reason: String,
        /// How long it wants to be left alone.
        wait: Option<Duration>,
    },
    /// The bytes are not those that were asked for.
    #[error("{what} {expected} has bytes of {actual}: where it came from is faulty, or the way")]
    Digest {
        /// The image.
        name: ImageName,
        /// Manifest, config, layer, or what was signed.
        what: &'static str,
        /// What was asked for.
        expected: String,
        /// What came.
        actual: String,
    },
    /// A document that says something impossible.
    #[error("{reason}")]
    Document {
        /// The image.
        name: ImageName,
        /// What is wrong.
        reason: String,
    },
    /// A layer that must not be unpacked.
    #[error("layer {layer}: {source}")]
    Layer {
        /// The image.
        name: ImageName,
        /// Its digest.
        layer: String,
        /// What is wrong with it.
        source: UnpackError,
    },
    /// Not enough room.
    #[error(
        "image {name} needs {needs} bytes, {path} has {free} free beside its reserve: remove \
         something, or use a larger disk"
    )]
    Space {
        /// The image.
        name: ImageName,
        /// The store.
        path: PathBuf,
        /// Bytes that it takes, as far as is known.
        needs: u64,
        /// Bytes that images may still take.
        free: u64,
    },
    /// A policy does not permit it.
    #[error("image {name}: {reason}")]
    Policy {
        /// The image.
        name: ImageName,
        /// Whose policy, which of its fields, and why.
        reason: String,
    },
    /// An archive of images that is none, or lies.
    #[error("{path}: {reason}")]
    Archive {
        /// The archive, or the folder.
        path: PathBuf,
        /// What is wrong, and where in it.
        reason: String,
    },
}

impl ImageError {
    /// Whether there was no room for it.
    pub(super) fn is_for_want_of_room(&self) -> bool {
        match self {
            Self::Space { .. } => true,
            Self::Io { source, .. } => source.kind() == std::io::ErrorKind::StorageFull,
            Self::Layer { source, .. } => source.is_for_want_of_room(),
            Self::Name(_)
            | Self::Unavailable { .. }
            | Self::Registry { .. }
            | Self::Unreachable { .. }
            | Self::Busy { .. }
            | Self::Digest { .. }
            | Self::Document { .. }
            | Self::Policy { .. }
            | Self::Archive { .. } => false,
        }
    }
}

pub(super) fn io<'a>(
    action: &'static str,
    path: &'a Path,
) -> impl FnOnce(std::io::Error) -> ImageError + 'a {
    move |source| ImageError::Io { action, path: path.into(), source }
}

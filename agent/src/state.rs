//! What survives a reboot: identity, desired state, checkpoint. Every document is replaced whole:
//! temporary file, fsync, rename, fsync of the folder.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use limpet_agent_core::Checkpoint;
use limpet_protocol::{DeviceId, PublicKey, SigningKey, cbor};
use serde::{Deserialize, Serialize};

mod document;

pub use document::DocumentError;
use document::Kind;

/// The data folder, held by one agent.
pub struct State {
    folder: PathBuf,
    _lock: File,
}

/// Who this device is, and whom it trusts.
#[derive(Debug)]
pub struct Identity {
    /// The device's id.
    pub device: DeviceId,
    /// Its key, which never leaves it.
    pub key: SigningKey,
    /// The controller's key, pinned on first use.
    pub controller: Option<PublicKey>,
}

#[derive(Serialize, Deserialize)]
struct StoredIdentity {
    device: DeviceId,
    #[serde(with = "serde_bytes")]
    seed: Vec<u8>,
    controller: Option<PublicKey>,
}

/// Why the data folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The folder, or its lock, cannot be made.
    #[error("cannot use the data folder {folder}: {source}")]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Another agent holds it.
    #[error("another agent uses the data folder {0}: stop it, or say `--data-dir`")]
    InUse(PathBuf),
    /// A document cannot be read or written.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// No key can be made.
    #[error("cannot make the device's key: {0}")]
    Key(#[from] limpet_protocol::KeyError),
    /// Neither told nor known.
    #[error("the device has no id: say `--device-id`")]
    NoId,
}

impl State {
    /// Takes the data folder; makes it where it is missing.
    ///
    /// # Errors
    /// When another agent holds it, or it cannot be made.
    pub fn open(folder: &Path) -> Result<Self, StateError> {
        let failed = |source| StateError::Folder { folder: folder.into(), source };
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
        let lock = File::create(folder.join("lock")).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {
                document::take_reserve(folder);
                Ok(Self { folder: folder.into(), _lock: lock })
            }
            Err(std::fs::TryLockError::WouldBlock) => Err(StateError::InUse(folder.into())),
            Err(std::fs::TryLockError::Error(source)) => Err(failed(source)),
        }
    }

    /// The device's identity; made on first use, with `id` or the host's name.
    ///
    /// # Errors
    /// When it cannot be read or written, or no id is to be had.
    pub fn identity(&self, id: Option<DeviceId>) -> Result<Identity, StateError> {
        let known = match self.read::<StoredIdentity>(Kind::Identity) {
            Err(e @ DocumentError::Newer { .. }) => return Err(e.into()),
            Err(e) => {
                log::error!("{e}: this device begins with a new identity");
                None
            }
            Ok(known) => known,
        };
        let identity = match known {
            Some(known) if id.as_ref().is_none_or(|id| *id == known.device) => {
                let key = SigningKey::from_seed(&known.seed)?;
                return Ok(Identity { device: known.device, key, controller: known.controller });
            }
            Some(known) => Identity {
                device: id.unwrap_or(known.device),
                key: SigningKey::from_seed(&known.seed)?,
                controller: known.controller,
            },
            None => Identity {
                device: id.or_else(host_name).ok_or(StateError::NoId)?,
                key: SigningKey::generate()?,
                controller: None,
            },
        };
        self.store_identity(&identity)?;
        Ok(identity)
    }

    /// Keeps an identity.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn store_identity(&self, identity: &Identity) -> Result<(), DocumentError> {
        let stored = StoredIdentity {
            device: identity.device.clone(),
            seed: identity.key.seed().to_vec(),
            controller: identity.controller,
        };
        document::write(&self.folder, Kind::Identity, &cbor::encode(&stored))
    }

    /// The signed desired state that was stored last.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn desired(&self) -> Result<Option<Vec<u8>>, DocumentError> {
        document::read(&self.folder, Kind::Desired)
    }

    /// Keeps a signed desired state.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn store_desired(&self, signed: &[u8]) -> Result<(), DocumentError> {
        document::write(&self.folder, Kind::Desired, signed)
    }

    /// The checkpoint that was stored last.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn checkpoint(&self) -> Result<Option<Checkpoint>, DocumentError> {
        self.read(Kind::Checkpoint)
    }

    /// Keeps a checkpoint.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn store_checkpoint(&self, checkpoint: &Checkpoint) -> Result<(), DocumentError> {
        document::write(&self.folder, Kind::Checkpoint, &cbor::encode(checkpoint))
    }

    fn read<T: serde::de::DeserializeOwned>(&self, kind: Kind) -> Result<Option<T>, DocumentError> {
        let Some(bytes) = document::read(&self.folder, kind)? else {
            return Ok(None);
        };
        let value = cbor::decode(&bytes, document::BYTES_MAX);
        value.map(Some).map_err(|_| DocumentError::Damaged { path: kind.path(&self.folder) })
    }
}

fn host_name() -> Option<DeviceId> {
    DeviceId::lossy(&rustix::system::uname().nodename().to_string_lossy())
}

/// A document that cannot be used is as good as none, unless a newer version wrote it.
///
/// # Errors
/// When a newer version wrote it: going on would lose what it says.
pub fn best<T>(read: Result<Option<T>, DocumentError>) -> Result<Option<T>, DocumentError> {
    match read {
        Err(e @ DocumentError::Newer { .. }) => Err(e),
        Err(e) => {
            let nothing = e.source_kind() == Some(ErrorKind::NotFound);
            if !nothing {
                log::error!("{e}: going on without it");
            }
            Ok(None)
        }
        Ok(value) => Ok(value),
    }
}

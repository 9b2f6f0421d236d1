//! What survives a reboot: identity, desired state, checkpoint, and how late it is at least.
//!
//! Whatever has become of these files, a device comes up with the best that they prove, and says
//! what it lost. Only what a newer version wrote is left alone.

use std::fs::File;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use limpet_agent_core::Checkpoint;
use limpet_agent_core::upgrade::Record;
use limpet_protocol::{DeviceId, Membership, PublicKey, SigningKey, cbor};
use serde::{Deserialize, Serialize};

mod document;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod slots;

pub use document::DocumentError;
use document::Kind;
use slots::Slots;

/// The data folder, held by one agent.
pub struct State {
    folder: PathBuf,
    slots: Slots,
    _lock: File,
}

/// The data folder and what was in it.
pub struct Opened {
    /// To be written to.
    pub state: State,
    /// Who this device is; made on first use.
    pub identity: Identity,
    /// The signed desired state that was stored last.
    pub desired: Option<Vec<u8>>,
    /// The checkpoint that was stored last.
    pub checkpoint: Option<Checkpoint>,
    /// It is later than this, in milliseconds since 1970.
    pub clock_floor_ms: u64,
    /// What was damaged or missing, and what took its place.
    pub lost: Vec<String>,
}

/// Who this device is, and whom it trusts.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The device's id.
    pub device: DeviceId,
    /// Its key, which never leaves it.
    pub key: Arc<SigningKey>,
    /// The controller's key: the membership's, or, with `--insecure`, pinned on first use.
    pub controller: Option<PublicKey>,
    /// The one before it, which may have signed what is stored.
    pub controller_before: Option<PublicKey>,
    /// Where the device has joined a fleet.
    pub membership: Option<Membership>,
}

impl Identity {
    /// The same device, on these terms.
    pub fn with_membership(&self, membership: Membership) -> Self {
        let controller = Some(membership.controller);
        let before = self.controller.filter(|_| self.controller != controller);
        Self {
            controller,
            controller_before: before.or(self.controller_before),
            membership: Some(membership),
            ..self.clone()
        }
    }
}

#[derive(Serialize, Deserialize)]
struct StoredIdentity {
    device: DeviceId,
    #[serde(with = "serde_bytes")]
    seed: Vec<u8>,
    controller: Option<PublicKey>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    before: Option<PublicKey>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    membership: Option<Membership>,
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
    /// A member cannot take another name.
    #[error(
        "this device has joined its fleet as {known}: it cannot be {asked} too. To make it anew, \
         remove its data folder and join again"
    )]
    Renamed {
        /// Its id.
        known: DeviceId,
        /// What `--device-id` says.
        asked: DeviceId,
    },
    /// Neither told nor known.
    #[error("the device has no id: say `--device-id`")]
    NoId,
}

/// Takes a data folder; makes it where it is missing.
///
/// # Errors
/// When another process holds it, or it cannot be made.
pub fn lock(folder: &Path) -> Result<File, StateError> {
    let failed = |source| StateError::Folder { folder: folder.into(), source };
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
    let lock = File::create(folder.join("lock")).map_err(failed)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(std::fs::TryLockError::WouldBlock) => Err(StateError::InUse(folder.into())),
        Err(std::fs::TryLockError::Error(source)) => Err(failed(source)),
    }
}

/// What is known of the agent's programs, and what is lost of it. Nothing that has become of it keeps a
/// device from booting: without it the program runs that was installed.
pub fn upgrade_record(folder: &Path) -> (Option<Record>, Vec<String>) {
    let mut lost = Vec::new();
    let record = read(folder, Kind::Upgrade, &mut lost).unwrap_or_else(|error| {
        lost.push(format!("{error}: it is not heeded"));
        None
    });
    (record, lost)
}

/// Keeps what is known of the agent's programs.
///
/// # Errors
/// When it cannot be written.
pub fn store_upgrade_record(folder: &Path, record: &Record) -> Result<(), DocumentError> {
    document::write(folder, Kind::Upgrade, &cbor::encode(record))?;
    document::copy(folder, Kind::Upgrade)
}

impl State {
    /// Takes the data folder and reads what is in it. A device that has no identity gets one, with
    /// `id` or the host's name.
    ///
    /// # Errors
    /// When another agent holds it, a newer one wrote it, or no id is to be had.
    pub fn open(folder: &Path, id: Option<DeviceId>) -> Result<Opened, StateError> {
        Self::open_or(folder, id, host_name)
    }

    /// The same, with what a device is called that has no identity, where `id` does not say.
    ///
    /// # Errors
    /// As [`State::open`].
    pub fn open_or(
        folder: &Path,
        id: Option<DeviceId>,
        name: impl FnOnce() -> Option<DeviceId>,
    ) -> Result<Opened, StateError> {
        let lock = lock(folder)?;
        document::take_reserve(folder);
        let mut lost = Vec::new();
        let known = read::<StoredIdentity>(folder, Kind::Identity, &mut lost)?;
        let desired = document::read(folder, Kind::Desired, &mut lost)?;
        let floor = document::read(folder, Kind::Clock, &mut lost)?;
        let (slots, checkpoint) = checkpoint(folder, &mut lost)?;
        let begun = checkpoint.as_ref().is_some_and(|checkpoint| !checkpoint.slots.is_empty());
        if begun && desired.is_none() && lost.is_empty() {
            lost.push("desired state is missing: what runs goes on".to_owned());
        }
        let state = Self { folder: folder.into(), slots, _lock: lock };
        let identity = state.identity(known, id, name)?;
        // The power may have gone before a copy was written, too.
        for kind in [Kind::Identity, Kind::Desired] {
            if let Err(error) = document::mend(folder, kind) {
                log::warn!("{error}");
            }
        }
        let floor = floor.and_then(|bytes| Some(u64::from_be_bytes(bytes.try_into().ok()?)));
        let clock_floor_ms = floor.unwrap_or(0);
        Ok(Opened { state, identity, desired, checkpoint, clock_floor_ms, lost })
    }

    fn identity(
        &self,
        known: Option<StoredIdentity>,
        id: Option<DeviceId>,
        name: impl FnOnce() -> Option<DeviceId>,
    ) -> Result<Identity, StateError> {
        let aside = match known {
            Some(_) => Ok(()),
            None => document::set_aside(&self.folder, Kind::Identity),
        };
        let identity = match known {
            Some(known) => {
                let stored = Identity {
                    device: known.device,
                    key: Arc::new(SigningKey::from_seed(&known.seed)?),
                    controller: known.controller,
                    controller_before: known.before,
                    membership: known.membership,
                };
                match id.filter(|id| *id != stored.device) {
                    None => return Ok(stored),
                    // Its certificate names it.
                    Some(id) if stored.membership.is_some() => {
                        return Err(StateError::Renamed { known: stored.device, asked: id });
                    }
                    Some(device) => Identity { device, ..stored },
                }
            }
            None => Identity {
                device: id.or_else(name).ok_or(StateError::NoId)?,
                key: Arc::new(SigningKey::generate()?),
                controller: None,
                controller_before: None,
                membership: None,
            },
        };
        // A device that cannot store it goes on all the same, as another after its next start.
        if let Err(error) = aside.and_then(|()| self.store_identity(&identity)) {
            log::error!("{error}");
        }
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
            before: identity.controller_before,
            membership: identity.membership.clone(),
        };
        document::write(&self.folder, Kind::Identity, &cbor::encode(&stored))?;
        document::copy(&self.folder, Kind::Identity)
    }

    /// Keeps a signed desired state; [`State::copy_desired`] is to follow.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn store_desired(&self, signed: &[u8]) -> Result<(), DocumentError> {
        document::write(&self.folder, Kind::Desired, signed)
    }

    /// The signed desired state that was stored last.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn desired(&self) -> Result<Option<Vec<u8>>, DocumentError> {
        document::read(&self.folder, Kind::Desired, &mut Vec::new())
    }

    /// Keeps the stored desired state a second time. Nobody waits for that.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn copy_desired(&self) -> Result<(), DocumentError> {
        document::copy(&self.folder, Kind::Desired)
    }

    /// Keeps a checkpoint; one at a time.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn store_checkpoint(&self, checkpoint: &Checkpoint) -> Result<(), DocumentError> {
        self.slots.store(&self.folder, &cbor::encode(checkpoint))
    }

    /// Keeps how late it is at least, in milliseconds since 1970.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn store_clock_floor(&self, floor_ms: u64) -> Result<(), DocumentError> {
        document::write(&self.folder, Kind::Clock, &floor_ms.to_be_bytes())
    }
}

/// The id of the device whose data folder this is, if it has one. Whether an agent holds the folder
/// does not matter.
///
/// # Errors
/// When what is there cannot be read, or a newer agent wrote it.
pub fn known_device(folder: &Path) -> Result<Option<DeviceId>, DocumentError> {
    let known = read::<StoredIdentity>(folder, Kind::Identity, &mut Vec::new())?;
    Ok(known.map(|known| known.device))
}

/// A document whose content is CBOR. One that cannot be understood is as good as none.
/// Whether an agent has been here.
pub(crate) fn exists(folder: &Path) -> bool {
    Kind::Identity.path(folder).exists()
}

/// Whether the agent that has been here is a member of a fleet, as far as can be read.
pub(crate) fn has_joined(folder: &Path) -> bool {
    let identity = read::<StoredIdentity>(folder, Kind::Identity, &mut Vec::new());
    identity.is_ok_and(|identity| identity.is_some_and(|known| known.membership.is_some()))
}

fn read<T: serde::de::DeserializeOwned>(
    folder: &Path,
    kind: Kind,
    lost: &mut Vec<String>,
) -> Result<Option<T>, DocumentError> {
    let bytes = document::read(folder, kind, lost)?;
    Ok(bytes.and_then(|bytes| understand(&bytes, kind, lost)))
}

fn understand<T: serde::de::DeserializeOwned>(
    bytes: &[u8],
    kind: Kind,
    lost: &mut Vec<String>,
) -> Option<T> {
    let read = cbor::decode(bytes, document::BYTES_MAX);
    let tell = |error| lost.push(format!("the {} cannot be read: {error}", kind.name()));
    read.map_err(tell).ok()
}

fn checkpoint(
    folder: &Path,
    lost: &mut Vec<String>,
) -> Result<(Slots, Option<Checkpoint>), DocumentError> {
    let slots::Stored { slots, content } = Slots::open(folder, lost)?;
    if let Some(content) = content {
        return Ok((slots, understand(&content, Kind::Checkpoint, lost)));
    }
    // Format 1 was one file, replaced whole.
    let one = Kind::Checkpoint.path(folder);
    match document::read_one(&one, Kind::Checkpoint) {
        Ok(Some(content)) => {
            slots.store(folder, &content)?;
            // It is not looked at while there is a later one.
            let _ = std::fs::remove_file(one);
            Ok((slots, understand(&content, Kind::Checkpoint, lost)))
        }
        Ok(None) => Ok((slots, None)),
        Err(error) => {
            lost.push(format!("{error}: going on without"));
            Ok((slots, None))
        }
    }
}

/// The name of this host, as a device's id.
pub fn host_name() -> Option<DeviceId> {
    DeviceId::lossy(&rustix::system::uname().nodename().to_string_lossy())
}

#[cfg(test)]
mod tests;

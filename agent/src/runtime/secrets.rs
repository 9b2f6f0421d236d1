//! Secrets on their way from the agent, which opens them, into a container.
//!
//! The shim finds them on its standard input, a file in memory that is emptied as it is read. Those
//! that become files are written to a tmpfs that is mounted in the shim's own namespace, and are
//! mounted from there into the container: the last process that sees them takes them along. Those
//! that become variables are given to the main process as it begins. In no case are they in the
//! bundle, the run folder, or on a command line.

use std::collections::HashMap;
use std::ffi::CStr;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};

use libcontainer::oci_spec::runtime::Spec;
use libcontainer::workload::default::DefaultExecutor;
use libcontainer::workload::{
    Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError,
};
use limpet_protocol::desired::DESIRED_BYTES_MAX;
use limpet_protocol::{Plaintext, SecretPlace, SecretUse, cbor};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mount::{MountFlags, mount};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::user::User;

/// What is read at most: what a device can be sent, and its frame.
const BYTES_MAX: u64 = 2 * DESIRED_BYTES_MAX as u64;

/// Options of the tmpfs: the first for kernels that can keep it from swap (6.4 and later).
const TMPFS: [&CStr; 2] = [c"mode=0700,size=1m,noswap", c"mode=0700,size=1m"];

/// A secret and where it goes.
pub type Opened = (SecretPlace, Plaintext);

#[derive(Serialize, Deserialize)]
struct Handed(SecretPlace, ByteBuf);

/// Why secrets cannot be given to a container.
#[derive(Debug, thiserror::Error)]
pub(super) enum SecretError {
    #[error("the secrets did not arrive whole: {0}")]
    Handed(String),
    #[error("cannot {action} {path} for secrets: {source}")]
    Io { action: &'static str, path: PathBuf, source: std::io::Error },
    #[error("the secret for the variable {0:?} is no text without NUL: give it as a file")]
    NoText(String),
}

/// Opens the secrets of a template; the error names the one that cannot be had.
///
/// # Errors
/// When one was not sealed to this device, or does not open.
pub fn open(
    wanted: &[SecretUse],
    opened: impl Fn(&SecretUse) -> Result<Plaintext, String>,
) -> Result<Vec<Opened>, String> {
    let one = |wanted: &SecretUse| match opened(wanted) {
        Ok(value) => Ok((wanted.place.clone(), value)),
        Err(why) => Err(format!("secret {}, version {}: {why}", wanted.name, wanted.version)),
    };
    wanted.iter().map(one).collect()
}

/// A file in memory for the shim to read.
pub(super) fn hand_over(secrets: &[Opened]) -> std::io::Result<File> {
    let mut file = File::from(memfd_create("secrets", MemfdFlags::CLOEXEC)?);
    let handed: Vec<Handed> = secrets
        .iter()
        .map(|(place, value)| Handed(place.clone(), ByteBuf::from(value.expose())))
        .collect();
    serde_cbor::to_writer(&mut file, &handed).map_err(std::io::Error::other)?;
    file.rewind()?;
    Ok(file)
}

/// Reads what was handed over, and empties it. Nothing was where standard input is no such file.
pub(super) fn take() -> Result<Vec<Opened>, SecretError> {
    let failed = |e: std::io::Error| SecretError::Handed(e.to_string());
    let mut bytes = Vec::new();
    let input = std::io::stdin();
    input.lock().take(BYTES_MAX).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.is_empty() {
        return Ok(Vec::new());
    }
    ftruncate(input.as_fd(), 0).map_err(|e| failed(e.into()))?;
    let handed: Vec<Handed> =
        cbor::decode(&bytes, bytes.len()).map_err(|e| SecretError::Handed(e.to_string()))?;
    // Overwrites what was read.
    drop(Plaintext::from(bytes));
    Ok(handed.into_iter().map(|Handed(place, value)| (place, value.into_vec().into())).collect())
}

/// Writes those that become files to a tmpfs at `folder`, for `user` alone; gives what is to be
/// mounted where.
pub(super) fn place(
    secrets: &[Opened],
    folder: &Path,
    user: &User,
) -> Result<Vec<(String, String)>, SecretError> {
    let files = secrets.iter().filter_map(|(place, value)| match place {
        SecretPlace::File(path) => Some((path, value)),
        SecretPlace::Env(_) => None,
    });
    let files: Vec<(&String, &Plaintext)> = files.collect();
    if files.is_empty() {
        return Ok(Vec::new());
    }
    let io = |action, path: &Path| {
        let path = path.to_owned();
        move |source| SecretError::Io { action, path, source }
    };
    let make = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
    make.map_err(io("make", folder))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let [private, plain] = TMPFS;
    mount("tmpfs", folder, "tmpfs", flags, private)
        .or_else(|_| mount("tmpfs", folder, "tmpfs", flags, plain))
        .map_err(|e| io("mount a tmpfs on", folder)(e.into()))?;
    let mut mounts = Vec::new();
    for (index, (path, value)) in files.into_iter().enumerate() {
        let own = folder.join(index.to_string());
        let written = || {
            let mut file =
                OpenOptions::new().write(true).create_new(true).mode(0o400).open(&own)?;
            fchown(&file, Some(user.uid), Some(user.gid))?;
            file.write_all(value.expose())
        };
        written().map_err(io("write", &own))?;
        mounts.push((own.display().to_string(), path.clone()));
    }
    Ok(mounts)
}

/// Begins the main process with those that become variables.
#[derive(Clone)]
pub(super) struct WithSecrets(HashMap<String, String>);

impl WithSecrets {
    pub(super) fn new(secrets: &[Opened]) -> Result<Self, SecretError> {
        let mut env = HashMap::new();
        for (place, value) in secrets {
            let SecretPlace::Env(key) = place else {
                continue;
            };
            let text = std::str::from_utf8(value.expose()).ok().filter(|text| !text.contains('\0'));
            let text = text.ok_or_else(|| SecretError::NoText(key.clone()))?;
            env.insert(key.clone(), text.to_owned());
        }
        Ok(Self(env))
    }
}

impl Executor for WithSecrets {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        DefaultExecutor {}.exec(spec)
    }

    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        DefaultExecutor {}.validate(spec)
    }

    fn setup_envs(&self, mut envs: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        envs.extend(self.0.clone());
        DefaultExecutor {}.setup_envs(envs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_a_variable_is_refused() {
        let env = |value: &[u8]| {
            let place = SecretPlace::Env("TOKEN".to_owned());
            WithSecrets::new(&[(place, value.to_vec().into())]).map(|with| with.0)
        };
        assert_eq!(env(b"a b=c\n").unwrap()["TOKEN"], "a b=c\n");
        for value in [b"a\0b".as_slice(), b"\xff"] {
            let error = env(value).unwrap_err().to_string();
            assert_eq!(
                error,
                "the secret for the variable \"TOKEN\" is no text without NUL: give it as a file"
            );
        }
    }

    #[test]
    fn a_secret_that_was_not_sealed_to_this_device_is_named() {
        let place = SecretPlace::File("/run/secrets/db".to_owned());
        let wanted = [SecretUse { name: "db".parse().unwrap(), version: 3, place }];
        let error = open(&wanted, |_| Err("no".to_owned())).unwrap_err();
        assert_eq!(error, "secret db, version 3: no");
    }
}

//! The agent's own program: which one runs, and how another comes and takes over.
//!
//! `DATA/agent/` holds programs under their SHA-256, and the document `upgrade` says which of them
//! runs. What decides is `limpet_agent_core::upgrade`.

use std::ffi::OsString;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};

use limpet_agent_core::upgrade::{Failure, Record, Trial};
use limpet_protocol::Digest;
use nix::errno::Errno;
use ring::digest::{Context, SHA256};

use crate::state::{self, DocumentError};

mod fetch;
mod launch;

pub use fetch::{Fault, Source};
pub use launch::{Launched, launch};

/// The folder of programs in the data folder.
const FOLDER: &str = "agent";
/// Says to a program that was launched by which one, and whether it is on trial: `trial:PATH`.
const LAUNCHED: &str = "LIMPET_AGENT_LAUNCHED";
const BUFFER_BYTES: usize = 64 * 1024;

/// Why a program does not take over.
#[derive(Debug, thiserror::Error)]
pub enum UpgradeError {
    /// The file system would not.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// It is not what it was.
    #[error("{0} is damaged")]
    Damaged(PathBuf),
    /// The record cannot be written.
    #[error(transparent)]
    Record(#[from] DocumentError),
}

impl UpgradeError {
    /// Whether the program is gone for good, and no disk or memory that may have a better moment.
    fn is_lost(&self) -> bool {
        match self {
            Self::Damaged(_) => true,
            Self::Io { source, .. } => {
                source.kind() == ErrorKind::NotFound
                    || source.raw_os_error() == Some(Errno::ENOEXEC as i32)
            }
            Self::Record(_) => false,
        }
    }
}

/// The programs of a device, and the one that runs.
#[derive(Debug, Clone)]
pub struct Programs {
    data_dir: PathBuf,
    launched: Launched,
    /// Held while the record is changed.
    record: Arc<Mutex<()>>,
    /// Held while a program is fetched: what is here of it stays.
    fetching: Arc<Mutex<()>>,
}

impl Programs {
    /// Those of a data folder, which this process has taken; what was damaged comes to `lost`.
    pub fn new(data_dir: &Path, mut launched: Launched, lost: &mut Vec<String>) -> Self {
        lost.append(&mut launched.lost);
        let (record, fetching) = Default::default();
        Self { data_dir: data_dir.into(), launched, record, fetching }
    }

    /// Whether this program has yet to prove itself.
    pub fn on_trial(&self) -> bool {
        self.launched.on_trial
    }

    /// What is known of them.
    pub fn record(&self) -> Option<Record> {
        let (record, lost) = state::upgrade_record(&self.data_dir);
        lost.iter().for_each(|lost| log::error!("{lost}"));
        record
    }

    /// Puts a program on trial, and hands this process over to it. Comes back where that cannot be.
    pub fn try_out(&self, trial: Trial) -> UpgradeError {
        let begun = self.change(|record, base| record.try_out(base, trial));
        begun.err().unwrap_or_else(|| self.restart())
    }

    /// The program that runs has proved itself.
    ///
    /// # Errors
    /// When that cannot be written.
    pub fn keep(&self) -> Result<(), UpgradeError> {
        self.change(|record, _| record.keep_trial())?;
        nix::unistd::alarm::cancel();
        Ok(())
    }

    /// Notes that an order was carried out, or failed.
    ///
    /// # Errors
    /// When that cannot be written.
    pub fn settle(&self, order: u64, failure: Option<Failure>) -> Result<(), UpgradeError> {
        self.change(|record, _| record.settle(order, failure))
    }

    fn change(&self, change: impl FnOnce(&mut Record, Digest)) -> Result<(), UpgradeError> {
        let _alone = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        let base = digest_of(&self.launched.base)?;
        let mut record = self.record().unwrap_or_else(|| Record::new(base));
        change(&mut record, base);
        state::store_upgrade_record(&self.data_dir, &record)?;
        if let Ok(_nobody) = self.fetching.try_lock() {
            self.collect(Some(&record), None);
        }
        Ok(())
    }

    /// Takes away what neither runs, nor is to be tried or fetched.
    fn collect(&self, record: Option<&Record>, wanted: Option<Digest>) {
        let needed: Vec<String> = record
            .into_iter()
            .flat_map(Record::needed)
            .chain(wanted)
            .map(|digest| digest.to_string())
            .collect();
        let is_needed = |path: &Path| {
            let name = path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
            name.is_some_and(|name| needed.contains(&name))
        };
        let files = std::fs::read_dir(self.folder()).into_iter().flatten().flatten();
        for file in files.filter(|file| !is_needed(&file.path())) {
            if let Err(error) = std::fs::remove_file(file.path()) {
                log::warn!("cannot remove {}: {error}", file.path().display());
            }
        }
    }

    fn folder(&self) -> PathBuf {
        self.data_dir.join(FOLDER)
    }

    fn make_folder(&self) -> Result<PathBuf, UpgradeError> {
        let folder = self.folder();
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder);
        made.map_err(io("make", &folder))?;
        Ok(folder)
    }

    /// Begins anew with the program that was installed, as the same process: what its supervisor knows
    /// of it stays true.
    fn restart(&self) -> UpgradeError {
        use std::os::unix::process::CommandExt;
        let base = &self.launched.base;
        let source = Command::new(base).args(arguments()).env_remove(LAUNCHED).exec();
        io("start", base)(source)
    }
}

/// What this process was started with.
fn arguments() -> impl Iterator<Item = OsString> {
    std::env::args_os().skip(1)
}

fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> UpgradeError {
    move |source| UpgradeError::Io { action, path: path.into(), source }
}

/// The SHA-256 of a file.
fn digest_of(path: &Path) -> Result<Digest, UpgradeError> {
    let mut file = File::open(path).map_err(io("read", path))?;
    let mut hash = Context::new(&SHA256);
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match file.read(&mut buffer).map_err(io("read", path))? {
            0 => break,
            read => hash.update(&buffer[..read]),
        }
    }
    let mut digest = Digest([0; 32]);
    digest.0.copy_from_slice(hash.finish().as_ref());
    Ok(digest)
}

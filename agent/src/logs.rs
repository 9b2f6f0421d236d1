//! What containers write: rings that shims fill, where they are, and streams that leases read.
//!
//! A ring is in the container's run folder, in memory, or below `logs/` in the data folder where the
//! owner of the device chose so. There, too, are the last words of containers that ended badly.

use std::fs::{DirBuilder, File};
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use limpet_protocol::{ContainerId, WorkloadId};
use serde::Deserialize;

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
pub mod ring;
pub mod stream;

use ring::Reader;

/// What is kept of the log of a container that ended badly.
const KEPT_BYTES_MAX: usize = 16 * 1024;
/// Containers of a workload whose logs are on disk: the latest, and the one before.
const CONTAINERS_KEPT: usize = 2;

/// Where output goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Storage {
    /// Into memory: no write reaches the flash, and a reboot loses it.
    #[default]
    Memory,
    /// Into the data folder.
    Disk,
}

/// The logs of this device.
#[derive(Debug, Clone)]
pub struct Logs {
    storage: Storage,
    folder: PathBuf,
    containers: PathBuf,
}

impl Logs {
    /// Logs of containers whose run folders are in `containers`.
    pub fn new(storage: Storage, data_dir: &Path, containers: PathBuf) -> Self {
        Self { storage, folder: data_dir.join("logs"), containers }
    }

    /// The folder that the shim of a container writes to; None where that is its run folder.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn begin(&self, container: &ContainerId) -> std::io::Result<Option<PathBuf>> {
        if self.storage == Storage::Memory {
            return Ok(None);
        }
        let folder = self.folder.join(container.as_str());
        make_folder(&folder)?;
        self.prune(container)?;
        Ok(Some(folder))
    }

    /// Readers of all that is there of a workload's logs, in the order of its containers.
    pub fn readers(&self, workload: &WorkloadId) -> Vec<Reader> {
        let mut rings: Vec<(u32, PathBuf, PathBuf)> = Vec::new();
        let begins_in = match self.storage {
            Storage::Memory => &self.containers,
            Storage::Disk => &self.folder,
        };
        // A ring that is there, then what was kept of one, then one that has yet to begin.
        let places = [(&self.containers, true), (&self.folder, true), (begins_in, false)];
        for (place, begun) in places {
            for (id, number) in containers(place, workload) {
                let (ring, run) = (place.join(id.as_str()), self.containers.join(id.as_str()));
                let is_known = rings.iter().any(|(known, ..)| *known == number);
                if !is_known && (!begun || ring.join("log.0").exists()) {
                    rings.push((number, ring, run));
                }
            }
        }
        rings.sort();
        rings.into_iter().map(|(_, ring, run)| Reader::open(&ring, &run)).collect()
    }

    /// Writes the end of a container's log to the data folder.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn keep(&self, container: &ContainerId) -> std::io::Result<()> {
        let run = self.containers.join(container.as_str());
        let lines = Reader::open(&run, &run).tail(usize::MAX);
        let mut room = KEPT_BYTES_MAX;
        let fits = lines.iter().rev().take_while(|line| {
            let bytes = ring::record_bytes(line);
            let fits = bytes <= room;
            room = room.saturating_sub(bytes);
            fits
        });
        let kept = fits.count();
        if kept == 0 {
            return Ok(());
        }
        let folder = self.folder.join(container.as_str());
        make_folder(&folder)?;
        let mut file = File::create(folder.join("log.0"))?;
        file.write_all(&ring::file(&lines[lines.len() - kept..]))?;
        file.sync_all()?;
        for folder in [&folder, &self.folder] {
            File::open(folder)?.sync_all()?;
        }
        self.prune(container)
    }

    /// Removes what is on disk of a workload's logs.
    ///
    /// # Errors
    /// When something would not go.
    pub fn forget(&self, workload: &WorkloadId) -> std::io::Result<()> {
        containers(&self.folder, workload)
            .into_iter()
            .try_for_each(|(id, _)| std::fs::remove_dir_all(self.folder.join(id.as_str())))
    }

    fn prune(&self, container: &ContainerId) -> std::io::Result<()> {
        let Some((workload, _)) = container.parts() else { return Ok(()) };
        let mut kept = containers(&self.folder, &workload);
        kept.sort_by_key(|(_, number)| *number);
        let goes = kept.len().saturating_sub(CONTAINERS_KEPT);
        kept.into_iter()
            .take(goes)
            .try_for_each(|(id, _)| std::fs::remove_dir_all(self.folder.join(id.as_str())))
    }
}

/// The containers of a workload that have a folder in `place`, and their numbers.
fn containers(place: &Path, workload: &WorkloadId) -> Vec<(ContainerId, u32)> {
    let entries = std::fs::read_dir(place).into_iter().flatten().flatten();
    let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<ContainerId>().ok());
    ids.filter_map(|id| {
        let (of, number) = id.parts()?;
        (of == *workload).then_some((id, number))
    })
    .collect()
}

fn make_folder(path: &Path) -> std::io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

#[cfg(test)]
mod tests {
    use limpet_protocol::LogStream;

    use super::*;

    fn written(folder: &Path, lines: usize) {
        std::fs::create_dir_all(folder).unwrap();
        let mut writer = ring::Writer::open(folder);
        for number in 0..lines {
            writer.write(LogStream::Stdout, format!("line {number}\n").as_bytes(), 1);
        }
    }

    fn lines(logs: &Logs) -> Vec<String> {
        let workload = "web.0".parse().unwrap();
        let readers = logs.readers(&workload).into_iter();
        let lines = readers.flat_map(|mut reader| reader.tail(usize::MAX));
        lines.map(|line| String::from_utf8(line.bytes).unwrap()).collect()
    }

    #[test]
    fn last_words_outlive_the_run_folder() {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("run");
        let logs = Logs::new(Storage::Memory, folder.path(), run.clone());
        let id = |number| format!("web.0.{number}").parse().unwrap();
        for number in 1..=4 {
            written(&run.join(format!("web.0.{number}")), 3000);
            logs.keep(&id(number)).unwrap();
        }
        logs.keep(&id(9)).unwrap();
        assert_eq!(lines(&logs).len(), 4 * 3000, "a ring that is there is read");
        std::fs::remove_dir_all(run).unwrap();
        let kept = lines(&logs);
        assert_eq!(kept.last().unwrap(), "line 2999");
        assert!(kept.len() > 1000 && kept.len() < 1600, "{}", kept.len());
        let bytes = std::fs::metadata(folder.path().join("logs/web.0.4/log.0")).unwrap().len();
        assert!(bytes <= KEPT_BYTES_MAX as u64 + 16, "{bytes}");
        logs.forget(&"web.0".parse().unwrap()).unwrap();
        assert!(lines(&logs).is_empty());
        // One that has yet to begin is followed all the same.
        std::fs::create_dir_all(folder.path().join("run/web.0.10")).unwrap();
        assert_eq!(logs.readers(&"web.0".parse().unwrap()).len(), 1);
    }
}

//! What a shim is told, and the records that it leaves: the run folder's format.
//!
//! The folder of container `web.0.3`:
//! ```text
//! order        what to make
//! state        its main process and shim, once it runs
//! exit         how it ended
//! log.0 log.1  its output, see `logs::ring`
//! bundle/      config.json, hostname, hosts, resolv.conf; rootfs, secrets and host/N, what it is given of
//!              the host, are mounted only in the shim's namespace
//! ```
//! Records are CBOR behind one byte, the version of the format.

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use limpet_agent_core::Owner;
use limpet_protocol::{ContainerId, Exit, Workload, cbor};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::image::ImageConfig;

/// The version that is written; an agent reads this one.
const VERSION: u8 = 1;
const RECORD_BYTES_MAX: usize = 256 * 1024;

/// What to make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StartOrder {
    /// The container.
    pub id: ContainerId,
    /// What it is made from.
    pub workload: Workload,
    /// Its host name.
    pub hostname: String,
    /// Folder that all layers are in.
    pub layers_dir: PathBuf,
    /// Names of the layers in it, lowest first.
    pub layers: Vec<String>,
    /// What the image says.
    pub image: ImageConfig,
    /// Folder of its writable layer.
    pub writable: PathBuf,
    /// Its control group.
    pub cgroup: String,
    /// Folder of its log, where that is not the run folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logs: Option<PathBuf>,
    /// What the device's owner allows.
    #[serde(default)]
    pub owner: Owner,
}

/// A process, told apart from a later one with its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Process {
    /// Its number.
    pub pid: u32,
    /// When it began, in clock ticks since boot (proc(5), field 22 of stat).
    pub start: u64,
}

/// A container that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StateRecord {
    pub(super) main: Process,
    pub(super) shim: Process,
}

/// A container that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ExitRecord {
    pub(super) exit: Exit,
    /// Milliseconds since boot.
    pub(super) at_ms: u64,
}

/// Writes a record so that a reader sees all of it or none.
pub(super) fn write<T: Serialize>(path: &Path, record: &T) -> std::io::Result<()> {
    let fresh = path.with_extension("new");
    // An order holds variables of the workload's environment.
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
    file.write_all(&[&[VERSION], cbor::encode(record).as_slice()].concat())?;
    file.sync_data()?;
    std::fs::rename(fresh, path)
}

/// Reads a record; None where there is none, or none that this version understands.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> Option<T> {
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).ok()?;
    file.take(RECORD_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).ok()?;
    match bytes.split_first()? {
        (&VERSION, record) => cbor::decode(record, RECORD_BYTES_MAX).ok(),
        _ => None,
    }
}

#[cfg(test)]
impl StartOrder {
    pub(super) fn example() -> Self {
        Self {
            id: "web.0.1".parse().unwrap(),
            workload: Workload {
                id: "web.0".parse().unwrap(),
                deployment: "web".parse().unwrap(),
                revision: limpet_protocol::Digest([1; 32]),
                requires: vec![],
                policy: None,
                spec: limpet_protocol::WorkloadSpec::of("i"),
                sealed: vec![],
            },
            hostname: "web-0".into(),
            layers_dir: "/l".into(),
            layers: vec!["a".into()],
            image: ImageConfig::default(),
            writable: "/w".into(),
            cgroup: "/limpet/web.0.1".into(),
            logs: None,
            owner: Owner::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes() {
        let main = Process { pid: 5, start: 6 };
        let hex = |bytes: Vec<u8>| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        let lines = [
            hex(cbor::encode(&StateRecord { main, shim: Process { pid: 3, start: 4 } })),
            hex(cbor::encode(&ExitRecord { exit: Exit::Code(7), at_ms: 9 })),
        ]
        .join("\n");
        expect_test::expect![[r#"
            a2646d61696ea2637069640565737461727406647368696da2637069640365737461727404
            a26465786974a16163076561745f6d7309"#]]
        .assert_eq(&lines);
    }

    #[test]
    fn a_record_of_another_version_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("exit");
        let record = ExitRecord { exit: Exit::Unknown, at_ms: 9 };
        write(&path, &record).unwrap();
        assert_eq!(read(&path), Some(record));
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[0] = 9;
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(read::<ExitRecord>(&path), None);
    }
}

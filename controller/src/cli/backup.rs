//! `limpet backup`

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;

use super::client::Client;
use super::print;
use super::table::bytes;
use crate::backup;

/// Write what the controller knows into a file, while it serves
///
/// The file holds the store (devices, deployments, secrets, events), the key that signs what the
/// fleet is told and the key that opens secrets: who has the file can give orders to every device and
/// read every secret. Keep it where only you can read it. A
/// file that is there already is replaced when the backup is complete, and not before.
///
/// Example: limpet backup limpet-$(date +%F).backup
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Backup {
    /// Where to write it
    file: PathBuf,
}

impl Backup {
    pub(super) fn run(self, client: &Client) -> anyhow::Result<()> {
        let mut name = self.file.clone().into_os_string();
        name.push(".part");
        let part = PathBuf::from(name);
        let written = self.write(client, &part);
        if written.is_err() {
            let _ = std::fs::remove_file(&part);
        }
        print(&written?)
    }

    fn write(&self, client: &Client, part: &Path) -> anyhow::Result<String> {
        let from = client.stream("/api/v1/backup")?;
        let cannot = || format!("cannot write {}", part.display());
        let to = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(part);
        let mut copy = Copy { from, to: to.with_context(cannot)?, bytes: 0 };
        let header = backup::read(&mut copy, &mut io::sink())
            .context("the backup did not arrive whole; nothing was written")?;
        copy.to.sync_all().with_context(cannot)?;
        std::fs::rename(part, &self.file)
            .with_context(|| format!("cannot write {}", self.file.display()))?;
        Ok(format!(
            "{}: {}, with {} and the fleet's keys\n",
            self.file.display(),
            bytes(copy.bytes),
            content(&header)
        ))
    }
}

/// What a backup holds, for a person.
pub(super) fn content(header: &backup::Header) -> String {
    let count = |count: u64, what: &str| match count {
        1 => format!("1 {what}"),
        count => format!("{count} {what}s"),
    };
    format!(
        "{}, {}, {}",
        count(header.devices, "device"),
        count(header.deployments, "deployment"),
        count(header.events, "event")
    )
}

/// Writes to a file what is read.
struct Copy<R> {
    from: R,
    to: File,
    bytes: u64,
}

impl<R: Read> Read for Copy<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.from.read(buffer)?;
        self.to.write_all(&buffer[..count])?;
        self.bytes += count as u64;
        Ok(count)
    }
}

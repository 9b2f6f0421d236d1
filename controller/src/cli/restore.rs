//! `limpet restore`

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;

use super::backup::content;
use super::print;
use super::table::age;
use crate::server::{self, Existing};

/// Put a backup into the data folder of a controller that does not run
///
/// Devices that were told more since the backup was made go on as they are, and are told nothing
/// until `limpet recover` says what holds.
///
/// Example: limpet restore limpet-2026-11-25.backup --data-dir ./limpet
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Restore {
    /// A file that `limpet backup` has written
    file: PathBuf,
    /// Where the store and the keys are to be
    #[arg(long, value_name = "DIR", default_value = "/var/lib/limpet-controller")]
    data_dir: PathBuf,
    /// Put a store that is there already aside, into a folder beside it
    #[arg(long)]
    replace: bool,
}

impl Restore {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let Self { file, data_dir, replace } = self;
        let existing = if replace { Existing::PutAside } else { Existing::Keep };
        let header = server::restore(&file, &data_dir, existing)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let made_s = header.made_ms / 1000;
        print(&format!(
            "{}: {}, as they were {} ago (limpet {})\n\
             Next: limpet up --data-dir {}\n\
             Devices that have been told more since then are on hold: see `limpet recover`\n",
            data_dir.display(),
            content(&header),
            age(now.as_secs().saturating_sub(made_s)),
            header.version,
            data_dir.display(),
        ))
    }
}

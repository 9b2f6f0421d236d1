//! `limpet flash`

use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Subcommand};

use crate::flash::board::Board;
use crate::flash::build;
use crate::flash::settings::Settings;

/// Make cards for devices: build or adapt an image, and write it
#[derive(Args)]
pub(super) struct Flash {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Build(Box<Build>),
}

/// Build a minimal image that boots, joins the fleet and runs containers
///
/// It consists of packages of this machine's Debian, for the board's processor, fetched and verified by
/// apt into ~/.cache/limpet/flash, and needs neither root nor loop devices; only --preload with layers
/// does (sudo, or fakeroot). The card has a boot partition, a read-only system, room for a second
/// one, and a partition with data that grows to the card when it boots first. Every card of an image
/// becomes a device of its own.
///
/// Example: limpet flash build --board rpi --join @join.txt --hostname-prefix gw --label site=berlin -o fleet.img.xz
#[derive(Args)]
#[command(verbatim_doc_comment)]
struct Build {
    /// What it is for
    #[arg(long, value_enum)]
    board: Board,
    #[command(flatten)]
    settings: Settings,
    /// Where packages come from, as a file of apt (deb822), instead of this machine's own sources
    #[arg(long, value_name = "FILE")]
    sources: Option<PathBuf>,
    /// The image; compressed where it ends with .xz
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,
}

impl Flash {
    pub(super) fn run(self) -> anyhow::Result<()> {
        match self.verb {
            Verb::Build(verb) => verb.run(),
        }
    }
}

impl Build {
    fn run(self) -> anyhow::Result<()> {
        let Self { board, settings, sources, out } = self;
        build::build(&build::Order { board, settings, sources, cache: cache()?, out })
    }
}

fn cache() -> anyhow::Result<PathBuf> {
    let named = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = named("XDG_CACHE_HOME").or_else(|| Some(named("HOME")?.join(".cache")));
    Ok(base.context("neither XDG_CACHE_HOME nor HOME is set")?.join("limpet/flash"))
}

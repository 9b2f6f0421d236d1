//! `limpet flash`

use std::io::{IsTerminal, Write as _};
use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};

use crate::flash::board::Board;
use crate::flash::disk::{Disk, Limits, size};
use crate::flash::settings::Settings;
use crate::flash::write::{Image, Step};
use crate::flash::{adapt, build, write};

/// Make cards for devices: build or adapt an image, and write it
#[derive(Args)]
pub(super) struct Flash {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Build(Box<Build>),
    Adapt(Box<Adapt>),
    Write(Write),
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
    /// Where packages come from, as a file of apt (deb822), instead of this machine's own sources; rpi
    /// and --wifi need the component non-free-firmware
    #[arg(long, value_name = "FILE")]
    sources: Option<PathBuf>,
    /// The image; compressed where it ends with .xz
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,
}

/// Put the agent, and what its devices are told, into an image of a distribution
///
/// For Debian, Raspberry Pi OS and their like: systemd, on a root of ext4. The image stays as it is;
/// the new one is its copy with the agent, its unit, the join string and agent.toml in it. Images to
/// preload are taken in when the device boots first. Nothing is mounted, and root is not needed.
///
/// Example: limpet flash adapt raspios.img.xz --join @join.txt --label site=berlin -o fleet.img
#[derive(Args)]
#[command(verbatim_doc_comment)]
struct Adapt {
    /// The distribution's image, compressed with xz or not
    image: PathBuf,
    #[command(flatten)]
    settings: Settings,
    /// The new image; compressed where it ends with .xz
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,
}

/// Write an image to a card, and verify the card by reading it back
///
/// All that is on the card is lost. A disk that is in use is refused, and the one that this machine
/// runs from, whatever is said; a disk that is larger than cards are, or that nobody can take out, is
/// refused without --yes-really.
///
/// Example: limpet flash write fleet.img.xz /dev/sdb
#[derive(Args)]
#[command(verbatim_doc_comment)]
struct Write {
    /// The image, compressed with xz or not
    image: PathBuf,
    /// The card: `lsblk` lists the disks of this machine
    disk: PathBuf,
    /// Refuse disks that are larger: 32GB, 1TB
    #[arg(long, value_name = "SIZE", default_value = "128GB", value_parser = bytes)]
    max_size: u64,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// Whatever its size, and whether or not it can be taken out; asks for nothing
    #[arg(long)]
    yes_really: bool,
}

impl Flash {
    pub(super) fn run(self) -> anyhow::Result<()> {
        match self.verb {
            Verb::Build(verb) => verb.run(),
            Verb::Adapt(verb) => {
                let Adapt { image, settings, out } = *verb;
                adapt::adapt(&adapt::Order { image, settings, out })
            }
            Verb::Write(verb) => verb.run(),
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

impl Write {
    fn run(self) -> anyhow::Result<()> {
        let disk = Disk::open(&self.disk)?;
        let image = Image::open(&self.image)?;
        let limits = Limits { bytes_max: self.max_size, really: self.yes_really };
        disk.may_be_written(image.bytes, limits)?;
        if !self.yes && !self.yes_really && !self.confirmed(&disk)? {
            anyhow::bail!("nothing was written");
        }
        let bar = ProgressBar::new(image.bytes);
        let style = "{msg} [{bar:30}] {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
        bar.set_style(ProgressStyle::with_template(style)?.progress_chars("##."));
        write::write(&image, &disk, limits, &|step| {
            let (what, bytes) = match step {
                Step::Written(bytes) => ("writing  ", bytes),
                Step::Verified(bytes) => ("verifying", bytes),
            };
            if bar.message() != what {
                bar.set_message(what);
                bar.reset_eta();
            }
            bar.set_position(bytes);
        })?;
        bar.finish_and_clear();
        let (image, disk) = (self.image.display(), self.disk.display());
        super::print(&format!("{image} is on {disk}, and was read back\n"))
    }

    /// What a person says who sees which disk it is.
    fn confirmed(&self, disk: &Disk) -> anyhow::Result<bool> {
        anyhow::ensure!(
            std::io::stdin().is_terminal(),
            "all that is on {} would be lost: say --yes where nobody can be asked",
            self.disk.display()
        );
        let model = if disk.model.is_empty() { "no name" } else { &disk.model };
        let (disk, size) = (self.disk.display(), size(disk.bytes));
        write!(
            std::io::stderr(),
            "All that is on {disk} ({model}, {size}) will be lost. Type yes: "
        )?;
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer)?;
        Ok(answer.trim() == "yes")
    }
}

/// A size as those who sell cards count it.
fn bytes(text: &str) -> Result<u64, String> {
    let text = text.trim().to_ascii_uppercase();
    let number = text.trim_end_matches('B');
    let (number, unit) = match number.chars().last() {
        Some('M') => (number.trim_end_matches('M'), 1_000_000),
        Some('G') => (number.trim_end_matches('G'), 1_000_000_000),
        Some('T') => (number.trim_end_matches('T'), 1_000_000_000_000),
        _ => (number, 1),
    };
    let number: Option<u64> = number.trim().parse().ok();
    number.and_then(|n| n.checked_mul(unit)).ok_or_else(|| "write 32GB, 500MB or 1TB".to_owned())
}

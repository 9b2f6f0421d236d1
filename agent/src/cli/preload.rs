//! `limpet-agent preload`: images from a file, for places with no registry.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context;
use lexopt::prelude::*;

use crate::config::{self, Flags};
use crate::image::{ImageName, Images, Platform, Progress, Registries, pinned};
use crate::state::{self, StateError};

/// What to do, and on which data folder.
pub(super) struct Order {
    verb: Verb,
    flags: Flags,
    platform: Option<Platform>,
}

enum Verb {
    Preload { file: PathBuf, name: Option<ImageName> },
    List,
    Unpin(ImageName),
}

/// Reads the arguments behind `preload`; None where they ask for help.
pub(super) fn parse(mut parser: lexopt::Parser) -> Result<Option<Order>, lexopt::Error> {
    let (mut flags, mut platform) = (Flags::default(), None);
    let (mut file, mut name, mut verb) = (None, None, None);
    while let Some(argument) = parser.next()? {
        match argument {
            Long("name") => name = Some(parser.value()?.parse()?),
            Long("platform") => platform = Some(parser.value()?.parse()?),
            Long("list") => verb = Some(Verb::List),
            Long("unpin") => verb = Some(Verb::Unpin(parser.value()?.parse()?)),
            Long("data-dir") => flags.data_dir = Some(parser.value()?.into()),
            Long("config") => flags.config = Some(parser.value()?.into()),
            Short('h') | Long("help") => return Ok(None),
            Value(path) if file.is_none() => file = Some(PathBuf::from(path)),
            Short(_) | Long(_) | Value(_) => return Err(argument.unexpected()),
        }
    }
    let verb = match (verb, file, name) {
        (Some(verb), None, None) => verb,
        (None, Some(file), name) => Verb::Preload { file, name },
        (Some(_), _, _) => return Err("--list and --unpin go with no file and no --name".into()),
        (None, None, _) => return Err("say which FILE to preload, or --list".into()),
    };
    Ok(Some(Order { verb, flags, platform }))
}

/// Does it.
///
/// # Errors
/// When it cannot be done; nothing half of it stays.
pub(super) fn run(order: Order) -> anyhow::Result<()> {
    let Order { verb, flags, platform } = order;
    let data_dir = config::data_dir(&flags)?;
    match verb {
        Verb::List => {
            let mut text = String::new();
            for image in pinned(&data_dir.join("images"))? {
                text += &format!("{image}\n");
            }
            Ok(std::io::stdout().write_all(text.as_bytes())?)
        }
        Verb::Unpin(name) => alone(&data_dir, |images| {
            let was_pinned = images.unpin(&name)?;
            anyhow::ensure!(was_pinned, "{name} is not preloaded: `--list` shows what is");
            Ok(())
        }),
        Verb::Preload { file, name } => alone(&data_dir, |images| {
            let images = match platform {
                Some(platform) => images.made_for(platform),
                None => images,
            };
            let shown = Shown::new(&file);
            let preloaded = images.preload(&file, name.as_ref(), &|progress| shown.tell(progress));
            shown.end();
            for image in preloaded? {
                writeln!(std::io::stdout(), "preloaded {image}")?;
            }
            Ok(())
        }),
    }
}

/// Works on the images of a data folder that no agent uses meanwhile.
fn alone(data_dir: &Path, work: impl FnOnce(Images) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let _held = state::lock(data_dir).map_err(|error| match error {
        StateError::InUse(folder) => anyhow::anyhow!(
            "limpet-agent is running on {}: stop it first; containers go on without it",
            folder.display()
        ),
        error @ (StateError::Folder { .. }
        | StateError::Document(_)
        | StateError::Key(_)
        | StateError::NoId) => error.into(),
    })?;
    let images = Images::open(&data_dir.join("images"), Registries::default());
    work(images.context("cannot use the images of the data folder")?)
}

/// How far it has come, for a person who watches: nothing where standard error is no terminal.
struct Shown<'a> {
    file: &'a Path,
    percent: Option<AtomicU64>,
}

impl<'a> Shown<'a> {
    fn new(file: &'a Path) -> Self {
        let watched = std::io::stderr().is_terminal();
        Self { file, percent: watched.then(|| AtomicU64::new(u64::MAX)) }
    }

    fn tell(&self, Progress { received, total }: Progress) {
        let Some(percent) = &self.percent else { return };
        let reached = received.saturating_mul(100) / total.max(1);
        if percent.swap(reached, Ordering::Relaxed) != reached {
            let mb = |bytes: u64| bytes.div_ceil(1_000_000);
            let (file, received, total) = (self.file.display(), mb(received), mb(total));
            // Nobody watches any more: that is no reason to stop.
            let _ = write!(std::io::stderr(), "\r{file}: {received} of {total} MB");
        }
    }

    fn end(&self) {
        let told = self.percent.as_ref().is_some_and(|p| p.load(Ordering::Relaxed) != u64::MAX);
        if told {
            let _ = writeln!(std::io::stderr());
        }
    }
}

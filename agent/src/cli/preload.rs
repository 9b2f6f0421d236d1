//! `limpet-agent preload`: images from a file, for places with no registry.

use std::fs::File;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context;
use lexopt::prelude::*;

use crate::config::{self, Flags};
use crate::image::{ImageName, Images, Platform, Progress, Registries, pinned};
use crate::local::{self, PreloadNews, Request};
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
            Long("run-dir") => flags.run_dir = Some(parser.value()?.into()),
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
        Verb::Unpin(name) => match alone(&data_dir)? {
            None => {
                let request = Request::Unpin { name: name.to_string() };
                Ok(local::ask(&config::run_dir(&flags)?, &request).map(drop)?)
            }
            Some(Alone { images, .. }) => {
                let was_pinned = images.unpin(&name)?;
                anyhow::ensure!(was_pinned, "{name} is not preloaded: `--list` shows what is");
                Ok(())
            }
        },
        Verb::Preload { file, name } => {
            let shown = Shown::new(&file);
            let preloaded = match alone(&data_dir)? {
                None => {
                    anyhow::ensure!(
                        platform.is_none(),
                        "--platform is for the data folders of other machines: an agent runs here"
                    );
                    by_agent(&config::run_dir(&flags)?, &file, name.as_ref(), &shown)
                }
                Some(Alone { images, .. }) => {
                    let images = match platform {
                        Some(platform) => images.made_for(platform),
                        None => images,
                    };
                    let done =
                        images.preload(&file, name.as_ref(), &|progress| shown.tell(progress));
                    done.map(|all| all.iter().map(ToString::to_string).collect())
                        .map_err(Into::into)
                }
            };
            shown.end();
            for image in preloaded? {
                writeln!(std::io::stdout(), "preloaded {image}")?;
            }
            Ok(())
        }
    }
}

/// The agent that runs here does it.
fn by_agent(
    run_dir: &Path,
    file: &Path,
    name: Option<&ImageName>,
    shown: &Shown<'_>,
) -> anyhow::Result<Vec<String>> {
    let file = std::path::absolute(file)?;
    let name = name.map(ToString::to_string);
    let (_, mut lines) = local::ask(run_dir, &Request::Preload { file, name })?;
    let mut preloaded = Vec::new();
    while let Some(news) = lines.read()? {
        match news {
            PreloadNews::Progress(received, total) => shown.tell(Progress { received, total }),
            PreloadNews::Preloaded(image) => preloaded.push(image),
            PreloadNews::Failed(why) => anyhow::bail!(why),
        }
    }
    anyhow::ensure!(!preloaded.is_empty(), "the agent ended before it was done: try again");
    Ok(preloaded)
}

/// The images of a data folder that no agent uses meanwhile.
struct Alone {
    images: Images,
    _held: File,
}

/// None where an agent runs: it must do it.
fn alone(data_dir: &Path) -> anyhow::Result<Option<Alone>> {
    let held = match state::lock(data_dir) {
        Err(StateError::InUse(_)) => return Ok(None),
        held => held?,
    };
    let images = Images::open(&data_dir.join("images"), Registries::default());
    let images = images.context("cannot use the images of the data folder")?;
    Ok(Some(Alone { images, _held: held }))
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

//! `limpet-agent id`

use std::io::Write;

use lexopt::prelude::*;

use crate::config::{self, Flags};
use crate::state::{self, State};

/// Reads the arguments behind the verb; None asks for help.
pub(super) fn parse(mut parser: lexopt::Parser) -> Result<Option<Flags>, lexopt::Error> {
    let mut flags = Flags::default();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("data-dir") => flags.data_dir = Some(parser.value()?.into()),
            Long("config") => flags.config = Some(parser.value()?.into()),
            Short('h') | Long("help") => return Ok(None),
            Short(_) | Long(_) | Value(_) => return Err(argument.unexpected()),
        }
    }
    Ok(Some(flags))
}

/// Prints the device's id. One that has none gets it, and keeps it.
pub(super) fn run(flags: &Flags) -> anyhow::Result<()> {
    let naming = config::naming(flags)?;
    let folder = config::data_dir(flags)?;
    // An agent may run: it holds the folder, and has an identity.
    let id = match state::known_device(&folder)? {
        Some(known) => naming.id.unwrap_or(known),
        None => State::open_or(&folder, naming.id.clone(), || naming.fallback())?.identity.device,
    };
    Ok(writeln!(std::io::stdout(), "{id}")?)
}

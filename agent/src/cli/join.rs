//! `limpet-agent join`

use std::path::PathBuf;

use lexopt::prelude::*;
use limpet_protocol::{DeviceId, Invitation, Purpose};

use crate::config::{self, Flags};
use crate::join;
use crate::state::{Opened, State};

/// What was asked for.
pub(super) struct Order {
    string: Option<String>,
    file: Option<PathBuf>,
    device: Option<DeviceId>,
    proxy: Option<String>,
    flags: Flags,
}

/// Reads the arguments behind the verb; None asks for help.
pub(super) fn parse(mut parser: lexopt::Parser) -> Result<Option<Order>, lexopt::Error> {
    let flags = Flags::default();
    let mut order = Order { string: None, file: None, device: None, proxy: None, flags };
    while let Some(argument) = parser.next()? {
        match argument {
            Value(string) if order.string.is_none() => order.string = Some(string.string()?),
            Long("file") => order.file = Some(parser.value()?.into()),
            Long("proxy") => order.proxy = Some(parser.value()?.string()?),
            Long("device-id") => order.device = Some(parser.value()?.parse()?),
            Long("data-dir") => order.flags.data_dir = Some(parser.value()?.into()),
            Long("config") => order.flags.config = Some(parser.value()?.into()),
            Short('h') | Long("help") => return Ok(None),
            Short(_) | Long(_) | Value(_) => return Err(argument.unexpected()),
        }
    }
    match (&order.string, &order.file) {
        (Some(_), None) | (None, Some(_)) => Ok(Some(order)),
        _ => Err("join wants the STRING of `limpet token create --join`, or --file FILE".into()),
    }
}

/// Joins.
pub(super) fn run(order: Order) -> anyhow::Result<()> {
    let invitation = match (&order.string, &order.file) {
        (Some(string), _) => Invitation::parse(string, Purpose::Join)?,
        (None, Some(file)) => join::invitation(file)?,
        (None, None) => anyhow::bail!("there is no join string"),
    };
    let proxies = config::proxies(&order.flags, order.proxy.as_deref())?;
    let folder = config::data_dir(&order.flags)?;
    let naming = config::naming(&order.flags)?;
    let id = order.device.or_else(|| naming.id.clone());
    let Opened { state, identity, clock_floor_ms, .. } =
        State::open_or(&folder, id, || naming.fallback())?;
    crate::clock::raise_floor(clock_floor_ms);
    let member = join::join(&state, &identity, &invitation, &proxies)?;
    let proxy = match order.proxy {
        Some(_) => ", which wants the proxy as `url` of [proxy] in agent.toml",
        None => "",
    };
    let said = format!("joined as {}; start it with `limpet-agent run`{proxy}\n", member.device);
    Ok(std::io::Write::write_all(&mut std::io::stdout(), said.as_bytes())?)
}

//! `limpet-agent install`, `uninstall` and `end`

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::Context;
use lexopt::prelude::*;
use limpet_protocol::{Invitation, Purpose};
use limpet_service::install::{self, Service, is_booted};

use crate::config::{self, Config, Flags};
use crate::runtime::Runtime;
use crate::{device, state};

const SERVICE: Service = Service {
    name: "limpet-agent",
    program: "limpet-agent",
    files: &[
        (
            "/usr/lib/systemd/system/limpet-agent.service",
            include_str!("../../../systemd/limpet-agent.service"),
        ),
        (
            "/usr/lib/sysusers.d/limpet.conf",
            include_str!("../../../systemd/sysusers.d/limpet.conf"),
        ),
        (
            "/usr/lib/tmpfiles.d/limpet.conf",
            include_str!("../../../systemd/tmpfiles.d/limpet.conf"),
        ),
    ],
};

/// What was asked for.
pub(super) enum Order {
    Install { join: Option<String> },
    Uninstall { purge: bool },
    End,
}

/// Reads the arguments behind the verb; None asks for help.
pub(super) fn parse(
    verb: &str,
    mut parser: lexopt::Parser,
) -> Result<Option<Order>, lexopt::Error> {
    let mut order = match verb {
        "install" => Order::Install { join: None },
        "uninstall" => Order::Uninstall { purge: false },
        _ => Order::End,
    };
    while let Some(argument) = parser.next()? {
        match (&mut order, argument) {
            (Order::Install { join }, Long("join")) => *join = Some(parser.value()?.string()?),
            (Order::Uninstall { purge }, Long("purge")) => *purge = true,
            (_, Short('h') | Long("help")) => return Ok(None),
            (_, argument) => return Err(argument.unexpected()),
        }
    }
    Ok(Some(order))
}

/// Does it.
pub(super) fn run(order: Order) -> anyhow::Result<()> {
    let config = Config::load(Flags::default())?;
    match order {
        Order::Install { join } => install(&config, join),
        Order::Uninstall { purge } => uninstall(&config, purge),
        Order::End => end(&config),
    }
}

fn say(line: String) {
    // There is nowhere left to say that standard output is closed.
    let _ = writeln!(std::io::stdout(), "{line}");
}

fn install(config: &Config, join: Option<String>) -> anyhow::Result<()> {
    if let Some(string) = &join {
        Invitation::parse(string, Purpose::Join)?;
    }
    SERVICE.check()?;
    let changed = SERVICE.install(&mut say)?;
    if !changed {
        say("limpet-agent is installed already".to_owned());
    }
    let member = config.broker.is_some() || state::has_joined(&config.data_dir);
    match join {
        Some(_) if member => {
            say("this device has joined already: the join string is not used".to_owned());
        }
        Some(string) => write_join(&config.join_file, &string)?,
        None => {}
    }
    if !member && !config.join_file.exists() {
        say("next: limpet-agent join STRING && systemctl start limpet-agent".to_owned());
    } else if is_booted() {
        SERVICE.start(changed)?;
        say("limpet-agent runs: see systemctl status limpet-agent".to_owned());
    } else {
        say("systemd does not run here: limpet-agent starts when the machine does".to_owned());
    }
    Ok(())
}

fn write_join(path: &Path, string: &str) -> anyhow::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(string.as_bytes()))
        .with_context(|| format!("cannot write {}", path.display()))
}

fn uninstall(config: &Config, purge: bool) -> anyhow::Result<()> {
    SERVICE.check()?;
    SERVICE.stop()?;
    end(config)?;
    SERVICE.uninstall(&mut say)?;
    let data = &config.data_dir;
    if !purge {
        say(format!("{} stays: --purge removes it", data.display()));
        return Ok(());
    }
    // What the configuration names may be anything; where an agent has been there is this.
    if state::exists(data) {
        install::remove(data, &mut say)?;
    }
    for path in [&config.run_dir, &config.join_file, Path::new(config::PATH)] {
        install::remove(path, &mut say)?;
    }
    // It stays where a controller has something there.
    let _ = std::fs::remove_dir("/etc/limpet");
    Ok(())
}

fn end(config: &Config) -> anyhow::Result<()> {
    let runtime = Runtime::open(device::folders(config), config.owner.clone())?;
    let ended = runtime.end_all()?;
    if ended > 0 {
        say(format!("ended {ended} containers"));
    }
    Ok(())
}

//! `limpet install` and `limpet uninstall`

use std::path::Path;

use clap::Args;
use limpet_service::install::{self, Service, is_booted};

use super::print;

const SERVICE: Service = Service {
    name: "limpet-controller",
    program: "limpet",
    files: &[
        (
            "/usr/lib/systemd/system/limpet-controller.service",
            include_str!("../../../systemd/limpet-controller.service"),
        ),
        (
            "/usr/lib/sysusers.d/limpet-controller.conf",
            include_str!("../../../systemd/sysusers.d/limpet-controller.conf"),
        ),
        (
            "/usr/lib/tmpfiles.d/limpet-controller.conf",
            include_str!("../../../systemd/tmpfiles.d/limpet-controller.conf"),
        ),
    ],
};

/// Where the unit has its store.
const DATA_DIR: &str = "/var/lib/limpet-controller";
/// Where its flags may be.
const FLAGS: &str = "/etc/limpet/controller.env";

/// Install a controller as a service of this machine's systemd, and start it
///
/// This program is put into /usr/bin, and its unit beside systemd's others. Done again, it replaces
/// what differs in this version, but for a unit that somebody has changed. Flags of `limpet up` are
/// LIMPET_UP_FLAGS="..." in /etc/limpet/controller.env.
///
/// Example: sudo ./limpet install
#[derive(Args)]
pub(super) struct Install {}

/// Take the service away again
///
/// What the controller knows stays in /var/lib/limpet-controller unless there is --purge: devices go
/// on as they are, but nobody can tell them anything without its keys.
///
/// Example: sudo limpet uninstall
#[derive(Args)]
pub(super) struct Uninstall {
    /// Remove store, keys and flags as well
    #[arg(long)]
    purge: bool,
}

fn say(line: String) {
    // There is nowhere left to say that standard output is closed.
    let _ = print(&format!("{line}\n"));
}

impl Install {
    pub(super) fn run(&self) -> anyhow::Result<()> {
        SERVICE.check()?;
        let changed = SERVICE.install(&mut say)?;
        if !changed {
            say("limpet is installed already".to_owned());
        }
        if !is_booted() {
            say("systemd does not run here: limpet starts when the machine does".to_owned());
            return Ok(());
        }
        SERVICE.start(changed)?;
        say(format!("limpet serves; next: limpet login --file {DATA_DIR}/login"));
        Ok(())
    }
}

impl Uninstall {
    pub(super) fn run(&self) -> anyhow::Result<()> {
        SERVICE.check()?;
        SERVICE.stop()?;
        SERVICE.uninstall(&mut say)?;
        if !self.purge {
            say(format!("{DATA_DIR} stays: --purge removes it"));
            return Ok(());
        }
        for path in [DATA_DIR, FLAGS] {
            install::remove(Path::new(path), &mut say)?;
        }
        // It stays where an agent has something there.
        let _ = std::fs::remove_dir("/etc/limpet");
        Ok(())
    }
}

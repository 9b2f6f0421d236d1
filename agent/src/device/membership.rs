//! Waiting to become a member of a fleet.

use std::path::Path;
use std::time::Duration;

use limpet_agent_core::Reconnect;
use limpet_service::Supervisor;

use crate::join;
use crate::proxy::Proxies;
use crate::state::{Identity, State};

/// How a device joins.
pub(super) struct Joining<'a> {
    pub(super) join_file: &'a Path,
    pub(super) proxies: &'a Proxies,
    pub(super) supervisor: &'a Supervisor,
}

/// A device that has joined is a member; one that was flashed with a join string uses it, for as long
/// as it takes, and deletes it. Neither the network nor a controller that refuses ends it.
///
/// # Errors
/// When it has not joined and has no join string.
pub(super) fn await_membership(
    state: &State,
    identity: Identity,
    joining: &Joining<'_>,
) -> anyhow::Result<Identity> {
    let join_file = joining.join_file;
    let member = match &identity.membership {
        Some(_) => identity,
        None => joined(state, &identity, joining)?,
    };
    match std::fs::remove_file(join_file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            log::warn!(
                "the used join string in {} cannot be deleted: {error}",
                join_file.display()
            );
        }
        Ok(()) | Err(_) => {}
    }
    Ok(member)
}

fn joined(state: &State, identity: &Identity, joining: &Joining<'_>) -> anyhow::Result<Identity> {
    let Joining { join_file, proxies, supervisor } = *joining;
    if !join_file.exists() {
        anyhow::bail!(
            "this device has not joined a fleet: `limpet-agent join STRING`, with the string that \
             `limpet token create --join` prints, or put it into {}",
            join_file.display()
        );
    }
    let mut waits = Reconnect::new(super::random().map(u64::from_be_bytes)?);
    loop {
        // Read anew each time: whoever is refused may be given another string.
        let invitation = join::invitation(join_file);
        let done = invitation.and_then(|with| join::join(state, identity, &with, proxies));
        let error = match done {
            Ok(member) => return Ok(member),
            Err(error) => error,
        };
        let said = format!("cannot join with the string in {}: {error}", join_file.display());
        log::warn!("{said}");
        // Whoever waits for the start need not wait for the network.
        supervisor.tell("READY=1\nWATCHDOG=1");
        supervisor.status(said);
        std::thread::sleep(Duration::from_millis(waits.wait_ms(None, 0)));
    }
}

//! Waiting to become a member of a fleet.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use limpet_service::Supervisor;

use crate::join;
use crate::proxy::Proxies;
use crate::state::{Identity, State};

/// Between two tries while the network is not there.
const AGAIN: Duration = Duration::from_secs(5);

/// How a device joins.
pub(super) struct Joining<'a> {
    pub(super) join_file: &'a Path,
    pub(super) proxies: &'a Proxies,
    pub(super) supervisor: &'a Supervisor,
}

/// A device that has joined is a member; one that was flashed with a join string uses it, for as long
/// as it takes, and deletes it.
///
/// # Errors
/// When it has not joined and has no join string, or is refused.
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
    let invitation = join::invitation(join_file)?;
    loop {
        match join::join(state, identity, &invitation, proxies) {
            Err(error) if error.may_pass() => {
                log::warn!("cannot join yet: {error}");
                // Whoever waits for the start need not wait for the network.
                supervisor.tell("READY=1\nWATCHDOG=1");
                supervisor.status(format!("cannot join yet: {error}"));
                std::thread::sleep(AGAIN);
            }
            done => {
                let said = || format!("cannot join with the string in {}", join_file.display());
                return done.with_context(said);
            }
        }
    }
}

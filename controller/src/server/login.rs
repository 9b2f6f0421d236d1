//! The first string that lets somebody log in: a file that only the controller's own user reads.

use std::path::{Path, PathBuf};

use anyhow::Context;

use super::fleet::Handle;
use super::store;

const LOGIN: &str = "login";

/// When such a file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Login {
    /// Where no admin has a token.
    First,
    /// In any case: the others are lost.
    Another,
}

/// Writes a string for an admin into the data folder, where one is to be made.
pub(super) async fn offer(
    fleet: &Handle,
    data_dir: &Path,
    login: Login,
) -> anyhow::Result<Option<PathBuf>> {
    let another = login == Login::Another;
    let made = fleet.call(move |fleet| fleet.make_login(another)).await?;
    let Some(text) = made? else { return Ok(None) };
    let path = data_dir.join(LOGIN);
    store::write_key(&path, format!("{text}\n").as_bytes())
        .context("nobody can log in with what was made: start with --new-login")?;
    Ok(Some(path))
}

//! What this controller proves itself with wherever it listens, and how that is replaced.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::ServerConfig;
use tokio::sync::watch;

use super::authority::Served;
use super::store;
use super::tls::{self, Shown};

/// Files of the data folder: chain, key, and authorities whose clients are let in.
const FILES: [&str; 3] = ["server.pem", "server.key", "authority.pem"];

/// Where it is shown: to clients of the API at once, to those of the broker through files.
pub(super) struct Proof {
    folder: PathBuf,
    api: watch::Sender<Arc<ServerConfig>>,
}

impl Proof {
    /// Begins with this; gives what the API shows as well.
    ///
    /// # Errors
    /// When the certificate cannot be used, or a file cannot be written.
    pub(super) fn new(folder: &Path, served: &Served) -> anyhow::Result<(Self, Shown)> {
        let (api, shown) = watch::channel(tls::config(served)?);
        let proof = Self { folder: folder.into(), api };
        proof.write(served)?;
        Ok((proof, shown))
    }

    /// From here on this is shown by the API, and by listeners that open.
    ///
    /// # Errors
    /// As [`Proof::new`]; what was shown before is shown then.
    pub(super) fn show(&self, served: &Served) -> anyhow::Result<()> {
        let config = tls::config(served)?;
        self.write(served)?;
        self.api.send_replace(config);
        Ok(())
    }

    /// The files, in PEM: chain, key, authorities.
    pub(super) fn files(&self) -> [PathBuf; 3] {
        FILES.map(|name| self.folder.join(name))
    }

    fn write(&self, served: &Served) -> anyhow::Result<()> {
        let contents = [&served.chain, &served.key, &served.authorities];
        for (path, content) in self.files().iter().zip(contents) {
            store::write_key(path, content.as_bytes())?;
        }
        Ok(())
    }
}

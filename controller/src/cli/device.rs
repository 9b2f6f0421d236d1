//! `limpet device`

use clap::{Args, Subcommand};
use ureq::http::Method;

mod upgrade;

use super::client::Client;
use super::print;
use crate::view::ReplaceRequest;

/// Let devices in, and out
#[derive(Args)]
pub(super) struct Device {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Let a device in that joined with a token of --require-approval
    Approve {
        /// Its id
        id: String,
    },
    /// Let a device in no more, and cut its connection; what runs on it goes on
    Revoke {
        /// Its id
        id: String,
    },
    /// Have a device that has joined take the place of another: its labels, and all that runs there
    ///
    /// The one that is replaced is let in no more, whatever becomes of it.
    Replace {
        /// The id of the device that goes
        old: String,
        /// The id of the device that comes: it has joined, and connected
        new: String,
    },
    Upgrade(Box<upgrade::Upgrade>),
    /// Forget a device that is not connected: it, or another, may join with its id
    Remove {
        /// Its id
        id: String,
    },
}

impl Device {
    pub(super) fn run(self, client: &Client) -> anyhow::Result<()> {
        let (id, method, order, done) = match &self.verb {
            Verb::Upgrade(_) => {
                let Verb::Upgrade(upgrade) = self.verb else { return Ok(()) };
                return upgrade.run(client);
            }
            Verb::Replace { old, new } => {
                let path = format!("/api/v1/devices/{old}/replace");
                client.order_with(&path, &ReplaceRequest { by: new.clone() })?;
                return print(&format!("device/{new} has taken the place of {old}\n"));
            }
            Verb::Approve { id } => (id, Method::POST, "/approve", "is let in"),
            Verb::Revoke { id } => {
                (id, Method::POST, "/revoke", "is revoked, and not let in any more")
            }
            Verb::Remove { id } => (id, Method::DELETE, "", "is forgotten"),
        };
        client.order(method, &format!("/api/v1/devices/{id}{order}"))?;
        print(&format!("device/{id} {done}\n"))
    }
}

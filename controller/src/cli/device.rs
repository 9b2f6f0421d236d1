//! `limpet device`

use clap::{Args, Subcommand};

use super::client::Client;
use super::print;

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
    /// Forget a device that is not connected: it, or another, may join with its id
    Remove {
        /// Its id
        id: String,
    },
}

impl Device {
    pub(super) fn run(self, client: &Client) -> anyhow::Result<()> {
        let (id, done) = match &self.verb {
            Verb::Approve { id } => (id, client.order(&format!("/api/v1/devices/{id}/approve"))),
            Verb::Revoke { id } => (id, client.order(&format!("/api/v1/devices/{id}/revoke"))),
            Verb::Remove { id } => (id, client.forget(&format!("/api/v1/devices/{id}"))),
        };
        done?;
        let what = match self.verb {
            Verb::Approve { .. } => "is let in",
            Verb::Revoke { .. } => "is revoked, and not let in any more",
            Verb::Remove { .. } => "is forgotten",
        };
        print(&format!("device/{id} {what}\n"))
    }
}

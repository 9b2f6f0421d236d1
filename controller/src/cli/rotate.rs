//! `limpet rotate`

use clap::{Args, Subcommand};

use super::client::Client;
use super::print;
use crate::view::{RotateAuthority, RotationView};

/// Replace what the fleet believes its controller by
///
/// Take a backup after each step: one from before it does not hold what devices believe by then.
///
/// Examples:
///   limpet rotate authority
///   limpet rotate status
///   limpet rotate authority --finish
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Rotate {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Say who has taken what is new, and who has not
    Status,
    /// Make another certificate authority, which takes the place of the present one
    ///
    /// From then on certificates come from the new one; clients of both are let in. Members are told
    /// at once, or when they connect; publishers need another certificate. --finish ends the former
    /// one when all have taken the new one. A device that has slept through that comes back by proof
    /// of its key. Join strings of the former authority are good until then; logins go on.
    Authority {
        /// End the former one: its clients are not let in any more
        #[arg(long)]
        finish: bool,
        /// Even if some have not taken the new one
        #[arg(long, requires = "finish")]
        force: bool,
    },
}

impl Rotate {
    pub(super) fn run(self, client: &Client) -> anyhow::Result<()> {
        let view: RotationView = match self.verb {
            Verb::Status => client.get("/api/v1/rotation")?,
            Verb::Authority { finish, force } => {
                let request = RotateAuthority { finish, force };
                client.ask("/api/v1/rotation/authority", &request)?
            }
        };
        print(&text(&view))
    }
}

fn text(view: &RotationView) -> String {
    let authority = &view.authority;
    let state = if authority.replaces { "takes the place of another" } else { "the only one" };
    let made = authority.made_at.as_deref().map(|at| format!(", made {at}")).unwrap_or_default();
    let mut text = format!("authority {:.16}{made}: {state}\n", authority.pin);
    text += &taken(view.members, &authority.waiting);
    if !authority.publishers.is_empty() {
        text += &format!("  publishers of the former: {}\n", authority.publishers.join(", "));
    }
    text
}

fn taken(members: usize, waiting: &[String]) -> String {
    let taken = members.saturating_sub(waiting.len());
    let mut text = format!("  taken by {taken} of {members} members\n");
    if !waiting.is_empty() {
        text += &format!("  not yet by: {}\n", waiting.join(", "));
    }
    text
}

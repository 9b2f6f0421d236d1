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
///   limpet rotate signing-key
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
    /// Make another key sign what devices are told
    ///
    /// Each device takes it by a document that the key signs which it believes: at once, or when it
    /// connects. What runs goes on. The former key is kept for as long as a device believes it.
    SigningKey,
}

impl Rotate {
    pub(super) fn run(self, client: &Client) -> anyhow::Result<()> {
        let view: RotationView = match self.verb {
            Verb::Status => client.get("/api/v1/rotation")?,
            Verb::Authority { finish, force } => {
                let request = RotateAuthority { finish, force };
                client.ask("/api/v1/rotation/authority", &request)?
            }
            Verb::SigningKey => client.ask("/api/v1/rotation/signing-key", &())?,
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
    text += &format!("signing key {}\n", view.signing_key.fingerprint);
    text + &taken(view.members, &view.signing_key.waiting)
}

fn taken(members: usize, waiting: &[String]) -> String {
    let taken = members.saturating_sub(waiting.len());
    let mut text = format!("  taken by {taken} of {members} members\n");
    if !waiting.is_empty() {
        text += &format!("  not yet by: {}\n", waiting.join(", "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::{AuthorityView, SigningKeyView};

    #[test]
    fn status_names_who_has_not_taken_what_is_new() {
        let mut view = RotationView {
            members: 3,
            authority: AuthorityView {
                pin: "07".repeat(32),
                made_at: Some("2026-11-26T12:00:00Z".to_owned()),
                replaces: true,
                waiting: vec!["pi-1".to_owned(), "pi-2".to_owned()],
                publishers: vec!["ci".to_owned()],
            },
            signing_key: SigningKeyView { fingerprint: "00112233".to_owned(), waiting: vec![] },
        };
        expect_test::expect![[r#"
            authority 0707070707070707, made 2026-11-26T12:00:00Z: takes the place of another
              taken by 1 of 3 members
              not yet by: pi-1, pi-2
              publishers of the former: ci
            signing key 00112233
              taken by 3 of 3 members
        "#]]
        .assert_eq(&text(&view));
        view.authority = AuthorityView {
            made_at: None,
            replaces: false,
            waiting: vec![],
            publishers: vec![],
            ..view.authority
        };
        expect_test::expect![[r#"
            authority 0707070707070707: the only one
              taken by 3 of 3 members
            signing key 00112233
              taken by 3 of 3 members
        "#]]
        .assert_eq(&text(&view));
    }
}

//! The fleet's authority is replaced: first both are believed, then the former is no more.

use limpet_protocol::{DeviceId, TokenId};

use super::super::audit::Entry;
use super::super::caller::Caller;
use super::super::tokens::time;
use super::{Fleet, Standing, client};
use crate::server::authority::AuthorityError;
use crate::server::store::StoreError;
use crate::view::{AuthorityView, RotationView};
use limpet_controller_core::Grant;

/// Names in a message at most.
const NAMED_MAX: usize = 10;

/// What is to be done about the authority.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::server) enum AuthorityStep {
    /// Another one is made, and certifies from here on; clients of both are let in.
    Begin,
    /// The former is no more, if nobody is left with it alone.
    Finish,
    /// The former is no more.
    Force,
}

/// Why nothing is replaced.
#[derive(Debug, thiserror::Error)]
pub(in crate::server) enum RotateError {
    #[error("this controller lets anybody in (--insecure): it has no authority to replace")]
    Insecure,
    #[error(
        "the authority is being replaced already: `limpet rotate status` says who has not taken it, \
         `limpet rotate authority --finish` ends that"
    )]
    UnderWay,
    #[error("no authority is being replaced: `limpet rotate authority` begins")]
    NotUnderWay,
    #[error(
        "not all have taken the new authority. Members: {members}; publishers: {publishers}. Members \
         take it when they connect, publishers need another certificate of `limpet token create \
         --publisher`. --force leaves them behind: members come back by proof of their keys, \
         publishers do not"
    )]
    Waiting { members: String, publishers: String },
    #[error(
        "this controller lets anybody in (--insecure): its devices trust the first key that they see, \
         and take no other"
    )]
    TrustOnFirstUse,
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error(transparent)]
    Key(StoreError),
}

impl Fleet {
    /// How far the fleet has come with what replaces something.
    pub(in crate::server) fn rotation(&self) -> Result<RotationView, RotateError> {
        let terms = self.members.terms.as_ref().ok_or(RotateError::Insecure)?;
        let authority = &terms.authority;
        Ok(RotationView {
            members: self.standing_members().count(),
            authority: AuthorityView {
                pin: authority.pin().to_string(),
                made_at: Some(authority.made_ms()).filter(|ms| *ms > 0).map(time),
                replaces: authority.replaces(),
                waiting: self.without_authority().iter().map(ToString::to_string).collect(),
                publishers: self.former_publishers().into_iter().map(|(_, name)| name).collect(),
            },
            signing_key: self.signing_key_view(),
        })
    }

    /// Begins to replace the authority, or ends that.
    pub(in crate::server) fn rotate_authority(
        &mut self,
        by: &Caller,
        step: AuthorityStep,
    ) -> Result<RotationView, RotateError> {
        let before = self.rotation().ok().and_then(|view| serde_json::to_string(&view).ok());
        let done = match step {
            AuthorityStep::Begin => self.begin_authority(),
            AuthorityStep::Finish | AuthorityStep::Force => self.finish_authority(step),
        };
        let done = done.and_then(|()| self.rotation());
        let outcome = match &done {
            Ok(_) => "ok".to_owned(),
            Err(why) => format!("refused: {why}"),
        };
        let after = done.as_ref().ok().and_then(|view| serde_json::to_string(view).ok());
        let action = match step {
            AuthorityStep::Begin => "rotate.authority",
            AuthorityStep::Finish | AuthorityStep::Force => "rotate.authority.finish",
        };
        self.audit(by, Entry { action, object: "authority".to_owned(), before, after, outcome });
        done
    }

    fn begin_authority(&mut self) -> Result<(), RotateError> {
        let terms = self.members.terms.as_mut().ok_or(RotateError::Insecure)?;
        if terms.authority.replaces() {
            return Err(RotateError::UnderWay);
        }
        terms.authority.replace(self.now_ms)?;
        self.note("authority-replaced", None, "both are believed until it is finished".to_owned());
        self.serve_anew();
        self.offer_to_all();
        Ok(())
    }

    fn finish_authority(&mut self, step: AuthorityStep) -> Result<(), RotateError> {
        let terms = self.members.terms.as_ref().ok_or(RotateError::Insecure)?;
        if !terms.authority.replaces() {
            return Err(RotateError::NotUnderWay);
        }
        let (members, publishers) = (self.without_authority(), self.former_publishers());
        if step == AuthorityStep::Finish && !(members.is_empty() && publishers.is_empty()) {
            let members = named(members.iter().map(ToString::to_string));
            let publishers = named(publishers.into_iter().map(|(_, name)| name));
            return Err(RotateError::Waiting { members, publishers });
        }
        if let Some(terms) = self.members.terms.as_mut() {
            terms.authority.finish()?;
        }
        self.note("authority-finished", None, "the former is believed no more".to_owned());
        self.serve_anew();
        let now_ms = self.now_ms;
        for (id, _) in publishers {
            self.change_token(id, |record| record.revoked_ms = Some(now_ms));
        }
        // They are not let in again, and then ask for a certificate by proof of their keys.
        for id in members {
            if let Some(key) = self.members.key(&id) {
                self.cut(client(&id, &key.fingerprint()));
            }
        }
        self.offer_to_all();
        Ok(())
    }

    fn standing_members(&self) -> impl Iterator<Item = (&DeviceId, &super::Member)> {
        let all = self.members.records.iter();
        all.filter(|(_, member)| member.standing != Standing::Revoked)
    }

    /// Members that have not taken the authorities in force.
    fn without_authority(&self) -> Vec<DeviceId> {
        let Some(terms) = self.members.terms.as_ref() else { return Vec::new() };
        let without =
            self.standing_members().filter(|(_, member)| !terms.authority.is_told(member.roots));
        without.map(|(id, _)| id.clone()).collect()
    }

    /// Publishers whose certificates are of the authority that is being replaced.
    fn former_publishers(&self) -> Vec<(TokenId, String)> {
        let authority = self.members.terms.as_ref().map(|terms| &terms.authority);
        let Some(authority) = authority.filter(|authority| authority.replaces()) else {
            return Vec::new();
        };
        let former = self.tokens.records.iter().filter(|(_, record)| {
            record.grant == Grant::Publisher
                && record.ended(self.now_ms).is_none()
                && record.made_ms < authority.made_ms()
        });
        former.map(|(id, record)| (*id, record.name.clone())).collect()
    }
}

/// Names, in a message.
fn named(names: impl ExactSizeIterator<Item = String>) -> String {
    let count = names.len();
    let mut named: Vec<String> = names.take(NAMED_MAX).collect();
    match count {
        0 => "none".to_owned(),
        _ if count > NAMED_MAX => {
            named.push(format!("and {} more", count - NAMED_MAX));
            named.join(", ")
        }
        _ => named.join(", "),
    }
}

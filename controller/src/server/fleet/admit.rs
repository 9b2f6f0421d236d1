//! Whom a token lets in, and what becomes of those whom it does not.

use std::net::SocketAddr;

use limpet_controller_core::limit::{Limit, Rate};
use limpet_controller_core::token::Ended;
use limpet_controller_core::{Grant, TokenRecord};
use limpet_protocol::{DeviceId, Labels, Token, TokenId};

use super::Fleet;
use super::audit::Entry;
use super::caller::{Caller, Source, Who};
use super::tokens::{TOKENS_MAX, Tokens, time};

/// Failures of one source: ten at once, then one in six seconds.
const FAILURES: Rate = Rate { every_ms: 6000, burst: 10, keys_max: 10_000 };
/// Requests with one token: far above what a person, or a script that polls, needs.
const REQUESTS: Rate = Rate { every_ms: 10, burst: 1000, keys_max: TOKENS_MAX };

/// Who has failed to show a token, and who has shown one.
pub(super) struct Counts {
    failures: Limit<Source>,
    requests: Limit<TokenId>,
}

impl Counts {
    pub(super) fn new() -> Self {
        Self { failures: Limit::new(FAILURES), requests: Limit::new(REQUESTS) }
    }
}

/// Why a request is not let in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(in crate::server) enum AuthError {
    #[error(
        "this controller asks for a token: `limpet login` with the string of `limpet token create`, \
         or of the file `login` in the controller's data folder"
    )]
    Missing,
    #[error("this token is wrong: the controller does not know it; `limpet login` with another")]
    Unknown,
    #[error("this token expired at {0}: `limpet login` with another")]
    Expired(String),
    #[error("this token was revoked at {0}: `limpet login` with another")]
    Revoked(String),
    #[error("this token is for {0}, not for the API")]
    Purpose(&'static str),
    #[error("too many wrong tokens from this address: wait {0} s; right ones are let in")]
    Failures(u64),
    #[error("too many requests with this token: wait {0} s")]
    Requests(u64),
}

/// What a device that joins is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::server) struct JoinGrant {
    pub(in crate::server) token: TokenId,
    pub(in crate::server) name: String,
    pub(in crate::server) labels: Labels,
    pub(in crate::server) require_approval: bool,
}

/// Why a device does not join.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(in crate::server) enum JoinRefusal {
    #[error(
        "the join token is wrong: this controller does not know it; copy the whole string of \
         `limpet token create --join`"
    )]
    Unknown,
    #[error("the join token expired at {0}: make another with `limpet token create --join`")]
    Expired(String),
    #[error("the join token is used up: make another with `limpet token create --join`")]
    UsedUp,
    #[error("the join token was revoked at {0}: ask who runs this fleet")]
    Revoked(String),
    #[error("this token is for {0}, not for joining: see `limpet token create --join`")]
    Purpose(String),
    #[error("too many wrong join tokens from this address: wait {0} s")]
    Failures(u64),
}

impl Tokens {
    /// What a token of the API opens.
    fn opens(&self, token: Option<&Token>, now_ms: u64) -> Result<(TokenId, Who), AuthError> {
        let token = token.ok_or(AuthError::Missing)?;
        let record = self.genuine(token).ok_or(AuthError::Unknown)?;
        match record.ended(now_ms) {
            Some(Ended::Expired(at_ms)) => return Err(AuthError::Expired(time(at_ms))),
            Some(Ended::Revoked(at_ms)) => return Err(AuthError::Revoked(time(at_ms))),
            Some(Ended::UsedUp) | None => {}
        }
        match &record.grant {
            Grant::Api { role, scope } => {
                let (name, scope) = (record.name.clone(), scope.clone());
                Ok((token.id, Who::Token { id: token.id, name, role: *role, scope }))
            }
            Grant::Join { .. } => Err(AuthError::Purpose("joining")),
            Grant::Publisher => Err(AuthError::Purpose("publishing over MQTT")),
        }
    }

    /// Whether a device may join with a token.
    fn joins(&self, token: &Token, now_ms: u64) -> Result<JoinGrant, JoinRefusal> {
        let record = self.genuine(token).ok_or(JoinRefusal::Unknown)?;
        let Grant::Join { labels, require_approval, .. } = &record.grant else {
            return Err(JoinRefusal::Purpose(record.grant.word()));
        };
        match record.ended(now_ms) {
            Some(Ended::Expired(at_ms)) => Err(JoinRefusal::Expired(time(at_ms))),
            Some(Ended::UsedUp) => Err(JoinRefusal::UsedUp),
            Some(Ended::Revoked(at_ms)) => Err(JoinRefusal::Revoked(time(at_ms))),
            None => Ok(JoinGrant {
                token: token.id,
                name: record.name.clone(),
                labels: labels.clone(),
                require_approval: *require_approval,
            }),
        }
    }
}

impl Fleet {
    /// Lets a request in, or says why not.
    ///
    /// A right token is let in however often others from its address were wrong: nobody can guess
    /// one, and who shares an address with an attacker must not be locked out. What failures are
    /// limited for is the work and the log lines that they make.
    pub(in crate::server) fn authenticate(
        &mut self,
        token: Option<&Token>,
        from: SocketAddr,
        request: &str,
    ) -> Result<Caller, AuthError> {
        match self.tokens.opens(token, self.now_ms) {
            Ok((id, who)) => {
                let counted = self.tokens.counts.requests.count(&id, self.steady_ms);
                counted.map_err(|wait_ms| AuthError::Requests(wait_ms.div_ceil(1000)))?;
                self.tokens.used_ms.insert(id, self.now_ms);
                Ok(Caller { who, from: Some(from) })
            }
            Err(why) => {
                let object = request.to_owned();
                self.failed(
                    from,
                    Who::Stranger,
                    Entry { action: "login", object, ..Entry::default() },
                    &why,
                )
                .map_err(AuthError::Failures)?;
                Err(why)
            }
        }
    }

    /// Counts and records a failure; the error is the time to wait, in seconds.
    fn failed(
        &mut self,
        from: SocketAddr,
        who: Who,
        entry: Entry,
        why: &dyn std::error::Error,
    ) -> Result<(), u64> {
        let outcome = format!("refused: {why}");
        self.audit_stranger(&Caller { who, from: Some(from) }, Entry { outcome, ..entry });
        let counted = self.tokens.counts.failures.count(&from.into(), self.steady_ms);
        counted.map_err(|wait_ms| wait_ms.div_ceil(1000))
    }

    /// Uses a join token up by one, for a device that says it is this one. The use counts if, and
    /// only if, the transaction under way is committed.
    pub(in crate::server) fn use_join_token(
        &mut self,
        token: &Token,
        device: &DeviceId,
        from: SocketAddr,
    ) -> Result<JoinGrant, JoinRefusal> {
        let grant = self.check_join_token(token, device, from)?;
        self.change_token(token.id, TokenRecord::used);
        self.tokens.used_ms.insert(token.id, self.now_ms);
        let by = Caller { who: Who::Device(device.clone()), from: Some(from) };
        let (object, outcome) = (
            format!("device/{device}"),
            format!("admitted by token {} {}", grant.token, grant.name),
        );
        self.audit(&by, Entry { action: "device.join", object, outcome, ..Entry::default() });
        Ok(grant)
    }

    /// What a join token would give, without using it; counts and records one that gives nothing.
    pub(super) fn check_join_token(
        &mut self,
        token: &Token,
        device: &DeviceId,
        from: SocketAddr,
    ) -> Result<JoinGrant, JoinRefusal> {
        let entry =
            Entry { action: "device.join", object: format!("device/{device}"), ..Entry::default() };
        let by = Caller { who: Who::Device(device.clone()), from: Some(from) };
        match self.tokens.joins(token, self.now_ms) {
            Ok(grant) => Ok(grant),
            Err(why @ JoinRefusal::Unknown) => {
                self.failed(from, by.who, entry, &why).map_err(JoinRefusal::Failures)?;
                Err(why)
            }
            Err(why) => {
                let outcome = format!("refused: {why}");
                self.audit_refused(&by, token.id, Entry { outcome, ..entry });
                Err(why)
            }
        }
    }

    /// Whether somebody may go on with what was begun.
    pub(in crate::server) fn is_still_good(&self, by: &Caller) -> bool {
        match &by.who {
            Who::Token { id, .. } => {
                let record = self.tokens.records.get(id);
                record.is_some_and(|record| record.ended(self.now_ms).is_none())
            }
            Who::Local | Who::Mqtt(_) | Who::Publisher { .. } | Who::Device(_) | Who::Stranger => {
                true
            }
        }
    }
}

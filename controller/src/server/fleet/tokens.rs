//! Tokens: made, checked, used, taken back.
//!
//! Of a token the store has an HMAC-SHA256 under a key that is not in the store. A slow hash such
//! as argon2 protects secrets that people choose, by making each guess dear; these are 256 random
//! bits, which nobody can guess at any price, and a slow hash would be a lever for whoever wants to
//! keep the controller busy.

use std::collections::BTreeMap;

use limpet_controller_core::token::{Ended, PublisherWish, Ttl, Wish, WishError};
use limpet_controller_core::{Grant, Role, TokenRecord};
use limpet_protocol::{Digest, Invitation, KeyError, Purpose, Token, TokenId};
use ring::hmac;

use super::Fleet;
use super::admit::Counts;
use super::audit::Entry;
use super::caller::{Caller, Who};
use crate::server::authority::AuthorityError;
use crate::server::clock::rfc3339;
use crate::server::store::Table;
use crate::view::{PublisherMade, TokenMade, TokenView};

/// Tokens at most, those included that have ended and are still listed.
pub(super) const TOKENS_MAX: usize = 10_000;
/// How long those that have ended are listed, and said to have ended to whoever uses them.
const ENDED_KEPT_MS: u64 = 30 * 24 * 3_600_000;

/// All tokens, and who has failed to show one.
pub(super) struct Tokens {
    key: hmac::Key,
    pub(super) records: BTreeMap<TokenId, TokenRecord>,
    /// When they were last used, by the wall clock, since the controller began: a request that
    /// changes nothing writes nothing.
    pub(super) used_ms: BTreeMap<TokenId, u64>,
    pub(super) counts: Counts,
}

/// Why a token is not made.
#[derive(Debug, thiserror::Error)]
pub(in crate::server) enum TokenError {
    #[error(
        "this controller asks for no token (--insecure): start it without --insecure to have tokens"
    )]
    Insecure,
    #[error(transparent)]
    Wish(#[from] WishError),
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error("there are {TOKENS_MAX} tokens: revoke some; they go 30 days after their end")]
    Many,
    #[error(transparent)]
    Key(#[from] KeyError),
}

impl Tokens {
    pub(super) fn new(key: hmac::Key) -> Self {
        Self { key, records: BTreeMap::new(), used_ms: BTreeMap::new(), counts: Counts::new() }
    }

    /// Makes what is known what is on disk.
    pub(super) fn load(&mut self, records: Vec<(String, TokenRecord)>) {
        let known = |(id, record): (String, _)| Some((id.parse().ok()?, record));
        self.records = records.into_iter().filter_map(known).collect();
    }

    fn hash(&self, token: &Token) -> Digest {
        let mut hash = [0; 32];
        hash.copy_from_slice(hmac::sign(&self.key, &message(token)).as_ref());
        Digest(hash)
    }

    /// The record of a token whose secret is right; compared in constant time.
    pub(super) fn genuine(&self, token: &Token) -> Option<&TokenRecord> {
        let record = self.records.get(&token.id)?;
        let verified = hmac::verify(&self.key, &message(token), &record.hash.0);
        verified.ok().map(|()| record)
    }
}

impl Fleet {
    /// Makes a token, and the string that carries it: it is shown this once.
    pub(in crate::server) fn create_token(
        &mut self,
        by: &Caller,
        wish: Wish,
    ) -> Result<TokenMade, TokenError> {
        let terms = self.members.terms().ok_or(TokenError::Insecure)?;
        let token = Token::generate()?;
        let record = wish.record(self.now_ms, self.tokens.hash(&token))?;
        let purpose = match record.grant {
            Grant::Join { .. } => Purpose::Join,
            Grant::Api { .. } | Grant::Publisher => Purpose::Login,
        };
        let (servers, pin, id) = (terms.servers.clone(), terms.authority.pin(), token.id);
        let text = Invitation { purpose, servers, pin, token }.to_string();
        Ok(TokenMade { token: self.add_token(by, id, record)?, text })
    }

    /// Makes a certificate for somebody who publishes manifests over MQTT with this key.
    pub(in crate::server) fn create_publisher(
        &mut self,
        by: &Caller,
        wish: PublisherWish<'_>,
    ) -> Result<PublisherMade, TokenError> {
        let terms = self.members.terms().ok_or(TokenError::Insecure)?;
        let (record, key) = wish.record(self.now_ms)?;
        let id = Token::generate()?.id;
        let lives_ms = record.expires_ms.unwrap_or(u64::MAX).saturating_sub(self.now_ms);
        let lives = (self.now_ms, lives_ms);
        let certificate = terms.authority.certify_publisher(wish.name, id, &key, lives)?;
        let authorities = terms.broker_authorities();
        let broker = terms.brokers.first().cloned().unwrap_or_default();
        let token = self.add_token(by, id, record)?;
        Ok(PublisherMade { token, certificate, authorities, broker })
    }

    /// Keeps a token that was made.
    fn add_token(
        &mut self,
        by: &Caller,
        id: TokenId,
        record: TokenRecord,
    ) -> Result<TokenView, TokenError> {
        self.forget_ended_tokens();
        if self.tokens.records.len() >= TOKENS_MAX {
            return Err(TokenError::Many);
        }
        let view = self.token_view(id, &record);
        self.tokens.records.insert(id, record);
        self.change_token(id, |_| ());
        let entry = Entry {
            action: "token.create",
            object: format!("token/{id}"),
            after: serde_json::to_string(&view).ok(),
            outcome: "ok".to_owned(),
            ..Entry::default()
        };
        self.audit(by, entry);
        Ok(view)
    }

    /// Whether a publisher's certificate is still good.
    pub(in crate::server) fn may_publish(&self, id: TokenId) -> bool {
        let record = self.tokens.records.get(&id);
        record.is_some_and(|record| {
            record.grant == Grant::Publisher && record.ended(self.now_ms).is_none()
        })
    }

    /// Takes a token back; None where it is not known.
    pub(in crate::server) fn revoke_token(
        &mut self,
        by: &Caller,
        id: TokenId,
    ) -> Option<TokenView> {
        let now_ms = self.now_ms;
        let before = self.tokens.records.get(&id)?.revoked_ms;
        self.change_token(id, |record| record.revoked_ms = before.or(Some(now_ms)));
        let view = self.token_view(id, self.tokens.records.get(&id)?);
        let outcome = if before.is_some() { "unchanged" } else { "ok" };
        self.audit(
            by,
            Entry {
                action: "token.revoke",
                object: format!("token/{id}"),
                outcome: outcome.to_owned(),
                ..Entry::default()
            },
        );
        Some(view)
    }

    /// A string that lets somebody in as admin; None where there is an admin, unless `another` is
    /// asked for.
    pub(in crate::server) fn make_login(
        &mut self,
        another: bool,
    ) -> Result<Option<String>, TokenError> {
        let is_admin = |record: &TokenRecord| {
            matches!(record.grant, Grant::Api { role: Role::Admin, .. })
                && record.ended(self.now_ms).is_none()
        };
        if !another && self.tokens.records.values().any(is_admin) {
            return Ok(None);
        }
        let (name, role) = ("login".to_owned(), Role::Admin.to_string());
        let wish = Wish { name, role, ttl: Some(Ttl::Never), ..Wish::default() };
        let by = Caller { who: Who::Local, from: None };
        Ok(Some(self.create_token(&by, wish)?.text))
    }

    pub(in crate::server) fn token_views(&self) -> Vec<TokenView> {
        let records = self.tokens.records.iter();
        let mut views: Vec<_> = records.map(|(id, record)| self.token_view(*id, record)).collect();
        views.sort_by(|a, b| a.made_at.cmp(&b.made_at));
        views
    }

    fn token_view(&self, id: TokenId, record: &TokenRecord) -> TokenView {
        let status = match record.ended(self.now_ms) {
            None => "good",
            Some(Ended::Expired(_)) => "expired",
            Some(Ended::UsedUp) => "used up",
            Some(Ended::Revoked(_)) => "revoked",
        };
        let mut view = TokenView {
            id: id.to_string(),
            name: record.name.clone(),
            role: record.grant.word(),
            status: status.to_owned(),
            made_at: time(record.made_ms),
            expires_at: record.expires_ms.map(time),
            used_at: self.tokens.used_ms.get(&id).copied().map(time),
            select: BTreeMap::new(),
            uses_left: None,
            labels: BTreeMap::new(),
            require_approval: false,
        };
        match &record.grant {
            Grant::Api { scope, .. } => view.select.clone_from(&scope.0),
            Grant::Join { uses_left, labels, require_approval } => {
                view.uses_left = Some(*uses_left);
                view.labels = labels.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
                view.require_approval = *require_approval;
            }
            Grant::Publisher => {}
        }
        view
    }

    pub(super) fn change_token(&mut self, id: TokenId, change: impl FnOnce(&mut TokenRecord)) {
        if let Some(record) = self.tokens.records.get_mut(&id) {
            change(record);
            let put = self.store.put(Table::Tokens, &id.to_string(), record);
            self.stored(put);
        }
    }

    fn forget_ended_tokens(&mut self) {
        let now_ms = self.now_ms;
        let is_over = |record: &TokenRecord| {
            let end_ms = record.revoked_ms.or(record.expires_ms);
            end_ms.is_some_and(|end_ms| end_ms.saturating_add(ENDED_KEPT_MS) <= now_ms)
        };
        let over: Vec<TokenId> =
            self.tokens.records.iter().filter(|(_, r)| is_over(r)).map(|(id, _)| *id).collect();
        for id in over {
            self.tokens.records.remove(&id);
            self.tokens.used_ms.remove(&id);
            let deleted = self.store.delete(Table::Tokens, &id.to_string());
            self.stored(deleted);
        }
    }
}

fn message(token: &Token) -> [u8; 40] {
    let mut message = [0; 40];
    message[..8].copy_from_slice(&token.id.0);
    message[8..].copy_from_slice(token.secret.as_slice());
    message
}

pub(super) fn time(at_ms: u64) -> String {
    rfc3339(at_ms).unwrap_or_else(|| "another age".to_owned())
}

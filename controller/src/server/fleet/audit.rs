//! Who did what: written in the transaction of the change itself, so that there is neither without
//! the other.

use std::fmt;

use limpet_controller_core::limit::Quiet;
use limpet_protocol::TokenId;

use super::Fleet;
use super::caller::{Caller, Source, Who};
use crate::server::clock::rfc3339;
use crate::server::store::{AuditFilter, AuditRow};
use crate::view::AuditView;

/// What opened nothing is written once in this time for each source, with how often it came.
const REFUSED_EVERY_MS: u64 = 600_000;
/// Sources, and tokens with what they were refused, that are told apart: 14,400 rows a day of
/// strangers at most, and ten times that of those who have a token.
const STRANGERS_MAX: usize = 100;
const REFUSED_MAX: usize = 1000;

/// An entry of the audit log, but for who and when.
#[derive(Debug, Default)]
pub(in crate::server) struct Entry {
    /// `deployment.apply`
    pub(in crate::server) action: &'static str,
    /// `deployment/web`
    pub(in crate::server) object: String,
    /// What was, and what is, as a person reads it; without secrets.
    pub(in crate::server) before: Option<String>,
    pub(in crate::server) after: Option<String>,
    /// `ok`, a word for what was done, or `refused: ` and why.
    pub(in crate::server) outcome: String,
}

/// Whose refusals were written when.
pub(super) struct Refusals {
    strangers: Quiet<(Option<Source>, &'static str)>,
    known: Quiet<(Known, &'static str, String)>,
}

/// Who is told apart also by what it was refused.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Known {
    Token(TokenId),
    /// Where no token is asked for.
    Source(Option<Source>),
}

impl Refusals {
    pub(super) fn new() -> Self {
        Self {
            strangers: Quiet::new(REFUSED_EVERY_MS, STRANGERS_MAX),
            known: Quiet::new(REFUSED_EVERY_MS, REFUSED_MAX),
        }
    }
}

impl Fleet {
    /// Adds an entry.
    pub(in crate::server) fn audit(&mut self, by: &Caller, entry: Entry) {
        let Entry { action, object, before, after, outcome } = entry;
        let put = self.store.put_audit(&AuditRow {
            seq: 0,
            at_ms: self.now_ms,
            who: by.who.to_string(),
            source: by.from.map(|from| from.to_string()),
            action: action.to_owned(),
            object,
            before,
            after,
            outcome,
        });
        self.stored(put);
    }

    /// Adds an entry of something refused to a stranger, but not every time.
    pub(super) fn audit_stranger(&mut self, by: &Caller, entry: Entry) {
        let key = (by.from.map(Source::from), entry.action);
        if let Some(untold) = self.refusals.strangers.again(&key, self.steady_ms) {
            self.audit(by, with_count(entry, untold));
        }
    }

    /// Adds an entry of something refused to whoever has a token, but not every time.
    pub(in crate::server) fn audit_refused(&mut self, by: &Caller, token: TokenId, entry: Entry) {
        self.audit_known(by, Known::Token(token), entry);
    }

    fn audit_known(&mut self, by: &Caller, known: Known, entry: Entry) {
        let key = (known, entry.action, entry.object.clone());
        if let Some(untold) = self.refusals.known.again(&key, self.steady_ms) {
            self.audit(by, with_count(entry, untold));
        }
    }

    /// Adds an entry of what was refused, and why, but not every time: it changed nothing.
    pub(super) fn audit_failed(&mut self, by: &Caller, entry: Entry, why: &dyn fmt::Display) {
        let Entry { action, object, .. } = entry;
        let outcome = format!("refused: {why}");
        let entry = Entry { action, object, outcome, ..Entry::default() };
        match &by.who {
            Who::Token { id, .. } | Who::Publisher { token: id, .. } => {
                self.audit_refused(by, *id, entry);
            }
            Who::Local | Who::Mqtt(_) => {
                self.audit_known(by, Known::Source(by.from.map(Source::from)), entry);
            }
            Who::Device(_) | Who::Stranger => self.audit_stranger(by, entry),
        }
    }

    /// Adds an entry of what was done, or, but not every time, of what was refused.
    pub(super) fn audit_done<E: fmt::Display>(
        &mut self,
        by: &Caller,
        entry: Entry,
        refused: Option<&E>,
    ) {
        match refused {
            None => self.audit(by, Entry { outcome: "ok".to_owned(), ..entry }),
            Some(why) => self.audit_failed(by, entry, why),
        }
    }

    /// Entries, in their order.
    pub(in crate::server) fn audit_views(
        &self,
        filter: &AuditFilter,
    ) -> Result<Vec<AuditView>, String> {
        let rows = self.store.audit(filter).map_err(|e| e.to_string())?;
        let view = |row: AuditRow| AuditView {
            seq: row.seq,
            at: rfc3339(row.at_ms).unwrap_or_default(),
            who: row.who,
            from: row.source,
            action: row.action,
            object: row.object,
            before: row.before,
            after: row.after,
            outcome: row.outcome,
        };
        Ok(rows.into_iter().map(view).collect())
    }
}

fn with_count(entry: Entry, untold: u64) -> Entry {
    match untold {
        0 => entry,
        count => Entry { outcome: format!("{} (and {count} before it)", entry.outcome), ..entry },
    }
}

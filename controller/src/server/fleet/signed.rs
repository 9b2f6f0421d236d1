//! Manifests that their publishers have signed: taken from whoever brings them, once, in their order,
//! and in time.
//!
//! What orders them is when they were signed. For each deployment the time of its latest order is
//! kept, beyond the deployment's end: one that is not later is refused, so that none is taken twice,
//! or after what an operator has changed since.

use std::net::SocketAddr;

use limpet_controller_core::Grant;
use limpet_protocol::envelope::{self, EnvelopeError};
use limpet_protocol::manifest::LIFE_MS_MAX;
use limpet_protocol::{DeploymentName, Digest, PublicKey, SignedManifest, Topic};
use serde::{Deserialize, Serialize};

use super::tokens::time;
use super::{Caller, Entry, Fleet, Who};
use crate::server::store::Table;

/// How far a publisher's clock may be ahead of the controller's, in milliseconds.
const AHEAD_MS_MAX: u64 = 300_000;

/// The latest order about a deployment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Order {
    /// When it was signed; where it came another way, when it was obeyed.
    at_ms: u64,
    /// The signed message, where it was one.
    message: Option<Digest>,
}

/// Why a manifest on a topic is not taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    #[error(
        "this controller uses a broker of somebody else, so a manifest must be signed by a publisher: \
         `limpet token create --publisher NAME --out DIR`, then `limpet sign -f FILE --key \
         DIR/key.pem`, and publish what that writes"
    )]
    Unsigned,
    #[error(
        "{0}: publish what `limpet sign` has written, whole, under the name that it was signed for"
    )]
    Envelope(#[from] EnvelopeError),
    #[error(
        "it is signed with the key {0}, which is no publisher's, or no more: `limpet token list` shows \
         them, `limpet token create --publisher` makes one"
    )]
    Unlisted(String),
    #[error("it was signed at {signed}, and was good until {until} only: sign it again")]
    Expired { signed: String, until: String },
    #[error(
        "it was signed at {0}, which is yet to come: set the clock of the machine that signs, or of \
         this controller"
    )]
    Ahead(String),
    #[error(
        "it was signed at {signed}, and this deployment was changed at {changed}: somebody repeats it, \
         or let it go late. Where it is what should run, sign it again"
    )]
    Outdated { signed: String, changed: String },
}

impl Refused {
    /// One word for each reason.
    fn word(&self) -> &'static str {
        match self {
            Self::Unsigned => "unsigned",
            Self::Envelope(_) => "malformed",
            Self::Unlisted(_) => "unlisted",
            Self::Expired { .. } => "expired",
            Self::Ahead(_) => "ahead",
            Self::Outdated { .. } => "outdated",
        }
    }
}

/// One that is to be obeyed.
struct Accepted {
    by: Caller,
    order: Order,
    manifest: Vec<u8>,
}

impl Fleet {
    /// Takes a manifest that a broker of somebody else brings.
    pub(super) fn foreign_manifest(&mut self, name: &DeploymentName, payload: &[u8]) {
        match envelope::is_signed(payload) {
            true => self.signed_manifest(None, name, payload),
            false => self.refuse_manifest(name, &Refused::Unsigned),
        }
    }

    /// Takes a signed manifest, whoever brings it.
    pub(super) fn signed_manifest(
        &mut self,
        from: Option<SocketAddr>,
        name: &DeploymentName,
        message: &[u8],
    ) {
        match self.accepted(from, name, message) {
            Ok(Some(Accepted { by, order, manifest })) => {
                self.obey(&by, name, &manifest);
                self.put_order(name, order);
            }
            // It was delivered twice, as messages may be.
            Ok(None) => log::debug!("a signed manifest of {name} came once more"),
            Err(refused) => self.refuse_manifest(name, &refused),
        }
    }

    /// What a signed manifest says and who has signed it; None where it is the latest order already.
    fn accepted(
        &mut self,
        from: Option<SocketAddr>,
        name: &DeploymentName,
        message: &[u8],
    ) -> Result<Option<Accepted>, Refused> {
        // Looked up before anything is verified: strangers' signatures cost nothing.
        let signer = envelope::claimed_signer(message)?;
        let who = self.publisher(&signer);
        let who = who.ok_or_else(|| Refused::Unlisted(signer.fingerprint()))?;
        let (opened, SignedManifest { until_ms, manifest }) =
            SignedManifest::open(message, &self.prefix, name)?;
        let order = Order { at_ms: opened.header.number, message: Some(Digest::of(message)) };
        let latest = self.order(name);
        if latest.message == order.message {
            return Ok(None);
        }
        let (signed, now_ms) = (time(order.at_ms), self.now_ms);
        if order.at_ms > now_ms.saturating_add(AHEAD_MS_MAX) {
            return Err(Refused::Ahead(signed));
        }
        if order.at_ms <= latest.at_ms {
            return Err(Refused::Outdated { signed, changed: time(latest.at_ms) });
        }
        let until_ms = until_ms.min(order.at_ms.saturating_add(LIFE_MS_MAX));
        if until_ms < now_ms {
            return Err(Refused::Expired { signed, until: time(until_ms) });
        }
        Ok(Some(Accepted { by: Caller { who, from }, order, manifest }))
    }

    /// The publisher whose key this is, where its token is good.
    fn publisher(&self, key: &PublicKey) -> Option<Who> {
        let hash = Digest::of(&key.0);
        let is_its = |(_, record): &(_, &limpet_controller_core::TokenRecord)| {
            record.grant == Grant::Publisher
                && record.hash == hash
                && record.ended(self.now_ms).is_none()
        };
        let (id, record) = self.tokens.records.iter().find(is_its)?;
        Some(Who::Publisher { name: record.name.clone(), token: *id })
    }

    /// Says why a manifest is not taken: on its topic, as an event, and in the audit log; not every time.
    fn refuse_manifest(&mut self, name: &DeploymentName, refused: &Refused) {
        let why = refused.to_string();
        let said = format!("deployment/{name}: {why}");
        let Some(foreign) = &mut self.foreign else {
            self.refuse("manifest-refused", None, &said);
            return self.answer_refused(name, &why);
        };
        let is_answered = foreign.answers.count(name, self.steady_ms).is_ok();
        let untold = foreign.audited.again(&refused.word(), self.steady_ms);
        if is_answered {
            self.answer_refused(name, &why);
        }
        if let Some(untold) = untold {
            let more =
                if untold > 0 { format!(" (and {untold} before it)") } else { String::new() };
            let by = Caller { who: Who::Stranger, from: None };
            let outcome = format!("refused: {why}{more}");
            let (action, object) = ("deployment.apply", format!("deployment/{name}"));
            self.audit(&by, Entry { action, object, outcome, ..Entry::default() });
        }
        self.refuse_foreign("manifest-refused", None, &said);
    }

    /// Not kept by the broker: that is the place of what became of the deployment itself.
    fn answer_refused(&mut self, name: &DeploymentName, why: &str) {
        let topic = Topic::DeployResult(name.clone()).under(&self.prefix);
        let result = super::deployments::refused(name.as_str(), why);
        let json = serde_json::to_vec(&result).unwrap_or_default();
        self.publish(topic, json, false);
    }

    /// A deployment was changed, or deleted: what was signed before that is over.
    pub(super) fn ordered(&mut self, name: &DeploymentName) {
        let at_ms = self.now_ms.max(self.order(name).at_ms);
        self.put_order(name, Order { at_ms, message: None });
    }

    fn order(&mut self, name: &DeploymentName) -> Order {
        let read = self.store.record(Table::Settings, &key(name));
        self.stored(read).flatten().unwrap_or_default()
    }

    fn put_order(&mut self, name: &DeploymentName, order: Order) {
        let put = self.store.put(Table::Settings, &key(name), &order);
        self.stored(put);
    }
}

/// What the latest order about a deployment is stored under.
fn key(name: &DeploymentName) -> String {
    format!("order/{name}")
}

//! Who is heard, and who is not.

use std::thread::JoinHandle;
use std::time::Duration;

use limpet_controller_core::Scope;
use limpet_controller_core::token::{Grant, Wish};
use limpet_protocol::{
    BootId, DeviceId, Digest, Facts, Header, Held, Hello, Invitation, Join, Kind, Leaf, Nonce,
    OutboxId, PublicKey, Purpose, Renew, SigningKey, Token, Topic, envelope,
};
use serde::Serialize;
use tokio::runtime::Runtime;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::super::{Caller, Fleet, Handle, Outgoing, Standing, Terms, Who};
use crate::server::store::{AuditFilter, Store};
use crate::view::DeviceView;

mod rotation;

/// A controller that knows one device, which has joined.
struct Known {
    runtime: Runtime,
    fleet: Handle,
    thread: Option<JoinHandle<()>>,
    outgoing: UnboundedReceiver<Outgoing>,
    device: SigningKey,
    _folder: tempfile::TempDir,
}

fn id() -> DeviceId {
    "dev-0".parse().unwrap()
}

fn local() -> Caller {
    Caller { who: Who::Local, from: Some("127.0.0.1:1".parse().unwrap()) }
}

impl Known {
    fn joined(require_approval: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let keys = store.keys().unwrap();
        let (sender, outgoing) = unbounded_channel();
        let (fleet, thread) = Fleet::start(store, keys, Duration::from_secs(60), sender).unwrap();
        let terms = Terms::sample(folder.path()).unwrap();
        let runtime = Runtime::new().unwrap();
        let device = SigningKey::generate().unwrap();
        let known =
            Self { runtime, fleet, thread: Some(thread), outgoing, device, _folder: folder };
        known.call(move |fleet| fleet.set_terms(terms));
        known.join(require_approval);
        known
    }

    fn call<T: Send + 'static>(&self, work: impl FnOnce(&mut Fleet) -> T + Send + 'static) -> T {
        self.runtime.block_on(self.fleet.call(work)).unwrap()
    }

    fn signed<T: Serialize>(&self, kind: Kind, body: &T) -> Vec<u8> {
        let prefix = "limpet/v1".to_owned();
        let header = Header { prefix, device: id(), kind, epoch: 0, number: 1 };
        envelope::seal(&self.device, &header, body)
    }

    fn join(&self, require_approval: bool) {
        let token = self.token(require_approval);
        self.join_with(&self.device, &token).unwrap();
    }

    /// A token that is used up by one device.
    fn token(&self, require_approval: bool) -> Token {
        let wish = Wish {
            name: "rack".to_owned(),
            role: "join".to_owned(),
            labels: [("site".to_owned(), "berlin".to_owned())].into(),
            require_approval,
            ..Wish::default()
        };
        let made = self.call(|fleet| fleet.create_token(&local(), wish)).unwrap();
        Invitation::parse(&made.text, Purpose::Join).unwrap().token
    }

    /// A device of this key asks to join.
    fn join_with(&self, key: &SigningKey, token: &Token) -> Result<(), String> {
        self.join_believing(key, token, None)
    }

    fn join_believing(
        &self,
        key: &SigningKey,
        token: &Token,
        controller: Option<PublicKey>,
    ) -> Result<(), String> {
        let header = Header {
            prefix: "limpet/v1".to_owned(),
            device: id(),
            kind: Kind::Join,
            epoch: 0,
            number: 1,
        };
        let signed = envelope::seal(key, &header, &Join { token: token.clone(), controller });
        let from = "127.0.0.1:1".parse().unwrap();
        let joined = self.call(move |fleet| fleet.join(&signed, from).map_err(|e| e.to_string()));
        joined.map(drop)
    }

    fn hello(&self, connection: u64) -> Result<(), String> {
        self.greets(connection, Held::default(), None)
    }

    /// Says hello, holding this, believing this key.
    fn greets(
        &self,
        connection: u64,
        held: Held,
        controller: Option<PublicKey>,
    ) -> Result<(), String> {
        let hello = Hello {
            boot: BootId([1; 16]),
            connection,
            nonce: Nonce([1; 16]),
            agent_version: "0".try_into().unwrap(),
            features: vec![],
            labels: [("own".parse().unwrap(), "x".parse().unwrap())].into(),
            facts: Facts::default(),
            held,
            arriving: None,
            reported: Digest([0; 32]),
            outbox: OutboxId([1; 8]),
            keep_alive_s: 600,
            sealing_key: None,
            sent_ms: 0,
            recorded: None,
            controller,
        };
        let signed = self.signed(Kind::Hello, &hello);
        self.call(move |fleet| {
            let topic = Topic::Device(id(), Leaf::Hello).under(&fleet.prefix);
            fleet.device_message(&id(), &topic, &signed)
        })
    }

    fn renew(&self) {
        let signed = self.signed(Kind::Renew, &Renew { controller: None });
        let from = "127.0.0.1:1".parse().unwrap();
        self.call(move |fleet| fleet.renew(&signed, from)).unwrap();
    }

    /// The device, as it is listed to whoever is restricted to this.
    fn listed(&self, scope: &[(&str, &str)]) -> Vec<DeviceView> {
        let scope = scope.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        let scope = Scope(scope.collect());
        self.call(move |fleet| fleet.device_views(&scope))
    }

    fn presence(&self) -> String {
        self.listed(&[]).pop().unwrap().presence
    }

    fn stands(&self, standing: Standing) {
        self.call(move |fleet| fleet.set_standing(&local(), &id(), standing)).unwrap();
    }

    /// What the broker was to do since it was last asked: clients that it cuts, topics.
    fn ordered(&mut self) -> Vec<String> {
        let mut ordered = Vec::new();
        while let Ok(order) = self.outgoing.try_recv() {
            ordered.push(match order {
                Outgoing::Publish { topic, .. } => topic,
                Outgoing::Drop { client } => format!("cut {client}"),
                Outgoing::Serve(_) => "serve".to_owned(),
            });
        }
        ordered
    }

    fn cut(&self) -> String {
        format!("cut limpet/dev-0/{}", self.device.public().fingerprint())
    }
}

impl Drop for Known {
    fn drop(&mut self) {
        self.fleet.end();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

#[test]
fn who_lost_the_answer_joins_again_with_the_token_that_it_has_used_up() {
    let known = Known::joined(false);
    let used = known.token(true);
    known.join_with(&known.device, &used).unwrap();
    known.join_with(&known.device, &used).unwrap();
    let refused = |key: &SigningKey, token: &Token, why: &str| {
        let said = known.join_with(key, token).unwrap_err();
        assert!(said.contains(why), "{why}: {said}");
    };
    refused(&SigningKey::generate().unwrap(), &used, "is used up");
    let id = used.id;
    let ends = |uses: u32, at_ms: Option<u64>| {
        known.call(move |fleet| {
            let record = fleet.tokens.records.get_mut(&id).unwrap();
            record.expires_ms = at_ms;
            if let Grant::Join { uses_left, .. } = &mut record.grant {
                *uses_left = uses;
            }
        });
    };
    ends(1, Some(1));
    known.join_with(&known.device, &used).unwrap();
    refused(&SigningKey::generate().unwrap(), &used, "expired");
    ends(0, None);
    let forged = Token { id, ..Token::generate().unwrap() };
    refused(&known.device, &forged, "the join token is wrong");
    // Another token since: the earlier one says nothing of how it is a member.
    known.join(false);
    refused(&known.device, &used, "is used up");
    let last = known.token(false);
    known.join_with(&known.device, &last).unwrap();
    let id = last.id;
    known.call(move |fleet| fleet.revoke_token(&local(), id));
    refused(&known.device, &last, "was revoked");
    known.stands(Standing::Revoked);
    refused(&known.device, &last, "was revoked");
}

#[test]
fn who_was_revoked_is_neither_heard_nor_told_though_its_connection_goes_on() {
    let mut known = Known::joined(false);
    let fingerprint = known.device.public().fingerprint();
    known.hello(1).unwrap();
    assert!(known.ordered().iter().any(|topic| topic.ends_with("/down/ack")));
    known.stands(Standing::Revoked);
    assert_eq!(known.ordered(), [known.cut()]);
    assert_eq!(known.hello(2).unwrap_err().split(": ").last(), Some("device dev-0 was revoked"));
    known.call(|fleet| {
        fleet.place_all();
        fleet.publish_desired(&id());
        fleet.alive(&id());
    });
    assert_eq!(known.ordered(), [""; 0]);
    // It was let in just before, and there was no connection yet that could be cut.
    known.call(move |fleet| fleet.connected(&id(), &fingerprint, 7));
    assert_eq!(known.ordered(), [known.cut()]);
    // Forgotten while the connection goes on, it would come back by a hello.
    assert_eq!(known.call(|fleet| fleet.forget(&local(), &id())), Some(false));
    known.call(|fleet| fleet.disconnected(&id(), 7));
    assert_eq!(known.call(|fleet| fleet.forget(&local(), &id())), Some(true));
    let why = known.hello(3).unwrap_err();
    assert!(why.ends_with("device dev-0 has not joined this fleet"), "{why}");
    assert!(!known.call(|fleet| fleet.knows(&id())));
}

#[test]
fn who_waits_is_heard_once_it_is_approved() {
    let known = Known::joined(true);
    let why = known.hello(1).unwrap_err();
    assert!(why.ends_with("device dev-0 waits for `limpet device approve`"), "{why}");
    // It is listed, with what its token gave it, and nothing is placed on it.
    let view = known.listed(&[("site", "berlin")]).pop().unwrap();
    assert_eq!((view.id.as_str(), view.presence.as_str()), ("dev-0", "waiting"));
    assert_eq!((view.labels.len(), &view.labels["site"]), (1, &"berlin".to_owned()));
    assert!(view.joined_at.unwrap().starts_with("20"));
    assert!(known.listed(&[("site", "moon")]).is_empty());
    assert!(known.call(|fleet| fleet.candidates().is_empty()));
    known.stands(Standing::Member);
    assert_eq!(known.presence(), "joined");
    known.hello(1).unwrap();
    assert_eq!(known.presence(), "online");
    assert_eq!(known.call(|fleet| fleet.candidates().len()), 1);
    known.stands(Standing::Revoked);
    let view = known.listed(&[]).pop().unwrap();
    assert_eq!((view.presence.as_str(), view.labels.len()), ("revoked", 2));
    assert!(view.joined_at.is_some());
}

#[test]
fn every_renewal_is_in_the_audit_log() {
    let known = Known::joined(false);
    known.renew();
    known.renew();
    let filter =
        AuditFilter { limit: 10, name: Some("dev-0".to_owned()), ..AuditFilter::default() };
    let log = known.call(move |fleet| fleet.audit_views(&filter)).unwrap();
    let renewed = log.iter().filter(|entry| entry.action == "device.renew");
    assert_eq!(renewed.map(|entry| entry.outcome.as_str()).collect::<Vec<_>>(), ["ok", "ok"]);
}

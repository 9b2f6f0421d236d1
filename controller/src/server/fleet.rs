//! All that is known of the fleet, and the one thread that may change it.
//!
//! Work arrives as closures. As many as are waiting run in one transaction of the store; only when
//! it is on disk are they answered, and is what they want published sent. Where it cannot be
//! written, everybody is told so, and what is known becomes again what is on disk.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use limpet_controller_core::limit::Quiet;
use limpet_controller_core::presence::moved_ms;
use limpet_controller_core::{Deployed, Deployments, Inbox, Known, Presence, Secrets};
use limpet_protocol::{DeviceId, Held, ImagePolicy, Prefix, StreamId, WorkloadId};
use tokio::sync::mpsc;

use super::authority::Served;
use super::clock::{Steady, now_ms};
use super::logs::Stream;
use super::store::{EventRow, Keys, ReportedRow, Source, Store, StoreError, Table};

mod admit;
mod audit;
mod caller;
mod deployments;
mod desired;
mod devices;
mod foreign;
mod handle;
mod members;
mod policy;
mod presence;
mod programs;
mod record;
mod recover;
mod replace;
mod secrets;
mod signed;
mod tokens;
mod views;

pub(super) use admit::AuthError;
pub(super) use admit::JoinRefusal;
pub(super) use audit::Entry;
use audit::Refusals;
pub(super) use caller::{Caller, Who};
use foreign::Foreign;
use handle::{Answer, Work};
pub(super) use handle::{CallError, Handle};
use members::Members;
pub(super) use members::{AuthorityStep, MemberError, RotateError, Standing, Terms};
pub(super) use policy::Breaking;
pub(super) use programs::{Program, ProgramRefusal};
use record::{Adoption, Device, DeviceRecord, Link};
pub(super) use replace::ReplaceError;
pub(super) use secrets::SecretRefusal;
pub(super) use tokens::TokenError;
use tokens::Tokens;

/// Pieces of work that share one transaction at most.
const BATCH: usize = 1000;

/// What is not as it should be is said once in this time, however often it happens.
const REFUSED_EVERY_MS: u64 = 10_000;
/// Kinds and devices that are told apart in that.
const REFUSED_KINDS_MAX: usize = 10_000;

/// What the broker is to do.
#[derive(Debug)]
pub(super) enum Outgoing {
    /// Publish a message.
    Publish { topic: String, payload: Vec<u8>, retain: bool },
    /// Cut a client's connection.
    Drop { client: String },
    /// Whoever comes from here on is shown this.
    Serve(Box<Served>),
}

/// Everything that is known.
pub(super) struct Fleet {
    store: Store,
    keys: Keys,
    prefix: Prefix,
    /// Wall clock of the piece of work that runs, in milliseconds: what people read, and what is
    /// stored.
    now_ms: u64,
    clock: Steady,
    /// The clock that does not jump, of the piece of work that runs: ages are counted by it.
    steady_ms: u64,
    started_ms: u64,
    /// When time next changes somebody's presence, by the steady clock.
    due_ms: u64,
    lost_after_ms: u64,
    devices: BTreeMap<DeviceId, Device>,
    /// Since when the broker has a session with them.
    sessions: BTreeMap<DeviceId, i64>,
    deployments: Deployments,
    /// What the images of all of them must be.
    policy: Option<ImagePolicy>,
    /// Agents' programs, in the order that they came in.
    programs: Vec<Program>,
    /// Where devices fetch them, where nobody is asked who it is.
    plain_api: Option<String>,
    tokens: Tokens,
    members: Members,
    refusals: Refusals,
    /// None where the broker is this controller's own.
    foreign: Option<Foreign>,
    secrets: Secrets,
    pub(super) streams: BTreeMap<StreamId, Stream>,
    last_command: u64,
    /// By kind and device.
    refused: Quiet<(&'static str, Option<DeviceId>)>,
    to_publish: Vec<Outgoing>,
    /// Devices that have begun a connection in the transaction under way.
    greeted: BTreeSet<DeviceId>,
    outgoing: mpsc::UnboundedSender<Outgoing>,
    /// The first failure of the store in the transaction under way.
    failure: Option<StoreError>,
}

impl Fleet {
    /// Reads the store and starts the thread.
    pub(super) fn start(
        store: Store,
        keys: Keys,
        lost_after: Duration,
        outgoing: mpsc::UnboundedSender<Outgoing>,
    ) -> anyhow::Result<(Handle, JoinHandle<()>)> {
        let clock = Steady::new();
        let steady_ms = clock.now_ms();
        let tokens = Tokens::new(store.token_key()?);
        let mut fleet = Self {
            store,
            keys,
            prefix: Prefix::default(),
            now_ms: now_ms(),
            clock,
            steady_ms,
            started_ms: steady_ms,
            due_ms: 0,
            lost_after_ms: u64::try_from(lost_after.as_millis()).unwrap_or(u64::MAX),
            devices: BTreeMap::new(),
            sessions: BTreeMap::new(),
            deployments: BTreeMap::new(),
            policy: None,
            programs: Vec::new(),
            plain_api: None,
            tokens,
            members: Members::new(),
            refusals: Refusals::new(),
            foreign: None,
            secrets: Secrets::new(),
            streams: BTreeMap::new(),
            last_command: 0,
            refused: Quiet::new(REFUSED_EVERY_MS, REFUSED_KINDS_MAX),
            to_publish: Vec::new(),
            greeted: BTreeSet::new(),
            outgoing,
            failure: None,
        };
        fleet.load()?;
        fleet.publish_results()?;
        let (sender, receiver) = channel();
        let thread = std::thread::Builder::new()
            .name("fleet".to_owned())
            .spawn(move || fleet.run(&receiver))?;
        Ok((Handle(sender), thread))
    }

    /// Makes what is known what is on disk. Connections are kept, but for those whose hello is undone
    /// with the rest: what it said of the device is not known, and the device says it again.
    fn load(&mut self) -> Result<(), StoreError> {
        self.secrets = self.store.secrets()?;
        let mut statuses: BTreeMap<String, BTreeMap<WorkloadId, Known>> = BTreeMap::new();
        for row in self.store.reported()? {
            let ReportedRow { at_ms, status, .. } = row;
            let at_ms = moved_ms(at_ms, self.now_ms, self.steady_ms);
            if let Ok(workload) = row.workload.parse() {
                let known = Known { at_ms, status };
                statuses.entry(row.device).or_default().insert(workload, known);
            }
        }
        let mut devices = BTreeMap::new();
        for (id, (record, cursor)) in self.store.records::<(DeviceRecord, _)>(Table::Devices)? {
            let statuses = statuses.remove(&id).unwrap_or_default();
            let Ok(id) = id.parse::<DeviceId>() else {
                continue;
            };
            let before = self.devices.remove(&id).filter(|_| !self.greeted.contains(&id));
            let device = self.loaded(record, Inbox::new(cursor, statuses), before);
            devices.insert(id, device);
        }
        self.devices = devices;
        self.tokens.load(self.store.records(Table::Tokens)?);
        self.deployments = self
            .store
            .records::<Deployed>(Table::Deployments)?
            .into_iter()
            .map(|(_, deployed)| (deployed.deployment.name.clone(), deployed))
            .collect();
        self.load_members()?;
        self.load_programs()?;
        self.load_policy()
    }

    /// A device as it is stored; of one that was known before, its connection is kept.
    fn loaded(&self, mut record: DeviceRecord, inbox: Inbox, before: Option<Device>) -> Device {
        // A store of the first version does not say.
        if record.told == Held::default() {
            record.told = record.held;
        }
        let (now_ms, steady_ms) = (self.now_ms, self.steady_ms);
        let absence = record.absence.map(|presence| presence.moved(now_ms, steady_ms));
        let heard_ms = record.heard_ms.map(|at_ms| moved_ms(at_ms, now_ms, steady_ms));
        match before {
            Some(before) => Device { record, inbox: inbox.after(&before.inbox), ..before },
            None => Device {
                record,
                inbox,
                link: None,
                presence: absence.unwrap_or(Presence::Unknown { since_ms: self.started_ms }),
                heard_ms,
                adoption: None,
            },
        }
    }

    fn run(mut self, work: &Receiver<Option<Work>>) {
        loop {
            let wait_ms = self.due_ms.saturating_sub(self.clock.now_ms());
            let first = match work.recv_timeout(Duration::from_millis(wait_ms)) {
                Ok(Some(first)) => Some(first),
                Err(RecvTimeoutError::Timeout) => None,
                Ok(None) | Err(RecvTimeoutError::Disconnected) => return,
            };
            let mut batch: Vec<Work> = first.into_iter().collect();
            let mut ending = false;
            while batch.len() < BATCH {
                match work.try_recv() {
                    Ok(Some(next)) => batch.push(next),
                    Ok(None) => {
                        ending = true;
                        break;
                    }
                    Err(_) => break,
                }
            }
            self.transact(batch);
            if ending {
                break;
            }
        }
    }

    fn transact(&mut self, batch: Vec<Work>) {
        (self.now_ms, self.steady_ms) = (now_ms(), self.clock.now_ms());
        self.greeted.clear();
        self.failure = self.store.begin().err();
        self.look_for_absent();
        let answers: Vec<Answer> = batch.into_iter().filter_map(|work| work(self)).collect();
        let stored = match self.failure.take() {
            Some(error) => Err(error),
            None => self.store.commit(),
        };
        let stored = stored.map_err(|error| {
            log::error!("{error}");
            self.store.roll_back();
            self.to_publish.clear();
            if let Err(error) = self.load() {
                log::error!("{error}");
            }
            CallError::Store(error.to_string())
        });
        for message in self.to_publish.drain(..) {
            if self.outgoing.send(message).is_err() {
                log::debug!("the broker has ended");
            }
        }
        for answer in answers {
            answer(stored.clone());
        }
    }

    /// Notes a failure of the store: the transaction will be rolled back.
    fn stored<T>(&mut self, result: Result<T, StoreError>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                self.failure.get_or_insert(error);
                None
            }
        }
    }

    /// What a backup is made of.
    pub(super) fn backup(&mut self, by: &Caller) -> Source {
        let (action, outcome) = ("backup.take", "ok".to_owned());
        self.audit(by, Entry { action, object: "store".to_owned(), outcome, ..Entry::default() });
        self.store.source()
    }

    fn publish(&mut self, topic: String, payload: Vec<u8>, retain: bool) {
        self.to_publish.push(Outgoing::Publish { topic, payload, retain });
    }

    /// Cuts a client's connection, once what was changed is on disk.
    fn cut(&mut self, client: String) {
        self.to_publish.push(Outgoing::Drop { client });
    }

    fn event(&mut self, event: EventRow) {
        let put = self.store.put_event(&event);
        self.stored(put);
    }

    /// An event of the controller's own.
    fn note(&mut self, kind: &str, device: Option<&DeviceId>, message: String) {
        let at_ms = Some(self.now_ms);
        let device = device.map(ToString::to_string);
        self.event(EventRow {
            at_ms,
            device,
            kind: kind.to_owned(),
            message,
            ..EventRow::default()
        });
    }

    /// Something was refused: says so, but not every time.
    fn refuse(&mut self, kind: &'static str, device: Option<&DeviceId>, why: &str) {
        let Some(untold) = self.refused.again(&(kind, device.cloned()), self.steady_ms) else {
            return;
        };
        let more = match untold {
            0 => String::new(),
            count => format!(" (and {count} more before it)"),
        };
        log::warn!("refused: {why}");
        self.note(kind, device, format!("{why}{more}"));
    }
}

//! A controller: its core is real, its store and its thread are the least that they must be. Work is
//! done in transactions; what it publishes is sent when they are on disk.

use std::collections::{BTreeMap, BTreeSet};

use limpet_agent_core::Message;
use limpet_controller_core::presence::{Heard, Patience};
use limpet_controller_core::{Deployments, Inbox, Presence, Told};
use limpet_protocol::hello::KEEP_ALIVE_S;
use limpet_protocol::{Ack, BootId, DeploymentName, DesiredState, DeviceId};

use crate::operator::Ask;

mod deployments;
mod devices;
pub(crate) mod store;

use store::{Record, Row, Store};

/// A device that is away for this long is lost, in milliseconds.
const LOST_AFTER_MS: u64 = 300_000;

/// What a controller sends.
#[derive(Debug, Clone)]
pub(crate) enum ToDevice {
    Desired(Box<DesiredState>),
    Ack(u64, Ack),
}

/// A piece of work.
pub(crate) enum Work {
    /// A device has sent this, on this connection; whether there may be events that it no longer has.
    Message { device: DeviceId, connection: u64, message: Box<Message>, may_lack: bool },
    /// The broker says that this connection has ended.
    Went { device: DeviceId, boot: BootId, connection: u64 },
    /// An operator.
    Asked(Ask),
}

/// A device, as the controller knows it.
pub(crate) struct Device {
    pub(crate) record: Record,
    pub(crate) inbox: Inbox,
    /// Boot and number of its connection.
    pub(crate) link: Option<(BootId, u64)>,
    pub(crate) presence: Presence,
    /// It was connected, and has gone, since this controller began.
    pub(crate) went: bool,
}

/// The controller.
pub(crate) struct Controller {
    pub(crate) store: Store,
    pub(crate) backup: Option<Store>,
    /// The store has been a backup.
    pub(crate) restored: bool,
    pub(crate) runs: bool,
    /// Counts its lives.
    pub(crate) life: u64,
    started_ms: u64,
    /// Steady, and by the wall, in milliseconds.
    now_ms: u64,
    wall_ms: u64,
    pub(crate) devices: BTreeMap<DeviceId, Device>,
    pub(crate) deployments: Deployments,
    waiting: Vec<Work>,
    /// Of the transaction under way.
    changed: Option<Changed>,
}

/// What a transaction has changed, and what is to be sent once it is on disk.
#[derive(Default)]
struct Changed {
    devices: BTreeSet<DeviceId>,
    deployments: BTreeSet<DeploymentName>,
    told: Vec<(DeviceId, Told)>,
    /// Devices that have begun a connection: should that be undone, they say hello again.
    greeted: BTreeSet<DeviceId>,
    outgoing: Vec<(DeviceId, ToDevice)>,
}

impl Controller {
    pub(crate) fn new() -> Self {
        let mut controller = Self {
            store: Store::default(),
            backup: None,
            restored: false,
            runs: false,
            life: 0,
            started_ms: 0,
            now_ms: 0,
            wall_ms: 0,
            devices: BTreeMap::new(),
            deployments: Deployments::new(),
            waiting: Vec::new(),
            changed: None,
        };
        controller.start(0);
        controller
    }

    /// Begins with what is on disk; nobody is connected yet.
    pub(crate) fn start(&mut self, now_ms: u64) {
        self.runs = true;
        self.life += 1;
        self.started_ms = now_ms;
        self.devices.clear();
        self.load(&BTreeSet::new());
    }

    /// Makes what is known what is on disk; connections are kept, but for those of `greeted`.
    fn load(&mut self, greeted: &BTreeSet<DeviceId>) {
        let before = std::mem::take(&mut self.devices);
        let unknown = Presence::Unknown { since_ms: self.started_ms };
        for (id, row) in &self.store.devices {
            let before = before.get(id).filter(|_| !greeted.contains(id));
            let inbox = Inbox::new(row.cursor.clone(), row.statuses.clone());
            let inbox = match before {
                Some(before) => inbox.after(&before.inbox),
                None => inbox,
            };
            let device = Device {
                record: row.record.clone(),
                inbox,
                link: before.and_then(|device| device.link),
                presence: before.map_or(unknown, |device| device.presence),
                went: before.is_some_and(|device| device.went),
            };
            self.devices.insert(id.clone(), device);
        }
        self.deployments = self.store.deployments.clone();
    }

    /// Takes a piece of work; true where a transaction is to begin for it.
    pub(crate) fn take(&mut self, work: Work) -> bool {
        if self.runs {
            self.waiting.push(work);
        }
        self.runs && self.changed.is_none() && self.waiting.len() == 1
    }

    /// Does all that waits; nothing of it is on disk yet.
    pub(crate) fn transact(&mut self, now_ms: u64, wall_ms: u64) {
        (self.now_ms, self.wall_ms) = (now_ms, wall_ms);
        self.changed = Some(Changed::default());
        for work in std::mem::take(&mut self.waiting) {
            match work {
                Work::Message { device, connection, message, may_lack } => {
                    if let Message::Asleep { for_ms } = *message {
                        self.sleeps(&device, connection, for_ms);
                    } else {
                        self.message(&device, *message, may_lack);
                    }
                }
                Work::Went { device, boot, connection } => self.went(&device, boot, connection),
                Work::Asked(ask) => self.asked(ask),
            }
        }
    }

    /// The transaction is on disk: gives what is to be sent.
    pub(crate) fn commit(&mut self) -> Vec<(DeviceId, ToDevice)> {
        let changed = self.changed.take().unwrap_or_default();
        for id in changed.devices {
            let device = &self.devices[&id];
            let row = Row {
                record: device.record.clone(),
                cursor: device.inbox.cursor.clone(),
                statuses: device.inbox.statuses().clone(),
            };
            self.store.devices.insert(id, row);
        }
        for name in changed.deployments {
            match self.deployments.get(&name) {
                Some(deployed) => drop(self.store.deployments.insert(name, deployed.clone())),
                None => drop(self.store.deployments.remove(&name)),
            }
        }
        for (id, told) in changed.told {
            self.store.views.entry(id.clone()).or_default().take(&id, told);
        }
        changed.outgoing
    }

    /// The transaction cannot be written: all of it is undone, and nothing is sent.
    pub(crate) fn roll_back(&mut self) {
        let greeted = self.changed.take().unwrap_or_default().greeted;
        self.load(&greeted);
    }

    /// Whether work has come since the transaction began.
    pub(crate) fn has_work(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// It is killed: what was not on disk is lost, and nothing more is sent.
    pub(crate) fn crash(&mut self) {
        self.runs = false;
        self.changed = None;
        self.waiting.clear();
    }

    /// An old backup takes the place of the store.
    pub(crate) fn restore(&mut self) {
        if let Some(backup) = self.backup.clone() {
            self.store = backup;
            self.restored = true;
        }
    }

    /// What a transaction under way has changed.
    fn changed(&mut self) -> &mut Changed {
        self.changed.get_or_insert_default()
    }

    fn send(&mut self, id: &DeviceId, message: ToDevice) {
        self.changed().outgoing.push((id.clone(), message));
    }

    /// Whether a device is there.
    pub(crate) fn presence(&self, device: &Device) -> Presence {
        device.presence.next(self.now_ms, Heard::Nothing, self.patience())
    }

    fn patience(&self) -> Patience {
        Patience::new(KEEP_ALIVE_S, self.devices.len(), LOST_AFTER_MS)
    }
}

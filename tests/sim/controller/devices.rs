//! What devices say, and what they are told.

use std::collections::BTreeMap;

use limpet_agent_core::Message;
use limpet_controller_core::presence::Heard;
use limpet_controller_core::{Cursor, Inbox, Presence, Told, plan};
use limpet_protocol::{BootId, DesiredState, DeviceId, EventBatch, Held, Hello};

use super::{Controller, Device, Record, ToDevice};
use crate::invariant::Invariant;

impl Controller {
    pub(super) fn message(&mut self, id: &DeviceId, message: Message, may_lack: bool) {
        match message {
            Message::Hello(hello) => self.hello(id, &hello),
            Message::Reported(report) => {
                let wall_ms = self.wall_ms;
                let Some(device) = self.devices.get_mut(id) else { return };
                let Some(changes) = device.inbox.report(wall_ms, report) else { return };
                if changes.cursor || !changes.workloads.is_empty() {
                    self.changed().devices.insert(id.clone());
                }
                self.acknowledge(id, changes.differs);
            }
            Message::Events(batch) => self.events(id, batch, may_lack),
            Message::Asleep { .. } | Message::Result { .. } => {}
        }
    }

    pub(super) fn went(&mut self, id: &DeviceId, boot: BootId, connection: u64) {
        let patience = self.patience();
        let Some(device) = self.devices.get_mut(id) else { return };
        if device.link == Some((boot, connection)) {
            device.link = None;
            device.went = true;
            device.presence = device.presence.next(self.now_ms, Heard::Gone, patience);
        }
    }

    /// A device says that it sleeps; what an older connection says is ignored.
    pub(super) fn sleeps(&mut self, id: &DeviceId, connection: u64, for_ms: u64) {
        let patience = self.patience();
        let Some(device) = self.devices.get_mut(id) else { return };
        if device.link.is_some_and(|(_, latest)| latest == connection) {
            device.presence = device.presence.next(self.now_ms, Heard::Sleeps(for_ms), patience);
        }
    }

    fn hello(&mut self, id: &DeviceId, hello: &Hello) {
        let before = self.devices.get(id).map(|device| device.record.clone());
        let (held, told) = match &before {
            Some(before) => (before.held, before.told),
            None => (Held { epoch: 1, generation: 0 }, Held { epoch: 1, generation: 0 }),
        };
        let record = Record {
            labels: hello.labels.clone(),
            features: hello.features.clone(),
            memory_bytes: hello.facts.memory_bytes,
            held,
            told,
            ahead: (hello.accepted() > told).then_some(hello.accepted()),
            desired: before.as_ref().and_then(|before| before.desired.clone()),
        };
        let (now_ms, patience) = (self.now_ms, self.patience());
        let device = self.devices.entry(id.clone()).or_insert_with(|| Device {
            record: record.clone(),
            inbox: Inbox::new(Cursor::new(hello), BTreeMap::new()),
            link: None,
            presence: Presence::Offline { since_ms: now_ms },
            went: false,
        });
        let Some(differs) = device.inbox.hello(hello) else { return };
        let link = Some((hello.boot, hello.connection));
        let is_repeated = std::mem::replace(&mut device.link, link) == link;
        device.record = record;
        device.presence = device.presence.next(now_ms, Heard::Hello, patience);
        let fits_anew = before.as_ref().is_none_or(|before| {
            (&before.labels, &before.features) != (&hello.labels, &hello.features)
        });
        self.changed().devices.insert(id.clone());
        if !is_repeated {
            self.changed().greeted.insert(id.clone());
        }
        self.acknowledge(id, differs);
        if fits_anew {
            self.place_again();
        }
        let was_on_hold = before.as_ref().is_some_and(|before| before.ahead.is_some());
        match before {
            _ if self.devices[id].record.ahead.is_some() => {}
            Some(_) if !was_on_hold => self.bring_up_to_date(id, hello.accepted()),
            Some(_) | None => self.publish_desired(id),
        }
    }

    /// Sends its desired state to a device that holds an older one.
    fn bring_up_to_date(&mut self, id: &DeviceId, holds: Held) {
        let Some(device) = self.devices.get_mut(id) else { return };
        let record = &mut device.record;
        let Some(desired) = record.desired.clone().filter(|_| holds < record.held) else { return };
        record.told = record.told.max(record.held);
        self.send(id, ToDevice::Desired(Box::new(desired)));
    }

    /// Gives a device its next desired state. One on hold is given none.
    pub(super) fn publish_desired(&mut self, id: &DeviceId) {
        let device = self.devices.get_mut(id).filter(|device| device.record.ahead.is_none());
        let Some(device) = device else { return };
        device.record.held.generation += 1;
        let held = device.record.held;
        let workloads = plan::workloads(&self.deployments, id);
        let at_ms = self.wall_ms;
        let desired = DesiredState {
            held,
            at_ms,
            reconnect_spread_ms: 0,
            policy: None,
            upgrade: None,
            workloads,
        };
        device.record.desired = Some(desired.clone());
        let is_told = device.link.is_some();
        if is_told {
            device.record.told = held;
        }
        self.changed().devices.insert(id.clone());
        if is_told {
            self.send(id, ToDevice::Desired(Box::new(desired)));
        }
    }

    fn events(&mut self, id: &DeviceId, batch: EventBatch, may_lack: bool) {
        let Some(device) = self.devices.get_mut(id) else { return };
        let told = device.inbox.events(batch);
        for told in told {
            let lost = matches!(told, Told::Lost(_));
            Invariant::EventNotLost.holds(!lost || may_lack, || format!("{id}: {told:?}"));
            self.changed().told.push((id.clone(), told));
            self.changed().devices.insert(id.clone());
        }
        self.acknowledge(id, false);
    }

    fn acknowledge(&mut self, id: &DeviceId, send_whole: bool) {
        let Some(device) = self.devices.get(id) else { return };
        let Some((_, connection)) = device.link else { return };
        let ack = device.inbox.ack(send_whole);
        self.send(id, ToDevice::Ack(connection, ack));
    }

    /// The store's truth wins over that of the devices that are ahead of it.
    pub(super) fn recover(&mut self) {
        let on_hold = self.devices.iter().filter(|(_, device)| device.record.ahead.is_some());
        let on_hold: Vec<DeviceId> = on_hold.map(|(id, _)| id.clone()).collect();
        for id in on_hold {
            if let Some(device) = self.devices.get_mut(&id) {
                let ahead = device.record.ahead.take().unwrap_or_default();
                device.record.held.epoch = device.record.held.epoch.max(ahead.epoch) + 1;
                device.record.told = device.record.held;
            }
            self.publish_desired(&id);
        }
    }
}

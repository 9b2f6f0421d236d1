//! What devices say, and what they are told.

use std::collections::BTreeMap;

use limpet_controller_core::{Cursor, Inbox, Known, Told};
use limpet_protocol::envelope::{self, Expected};
use limpet_protocol::{
    Action, Command, CommandResult, DesiredState, DeviceId, EventBatch, Header, Held, Hello, Kind,
    Presence, PresenceState, Reported, StreamChunk, StreamId, Topic, Workload, WorkloadId,
};
use serde::Serialize;

use super::{Device, DeviceRecord, Fleet, Link};
use crate::server::store::{EventRow, ReportedRow, Table};

impl Fleet {
    /// Whether a client with this key may connect as this device.
    pub(in crate::server) fn may_connect(&mut self, id: &DeviceId, fingerprint: &str) -> bool {
        let known = self.devices.get(id).map(|device| device.record.key.fingerprint());
        match known {
            Some(known) if known != fingerprint => {
                let why = format!(
                    "another key ({fingerprint}) claims the id {id}, which belongs to {known}: give that \
                     device another id, or forget this one with DELETE /api/v1/devices/{id}"
                );
                self.refuse("device-refused", Some(id), &why);
                false
            }
            Some(_) | None => true,
        }
    }

    pub(in crate::server) fn connected(&mut self, id: &DeviceId, since: i64) {
        if let Some(device) = self.devices.get_mut(id) {
            device.session = Some(since);
        }
    }

    pub(in crate::server) fn disconnected(&mut self, id: &DeviceId, since: i64) {
        let Some(device) = self.devices.get_mut(id) else {
            return;
        };
        if device.session.is_none_or(|session| session <= since) {
            device.session = None;
            self.gone(id);
        }
    }

    fn gone(&mut self, id: &DeviceId) {
        let Some(device) = self.devices.get_mut(id) else {
            return;
        };
        device.heard_ms = self.now_ms;
        device.went = true;
        if device.link.take().is_some() {
            self.note("device-offline", Some(id), String::new());
            for stream in self.streams.values_mut().filter(|stream| stream.device == *id) {
                stream.fail(format!("device {id} went offline"));
            }
            self.streams.retain(|_, stream| stream.device != *id);
        }
    }

    /// Takes a message that a device published; the error says why it is refused.
    pub(in crate::server) fn device_message(
        &mut self,
        client: &DeviceId,
        topic: &str,
        payload: &[u8],
    ) -> Result<(), String> {
        let taken = self.take_message(client, topic, payload);
        taken.map_err(|why| {
            let why = format!("topic {topic}: {why}");
            self.refuse("message-refused", Some(client), &why);
            why
        })
    }

    fn take_message(
        &mut self,
        client: &DeviceId,
        topic: &str,
        payload: &[u8],
    ) -> Result<(), String> {
        let topic = Topic::parse(&self.prefix, topic).map_err(|e| e.to_string())?;
        let (id, kind, stream) = match topic {
            Topic::Device(id, kind) => (id, kind, None),
            Topic::Stream(id, stream) => (id, Kind::Stream, Some(stream)),
            Topic::Deploy(_) | Topic::DeployResult(_) => {
                return Err("devices do not publish deployments".to_owned());
            }
        };
        if id != *client {
            return Err(format!("device {client} may not speak for {id}"));
        }
        let known = self.devices.get(&id).map(|device| device.record.key);
        if known.is_none() && kind != Kind::Hello {
            return Err("a device begins with hello".to_owned());
        }
        let prefix = self.prefix.clone();
        let expected = Expected { prefix: &prefix, device: &id, kind, signer: known.as_ref() };
        let message = envelope::open(payload, expected).map_err(|e| e.to_string())?;
        let number = message.header.number;
        if let Some(device) = self.devices.get_mut(&id) {
            device.heard_ms = self.now_ms;
        }
        let malformed = |e: limpet_protocol::cbor::CborError| e.to_string();
        match kind {
            Kind::Hello => self.hello(&id, message.signer, message.read().map_err(malformed)?),
            Kind::Presence => self.announced(&id, message.read().map_err(malformed)?),
            Kind::Reported => self.reported(&id, message.read().map_err(malformed)?),
            Kind::Event => self.events(&id, message.read().map_err(malformed)?),
            Kind::Result => self.command_result(number, message.read().map_err(malformed)?),
            Kind::Stream => {
                let chunk: StreamChunk = message.read().map_err(malformed)?;
                self.stream_chunk(&id, stream, number, chunk);
            }
            Kind::Desired | Kind::Command | Kind::Ack => {
                return Err("only the controller says that".to_owned());
            }
        }
        Ok(())
    }

    fn hello(&mut self, id: &DeviceId, key: limpet_protocol::PublicKey, hello: Hello) {
        let before = self.devices.get(id).map(|device| device.record.clone());
        let record = match &before {
            Some(before) => DeviceRecord {
                agent_version: hello.agent_version.clone(),
                labels: hello.labels.clone(),
                facts: hello.facts.clone(),
                features: hello.features.clone(),
                ..before.clone()
            },
            None => DeviceRecord {
                key,
                agent_version: hello.agent_version.clone(),
                labels: hello.labels.clone(),
                facts: hello.facts.clone(),
                features: hello.features.clone(),
                // One that was forgotten holds what it was told before: the next follows it.
                held: hello.held.max(Held { epoch: 1, generation: 0 }),
                ahead: None,
            },
        };
        let link = Link { boot: hello.boot, connection: hello.connection, nonce: hello.nonce };
        let now_ms = self.now_ms;
        let device = self.devices.entry(id.clone()).or_insert_with(|| Device {
            record: record.clone(),
            inbox: Inbox::new(Cursor::new(&hello), BTreeMap::new()),
            link: None,
            session: None,
            heard_ms: now_ms,
            went: false,
        });
        let known = device.inbox.cursor.clone();
        let Some(differs) = device.inbox.hello(&hello) else {
            return;
        };
        let was_online = device.link.replace(link).is_some();
        device.record = record;
        let changed = before.as_ref() != Some(&device.record) || known != device.inbox.cursor;
        let fits_anew = before.as_ref().is_none_or(|before| {
            (&before.labels, &before.features, before.facts.memory_bytes)
                != (&hello.labels, &hello.features, hello.facts.memory_bytes)
        });
        if before.is_none() {
            let fingerprint = key.fingerprint();
            self.note("device-joined", Some(id), format!("trusting its key {fingerprint}"));
        }
        if !was_online {
            self.note("device-online", Some(id), String::new());
        }
        if changed {
            self.put_device(id);
        }
        self.acknowledge(id, differs);
        if fits_anew {
            self.place_all();
        }
        match before {
            Some(_) => self.bring_up_to_date(id, hello.held),
            None => self.publish_desired(id),
        }
    }

    /// Sends desired state to a device that is behind; one that is ahead is put on hold.
    fn bring_up_to_date(&mut self, id: &DeviceId, holds: Held) {
        let Some(device) = self.devices.get_mut(id) else {
            return;
        };
        let held = device.record.held;
        if holds > held && device.record.ahead.is_none() {
            device.record.ahead = Some(holds);
            self.put_device(id);
        }
        let ahead = self.devices.get(id).and_then(|device| device.record.ahead);
        if let Some(ahead) = ahead {
            let why = format!(
                "device {id} holds desired state {}.{}, this controller was at {}.{}: was it \
                 restored from an old backup? Nothing is published to the device; stop its agent, \
                 forget it with DELETE /api/v1/devices/{id}, and it joins anew",
                ahead.epoch, ahead.generation, held.epoch, held.generation
            );
            self.refuse("device-refused", Some(id), &why);
        } else if holds < held {
            let read = self.store.desired(id.as_str());
            if let Some(Some(signed)) = self.stored(read) {
                let topic = Topic::Device(id.clone(), Kind::Desired).under(&self.prefix);
                self.publish(topic, signed, false);
            }
        }
    }

    fn announced(&mut self, id: &DeviceId, presence: Presence) {
        let link = self.devices.get(id).and_then(|device| device.link);
        let current = link.is_some_and(|link| {
            (link.boot, link.connection) == (presence.boot, presence.connection)
        });
        if current && presence.state == PresenceState::Offline {
            self.gone(id);
        }
    }

    fn reported(&mut self, id: &DeviceId, report: Reported) {
        let (now_ms, Some(device)) = (self.now_ms, self.devices.get_mut(id)) else {
            return;
        };
        let Some(changes) = device.inbox.report(now_ms, report) else {
            return;
        };
        for workload in &changes.workloads {
            self.put_status(id, workload);
        }
        if changes.cursor {
            self.put_device(id);
        }
        self.acknowledge(id, changes.differs);
    }

    fn put_status(&mut self, id: &DeviceId, workload: &WorkloadId) {
        let device = self.devices.get(id);
        let known = device.and_then(|device| device.inbox.statuses().get(workload));
        let put = match known {
            Some(Known { at_ms, status }) => self.store.put_reported(&ReportedRow {
                device: id.to_string(),
                workload: workload.to_string(),
                at_ms: *at_ms,
                status: status.clone(),
            }),
            None => self.store.delete_reported(id.as_str(), workload.as_str()),
        };
        self.stored(put);
    }

    fn events(&mut self, id: &DeviceId, batch: EventBatch) {
        let (now_ms, Some(device)) = (self.now_ms, self.devices.get_mut(id)) else {
            return;
        };
        let told = device.inbox.events(batch);
        let any = !told.is_empty();
        for told in told {
            self.event(event_row(id, now_ms, told));
        }
        if any {
            self.put_device(id);
        }
        self.acknowledge(id, false);
    }

    fn acknowledge(&mut self, id: &DeviceId, send_whole: bool) {
        let Some(device) = self.devices.get(id) else {
            return;
        };
        let Some(link) = device.link else { return };
        let ack = device.inbox.ack(send_whole);
        self.send(id, Kind::Ack, link.connection, &ack);
    }

    fn send<T: Serialize>(&mut self, id: &DeviceId, kind: Kind, number: u64, body: &T) {
        let Some(device) = self.devices.get(id) else {
            return;
        };
        let epoch = device.record.held.epoch;
        let header =
            Header { prefix: self.prefix.to_string(), device: id.clone(), kind, epoch, number };
        let payload = envelope::seal(&self.key, &header, body);
        let topic = Topic::Device(id.clone(), kind).under(&self.prefix);
        self.publish(topic, payload, false);
    }

    /// Sends a command to a device that is connected; gives its number.
    pub(in crate::server) fn command(&mut self, id: &DeviceId, action: Action) -> Option<u64> {
        let nonce = self.devices.get(id)?.link?.nonce;
        // Grows through restarts of the controller without being stored, as wall clocks do.
        let number = self.now_ms.max(self.last_command + 1);
        self.last_command = number;
        self.send(id, Kind::Command, number, &Command { nonce, action });
        Some(number)
    }

    fn command_result(&mut self, number: u64, result: CommandResult) {
        let Some(error) = result.error else { return };
        if let Some(stream) = self.streams.values_mut().find(|stream| stream.command == number) {
            stream.fail(error);
        }
    }

    fn stream_chunk(
        &mut self,
        id: &DeviceId,
        stream: Option<StreamId>,
        number: u64,
        chunk: StreamChunk,
    ) {
        let stream = stream.and_then(|stream| self.streams.get_mut(&stream));
        if let Some(stream) = stream.filter(|stream| stream.device == *id) {
            stream.take(number, chunk);
        }
    }

    pub(super) fn put_device(&mut self, id: &DeviceId) {
        if let Some(device) = self.devices.get(id) {
            let put = self.store.put(
                Table::Devices,
                id.as_str(),
                &(&device.record, &device.inbox.cursor),
            );
            self.stored(put);
        }
    }

    /// The desired state that follows from where deployments are.
    pub(super) fn desired(&self, id: &DeviceId, held: Held) -> DesiredState {
        let workloads = self
            .deployments
            .values()
            .flat_map(|deployed| {
                deployed.slots.iter().filter(|(device, _)| device == id).map(|(_, workload)| {
                    Workload {
                        id: workload.clone(),
                        deployment: deployed.deployment.name.clone(),
                        revision: deployed.revision,
                        requires: deployed.deployment.spec.requires(),
                        spec: deployed.deployment.spec.clone(),
                    }
                })
            })
            .collect();
        DesiredState { held, at_ms: self.now_ms, reconnect_spread_ms: 0, workloads }
    }

    /// Gives a device its next desired state: stored, then published.
    pub(super) fn publish_desired(&mut self, id: &DeviceId) {
        let Some(device) = self.devices.get_mut(id) else {
            return;
        };
        device.record.held.generation += 1;
        let held = device.record.held;
        let told = device.link.is_some() && device.record.ahead.is_none();
        let desired = self.desired(id, held);
        let header = Header {
            prefix: self.prefix.to_string(),
            device: id.clone(),
            kind: Kind::Desired,
            epoch: held.epoch,
            number: held.generation,
        };
        let signed = envelope::seal(&self.key, &header, &desired);
        let put = self.store.put_desired(id.as_str(), &signed);
        self.stored(put);
        self.put_device(id);
        if told {
            let topic = Topic::Device(id.clone(), Kind::Desired).under(&self.prefix);
            self.publish(topic, signed, false);
        }
    }

    /// Forgets a device: its key, what it reported, what it was told. None where it is not known;
    /// false where it is connected: it would go on unseen.
    pub(in crate::server) fn forget(&mut self, id: &DeviceId) -> Option<bool> {
        if self.devices.get(id)?.link.is_some() {
            return Some(false);
        }
        self.devices.remove(id);
        let forgotten = self.store.forget_device(id.as_str());
        self.stored(forgotten);
        self.note("device-removed", Some(id), String::new());
        self.place_all();
        Some(true)
    }
}

fn event_row(id: &DeviceId, now_ms: u64, told: Told) -> EventRow {
    let device = Some(id.to_string());
    match told {
        Told::Lost(count) => EventRow {
            device,
            kind: "gap".to_owned(),
            message: format!("{count} events are lost: the device had no room for them"),
            ..EventRow::default()
        },
        Told::Event { event, ago_ms } => EventRow {
            at_ms: ago_ms.map(|ago_ms| now_ms.saturating_sub(ago_ms)),
            device,
            workload: event.workload.as_ref().map(ToString::to_string),
            deployment: event.workload.map(|workload| workload.deployment().to_string()),
            kind: event.kind.to_string(),
            message: event.exit.map_or(event.message, |exit| exit.to_string()),
            ..EventRow::default()
        },
    }
}

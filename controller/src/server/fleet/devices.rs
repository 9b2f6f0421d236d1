//! What devices say, and what they are told.

use std::collections::BTreeMap;

use limpet_controller_core::presence::{Heard, moved_ms};
use limpet_controller_core::{Cursor, Inbox, Known, Outdated, Presence, Told};
use limpet_protocol::envelope::{self, Expected};
use limpet_protocol::hello::KEEP_ALIVE_S;
use limpet_protocol::{
    Action, Command, CommandResult, DeviceId, EventBatch, Header, Held, Hello, Leaf, PublicKey,
    Reported, Returned, SealedChunk, StreamId, Topic, WorkloadId,
};
use serde::Serialize;

use super::{Caller, Device, DeviceRecord, Entry, Fleet, Link};
use crate::server::store::{EventRow, ReportedRow, Table};

impl Fleet {
    /// Whether a client with this key may connect as this device.
    pub(in crate::server) fn may_connect(&mut self, id: &DeviceId, fingerprint: &str) -> bool {
        if let Some(why) = self.keeps_out(id, fingerprint) {
            self.refuse("device-refused", Some(id), &why);
            return false;
        }
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

    pub(super) fn take_message(
        &mut self,
        client: &DeviceId,
        topic: &str,
        payload: &[u8],
    ) -> Result<(), String> {
        let topic = Topic::parse(&self.prefix, topic).map_err(|e| e.to_string())?;
        let Topic::Device(id, leaf) = topic else {
            return Err("devices do not publish deployments".to_owned());
        };
        if id != *client {
            return Err(format!("device {client} may not speak for {id}"));
        }
        // Asked anew for each message: the connection of one that was revoked may take a while to end.
        let known = match self.admitted(&id)? {
            Some(member) => Some(member.key),
            None => self.devices.get(&id).map(|device| device.record.key),
        };
        if !self.devices.contains_key(&id) && leaf != Leaf::Hello {
            return Err("a device begins with hello".to_owned());
        }
        let prefix = self.prefix.clone();
        let (kind, signer) = (leaf.kind(), known.as_ref());
        let expected = Expected { prefix: &prefix, device: &id, kind, signer };
        let message = envelope::open(payload, expected).map_err(|e| e.to_string())?;
        let number = message.header.number;
        // What somebody else's broker repeats is no sign of life.
        if let (None, Some(device)) = (&self.foreign, self.devices.get_mut(&id)) {
            device.heard_ms = Some(self.steady_ms);
        }
        let malformed = |e: limpet_protocol::cbor::CborError| e.to_string();
        match leaf {
            Leaf::Hello => {
                return self.hello(&id, message.signer, message.read().map_err(malformed)?);
            }
            Leaf::Presence => self.announced(&id, message.read().map_err(malformed)?),
            Leaf::Reported => self.reported(&id, message.read().map_err(malformed)?),
            Leaf::Event => self.events(&id, message.read().map_err(malformed)?),
            Leaf::Result => self.command_result(&id, number, message.read().map_err(malformed)?),
            Leaf::Returned => {
                let returned: Returned = message.read().map_err(malformed)?;
                return self.returned(&id, number, returned.signed);
            }
            Leaf::Stream(stream) => {
                let chunk = message.read::<SealedChunk>().map_err(malformed);
                return self.stream_chunk(&id, stream, number, chunk);
            }
            Leaf::Desired | Leaf::Command | Leaf::Ack => {
                return Err("only the controller says that".to_owned());
            }
        }
        Ok(())
    }

    fn hello(&mut self, id: &DeviceId, key: PublicKey, hello: Hello) -> Result<(), String> {
        let before = self.devices.get(id).map(|device| device.record.clone());
        let was_on_hold = before.as_ref().is_some_and(|before| before.ahead.is_some());
        let mut record = self.record_of(id, key, &hello, before.clone());
        if self.foreign.is_some() {
            self.greet(id, &hello, &mut record)?;
        }
        let Hello { boot, connection, nonce, controller, .. } = hello;
        let link = Link { boot, connection, nonce, controller };
        let steady_ms = self.steady_ms;
        let device = self.devices.entry(id.clone()).or_insert_with(|| Device {
            record: record.clone(),
            inbox: Inbox::new(Cursor::new(&hello), BTreeMap::new()),
            link: None,
            presence: Presence::Offline { since_ms: steady_ms },
            heard_ms: Some(steady_ms),
            adoption: None,
        });
        let known = device.inbox.cursor.clone();
        let Some(differs) = device.inbox.hello(&hello) else {
            return Ok(());
        };
        device.heard_ms = Some(steady_ms);
        let before_link = device.link.replace(link);
        let on_hold = record.ahead.is_some();
        device.record = record;
        if before_link.is_none_or(|before| before.connection != link.connection) {
            self.greeted.insert(id.clone());
        }
        let changed = before.as_ref() != Some(&device.record) || known != device.inbox.cursor;
        let fits_anew = before.as_ref().is_none_or(|before| {
            (&before.labels, &before.features, before.facts.memory_bytes)
                != (&device.record.labels, &hello.features, hello.facts.memory_bytes)
                || before.sealing_key != hello.sealing_key
        });
        let rekeyed = before.as_ref().is_some_and(|before| {
            before.sealing_key.is_some() && before.sealing_key != hello.sealing_key
        });
        if before.is_none() {
            let fingerprint = key.fingerprint();
            self.note("device-joined", Some(id), format!("trusting its key {fingerprint}"));
        }
        self.hear(id, Heard::Hello);
        self.believes(id, controller);
        if changed {
            self.put_device(id);
        }
        self.acknowledge(id, differs);
        self.offer_again(id);
        if fits_anew {
            self.place_all();
        }
        match before {
            _ if on_hold => self.tell_of_hold(id),
            // What was sealed to its former key opens no more.
            Some(_) if rekeyed || self.is_signed_otherwise(id) => self.publish_desired(id),
            Some(_) if !was_on_hold => self.bring_up_to_date(id, hello.accepted()),
            // It is new here, or has lost what it held beyond this store.
            Some(_) | None => self.publish_desired(id),
        }
        Ok(())
    }

    /// Notes a hello that somebody else's broker brings, where it is later than all before it.
    fn greet(
        &mut self,
        id: &DeviceId,
        hello: &Hello,
        record: &mut DeviceRecord,
    ) -> Result<(), String> {
        let inbox = self.devices.get(id).map(|device| &device.inbox);
        let taken = record.greetings.take(hello, inbox.map(|inbox| &inbox.cursor));
        if let (Err(Outdated::Events), Some(inbox)) = (taken, inbox) {
            // The device itself takes over how far it had come, and says hello again: no other can.
            let ack = inbox.ack(false);
            self.send(id, Leaf::Ack, hello.connection, &ack);
            self.ask_for_hello(id);
        }
        taken.map_err(|why| why.to_string())
    }

    /// What is to be stored of a device, from its hello.
    fn record_of(
        &mut self,
        id: &DeviceId,
        key: PublicKey,
        hello: &Hello,
        before: Option<DeviceRecord>,
    ) -> DeviceRecord {
        let (held, told) = match &before {
            Some(before) => (before.held, before.told),
            None => {
                // One that was forgotten holds at most what it was told before: the next follows it.
                let read = self.store.forgotten(id.as_str());
                let forgotten = self.stored(read).flatten().unwrap_or_default();
                let held = hello.accepted().min(forgotten).max(Held { epoch: 1, generation: 0 });
                (held, held)
            }
        };
        DeviceRecord {
            key: before.as_ref().map_or(key, |before| before.key),
            agent_version: hello.agent_version.clone(),
            labels: self.labels(id, hello),
            facts: hello.facts.clone(),
            features: hello.features.clone(),
            sealing_key: hello.sealing_key,
            keep_alive_s: match hello.keep_alive_s {
                0 => KEEP_ALIVE_S,
                seconds => seconds,
            },
            held,
            told,
            ahead: (hello.accepted() > told).then_some(hello.accepted()),
            absence: before.as_ref().and_then(|before| before.absence),
            heard_ms: before.as_ref().and_then(|before| before.heard_ms),
            upgrade: before.as_ref().and_then(|before| before.upgrade.clone()),
            upgrading: before.as_ref().and_then(|before| before.upgrading.clone()),
            greetings: before.map(|before| before.greetings).unwrap_or_default(),
        }
    }

    fn reported(&mut self, id: &DeviceId, report: Reported) {
        let (now_ms, Some(device)) = (self.steady_ms, self.devices.get_mut(id)) else {
            return;
        };
        let upgrading = report.upgrade.clone();
        let Some(changes) = device.inbox.report(now_ms, report) else {
            return;
        };
        if upgrading.is_some() {
            device.record.upgrading = upgrading;
        }
        if changes.cursor {
            device.heard_ms = Some(now_ms);
        }
        for workload in &changes.workloads {
            self.put_status(id, workload);
        }
        if changes.cursor {
            self.put_device(id);
            // What it holds now may be what another signing key waited for.
            self.renew_certificate(id);
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
                at_ms: moved_ms(*at_ms, self.steady_ms, self.now_ms),
                status: status.clone(),
            }),
            None => self.store.delete_reported(id.as_str(), workload.as_str()),
        };
        self.stored(put);
    }

    fn events(&mut self, id: &DeviceId, batch: EventBatch) {
        let (now_ms, steady_ms) = (self.now_ms, self.steady_ms);
        let Some(device) = self.devices.get_mut(id) else {
            return;
        };
        let told = device.inbox.events(batch);
        let any = !told.is_empty();
        if any {
            device.heard_ms = Some(steady_ms);
        }
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
        self.send(id, Leaf::Ack, link.connection, &ack);
    }

    pub(super) fn send<T: Serialize>(&mut self, id: &DeviceId, leaf: Leaf, number: u64, body: &T) {
        let Some(device) = self.devices.get(id) else {
            return;
        };
        let epoch = device.record.held.epoch;
        let (prefix, kind) = (self.prefix.to_string(), leaf.kind());
        let header = Header { prefix, device: id.clone(), kind, epoch, number };
        let payload = envelope::seal(self.signer(id), &header, body);
        let topic = Topic::Device(id.clone(), leaf).under(&self.prefix);
        self.publish(topic, payload, false);
    }

    /// Sends a command to a device that is connected; gives its number.
    pub(in crate::server) fn command(&mut self, id: &DeviceId, action: Action) -> Option<u64> {
        let nonce = self.devices.get(id)?.link?.nonce;
        // Grows through restarts of the controller without being stored, as wall clocks do.
        let number = self.now_ms.max(self.last_command + 1);
        self.last_command = number;
        self.send(id, Leaf::Command, number, &Command { nonce, action });
        Some(number)
    }

    fn command_result(&mut self, id: &DeviceId, number: u64, result: CommandResult) {
        self.took_certificate(id, number, result.error.as_deref());
        let Some(error) = result.error else { return };
        self.not_returned(id, number, &error);
        if let Some(stream) = self.streams.values_mut().find(|stream| stream.command == number) {
            stream.fail(error);
        }
    }

    fn stream_chunk(
        &mut self,
        id: &DeviceId,
        stream: StreamId,
        number: u64,
        chunk: Result<SealedChunk, String>,
    ) -> Result<(), String> {
        let stream = self.streams.get_mut(&stream);
        // Nobody looks any more: what is still on its way is of no use.
        let Some(stream) = stream.filter(|stream| stream.device == *id) else {
            return chunk.map(drop);
        };
        let chunk = chunk.inspect_err(|why| stream.fail(why.clone()))?;
        stream.take(number, &chunk)
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

    /// Forgets a device: its key, what it reported, what it was told. None where the caller does not
    /// see it; false where it is connected: it would go on unseen.
    pub(in crate::server) fn forget(&mut self, by: &Caller, id: &DeviceId) -> Option<bool> {
        let entry =
            Entry { action: "device.forget", object: format!("device/{id}"), ..Entry::default() };
        let is_seen = self.sees(by.scope(), id);
        if is_seen && !self.devices.contains_key(id) && self.forget_member(id) {
            self.audit(by, Entry { outcome: "ok".to_owned(), ..entry });
            return Some(true);
        }
        let device = self.devices.get(id).filter(|_| is_seen)?;
        if device.link.is_some() || self.sessions.contains_key(id) {
            self.audit_failed(by, entry, &"it is connected");
            return Some(false);
        }
        let before = Some(format!("key {}", device.record.key));
        self.forget_record(id);
        self.forget_member(id);
        self.note("device-removed", Some(id), String::new());
        self.audit(by, Entry { before, outcome: "ok".to_owned(), ..entry });
        self.place_all();
        Some(true)
    }

    /// Lets go of what is stored of a device, but for the number of what it may still hold.
    pub(super) fn forget_record(&mut self, id: &DeviceId) {
        if let Some(device) = self.devices.remove(id) {
            let holds = device.record.told.max(device.record.ahead.unwrap_or_default());
            let forgotten = self.store.forget_device(id.as_str(), holds);
            self.stored(forgotten);
        }
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

//! Who is there: the broker, the devices and time say so, the core decides.

use limpet_controller_core::Presence;
use limpet_controller_core::presence::{Heard, Patience, moved_ms};
use limpet_protocol::{self as protocol, DeviceId, PresenceState};

use super::Fleet;
use super::members::client;
use crate::server::clock::rfc3339;

impl Fleet {
    /// The broker has a session with a device.
    pub(in crate::server) fn connected(&mut self, id: &DeviceId, fingerprint: &str, since: i64) {
        self.sessions.insert(id.clone(), since);
        // Revoked while it connected: there was nothing to cut then.
        if self.keeps_out(id, fingerprint).is_some() {
            self.cut(client(id, fingerprint));
        }
    }

    /// The broker has heard a sign of life.
    pub(in crate::server) fn alive(&mut self, id: &DeviceId) {
        if let Some(device) = self.devices.get_mut(id).filter(|device| device.link.is_some()) {
            device.heard_ms = Some(self.steady_ms);
            self.renew_certificate(id);
        }
    }

    /// The broker's session with a device has ended.
    pub(in crate::server) fn disconnected(&mut self, id: &DeviceId, since: i64) {
        if self.sessions.get(id).is_none_or(|session| *session <= since) {
            self.sessions.remove(id);
            self.gone(id);
        }
    }

    /// A device, or its will, says how it is; what an older connection says is ignored.
    pub(super) fn announced(&mut self, id: &DeviceId, presence: protocol::Presence) {
        let link = self.devices.get(id).and_then(|device| device.link);
        let is_current = link.is_some_and(|link| {
            (link.boot, link.connection) == (presence.boot, presence.connection)
        });
        match presence.state {
            PresenceState::Online => {}
            PresenceState::Offline if is_current => self.gone(id),
            PresenceState::Asleep { for_ms } if is_current => self.hear(id, Heard::Sleeps(for_ms)),
            PresenceState::Offline | PresenceState::Asleep { .. } => {}
        }
    }

    pub(super) fn gone(&mut self, id: &DeviceId) {
        self.unlink(id);
        self.hear(id, Heard::Gone);
    }

    /// Forgets a device's connection, and what it was asked on it.
    pub(super) fn unlink(&mut self, id: &DeviceId) {
        let Some(device) = self.devices.get_mut(id) else {
            return;
        };
        if device.link.take().is_some() {
            for stream in self.streams.values_mut().filter(|stream| stream.device == *id) {
                stream.fail(format!("device {id} went offline"));
            }
            self.streams.retain(|_, stream| stream.device != *id);
            self.not_returned_any(id);
        }
    }

    /// What follows from what was heard of a device; where its presence is another, that is stored
    /// and told.
    pub(super) fn hear(&mut self, id: &DeviceId, heard: Heard) {
        let devices = self.devices.len();
        let Some(device) = self.devices.get_mut(id) else {
            return;
        };
        let patience = Patience::new(device.record.keep_alive_s, devices, self.lost_after_ms);
        let (before, (now_ms, steady_ms)) = (device.presence, (self.now_ms, self.steady_ms));
        device.presence = before.next(steady_ms, heard, patience);
        let after = device.presence;
        self.due_ms = self.due_ms.min(after.due_ms(patience).unwrap_or(u64::MAX));
        if after == before {
            return;
        }
        let absence = after.to_store().map(|presence| presence.moved(steady_ms, now_ms));
        let heard_ms = device.heard_ms.map(|at_ms| moved_ms(at_ms, steady_ms, now_ms));
        if device.record.absence != absence {
            device.record.absence = absence;
            device.record.heard_ms = heard_ms.filter(|_| absence.is_some());
            self.put_device(id);
        }
        if let Some((kind, message)) = self.story(before, after) {
            self.note(kind, Some(id), message);
        }
    }

    fn story(&self, before: Presence, after: Presence) -> Option<(&'static str, String)> {
        let time = |ms| rfc3339(moved_ms(ms, self.steady_ms, self.now_ms)).unwrap_or_default();
        match after {
            Presence::Unknown { .. } => None,
            Presence::Online { .. } => Some(("device-online", String::new())),
            Presence::Asleep { for_ms, .. } => {
                let until = rfc3339(self.now_ms.saturating_add(for_ms)).unwrap_or_default();
                Some(("device-asleep", format!("until {until}")))
            }
            Presence::Offline { since_ms } => {
                let why = match before {
                    Presence::Unknown { .. } => {
                        "not heard since this controller began to listen".to_owned()
                    }
                    Presence::Asleep { .. } => {
                        format!("expected back at {}", time(since_ms))
                    }
                    Presence::Online { .. } | Presence::Offline { .. } | Presence::Lost { .. } => {
                        String::new()
                    }
                };
                Some(("device-offline", why))
            }
            Presence::Lost { since_ms } => {
                Some(("device-lost", format!("offline since {}", time(since_ms))))
            }
        }
    }

    /// Looks for those whose time has come, when it has.
    pub(super) fn look_for_absent(&mut self) {
        if self.steady_ms < self.due_ms || self.hears_nobody() {
            return;
        }
        self.due_ms = u64::MAX;
        let ids: Vec<DeviceId> = self.devices.keys().cloned().collect();
        for id in ids {
            self.hear(&id, Heard::Nothing);
        }
    }
}

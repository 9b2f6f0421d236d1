//! Links and the broker: they drop, delay, repeat and reorder.

use limpet_agent_core::{Input, Message};
use limpet_protocol::{Nonce, cbor};

use super::{Happening, World};
use crate::controller::{ToDevice, Work};

/// Events that an outbox keeps at most.
const OUTBOX_EVENTS_MAX: usize = 512;

impl World {
    pub(super) fn publish(&mut self, device: usize, message: Message) {
        let it = &mut self.devices[device];
        let waiting = it.agent.as_ref().map_or(0, |agent| agent.events_waiting());
        it.overflowed |= waiting >= OUTBOX_EVENTS_MAX;
        let Some(connection) = it.connection.filter(|_| !it.silent) else { return };
        let broker = self.broker;
        if self.fails(3) {
            let message = Box::new(message.clone());
            self.soon(Happening::Up { broker, device, connection, message });
        }
        // A broker may acknowledge what nobody has stored.
        if !self.fails(3) {
            let message = Box::new(message);
            self.soon(Happening::Up { broker, device, connection, message });
        }
    }

    pub(super) fn arrives_up(&mut self, device: usize, connection: u64, message: Box<Message>) {
        let may_lack = self.devices[device].overflowed || self.controller.restored;
        let device = self.id(device);
        self.works(Work::Message { device, connection, message, may_lack });
    }

    pub(super) fn send_down(&mut self, device: usize, message: ToDevice) {
        let Some(connection) = self.devices[device].connection else { return };
        if self.devices[device].silent {
            return;
        }
        let broker = self.broker;
        let again = Happening::Down { broker, device, connection, message: message.clone() };
        if self.fails(3) {
            self.soon(again);
        }
        // Within a connection a desired state may be late, and not lost: the broker delivers it or
        // the connection ends.
        let may_be_lost = matches!(message, ToDevice::Ack(..));
        if !(may_be_lost && self.fails(3)) {
            self.soon(Happening::Down { broker, device, connection, message });
        }
    }

    pub(super) fn arrives_down(&mut self, device: usize, message: ToDevice) {
        let input = match message {
            ToDevice::Desired(state) => {
                let signed = cbor::encode(&state);
                Input::Desired { state, signed }
            }
            ToDevice::Ack(connection, ack) => Input::Acked { connection, ack },
        };
        self.tell(device, input);
    }

    pub(super) fn connects(&mut self, device: usize, life: u64) {
        let it = &mut self.devices[device];
        if it.life != life || it.agent.is_none() || it.connection.is_some() {
            return;
        }
        if !self.controller.runs {
            let in_ms = 200 + self.random.below(30_000);
            return self.at(in_ms, Happening::Connects(device, life));
        }
        let connection = self.now_ms - it.booted_ms + 1;
        it.connection = Some(connection);
        it.silent = false;
        let nonce = Nonce(self.random.bytes());
        self.tell(device, Input::LinkUp { connection, nonce, keep_alive_s: 600 });
    }

    /// The device's connection ends; the broker notices, or finds out when nothing comes any more.
    pub(super) fn cut(&mut self, device: usize) {
        let in_ms = 100 + self.random.below(60_000);
        self.cut_for(device, in_ms);
    }

    pub(super) fn cut_for(&mut self, device: usize, for_ms: u64) {
        self.goes(device);
        let it = &mut self.devices[device];
        if it.connection.take().is_some() {
            let life = it.life;
            self.tell(device, Input::LinkDown);
            self.at(for_ms, Happening::Connects(device, life));
        }
    }

    /// The broker will tell that the present connection is gone.
    pub(super) fn goes(&mut self, device: usize) {
        let Some(connection) = self.devices[device].connection else { return };
        let (boot, id) = (self.devices[device].boot, self.id(device));
        let went = Happening::Works(Work::Went { device: id, boot, connection });
        match self.random.percent(60) {
            true => self.soon(went),
            false => {
                let in_ms = self.random.below(900_000);
                self.at(in_ms, went);
            }
        }
    }

    /// The broker loses all that it has in memory: connections, and messages on their way.
    pub(super) fn broker_fails(&mut self) {
        self.say(|| "BROKER FAILS".to_owned());
        self.broker += 1;
        for device in 0..self.devices.len() {
            self.cut(device);
        }
    }
}

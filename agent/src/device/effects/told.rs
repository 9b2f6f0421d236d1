//! What the controller is told, and what it has told of the fleet.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use limpet_agent_core::{Input, Message, StreamOrder};
use limpet_protocol::{
    CommandResult, DesiredState, Header, Hello, Kind, Leaf, Prefix, Presence, PresenceState,
    Returned, StreamSealer, Topic, envelope,
};

use serde::Serialize;

use super::super::tell;
use super::Shell;
use crate::clock;
use crate::link::{Order, ToLink};
use crate::logs::stream;
use crate::state::Identity;

/// The clock floor goes to disk when it has risen by a week: flash wears out.
const CLOCK_FLOOR_EVERY_MS: u64 = 7 * 86_400_000;

impl Shell {
    /// Sends back what the controller once signed, as it is stored.
    pub(super) async fn return_desired(&self, number: u64) {
        let state = Arc::clone(&self.state);
        let error = match smol::unblock(move || state.desired()).await {
            Ok(Some(signed)) => {
                return self.tell(Leaf::Returned, 0, number, &Returned { signed });
            }
            Ok(None) => "the device holds no desired state".to_owned(),
            Err(error) => error.to_string(),
        };
        self.publish(Message::Result { number, error: Some(error) });
    }

    pub(super) fn publish(&self, message: Message) {
        match message {
            Message::Hello(hello) => {
                let hello = Hello { controller: self.identity().controller, ..*hello };
                self.tell(Leaf::Hello, hello.held.epoch, hello.connection, &hello);
            }
            Message::Reported(report) => {
                self.tell(Leaf::Reported, report.applied.epoch, report.sequence, &report);
            }
            Message::Events(batch) => {
                let last = batch.events.last().map_or(0, |event| event.number);
                self.tell(Leaf::Event, 0, last, &batch);
            }
            Message::Result { number, error } => {
                self.tell(Leaf::Result, 0, number, &CommandResult { error });
            }
            Message::Asleep { for_ms } => {
                let connection = self.connection.get().unwrap_or(0);
                let state = PresenceState::Asleep { for_ms };
                let presence = Presence { state, boot: self.boot, connection };
                self.tell(Leaf::Presence, 0, connection, &presence);
            }
        }
    }

    /// Signs a message and sends it on.
    fn tell<T: Serialize>(&self, leaf: Leaf, epoch: u64, number: u64, body: &T) {
        let identity = self.identity();
        let header = header(&identity, leaf.kind(), epoch, number);
        let payload = envelope::seal(&identity.key, &header, body);
        let topic = Topic::Device(identity.device.clone(), leaf).under(&Prefix::default());
        self.to_link(Order::Publish { topic, payload, retain: leaf == Leaf::Presence });
    }

    pub(super) fn to_link(&self, order: Order) {
        let Some(connection) = self.connection.get() else {
            return;
        };
        // A full queue is a link that does not move: the core sends again what is not acknowledged.
        if self.to_link.try_send(ToLink { connection, order }).is_err() {
            log::warn!("the link is behind: a message is held back");
        }
    }

    /// No connection is made before this, in milliseconds since boot.
    pub(in crate::device) fn quiet_until(&self, at_ms: u64) {
        self.pace.quiet_until_ms.store(at_ms, Ordering::Relaxed);
    }

    /// Takes over what desired state says of the fleet and of the time.
    pub(in crate::device) fn heed(&self, desired: Option<&DesiredState>) {
        let Some(DesiredState { at_ms, reconnect_spread_ms, .. }) = desired else {
            return;
        };
        self.pace.spread_ms.store(*reconnect_spread_ms, Ordering::Relaxed);
        clock::raise_floor(*at_ms);
        if *at_ms < self.clock_floor_ms.get().saturating_add(CLOCK_FLOOR_EVERY_MS) {
            return;
        }
        self.clock_floor_ms.set(*at_ms);
        let (state, at_ms) = (Arc::clone(&self.state), *at_ms);
        self.spawn(smol::unblock(move || {
            if let Err(error) = state.store_clock_floor(at_ms) {
                log::warn!("{error}: after a reboot this device may not know how late it is");
            }
        }));
    }

    pub(super) fn stream(self: &Rc<Self>, order: StreamOrder) {
        let mut streams = self.streams.borrow_mut();
        streams.retain(|_, (_, task)| !task.is_finished());
        if let Some((until_ms, _)) = streams.get(&order.stream) {
            until_ms.set(order.until_ms);
            return;
        }
        let Some(connection) = self.connection.get() else {
            return;
        };
        let identity = self.identity();
        let sealer = StreamSealer::new(&order.key, identity.device.clone(), order.stream);
        let sealer = match sealer {
            Ok(sealer) => sealer,
            Err(error) => {
                let (inputs, reason) = (self.inputs.clone(), format!("a log's key: {error}"));
                return self.spawn(async move { tell(&inputs, Input::Refused { reason }).await });
            }
        };
        let until_ms = Rc::new(Cell::new(order.until_ms));
        let readers = self.readers(&order.workload);
        let id = order.stream;
        let sender = stream::Sender {
            identity,
            to_link: self.pieces.clone(),
            connection,
            stream: id,
            sealer,
        };
        let work = stream::run(sender, readers, order.tail, order.follow, Rc::clone(&until_ms));
        streams.insert(id, (until_ms, self.executor.spawn(work)));
    }
}

/// The signed header of a message of this device.
pub(crate) fn header(identity: &Identity, kind: Kind, epoch: u64, number: u64) -> Header {
    let prefix = Prefix::default().to_string();
    Header { prefix, device: identity.device.clone(), kind, epoch, number }
}

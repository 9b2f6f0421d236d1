//! The connection to the controller: greeted, then told, then asked for logs.

use limpet_protocol::{Ack, Action, Command, Hello, Nonce};

use super::Agent;
use crate::io::{Effect, Message, StreamOrder};
use crate::slot::Slot;

/// What was sent and not acknowledged for this long is sent again, in milliseconds, and begins with
/// hello: the controller may take another connection for the latest.
const RESEND_MS: u64 = 30_000;

/// No log leaves a device in the open.
const UNSEALED: &str =
    "the controller names no key to seal the log to: it is too old for this agent";

/// The connection to the controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Link {
    Down,
    /// Said hello; nothing else is sent before the controller has answered.
    Greeting {
        connection: u64,
        nonce: Nonce,
        again_at_ms: u64,
        last_command: u64,
    },
    Open {
        connection: u64,
        nonce: Nonce,
        again_at_ms: u64,
        last_command: u64,
    },
}

impl Agent {
    pub(super) fn connected(&mut self, now_ms: u64, connection: u64, nonce: Nonce) {
        self.greet(now_ms, connection, nonce, 0);
    }

    fn greet(&mut self, now_ms: u64, connection: u64, nonce: Nonce, last_command: u64) {
        let again_at_ms = now_ms.saturating_add(RESEND_MS);
        self.link = Link::Greeting { connection, nonce, again_at_ms, last_command };
        self.outbox.send_again();
        self.is_unknown = false;
        let hello = Hello {
            boot: self.boot,
            connection,
            nonce,
            agent_version: self.version.clone(),
            features: self.features.clone(),
            labels: self.labels.clone(),
            facts: self.facts.clone(),
            held: self.held(),
            arriving: self.arriving.latest().map(|state| state.held),
            reported: self.outbox.digest(),
            outbox: self.outbox.id,
            keep_alive_s: self.keep_alive_s,
            sealing_key: self.sealing_key,
            sent_ms: now_ms,
            recorded: self.outbox.recorded(),
            // The shell knows, and says so.
            controller: None,
        };
        self.effects.push_back(Effect::Publish(Message::Hello(Box::new(hello))));
    }

    pub(super) fn acked(&mut self, now_ms: u64, answered: u64, ack: &Ack) {
        if answered == Ack::NO_CONNECTION {
            self.is_unknown |= matches!(self.link, Link::Open { .. });
            return;
        }
        let again_at_ms = now_ms.saturating_add(RESEND_MS);
        match &mut self.link {
            Link::Greeting { connection, nonce, last_command, .. } if *connection == answered => {
                let (connection, nonce, last_command) = (*connection, *nonce, *last_command);
                self.link = Link::Open { connection, nonce, again_at_ms, last_command };
            }
            Link::Open { connection, again_at_ms: again, .. } if *connection == answered => {
                *again = again_at_ms;
            }
            Link::Down | Link::Greeting { .. } | Link::Open { .. } => return,
        }
        if self.outbox.acked(ack) {
            self.disk.renumbered();
        }
    }

    /// Whether the connection begins again with hello, when it is time. It is never sooner, however
    /// often the controller seems to ask.
    pub(super) fn greets_again(&self) -> bool {
        self.is_unknown || self.outbox.waits()
    }

    /// Says that the device sleeps, and ends the connection.
    pub(super) fn sleep(&mut self, for_ms: u64) {
        if self.link != Link::Down {
            self.effects.push_back(Effect::Publish(Message::Asleep { for_ms }));
        }
        self.effects.push_back(Effect::Disconnect { for_ms });
    }

    pub(super) fn command(&mut self, now_ms: u64, number: u64, command: Command) {
        let Link::Open { nonce, last_command, .. } = &mut self.link else {
            return;
        };
        let repeated = number <= *last_command;
        if repeated || command.nonce != *nonce {
            let reason = format!("command {number} was not meant for this connection");
            return self.refuse(reason);
        }
        *last_command = number;
        let error = match command.action {
            Action::Logs { stream, workload, tail, follow, lease_ms, key } => {
                let until_ms = now_ms.saturating_add(u64::from(lease_ms));
                let has_run = self.slots.get(&workload).is_some_and(Slot::has_run);
                match (self.owner.logs(), key.filter(|_| has_run)) {
                    (Err(refusal), _) => Some(refusal.to_string()),
                    (Ok(()), Some(key)) => {
                        let order = StreamOrder { stream, workload, tail, follow, until_ms, key };
                        self.effects.push_back(Effect::Stream(order));
                        None
                    }
                    (Ok(()), None) if has_run => Some(UNSEALED.to_owned()),
                    (Ok(()), None) => Some(format!("{workload} has no container here yet")),
                }
            }
            Action::ReturnDesired => {
                self.effects.push_back(Effect::ReturnDesired { number });
                None
            }
            Action::Membership(membership) => {
                return self.effects.push_back(Effect::StoreMembership { number, membership });
            }
            Action::EndStream { stream } => {
                self.effects.push_back(Effect::EndStream(stream));
                None
            }
        };
        self.effects.push_back(Effect::Publish(Message::Result { number, error }));
    }

    pub(super) fn tell(&mut self, now_ms: u64) {
        match self.link {
            Link::Down => {}
            Link::Greeting { connection, nonce, again_at_ms, last_command } => {
                if now_ms >= again_at_ms {
                    self.greet(now_ms, connection, nonce, last_command);
                }
            }
            Link::Open { connection, nonce, again_at_ms, last_command } => {
                if now_ms >= again_at_ms && self.greets_again() {
                    return self.greet(now_ms, connection, nonce, last_command);
                }
                let before = self.effects.len();
                let messages = self.outbox.messages(now_ms);
                self.effects.extend(messages.map(Effect::Publish));
                if self.effects.len() > before {
                    let again_at_ms = now_ms.saturating_add(RESEND_MS);
                    self.link = Link::Open { connection, nonce, again_at_ms, last_command };
                }
            }
        }
    }
}

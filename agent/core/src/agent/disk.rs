//! What is on its way to the disk: desired state, and the checkpoint.

use limpet_protocol::{DesiredState, EventKind, Held};

use super::Agent;
use crate::checkpoint::Checkpoint;
use crate::io::Effect;
use crate::slot::Slot;

/// A checkpoint that could not be stored is tried again after this long, in milliseconds.
const STORE_AGAIN_MS: u64 = 10_000;

/// Desired states that were accepted and are not in force: on their way to the disk, one at a time,
/// so that an older one never lands on a newer one.
#[derive(Debug, Default)]
pub(super) struct Arriving {
    /// Under way; taken over when it is there.
    pub(super) storing: Option<Box<DesiredState>>,
    /// The latest of those that came meanwhile, or could not be stored, with its signed form.
    pub(super) next: Option<(Box<DesiredState>, Vec<u8>)>,
    /// The last one failed: not before this.
    pub(super) retry_at_ms: u64,
}

impl Arriving {
    /// The latest.
    pub(super) fn latest(&self) -> Option<&DesiredState> {
        let next = self.next.as_ref().map(|(state, _)| state);
        next.or(self.storing.as_ref()).map(|state| &**state)
    }

    /// Whether there is something to store and nothing under way.
    pub(super) fn waits(&self) -> bool {
        self.next.is_some() && self.storing.is_none()
    }
}

/// The checkpoint on disk and the one on its way there.
#[derive(Debug, Default)]
pub(super) struct Disk {
    pub(super) version: u64,
    /// Something changed since the last checkpoint was ordered.
    pub(super) changed: bool,
    /// The number of the first event that the checkpoint under way does not hold.
    pub(super) under_way: Option<u64>,
    /// The last one failed: not before this.
    pub(super) retry_at_ms: u64,
}

impl Disk {
    /// Events have other numbers than the checkpoint that is on disk, or on its way.
    pub(super) fn renumbered(&mut self) {
        self.changed = true;
        self.under_way = self.under_way.map(|_| 0);
    }

    /// Whether there is something to store and nothing under way.
    pub(super) fn waits(&self) -> bool {
        self.changed && self.under_way.is_none()
    }
}

impl Agent {
    pub(super) fn desired(&mut self, state: Box<DesiredState>, signed: Vec<u8>) {
        let latest = self.arriving.latest().or(self.desired.as_ref());
        let held = latest.map(|latest| latest.held).unwrap_or_default();
        if state.held > held {
            self.arriving.next = Some((state, signed));
        } else if latest.is_some_and(|latest| *latest != *state) {
            let (offered, held) = (state.held, held);
            let reason = format!("desired state {offered} does not follow {held}, which is held");
            self.refuse(reason);
        }
    }

    pub(super) fn desired_stored(&mut self, held: Held) {
        let stored = self.arriving.storing.take_if(|state| state.held == held);
        if let Some(desired) = stored {
            self.outbox.apply(desired.held);
            self.desired = Some(*desired);
            self.collect = true;
            self.slots.values_mut().for_each(Slot::take_back);
            self.assign();
        }
    }

    pub(super) fn desired_not_stored(
        &mut self,
        now_ms: u64,
        held: Held,
        signed: Vec<u8>,
        reason: &str,
    ) {
        let Some(state) = self.arriving.storing.take_if(|state| state.held == held) else {
            return;
        };
        self.arriving.next.get_or_insert((state, signed));
        self.arriving.retry_at_ms = now_ms.saturating_add(STORE_AGAIN_MS);
        let message = format!("desired state {} is not stored: {reason}", held);
        self.note(now_ms, EventKind::Refused, message);
    }

    /// Orders the latest desired state to be stored, when the disk is free for it.
    pub(super) fn store_desired(&mut self, now_ms: u64) {
        if self.arriving.storing.is_some() || now_ms < self.arriving.retry_at_ms {
            return;
        }
        if let Some((state, signed)) = self.arriving.next.take() {
            let held = state.held;
            self.arriving.storing = Some(state);
            self.effects.push_back(Effect::StoreDesired { held, signed });
        }
    }

    pub(super) fn checkpoint_stored(&mut self, now_ms: u64, version: u64, done: bool) {
        if version != self.disk.version {
            return;
        }
        match self.disk.under_way.take() {
            Some(next_event) if done => self.outbox.stored(next_event),
            Some(_) => {
                self.disk.changed = true;
                self.disk.retry_at_ms = now_ms.saturating_add(STORE_AGAIN_MS);
            }
            None => {}
        }
    }

    pub(super) fn store(&mut self, now_ms: u64) {
        if !self.disk.waits() || now_ms < self.disk.retry_at_ms {
            return;
        }
        self.disk.changed = false;
        self.disk.version = self.disk.version.saturating_add(1);
        self.disk.under_way = Some(self.outbox.next_event());
        let slots = self.slots.iter().map(|(id, slot)| (id.clone(), slot.record())).collect();
        let checkpoint = Box::new(Checkpoint {
            slots,
            next_container: self.next_container,
            ..self.outbox.checkpoint()
        });
        self.effects.push_back(Effect::StoreCheckpoint { version: self.disk.version, checkpoint });
    }
}

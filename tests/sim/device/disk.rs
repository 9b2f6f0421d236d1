//! A device's disk: what fsync promises, and no more.
//!
//! The desired state is replaced whole: a write that is cut leaves the old one or the new one. The
//! checkpoint has two slots that take turns: a write that is cut leaves its slot as it was, torn, or
//! written, and the other slot whole.

use limpet_agent_core::Checkpoint;
use limpet_protocol::{DesiredState, OutboxId};

use crate::random::Random;

/// A write that has been ordered and may be on disk or not.
pub(crate) enum Write {
    Desired(Box<DesiredState>),
    Checkpoint(Box<Checkpoint>),
}

/// What one of the two files holds.
enum Slot {
    Empty,
    Torn,
    Whole(u64, Box<Checkpoint>),
}

/// The disk.
pub(crate) struct Disk {
    pub(crate) desired: Option<DesiredState>,
    slots: [Slot; 2],
    /// Nothing can be written before this.
    pub(crate) full_until_ms: u64,
}

impl Disk {
    /// The first checkpoint is on disk before the core begins.
    pub(crate) fn new(random: &mut Random) -> Self {
        let first = Checkpoint::first(OutboxId(random.bytes()));
        let slots = [Slot::Empty, Slot::Whole(1, Box::new(first))];
        Self { desired: None, slots, full_until_ms: 0 }
    }

    /// The valid checkpoint of the higher generation, and its slot.
    fn newest(&self) -> (usize, u64, &Checkpoint) {
        let whole = self.slots.iter().enumerate().filter_map(|(at, slot)| match slot {
            Slot::Whole(generation, checkpoint) => Some((at, *generation, &**checkpoint)),
            Slot::Empty | Slot::Torn => None,
        });
        whole.max_by_key(|(_, generation, _)| *generation).unwrap()
    }

    /// What the program finds, and what it says it has lost.
    pub(crate) fn checkpoint(&self) -> (Checkpoint, Vec<String>) {
        let torn = self.slots.iter().filter(|slot| matches!(slot, Slot::Torn));
        let lost = torn.map(|_| "a checkpoint: going on with the other one".to_owned());
        (self.newest().2.clone(), lost.collect())
    }

    /// A write is on disk.
    pub(crate) fn land(&mut self, write: Write) {
        match write {
            Write::Desired(state) => self.desired = Some(*state),
            Write::Checkpoint(checkpoint) => {
                let (at, generation, _) = self.newest();
                self.slots[1 - at] = Slot::Whole(generation + 1, checkpoint);
            }
        }
    }

    /// A write did not come to its end.
    pub(crate) fn tear(&mut self, write: &Write, random: &mut Random) {
        let (at, ..) = self.newest();
        if matches!(write, Write::Checkpoint(_)) && random.percent(50) {
            self.slots[1 - at] = Slot::Torn;
        }
    }

    /// The newest checkpoint decays; the number of the next event as the other one has it, None
    /// where there is no other one to go on with.
    pub(crate) fn rot(&mut self) -> Option<u64> {
        let (at, ..) = self.newest();
        let Slot::Whole(_, other) = &self.slots[1 - at] else {
            return None;
        };
        let next_event = other.next_event;
        self.slots[at] = Slot::Torn;
        Some(next_event)
    }
}

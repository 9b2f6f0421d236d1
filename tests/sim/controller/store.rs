//! What a controller has on disk, and what the operator sees of it.

use std::collections::BTreeMap;

use limpet_controller_core::{Cursor, Deployments, Known, Told};
use limpet_protocol::{DesiredState, DeviceId, Event, Feature, Held, Labels, WorkloadId};

use crate::invariant::Invariant;

/// All of it; what a backup holds too.
#[derive(Clone, Default)]
pub(crate) struct Store {
    pub(crate) devices: BTreeMap<DeviceId, Row>,
    pub(crate) deployments: Deployments,
    pub(crate) views: BTreeMap<DeviceId, View>,
}

/// A device.
#[derive(Clone)]
pub(crate) struct Row {
    pub(crate) record: Record,
    pub(crate) cursor: Cursor,
    pub(crate) statuses: BTreeMap<WorkloadId, Known>,
}

/// What is stored of a device beside what it has told.
#[derive(Clone, PartialEq)]
pub(crate) struct Record {
    pub(crate) labels: Labels,
    pub(crate) features: Vec<Feature>,
    pub(crate) memory_bytes: u64,
    /// Of its desired state.
    pub(crate) held: Held,
    /// The latest that it may have been sent.
    pub(crate) told: Held,
    /// A later one that it holds: nothing is published to it.
    pub(crate) ahead: Option<Held>,
    pub(crate) desired: Option<DesiredState>,
}

/// What the operator sees of what happened on one device.
#[derive(Clone, Default)]
pub(crate) struct View {
    pub(crate) events: BTreeMap<u64, Event>,
    /// Each by its first number, and how many.
    pub(crate) gaps: BTreeMap<u64, u64>,
    last: u64,
}

impl View {
    pub(crate) fn take(&mut self, id: &DeviceId, told: Told) {
        match told {
            Told::Event { event, .. } => {
                let number = event.number;
                let in_order = number == self.last + 1;
                let before = self.events.insert(number, event);
                Invariant::EventToldOnce.holds(before.is_none() && in_order, || {
                    format!("{id}: event {number} after {}, before {before:?}", self.last)
                });
                self.last = number;
            }
            Told::Lost(count) => {
                self.gaps.insert(self.last + 1, count);
                self.last += count;
            }
        }
    }

    /// Whether an event is seen, or a gap stands for it.
    pub(crate) fn accounts_for(&self, event: &Event) -> bool {
        let number = event.number;
        let gap = self.gaps.range(..=number).next_back();
        self.events.get(&number) == Some(event)
            || gap.is_some_and(|(first, count)| number < first + count)
    }
}

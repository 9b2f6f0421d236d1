//! What must survive a restart of the agent, besides desired state.

use std::collections::BTreeMap;

use limpet_protocol::{Event, Exit, Held, OutboxId, Workload, WorkloadId};
use serde::{Deserialize, Serialize};

/// The memory of a device: what it has counted, and what it has yet to tell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Names this life of the outbox.
    pub outbox: OutboxId,
    /// The number of the next event.
    pub next_event: u64,
    /// From this number on no event has been told to the controller; kept while a damaged disk leaves
    /// that in doubt. Absent in format 1.
    #[serde(default)]
    pub untold_event: Option<u64>,
    /// The sequence of the next change of a status.
    pub next_sequence: u64,
    /// The number of the next container.
    pub next_container: u32,
    /// Events that the controller has not acknowledged.
    pub events: Vec<Event>,
    /// The workloads.
    pub slots: BTreeMap<WorkloadId, SlotRecord>,
    /// The desired state that was in force. Absent in format 1.
    #[serde(default)]
    pub applied: Held,
}

impl Checkpoint {
    /// The checkpoint of a device that has done nothing. Stored before the device says its first
    /// hello: an outbox that was named to the controller never changes its name.
    pub fn first(outbox: OutboxId) -> Self {
        Self {
            outbox,
            next_event: 1,
            untold_event: None,
            next_sequence: 1,
            next_container: 1,
            events: Vec::new(),
            slots: BTreeMap::new(),
            applied: Held::default(),
        }
    }
}

/// What must survive of one workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotRecord {
    /// Number of the latest container.
    pub container: u32,
    /// What it was made from: it goes on for as long as what follows it cannot run.
    pub made: Option<Workload>,
    /// The image of the revision before it, which may be gone back to.
    #[serde(default)]
    pub previous: Option<String>,
    /// What has become of it.
    pub life: RecordedLife,
    /// Containers that replaced one which had ended.
    pub restarts: u32,
    /// How the latest that ended did so.
    pub exit: Option<Exit>,
    /// For a person.
    pub message: String,
    /// A person on site has stopped it. Absent in format 1.
    #[serde(default)]
    pub stopped: bool,
}

/// The life of a workload's latest container, as far as it was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RecordedLife {
    /// There is none, and another may follow.
    Absent,
    /// Ordered; that it has started has yet to be told.
    Ordered,
    /// Started; that it has ended has yet to be told.
    Started,
    /// Ended for good.
    Finished {
        /// As its restart policy allows.
        success: bool,
    },
}

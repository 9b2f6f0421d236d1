//! What one device has told, and how far its outbox has been taken in.
//!
//! Messages may be lost, repeated and reordered. A report that is older than one taken in before
//! is ignored, and a newer one that does not add up asks for the whole. Events are taken in only
//! in their order, without holes: what came too soon is not acknowledged, and comes again.

use std::collections::{BTreeMap, BTreeSet};

use limpet_protocol::{
    Ack, BootId, Digest, Event, EventBatch, Held, Hello, OutboxId, Record, Reported, WorkloadId,
    WorkloadStatus, reported,
};
use serde::{Deserialize, Serialize};

/// How far a device's outbox has been taken in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// The outbox that counts the rest.
    pub outbox: OutboxId,
    /// Events up to this number.
    pub events: u64,
    /// Reports up to this sequence.
    pub sequence: u64,
    /// The desired state that the device has taken over.
    pub applied: Held,
}

/// What one device has told.
#[derive(Debug, Clone)]
pub struct Inbox {
    /// How far its outbox has been taken in.
    pub cursor: Cursor,
    statuses: BTreeMap<WorkloadId, Known>,
    /// The latest connection that has said hello.
    latest: Option<(BootId, u64)>,
    /// What is known is not what the device has.
    differs: bool,
}

/// A status as it was reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// When it last changed, by the controller's wall clock, in milliseconds.
    pub at_ms: u64,
    /// The status.
    pub status: WorkloadStatus,
}

/// What a report has changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// Workloads whose status is another, or gone.
    pub workloads: BTreeSet<WorkloadId>,
    /// The cursor has moved.
    pub cursor: bool,
    /// What is known is not what the device has: it must send the whole.
    pub differs: bool,
}

/// Something to be told to operators.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// It happened; in milliseconds before the batch was sent, where that is known.
    Event {
        /// What.
        event: Event,
        /// How long before; None where another boot's clock had counted.
        ago_ms: Option<u64>,
    },
    /// This many events are lost for good.
    Lost(u64),
}

impl Cursor {
    /// The beginning of the outbox that a hello names.
    pub fn new(hello: &Hello) -> Self {
        Self { outbox: hello.outbox, events: 0, sequence: 0, applied: hello.held }
    }
}

impl Inbox {
    /// Nothing but a cursor, and what was stored beside it.
    pub fn new(cursor: Cursor, statuses: BTreeMap<WorkloadId, Known>) -> Self {
        Self { cursor, statuses, latest: None, differs: false }
    }

    /// The same beside the connection that `before` knew: what was undone does not let an older
    /// hello, late on its way, pass for the latest.
    #[must_use]
    pub fn after(self, before: &Self) -> Self {
        Self { latest: before.latest, ..self }
    }

    /// The statuses, by workload.
    pub fn statuses(&self) -> &BTreeMap<WorkloadId, Known> {
        &self.statuses
    }

    /// Takes in what a hello says of the device's outbox: whether the device must send the whole;
    /// None where a later connection has said hello before.
    pub fn hello(&mut self, hello: &Hello) -> Option<bool> {
        let outdated = |(boot, latest)| boot == hello.boot && hello.connection < latest;
        if self.latest.is_some_and(outdated) {
            return None;
        }
        self.latest = Some((hello.boot, hello.connection));
        if self.cursor.outbox != hello.outbox {
            self.cursor = Cursor::new(hello);
        }
        self.cursor.applied = hello.held;
        self.differs = self.digest() != hello.reported;
        Some(self.differs)
    }

    /// Takes a report in; None where it is outdated, or of another outbox.
    pub fn report(&mut self, now_ms: u64, report: Reported) -> Option<Changes> {
        if report.outbox != self.cursor.outbox || report.sequence < self.cursor.sequence {
            return None;
        }
        let cursor =
            Cursor { sequence: report.sequence, applied: report.applied, ..self.cursor.clone() };
        let mut workloads = BTreeSet::new();
        if report.complete {
            let listed: BTreeSet<&WorkloadId> =
                report.records.iter().map(|record| &record.workload).collect();
            let gone = self.statuses.keys().filter(|id| !listed.contains(id));
            workloads.extend(gone.cloned());
            self.statuses.retain(|id, _| listed.contains(id));
        }
        for Record { workload, status } in report.records {
            let before = self.statuses.get(&workload).map(|known| &known.status);
            if before == status.as_ref() {
                continue;
            }
            match status {
                Some(status) => {
                    let known = Known { at_ms: now_ms, status };
                    self.statuses.insert(workload.clone(), known);
                }
                None => drop(self.statuses.remove(&workload)),
            }
            workloads.insert(workload);
        }
        self.differs = self.digest() != report.whole;
        Some(Changes {
            workloads,
            cursor: std::mem::replace(&mut self.cursor, cursor) != self.cursor,
            differs: self.differs,
        })
    }

    /// Takes events in; gives those that are new, in order.
    pub fn events(&mut self, batch: EventBatch) -> Vec<Told> {
        let mut told = Vec::new();
        if batch.outbox != self.cursor.outbox {
            return told;
        }
        let mut expected = self.cursor.events.saturating_add(1);
        // The device no longer has what is missing: it ran out of room, or was told once that the
        // controller has it.
        if batch.oldest > expected {
            told.push(Told::Lost(batch.oldest.saturating_sub(expected)));
            expected = batch.oldest;
        }
        for event in batch.events {
            if event.number != expected {
                continue;
            }
            expected = expected.saturating_add(1);
            // A clock of another boot says nothing about this one's.
            let ago_ms = batch.sent_ms.checked_sub(event.at_ms);
            let ago_ms = ago_ms.filter(|_| event.boot == batch.boot);
            told.push(Told::Event { event, ago_ms });
        }
        self.cursor.events = expected.saturating_sub(1);
        told
    }

    /// What the device is told of how far it has come. Where the two differ, no report counts as
    /// told before the whole has come.
    pub fn ack(&self, send_whole: bool) -> Ack {
        let sequence = match self.differs && !send_whole {
            true => 0,
            false => self.cursor.sequence,
        };
        Ack { outbox: self.cursor.outbox, events: self.cursor.events, sequence, send_whole }
    }

    fn digest(&self) -> Digest {
        reported::digest(self.statuses.iter().map(|(id, known)| (id, &known.status)))
    }
}

#[cfg(test)]
mod tests {
    use limpet_protocol::{BootId, EventKind};

    use super::*;

    fn inbox() -> Inbox {
        let cursor =
            Cursor { outbox: OutboxId([1; 8]), events: 0, sequence: 0, applied: Held::default() };
        Inbox::new(cursor, BTreeMap::new())
    }

    fn batch(oldest: u64, numbers: &[u64]) -> EventBatch {
        let event = |number: &u64| Event {
            number: *number,
            boot: BootId([1; 16]),
            at_ms: *number,
            kind: EventKind::Started,
            workload: None,
            container: None,
            exit: None,
            message: String::new(),
        };
        EventBatch {
            outbox: OutboxId([1; 8]),
            boot: BootId([1; 16]),
            sent_ms: 100,
            oldest,
            events: numbers.iter().map(event).collect(),
        }
    }

    fn numbers(told: &[Told]) -> Vec<String> {
        let number = |told: &Told| match told {
            Told::Event { event, .. } => event.number.to_string(),
            Told::Lost(count) => format!("lost {count}"),
        };
        told.iter().map(number).collect()
    }

    #[test]
    fn events_are_taken_once_and_in_order() {
        let mut inbox = inbox();
        assert_eq!(numbers(&inbox.events(batch(1, &[3, 4]))), [""; 0], "too soon");
        assert_eq!(inbox.ack(false).events, 0);
        assert_eq!(numbers(&inbox.events(batch(1, &[1, 2]))), ["1", "2"]);
        assert_eq!(numbers(&inbox.events(batch(1, &[1, 2, 3, 4]))), ["3", "4"]);
        assert_eq!(numbers(&inbox.events(batch(9, &[9]))), ["lost 4", "9"]);
        assert_eq!(inbox.ack(false).events, 9);
    }
}

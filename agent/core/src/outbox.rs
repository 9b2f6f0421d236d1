//! What has yet to be told to the controller: numbered events, and records of changed workloads.
//!
//! An event is published only once the checkpoint that holds it is on disk, so that its number can
//! never be given to another. Records need no such care: they can be made again, and the digest
//! of the whole exposes any that went astray. Both leave the outbox by [`Ack`], never by PUBACK.

use std::collections::{BTreeMap, VecDeque};

use limpet_protocol::event::BATCH_EVENTS_MAX;
use limpet_protocol::{
    Ack, BootId, Digest, Event, EventBatch, EventKind, Exit, Held, OutboxId, Record, Reported,
    WorkloadId, WorkloadStatus, reported,
};

use crate::checkpoint::Checkpoint;
use crate::io::Message;

/// Events kept at most; beyond it the oldest make room, and a gap marker says how many.
const EVENTS_MAX: usize = 512;
/// Events that make room at once.
const EVENTS_DROPPED: usize = 64;

/// An event before it is numbered.
pub(crate) struct Note {
    pub(crate) kind: EventKind,
    pub(crate) workload: Option<WorkloadId>,
    pub(crate) container: Option<u32>,
    pub(crate) exit: Option<Exit>,
    pub(crate) message: String,
}

/// The outbox.
#[derive(Debug)]
pub(crate) struct Outbox {
    pub(crate) id: OutboxId,
    boot: BootId,
    events: VecDeque<Event>,
    next_event: u64,
    /// Events below this number are on disk.
    stored_event: u64,
    /// Events up to this number were sent on this connection.
    sent_event: u64,
    records: BTreeMap<WorkloadId, Record>,
    next_sequence: u64,
    sent_sequence: u64,
    acked_sequence: u64,
    /// What the controller was last told to be applied, on this connection.
    sent_applied: Option<Held>,
    send_whole: bool,
}

impl Outbox {
    pub(crate) fn new(id: OutboxId, boot: BootId) -> Self {
        Self {
            id,
            boot,
            events: VecDeque::new(),
            next_event: 1,
            stored_event: 1,
            sent_event: 0,
            records: BTreeMap::new(),
            next_sequence: 1,
            sent_sequence: 0,
            acked_sequence: 0,
            sent_applied: None,
            send_whole: false,
        }
    }

    pub(crate) fn restored(checkpoint: &Checkpoint, boot: BootId) -> Self {
        Self {
            events: checkpoint.events.iter().cloned().collect(),
            next_event: checkpoint.next_event,
            stored_event: checkpoint.next_event,
            next_sequence: checkpoint.next_sequence,
            ..Self::new(checkpoint.outbox, boot)
        }
    }

    pub(crate) fn note(&mut self, now_ms: u64, note: Note) {
        if self.events.len() >= EVENTS_MAX {
            self.drop_oldest();
        }
        let Note {
            kind,
            workload,
            container,
            exit,
            message,
        } = note;
        let (number, boot) = (self.next_event, self.boot);
        let at_ms = now_ms;
        self.events.push_back(Event {
            number,
            boot,
            at_ms,
            kind,
            workload,
            container,
            exit,
            message,
        });
        self.next_event = self.next_event.saturating_add(1);
    }

    fn drop_oldest(&mut self) {
        let mut dropped: u64 = 0;
        let mut last = None;
        for event in self.events.drain(..EVENTS_DROPPED.min(self.events.len())) {
            let earlier = (event.kind == EventKind::Gap).then(|| event.message.parse().ok());
            dropped = dropped.saturating_add(earlier.flatten().unwrap_or(1));
            last = Some(event);
        }
        if let Some(last) = last {
            let gap = Event {
                kind: EventKind::Gap,
                workload: None,
                container: None,
                exit: None,
                message: dropped.to_string(),
                ..last
            };
            self.events.push_front(gap);
        }
    }

    /// Takes over a workload's status; None where it is gone.
    pub(crate) fn record(&mut self, workload: &WorkloadId, status: Option<WorkloadStatus>) -> bool {
        let known = self.records.get(workload).map(|record| &record.status);
        if known == Some(&status) || (known.is_none() && status.is_none()) {
            return false;
        }
        let sequence = self.next_sequence;
        self.next_sequence = self.next_sequence.saturating_add(1);
        let workload = workload.clone();
        self.records.insert(
            workload.clone(),
            Record {
                workload,
                sequence,
                status,
            },
        );
        true
    }

    pub(crate) fn digest(&self) -> Digest {
        reported::digest(
            self.records
                .iter()
                .filter_map(|(id, record)| Some((id, record.status.as_ref()?))),
        )
    }

    /// A new connection, or one that has been silent: what was sent may have been lost.
    pub(crate) fn send_again(&mut self) {
        self.sent_event = 0;
        self.sent_sequence = self.acked_sequence;
        self.sent_applied = None;
    }

    /// Takes over an acknowledgement; false where it speaks of another outbox.
    pub(crate) fn acked(&mut self, ack: &Ack) -> bool {
        if ack.outbox != self.id {
            return false;
        }
        while self
            .events
            .front()
            .is_some_and(|event| event.number <= ack.events)
        {
            self.events.pop_front();
        }
        let told = ack.records.min(self.sent_sequence);
        self.acked_sequence = self.acked_sequence.max(told);
        let acked = self.acked_sequence;
        self.records
            .retain(|_, record| record.status.is_some() || record.sequence > acked);
        self.send_whole |= ack.send_whole;
        true
    }

    /// Whether something that was sent has not been acknowledged.
    pub(crate) fn waits(&self) -> bool {
        self.sent_sequence > self.acked_sequence
            || self
                .events
                .front()
                .is_some_and(|event| event.number <= self.sent_event)
    }

    pub(crate) fn stored(&mut self, next_event: u64) {
        self.stored_event = self.stored_event.max(next_event);
    }

    pub(crate) fn next_event(&self) -> u64 {
        self.next_event
    }

    /// What can be sent and has not been, on this connection.
    pub(crate) fn messages(&mut self, now_ms: u64, applied: Held) -> Vec<Message> {
        let mut messages = Vec::new();
        loop {
            let events: Vec<Event> = self
                .events
                .iter()
                .filter(|e| e.number > self.sent_event && e.number < self.stored_event)
                .take(BATCH_EVENTS_MAX)
                .cloned()
                .collect();
            let Some(last) = events.last() else { break };
            self.sent_event = last.number;
            let (outbox, boot) = (self.id, self.boot);
            messages.push(Message::Events(EventBatch {
                outbox,
                boot,
                sent_ms: now_ms,
                events,
            }));
        }
        let complete = std::mem::take(&mut self.send_whole);
        let since = if complete { 0 } else { self.sent_sequence };
        let records: Vec<Record> = self
            .records
            .values()
            .filter(|record| record.sequence > since && !(complete && record.status.is_none()))
            .cloned()
            .collect();
        if complete || !records.is_empty() || self.sent_applied != Some(applied) {
            self.sent_sequence = self.next_sequence.saturating_sub(1);
            self.sent_applied = Some(applied);
            let (outbox, whole) = (self.id, self.digest());
            messages.push(Message::Reported(Reported {
                outbox,
                applied,
                complete,
                records,
                whole,
            }));
        }
        messages
    }

    /// Fills in the outbox's part of a checkpoint.
    pub(crate) fn checkpoint(&self) -> Checkpoint {
        Checkpoint {
            outbox: self.id,
            next_event: self.next_event,
            next_sequence: self.next_sequence,
            events: self.events.iter().cloned().collect(),
            slots: BTreeMap::new(),
        }
    }
}

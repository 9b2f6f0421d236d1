//! What has yet to be told to the controller: numbered events, and the statuses of workloads that
//! changed.
//!
//! An event is published only once the checkpoint that holds it is on disk, so that its number can
//! never be given to another. Statuses need no such care: they can be told again, and the digest
//! of the whole exposes any that went astray. Both leave the outbox by [`Ack`], never by PUBACK.

use std::collections::{BTreeMap, VecDeque};

use limpet_protocol::event::BATCH_EVENTS_MAX;
use limpet_protocol::reported::MESSAGE_BYTES_MAX;
use limpet_protocol::{
    Ack, BootId, Digest, Event, EventBatch, EventKind, Exit, Held, OutboxId, Record, Reported,
    UpgradeStatus, WorkloadId, WorkloadStatus, reported,
};

use crate::checkpoint::Checkpoint;
use crate::io::Message;

/// Events kept at most; beyond it the oldest make room. The controller sees from the number of the
/// oldest one left how many are lost.
const EVENTS_MAX: usize = 512;

/// An event before it is numbered.
pub(crate) struct Note {
    pub(crate) kind: EventKind,
    pub(crate) workload: Option<WorkloadId>,
    pub(crate) container: Option<u32>,
    pub(crate) exit: Option<Exit>,
    pub(crate) message: String,
}

/// A workload's status, None where it is gone, and the change that made it so.
#[derive(Debug)]
struct Changed {
    sequence: u64,
    status: Option<WorkloadStatus>,
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
    /// From this number on nothing has been told; None once the controller has been heard.
    untold_event: Option<u64>,
    /// The disk has lost something since that was last certain: it is kept until it is again.
    is_damaged: bool,
    /// Events up to this number were sent on this connection.
    sent_event: u64,
    statuses: BTreeMap<WorkloadId, Changed>,
    next_sequence: u64,
    sent_sequence: u64,
    acked_sequence: u64,
    /// The desired state in force.
    applied: Held,
    /// How far another program of the agent has come, and the change that made it so.
    upgrade: Option<(u64, UpgradeStatus)>,
    send_whole: bool,
}

impl Outbox {
    /// As the disk has it, which has lost something or not.
    pub(crate) fn restored(
        checkpoint: &Checkpoint,
        is_damaged: bool,
        boot: BootId,
        applied: Held,
    ) -> Self {
        Self {
            is_damaged: is_damaged || checkpoint.untold_event.is_some(),
            id: checkpoint.outbox,
            boot,
            events: checkpoint.events.iter().cloned().collect(),
            next_event: checkpoint.next_event,
            stored_event: checkpoint.next_event,
            untold_event: Some(checkpoint.untold_event.unwrap_or(checkpoint.next_event)),
            sent_event: 0,
            statuses: BTreeMap::new(),
            next_sequence: checkpoint.next_sequence,
            sent_sequence: 0,
            acked_sequence: 0,
            applied,
            upgrade: None,
            send_whole: false,
        }
    }

    pub(crate) fn note(&mut self, now_ms: u64, note: Note) {
        if self.events.len() >= EVENTS_MAX {
            self.events.pop_front();
        }
        let Note { kind, workload, container, exit, message } = note;
        let message = clip(message);
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

    /// Takes over a workload's status; None where it is gone.
    pub(crate) fn record(&mut self, workload: &WorkloadId, status: Option<WorkloadStatus>) -> bool {
        let known = self.statuses.get(workload).map(|known| &known.status);
        if known == Some(&status) || (known.is_none() && status.is_none()) {
            return false;
        }
        let sequence = self.take_sequence();
        self.statuses.insert(workload.clone(), Changed { sequence, status });
        true
    }

    /// Takes over which desired state is in force.
    pub(crate) fn apply(&mut self, held: Held) {
        self.applied = held;
        self.take_sequence();
    }

    /// Takes over how far another program has come. No checkpoint holds it: the next agent finds it
    /// elsewhere.
    pub(crate) fn set_upgrade(&mut self, status: UpgradeStatus) {
        if self.upgrade() != Some(&status) {
            self.upgrade = Some((self.take_sequence(), status));
        }
    }

    pub(crate) fn upgrade(&self) -> Option<&UpgradeStatus> {
        self.upgrade.as_ref().map(|(_, status)| status)
    }

    /// Whether this process has told how far another program has come, and was answered.
    pub(crate) fn upgrade_is_told(&self) -> bool {
        self.upgrade.as_ref().is_some_and(|(sequence, _)| self.acked_sequence >= *sequence)
    }

    fn take_sequence(&mut self) -> u64 {
        let sequence = self.next_sequence;
        self.next_sequence = sequence.saturating_add(1);
        sequence
    }

    pub(crate) fn digest(&self) -> Digest {
        reported::digest(
            self.statuses.iter().filter_map(|(id, known)| Some((id, known.status.as_ref()?))),
        )
    }

    /// A new connection, or one that has been silent: what was sent may have been lost.
    pub(crate) fn send_again(&mut self) {
        self.sent_event = 0;
        self.sent_sequence = self.acked_sequence;
    }

    /// Takes over an acknowledgement. True where events have got other numbers, and must be stored
    /// before they are told.
    pub(crate) fn acked(&mut self, ack: &Ack) -> bool {
        if ack.outbox != self.id {
            return false;
        }
        let renumbered = self.catch_up(ack.events);
        while self.events.front().is_some_and(|event| event.number <= ack.events) {
            self.events.pop_front();
        }
        // The controller has heard of changes that no checkpoint holds: what follows must be newer.
        self.next_sequence = self.next_sequence.max(ack.sequence.saturating_add(1));
        let unsent = self.sent_sequence.saturating_add(1)..=ack.sequence;
        let older = self.upgrade.take_if(|(sequence, _)| unsent.contains(sequence));
        older.into_iter().for_each(|(_, status)| self.set_upgrade(status));
        // What did not add up is not told: should the whole get lost, this comes again.
        if !ack.send_whole {
            let told = ack.sequence.min(self.sent_sequence);
            self.acked_sequence = self.acked_sequence.max(told);
        }
        let acked = self.acked_sequence;
        self.statuses.retain(|_, known| known.status.is_some() || known.sequence > acked);
        self.send_whole |= ack.send_whole;
        renumbered
    }

    /// The controller has events that this disk knows nothing of: the latest checkpoint was lost, and
    /// the one before it gave numbers out a second time. What has happened since follows what the
    /// controller has.
    ///
    /// Where the disk was damaged, that anything may be told from here on is on disk before it is: else
    /// the next agent would take what was told for what was lost.
    fn catch_up(&mut self, heard: u64) -> bool {
        let Some(untold) = self.untold_event.take() else {
            return false;
        };
        let shift = heard.saturating_add(1).saturating_sub(untold);
        for event in self.events.iter_mut().filter(|event| event.number >= untold) {
            event.number = event.number.saturating_add(shift);
        }
        self.next_event = self.next_event.saturating_add(shift);
        let is_to_be_stored = std::mem::take(&mut self.is_damaged) || shift > 0;
        if is_to_be_stored {
            self.stored_event = 0;
        }
        is_to_be_stored
    }

    /// Whether something that was sent has not been acknowledged.
    pub(crate) fn waits(&self) -> bool {
        self.events_wait() || self.report_waits()
    }

    fn events_wait(&self) -> bool {
        let oldest = self.events.front();
        oldest.is_some_and(|event| event.number <= self.sent_event)
    }

    fn report_waits(&self) -> bool {
        self.sent_sequence > self.acked_sequence
    }

    pub(crate) fn stored(&mut self, next_event: u64) {
        self.stored_event = self.stored_event.max(next_event);
    }

    /// Events that are on disk, or were; None where the disk has lost something, and the controller has
    /// yet to say how far it had come.
    pub(crate) fn recorded(&self) -> Option<u64> {
        if self.is_damaged { None } else { self.stored_event.checked_sub(1) }
    }

    pub(crate) fn events_waiting(&self) -> usize {
        self.events.len()
    }

    pub(crate) fn next_event(&self) -> u64 {
        self.next_event
    }

    /// What can be sent and has not been, on this connection: one batch of events and one report at
    /// a time, so that what happens while they travel travels together.
    pub(crate) fn messages(&mut self, now_ms: u64) -> impl Iterator<Item = Message> + use<> {
        let events = self.batch(now_ms).map(Message::Events);
        let report = self.report().map(Message::Reported);
        events.into_iter().chain(report)
    }

    fn batch(&mut self, now_ms: u64) -> Option<EventBatch> {
        if self.events_wait() {
            return None;
        }
        let stored = |event: &&Event| event.number < self.stored_event;
        let events = self.events.iter().take_while(stored);
        let events: Vec<Event> = events.take(BATCH_EVENTS_MAX).cloned().collect();
        self.sent_event = events.last()?.number;
        Some(EventBatch {
            outbox: self.id,
            boot: self.boot,
            sent_ms: now_ms,
            oldest: events.first()?.number,
            events,
        })
    }

    fn report(&mut self) -> Option<Reported> {
        let complete = std::mem::take(&mut self.send_whole);
        let latest = self.next_sequence.saturating_sub(1);
        if !complete && (self.report_waits() || latest <= self.sent_sequence) {
            return None;
        }
        let since = if complete { 0 } else { self.sent_sequence };
        let changed = self.statuses.iter().filter(|(_, known)| known.sequence > since);
        let records = changed.filter(|(_, known)| !complete || known.status.is_some()).map(
            |(workload, known)| Record { workload: workload.clone(), status: known.status.clone() },
        );
        let records = records.collect();
        self.sent_sequence = latest;
        Some(Reported {
            outbox: self.id,
            sequence: latest,
            applied: self.applied,
            complete,
            records,
            whole: self.digest(),
            upgrade: self.upgrade().cloned(),
        })
    }

    /// Fills in the outbox's part of a checkpoint.
    pub(crate) fn checkpoint(&self) -> Checkpoint {
        Checkpoint {
            next_event: self.next_event,
            untold_event: self.untold_event.filter(|_| self.is_damaged),
            next_sequence: self.next_sequence,
            events: self.events.iter().cloned().collect(),
            applied: self.applied,
            ..Checkpoint::first(self.id)
        }
    }
}

/// As much of a text as a message may have: what a registry or an image says has no bound.
pub(crate) fn clip(mut text: String) -> String {
    let mut end = text.len().min(MESSAGE_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end = end.saturating_sub(1);
    }
    text.truncate(end);
    text
}

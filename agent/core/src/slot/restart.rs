//! A workload across a restart of the agent: what is recorded of it, and what is found.

use limpet_protocol::{EventKind, Exit, Signal, Workload, WorkloadId};

use super::{Life, Slot};
use crate::agent::Turn;
use crate::checkpoint::{RecordedLife, SlotRecord};
use crate::io::Effect;

impl Slot {
    /// What must survive a restart of the agent.
    pub(crate) fn record(&self) -> SlotRecord {
        let life = match self.life {
            Life::Absent | Life::Waiting { .. } | Life::Unable { .. } => RecordedLife::Absent,
            Life::Starting | Life::Sought { told: false } => RecordedLife::Ordered,
            Life::Sought { told: true } | Life::Running { .. } | Life::Stopping { .. } => {
                RecordedLife::Started
            }
            Life::Finished { success } => RecordedLife::Finished { success },
        };
        SlotRecord {
            container: self.container,
            made: self.made.clone(),
            previous: self.previous.clone(),
            life,
            restarts: self.restarts,
            exit: self.exit,
            message: self.message.clone(),
            stopped: self.stopped,
        }
    }

    /// A slot as it was recorded.
    pub(crate) fn restored(id: WorkloadId, record: SlotRecord) -> Self {
        let life = match record.life {
            RecordedLife::Absent => Life::Absent,
            RecordedLife::Ordered => Life::Sought { told: false },
            RecordedLife::Started => Life::Sought { told: true },
            RecordedLife::Finished { success } => Life::Finished { success },
        };
        Self {
            life,
            container: record.container,
            made: record.made,
            previous: record.previous,
            restarts: record.restarts,
            exit: record.exit,
            message: record.message,
            stopped: record.stopped,
            ..Self::new(id)
        }
    }

    /// A container was found running.
    pub(crate) fn adopt(
        &mut self,
        number: u32,
        made: Option<Workload>,
        pid: u32,
        turn: &mut Turn<'_>,
    ) {
        if number < self.container {
            let container = self.id_of(number);
            turn.order(Effect::Signal { container, signal: Some(Signal::KILL) });
            return;
        }
        if number > self.container || made.is_some() {
            self.made = made;
        }
        self.find(number);
        self.tell_start(format!("pid {pid}"), turn);
        self.life = Life::Running { pid, since_ms: turn.now_ms };
        self.note(turn, EventKind::Adopted, None, format!("pid {pid}"));
    }

    /// A container was found that had ended while nobody was there to be told.
    pub(crate) fn found_ended(
        &mut self,
        number: u32,
        made: Option<Workload>,
        exit: Exit,
        turn: &mut Turn<'_>,
    ) {
        if number > self.container {
            self.made = made;
            self.find(number);
        }
        if number == self.container && !matches!(self.life, Life::Sought { .. }) {
            self.kept = Some(number);
            return;
        }
        if number == self.container {
            self.tell_start(String::new(), turn);
        }
        self.exited(number, exit, turn);
    }

    /// A container is there that is later than any that was recorded.
    fn find(&mut self, number: u32) {
        if number > self.container {
            self.container = number;
            self.life = Life::Sought { told: false };
        }
    }

    /// The start of a container that was found, where no event has told of it.
    fn tell_start(&self, message: String, turn: &mut Turn<'_>) {
        if self.life == (Life::Sought { told: false }) {
            self.note(turn, EventKind::Started, None, message);
        }
    }

    /// A container was found that had never been completely made.
    pub(crate) fn found_broken(&mut self, number: u32, turn: &mut Turn<'_>) {
        turn.order(Effect::Remove { container: self.id_of(number) });
        if number >= self.container {
            self.container = number;
            self.life = Life::Absent;
        }
    }

    /// A container that was alive at the last checkpoint has left no trace: the machine lost power.
    pub(crate) fn found_missing(&mut self, turn: &mut Turn<'_>) {
        if matches!(self.life, Life::Sought { .. }) {
            self.exited(self.container, Exit::Unknown, turn);
            self.kept = None;
        }
    }
}

//! What the device's owner does not allow a workload.

use limpet_protocol::{Digest, EventKind, Workload};

use super::{Image, Life, Slot};
use crate::agent::Turn;
use crate::owner::{Memory, Refusal};

impl Slot {
    /// Memory that its container may take, in bytes; 0 where it has none, or no limit.
    pub(crate) fn memory_bytes(&self) -> u64 {
        let made = match self.life {
            Life::Sought { .. }
            | Life::Starting
            | Life::Running { .. }
            | Life::Stopping { .. }
            | Life::Waiting { .. } => self.made.as_ref(),
            Life::Absent | Life::Finished { .. } | Life::Unable { .. } => None,
        };
        made.and_then(|made| made.spec.resources.memory_bytes).unwrap_or(0)
    }

    /// Why a workload may not run here.
    pub(super) fn refusal(&self, workload: &Workload, turn: &Turn<'_>) -> Option<Refusal> {
        let taken = turn.memory.taken.saturating_sub(self.memory_bytes());
        let judged = turn.owner.judge(&workload.spec, Memory { taken, ..turn.memory });
        judged.err().or_else(|| {
            let known = self.not_allowed.as_ref();
            known.filter(|(revision, _)| *revision == workload.revision).map(|(_, r)| r.clone())
        })
    }

    /// Tells once of a refusal: while it lasts it is part of the status.
    pub(super) fn tell_refusal(
        &mut self,
        refusal: Option<Refusal>,
        revision: Digest,
        turn: &mut Turn<'_>,
    ) {
        let told = refusal.as_ref().map(|refusal| (revision, refusal.rule));
        if let Some(refusal) = refusal.filter(|_| self.told != told) {
            self.note(turn, EventKind::StartFailed, None, refusal.to_string());
        }
        self.told = told;
    }

    /// The shell was not allowed to give it what it wants: not before another revision, or another
    /// start of the agent, is that tried again.
    pub(crate) fn not_allowed(&mut self, number: u32, refusal: Refusal) {
        if matches!(self.image, Image::Asked { number: asked, .. } if asked == number) {
            self.image = Image::Unknown;
            let revision = self.wanted.as_ref().map(|wanted| wanted.revision);
            self.not_allowed = revision.map(|revision| (revision, refusal));
        }
    }
}

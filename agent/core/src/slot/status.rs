//! What is told of a workload.

use limpet_protocol::{ContainerId, Digest, Phase, WorkloadStatus};

use super::{Image, Life, Slot};

impl Slot {
    /// Whether there may be a log of it.
    pub(crate) fn has_run(&self) -> bool {
        self.container > 0
    }

    /// The container that runs, if one does.
    pub(crate) fn runs(&self) -> Option<ContainerId> {
        let runs = matches!(self.life, Life::Running { .. } | Life::Stopping { .. });
        runs.then(|| self.id_of(self.container))
    }

    /// What is told to the controller.
    pub(crate) fn status(&self) -> WorkloadStatus {
        let waiting = |image| match image {
            Image::Asked { pulling: true, .. } => Phase::Pulling,
            Image::Failed { .. } => Phase::Backoff,
            Image::Unknown | Image::Asked { .. } | Image::Ready => Phase::Pending,
        };
        let between = self.current() == Some(false);
        let (phase, pid) = match self.life {
            Life::Absent | Life::Waiting { .. } | Life::Finished { .. } | Life::Unable { .. }
                if self.stopped =>
            {
                (Phase::Exited, None)
            }
            Life::Absent => (waiting(self.image), None),
            Life::Waiting { .. } | Life::Finished { .. } if between => (waiting(self.image), None),
            Life::Sought { .. } | Life::Starting => (Phase::Starting, None),
            Life::Running { pid, .. } => (Phase::Running, Some(pid)),
            Life::Stopping { pid, .. } => (Phase::Stopping, Some(pid)),
            Life::Waiting { .. } => (Phase::Backoff, None),
            Life::Finished { success: true } => (Phase::Exited, None),
            Life::Finished { success: false } | Life::Unable { .. } => (Phase::Failed, None),
        };
        let wanted = self.wanted.as_ref().map(|wanted| wanted.revision);
        let nothing_runs = match self.life {
            Life::Absent | Life::Unable { .. } => true,
            Life::Waiting { .. } | Life::Finished { .. } => between,
            Life::Sought { .. } | Life::Starting | Life::Running { .. } | Life::Stopping { .. } => {
                false
            }
        };
        let revision = if nothing_runs { wanted.or(self.revision()) } else { self.revision() };
        WorkloadStatus {
            deployment: self.id.deployment(),
            revision: revision.unwrap_or(Digest([0; 32])),
            phase,
            container: self.container,
            pid,
            restarts: self.restarts,
            exit: self.exit,
            message: self.message.clone(),
        }
    }
}

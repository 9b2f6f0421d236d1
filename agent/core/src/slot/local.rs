//! What a person on site asks for: it holds until another desired state, or until they take it back.

use limpet_protocol::EventKind;

use super::{Image, Life, Slot};
use crate::agent::Turn;
use crate::io::LocalAction;

impl Slot {
    /// Does what a person on site asks for.
    pub(crate) fn on_site(&mut self, action: LocalAction, turn: &mut Turn<'_>) {
        let kind = match action {
            LocalAction::Stop => EventKind::StoppedOnSite,
            LocalAction::Start => EventKind::StartedOnSite,
            LocalAction::Restart => EventKind::RestartedOnSite,
        };
        self.note(turn, kind, None, String::new());
        self.stopped = action == LocalAction::Stop;
        if self.stopped {
            return;
        }
        self.message.clear();
        self.failures = 0;
        // They may have made room for it, or a link lead elsewhere.
        (self.not_allowed, self.told) = (None, None);
        if matches!(self.image, Image::Failed { .. }) {
            self.image = Image::Unknown;
        }
        match self.life {
            Life::Running { pid, .. } if action == LocalAction::Restart => self.stop(pid, turn),
            Life::Waiting { .. } | Life::Finished { .. } | Life::Unable { .. } => {
                self.life = Life::Absent;
            }
            Life::Running { .. }
            | Life::Absent
            | Life::Sought { .. }
            | Life::Starting
            | Life::Stopping { .. } => {}
        }
    }

    /// Another desired state is in force: whoever made it decides.
    pub(crate) fn take_back(&mut self) {
        if std::mem::take(&mut self.stopped) {
            self.message.clear();
        }
    }

    /// Ends what a person on site has stopped, and starts nothing.
    pub(super) fn stay_stopped(&mut self, turn: &mut Turn<'_>) {
        if let Life::Running { pid, .. } = self.life {
            self.stop(pid, turn);
        }
        let id = &self.id;
        self.say(format!("stopped on site, until another change or `limpet-agent start {id}`"));
    }
}

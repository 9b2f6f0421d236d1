//! The image that a workload is waiting for.

use limpet_protocol::{EventKind, Held, Workload};

use super::{Life, Slot};
use crate::agent::Turn;
use crate::backoff::wait_ms;
use crate::io::Effect;

/// Whether the image that is wanted is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Image {
    Unknown,
    Asked { number: u32, pulling: bool },
    Ready,
    Failed { retry_at_ms: u64 },
}

impl Image {
    /// Whether it is known not to be here.
    pub(super) fn is_missing(self) -> bool {
        match self {
            Self::Asked { pulling: true, .. } | Self::Failed { .. } => true,
            Self::Unknown | Self::Asked { pulling: false, .. } | Self::Ready => false,
        }
    }
}

impl Slot {
    /// Asks for the image of what is wanted, where that is neither here nor asked for.
    pub(crate) fn prefetch(&mut self, turn: &mut Turn<'_>) {
        if self.current() == Some(false) && !self.stopped && self.able(turn) {
            self.ready(turn);
        }
    }

    /// The desired state whose images are not all here, as far as this slot goes: nothing that runs
    /// is touched for its sake before they are. One that cannot be had keeps nobody waiting.
    pub(crate) fn fetches(&self) -> Option<Held> {
        let asked = matches!(self.image, Image::Asked { .. });
        (asked && self.current() == Some(false)).then_some(self.asked_by)
    }

    /// The images that are needed: of what is wanted, and of the revision before it, which goes on
    /// until that can be had, and may be gone back to.
    pub(crate) fn images(&self) -> impl Iterator<Item = String> + use<> {
        let image = |workload: &Option<Workload>| workload.as_ref().map(|w| w.spec.image.clone());
        let (wanted, made) = (image(&self.wanted), image(&self.made));
        let previous = self.previous.clone().filter(|_| wanted == made);
        wanted.into_iter().chain(made).chain(previous)
    }

    /// Whether the wanted image is here; asks for it where that is not known.
    pub(super) fn ready(&mut self, turn: &mut Turn<'_>) -> bool {
        match self.image {
            Image::Ready => return true,
            Image::Asked { .. } => return false,
            Image::Failed { retry_at_ms } if retry_at_ms > turn.now_ms => return false,
            Image::Failed { .. } | Image::Unknown => {}
        }
        let Some(wanted) = &self.wanted else {
            return false;
        };
        let (image, host) = (wanted.spec.image.clone(), wanted.spec.host.clone());
        let number = turn.take_number();
        self.image = Image::Asked { number, pulling: false };
        let policies = Box::new(self.policies.clone());
        let container = self.id_of(number);
        turn.order(Effect::Prepare { container, image, policies, host });
        false
    }

    pub(crate) fn pulling(&mut self, number: u32, turn: &mut Turn<'_>) {
        if self.image == (Image::Asked { number, pulling: false }) {
            self.image = Image::Asked { number, pulling: true };
            // Why it failed before is said again should it fail again.
            if !matches!(self.life, Life::Running { .. }) {
                self.message.clear();
            }
            let image = self.wanted.as_ref().map(|w| w.spec.image.clone()).unwrap_or_default();
            self.note(turn, EventKind::Pulling, None, image);
        }
    }

    pub(crate) fn pull_progressed(&mut self, number: u32, received: u64, total: u64) {
        let ours = self.image == (Image::Asked { number, pulling: true });
        // What runs meanwhile has nothing to explain.
        if ours && !matches!(self.life, Life::Running { .. }) {
            let mb = |bytes: u64| bytes.div_ceil(1_000_000);
            self.say(format!("{} of {} MB", mb(received), mb(total)));
        }
    }

    pub(crate) fn image_ready(&mut self, number: u32, turn: &mut Turn<'_>) {
        let Image::Asked { number: asked, pulling } = self.image else {
            return;
        };
        if asked != number {
            return;
        }
        self.image = Image::Ready;
        self.message.clear();
        if pulling {
            let image = self.wanted.as_ref().map(|w| w.spec.image.clone()).unwrap_or_default();
            self.note(turn, EventKind::Pulled, None, image);
        }
    }

    pub(crate) fn image_failed(&mut self, number: u32, reason: String, turn: &mut Turn<'_>) {
        self.not_ready(number, EventKind::PullFailed, reason, turn);
    }

    pub(crate) fn host_lacks(&mut self, number: u32, reason: String, turn: &mut Turn<'_>) {
        self.not_ready(number, EventKind::StartFailed, reason, turn);
    }

    fn not_ready(&mut self, number: u32, kind: EventKind, reason: String, turn: &mut Turn<'_>) {
        if !matches!(self.image, Image::Asked { number: asked, .. } if asked == number) {
            return;
        }
        self.failures = self.failures.saturating_add(1);
        let wait = wait_ms(self.failures, turn.jitter);
        let retry_at_ms = turn.now_ms.saturating_add(wait);
        self.image = Image::Failed { retry_at_ms };
        self.say(reason.clone());
        self.note(turn, kind, None, reason);
    }
}

//! One workload on this device: its container's life, and what comes next.
//!
//! ```text
//!              image ready          started             stop
//!   Absent ────────────▶ Starting ────────▶ Running ─────────▶ Stopping
//!     ▲                     │                  │                  │
//!     │ other revision      │ failed           │ exited           │ exited
//!     │                     ▼                  ▼                  ▼
//!     ├──────────────── Waiting ◀──────── try again?            Absent
//!     │                     │ time             │ no
//!     │                     ▼                  ▼
//!     └──────────────── Absent             Finished
//! ```
//!
//! [`Slot::step`] looks at what is wanted and where life stands, and orders the one thing that is
//! missing; the other methods record what the shell answered. Nothing that runs is stopped before
//! the images of the desired state that wants it so are here, and while what is wanted cannot run, Absent leads back to
//! Starting with what ran before it.

use limpet_protocol::{
    ContainerId, Digest, EventKind, Exit, Held, ImagePolicies, ImagePolicy, Restart, Signal,
    Workload, WorkloadId,
};

use crate::agent::Turn;
use crate::backoff::wait_ms;
use crate::io::Effect;
use crate::outbox::{Note, clip};
use crate::owner::{Refusal, Rule};

mod image;
mod local;
mod owner;
mod restart;
mod status;

use image::Image;

/// A container that ran for this long has shown that it works: its failures are forgotten.
const STEADY_MS: u64 = 60_000;

/// The last words of a container that ended badly go to flash at most once in this time.
const KEEP_LOG_EVERY_MS: u64 = 1_800_000;

/// SIGKILL is repeated after this long, should a process have been busy in the kernel.
const KILL_AGAIN_MS: u64 = 10_000;

/// A workload, wanted or on its way out.
#[derive(Debug)]
pub(crate) struct Slot {
    id: WorkloadId,
    /// None: it should go.
    wanted: Option<Workload>,
    /// The desired state that made it so.
    asked_by: Held,
    /// What the image of anything that is started must be.
    policies: ImagePolicies,
    /// A person on site has stopped it: until another desired state, or until they start it.
    stopped: bool,
    life: Life,
    image: Image,
    /// The latest container, and what it was made from.
    container: u32,
    made: Option<Workload>,
    /// The image of the revision before the one that was made: it is gone back to where that fails.
    previous: Option<String>,
    /// A container that has ended and is kept for its log.
    kept: Option<u32>,
    failures: u32,
    restarts: u32,
    exit: Option<Exit>,
    message: String,
    /// Why it ended is not written to flash again before this.
    keep_log_at_ms: u64,
    /// This revision wants what the shell was not allowed to give it.
    not_allowed: Option<(Digest, Refusal)>,
    /// The refusal that the latest event told of.
    told: Option<(Digest, Rule)>,
}

/// The life of the latest container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Absent,
    /// Alive at the last checkpoint, and looked for; `told` says that its start is an event.
    Sought {
        told: bool,
    },
    Starting,
    Running {
        pid: u32,
        since_ms: u64,
    },
    Stopping {
        pid: u32,
        kill_at_ms: u64,
    },
    Waiting {
        until_ms: u64,
    },
    Finished {
        success: bool,
    },
    /// This agent cannot enforce what this revision requires, or its owner does not allow it.
    Unable {
        revision: Digest,
    },
}

impl Slot {
    pub(crate) fn new(id: WorkloadId) -> Self {
        Self {
            id,
            wanted: None,
            asked_by: Held::default(),
            policies: ImagePolicies::default(),
            stopped: false,
            life: Life::Absent,
            image: Image::Unknown,
            container: 0,
            made: None,
            previous: None,
            kept: None,
            failures: 0,
            restarts: 0,
            exit: None,
            message: String::new(),
            keep_log_at_ms: 0,
            not_allowed: None,
            told: None,
        }
    }

    /// Takes over what `held` wants from here on, with the fleet's policy; None where it should go.
    pub(crate) fn want(
        &mut self,
        wanted: Option<Workload>,
        fleet: Option<ImagePolicy>,
        held: Held,
    ) {
        let revision = |workload: &Option<Workload>| workload.as_ref().map(|w| w.revision);
        if revision(&self.wanted) != revision(&wanted) {
            self.image = Image::Unknown;
            self.asked_by = held;
            // After a restart of the agent nothing was wanted before: what was said still holds.
            if self.wanted.is_some() {
                self.message.clear();
            }
        }
        let deployment = wanted.as_ref().and_then(|wanted| wanted.policy.clone());
        let policies = ImagePolicies { fleet, deployment };
        if self.policies != policies {
            // What runs goes on; an image that was ready is looked at again before it is used.
            self.image = Image::Unknown;
            self.policies = policies;
        }
        self.wanted = wanted;
    }

    /// Orders what is missing. True where nothing is left and the slot can be dropped.
    pub(crate) fn step(&mut self, turn: &mut Turn<'_>) -> bool {
        match (self.current(), self.life) {
            (_, Life::Stopping { pid, kill_at_ms }) if kill_at_ms <= turn.now_ms => {
                let kill_at_ms = turn.now_ms.saturating_add(KILL_AGAIN_MS);
                self.life = Life::Stopping { pid, kill_at_ms };
                let container = self.id_of(self.container);
                turn.order(Effect::Signal { container, signal: Some(Signal::KILL) });
            }
            (_, Life::Sought { .. } | Life::Starting | Life::Stopping { .. }) => {}
            (Some(_), _) if self.stopped => self.stay_stopped(turn),
            (None, Life::Running { pid, .. }) => {
                if !turn.fetching.contains(&self.asked_by) {
                    self.stop(pid, turn);
                }
            }
            (
                None,
                Life::Absent | Life::Waiting { .. } | Life::Finished { .. } | Life::Unable { .. },
            ) => {
                self.clear(turn);
                return true;
            }
            (Some(true), Life::Waiting { until_ms }) if until_ms > turn.now_ms => {}
            (Some(true), Life::Finished { .. } | Life::Running { .. }) => {}
            (Some(false), Life::Running { pid, .. }) => {
                let able = self.able(turn) && self.ready(turn);
                if able && !turn.fetching.contains(&self.asked_by) {
                    self.stop(pid, turn);
                }
            }
            (
                Some(_),
                Life::Absent | Life::Waiting { .. } | Life::Finished { .. } | Life::Unable { .. },
            ) => {
                // A wait that is over is none.
                if matches!(self.life, Life::Waiting { until_ms } if until_ms <= turn.now_ms) {
                    self.life = Life::Absent;
                }
                let able = self.able(turn);
                if able && self.ready(turn) {
                    self.start(self.wanted.clone(), turn);
                } else if !able || self.image.is_missing() {
                    self.fall_back(turn);
                }
            }
        }
        false
    }

    /// Whether the latest container is of the revision that is wanted; None where none is.
    fn current(&self) -> Option<bool> {
        let wanted = self.wanted.as_ref()?.revision;
        Some(match self.life {
            Life::Unable { revision } => revision == wanted,
            Life::Absent
            | Life::Sought { .. }
            | Life::Starting
            | Life::Running { .. }
            | Life::Stopping { .. }
            | Life::Waiting { .. }
            | Life::Finished { .. } => self.revision() == Some(wanted),
        })
    }

    /// Whether what is wanted is as it should be.
    pub(crate) fn is_settled(&self) -> bool {
        let at_rest = match self.life {
            Life::Running { .. } | Life::Finished { .. } => true,
            Life::Absent
            | Life::Sought { .. }
            | Life::Starting
            | Life::Stopping { .. }
            | Life::Waiting { .. }
            | Life::Unable { .. } => false,
        };
        at_rest && self.current() == Some(true)
    }

    fn revision(&self) -> Option<Digest> {
        self.made.as_ref().map(|made| made.revision)
    }

    /// Whether this agent can enforce what is wanted, and may; says so where not.
    fn able(&mut self, turn: &mut Turn<'_>) -> bool {
        let Some(wanted) = &self.wanted else {
            return false;
        };
        let revision = wanted.revision;
        let lacking = wanted.requires.iter().find(|needed| !turn.features.contains(needed));
        let lacking =
            lacking.map(|lacking| format!("this agent or its kernel cannot do {lacking}"));
        let refusal = self.refusal(wanted, turn);
        let why = refusal.as_ref().map(Refusal::to_string).or(lacking);
        self.tell_refusal(refusal, revision, turn);
        let Some(why) = why else {
            if matches!(self.life, Life::Unable { .. }) {
                self.life = Life::Absent;
            }
            return true;
        };
        self.say(why);
        // Another revision that was made before goes on.
        let nothing_runs = match self.life {
            Life::Absent | Life::Waiting { .. } | Life::Finished { .. } | Life::Unable { .. } => {
                true
            }
            Life::Sought { .. } | Life::Starting | Life::Running { .. } | Life::Stopping { .. } => {
                false
            }
        };
        if nothing_runs && self.revision().is_none_or(|made| made == revision) {
            self.life = Life::Unable { revision };
        }
        false
    }

    /// While what is wanted cannot run, what ran before it does: unless it waits, or had ended for
    /// good.
    fn fall_back(&mut self, turn: &mut Turn<'_>) {
        let allowed = self.made.as_ref().is_some_and(|made| self.refusal(made, turn).is_none());
        if self.life == Life::Absent && self.current() == Some(false) && allowed {
            self.start(self.made.clone(), turn);
        }
    }

    /// When [`Slot::step`] should look again, in milliseconds since boot. A wait that is over is
    /// none: [`Slot::step`] has acted upon it.
    pub(crate) fn timeout_ms(&self) -> Option<u64> {
        let life = match self.life {
            Life::Stopping { kill_at_ms, .. } => return Some(kill_at_ms),
            Life::Sought { .. } | Life::Starting => return None,
            _ if self.stopped => return None,
            Life::Waiting { until_ms } => Some(until_ms),
            Life::Absent | Life::Running { .. } | Life::Finished { .. } | Life::Unable { .. } => {
                None
            }
        };
        let image = match self.image {
            Image::Failed { retry_at_ms } if self.current() != Some(true) || life.is_none() => {
                Some(retry_at_ms)
            }
            Image::Failed { .. } | Image::Unknown | Image::Asked { .. } | Image::Ready => None,
        };
        life.into_iter().chain(image).min()
    }

    pub(crate) fn started(&mut self, number: u32, pid: u32, turn: &mut Turn<'_>) {
        if self.life == Life::Starting && number == self.container {
            self.life = Life::Running { pid, since_ms: turn.now_ms };
            // Why it is not the wanted one that runs is still to be said.
            if self.current() == Some(true) {
                self.message.clear();
            }
            self.note(turn, EventKind::Started, None, format!("pid {pid}"));
        }
    }

    pub(crate) fn start_failed(&mut self, number: u32, reason: String, turn: &mut Turn<'_>) {
        turn.order(Effect::Remove { container: self.id_of(number) });
        if self.life != Life::Starting || number != self.container {
            return;
        }
        self.image = Image::Unknown;
        self.exit = None;
        self.say(reason.clone());
        self.note(turn, EventKind::StartFailed, None, reason);
        self.failures = self.failures.saturating_add(1);
        self.wait(turn);
    }

    /// The main process of a container has ended; a container that is not the latest is removed.
    pub(crate) fn exited(&mut self, number: u32, exit: Exit, turn: &mut Turn<'_>) {
        let (ran_ms, asked) = match self.life {
            _ if number != self.container => (0, None),
            Life::Running { since_ms, .. } => (turn.now_ms.saturating_sub(since_ms), Some(false)),
            Life::Sought { .. } | Life::Starting => (0, Some(false)),
            Life::Stopping { .. } => (0, Some(true)),
            Life::Absent | Life::Waiting { .. } | Life::Finished { .. } | Life::Unable { .. } => {
                (0, None)
            }
        };
        let Some(asked) = asked else {
            if self.kept != Some(number) {
                turn.order(Effect::Remove { container: self.id_of(number) });
            }
            return;
        };
        self.note(turn, EventKind::Exited, Some(exit), exit.to_string());
        self.exit = Some(exit);
        if let Some(previous) = self.kept.replace(number) {
            turn.order(Effect::Remove { container: self.id_of(previous) });
        }
        if !asked && !exit.is_success() && self.keep_log_at_ms <= turn.now_ms {
            self.keep_log_at_ms = turn.now_ms.saturating_add(KEEP_LOG_EVERY_MS);
            turn.order(Effect::KeepLog { container: self.id_of(number) });
        }
        if asked {
            self.life = Life::Absent;
            self.failures = 0;
            return;
        }
        if ran_ms >= STEADY_MS {
            self.failures = 0;
        }
        self.again(exit, turn);
    }

    /// What follows an end that nobody asked for.
    fn again(&mut self, exit: Exit, turn: &mut Turn<'_>) {
        self.say(exit.to_string());
        let restart = self.made.as_ref().map_or(Restart::Never, |made| made.spec.restart);
        let again = match restart {
            Restart::Always => true,
            Restart::OnFailure => !exit.is_success(),
            Restart::Never => false,
        };
        if again {
            self.restarts = self.restarts.saturating_add(1);
            self.wait(turn);
            self.failures = self.failures.saturating_add(1);
        } else {
            self.life = Life::Finished { success: exit.is_success() };
        }
    }

    fn wait(&mut self, turn: &mut Turn<'_>) {
        let wait = wait_ms(self.failures, turn.jitter);
        self.life = Life::Waiting { until_ms: turn.now_ms.saturating_add(wait) };
        if wait > 0 {
            let message = format!("next try in {}.{} s", wait / 1000, wait % 1000 / 100);
            self.note(turn, EventKind::Backoff, None, message);
        }
    }

    fn stop(&mut self, pid: u32, turn: &mut Turn<'_>) {
        let stop = self.made.as_ref().map(|made| made.spec.stop).unwrap_or_default();
        let kill_at_ms = turn.now_ms.saturating_add(u64::from(stop.grace_ms));
        self.life = Life::Stopping { pid, kill_at_ms };
        self.note(turn, EventKind::Stopping, None, String::new());
        let container = self.id_of(self.container);
        turn.order(Effect::Signal { container, signal: stop.signal });
    }

    fn start(&mut self, workload: Option<Workload>, turn: &mut Turn<'_>) {
        let Some(workload) = workload else { return };
        let others = turn.memory.taken.saturating_sub(self.memory_bytes());
        if self.revision() != Some(workload.revision) {
            self.failures = 0;
            self.restarts = 0;
            let before = self.made.as_ref().map(|made| &made.spec.image);
            if let Some(before) = before.filter(|before| **before != workload.spec.image) {
                self.previous = Some(before.clone());
            }
        }
        self.container = turn.take_number();
        self.life = Life::Starting;
        let container = self.id_of(self.container);
        let policies = Box::new(self.policies.clone());
        turn.order(Effect::Start { container, workload: Box::new(workload.clone()), policies });
        self.made = Some(workload);
        turn.memory.taken = others.saturating_add(self.memory_bytes());
    }

    fn clear(&mut self, turn: &mut Turn<'_>) {
        if let Some(kept) = self.kept.take() {
            turn.order(Effect::Remove { container: self.id_of(kept) });
        }
        turn.order(Effect::ForgetLog { workload: self.id.clone() });
        self.note(turn, EventKind::Removed, None, String::new());
    }

    fn id_of(&self, number: u32) -> ContainerId {
        ContainerId::new(&self.id, number)
    }

    fn say(&mut self, message: String) {
        self.message = clip(message);
    }

    fn note(&self, turn: &mut Turn<'_>, kind: EventKind, exit: Option<Exit>, message: String) {
        let workload = Some(self.id.clone());
        let container = (self.container > 0).then_some(self.container);
        turn.note(Note { kind, workload, container, exit, message });
    }
}

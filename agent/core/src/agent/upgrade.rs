//! Another program of the agent: fetched, tried, kept.
//!
//! ```text
//!   Idle ──ordered──▶ Fetching ──there──▶ Handing ──▶ (another process) Trial ──proved──▶ Idle
//!     ▲                │    ▲                │                            │
//!     │           may pass  │ time           │ cannot begin               └─ its deadline: the one
//!     │                ▼    │                ▼                               before it starts, with
//!     └──── final ── Waiting            Idle, failed                         the order failed
//! ```

use limpet_protocol::{
    AgentVersion, BootId, ContainerId, EventKind, Upgrade, UpgradePhase, UpgradeStatus,
};

use super::Agent;
use super::link::Link;
use crate::backoff;
use crate::io::{Effect, Found, FoundState};
use crate::outbox::clip;
use crate::slot::Slot;
use crate::upgrade::{Failure, Record, Trial};

/// What could not be stored is tried again after this long, in milliseconds.
const KEEP_AGAIN_MS: u64 = 2_000;

/// What an agent begins with of its own program.
#[derive(Debug, Clone, Default)]
pub struct Own {
    /// What is known of the programs; None where nothing was ever ordered.
    pub record: Option<Record>,
    /// This program has yet to prove itself.
    pub on_trial: bool,
}

/// How far another program has come.
#[derive(Debug)]
pub(super) struct Upgrading {
    step: Step,
    /// The latest order that was carried out, or failed.
    settled: u64,
    /// Tries to fetch, one after the other, that brought nothing.
    failures: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Idle,
    Fetching { upgrade: Box<Upgrade> },
    Waiting { until_ms: u64 },
    Handing { upgrade: Box<Upgrade> },
    Trial { trial: Box<Trial>, keeping: Keeping },
}

/// Whether it is on disk that the program on trial has proved itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keeping {
    /// It has not: it has not found what ran.
    Blind,
    /// It has not yet.
    Unproved,
    /// It is on its way there.
    Storing,
    /// That failed: not before this.
    After(u64),
}

impl Upgrading {
    pub(super) fn new(own: &Own) -> Self {
        let settled = own.record.as_ref().map_or(0, |record| record.settled);
        Self { step: Step::Idle, settled, failures: 0 }
    }

    pub(super) fn timeout_ms(&self) -> Option<u64> {
        match &self.step {
            Step::Waiting { until_ms } | Step::Trial { keeping: Keeping::After(until_ms), .. } => {
                Some(*until_ms)
            }
            Step::Idle | Step::Fetching { .. } | Step::Handing { .. } | Step::Trial { .. } => None,
        }
    }
}

impl Agent {
    /// Takes over what the launcher has left.
    pub(super) fn take_over_upgrade(&mut self, now_ms: u64, own: Own, found: &[Found]) {
        let Some(record) = own.record else { return };
        match record.trial {
            Some(trial) if own.on_trial => return self.prove(trial, found),
            Some(Trial { order, version, .. }) => {
                let reason = "that it was begun could not be stored".to_owned();
                return self.fail(now_ms, order, Failure { version, reason, told: false });
            }
            None => {}
        }
        let Some(failure) = record.failure else { return };
        self.say(record.settled, failure.version.clone(), UpgradePhase::Failed, &failure.reason);
        if !failure.told {
            self.note(now_ms, EventKind::UpgradeFailed, told(&failure));
            let failure = Some(Failure { told: true, ..failure });
            self.effects.push_back(Effect::SettleUpgrade { order: record.settled, failure });
        }
    }

    fn prove(&mut self, trial: Trial, found: &[Found]) {
        let missed = missed(&trial, self.boot, found);
        let reason =
            missed.as_ref().map(|id| format!("{id} ran before it, and it does not find it"));
        if let Some(reason) = &reason {
            let message = format!("this agent does not prove itself: {reason}");
            self.effects.push_back(Effect::Warn { message });
        }
        let keeping = if missed.is_some() { Keeping::Blind } else { Keeping::Unproved };
        let (order, version) = (trial.order, trial.version.clone());
        self.say(order, version, UpgradePhase::Trying, &reason.unwrap_or_default());
        self.upgrading.step = Step::Trial { trial: Box::new(trial), keeping };
    }

    /// Does what is next.
    pub(super) fn upgrade(&mut self, now_ms: u64) {
        let wanted = self.desired.as_ref().and_then(|desired| desired.upgrade.clone());
        let settled = self.upgrading.settled;
        // An earlier process carried it out, and may not have been heard.
        if let Some(done) = wanted.as_ref().filter(|wanted| wanted.order == settled)
            && self.outbox.upgrade().is_none()
        {
            self.say(done.order, done.version.clone(), UpgradePhase::Done, "");
        }
        let wanted = wanted.filter(|wanted| wanted.order > settled);
        match (&mut self.upgrading.step, wanted) {
            (Step::Waiting { .. }, None) => self.upgrading.step = Step::Idle,
            (Step::Waiting { until_ms }, Some(_)) if now_ms < *until_ms => {}
            (Step::Idle | Step::Waiting { .. }, Some(wanted)) => self.fetch(now_ms, wanted),
            (Step::Trial { keeping, .. }, _) => {
                let due = match keeping {
                    Keeping::Unproved => true,
                    Keeping::After(until_ms) => now_ms >= *until_ms,
                    Keeping::Blind | Keeping::Storing => false,
                };
                let heard = matches!(self.link, Link::Open { .. });
                if due && heard && self.outbox.upgrade_is_told() {
                    *keeping = Keeping::Storing;
                    self.effects.push_back(Effect::KeepProgram);
                }
            }
            (Step::Idle | Step::Fetching { .. } | Step::Handing { .. }, _) => {}
        }
    }

    fn fetch(&mut self, now_ms: u64, upgrade: Upgrade) {
        if self.outbox.upgrade().is_none_or(|known| known.order != upgrade.order) {
            self.upgrading.failures = 0;
            self.note(now_ms, EventKind::Upgrading, format!("to {}", upgrade.version));
        }
        self.say(upgrade.order, upgrade.version.clone(), UpgradePhase::Fetching, "");
        let upgrade = Box::new(upgrade);
        self.upgrading.step = Step::Fetching { upgrade: upgrade.clone() };
        self.effects.push_back(Effect::FetchProgram(upgrade));
    }

    /// More of the program is here.
    pub(super) fn program_progressed(&mut self, received: u64, total: u64) {
        if let Step::Fetching { upgrade } = &self.upgrading.step {
            self.upgrading.failures = 0;
            let percent = received.saturating_mul(100).checked_div(total).unwrap_or(0);
            let (order, version) = (upgrade.order, upgrade.version.clone());
            self.say(order, version, UpgradePhase::Fetching, &format!("{percent} %"));
        }
    }

    /// The program that was fetched last is what was ordered, and can be started; or it is the one that
    /// runs.
    pub(super) fn program_ready(&mut self, now_ms: u64, runs: bool) {
        let Step::Fetching { upgrade } = &self.upgrading.step else { return };
        let upgrade = upgrade.clone();
        let (order, version) = (upgrade.order, upgrade.version.clone());
        let wanted = self.desired.as_ref().and_then(|desired| desired.upgrade.as_ref());
        if wanted != Some(&*upgrade) {
            self.upgrading.step = Step::Idle;
        } else if runs {
            self.settled(now_ms, order, version);
            self.effects.push_back(Effect::SettleUpgrade { order, failure: None });
        } else {
            let ran = self.slots.values().filter_map(Slot::runs).collect();
            let trial = Box::new(Trial::new(&upgrade, self.boot, ran));
            self.say(order, version, UpgradePhase::Trying, "");
            self.upgrading.step = Step::Handing { upgrade };
            self.effects.push_back(Effect::TryProgram(trial));
        }
    }

    /// The program that was fetched last cannot be had, or not be begun.
    pub(super) fn program_failed(&mut self, now_ms: u64, reason: String, may_pass: bool) {
        let (Step::Fetching { upgrade } | Step::Handing { upgrade }) = &self.upgrading.step else {
            return;
        };
        let (order, version) = (upgrade.order, upgrade.version.clone());
        if may_pass {
            self.upgrading.failures = self.upgrading.failures.saturating_add(1);
            let wait_ms = backoff::wait_ms(self.upgrading.failures, &mut self.jitter);
            self.upgrading.step = Step::Waiting { until_ms: now_ms.saturating_add(wait_ms) };
            self.say(order, version, UpgradePhase::Fetching, &reason);
        } else {
            self.upgrading.step = Step::Idle;
            self.fail(now_ms, order, Failure { version, reason, told: true });
        }
    }

    /// The link is back: what could not be fetched may be there now.
    pub(super) fn fetch_at_once(&mut self, now_ms: u64) {
        if let Step::Waiting { until_ms } = &mut self.upgrading.step {
            *until_ms = now_ms;
        }
    }

    /// Whether it is on disk that this program has proved itself.
    pub(super) fn program_kept(&mut self, now_ms: u64, done: bool) {
        let Step::Trial { trial, keeping, .. } = &mut self.upgrading.step else { return };
        if !done {
            *keeping = Keeping::After(now_ms.saturating_add(KEEP_AGAIN_MS));
            return;
        }
        let (order, version) = (trial.order, trial.version.clone());
        self.settled(now_ms, order, version);
    }

    fn settled(&mut self, now_ms: u64, order: u64, version: AgentVersion) {
        self.upgrading.step = Step::Idle;
        self.upgrading.settled = self.upgrading.settled.max(order);
        self.note(now_ms, EventKind::Upgraded, format!("to {version}"));
        self.say(order, version, UpgradePhase::Done, "");
    }

    fn fail(&mut self, now_ms: u64, order: u64, failure: Failure) {
        self.upgrading.settled = self.upgrading.settled.max(order);
        self.note(now_ms, EventKind::UpgradeFailed, told(&failure));
        self.say(order, failure.version.clone(), UpgradePhase::Failed, &failure.reason);
        let failure = Some(Failure { told: true, ..failure });
        self.effects.push_back(Effect::SettleUpgrade { order, failure });
    }

    /// Says how far it has come.
    fn say(&mut self, order: u64, version: AgentVersion, phase: UpgradePhase, message: &str) {
        let message = clip(message.to_owned());
        self.outbox.set_upgrade(UpgradeStatus { order, version, phase, message });
    }
}

fn told(failure: &Failure) -> String {
    format!("to {}: {}", failure.version, failure.reason)
}

/// A container that ran when the trial was ordered, in this boot, and that nobody has found.
fn missed(trial: &Trial, boot: BootId, found: &[Found]) -> Option<ContainerId> {
    let seen = |id: &&ContainerId| {
        let found = found.iter().filter(|found| found.container == **id);
        let mut states = found.map(|found| found.state);
        states.any(|state| matches!(state, FoundState::Running { .. } | FoundState::Ended(_)))
    };
    let mut ran = trial.ran.iter().filter(|_| trial.boot == boot);
    ran.find(|id| !seen(id)).cloned()
}

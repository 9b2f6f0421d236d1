//! Which program a device runs as its agent, decided each time one starts.
//!
//! ```text
//!          ordered                      begun in this boot before, or thrice in others
//!   good ───────────▶ trial ──────────────────────────────────────────────────▶ good, failed
//!     ▲                 │ proved itself
//!     └─────────────────┘
//! ```
//!
//! The program that the device was installed with, the *base*, is what always starts; it asks here,
//! and hands over. It must be able to read the record however old it is: fields are added to it, and
//! never change their meaning.

use limpet_protocol::upgrade::{DEADLINE_S_MAX, DEADLINE_S_MIN};
use limpet_protocol::{AgentVersion, BootId, ContainerId, Digest, Upgrade};
use serde::{Deserialize, Serialize};

/// Boots in which a program may be tried: that the machine went down need not be its fault.
const ATTEMPTS_MAX: u8 = 3;

/// What is known of the agent's programs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The base when this was written. Another one wins over all that is here.
    #[serde(rename = "b")]
    pub base: Digest,
    /// What has proved itself, where that is not the base.
    #[serde(rename = "g", default)]
    pub good: Option<Digest>,
    /// What has yet to prove itself.
    #[serde(rename = "t", default)]
    pub trial: Option<Trial>,
    /// The latest order that was carried out, or failed: neither is begun again.
    #[serde(rename = "s", default)]
    pub settled: u64,
    /// Why that one failed, if it did.
    #[serde(rename = "f", default)]
    pub failure: Option<Failure>,
}

/// A program that has yet to prove itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trial {
    /// The order.
    #[serde(rename = "o")]
    pub order: u64,
    /// The version that it names.
    #[serde(rename = "v")]
    pub version: AgentVersion,
    /// The program.
    #[serde(rename = "d")]
    pub digest: Digest,
    /// How long it may take, in seconds.
    #[serde(rename = "t")]
    pub deadline_s: u16,
    /// The boot in which it was ordered.
    #[serde(rename = "b")]
    pub boot: BootId,
    /// The containers that ran then: it must find them.
    #[serde(rename = "r", default)]
    pub ran: Vec<ContainerId>,
    /// How often it was begun.
    #[serde(rename = "n", default)]
    pub attempts: u8,
    /// The latest of those: in which boot, and when, in milliseconds since that.
    #[serde(rename = "l", default)]
    pub latest: Option<(BootId, u64)>,
}

/// An order that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The version that it names.
    #[serde(rename = "v")]
    pub version: AgentVersion,
    /// Why.
    #[serde(rename = "m")]
    pub reason: String,
    /// There is an event of it.
    #[serde(rename = "t", default)]
    pub told: bool,
}

/// Which program runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// The one that the device was installed with.
    Base,
    /// One that was fetched.
    Fetched(Digest),
}

/// When and where a program is chosen.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// The base.
    pub base: Digest,
    /// This boot.
    pub boot: BootId,
    /// Milliseconds since then.
    pub at_ms: u64,
}

/// What is to be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// Which program.
    pub program: Program,
    /// Must be on disk before it runs; None where it is.
    pub write: Option<Record>,
    /// It is on trial: what ends it after so many seconds.
    pub deadline_s: Option<u16>,
}

impl Record {
    /// That of a device that runs its base, and was never told to run another.
    pub fn new(base: Digest) -> Self {
        Self { base, good: None, trial: None, settled: 0, failure: None }
    }

    /// Whether anything else than the base may have to run.
    pub fn is_of_base(&self) -> bool {
        self.good.is_none() && self.trial.is_none()
    }

    /// Which program is to run.
    pub fn launch(mut self, now: Now) -> Launch {
        if self.base != now.base {
            let reason = "the installed agent was replaced meanwhile: it runs";
            self.fail_trial(reason.to_owned());
            self.good = None;
            self.base = now.base;
            return self.running(true);
        }
        let Some(trial) = &mut self.trial else {
            return self.running(false);
        };
        if let Some(reason) = trial.verdict(now) {
            self.fail_trial(reason);
            return self.running(true);
        }
        trial.attempts = trial.attempts.saturating_add(1);
        trial.latest = Some((now.boot, now.at_ms));
        let (program, deadline_s) = (program(trial.digest, self.base), Some(trial.deadline_s));
        Launch { program, write: Some(self), deadline_s }
    }

    /// What has proved itself runs.
    fn running(self, is_changed: bool) -> Launch {
        let program = self.good.map_or(Program::Base, |good| program(good, self.base));
        Launch { program, write: is_changed.then_some(self), deadline_s: None }
    }

    /// Puts a program on trial; `base` is the one that is installed now.
    pub fn try_out(&mut self, base: Digest, trial: Trial) {
        if self.base != base {
            // What is installed by now is what is gone back to.
            (self.base, self.good) = (base, None);
        }
        self.trial = Some(trial);
    }

    /// The program on trial has proved itself.
    pub fn keep_trial(&mut self) {
        if let Some(trial) = self.trial.take() {
            self.settle(trial.order, None);
            self.good = Some(trial.digest).filter(|digest| *digest != self.base);
        }
    }

    /// The program on trial has not proved itself.
    pub fn fail_trial(&mut self, reason: String) {
        if let Some(Trial { order, version, .. }) = self.trial.take() {
            self.settle(order, Some(Failure { version, reason, told: false }));
        }
    }

    /// An order is carried out, or has failed.
    pub fn settle(&mut self, order: u64, failure: Option<Failure>) {
        self.trial.take_if(|trial| trial.order <= order);
        self.settled = self.settled.max(order);
        self.failure = failure;
    }

    /// Programs that may have to run.
    pub fn needed(&self) -> impl Iterator<Item = Digest> + use<> {
        self.good.into_iter().chain(self.trial.as_ref().map(|trial| trial.digest))
    }
}

impl Trial {
    /// A program that was ordered, while these containers run.
    pub fn new(upgrade: &Upgrade, boot: BootId, ran: Vec<ContainerId>) -> Self {
        let Upgrade { order, version, digest, deadline_s, .. } = upgrade.clone();
        let deadline_s = deadline_s.clamp(DEADLINE_S_MIN, DEADLINE_S_MAX);
        Self { order, version, digest, deadline_s, boot, ran, attempts: 0, latest: None }
    }

    /// Why it is not begun once more.
    fn verdict(&self, now: Now) -> Option<String> {
        match self.latest {
            Some((boot, at_ms)) if boot == now.boot => {
                let lasted_ms = now.at_ms.saturating_sub(at_ms);
                let seconds = lasted_ms / 1000;
                Some(if lasted_ms >= u64::from(self.deadline_s).saturating_mul(1000) {
                    format!(
                        "it has not proved itself in {} s: it hangs, or does not get through to its \
                         controller",
                        self.deadline_s
                    )
                } else {
                    format!(
                        "it ended after {seconds} s, before it had proved itself: its log says why"
                    )
                })
            }
            _ if self.attempts >= ATTEMPTS_MAX => {
                Some(format!("the machine went down {ATTEMPTS_MAX} times while it was on trial"))
            }
            Some(_) | None => None,
        }
    }
}

fn program(digest: Digest, base: Digest) -> Program {
    if digest == base { Program::Base } else { Program::Fetched(digest) }
}

#[cfg(test)]
mod tests;

//! Another program of the agent: had, begun, kept.

use limpet_agent_core::Input;
use limpet_agent_core::upgrade::{Failure, Trial};
use limpet_protocol::Upgrade;

use super::Shell;
use crate::upgrade::{Fault, Source};

impl Shell {
    pub(super) fn fetch_program(&self, upgrade: Upgrade) {
        let (programs, inputs) = (self.programs.clone(), self.inputs.clone());
        let (identity, route) = (self.identity(), self.way.get());
        self.then(move || {
            let source = Source { identity: &identity, proxies: &route.proxies };
            let total = upgrade.size;
            // What is not told is told by what follows it.
            let progress = |received| {
                let _ = inputs.try_send(Input::ProgramProgressed { received, total });
            };
            match programs.obtain(&upgrade, &source, &progress) {
                Ok(runs) => Input::ProgramReady { runs },
                Err(Fault { reason, may_pass }) => {
                    log::warn!("the agent {} is not to be had: {reason}", upgrade.version);
                    Input::ProgramFailed { reason, may_pass }
                }
            }
        });
    }

    /// Ends this process, in favour of the launcher and what it starts; containers go on.
    pub(super) fn try_program(&self, trial: Trial) {
        let programs = self.programs.clone();
        self.then(move || {
            log::info!("handing over to the agent {}", trial.version);
            let reason = programs.try_out(trial).to_string();
            Input::ProgramFailed { reason, may_pass: false }
        });
    }

    pub(super) fn keep_program(&self) {
        let programs = self.programs.clone();
        self.then(move || {
            let kept = programs.keep();
            match &kept {
                Ok(()) => log::info!("this agent has proved itself"),
                Err(error) => log::error!("{error}"),
            }
            Input::ProgramKept { done: kept.is_ok() }
        });
    }

    pub(super) fn settle_upgrade(&self, order: u64, failure: Option<Failure>) {
        let programs = self.programs.clone();
        self.spawn(smol::unblock(move || {
            if let Err(error) = programs.settle(order, failure) {
                log::error!("{error}");
            }
        }));
    }
}

//! With all faults healed and nothing more to happen, all is as it should be.

use std::collections::BTreeSet;

use limpet_agent_core::Agent;
use limpet_controller_core::plan;
use limpet_protocol::{Digest, Event, Phase, Workload, WorkloadId};

use super::World;
use crate::controller::Device as Known;
use crate::device::Device;
use crate::invariant::Invariant;

impl World {
    pub(super) fn converged(&self) {
        let converges = |holds, what: &dyn Fn() -> String| Invariant::Converges.holds(holds, what);
        for (index, device) in self.devices.iter().enumerate() {
            let id = self.id(index);
            converges(self.controller.devices.contains_key(&id), &|| format!("{id} is unknown"));
            let known = &self.controller.devices[&id];
            converges(self.controller.presence(known).is_online(), &|| {
                format!("{id} is {}", self.controller.presence(known))
            });
            converges(known.record.ahead.is_none(), &|| format!("{id} is on hold"));
            let held = device.agent.as_ref().map(Agent::held);
            let (wanted, applied) = (known.record.held, known.inbox.cursor.applied);
            converges((held, applied) == (Some(wanted), wanted), &|| {
                format!("{id} holds {held:?} and says {applied:?}, not {wanted:?}")
            });
            runs_what_it_should(device, known, &plan::workloads(&self.controller.deployments, &id));
            self.all_is_told(index);
        }
    }

    fn all_is_told(&self, index: usize) {
        let (device, id) = (&self.devices[index], self.id(index));
        let view = self.controller.store.views.get(&id).cloned().unwrap_or_default();
        // What an old backup does not have, its device was told once that it is safe.
        for event in device.events.values().filter(|_| !self.controller.restored) {
            Invariant::EventNotLost.holds(view.accounts_for(event), || format!("{id}: {event:?}"));
        }
        let seen = |event: &Event| {
            view.events.values().any(|seen| Event { number: 0, ..seen.clone() } == *event)
        };
        let excused = self.controller.restored || device.overflowed;
        for event in device.unnumbered.iter().filter(|_| !excused) {
            Invariant::EventNotLost.holds(seen(event), || format!("{id}, of late: {event:?}"));
        }
        let waiting = device.agent.as_ref().map_or(0, |agent| agent.events_waiting());
        Invariant::Converges.holds(waiting == 0, || format!("{id}: {waiting} events wait"));
    }
}

fn runs_what_it_should(device: &Device, known: &Known, wanted: &[Workload]) {
    let name = &device.name;
    let running: BTreeSet<(WorkloadId, Digest)> = device.running().collect();
    for workload in wanted {
        let run = running.contains(&(workload.id.clone(), workload.revision));
        let told = known.inbox.statuses().get(&workload.id);
        let over = |phase| matches!(phase, Phase::Exited | Phase::Failed);
        let ended = told.is_some_and(|told| over(told.status.phase));
        Invariant::Converges
            .holds(run || ended, || format!("{name} does not run {}: {told:?}", workload.id));
    }
    let wanted = wanted.iter().map(|w| (w.id.clone(), w.revision)).collect();
    Invariant::Converges.holds(running.is_subset(&wanted), || {
        format!("{name} runs {running:?}, which is more than {wanted:?}")
    });
    for (workload, known) in known.inbox.statuses() {
        let run = running.iter().any(|(id, _)| id == workload);
        let said = known.status.phase == Phase::Running;
        Invariant::Converges.holds(run == said, || format!("{name} {workload}: {known:?}"));
    }
}

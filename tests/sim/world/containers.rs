//! A device's kernel: containers are made, end, and are asked to.

use limpet_agent_core::{Agent, Input};
use limpet_protocol::{ContainerId, Exit, Signal, Workload};

use super::{Happening, World};
use crate::device::{Container, State};
use crate::invariant::Invariant;

impl World {
    pub(super) fn start(&mut self, device: usize, container: ContainerId, made: Workload) {
        self.must_be_wanted(device, &made);
        let it = &mut self.devices[device];
        it.latest.insert(made.id.clone(), made.revision);
        let (life, name) = (it.life, &it.name);
        let made = Container { made, state: State::Making, asked: false };
        let before = it.containers.insert(container.clone(), made);
        Invariant::NumbersAreUsedOnce
            .holds(before.is_none(), || format!("{name}: {container} is made twice"));
        self.soon(Happening::Made { device, container, life });
    }

    /// What is started is in force, or ran right before what is in force and cannot run yet.
    fn must_be_wanted(&self, device: usize, made: &Workload) {
        let it = &self.devices[device];
        let in_force = it.agent.as_ref().and_then(Agent::desired_state);
        let wanted = in_force.and_then(|state| state.workloads.iter().find(|w| w.id == made.id));
        let is_in_force = wanted.is_some_and(|wanted| wanted.revision == made.revision);
        let ran_before = wanted.is_some() && it.latest.get(&made.id) == Some(&made.revision);
        Invariant::NothingOlder.holds(is_in_force || ran_before, || {
            format!("{}: {} of {:?}", it.name, made.id, made.revision)
        });
    }

    pub(super) fn made(&mut self, device: usize, container: ContainerId, life: u64) {
        let fails = self.fails(5);
        let pid = u32::try_from(1 + self.random.below(1 << 20)).unwrap();
        let containers = &mut self.devices[device].containers;
        let Some(made) = containers.get_mut(&container).filter(|c| c.state == State::Making) else {
            return;
        };
        if fails {
            containers.remove(&container);
            let failed = Input::StartFailed { container, reason: "cannot".to_owned() };
            return self.soon(Happening::Done(device, life, failed));
        }
        made.state = State::Running { pid };
        self.touched.insert(device);
        let started = Input::Started { container: container.clone(), pid };
        self.soon(Happening::Done(device, life, started));
        if self.fails(40) {
            let exit = match self.random.below(5) {
                0..=1 => Exit::Code(0),
                2..=3 => Exit::Code(7),
                _ => Exit::Unknown,
            };
            let in_ms = self.random.below(120_000);
            self.at(in_ms, Happening::Ends { device, container, pid, exit });
        }
    }

    pub(super) fn ends(&mut self, device: usize, container: &ContainerId, pid: u32, exit: Exit) {
        let it = &mut self.devices[device];
        let running = |c: &&mut Container| c.state == (State::Running { pid });
        let Some(found) = it.containers.get_mut(container).filter(running) else { return };
        found.state = State::Ended(exit);
        let exited = Input::Exited { container: container.clone(), exit };
        let life = it.life;
        self.soon(Happening::Done(device, life, exited));
    }

    pub(super) fn signal(&mut self, device: usize, container: ContainerId, signal: Option<Signal>) {
        let found = self.devices[device].containers.get(&container);
        let Some(State::Running { pid }) = found.map(|c| c.state) else { return };
        self.must_go(device, &container);
        let kills = signal == Some(Signal::KILL);
        if kills || self.random.percent(70) {
            let exit = if kills { Exit::Signal(9) } else { Exit::Code(0) };
            self.soon(Happening::Ends { device, container, pid, exit });
        }
    }

    /// Nothing is asked to end that the desired state in force wants as it is, unless a later one
    /// has taken its place, or a person on site has asked.
    fn must_go(&mut self, device: usize, container: &ContainerId) {
        let it = &mut self.devices[device];
        let (workload, number) = container.parts().unwrap();
        let asked = it.containers.get_mut(container).unwrap();
        let (revision, before) = (asked.made.revision, std::mem::replace(&mut asked.asked, true));
        let in_force = it.agent.as_ref().and_then(Agent::desired_state);
        let wants = |w: &Workload| w.id == workload && w.revision == revision;
        let wanted = in_force.is_some_and(|desired| desired.workloads.iter().any(wants));
        let on_site = in_force.map(|desired| desired.held) == it.on_site.get(&workload).copied();
        let replaced = it
            .containers
            .keys()
            .filter_map(ContainerId::parts)
            .any(|(id, n)| id == workload && n > number);
        Invariant::HealthyIsLeftAlone.holds(before || replaced || on_site || !wanted, || {
            format!("{}: {container}", it.name)
        });
    }

    pub(super) fn remove(&mut self, device: usize, container: &ContainerId) {
        let removed = self.devices[device].containers.remove(container);
        let alive = removed.is_some_and(|c| matches!(c.state, State::Running { .. }));
        Invariant::NothingAliveIsRemoved.holds(!alive, || container.to_string());
    }
}

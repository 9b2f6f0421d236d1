//! One device: a real agent core on a disk, a kernel and a link that the world breaks.

use std::collections::{BTreeMap, BTreeSet};

use limpet_agent_core::{Agent, Checkpoint, Found, FoundState, Own, Owner, Start};
use limpet_protocol::{
    BootId, ContainerId, Digest, Event, Exit, Facts, Feature, Held, Labels, Workload, WorkloadId,
};

use crate::invariant::Invariant;
use crate::random::Random;

pub(crate) mod disk;

use disk::{Disk, Write};

/// A container in a device's kernel.
pub(crate) struct Container {
    pub(crate) made: Workload,
    pub(crate) state: State,
    /// It was asked to end.
    pub(crate) asked: bool,
}

/// What has become of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Its shim works on it.
    Making,
    /// Its main process runs.
    Running { pid: u32 },
    /// Its exit is recorded.
    Ended(Exit),
}

/// A device.
pub(crate) struct Device {
    pub(crate) name: String,
    pub(crate) labels: Labels,
    pub(crate) features: Vec<Feature>,
    pub(crate) memory_bytes: u64,
    /// None while the program is down.
    pub(crate) agent: Option<Agent>,
    /// Counts the lives of the program: what an earlier one ordered does not come back to it.
    pub(crate) life: u64,
    pub(crate) boot: BootId,
    pub(crate) booted_ms: u64,
    pub(crate) disk: Disk,
    pub(crate) writes: BTreeMap<u64, Write>,
    pub(crate) containers: BTreeMap<ContainerId, Container>,
    pub(crate) images: BTreeSet<String>,
    /// The number of the connection, while it is up.
    pub(crate) connection: Option<u64>,
    /// Nothing comes through it any more.
    pub(crate) silent: bool,
    /// What it held when the controller became an old backup that knows of less.
    pub(crate) ahead: Option<Held>,
    /// What a person on site has touched since the generation that is in force.
    pub(crate) on_site: BTreeMap<WorkloadId, Held>,
    pub(crate) highest: Held,
    /// Revisions of desired states that were on disk: what may be started.
    allowed: BTreeSet<(WorkloadId, Digest)>,
    /// The revision of each workload's latest container.
    pub(crate) latest: BTreeMap<WorkloadId, Digest>,
    /// Events that were on disk: what the operator must see.
    pub(crate) events: BTreeMap<u64, Event>,
    /// Its disk lost a checkpoint that it had promised to keep: events from this number on may have
    /// gone with it, and those since may have got other numbers.
    rotten: Option<u64>,
    /// Those since, as they were before they had a number.
    pub(crate) unnumbered: Vec<Event>,
    /// Its outbox has been full: the oldest events have made room.
    pub(crate) overflowed: bool,
}

impl Device {
    pub(crate) fn new(number: usize, random: &mut Random) -> Self {
        let mut device = Self {
            name: format!("dev-{number:03}"),
            labels: Labels::new(),
            features: vec![],
            memory_bytes: (1 + random.below(4)) << 28,
            agent: None,
            life: 0,
            boot: BootId(random.bytes()),
            booted_ms: 0,
            disk: Disk::new(random),
            writes: BTreeMap::new(),
            containers: BTreeMap::new(),
            images: BTreeSet::new(),
            connection: None,
            silent: false,
            ahead: None,
            on_site: BTreeMap::new(),
            highest: Held::default(),
            allowed: BTreeSet::new(),
            latest: BTreeMap::new(),
            events: BTreeMap::new(),
            rotten: None,
            unnumbered: vec![],
            overflowed: false,
        };
        device.reconfigure(random);
        device
    }

    /// Its owner gives it labels, and an agent that can do this or that.
    pub(crate) fn reconfigure(&mut self, random: &mut Random) {
        let site = if random.percent(60) { "berlin" } else { "oslo" };
        self.labels = [("site".try_into().unwrap(), site.try_into().unwrap())].into();
        self.features = vec![Feature::known(Feature::LIMIT_CPU)];
        if random.percent(90) {
            self.features.push(Feature::known(Feature::LIMIT_MEMORY));
        }
    }

    /// The program begins, with what disk and kernel hold.
    pub(crate) fn start(&mut self, now_ms: u64, random: &mut Random) {
        let (checkpoint, lost) = self.disk.checkpoint();
        self.latest = self.latest_of(&checkpoint);
        let found = self.containers.iter().map(|(id, container)| Found {
            container: id.clone(),
            made: Some(container.made.clone()),
            state: match container.state {
                State::Making => FoundState::Broken,
                State::Running { pid } => FoundState::Running { pid },
                State::Ended(exit) => FoundState::Ended(exit),
            },
        });
        let agent = Agent::new(Start {
            now_ms: now_ms - self.booted_ms,
            boot: self.boot,
            seed: random.next(),
            version: "sim".try_into().unwrap(),
            features: self.features.clone(),
            labels: self.labels.clone(),
            facts: Facts { memory_bytes: self.memory_bytes, ..Facts::default() },
            sealing_key: None,
            owner: Owner::default(),
            desired: self.disk.desired.clone(),
            checkpoint,
            found: found.collect(),
            lost,
            own: Own::default(),
        });
        // What was never completely made is gone with its shim.
        self.containers.retain(|_, container| container.state != State::Making);
        self.life += 1;
        self.agent = Some(agent);
    }

    /// The revision of each workload's latest container, as far as can be known.
    fn latest_of(&self, checkpoint: &Checkpoint) -> BTreeMap<WorkloadId, Digest> {
        let mut latest: BTreeMap<WorkloadId, (u32, Digest)> = BTreeMap::new();
        for (id, slot) in &checkpoint.slots {
            let made = slot.made.as_ref().map(|made| (slot.container, made.revision));
            latest.extend(made.map(|made| (id.clone(), made)));
        }
        for (id, container) in &self.containers {
            let (workload, number) = id.parts().unwrap();
            let before = latest.get(&workload).map_or(0, |(before, _)| *before);
            if number >= before {
                latest.insert(workload, (number, container.made.revision));
            }
        }
        latest.into_iter().map(|(id, (_, revision))| (id, revision)).collect()
    }

    /// The program is killed: each write that was under way is on disk, or not, or torn.
    pub(crate) fn crash(&mut self, random: &mut Random) {
        self.agent = None;
        self.connection = None;
        for (_, write) in std::mem::take(&mut self.writes) {
            if random.percent(50) {
                self.land(write);
            } else {
                self.disk.tear(&write, random);
            }
        }
    }

    /// The power fails: the program is killed, and the kernel forgets everything.
    pub(crate) fn power_cut(&mut self, now_ms: u64, random: &mut Random) {
        self.crash(random);
        self.containers.clear();
        self.boot = BootId(random.bytes());
        self.booted_ms = now_ms;
    }

    /// The card loses the checkpoint that was written last, and all that only this one held.
    pub(crate) fn rot(&mut self) {
        if let Some(next_event) = self.disk.rot() {
            let rotten = self.rotten.unwrap_or(u64::MAX).min(next_event);
            self.rotten = Some(rotten);
            self.events.retain(|number, _| *number < rotten);
            self.unnumbered.clear();
            self.remember(&self.disk.checkpoint().0);
        }
    }

    /// A write is on disk.
    pub(crate) fn land(&mut self, write: Write) {
        match &write {
            Write::Desired(state) => {
                let workloads = state.workloads.iter().map(|w| (w.id.clone(), w.revision));
                self.allowed.extend(workloads);
                let before = self.disk.desired.as_ref().map(|old| old.held);
                Invariant::AcceptedNeverGoesBack.holds(before < Some(state.held), || {
                    format!("{}: {:?} lands on {before:?}", self.name, state.held)
                });
            }
            Write::Checkpoint(checkpoint) => self.remember(checkpoint),
        }
        self.disk.land(write);
    }

    /// What a checkpoint holds will be told to the operator.
    fn remember(&mut self, checkpoint: &Checkpoint) {
        for event in &checkpoint.events {
            if self.rotten.is_some_and(|rotten| event.number >= rotten) {
                let event = Event { number: 0, ..event.clone() };
                if !self.unnumbered.contains(&event) {
                    self.unnumbered.push(event);
                }
                continue;
            }
            let before = self.events.insert(event.number, event.clone());
            let same = before.as_ref().is_none_or(|before| before == event);
            Invariant::NumbersAreUsedOnce
                .holds(same, || format!("{}: {event:?} has the number of {before:?}", self.name));
        }
    }

    /// The workloads that run, once for each container.
    pub(crate) fn running(&self) -> impl Iterator<Item = (WorkloadId, Digest)> {
        let running = |c: &Container| matches!(c.state, State::Running { .. });
        let running = self.containers.iter().filter(move |(_, c)| running(c));
        running.map(|(id, c)| (id.parts().unwrap().0, c.made.revision))
    }

    /// Checks what must hold at every moment.
    pub(crate) fn check(&mut self) {
        let mut seen = BTreeSet::new();
        for (workload, revision) in self.running() {
            Invariant::OneInstance.holds(seen.insert(workload.clone()), || {
                format!("{}: two containers of {workload} run", self.name)
            });
            let asked_for = self.allowed.contains(&(workload.clone(), revision));
            Invariant::OnlyWhatWasAccepted
                .holds(asked_for, || format!("{}: {workload} of {revision:?}", self.name));
        }
        let Some(agent) = &self.agent else { return };
        let held = agent.held();
        Invariant::AcceptedNeverGoesBack.holds(held >= self.highest, || {
            format!("{}: {held:?} after {:?}", self.name, self.highest)
        });
        let stored = self.disk.desired.as_ref().map(|d| d.held).unwrap_or_default();
        Invariant::InForceIsOnDisk
            .holds(stored >= held, || format!("{}: {held:?}, but {stored:?}", self.name));
        self.highest = held;
    }
}

//! One device: a real agent core on a disk, a kernel and a link that the world breaks.

use std::collections::{BTreeMap, BTreeSet};

use limpet_agent_core::{Agent, Checkpoint, Found, FoundState, Start};
use limpet_protocol::{
    BootId, ContainerId, DesiredState, DeviceId, Digest, Exit, Facts, Held, OutboxId, Workload,
    WorkloadId,
};

use crate::random::Random;

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

/// A write that has been ordered and may be on disk or not.
pub(crate) enum Write {
    Desired(Box<DesiredState>),
    Checkpoint(Box<Checkpoint>),
}

/// A device.
pub(crate) struct Device {
    pub(crate) id: DeviceId,
    /// None while the program is down.
    pub(crate) agent: Option<Agent>,
    /// Counts the lives of the program: what an earlier one ordered does not come back to it.
    pub(crate) life: u64,
    pub(crate) boot: BootId,
    pub(crate) booted_ms: u64,
    pub(crate) desired: Option<DesiredState>,
    pub(crate) checkpoint: Checkpoint,
    pub(crate) writes: BTreeMap<u64, Write>,
    pub(crate) containers: BTreeMap<ContainerId, Container>,
    pub(crate) images: BTreeSet<String>,
    /// The number of the connection, while it is up.
    pub(crate) connection: Option<u64>,
    pub(crate) highest: Held,
    /// Revisions of desired states that were on disk: what may be started.
    pub(crate) allowed: BTreeSet<(WorkloadId, Digest)>,
}

impl Device {
    pub(crate) fn new(number: u64, random: &mut Random) -> Self {
        Self {
            id: format!("dev-{number}").parse().unwrap(),
            agent: None,
            life: 0,
            boot: BootId(random.bytes()),
            booted_ms: 0,
            desired: None,
            checkpoint: Checkpoint::first(OutboxId(random.bytes())),
            writes: BTreeMap::new(),
            containers: BTreeMap::new(),
            images: BTreeSet::new(),
            connection: None,
            highest: Held::default(),
            allowed: BTreeSet::new(),
        }
    }

    /// The program begins, with what disk and kernel hold.
    pub(crate) fn start(&mut self, now_ms: u64, random: &mut Random) {
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
            features: vec![],
            labels: Default::default(),
            facts: Facts::default(),
            desired: self.desired.clone(),
            checkpoint: self.checkpoint.clone(),
            found: found.collect(),
            lost: vec![],
        });
        // What was never completely made is gone with its shim.
        self.containers.retain(|_, container| container.state != State::Making);
        self.life += 1;
        self.agent = Some(agent);
    }

    /// The program is killed: each write that was under way is on disk, or not.
    pub(crate) fn crash(&mut self, random: &mut Random) {
        self.agent = None;
        self.connection = None;
        for (_, write) in std::mem::take(&mut self.writes) {
            if random.percent(50) {
                self.land(write);
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

    /// A write is on disk.
    pub(crate) fn land(&mut self, write: Write) {
        match write {
            Write::Desired(state) => {
                let workloads = state.workloads.iter().map(|w| (w.id.clone(), w.revision));
                self.allowed.extend(workloads);
                assert!(
                    self.desired.as_ref().is_none_or(|old| old.held < state.held),
                    "{}: an older state lands on a newer one",
                    self.id
                );
                self.desired = Some(*state);
            }
            Write::Checkpoint(checkpoint) => self.checkpoint = *checkpoint,
        }
    }

    /// The workloads that run, once for each container.
    pub(crate) fn running(&self) -> Vec<(WorkloadId, Digest)> {
        let running =
            self.containers.iter().filter(|(_, c)| matches!(c.state, State::Running { .. }));
        running.map(|(id, c)| (id.parts().unwrap().0, c.made.revision)).collect()
    }

    /// Checks what must hold at every moment.
    pub(crate) fn check(&mut self) {
        let mut seen = BTreeSet::new();
        for (workload, revision) in self.running() {
            assert!(seen.insert(workload.clone()), "{}: two containers of {workload} run", self.id);
            assert!(
                self.allowed.contains(&(workload.clone(), revision)),
                "{}: {workload} runs what nobody asked for",
                self.id
            );
        }
        if let Some(agent) = &self.agent {
            let held = agent.held();
            assert!(held >= self.highest, "{}: {held:?} after {:?}", self.id, self.highest);
            assert!(
                self.desired.as_ref().map(|d| d.held).unwrap_or_default() >= held,
                "{}: in force, but not on disk",
                self.id
            );
            self.highest = held;
        }
    }
}

//! Time, chance, and everything that goes wrong between cores.

use std::collections::BTreeMap;

use limpet_agent_core::{Input, Message};
use limpet_protocol::{ContainerId, Digest, Exit, Nonce, cbor};

use crate::controller::{Seen, ToDevice};
use crate::device::{Device, State};
use crate::random::Random;

mod effects;

/// Faults happen for this long, in milliseconds.
const FAULTS_MS: u64 = 600_000;
/// Without faults everything has converged after this long: the longest back-off, and some more.
const CONVERGED_MS: u64 = FAULTS_MS + 900_000;
/// Steps of one run at most: more is a storm of messages or a loop of restarts.
const STEPS_MAX: u64 = 2_000_000;

/// What is to happen.
enum Happening {
    /// An effect is done; for the life that ordered it.
    Done(usize, u64, Input),
    /// A write has reached the disk, or failed.
    Written { device: usize, life: u64, write: u64, answer: Input, failed: bool },
    /// A shim has made its container.
    Made { device: usize, container: ContainerId, life: u64 },
    /// A container's main process ends.
    Ends { device: usize, container: ContainerId, pid: u32, exit: Exit },
    /// To the controller; from a connection that may be gone by now.
    Up(usize, Box<Message>),
    /// To a device, on this connection.
    Down(usize, u64, ToDevice),
    /// The link comes up.
    Connects(usize, u64),
    /// The program is started by its supervisor.
    Starts(usize, u64),
    /// Something goes wrong.
    Fault,
}

/// All of it.
pub(crate) struct World {
    random: Random,
    now_ms: u64,
    devices: Vec<Device>,
    seen: Vec<Seen>,
    coming: BTreeMap<(u64, u64), Happening>,
    counter: u64,
    tells: bool,
    story: u64,
}

impl World {
    pub(crate) fn new(seed: u64, tells: bool) -> Self {
        let mut random = Random(seed);
        let count = 1 + random.below(5);
        let mut world = Self {
            devices: (0..count).map(|n| Device::new(n, &mut random)).collect(),
            seen: (0..count).map(|_| Seen::new()).collect(),
            random,
            now_ms: 0,
            coming: BTreeMap::new(),
            counter: 0,
            tells,
            story: 0,
        };
        for device in 0..world.devices.len() {
            world.at(1, Happening::Starts(device, 0));
        }
        world.at(10, Happening::Fault);
        world
    }

    /// Everything that happened, as one number.
    pub(crate) fn digest(&self) -> u64 {
        self.story
    }

    pub(crate) fn run(&mut self) {
        let mut steps = 0;
        while let Some(at_ms) = self.next_ms() {
            if at_ms > CONVERGED_MS {
                break;
            }
            self.now_ms = at_ms.max(self.now_ms);
            let due = self.coming.first_entry().filter(|entry| entry.key().0 <= self.now_ms);
            match due.map(|entry| entry.remove()) {
                Some(happening) => self.happen(happening),
                None => self.tick(),
            }
            self.carry_out();
            self.devices.iter_mut().for_each(Device::check);
            steps += 1;
            assert!(steps < STEPS_MAX, "no end after {STEPS_MAX} steps");
        }
        self.converged();
    }

    fn next_ms(&self) -> Option<u64> {
        let timeouts = self
            .devices
            .iter()
            .filter_map(|d| Some(d.agent.as_ref()?.poll_timeout()? + d.booted_ms));
        timeouts.chain(self.coming.first_key_value().map(|((at, _), _)| *at)).min()
    }

    fn at(&mut self, in_ms: u64, happening: Happening) {
        self.counter += 1;
        self.coming.insert((self.now_ms + in_ms, self.counter), happening);
    }

    fn soon(&mut self, happening: Happening) {
        let in_ms =
            if self.random.percent(90) { self.random.below(50) } else { self.random.below(5000) };
        self.at(in_ms, happening);
    }

    fn faulty(&self) -> bool {
        self.now_ms < FAULTS_MS
    }

    fn tick(&mut self) {
        for index in 0..self.devices.len() {
            let device = &self.devices[index];
            let timeout = device.agent.as_ref().and_then(limpet_agent_core::Agent::poll_timeout);
            if timeout.is_some_and(|at| at + device.booted_ms <= self.now_ms) {
                self.tell(index, Input::Tick);
            }
        }
    }

    fn tell(&mut self, index: usize, input: Input) {
        if self.tells {
            println!("{:>8} dev-{index} {input:?}", self.now_ms);
        }
        let line = format!("{} {index} {input:?}", self.now_ms);
        self.story = self.story.rotate_left(5)
            ^ u64::from_be_bytes(Digest::of(line.as_bytes()).0[..8].try_into().unwrap());
        let device = &mut self.devices[index];
        let now_ms = self.now_ms - device.booted_ms;
        if let Some(agent) = &mut device.agent {
            agent.handle(now_ms, input);
        }
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Done(device, life, input) => {
                if self.devices[device].life == life {
                    self.tell(device, input);
                }
            }
            Happening::Written { device, life, write, answer, failed } => {
                let Some(written) = self.devices[device].writes.remove(&write) else {
                    return;
                };
                if !failed {
                    self.devices[device].land(written);
                }
                self.happen(Happening::Done(device, life, answer));
            }
            Happening::Made { device, container, life } => self.made(device, container, life),
            Happening::Ends { device, container, pid, exit } => {
                self.ends(device, &container, pid, exit)
            }
            Happening::Up(device, message) => {
                let answers = self.seen[device].take(self.now_ms, *message);
                for answer in answers {
                    self.send_down(device, answer);
                }
            }
            Happening::Down(device, connection, message) => {
                if self.devices[device].connection == Some(connection) {
                    self.deliver(device, message);
                }
            }
            Happening::Connects(device, life) => self.connects(device, life),
            Happening::Starts(device, life) => {
                if self.devices[device].agent.is_none() && self.devices[device].life == life {
                    self.devices[device].start(self.now_ms, &mut self.random);
                    let life = self.devices[device].life;
                    self.soon(Happening::Connects(device, life));
                }
            }
            Happening::Fault => self.fault(),
        }
    }

    fn deliver(&mut self, device: usize, message: ToDevice) {
        let input = match message {
            ToDevice::Desired(state) => {
                let signed = cbor::encode(&state);
                Input::Desired { state: Box::new(state), signed }
            }
            ToDevice::Ack(connection, ack) => Input::Acked { connection, ack },
        };
        self.tell(device, input);
    }

    fn send_down(&mut self, device: usize, message: ToDevice) {
        let Some(connection) = self.devices[device].connection else {
            return;
        };
        if self.faulty() && self.random.percent(3) {
            self.soon(Happening::Down(device, connection, message.clone()));
        }
        self.soon(Happening::Down(device, connection, message));
    }

    fn connects(&mut self, device: usize, life: u64) {
        let now_ms = self.now_ms;
        let it = &mut self.devices[device];
        if it.life != life || it.agent.is_none() || it.connection.is_some() {
            return;
        }
        let connection = now_ms - it.booted_ms + 1;
        it.connection = Some(connection);
        let nonce = Nonce(self.random.bytes());
        self.tell(device, Input::LinkUp { connection, nonce, keep_alive_s: 600 });
    }

    fn made(&mut self, device: usize, container: ContainerId, life: u64) {
        let fails = self.faulty() && self.random.percent(5);
        let pid = u32::try_from(1 + self.random.below(1 << 20)).unwrap();
        let now_ms = self.now_ms;
        let it = &mut self.devices[device];
        let Some(made) = it.containers.get_mut(&container) else {
            return;
        };
        if made.state != State::Making {
            return;
        }
        if fails {
            it.containers.remove(&container);
            let reason = "cannot".to_owned();
            return self.soon(Happening::Done(
                device,
                life,
                Input::StartFailed { container, reason },
            ));
        }
        made.state = State::Running { pid };
        self.soon(Happening::Done(
            device,
            life,
            Input::Started { container: container.clone(), pid },
        ));
        if self.faulty() && self.random.percent(40) && now_ms < FAULTS_MS {
            let exit = if self.random.percent(50) { Exit::Code(0) } else { Exit::Code(7) };
            let in_ms = self.random.below(120_000);
            self.at(in_ms, Happening::Ends { device, container, pid, exit });
        }
    }

    fn ends(&mut self, device: usize, container: &ContainerId, pid: u32, exit: Exit) {
        let it = &mut self.devices[device];
        let Some(found) = it.containers.get_mut(container) else {
            return;
        };
        if found.state != (State::Running { pid }) {
            return;
        }
        found.state = State::Ended(exit);
        let life = it.life;
        let container = container.clone();
        self.soon(Happening::Done(device, life, Input::Exited { container, exit }));
    }

    fn fault(&mut self) {
        if !self.faulty() {
            return;
        }
        let in_ms = 1 + self.random.below(8_000);
        self.at(in_ms, Happening::Fault);
        let device = usize::try_from(self.random.below(self.devices.len() as u64)).unwrap();
        match self.random.below(10) {
            0..=2 => {
                let message = self.seen[device].change(&mut self.random);
                self.send_down(device, message);
            }
            3..=5 => self.cut(device),
            6 => self.restart(device, false),
            7 if self.random.percent(30) => self.restart(device, true),
            _ => {}
        }
    }

    fn cut(&mut self, device: usize) {
        if self.devices[device].connection.take().is_some() {
            self.tell(device, Input::LinkDown);
            let life = self.devices[device].life;
            let in_ms = 100 + self.random.below(60_000);
            self.at(in_ms, Happening::Connects(device, life));
        }
    }

    fn restart(&mut self, device: usize, power: bool) {
        let it = &mut self.devices[device];
        if it.agent.is_none() {
            return;
        }
        if power {
            it.power_cut(self.now_ms, &mut self.random);
        } else {
            it.crash(&mut self.random);
        }
        if self.tells {
            println!(
                "{:>8} dev-{device} {}",
                self.now_ms,
                if power { "POWER CUT" } else { "CRASH" }
            );
        }
        let life = it.life;
        let in_ms = 10 + self.random.below(10_000);
        self.at(in_ms, Happening::Starts(device, life));
    }

    /// With faults over, everybody runs what they should, and the controller knows.
    fn converged(&self) {
        for (device, seen) in self.devices.iter().zip(&self.seen) {
            let id = &device.id;
            let held = device.agent.as_ref().unwrap().held();
            assert_eq!(held, device.desired.as_ref().map(|d| d.held).unwrap_or_default());
            if seen.desired.held.generation > 0 {
                assert_eq!(held, seen.desired.held, "{id} is behind");
            }
            let running = device.running();
            for workload in &seen.desired.workloads {
                let run = running.contains(&(workload.id.clone(), workload.revision));
                let told = seen.inbox.as_ref().unwrap().statuses().get(&workload.id);
                let done = told.is_some_and(|k| k.status.phase == limpet_protocol::Phase::Exited);
                assert!(run || done, "{id} does not run {}: {told:?}", workload.id);
            }
            assert!(
                running.len() <= seen.desired.workloads.len(),
                "{id} runs too much: {running:?}"
            );
            let inbox = seen.inbox.as_ref().unwrap();
            for (workload, known) in inbox.statuses() {
                let run = running.iter().any(|(id, _)| id == workload);
                let said = known.status.phase == limpet_protocol::Phase::Running;
                assert_eq!(run, said, "{id} {workload}: {known:?}");
            }
            assert_eq!(inbox.cursor.applied, held, "{id}");
            seen.check();
        }
    }
}

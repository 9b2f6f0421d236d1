//! Time and chance: what happens next, until nothing does.

use std::collections::{BTreeMap, BTreeSet};

use limpet_agent_core::{Agent, Input, Message};
use limpet_protocol::{ContainerId, DeviceId, Exit};

use crate::controller::{Controller, ToDevice, Work};
use crate::device::Device;
use crate::device::disk::Write;
use crate::invariant::Invariant;
use crate::operator::Ask;
use crate::random::Random;

mod containers;
mod converged;
mod effects;
mod faults;
mod links;
mod service;

/// Faults happen for this long, in milliseconds.
const FAULTS_MS: u64 = 600_000;
/// By then every device has connected again, and an operator decides about those on hold; twice,
/// for those that were on their way.
const RECOVERS_AFTER_MS: [u64; 2] = [200_000, 400_000];
/// Steps of a device in the end at most, with all faults healed: a full outbox is told in 8 batches,
/// a dozen workloads are each fetched, stopped, made and reported, twice where an operator recovers;
/// the most that was ever seen is a third of this.
const STEPS_TO_CONVERGE_MAX: u64 = 660;
/// Steps of a device in all at most: more is a storm of messages or a loop of restarts.
const STEPS_MAX: u64 = 60_000;
/// One seed in so many drives a large fleet.
const LARGE_EVERY: u64 = 64;
const LARGE: u64 = 300;

/// What is to happen.
enum Happening {
    /// An effect is done; for the life that ordered it.
    Done(usize, u64, Input),
    /// A write has reached the disk, or failed.
    Written { device: usize, life: u64, write: u64, answer: Input, failed: bool },
    /// An image is complete.
    Pulled { device: usize, life: u64, image: String, answer: Input },
    /// A shim has made its container.
    Made { device: usize, container: ContainerId, life: u64 },
    /// A container's main process ends.
    Ends { device: usize, container: ContainerId, pid: u32, exit: Exit },
    /// To the controller, through this life of the broker; from a connection that may be gone.
    Up { broker: u64, device: usize, connection: u64, message: Box<Message> },
    /// To a device, on this connection.
    Down { broker: u64, device: usize, connection: u64, message: ToDevice },
    /// The link comes up.
    Connects(usize, u64),
    /// A link that has been silent is noticed.
    Cut(usize, u64),
    /// The program is started by its supervisor.
    Starts(usize, u64),
    /// Work for the controller.
    Works(Work),
    /// The controller does all that waits.
    Transacts(u64),
    /// What it has done is on disk.
    Commits(u64),
    /// The controller is started by its supervisor.
    ControllerStarts,
    /// Something goes wrong with a device.
    Fault,
    /// Something goes wrong with what all share.
    Trouble,
    /// An operator changes their mind.
    Asks,
}

/// A seed that has come to its end.
#[derive(Clone, Copy, Default)]
pub(crate) struct Run {
    pub(crate) steps: u64,
    /// Steps of each device after all was healed.
    pub(crate) to_converge: u64,
}

/// All of it.
pub(crate) struct World {
    random: Random,
    now_ms: u64,
    /// What the controller's wall clock is ahead of time.
    wall_ahead_ms: u64,
    devices: Vec<Device>,
    controller: Controller,
    broker: u64,
    /// No image can be had before this.
    registry_down_until_ms: u64,
    /// The controller can write nothing before this.
    controller_full_until_ms: u64,
    coming: BTreeMap<(u64, u64), Happening>,
    /// When each device's core wants to be told the time.
    ticks: BTreeSet<(u64, usize)>,
    tick_of: Vec<Option<u64>>,
    touched: BTreeSet<usize>,
    counter: u64,
    steps: u64,
    healed_at_step: u64,
    tells: bool,
    story: u64,
}

impl World {
    pub(crate) fn new(seed: u64, tells: bool) -> Self {
        let mut random = Random(seed);
        let count = match seed % LARGE_EVERY == LARGE_EVERY - 1 {
            true => LARGE,
            false => 1 + random.below(8),
        };
        let count = usize::try_from(count).unwrap();
        let mut world = Self {
            devices: (0..count).map(|n| Device::new(n, &mut random)).collect(),
            controller: Controller::new(),
            broker: 0,
            registry_down_until_ms: 0,
            controller_full_until_ms: 0,
            random,
            now_ms: 0,
            wall_ahead_ms: 1 << 40,
            coming: BTreeMap::new(),
            ticks: BTreeSet::new(),
            tick_of: vec![None; count],
            touched: BTreeSet::new(),
            counter: 0,
            steps: 0,
            healed_at_step: 0,
            tells,
            story: 0,
        };
        for device in 0..count {
            let in_ms = world.random.below(30_000);
            world.at(in_ms, Happening::Starts(device, 0));
        }
        world.at(10, Happening::Fault);
        world.at(10_000, Happening::Trouble);
        world.at(1_000, Happening::Asks);
        for in_ms in RECOVERS_AFTER_MS {
            world.at(FAULTS_MS + in_ms, Happening::Works(Work::Asked(Ask::Recover)));
        }
        world
    }

    /// Everything that happened, as one number.
    pub(crate) fn digest(&self) -> u64 {
        self.story
    }

    /// Runs until nothing happens any more.
    pub(crate) fn run(&mut self) -> Run {
        let devices = self.devices.len() as u64;
        while self.step() {
            if self.faulty() {
                self.healed_at_step = self.steps;
            }
            let healed = self.steps - self.healed_at_step;
            Invariant::Converges.holds(
                self.steps < STEPS_MAX * devices && healed < STEPS_TO_CONVERGE_MAX * devices,
                || format!("{} steps, {healed} of them after all was healed", self.steps),
            );
        }
        self.converged();
        Run { steps: self.steps, to_converge: (self.steps - self.healed_at_step) / devices }
    }

    fn step(&mut self) -> bool {
        let tick = self.ticks.first().copied();
        let coming = self.coming.first_key_value().map(|((at_ms, _), _)| *at_ms);
        let (Some(at_ms), is_tick) = (match (tick, coming) {
            (Some((tick, _)), Some(at)) if tick < at => (Some(tick), true),
            (Some((tick, _)), None) => (Some(tick), true),
            (_, at) => (at, false),
        }) else {
            return false;
        };
        self.now_ms = at_ms.max(self.now_ms);
        self.steps += 1;
        if is_tick {
            if let Some((_, device)) = self.ticks.pop_first() {
                self.tick_of[device] = None;
                self.tell(device, Input::Tick);
            }
        } else if let Some((_, happening)) = self.coming.pop_first() {
            self.happen(happening);
        }
        for device in std::mem::take(&mut self.touched) {
            self.carry_out(device);
            self.devices[device].check();
            self.set_tick(device);
        }
        true
    }

    fn set_tick(&mut self, device: usize) {
        let it = &self.devices[device];
        let timeout = it.agent.as_ref().and_then(Agent::poll_timeout).map(|at| at + it.booted_ms);
        if self.tick_of[device] == timeout {
            return;
        }
        if let Some(before) = std::mem::replace(&mut self.tick_of[device], timeout) {
            self.ticks.remove(&(before, device));
        }
        self.ticks.extend(timeout.map(|at_ms| (at_ms, device)));
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

    /// Whether something that goes wrong this often in a hundred does so.
    fn fails(&mut self, chance: u64) -> bool {
        self.faulty() && self.random.percent(chance)
    }

    fn say(&self, what: impl FnOnce() -> String) {
        if self.tells {
            println!("{:>8} {}", self.now_ms, what());
        }
    }

    fn tell(&mut self, device: usize, input: Input) {
        self.say(|| format!("{} {input:?}", self.devices[device].name));
        self.story = self.story.rotate_left(5) ^ self.random.0 ^ self.now_ms ^ device as u64;
        let it = &mut self.devices[device];
        let now_ms = self.now_ms - it.booted_ms;
        if let Some(agent) = &mut it.agent {
            agent.handle(now_ms, input);
        }
        self.touched.insert(device);
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Done(device, life, input) => {
                if self.devices[device].life == life {
                    self.tell(device, input);
                }
            }
            Happening::Written { device, life, write, answer, failed } => {
                if let Some(written) = self.devices[device].writes.remove(&write) {
                    self.written(device, written, failed);
                    self.happen(Happening::Done(device, life, answer));
                }
            }
            Happening::Pulled { device, life, image, answer } => {
                if self.devices[device].life == life {
                    self.devices[device].images.insert(image);
                    self.tell(device, answer);
                }
            }
            Happening::Made { device, container, life } => self.made(device, container, life),
            Happening::Ends { device, container, pid, exit } => {
                self.ends(device, &container, pid, exit);
            }
            Happening::Up { broker, device, connection, message } => {
                if self.broker == broker {
                    self.arrives_up(device, connection, message);
                }
            }
            Happening::Down { broker, device, connection, message } => {
                if self.broker == broker && self.devices[device].connection == Some(connection) {
                    self.arrives_down(device, message);
                }
            }
            Happening::Connects(device, life) => self.connects(device, life),
            Happening::Cut(device, connection) => {
                if self.devices[device].connection == Some(connection) {
                    self.cut(device);
                }
            }
            Happening::Starts(device, life) => self.starts(device, life),
            Happening::Works(work) => self.works(work),
            Happening::Transacts(life) => self.transacts(life),
            Happening::Commits(life) => self.commits(life),
            Happening::ControllerStarts => self.controller.start(self.now_ms),
            Happening::Fault => self.fault(),
            Happening::Trouble => self.trouble(),
            Happening::Asks => self.asks(),
        }
    }

    fn written(&mut self, device: usize, write: Write, failed: bool) {
        let it = &mut self.devices[device];
        match failed {
            true => it.disk.tear(&write, &mut self.random),
            false => it.land(write),
        }
    }

    fn id(&self, device: usize) -> DeviceId {
        self.devices[device].name.parse().unwrap()
    }

    fn device(id: &DeviceId) -> usize {
        id.as_str().rsplit('-').next().unwrap().parse().unwrap()
    }
}

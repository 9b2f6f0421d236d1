//! The agent as a whole: desired state in, workloads stepped, the controller told.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use limpet_protocol::{
    BootId, Command, ContainerId, DesiredState, EventKind, Facts, Feature, Held, Labels,
    SealingKey, WorkloadId, WorkloadStatus,
};

use crate::backoff::Jitter;
use crate::checkpoint::Checkpoint;
use crate::io::{Effect, Found, FoundState, Input};
use crate::outbox::{Note, Outbox};
use crate::owner::{Memory, Owner};
use crate::slot::Slot;

mod disk;
mod link;
mod upgrade;

use disk::{Arriving, Disk};
use link::Link;
pub use upgrade::Own;
use upgrade::Upgrading;

/// At most one event about refused messages in this time, in milliseconds: a stranger's flood must
/// not wear out the flash.
const REFUSED_EVERY_MS: u64 = 60_000;

/// All that an agent begins with.
#[derive(Debug, Clone)]
pub struct Start {
    /// Milliseconds since boot.
    pub now_ms: u64,
    /// This boot.
    pub boot: BootId,
    /// Spreads waits; any number.
    pub seed: u64,
    /// Version of the agent.
    pub version: heapless::String<32>,
    /// What it can enforce.
    pub features: Vec<Feature>,
    /// Labels that the device's owner gave it.
    pub labels: Labels,
    /// What the machine is.
    pub facts: Facts,
    /// What secrets for it are sealed to.
    pub sealing_key: Option<SealingKey>,
    /// What the device's owner allows.
    pub owner: Owner,
    /// The desired state that was stored last.
    pub desired: Option<DesiredState>,
    /// The checkpoint that was stored last; the first one is stored before this.
    pub checkpoint: Checkpoint,
    /// The containers that are there.
    pub found: Vec<Found>,
    /// What the disk has lost since, for a person.
    pub lost: Vec<String>,
    /// The agent's own program.
    pub own: Own,
}

/// The state of a device.
#[derive(Debug)]
pub struct Agent {
    version: heapless::String<32>,
    features: Vec<Feature>,
    labels: Labels,
    facts: Facts,
    sealing_key: Option<SealingKey>,
    owner: Owner,
    boot: BootId,
    jitter: Jitter,
    desired: Option<DesiredState>,
    arriving: Arriving,
    slots: BTreeMap<WorkloadId, Slot>,
    /// Numbers are never used again: what an old container left must not meet another.
    next_container: u32,
    outbox: Outbox,
    disk: Disk,
    /// What should run has changed since images were last collected.
    collect: bool,
    /// An image could not be had.
    image_failed: bool,
    link: Link,
    /// The controller does not know the connection: it is to be greeted again.
    is_unknown: bool,
    /// Of the latest connection.
    keep_alive_s: u16,
    refused: Refused,
    upgrading: Upgrading,
    /// Desired states whose images are on their way.
    fetching: BTreeSet<Held>,
    effects: VecDeque<Effect>,
}

/// Messages refused since the last event about it.
#[derive(Debug, Default)]
struct Refused {
    count: u64,
    reason: String,
    quiet_until_ms: u64,
}

/// What a slot may touch of the agent while it steps.
pub(crate) struct Turn<'a> {
    pub(crate) now_ms: u64,
    pub(crate) jitter: &'a mut Jitter,
    pub(crate) features: &'a [Feature],
    pub(crate) owner: &'a Owner,
    /// What all workloads may take.
    pub(crate) memory: Memory,
    /// Desired states whose images are on their way.
    pub(crate) fetching: &'a BTreeSet<Held>,
    next_container: &'a mut u32,
    effects: &'a mut VecDeque<Effect>,
    outbox: &'a mut Outbox,
    changed: &'a mut bool,
}

impl Turn<'_> {
    pub(crate) fn order(&mut self, effect: Effect) {
        self.effects.push_back(effect);
    }

    /// A number that no container on this device has had.
    pub(crate) fn take_number(&mut self) -> u32 {
        let number = *self.next_container;
        *self.next_container = number.saturating_add(1);
        number
    }

    pub(crate) fn note(&mut self, note: Note) {
        *self.changed = true;
        self.outbox.note(self.now_ms, note);
    }
}

impl Agent {
    /// An agent as its disk and its containers say that it was.
    pub fn new(start: Start) -> Self {
        let applied = start.desired.as_ref().map(|desired| desired.held);
        let applied = applied.unwrap_or_default();
        let outbox =
            Outbox::restored(&start.checkpoint, !start.lost.is_empty(), start.boot, applied);
        let next_container = free_number(&start.checkpoint, &start.found);
        let outdated = start.checkpoint.applied != applied;
        let slots: BTreeMap<_, _> = start
            .checkpoint
            .slots
            .into_iter()
            .map(|(id, record)| (id.clone(), Slot::restored(id, record)))
            .collect();
        let mut agent = Self {
            version: start.version,
            features: start.owner.features(start.features),
            labels: start.labels,
            facts: start.facts,
            sealing_key: start.sealing_key,
            owner: start.owner,
            boot: start.boot,
            jitter: Jitter(start.seed),
            desired: start.desired,
            arriving: Arriving::default(),
            slots,
            next_container,
            outbox,
            disk: Disk::default(),
            collect: true,
            image_failed: false,
            link: Link::Down,
            is_unknown: false,
            keep_alive_s: 0,
            refused: Refused::default(),
            upgrading: Upgrading::new(&start.own),
            fetching: BTreeSet::new(),
            effects: VecDeque::new(),
        };
        agent.note(start.now_ms, EventKind::AgentStarted, agent.version.to_string());
        for lost in start.lost {
            agent.note(start.now_ms, EventKind::DataLost, lost);
        }
        // What a person on site had stopped is taken back by a desired state that came since, also
        // where the checkpoint that says so did not reach the disk.
        if outdated {
            agent.slots.values_mut().for_each(Slot::take_back);
        }
        agent.assign();
        agent.take_over_upgrade(start.now_ms, start.own, &start.found);
        agent.take_over(start.found, start.now_ms);
        agent.settle(start.now_ms);
        agent
    }

    /// Takes in what happened at `now_ms`, milliseconds since boot.
    pub fn handle(&mut self, now_ms: u64, input: Input) {
        match input {
            Input::Tick => {}
            Input::LinkUp { connection, nonce, keep_alive_s } => {
                self.keep_alive_s = keep_alive_s;
                self.fetch_at_once(now_ms);
                self.connected(now_ms, connection, nonce);
            }
            Input::LinkDown => self.link = Link::Down,
            Input::Desired { state, signed } => self.desired(state, signed),
            Input::DesiredStored(held) => self.desired_stored(held),
            Input::DesiredNotStored { held, signed, reason } => {
                self.desired_not_stored(now_ms, held, signed, &reason);
            }
            Input::CheckpointStored { version, done } => {
                self.checkpoint_stored(now_ms, version, done);
            }
            Input::Acked { connection, ack } => self.acked(now_ms, connection, &ack),
            Input::Commanded { number, nonce, action } => {
                self.command(now_ms, number, Command { nonce, action });
            }
            Input::OnSite { workload, action } => {
                let (slots, mut turn) = self.turn(now_ms);
                if let Some(slot) = slots.get_mut(&workload) {
                    slot.on_site(action, &mut turn);
                }
            }
            Input::Sleep { for_ms } => self.sleep(for_ms),
            Input::Refused { reason } => self.refuse(reason),
            Input::Pulling { container } => {
                self.with(now_ms, &container, |slot, number, turn| slot.pulling(number, turn));
            }
            Input::PullProgressed { container, received, total } => {
                self.with(now_ms, &container, |slot, n, _| {
                    slot.pull_progressed(n, received, total)
                });
            }
            Input::ImageReady { container } => {
                self.with(now_ms, &container, |slot, number, turn| slot.image_ready(number, turn));
            }
            Input::ImageFailed { container, reason } => {
                self.image_failed = true;
                self.with(now_ms, &container, |slot, n, turn| slot.image_failed(n, reason, turn));
            }
            Input::NotAllowed { container, refusal } => {
                self.with(now_ms, &container, |slot, number, _| slot.not_allowed(number, refusal));
            }
            Input::HostLacks { container, reason } => {
                self.with(now_ms, &container, |slot, n, turn| slot.host_lacks(n, reason, turn));
            }
            Input::Started { container, pid } => {
                self.with(now_ms, &container, |slot, number, turn| slot.started(number, pid, turn));
            }
            Input::StartFailed { container, reason } => {
                self.with(now_ms, &container, |slot, n, turn| slot.start_failed(n, reason, turn));
            }
            Input::Exited { container, exit } => {
                self.with(now_ms, &container, |slot, number, turn| slot.exited(number, exit, turn));
            }
            Input::ProgramProgressed { received, total } => {
                self.program_progressed(received, total)
            }
            Input::ProgramReady { runs } => self.program_ready(now_ms, runs),
            Input::ProgramFailed { reason, may_pass } => {
                self.program_failed(now_ms, reason, may_pass);
            }
            Input::ProgramKept { done } => self.program_kept(now_ms, done),
        }
        self.settle(now_ms);
    }

    /// The next thing to do, in order.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// When [`Input::Tick`] should come at the latest, in milliseconds since boot.
    pub fn poll_timeout(&self) -> Option<u64> {
        let slots = self.slots.values().filter_map(Slot::timeout_ms).min();
        let link = match self.link {
            Link::Down => None,
            Link::Greeting { again_at_ms, .. } => Some(again_at_ms),
            Link::Open { again_at_ms, .. } => self.greets_again().then_some(again_at_ms),
        };
        let refused = (self.refused.count > 0).then_some(self.refused.quiet_until_ms);
        let disk = self.disk.waits().then_some(self.disk.retry_at_ms);
        let arriving = self.arriving.waits().then_some(self.arriving.retry_at_ms);
        let upgrade = self.upgrading.timeout_ms();
        slots
            .into_iter()
            .chain(upgrade)
            .chain(link)
            .chain(refused)
            .chain(disk)
            .chain(arriving)
            .min()
    }

    /// The desired state that is in force.
    pub fn held(&self) -> Held {
        self.desired.as_ref().map(|desired| desired.held).unwrap_or_default()
    }

    /// The workloads, each with what is told of it, and the image that it is to run.
    pub fn workloads(&self) -> impl Iterator<Item = (&WorkloadId, WorkloadStatus, String)> {
        self.slots.iter().map(|(id, slot)| {
            let image = slot.images().next().unwrap_or_default();
            (id, slot.status(), image)
        })
    }

    /// Whether the controller has answered on the present connection.
    pub fn is_connected(&self) -> bool {
        matches!(self.link, Link::Open { .. })
    }

    /// How many events the controller has yet to acknowledge.
    pub fn events_waiting(&self) -> usize {
        self.outbox.events_waiting()
    }

    /// The desired state that is in force.
    pub fn desired_state(&self) -> Option<&DesiredState> {
        self.desired.as_ref()
    }

    /// Counts what was refused; [`Agent::tell_refused`] makes an event of it.
    fn refuse(&mut self, reason: String) {
        self.refused.count = self.refused.count.saturating_add(1);
        self.refused.reason = reason;
    }

    /// Tells every slot what is wanted of it.
    fn assign(&mut self) {
        let mut wanted: BTreeMap<WorkloadId, _> = self
            .desired
            .iter()
            .flat_map(|desired| &desired.workloads)
            .map(|workload| (workload.id.clone(), workload.clone()))
            .collect();
        let held = self.held();
        let fleet = self.desired.as_ref().and_then(|desired| desired.policy.clone());
        for (id, slot) in &mut self.slots {
            slot.want(wanted.remove(id), fleet.clone(), held);
        }
        for (id, workload) in wanted {
            let mut slot = Slot::new(id.clone());
            slot.want(Some(workload), fleet.clone(), held);
            self.slots.insert(id, slot);
        }
    }

    /// Takes over the containers that were there before this agent.
    fn take_over(&mut self, mut found: Vec<Found>, now_ms: u64) {
        found.sort_by_key(|found| found.container.parts());
        for Found { container, made, state } in found {
            let Some((id, number)) = container.parts() else {
                continue;
            };
            self.slots.entry(id.clone()).or_insert_with(|| Slot::new(id));
            self.with(now_ms, &container, |slot, _, turn| match state {
                FoundState::Running { pid } => slot.adopt(number, made, pid, turn),
                FoundState::Ended(exit) => slot.found_ended(number, made, exit, turn),
                FoundState::Broken => slot.found_broken(number, turn),
            });
        }
        self.each(now_ms, |slot, turn| {
            slot.found_missing(turn);
            false
        });
    }

    fn note(&mut self, now_ms: u64, kind: EventKind, message: String) {
        self.disk.changed = true;
        let note = Note { kind, workload: None, container: None, exit: None, message };
        self.outbox.note(now_ms, note);
    }

    fn with(
        &mut self,
        now_ms: u64,
        container: &ContainerId,
        act: impl FnOnce(&mut Slot, u32, &mut Turn<'_>),
    ) {
        let Some((id, number)) = container.parts() else {
            return;
        };
        let (slots, mut turn) = self.turn(now_ms);
        match slots.get_mut(&id) {
            Some(slot) => act(slot, number, &mut turn),
            // It was dropped while this was under way; whatever came of it goes.
            None => turn.order(Effect::Remove { container: container.clone() }),
        }
    }

    /// The slots, and what they may touch of the rest.
    fn turn(&mut self, now_ms: u64) -> (&mut BTreeMap<WorkloadId, Slot>, Turn<'_>) {
        let taken = self.slots.values().map(Slot::memory_bytes);
        let taken = taken.fold(0, u64::saturating_add);
        let turn = Turn {
            owner: &self.owner,
            memory: Memory { machine: self.facts.memory_bytes, taken },
            now_ms,
            jitter: &mut self.jitter,
            features: &self.features,
            fetching: &self.fetching,
            next_container: &mut self.next_container,
            effects: &mut self.effects,
            outbox: &mut self.outbox,
            changed: &mut self.disk.changed,
        };
        (&mut self.slots, turn)
    }

    /// Lets every slot act; drops those that say so.
    fn each(&mut self, now_ms: u64, mut act: impl FnMut(&mut Slot, &mut Turn<'_>) -> bool) {
        let (slots, mut turn) = self.turn(now_ms);
        slots.retain(|id, slot| {
            let gone = act(slot, &mut turn);
            let status = (!gone).then(|| slot.status());
            let changed = turn.outbox.record(id, status);
            *turn.changed |= changed;
            !gone
        });
    }

    /// Orders what is missing, stores what changed, tells what can be told.
    fn settle(&mut self, now_ms: u64) {
        self.store_desired(now_ms);
        // Before the first desired state, or where it was lost, nobody knows what should run: what
        // does run goes on.
        let known = self.desired.is_some();
        if known {
            self.prefetch(now_ms);
        }
        self.each(now_ms, |slot, turn| known && slot.step(turn));
        self.collect();
        self.upgrade(now_ms);
        self.tell_refused(now_ms);
        self.store(now_ms);
        self.tell(now_ms);
    }

    /// Asks for all images of what is wanted before anything that runs makes way for it.
    fn prefetch(&mut self, now_ms: u64) {
        let (slots, mut turn) = self.turn(now_ms);
        slots.values_mut().for_each(|slot| slot.prefetch(&mut turn));
        self.fetching = self.slots.values().filter_map(Slot::fetches).collect();
    }

    /// Has what nothing needs removed: when what should run has changed and does, and when an image
    /// cannot be had, which may be for want of room.
    fn collect(&mut self) {
        let settled = self.slots.values().all(Slot::is_settled);
        let failed = std::mem::take(&mut self.image_failed);
        if self.desired.is_some() && (failed || (self.collect && settled)) {
            self.collect &= !settled;
            let keep = self.slots.values().flat_map(Slot::images).collect();
            self.effects.push_back(Effect::Collect { keep, orphans: settled });
        }
    }

    fn tell_refused(&mut self, now_ms: u64) {
        if self.refused.count == 0 || now_ms < self.refused.quiet_until_ms {
            return;
        }
        let Refused { count, reason, .. } = std::mem::take(&mut self.refused);
        self.refused.quiet_until_ms = now_ms.saturating_add(REFUSED_EVERY_MS);
        let message = match count {
            1 => reason,
            _ => format!("{reason} (and {} more before it)", count.saturating_sub(1)),
        };
        self.effects.push_back(Effect::Warn { message: format!("refused: {message}") });
        self.note(now_ms, EventKind::Refused, message);
    }
}

/// The number above all that containers have had, as far as can be known.
fn free_number(checkpoint: &Checkpoint, found: &[Found]) -> u32 {
    let found = found.iter().filter_map(|found| found.container.parts());
    let highest = found.map(|(_, number)| number).max().unwrap_or(0);
    checkpoint.next_container.max(highest.saturating_add(1))
}

//! What the cores order, carried out by a disk, a kernel and a link that fail.

use limpet_agent_core::{Agent, Effect, Input, Message};
use limpet_protocol::{ContainerId, Exit, Signal, Workload, cbor};

use super::{Happening, World};
use crate::device::{Container, State, Write};

impl World {
    pub(super) fn carry_out(&mut self) {
        for index in 0..self.devices.len() {
            while let Some(effect) =
                self.devices[index].agent.as_mut().and_then(|a| a.poll_effect())
            {
                if self.tells {
                    println!("{:>8} dev-{index}   {effect:?}", self.now_ms);
                }
                self.effect(index, effect);
            }
        }
    }

    fn effect(&mut self, device: usize, effect: Effect) {
        let life = self.devices[device].life;
        match effect {
            Effect::StoreDesired { held, signed } => {
                let state = cbor::decode(&signed, usize::MAX).unwrap();
                let failed = self.faulty() && self.random.percent(10);
                let answer = if failed {
                    Input::DesiredNotStored { held, signed, reason: "disk full".to_owned() }
                } else {
                    Input::DesiredStored(held)
                };
                self.write(device, Write::Desired(Box::new(state)), answer, failed);
            }
            Effect::StoreCheckpoint { version, checkpoint } => {
                let failed = self.faulty() && self.random.percent(10);
                let answer = Input::CheckpointStored { version, done: !failed };
                self.write(device, Write::Checkpoint(checkpoint), answer, failed);
            }
            Effect::Prepare { container, image } => self.prepare(device, container, image),
            Effect::Start { container, workload } => {
                let made = Container { made: *workload, state: State::Making, asked: false };
                let before = self.devices[device].containers.insert(container.clone(), made);
                assert!(before.is_none(), "{container} is made twice");
                self.soon(Happening::Made { device, container, life });
            }
            Effect::Signal { container, signal } => self.signal(device, container, signal),
            Effect::Remove { container } => {
                let removed = self.devices[device].containers.remove(&container);
                let state = removed.map(|container| container.state);
                let alive = matches!(state, Some(State::Running { .. }));
                assert!(!alive, "{container} is removed alive");
            }
            Effect::Collect { keep, .. } => {
                let it = &mut self.devices[device];
                for container in it.containers.values().filter(|c| c.state != State::Making) {
                    let needed = !matches!(container.state, State::Running { .. })
                        || container.asked
                        || keep.contains(&container.made.spec.image);
                    assert!(needed, "{} goes while it is needed", container.made.spec.image);
                }
                it.images.retain(|image| keep.contains(image));
            }
            Effect::Publish(message) => self.publish(device, message),
            Effect::Stream(_)
            | Effect::EndStream(_)
            | Effect::ReturnDesired { .. }
            | Effect::KeepLog { .. }
            | Effect::ForgetLog { .. }
            | Effect::Disconnect { .. } => {}
        }
    }

    fn signal(&mut self, device: usize, container: ContainerId, signal: Option<Signal>) {
        let found = self.devices[device].containers.get(&container);
        let Some(State::Running { pid }) = found.map(|c| c.state) else {
            return;
        };
        self.must_go(device, &container);
        let kills = signal == Some(Signal::KILL);
        if kills || self.random.percent(70) {
            let exit = if kills { Exit::Signal(9) } else { Exit::Code(0) };
            self.soon(Happening::Ends { device, container, pid, exit });
        }
    }

    fn publish(&mut self, device: usize, message: Message) {
        if self.devices[device].connection.is_none() {
            return;
        }
        if self.faulty() && self.random.percent(3) {
            self.soon(Happening::Up(device, Box::new(message.clone())));
        }
        // A broker may acknowledge what nobody has stored.
        if !self.faulty() || self.random.percent(97) {
            self.soon(Happening::Up(device, Box::new(message)));
        }
    }

    /// Nothing is asked to end that the desired state in force wants as it is.
    fn must_go(&mut self, device: usize, container: &ContainerId) {
        let it = &mut self.devices[device];
        let (workload, number) = container.parts().unwrap();
        let asked = it.containers.get_mut(container).unwrap();
        let (revision, before) = (asked.made.revision, std::mem::replace(&mut asked.asked, true));
        let held = it.agent.as_ref().map(Agent::held);
        // One that has just reached the disk is not yet in force.
        let in_force = it.desired.as_ref().filter(|desired| Some(desired.held) == held);
        let wants = |w: &Workload| w.id == workload && w.revision == revision;
        let wanted = in_force.is_some_and(|desired| desired.workloads.iter().any(wants));
        let ids = it.containers.keys().filter_map(ContainerId::parts);
        let replaced = ids.into_iter().any(|(id, n)| id == workload && n > number);
        assert!(before || replaced || !wanted, "{container} is healthy and wanted");
    }

    fn write(&mut self, device: usize, write: Write, answer: Input, failed: bool) {
        let life = self.devices[device].life;
        self.counter += 1;
        let number = self.counter;
        self.devices[device].writes.insert(number, write);
        self.soon(Happening::Written { device, life, write: number, answer, failed });
    }

    fn prepare(&mut self, device: usize, container: ContainerId, image: String) {
        let life = self.devices[device].life;
        if !self.devices[device].images.contains(&image) {
            self.soon(Happening::Done(
                device,
                life,
                Input::Pulling { container: container.clone() },
            ));
            let (received, total) = (self.random.below(100), 100);
            let further = Input::PullProgressed { container: container.clone(), received, total };
            self.soon(Happening::Done(device, life, further));
            if self.faulty() && self.random.percent(30) {
                let failed = Input::ImageFailed { container, reason: "registry".to_owned() };
                return self.at(6_000, Happening::Done(device, life, failed));
            }
            self.devices[device].images.insert(image);
            return self.at(6_000, Happening::Done(device, life, Input::ImageReady { container }));
        }
        self.soon(Happening::Done(device, life, Input::ImageReady { container }));
    }
}

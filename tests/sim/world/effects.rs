//! What the cores order, carried out by a disk, a registry, a kernel and a link that fail.

use std::collections::BTreeSet;

use limpet_agent_core::{Effect, Input};
use limpet_protocol::{ContainerId, cbor};

use super::{Happening, World};
use crate::device::State;
use crate::device::disk::Write;
use crate::invariant::Invariant;

impl World {
    pub(super) fn carry_out(&mut self, device: usize) {
        while let Some(effect) = self.devices[device].agent.as_mut().and_then(|a| a.poll_effect()) {
            self.say(|| format!("{}   {effect:?}", self.devices[device].name));
            self.effect(device, effect);
        }
    }

    fn effect(&mut self, device: usize, effect: Effect) {
        match effect {
            Effect::StoreDesired { held, signed } => {
                let state = cbor::decode(&signed, usize::MAX).unwrap();
                let failed = self.disk_fails(device);
                let answer = match failed {
                    true => {
                        Input::DesiredNotStored { held, signed, reason: "disk full".to_owned() }
                    }
                    false => Input::DesiredStored(held),
                };
                self.write(device, Write::Desired(Box::new(state)), answer, failed);
            }
            Effect::StoreCheckpoint { version, checkpoint } => {
                let failed = self.disk_fails(device);
                let answer = Input::CheckpointStored { version, done: !failed };
                self.write(device, Write::Checkpoint(checkpoint), answer, failed);
            }
            Effect::Prepare { container, image, .. } => self.prepare(device, container, image),
            Effect::Start { container, workload, .. } => self.start(device, container, *workload),
            Effect::Signal { container, signal } => self.signal(device, container, signal),
            Effect::Remove { container } => self.remove(device, &container),
            Effect::Collect { keep, .. } => self.collect(device, &keep),
            Effect::Publish(message) => self.publish(device, message),
            Effect::Disconnect { for_ms } => self.cut_for(device, for_ms),
            Effect::Stream(_)
            | Effect::EndStream(_)
            | Effect::ReturnDesired { .. }
            | Effect::StoreMembership { .. }
            | Effect::FetchProgram(_)
            | Effect::TryProgram(_)
            | Effect::KeepProgram
            | Effect::SettleUpgrade { .. }
            | Effect::Warn { .. }
            | Effect::KeepLog { .. }
            | Effect::ForgetLog { .. } => {}
        }
    }

    fn disk_fails(&mut self, device: usize) -> bool {
        let full = self.now_ms < self.devices[device].disk.full_until_ms;
        (self.faulty() && full) || self.fails(5)
    }

    fn write(&mut self, device: usize, write: Write, answer: Input, failed: bool) {
        let life = self.devices[device].life;
        self.counter += 1;
        let number = self.counter;
        self.devices[device].writes.insert(number, write);
        self.soon(Happening::Written { device, life, write: number, answer, failed });
    }

    fn prepare(&mut self, device: usize, container: ContainerId, image: String) {
        let it = &self.devices[device];
        let life = it.life;
        if it.images.contains(&image) {
            return self.soon(Happening::Done(device, life, Input::ImageReady { container }));
        }
        let pulling = Input::Pulling { container: container.clone() };
        self.soon(Happening::Done(device, life, pulling));
        let received = self.random.below(100);
        let further = Input::PullProgressed { container: container.clone(), received, total: 100 };
        self.soon(Happening::Done(device, life, further));
        let down = self.faulty() && self.now_ms < self.registry_down_until_ms;
        let longest_ms = if self.fails(5) { 120_000 } else { 1_000 };
        let in_ms = 5_000 + self.random.below(longest_ms);
        if down || self.disk_fails(device) || self.fails(15) {
            let failed = Input::ImageFailed { container, reason: "registry".to_owned() };
            return self.at(in_ms, Happening::Done(device, life, failed));
        }
        let answer = Input::ImageReady { container };
        self.at(in_ms, Happening::Pulled { device, life, image, answer });
    }

    fn collect(&mut self, device: usize, keep: &BTreeSet<String>) {
        let it = &self.devices[device];
        for container in it.containers.values().filter(|c| c.state != State::Making) {
            let image = &container.made.spec.image;
            let alive = matches!(container.state, State::Running { .. }) && !container.asked;
            Invariant::NeededImagesStay
                .holds(!alive || keep.contains(image), || format!("{}: {image}", it.name));
        }
        if self.random.percent(50) {
            self.devices[device].images.retain(|image| keep.contains(image));
        }
    }
}

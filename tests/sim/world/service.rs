//! The controller at work: transactions, crashes, restores.

use super::{Happening, World};
use crate::controller::{ToDevice, Work};
use crate::device::disk::Write;
use crate::invariant::Invariant;

impl World {
    pub(super) fn works(&mut self, work: Work) {
        if self.controller.take(work) {
            let in_ms = self.random.below(20);
            self.at(in_ms, Happening::Transacts(self.controller.life));
        }
    }

    pub(super) fn transacts(&mut self, life: u64) {
        if self.controller.life != life || !self.controller.runs {
            return;
        }
        self.controller.transact(self.now_ms, self.now_ms + self.wall_ahead_ms);
        let longest_ms = if self.random.percent(95) { 30 } else { 2_000 };
        let in_ms = self.random.below(longest_ms);
        self.at(in_ms, Happening::Commits(life));
    }

    pub(super) fn commits(&mut self, life: u64) {
        if self.controller.life != life || !self.controller.runs {
            return;
        }
        if self.now_ms < self.controller_full_until_ms || self.fails(1) {
            self.say(|| "controller cannot commit".to_owned());
            self.controller.roll_back();
        } else {
            for (id, message) in self.controller.commit() {
                let device = Self::device(&id);
                self.must_not_roll_back(device, &message);
                self.say(|| format!("controller to {id} {message:?}"));
                self.send_down(device, message);
            }
        }
        if self.controller.has_work() {
            self.at(0, Happening::Transacts(life));
        }
    }

    fn must_not_roll_back(&self, device: usize, message: &ToDevice) {
        let (ToDevice::Desired(state), Some(ahead)) = (message, self.devices[device].ahead) else {
            return;
        };
        Invariant::NothingRollsBack.holds(state.held.epoch > ahead.epoch, || {
            format!("dev-{device:03} is told {:?}, and was at {ahead:?}", state.held)
        });
    }

    /// The controller is killed, and the broker within it. A commit that was under way is on disk or
    /// not; what it would have sent is not sent.
    pub(super) fn controller_crashes(&mut self) {
        if !self.controller.runs {
            return;
        }
        self.say(|| "CONTROLLER CRASHES".to_owned());
        if self.random.percent(50) {
            drop(self.controller.commit());
        }
        self.controller.crash();
        self.broker_fails();
        let in_ms = 100 + self.random.below(20_000);
        self.at(in_ms, Happening::ControllerStarts);
    }

    /// An old backup takes the place of the store while the controller is down.
    pub(super) fn controller_is_restored(&mut self) {
        if self.controller.backup.is_none() {
            return;
        }
        self.controller_crashes();
        self.controller.restore();
        self.say(|| "CONTROLLER IS RESTORED".to_owned());
        for device in 0..self.devices.len() {
            let row = self.controller.store.devices.get(&self.id(device));
            let told = row.map(|row| row.record.told).unwrap_or_default();
            let it = &mut self.devices[device];
            let held = it.disk.desired.as_ref().map(|state| state.held).unwrap_or_default();
            let arriving = it.writes.values().any(|write| matches!(write, Write::Desired(_)));
            it.ahead = (held > told && !arriving).then_some(held);
        }
    }
}

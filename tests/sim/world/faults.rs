//! Everything that goes wrong, and people.

use limpet_agent_core::{Input, LocalAction};

use super::{Happening, World};
use crate::controller::Work;
use crate::operator::Ask;

impl World {
    /// Something goes wrong with one device.
    pub(super) fn fault(&mut self) {
        if !self.faulty() {
            return;
        }
        // Each of a large fleet is not troubled as often as each of a small one.
        let devices = self.devices.len() as u64;
        let every_ms = if devices > 8 { 60_000 / devices } else { 8_000 };
        let in_ms = 1 + self.random.below(every_ms);
        self.at(in_ms, Happening::Fault);
        let device = usize::try_from(self.random.below(devices)).unwrap();
        match self.random.below(20) {
            0..=5 => self.cut(device),
            6 => self.falls_silent(device),
            7..=8 => self.restart(device, false),
            9 => self.restart(device, true),
            10 => {
                self.devices[device].disk.full_until_ms = self.now_ms + self.random.below(300_000)
            }
            11..=12 => self.on_site(device),
            13 => {
                let for_ms = self.random.below(120_000);
                self.tell(device, Input::Sleep { for_ms });
            }
            _ => {}
        }
    }

    /// Something goes wrong with what all share.
    pub(super) fn trouble(&mut self) {
        if !self.faulty() {
            return;
        }
        let in_ms = 1 + self.random.below(60_000);
        self.at(in_ms, Happening::Trouble);
        match self.random.below(12) {
            0..=1 => self.broker_fails(),
            2..=3 => self.controller_crashes(),
            4 => self.controller_full_until_ms = self.now_ms + self.random.below(120_000),
            5..=6 => self.registry_down_until_ms = self.now_ms + self.random.below(240_000),
            // 1970, 2099, or anything.
            7 => self.wall_ahead_ms = self.random.below(1 << 42),
            8 => self.wall_ahead_ms = 0,
            9 => self.controller.backup = Some(self.controller.store.clone()),
            10 => self.controller_is_restored(),
            _ => self.works(Work::Asked(Ask::Recover)),
        }
    }

    pub(super) fn asks(&mut self) {
        if !self.faulty() {
            return;
        }
        let longest_ms = if self.random.percent(70) { 40_000 } else { 500 };
        let in_ms = self.random.below(longest_ms);
        self.at(in_ms, Happening::Asks);
        let ask = Ask::any(self.devices.len() as u64, &mut self.random);
        self.say(|| format!("operator {ask:?}"));
        self.works(Work::Asked(ask));
    }

    /// Nothing comes through any more, and nobody is told, for a while.
    fn falls_silent(&mut self, device: usize) {
        let it = &mut self.devices[device];
        if let Some(connection) = it.connection {
            it.silent = true;
            let in_ms = self.random.below(300_000);
            self.at(in_ms, Happening::Cut(device, connection));
        }
    }

    /// A person on site does something to a workload.
    fn on_site(&mut self, device: usize) {
        let it = &mut self.devices[device];
        let Some(agent) = &it.agent else { return };
        let workloads: Vec<_> = agent.workloads().map(|(id, ..)| id.clone()).collect();
        if workloads.is_empty() {
            return;
        }
        let at = usize::try_from(self.random.below(workloads.len() as u64)).unwrap();
        let workload = workloads[at].clone();
        let action = match self.random.below(3) {
            0 => LocalAction::Stop,
            1 => LocalAction::Start,
            _ => LocalAction::Restart,
        };
        it.on_site.insert(workload.clone(), agent.held());
        self.tell(device, Input::OnSite { workload, action });
    }

    pub(super) fn starts(&mut self, device: usize, life: u64) {
        let it = &mut self.devices[device];
        if it.agent.is_none() && it.life == life {
            it.start(self.now_ms, &mut self.random);
            let life = it.life;
            self.touched.insert(device);
            self.soon(Happening::Connects(device, life));
        }
    }

    fn restart(&mut self, device: usize, power: bool) {
        if self.devices[device].agent.is_none() {
            return;
        }
        self.goes(device);
        let it = &mut self.devices[device];
        let mut in_ms = 10 + self.random.below(10_000);
        if power {
            it.power_cut(self.now_ms, &mut self.random);
            if self.random.percent(20) {
                it.rot();
                // What was on its way has arrived before the device is up.
                in_ms += 10_000;
            }
        } else {
            it.crash(&mut self.random);
        }
        if self.random.percent(20) {
            it.reconfigure(&mut self.random);
        }
        let (life, what) = (it.life, if power { "POWER CUT" } else { "CRASH" });
        self.say(|| format!("{} {what}", self.devices[device].name));
        self.touched.insert(device);
        self.at(in_ms, Happening::Starts(device, life));
    }
}

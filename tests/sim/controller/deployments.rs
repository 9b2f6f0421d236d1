//! What operators ask for, and that placement does as it says.

use std::collections::{BTreeMap, BTreeSet};

use limpet_controller_core::placement::{Candidate, Slot};
use limpet_controller_core::plan::{self, Deployed};
use limpet_controller_core::{Count, Deployment, Deployments, Presence};
use limpet_protocol::{DeploymentName, DeviceId};

use super::Controller;
use crate::invariant::Invariant;
use crate::operator::Ask;

impl Controller {
    pub(super) fn asked(&mut self, ask: Ask) {
        match ask {
            Ask::Apply(deployment) => self.deploy(*deployment),
            Ask::Scale(name, replicas) => {
                let deployed = self.deployments.get(&name);
                let deployment = deployed.map(|deployed| deployed.deployment.clone());
                if let Some(deployment) = deployment.filter(|d| d.count != Count::Everywhere) {
                    self.deploy(Deployment { count: Count::Replicas(replicas), ..deployment });
                }
            }
            Ask::Delete(name) => self.delete(&name),
            Ask::Recover => self.recover(),
        }
    }

    fn deploy(&mut self, deployment: Deployment) {
        let name = deployment.name.clone();
        if self.deployments.get(&name).is_some_and(|before| before.deployment == deployment) {
            return;
        }
        let (before, fleet) = (self.deployments.clone(), self.candidates());
        let taken = plan::deploy(&mut self.deployments, deployment, 0, self.wall_ms, &fleet);
        self.check_placement(&before, &fleet);
        let Ok(touched) = taken else { return };
        self.changed().deployments.insert(name);
        touched.iter().for_each(|id| self.publish_desired(id));
        self.place_again();
    }

    fn delete(&mut self, name: &DeploymentName) {
        let Some(deployed) = self.deployments.remove(name) else { return };
        self.changed().deployments.insert(name.clone());
        let devices: BTreeSet<DeviceId> = deployed.slots.into_iter().map(|(id, _)| id).collect();
        devices.iter().for_each(|id| self.publish_desired(id));
        self.place_again();
    }

    pub(super) fn place_again(&mut self) {
        let (before, fleet) = (self.deployments.clone(), self.candidates());
        let changes = plan::place_again(&mut self.deployments, &fleet);
        self.check_placement(&before, &fleet);
        self.changed().deployments.extend(changes.deployments);
        changes.devices.iter().for_each(|id| self.publish_desired(id));
    }

    fn candidates(&self) -> Vec<Candidate> {
        let candidate = |(id, device): (&DeviceId, &super::Device)| Candidate {
            id: id.clone(),
            labels: device.record.labels.clone(),
            features: device.record.features.clone(),
            presence: self.presence(device),
            on_hold: device.record.ahead.is_some(),
            memory_free_bytes: device.record.memory_bytes,
            workloads: 0,
        };
        self.devices.iter().map(candidate).collect()
    }

    fn check_placement(&self, before: &Deployments, fleet: &[Candidate]) {
        let fleet: BTreeMap<&DeviceId, &Candidate> = fleet.iter().map(|c| (&c.id, c)).collect();
        let mut memory: BTreeMap<&DeviceId, u64> = BTreeMap::new();
        for (name, deployed) in &self.deployments {
            check_count(deployed);
            let each = deployed.deployment.spec.resources.memory_bytes.unwrap_or(0);
            for (id, _) in &deployed.slots {
                *memory.entry(id).or_default() += each;
                let fit = fleet.get(id).is_some_and(|device| fits(&deployed.deployment, device));
                Invariant::OnlyWhereItFits.holds(fit, || format!("{name} on {id}"));
            }
            if each == 0 {
                let nothing = BTreeSet::new();
                let before = before.get(name).map_or(&nothing, |before| &before.slots);
                self.check_moves(deployed, before, &fleet);
            }
        }
        for (id, used) in memory {
            Invariant::OnlyWhereItFits
                .holds(used <= fleet[id].memory_free_bytes, || format!("{used} bytes on {id}"));
        }
    }

    /// Of a deployment that memory does not limit.
    fn check_moves(
        &self,
        deployed: &Deployed,
        before: &BTreeSet<Slot>,
        fleet: &BTreeMap<&DeviceId, &Candidate>,
    ) {
        let fit = |id: &DeviceId| fleet.get(id).is_some_and(|c| fits(&deployed.deployment, c));
        let Count::Replicas(count) = deployed.deployment.count else {
            let fit = fleet.keys().filter(|id| fit(id)).count();
            return Invariant::AsManyAsAsked
                .holds(fit == deployed.slots.len(), || format!("{fit} devices fit {deployed:?}"));
        };
        for slot in before.difference(&deployed.slots) {
            let wanted = index(slot).is_some_and(|index| index < count);
            Invariant::ReplicasStay.holds(!wanted || !fit(&slot.0), || format!("{slot:?}"));
        }
        let somebody = self.devices.iter().find(|(id, device)| {
            device.link.is_some()
                && !matches!(device.presence, Presence::Asleep { .. })
                && device.record.ahead.is_none()
                && fit(id)
        });
        for slot in deployed.slots.difference(before) {
            let gone = self.devices[&slot.0].link.is_none() && self.devices[&slot.0].went;
            Invariant::FreshGoWhereSomebodyIs.holds(!gone || somebody.is_none(), || {
                format!("{slot:?}, while {:?} is connected", somebody.map(|(id, _)| id))
            });
        }
    }
}

fn check_count(deployed: &Deployed) {
    let ids: BTreeSet<_> = deployed.slots.iter().map(|(_, workload)| workload).collect();
    let Count::Replicas(count) = deployed.deployment.count else { return };
    let all = ids.len() == deployed.slots.len()
        && deployed.slots.len() + deployed.unplaced as usize == count as usize
        && deployed.slots.iter().all(|slot| index(slot).is_some_and(|index| index < count));
    Invariant::AsManyAsAsked.holds(all, || format!("{count} replicas, but {deployed:?}"));
}

fn index(slot: &Slot) -> Option<u32> {
    slot.1.as_str().split_once('.')?.1.parse().ok()
}

fn fits(deployment: &Deployment, device: &Candidate) -> bool {
    let label = |key: &str| {
        device.labels.iter().find(|(k, _)| k.as_str() == key).map(|(_, value)| value.as_str())
    };
    let labels = deployment.select.iter().all(|(key, value)| label(key) == Some(value));
    labels && deployment.requires().iter().all(|needed| device.features.contains(needed))
}

//! Where workloads go: by labels, features, memory and spread.
//!
//! A replica stays where it is for as long as its device matches, also while that device is
//! offline: a link that is down is no reason to run a second copy elsewhere.

use std::collections::BTreeSet;

use limpet_protocol::{DeviceId, Feature, Labels, WorkloadId};

use crate::deployment::{Count, Deployment};
use crate::presence::Presence;

/// A device as placement sees it.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// Its id.
    pub id: DeviceId,
    /// Its labels.
    pub labels: Labels,
    /// What its agent can enforce.
    pub features: Vec<Feature>,
    /// Whether it is there.
    pub presence: Presence,
    /// It is told nothing: it holds more than this controller knows of.
    pub on_hold: bool,
    /// Memory that other deployments' limits leave, in bytes.
    pub memory_free_bytes: u64,
    /// Workloads of other deployments placed on it.
    pub workloads: usize,
}

/// One workload on one device.
pub type Slot = (DeviceId, WorkloadId);

/// Where a deployment's workloads go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Placement {
    /// The workloads that have a device.
    pub slots: BTreeSet<Slot>,
    /// Workloads that found none.
    pub unplaced: u32,
    /// Why each unfit device is unfit.
    pub refusals: Vec<(DeviceId, String)>,
}

/// Places a deployment, given where its workloads are.
///
/// Slots of `current` stay unless their device is gone or unfit, or the deployment has shrunk: then
/// the highest numbers go first. New replicas go to online devices first, then to those that sleep,
/// are offline, are lost, are on hold; among them to those with the fewest of this deployment, the
/// fewest in all, and the lowest id.
pub fn place(deployment: &Deployment, fleet: &[Candidate], current: &BTreeSet<Slot>) -> Placement {
    let mut refusals = Vec::new();
    let mut fit = Vec::new();
    for candidate in fleet {
        match unfit(deployment, candidate) {
            Some(why) => refusals.push((candidate.id.clone(), why)),
            None => fit.push(candidate),
        }
    }
    match deployment.count {
        Count::Everywhere => {
            let id = WorkloadId::everywhere(&deployment.name);
            let slots = fit.iter().map(|device| (device.id.clone(), id.clone())).collect();
            Placement { slots, unplaced: 0, refusals }
        }
        Count::Replicas(count) => spread(deployment, count, &fit, current, refusals),
    }
}

fn spread(
    deployment: &Deployment,
    count: u32,
    fit: &[&Candidate],
    current: &BTreeSet<Slot>,
    mut refusals: Vec<(DeviceId, String)>,
) -> Placement {
    let mut placement = Placement::default();
    let memory_each = deployment.spec.resources.memory_bytes.unwrap_or(0);
    let room = |placed: usize, device: &Candidate| {
        let used = memory_each.saturating_mul(placed as u64);
        device.memory_free_bytes.saturating_sub(used) >= memory_each
    };
    let mut here: Vec<(usize, &Candidate)> = fit.iter().map(|device| (0, *device)).collect();
    let mut missing = Vec::new();
    for index in 0..count {
        let workload = WorkloadId::replica(&deployment.name, index);
        let stays = current
            .iter()
            .filter(|(_, id)| *id == workload)
            .find_map(|(device, _)| here.iter().position(|(_, fit)| fit.id == *device));
        let stays = stays.and_then(|at| here.get_mut(at));
        match stays.filter(|(placed, device)| room(*placed, device)) {
            Some((placed, device)) => {
                *placed = placed.saturating_add(1);
                placement.slots.insert((device.id.clone(), workload));
            }
            None => missing.push(workload),
        }
    }
    for workload in missing {
        let best = here.iter_mut().filter(|(placed, device)| room(*placed, device)).min_by_key(
            |(placed, device)| {
                let rank = (device.on_hold, device.presence.rank());
                (rank, *placed, device.workloads, &device.id)
            },
        );
        match best {
            Some((placed, device)) => {
                *placed = placed.saturating_add(1);
                placement.slots.insert((device.id.clone(), workload));
            }
            None => placement.unplaced = placement.unplaced.saturating_add(1),
        }
    }
    if placement.unplaced > 0 {
        refusals.extend(here.iter().map(|(placed, device)| {
            (device.id.clone(), format!("memory is full with {placed} of this deployment"))
        }));
    }
    Placement { refusals, ..placement }
}

/// Why a device cannot run a deployment's workloads at all.
fn unfit(deployment: &Deployment, candidate: &Candidate) -> Option<String> {
    for (key, value) in &deployment.select {
        let label = candidate.labels.iter().find(|(k, _)| k.as_str() == key);
        match label {
            Some((_, actual)) if actual.as_str() == value => {}
            Some((_, actual)) => return Some(format!("needs {key}={value}, has {key}={actual}")),
            None => return Some(format!("needs {key}={value}, has no label {key}")),
        }
    }
    let missing = deployment.requires().into_iter().find(|f| !candidate.features.contains(f));
    if let Some(feature) = &missing
        && candidate.features.contains(&feature.denied())
    {
        return Some(format!("its owner does not allow {feature}"));
    }
    if let Some(feature) = missing {
        return Some(format!("its agent or kernel cannot do {feature}"));
    }
    let needs = deployment.spec.resources.memory_bytes.unwrap_or(0);
    let free = candidate.memory_free_bytes;
    (needs > free).then(|| format!("needs {needs} bytes of memory, has {free} free"))
}

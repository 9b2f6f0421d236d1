//! All deployments and where their workloads are, and what follows from that for each device.
//!
//! Values in, values out: what is stored and published of it is the shell's.

use std::collections::{BTreeMap, BTreeSet};

use limpet_protocol::desired::{DESIRED_BYTES_MAX, DESIRED_WORKLOADS_MAX};
use limpet_protocol::{
    DeploymentName, DesiredState, DeviceId, Digest, Feature, Held, ImagePolicy, Workload, cbor,
};
use serde::{Deserialize, Serialize};

use crate::deployment::Deployment;
use crate::placement::{Candidate, Placement, Slot, place};

/// All deployments.
pub type Deployments = BTreeMap<DeploymentName, Deployed>;

/// A deployment and where it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deployed {
    /// What was asked for.
    pub deployment: Deployment,
    /// The digest of its template.
    pub revision: Digest,
    /// When it was asked for, by the controller's wall clock, in milliseconds.
    pub changed_ms: u64,
    /// When the document was made that its template was taken from, where devices were ahead.
    #[serde(default)]
    pub as_of_ms: u64,
    /// It stays where devices hold it: its manifest would place it elsewhere.
    #[serde(default)]
    pub pinned: bool,
    /// Bytes that its sealed secrets add to each workload, where a device is told of it.
    #[serde(default)]
    pub sealed_bytes: usize,
    /// Its workloads.
    pub slots: BTreeSet<Slot>,
    /// Workloads that found no device.
    pub unplaced: u32,
    /// Why each device that takes none of it does not.
    pub refusals: Vec<(DeviceId, String)>,
}

impl Deployed {
    /// Where it is, as placement says it.
    pub fn placement(&self) -> Placement {
        let Self { slots, unplaced, refusals, .. } = self;
        Placement { slots: slots.clone(), unplaced: *unplaced, refusals: refusals.clone() }
    }
}

/// What has been changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// Deployments that are stored anew.
    pub deployments: BTreeSet<DeploymentName>,
    /// Devices that get another desired state.
    pub devices: BTreeSet<DeviceId>,
}

/// Takes a deployment in, `fleet` being the devices as if nothing were placed on them: the devices
/// that get another desired state. `sealed_bytes` is what its secrets add to each workload.
///
/// # Errors
/// Why a device cannot be told all that it would have to run; nothing is changed.
pub fn deploy(
    deployments: &mut Deployments,
    deployment: Deployment,
    sealed_bytes: usize,
    now_ms: u64,
    fleet: &[Candidate],
) -> Result<BTreeSet<DeviceId>, String> {
    let name = deployment.name.clone();
    let revision = deployment.spec.digest();
    let before = deployments.get(&name).cloned();
    let told_the_same = before.as_ref().is_some_and(|before| {
        let policy = &before.deployment.image_policy;
        before.revision == revision && *policy == deployment.image_policy
    });
    let old = before.as_ref().map(|before| before.slots.clone()).unwrap_or_default();
    let placement = place(&deployment, &left_for(deployments, &name, fleet), &old);
    let touched: BTreeSet<DeviceId> = match told_the_same {
        true => placement.slots.symmetric_difference(&old).map(|(id, _)| id.clone()).collect(),
        false => placement.slots.union(&old).map(|(id, _)| id.clone()).collect(),
    };
    let Placement { slots, unplaced, refusals } = placement;
    let deployed = Deployed {
        deployment,
        revision,
        changed_ms: now_ms,
        as_of_ms: 0,
        pinned: false,
        sealed_bytes,
        slots,
        unplaced,
        refusals,
    };
    deployments.insert(name.clone(), deployed);
    let Some(why) = touched.iter().find_map(|id| too_much(deployments, id)) else {
        return Ok(touched);
    };
    match before {
        Some(before) => drop(deployments.insert(name, before)),
        None => drop(deployments.remove(&name)),
    }
    Err(why)
}

/// Places every deployment again: devices have come, gone or changed, or room has become free. One
/// that is pinned is let go where that moves nothing.
///
/// `fleet` is the devices as if nothing were placed on them.
pub fn place_again(deployments: &mut Deployments, fleet: &[Candidate]) -> Changes {
    let mut changes = Changes::default();
    let names: Vec<DeploymentName> = deployments.keys().cloned().collect();
    for name in names {
        let left = left_for(deployments, &name, fleet);
        let Some(deployed) = deployments.get_mut(&name) else {
            continue;
        };
        let placement = place(&deployed.deployment, &left, &deployed.slots);
        let is_pinned = deployed.pinned && placement.slots != deployed.slots;
        if is_pinned || (placement == deployed.placement() && !deployed.pinned) {
            continue;
        }
        deployed.pinned = false;
        let before = std::mem::replace(&mut deployed.slots, placement.slots);
        deployed.unplaced = placement.unplaced;
        deployed.refusals = placement.refusals;
        take_back(deployments, &name, &before);
        let slots = deployments.get(&name).map(|deployed| &deployed.slots);
        let moved = slots.into_iter().flat_map(|slots| slots.symmetric_difference(&before));
        changes.devices.extend(moved.map(|(id, _)| id.clone()));
        changes.deployments.insert(name);
    }
    changes
}

/// Gives one device all that is placed on another, under the names that it has there; gives the
/// deployments that have moved. Whether it fits is for [`place_again`] to say.
pub fn hand_over(
    deployments: &mut Deployments,
    from: &DeviceId,
    to: &DeviceId,
) -> BTreeSet<DeploymentName> {
    let mut moved = BTreeSet::new();
    for (name, deployed) in deployments {
        let before = deployed.slots.clone();
        let place = |(device, workload): Slot| match device == *from {
            true => (to.clone(), workload),
            false => (device, workload),
        };
        deployed.slots = std::mem::take(&mut deployed.slots).into_iter().map(place).collect();
        if deployed.slots != before {
            moved.insert(name.clone());
        }
    }
    moved
}

/// What a device should run, as follows from where deployments are; its secrets are not sealed yet.
pub fn workloads(deployments: &Deployments, id: &DeviceId) -> Vec<Workload> {
    let here = |deployed: &Deployed| -> Vec<Workload> {
        let slots = deployed.slots.iter().filter(|(device, _)| device == id);
        slots
            .map(|(_, workload)| Workload {
                id: workload.clone(),
                deployment: deployed.deployment.name.clone(),
                revision: deployed.revision,
                requires: deployed.deployment.requires(),
                policy: deployed.deployment.image_policy.clone(),
                spec: deployed.deployment.spec.clone(),
                sealed: Vec::new(),
            })
            .collect()
    };
    deployments.values().flat_map(here).collect()
}

/// Holds all that a device should run to the fleet's policy: an agent that cannot enforce it runs
/// none of it. Beyond the bounds that [`deploy`] keeps to, as far as a policy has bytes of its own.
pub fn govern(desired: &mut DesiredState, policy: Option<&ImagePolicy>) {
    desired.policy = policy.cloned();
    let feature = Feature::known(Feature::IMAGE_POLICY);
    for workload in desired.workloads.iter_mut().filter(|_| policy.is_some()) {
        if !workload.requires.contains(&feature) {
            workload.requires.push(feature.clone());
        }
    }
}

/// Why a device cannot be told all that it should run.
fn too_much(deployments: &Deployments, id: &DeviceId) -> Option<String> {
    let (held, workloads) = (Held::default(), workloads(deployments, id));
    let desired = DesiredState {
        held,
        at_ms: 0,
        reconnect_spread_ms: 0,
        policy: None,
        upgrade: None,
        workloads,
    };
    let here = |deployed: &Deployed| deployed.slots.iter().filter(|(on, _)| on == id).count();
    let sealed = deployments.values().map(|d| here(d).saturating_mul(d.sealed_bytes));
    let sealed = sealed.fold(0, usize::saturating_add);
    let bytes = cbor::encode(&desired).len().saturating_add(sealed);
    let count = desired.workloads.len();
    (count > DESIRED_WORKLOADS_MAX || bytes > DESIRED_BYTES_MAX).then(|| {
        format!(
            "device {id} would have {count} workloads in {bytes} bytes; a device takes \
             {DESIRED_WORKLOADS_MAX} workloads in {DESIRED_BYTES_MAX} bytes"
        )
    })
}

/// Takes back what has just been placed on devices that cannot be told so much.
fn take_back(deployments: &mut Deployments, name: &DeploymentName, before: &BTreeSet<Slot>) {
    let slots = deployments.get(name).map(|deployed| deployed.slots.clone()).unwrap_or_default();
    let added: BTreeSet<&DeviceId> = slots.difference(before).map(|(id, _)| id).collect();
    for id in added {
        let Some(why) = too_much(deployments, id) else {
            continue;
        };
        if let Some(deployed) = deployments.get_mut(name) {
            let placed = deployed.slots.len();
            deployed.slots.retain(|slot| slot.0 != *id || before.contains(slot));
            let taken = placed.saturating_sub(deployed.slots.len());
            let taken = u32::try_from(taken).unwrap_or(u32::MAX);
            deployed.unplaced = deployed.unplaced.saturating_add(taken);
            deployed.refusals.push((id.clone(), why));
        }
    }
}

/// What the devices have left for one deployment, beside all others.
fn left_for(
    deployments: &Deployments,
    name: &DeploymentName,
    fleet: &[Candidate],
) -> Vec<Candidate> {
    let mut taken: BTreeMap<&DeviceId, (u64, usize)> = BTreeMap::new();
    for deployed in deployments.values().filter(|deployed| deployed.deployment.name != *name) {
        let each = deployed.deployment.spec.resources.memory_bytes.unwrap_or(0);
        for (id, _) in &deployed.slots {
            let (bytes, count) = taken.entry(id).or_default();
            *bytes = bytes.saturating_add(each);
            *count = count.saturating_add(1);
        }
    }
    let left = |whole: &Candidate| {
        let (bytes, workloads) = taken.get(&whole.id).copied().unwrap_or_default();
        let memory_free_bytes = whole.memory_free_bytes.saturating_sub(bytes);
        Candidate { memory_free_bytes, workloads, ..whole.clone() }
    };
    fleet.iter().map(left).collect()
}

//! What a controller that was restored from an old backup takes over from devices that are ahead.
//!
//! A device's desired state is complete: it names every workload that the device was to run when it
//! was made, each with its template as it was then. It does not say how many workloads a deployment
//! had in all, nor by which labels devices were chosen: [`adopt`] says what is made of that.

use std::collections::{BTreeMap, BTreeSet};

use limpet_protocol::{DeviceId, Workload, WorkloadId};

use crate::deployment::{Count, Deployment};
use crate::placement::Slot;

/// A deployment as it is known. Times are those of the controller's wall clock, in milliseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// The deployment.
    pub deployment: Deployment,
    /// When an operator last changed it; 0 where only devices tell of it.
    pub changed_ms: u64,
    /// When the document was made that its template was taken from; 0 where it was not.
    pub as_of_ms: u64,
    /// Where its workloads are.
    pub slots: BTreeSet<Slot>,
}

/// Takes over what a device holds of one deployment: `held`, from a document made at `at_ms`. None
/// where there is nothing of it anywhere. The order in which devices are taken over does not matter.
///
/// - What an operator has changed since stays.
/// - Otherwise the device's workloads are what it holds, no more and no less.
/// - The template is that of the latest document that has one.
/// - Of numbered workloads there are to be as many as the highest number tells; where none is left,
///   none. The manifest stays.
/// - Labels are the store's: a deployment that the store lacks has none.
pub fn adopt(
    known: Option<Known>,
    device: &DeviceId,
    at_ms: u64,
    held: &[&Workload],
) -> Option<Known> {
    let mut known = known.or_else(|| held.first().map(|first| found(first)))?;
    if at_ms <= known.changed_ms {
        return Some(known);
    }
    known.slots.retain(|(id, _)| id != device);
    known.slots.extend(held.iter().map(|workload| (device.clone(), workload.id.clone())));
    if let Some(first) = held.first().filter(|_| at_ms > known.as_of_ms) {
        known.deployment.spec = first.spec.clone();
        known.deployment.image_policy = first.policy.clone();
        known.as_of_ms = at_ms;
    }
    known.deployment.count = count(known.deployment.count, &known.slots);
    Some(known)
}

fn found(workload: &Workload) -> Known {
    let deployment = Deployment {
        name: workload.deployment.clone(),
        spec: workload.spec.clone(),
        image_policy: workload.policy.clone(),
        count: at_least(&workload.id),
        select: BTreeMap::new(),
    };
    Known { deployment, changed_ms: 0, as_of_ms: 0, slots: BTreeSet::new() }
}

/// The count that one workload tells of.
fn at_least(id: &WorkloadId) -> Count {
    match id.as_str().split_once('.').and_then(|(_, index)| index.parse::<u32>().ok()) {
        Some(index) => Count::Replicas(index.saturating_add(1)),
        None => Count::Everywhere,
    }
}

fn count(before: Count, slots: &BTreeSet<Slot>) -> Count {
    let told = slots.iter().map(|(_, id)| at_least(id)).reduce(|a, b| match (a, b) {
        (Count::Replicas(a), Count::Replicas(b)) => Count::Replicas(a.max(b)),
        (Count::Everywhere, _) | (_, Count::Everywhere) => Count::Everywhere,
    });
    match (told, before) {
        (Some(told), _) => told,
        (None, Count::Replicas(_)) => Count::Replicas(0),
        (None, Count::Everywhere) => Count::Everywhere,
    }
}

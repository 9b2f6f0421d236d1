//! Operators, who change their minds.

use std::collections::BTreeMap;

use limpet_controller_core::{Count, Deployment};
use limpet_protocol::{DeploymentName, Resources, Restart, Stop, WorkloadSpec};

use crate::random::Random;

/// What an operator asks for.
#[derive(Debug, Clone)]
pub(crate) enum Ask {
    Apply(Box<Deployment>),
    Scale(DeploymentName, u32),
    Delete(DeploymentName),
    /// Devices that are ahead are to follow the store.
    Recover,
}

/// Deployments that there may be.
const DEPLOYMENTS: u64 = 5;
/// Images that there may be.
const IMAGES: u64 = 4;

impl Ask {
    /// Anything, for a fleet of this size.
    pub(crate) fn any(fleet: u64, random: &mut Random) -> Self {
        let name: DeploymentName = format!("web-{}", random.below(DEPLOYMENTS)).parse().unwrap();
        let replicas = |random: &mut Random| {
            // At times more than one device can be told of: that is refused.
            if random.percent(1) && fleet <= 2 {
                return 600;
            }
            u32::try_from(random.below(fleet + fleet / 2 + 2)).unwrap()
        };
        match random.below(10) {
            0 => Self::Delete(name),
            1..=3 => Self::Scale(name, replicas(random)),
            _ => {
                let count = match random.percent(30) {
                    true => Count::Everywhere,
                    false => Count::Replicas(replicas(random)),
                };
                let select = match random.percent(30) {
                    true => BTreeMap::from([("site".to_owned(), "berlin".to_owned())]),
                    false => BTreeMap::new(),
                };
                let (spec, image_policy) = (spec(random), None);
                Self::Apply(Box::new(Deployment { name, spec, image_policy, count, select }))
            }
        }
    }
}

fn spec(random: &mut Random) -> WorkloadSpec {
    let memory_bytes = random.percent(30).then(|| (1 + random.below(8)) << 26);
    let image = format!("image-{}", random.below(IMAGES));
    WorkloadSpec {
        args: vec![random.below(3).to_string()],
        resources: Resources { memory_bytes, cpu_millis: None, pids: None },
        restart: match random.below(10) {
            0 => Restart::Never,
            1 => Restart::OnFailure,
            _ => Restart::Always,
        },
        stop: Stop { signal: None, grace_ms: 1000 },
        ..WorkloadSpec::of(image)
    }
}

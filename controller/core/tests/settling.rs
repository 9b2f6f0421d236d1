//! When a change has settled, and what is said when it cannot.
#![expect(clippy::unwrap_used, reason = "a test stops where its premise fails")]

use std::collections::BTreeMap;

use limpet_controller_core::placement::Placement;
use limpet_controller_core::settling::{STEADY_MS, Seen, Settling, settle};
use limpet_controller_core::{Count, Deployment, Presence};
use limpet_protocol::{Digest, Exit, Phase, WorkloadSpec, WorkloadStatus};

const REVISION: Digest = Digest([1; 32]);

fn status(phase: Phase) -> WorkloadStatus {
    WorkloadStatus {
        deployment: "web".parse().unwrap(),
        revision: REVISION,
        phase,
        container: 1,
        pid: None,
        restarts: 0,
        exit: None,
        message: "why".to_owned(),
    }
}

/// How a deployment of one workload is judged.
fn judged(status: Option<&WorkloadStatus>, presence: Presence, age_ms: u64) -> String {
    let spec = WorkloadSpec::of("i");
    let name = "web".parse().unwrap();
    let (count, select) = (Count::Replicas(1), BTreeMap::new());
    let deployment = Deployment { name, spec, image_policy: None, count, select };
    let slots = [("dev".parse().unwrap(), "web.0".parse().unwrap())].into();
    let placement = Placement { slots, ..Placement::default() };
    let seen = Seen { name: "dev/web.0".to_owned(), presence, status, age_ms };
    match settle(&deployment, REVISION, &placement, &[seen], 0) {
        Settling::Settled => "settled".to_owned(),
        Settling::Progressing => "progressing".to_owned(),
        Settling::Stuck(why) => why,
    }
}

#[test]
fn a_workload_is_judged_by_what_its_device_says() {
    let of = |phase| status(phase);
    let crashing = WorkloadStatus {
        exit: Some(Exit::Code(1)),
        restarts: 3,
        message: "exited with 1".to_owned(),
        ..status(Phase::Backoff)
    };
    let once = WorkloadStatus { restarts: 1, ..crashing.clone() };
    let pulling = WorkloadStatus { message: "not found".to_owned(), ..crashing.clone() };
    let other = WorkloadStatus { revision: Digest([2; 32]), ..status(Phase::Running) };
    let replacing = WorkloadStatus { message: String::new(), ..other.clone() };
    for (status, age_ms, says) in [
        (Some(of(Phase::Running)), STEADY_MS, "settled"),
        (Some(of(Phase::Running)), STEADY_MS - 1, "progressing"),
        (Some(of(Phase::Exited)), 0, "settled"),
        (Some(of(Phase::Pulling)), 0, "progressing"),
        (Some(of(Phase::Failed)), 0, "dev/web.0: why"),
        (Some(of(Phase::Backoff)), 0, "dev/web.0: why"),
        (Some(crashing), 0, "dev/web.0: exited with 1 again and again (3 restarts)"),
        (Some(once), 0, "progressing"),
        (Some(pulling), 0, "dev/web.0: not found"),
        (Some(other), STEADY_MS, "dev/web.0: why"),
        (Some(replacing), STEADY_MS, "progressing"),
        (None, 0, "progressing"),
    ] {
        assert_eq!(
            judged(status.as_ref(), Presence::Online { since_ms: 0 }, age_ms),
            says,
            "{status:?}"
        );
    }
    let offline = judged(Some(&of(Phase::Running)), Presence::Offline { since_ms: 0 }, STEADY_MS);
    assert_eq!(offline, "every device chosen is offline (dev/web.0); it runs when they connect");
    let unknown = judged(Some(&of(Phase::Running)), Presence::Unknown { since_ms: 0 }, STEADY_MS);
    assert_eq!(unknown, "progressing");
}

//! Where workloads go, and that they stay there.
#![expect(clippy::unwrap_used, reason = "a test stops where its premise fails")]

use std::collections::{BTreeMap, BTreeSet};

use limpet_controller_core::placement::{Candidate, Slot, place};
use limpet_controller_core::{Count, Deployment, Deployments, Presence, plan};
use limpet_protocol::{DesiredState, DigestRule, Feature, Held, ImagePolicy, WorkloadSpec};
use proptest::prelude::*;

fn device(number: u8, online: bool) -> Candidate {
    Candidate {
        id: format!("dev-{number}").parse().unwrap(),
        labels: [("site".try_into().unwrap(), "berlin".try_into().unwrap())].into(),
        features: vec![Feature::known(Feature::LIMIT_MEMORY)],
        presence: match online {
            true => Presence::Online { since_ms: 0 },
            false => Presence::Offline { since_ms: 0 },
        },
        on_hold: false,
        memory_free_bytes: 1 << 30,
        workloads: 0,
    }
}

fn deployment(count: Count) -> Deployment {
    let spec = WorkloadSpec::of("i");
    Deployment {
        name: "web".parse().unwrap(),
        spec,
        image_policy: None,
        count,
        select: BTreeMap::new(),
    }
}

/// Slots as `DEVICE/WORKLOAD`, in order.
fn shown(slots: &BTreeSet<Slot>) -> Vec<String> {
    slots.iter().map(|(device, workload)| format!("{device}/{workload}")).collect()
}

#[test]
fn replicas_spread_over_devices_that_are_online() {
    let fleet = [device(0, false), device(1, true), device(2, true)];
    let placed = place(&deployment(Count::Replicas(3)), &fleet, &BTreeSet::new());
    assert_eq!(shown(&placed.slots), ["dev-1/web.0", "dev-1/web.2", "dev-2/web.1"]);
}

#[test]
fn a_policy_goes_where_it_is_enforced_and_is_told_without_another_revision() {
    let mut able = device(1, true);
    able.features.push(Feature::known(Feature::IMAGE_POLICY));
    let (id, fleet) = (able.id.clone(), [device(0, true), able]);
    let policy = ImagePolicy { digest: DigestRule::Required, ..ImagePolicy::default() };
    let bare = deployment(Count::Replicas(1));
    let strict = Deployment { image_policy: Some(policy.clone()), ..bare.clone() };
    let placed = place(&strict, &fleet, &BTreeSet::new());
    assert_eq!(shown(&placed.slots), ["dev-1/web.0"]);
    assert_eq!(placed.refusals[0].1, "its agent or kernel cannot do image.policy");

    let mut deployments = Deployments::new();
    plan::deploy(&mut deployments, bare, 0, 1, &fleet[1..]).unwrap();
    let before = plan::workloads(&deployments, &id);
    let touched = plan::deploy(&mut deployments, strict, 0, 2, &fleet[1..]).unwrap();
    assert!(touched.contains(&id));
    let workloads = plan::workloads(&deployments, &id);
    assert_eq!((workloads[0].revision, &before[0].policy), (before[0].revision, &None));
    assert_eq!(workloads[0].policy, Some(policy.clone()));
    assert_eq!(workloads[0].requires, [Feature::known(Feature::IMAGE_POLICY)]);

    // The fleet's is asked of all that a device runs, once.
    let held = Held { epoch: 1, generation: 1 };
    let workloads = [before, workloads].concat();
    let mut desired = DesiredState {
        held,
        at_ms: 0,
        reconnect_spread_ms: 0,
        policy: None,
        upgrade: None,
        workloads,
    };
    let plain = desired.clone();
    plan::govern(&mut desired, None);
    assert_eq!(desired, plain);
    plan::govern(&mut desired, Some(&policy));
    assert_eq!(desired.policy, Some(policy));
    let all = desired.workloads.iter().map(|workload| workload.requires.len());
    assert_eq!(all.collect::<Vec<_>>(), [1, 1]);
}

#[test]
fn who_is_away_longest_comes_last() {
    let away = [
        Presence::Lost { since_ms: 0 },
        Presence::Offline { since_ms: 0 },
        Presence::Asleep { since_ms: 0, for_ms: 1 },
        Presence::Online { since_ms: 0 },
    ];
    let mut fleet: Vec<Candidate> = (0..4).map(|n| device(n, true)).collect();
    for (device, presence) in fleet.iter_mut().zip(away) {
        device.presence = presence;
        let placed =
            place(&deployment(Count::Replicas(1)), std::slice::from_ref(device), &BTreeSet::new());
        assert_eq!(
            placed.slots.len(),
            1,
            "{presence}: where nobody else is, it is given all the same"
        );
    }
    for best in [3usize, 2, 1, 0] {
        let placed = place(&deployment(Count::Replicas(1)), &fleet, &BTreeSet::new());
        assert_eq!(shown(&placed.slots), [format!("dev-{best}/web.0")]);
        let stays = place(
            &deployment(Count::Replicas(1)),
            &[device(9, true), fleet[best].clone()],
            &placed.slots,
        );
        assert_eq!(stays.slots, placed.slots, "what is placed stays");
        fleet[best].on_hold = true;
        let others = fleet.iter().filter(|device| !device.on_hold).count();
        if others > 0 {
            let placed = place(&deployment(Count::Replicas(1)), &fleet, &BTreeSet::new());
            assert_ne!(shown(&placed.slots), [format!("dev-{best}/web.0")], "on hold");
        }
    }
}

#[test]
fn a_device_whose_owner_forbids_something_says_so() {
    let privileged = Feature::known(Feature::PRIVILEGED);
    let (mut forbids, mut allows, older) = (device(0, true), device(1, true), device(2, true));
    forbids.features.push(privileged.denied());
    allows.features.push(privileged);
    let mut deployment = deployment(Count::Everywhere);
    deployment.spec.host.privileged = true;
    let placed = place(&deployment, &[forbids, allows, older], &BTreeSet::new());
    assert_eq!(shown(&placed.slots), ["dev-1/web"]);
    let why: Vec<&str> = placed.refusals.iter().map(|(_, why)| why.as_str()).collect();
    let old = "its agent or kernel cannot do privileged";
    assert_eq!(why, ["its owner does not allow privileged", old]);
}

#[test]
fn each_unfit_device_says_why() {
    let (mut small, mut old, mut elsewhere) = (device(0, true), device(1, true), device(2, true));
    small.memory_free_bytes = 1 << 20;
    old.features.clear();
    elsewhere.labels = [("site".try_into().unwrap(), "oslo".try_into().unwrap())].into();
    let mut deployment = deployment(Count::Replicas(1));
    deployment.spec.resources.memory_bytes = Some(64 << 20);
    deployment.select = [("site".to_owned(), "berlin".to_owned())].into();
    let placed = place(&deployment, &[small, old, elsewhere], &BTreeSet::new());
    assert_eq!(placed.unplaced, 1);
    let reasons: Vec<&str> = placed.refusals.iter().map(|(_, why)| why.as_str()).collect();
    assert_eq!(
        reasons,
        [
            "needs 67108864 bytes of memory, has 1048576 free",
            "its agent or kernel cannot do limit.memory",
            "needs site=berlin, has site=oslo",
        ]
    );
}

#[test]
fn memory_that_is_promised_twice_is_not_there() {
    let mut deployment = deployment(Count::Replicas(3));
    deployment.spec.resources.memory_bytes = Some(600 << 20);
    let placed = place(&deployment, &[device(0, true), device(1, true)], &BTreeSet::new());
    assert_eq!((placed.slots.len(), placed.unplaced), (2, 1));
    assert!(
        placed.refusals.iter().all(|(_, why)| why == "memory is full with 1 of this deployment")
    );
}

#[test]
fn who_could_not_speak_yet_is_as_good_as_online() {
    let unknown = Candidate { presence: Presence::Unknown { since_ms: 0 }, ..device(0, false) };
    let placed =
        place(&deployment(Count::Replicas(2)), &[unknown, device(1, true)], &BTreeSet::new());
    assert_eq!(shown(&placed.slots), ["dev-0/web.0", "dev-1/web.1"]);
}

#[test]
fn a_replica_that_has_grown_too_large_moves_or_is_refused() {
    let mut grown = deployment(Count::Replicas(2));
    let current: BTreeSet<Slot> =
        ["web.0", "web.1"].map(|id| ("dev-0".parse().unwrap(), id.parse().unwrap())).into();
    grown.spec.resources.memory_bytes = Some(600 << 20);
    let placed = place(&grown, &[device(0, true), device(1, true)], &current);
    assert_eq!(shown(&placed.slots), ["dev-0/web.0", "dev-1/web.1"]);
    let placed = place(&grown, &[device(0, true)], &current);
    assert_eq!((placed.slots.len(), placed.unplaced), (1, 1));
}

proptest! {
    #[test]
    fn nothing_moves_that_need_not(
        online in prop::collection::vec(any::<bool>(), 1..8),
        later in prop::collection::vec(any::<bool>(), 1..8),
        first in 0u32..20,
        second in 0u32..20,
    ) {
        let fleet = |online: &[bool]| -> Vec<Candidate> {
            (0u8..).zip(online).map(|(number, online)| device(number, *online)).collect()
        };
        let (before_fleet, after_fleet) = (fleet(&online), fleet(&later));
        let before = place(&deployment(Count::Replicas(first)), &before_fleet, &BTreeSet::new());
        prop_assert_eq!(before.slots.len(), first as usize);
        let after = place(&deployment(Count::Replicas(second)), &after_fleet, &before.slots);
        prop_assert_eq!(after.slots.len(), second as usize);
        // Online or not, a replica that is still wanted stays on a device that is still there.
        for slot in &before.slots {
            let wanted = (0..second).any(|n| slot.1.as_str() == format!("web.{n}"));
            let there = after_fleet.iter().any(|device| device.id == slot.0);
            prop_assert_eq!(after.slots.contains(slot), wanted && there);
        }
        // The same again changes nothing.
        let again = place(&deployment(Count::Replicas(second)), &after_fleet, &after.slots);
        prop_assert_eq!(again.slots, after.slots);
    }

    #[test]
    fn everywhere_is_each_fit_device_once(online in prop::collection::vec(any::<bool>(), 0..8)) {
        let fleet: Vec<Candidate> =
            (0u8..).zip(&online).map(|(number, online)| device(number, *online)).collect();
        let placed = place(&deployment(Count::Everywhere), &fleet, &BTreeSet::new());
        let devices: BTreeSet<_> = placed.slots.iter().map(|(device, _)| device.clone()).collect();
        prop_assert_eq!(devices.len(), fleet.len());
        prop_assert_eq!(placed.slots.len(), fleet.len());
    }
}

#[test]
fn a_device_that_takes_another_s_place_has_what_that_one_had_and_once_what_is_everywhere() {
    let fleet = [device(0, true), device(1, true), device(2, true)];
    let [old, new] = ["dev-0", "dev-2"].map(|id| id.parse().unwrap());
    let mut deployments = Deployments::new();
    let named = |name: &str, count| Deployment { name: name.parse().unwrap(), ..deployment(count) };
    for asked in [named("web", Count::Replicas(2)), named("all", Count::Everywhere)] {
        plan::deploy(&mut deployments, asked, 0, 0, &fleet).unwrap();
    }
    let slots = |deployments: &Deployments, name: &str| {
        shown(&deployments[&name.parse::<limpet_protocol::DeploymentName>().unwrap()].slots)
    };
    assert_eq!(slots(&deployments, "web"), ["dev-0/web.0", "dev-1/web.1"]);
    let moved = plan::hand_over(&mut deployments, &old, &new);
    assert_eq!(moved.iter().map(|name| name.to_string()).collect::<Vec<_>>(), ["all", "web"]);
    assert_eq!(slots(&deployments, "web"), ["dev-1/web.1", "dev-2/web.0"]);
    assert_eq!(slots(&deployments, "all"), ["dev-1/all", "dev-2/all"]);
    // Placement finds nothing to do: what has moved stays.
    assert_eq!(plan::place_again(&mut deployments, &fleet[1..]), plan::Changes::default());
    assert!(plan::hand_over(&mut deployments, &old, &new).is_empty());
}

//! What is taken over from devices that are ahead.
#![expect(clippy::unwrap_used, reason = "a test stops where its premise fails")]

use limpet_controller_core::recover::{Known, adopt};
use limpet_controller_core::{Count, Deployment};
use limpet_protocol::{DeviceId, Workload, WorkloadSpec};
use proptest::prelude::*;

fn workload(id: &str, image: &str) -> Workload {
    let spec = WorkloadSpec::of(image);
    Workload {
        sealed: vec![],
        id: id.parse().unwrap(),
        deployment: "web".parse().unwrap(),
        revision: spec.digest(),
        requires: vec![],
        policy: None,
        spec,
    }
}

/// `web` with this image, changed at 100, with workloads on these devices.
fn stored(count: Count, slots: &[(&str, &str)]) -> Known {
    let select = [("site".to_owned(), "berlin".to_owned())].into();
    Known {
        deployment: Deployment {
            name: "web".parse().unwrap(),
            spec: WorkloadSpec::of("old"),
            image_policy: None,
            count,
            select,
        },
        changed_ms: 100,
        as_of_ms: 0,
        slots: slots.iter().map(|(d, w)| (d.parse().unwrap(), w.parse().unwrap())).collect(),
    }
}

/// A device, the time of its document, and what is in it.
type Document = (DeviceId, u64, Vec<Workload>);

fn document(device: &str, at_ms: u64, held: &[(&str, &str)]) -> Document {
    let workloads = held.iter().map(|(id, image)| workload(id, image)).collect();
    (device.parse().unwrap(), at_ms, workloads)
}

fn adopted(known: Option<Known>, documents: &[Document]) -> Option<Known> {
    documents.iter().fold(known, |known, (device, at_ms, held)| {
        adopt(known, device, *at_ms, &held.iter().collect::<Vec<_>>())
    })
}

fn shown(known: Option<Known>) -> String {
    let Some(known) = known else { return "nothing".to_owned() };
    let slots: Vec<String> = known.slots.iter().map(|(d, w)| format!("{d}/{w}")).collect();
    let Deployment { spec, count, select, .. } = known.deployment;
    format!("{} {count:?} {} {}", spec.image, select.len(), slots.join(" "))
}

#[test]
fn devices_say_what_runs_and_the_store_what_they_cannot_know() {
    let two = || Some(stored(Count::Replicas(2), &[("a", "web.0"), ("b", "web.1")]));
    let everywhere = || Some(stored(Count::Everywhere, &[("a", "web"), ("b", "web")]));
    let cases = [
        // Another revision.
        (
            two(),
            vec![document("a", 200, &[("web.0", "new")]), document("b", 200, &[("web.1", "new")])],
            "new Replicas(2) 1 a/web.0 b/web.1",
        ),
        // One more of the same.
        (
            two(),
            vec![document("c", 200, &[("web.2", "old")])],
            "old Replicas(3) 1 a/web.0 b/web.1 c/web.2",
        ),
        // One fewer; the template that the other device got before that is not forgotten.
        (
            two(),
            vec![document("b", 300, &[]), document("a", 200, &[("web.0", "new")])],
            "new Replicas(1) 1 a/web.0",
        ),
        // A device that was away during the last change is brought up to it.
        (
            two(),
            vec![
                document("a", 200, &[("web.0", "newer")]),
                document("b", 150, &[("web.1", "new")]),
            ],
            "newer Replicas(2) 1 a/web.0 b/web.1",
        ),
        // Deleted: nothing runs, and the manifest stays.
        (two(), vec![document("a", 200, &[]), document("b", 200, &[])], "old Replicas(0) 1 "),
        (everywhere(), vec![document("a", 200, &[])], "old Everywhere 1 b/web"),
        // The operator has spoken since.
        (
            two(),
            vec![document("a", 99, &[("web.0", "new"), ("web.5", "new")])],
            "old Replicas(2) 1 a/web.0 b/web.1",
        ),
        // The store does not know it.
        (None, vec![document("a", 5, &[("web.3", "new")])], "new Replicas(4) 0 a/web.3"),
        (None, vec![document("a", 5, &[])], "nothing"),
    ];
    for (known, documents, says) in cases {
        assert_eq!(shown(adopted(known, &documents)), says, "{documents:?}");
    }
}

proptest! {
    /// Whatever the order, every device keeps what it holds, and the latest template is in force.
    #[test]
    fn the_order_of_devices_does_not_matter(
        documents in prop::collection::btree_map(
            0u8..6, (101u64..200, prop::collection::btree_set(0u8..4, 0..3)), 1..6,
        ),
        is_stored: bool,
        turn in 0usize..6,
    ) {
        let mut all: Vec<Document> = documents
            .iter()
            .map(|(device, (at_ms, ids))| {
                let image = format!("at-{at_ms}");
                let held = ids.iter().map(|n| workload(&format!("web.{n}"), &image)).collect();
                (format!("dev-{device}").parse().unwrap(), *at_ms, held)
            })
            .collect();
        let known = || is_stored.then(|| stored(Count::Replicas(1), &[("dev-0", "web.0")]));
        let once = adopted(known(), &all);
        let len = all.len();
        all.rotate_left(turn % len);
        prop_assert_eq!(&adopted(known(), &all), &once);
        all.reverse();
        prop_assert_eq!(&adopted(known(), &all), &once);
        let Some(once) = once else { return Ok(()) };
        for (device, _, held) in &all {
            let kept = once.slots.iter().filter(|(id, _)| id == device).count();
            prop_assert_eq!(kept, held.len());
        }
        let latest = all.iter().filter(|(_, _, held)| !held.is_empty()).map(|(_, at, _)| at).max();
        if let Some(latest) = latest {
            prop_assert_eq!(once.deployment.spec.image, format!("at-{latest}"));
        }
    }
}

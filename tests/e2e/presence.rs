//! Who is there, told honestly: announced sleep, silence, loss, and how old it all is.

use limpet_tests::{Agent, Controller, Fleet, Image, Lab, Registry, Value};
use rustix::process::Signal;

fn device(fleet: &Fleet, id: &str) -> Value {
    fleet.controller.get(&format!("/api/v1/devices/{id}"))
}

fn until(fleet: &Fleet, id: &str, presence: &str) -> Value {
    fleet.eventually(&format!("{id} to be {presence}"), || {
        let device = device(fleet, id);
        (device["presence"] == presence).then_some(device)
    })
}

/// Kinds of a device's events, in order.
fn kinds(fleet: &Fleet, id: &str) -> Vec<String> {
    let events = fleet.controller.list(&format!("/api/v1/events?device={id}&limit=10000"));
    events.iter().map(|event| event["kind"].as_str().unwrap().to_owned()).collect()
}

/// A fleet whose lost devices are so soon; its devices have these keep-alives, in seconds.
fn fleet(keep_alives_s: &[u16]) -> Fleet {
    let lab = Lab::new();
    let registry = Registry::start(&lab);
    registry.push("library/box", "latest", &Image::busybox());
    let controller = Controller::secured(&lab, &["--lost-after", "1s"]);
    let agent = |(n, seconds): (usize, &u16)| {
        let mirror = format!("[registries.mirrors]\n'docker.io' = ['{}']\n", registry.host);
        let config = format!("keep_alive_s = {seconds}\n{mirror}");
        Agent::with_config(&lab, &format!("dev-{n}"), &controller, &config)
    };
    let agents = keep_alives_s.iter().enumerate().map(agent).collect();
    let fleet = Fleet { agents, controller, registry, lab };
    fleet.until_online(keep_alives_s.len());
    fleet
}

#[test]
fn a_device_that_sleeps_is_asleep_until_it_said_also_for_a_controller_that_begins_anew() {
    let mut fleet = Fleet::start(2);
    fleet.controller.ok(&["run", "web", "--image=box", "--everywhere"]);
    fleet.agents[0].ask_ok(&["sleep", "--for", "8h"]);
    let asleep = until(&fleet, "dev-0", "asleep");
    let table = fleet.controller.ok(&["get", "devices"]);
    let minute = &asleep["asleep_until"].as_str().unwrap()[..16];
    assert!(table.contains(&format!("asleep until {minute}")), "{table}");
    fleet.eventually("its session to end", || {
        let workloads = fleet.controller.ok(&["get", "workloads"]);
        let told =
            workloads.lines().any(|line| line.contains("running") && line.contains("asleep"));
        (told && workloads.contains(" ago (asleep)")).then_some(())
    });
    // What sleeps is deferred, and what is placed stays.
    let web = fleet.controller.get("/api/v1/deployments/web");
    assert_eq!(
        (&web["status"], &web["running"], &web["running_unheard"]),
        (&"settled".into(), &1.into(), &1.into())
    );
    let placed = fleet.controller.ok(&["run", "more", "--image=box"]);
    assert!(placed.contains("1 of 1 running"), "{placed}");
    assert_eq!(fleet.workloads("more")[0]["device"], "dev-1", "who is online comes first");

    fleet.controller.kill();
    fleet.controller.restart();
    until(&fleet, "dev-1", "online");
    let again = device(&fleet, "dev-0");
    assert_eq!(again["presence"], "asleep", "{again}");
    assert!(again["heard_age_s"].is_u64(), "{again}");
    let kinds = kinds(&fleet, "dev-0");
    assert_eq!(kinds.iter().filter(|kind| *kind == "device-asleep").count(), 1, "{kinds:?}");
    assert!(!kinds.iter().any(|kind| kind == "device-offline"), "{kinds:?}");
    fleet.agents[0].kill();
    fleet.agents[0].restart();
    until(&fleet, "dev-0", "online");
}

#[test]
fn a_device_that_falls_silent_is_missed_after_its_own_keep_alive_and_then_lost() {
    let mut fleet = fleet(&[6, 20, 6]);
    fleet.controller.ok(&["run", "web", "--image=box", "--everywhere"]);
    // The power goes: nobody says goodbye. The slow one is silent for longer than the quick one.
    for quiet in [1, 0] {
        fleet.agents[quiet].process.signal(Signal::STOP);
    }
    // It is offline for a second only, before it is lost: its event stays.
    fleet.eventually("dev-0 to be missed", || {
        kinds(&fleet, "dev-0").iter().any(|kind| kind == "device-offline").then_some(())
    });
    assert_eq!(device(&fleet, "dev-1")["presence"], "online", "its keep-alive is longer");
    until(&fleet, "dev-0", "lost");
    until(&fleet, "dev-1", "lost");
    assert_eq!(device(&fleet, "dev-2")["presence"], "online");
    assert!(!kinds(&fleet, "dev-2").iter().any(|kind| kind == "device-offline"));
    let table = fleet.controller.ok(&["get", "workloads", "web"]);
    assert_eq!(table.matches(" ago (lost)").count(), 2, "{table}");

    fleet.controller.kill();
    fleet.controller.restart();
    until(&fleet, "dev-2", "online");
    for (id, agent) in [("dev-0", 0), ("dev-1", 1)] {
        assert_eq!(device(&fleet, id)["presence"], "lost");
        let kinds = kinds(&fleet, id);
        let of = |what: &str| kinds.iter().filter(|kind| *kind == what).count();
        assert_eq!((of("device-offline"), of("device-lost")), (1, 1), "{kinds:?}");
        fleet.agents[agent].process.signal(Signal::CONT);
    }
    for id in ["dev-0", "dev-1"] {
        until(&fleet, id, "online");
    }
}

/// When the store was last written to, and how large it is.
fn store(fleet: &Fleet) -> Vec<(std::time::SystemTime, u64)> {
    let folder = fleet.lab.path("controller");
    let about = |name: &str| std::fs::metadata(folder.join(name)).unwrap();
    ["limpet.db", "limpet.db-wal"]
        .map(about)
        .iter()
        .map(|f| (f.modified().unwrap(), f.len()))
        .collect()
}

#[test]
fn a_fleet_at_rest_is_heard_and_writes_nothing_to_the_store() {
    let fleet = Fleet::start(1);
    fleet.controller.ok(&["run", "web", "--image=box"]);
    let age = || device(&fleet, "dev-0")["heard_age_s"].as_u64().unwrap();
    // Twice a sign of life: what came between the first and the second was nothing else.
    let sign_of_life = || {
        fleet.eventually("silence", || (age() >= 3).then_some(()));
        fleet.eventually("a sign of life", || (age() < 2).then_some(()));
    };
    sign_of_life();
    let before = store(&fleet);
    sign_of_life();
    assert_eq!(store(&fleet), before);
}

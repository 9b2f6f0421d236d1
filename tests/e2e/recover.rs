//! A controller that comes back from an old backup rolls nothing back, until somebody says so.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use limpet_tests::{Agent, Fleet, Value, start_time};

/// What runs, by workload and device: its pid, and since when.
fn running(fleet: &Fleet) -> Vec<(String, u64, Option<u64>)> {
    let all = fleet.controller.list("/api/v1/workloads");
    let of = |w: &Value| {
        let name = format!("{}/{}", w["device"].as_str()?, w["id"].as_str()?);
        let pid = w["pid"].as_u64()?;
        Some((name, pid, start_time(pid)))
    };
    all.iter().filter_map(of).collect()
}

fn alive(all: &[(String, u64, Option<u64>)]) {
    for (name, pid, began) in all {
        assert!(began.is_some() && start_time(*pid) == *began, "{name} was restarted");
    }
}

/// On one device, by a label that no device's desired state names.
const SPOT: &[&str] = &["run", "spot", "--image=box", "--everywhere", "--select", "name=dev-0"];

/// Three devices, of which the store in the backup knows two, and that store's `web` and `gone`;
/// since then `web` has another revision and one more replica, `late` and `spot` have come and `gone` is gone.
/// The controller runs on what was restored from the backup.
fn restored() -> (Fleet, Vec<(String, u64, Option<u64>)>) {
    let mut fleet = Fleet::start(2);
    let path = fleet.lab.path("backup");
    let file = path.display().to_string();
    let controller = &fleet.controller;
    controller.ok(&["run", "web", "--image=box", "--replicas=2", "--env", "V=old"]);
    controller.ok(&["run", "gone", "--image=box"]);
    controller.ok(&["run", "same", "--image=box", "--everywhere", "--select", "name=dev-1"]);
    let said = controller.ok(&["backup", &file]);
    assert!(said.contains("with 2 devices, 3 deployments, "), "{said}");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!PathBuf::from(format!("{file}.part")).exists());

    let lab = &fleet.lab;
    let third = Agent::start(lab, "dev-2", &fleet.controller, &fleet.registry);
    fleet.agents.push(third);
    fleet.until_online(3);
    let controller = &fleet.controller;
    controller.ok(&["run", "web", "--image=box", "--replicas=3", "--env", "V=new"]);
    controller.ok(&["run", "late", "--image=box", "--select", "name=dev-2"]);
    controller.ok(&["delete", "gone"]);
    controller.ok(SPOT);
    fleet.until_phases("web", &["running"; 3]);
    let before = running(&fleet);
    assert_eq!(before.len(), 6, "{before:?}");

    fleet.controller.stop();
    let fresh = fleet.lab.path("restored");
    let (folder, occupied) = (fresh.display().to_string(), fleet.lab.path("controller"));
    let occupied = occupied.display().to_string();
    let why = fleet.controller.fails(&["restore", &file, "--data-dir", &occupied]);
    assert!(why.contains("already holds a store"), "{why}");
    let said = fleet.controller.ok(&["restore", &file, "--data-dir", &folder]);
    assert!(said.contains("2 devices, 3 deployments, "), "{said}");
    fleet.controller.restart_on(&fresh);
    // Of this one the backup knows nothing: it joins once more.
    fleet.agents[2].kill();
    fleet.agents[2].join(fleet.controller.invitation());
    fleet.agents[2].restart();
    fleet.until_online(3);
    fleet.eventually("all to be on hold", || {
        (fleet.controller.list("/api/v1/recover").len() == 3).then_some(())
    });
    alive(&before);
    (fleet, before)
}

#[test]
fn devices_that_are_ahead_are_adopted_as_they_are() {
    let (fleet, before) = restored();
    let controller = &fleet.controller;
    let table = controller.ok(&["get", "devices"]);
    assert_eq!(table.matches("online, on hold").count(), 3, "{table}");
    let told = controller.ok(&["describe", "deployment", "web"]);
    assert!(told.contains("stuck") && told.contains("`limpet recover`"), "{told}");
    let said = controller.ok(&["recover", "dev-2"]);
    assert!(said.contains("--adopt dev-2: the controller takes over late.0, web.2"), "{said}");
    assert!(said.contains("--override dev-2: the device ends late.0, web.2"), "{said}");
    for (args, says) in [
        (&["recover", "--adopt", "dev-9"][..], "there is no device dev-9"),
        (&["recover", "--override", "dev-9"], "there is no device dev-9"),
    ] {
        let why = controller.fails(args);
        assert!(why.contains(says), "{why}");
    }
    assert_eq!(controller.limpet(&["recover", "--adopt", "--override"]).status, 2);

    let said = controller.ok(&["recover", "--adopt"]);
    assert_eq!(said, "device/dev-0 adopted\ndevice/dev-1 adopted\ndevice/dev-2 adopted\n");
    assert_eq!(controller.ok(&["recover"]), "no device is on hold\n");
    fleet.eventually("all to be settled as the devices have it", || {
        let all = controller.list("/api/v1/deployments");
        let of =
            |d: &Value| format!("{} {}/{} {}", d["name"], d["running"], d["desired"], d["status"]);
        let now: Vec<String> = all.iter().map(of).collect();
        let expected = [
            "\"gone\" 0/0 \"settled\"",
            "\"late\" 1/1 \"settled\"",
            "\"same\" 1/1 \"settled\"",
            "\"spot\" 1/1 \"stuck\"",
            "\"web\" 3/3 \"settled\"",
        ];
        (now == expected).then_some(())
    });
    let manifest = controller.ok(&["get", "deployments", "web", "-o", "yaml"]);
    assert!(manifest.contains("V: new") && manifest.contains("replicas: 3"), "{manifest}");
    assert_eq!(running(&fleet), before);
    let why = controller.fails(&["recover", "--adopt", "dev-0"]);
    assert!(why.contains("dev-0 is not on hold"), "{why}");

    // Where it should run is known to no device: it stays until it is said again.
    let told = controller.ok(&["describe", "deployment", "spot"]);
    assert!(told.contains("it stays as it is until it is applied again"), "{told}");
    let said = controller.ok(SPOT);
    assert!(said.ends_with("spot: 1 of 1 running\n"), "{said}");
    alive(&before);

    // It has the fleet in hand again, and what it does not change stays.
    controller.ok(&["scale", "web", "--replicas=2"]);
    controller.ok(&["run", "more", "--image=box"]);
    alive(
        &before.iter().filter(|(name, ..)| !name.ends_with("web.2")).cloned().collect::<Vec<_>>(),
    );
    fleet.until_phases("web", &["running"; 2]);
    fleet.controller.ok(&["delete", "gone"]);
}

#[test]
fn devices_that_are_ahead_are_overridden_by_what_the_backup_says() {
    let (mut fleet, before) = restored();
    // One that is away is told when it is back.
    fleet.agents[1].kill();
    fleet.eventually("it to be missed", || {
        (fleet.controller.get("/api/v1/devices/dev-1")["presence"] == "offline").then_some(())
    });
    let why = fleet.controller.fails(&["recover", "--adopt", "dev-1"]);
    assert!(why.contains("dev-1 is not connected"), "{why}");
    let said = fleet.controller.ok(&["recover", "--override"]);
    assert_eq!(said, "device/dev-0 overridden\ndevice/dev-1 overridden\ndevice/dev-2 overridden\n");
    fleet.agents[1].restart();
    fleet.until_online(3);
    fleet.until_phases("late", &[]);
    fleet.until_phases("spot", &[]);
    fleet.until_phases("gone", &["running"]);
    let manifest = fleet.controller.ok(&["get", "deployments", "web", "-o", "yaml"]);
    assert!(manifest.contains("V: old") && manifest.contains("replicas: 2"), "{manifest}");
    fleet.eventually("web as it was", || {
        let web = fleet.controller.get("/api/v1/deployments/web");
        (web["status"] == "settled" && web["running"] == 2).then_some(())
    });
    let now = running(&fleet);
    let same = |all: &[(String, u64, Option<u64>)]| {
        all.iter().find(|(name, ..)| name == "dev-1/same").cloned()
    };
    assert_eq!(same(&now), same(&before), "what both say runs on");
}

/// Numbers that the store gives out before it meets a device again are not taken for those that the
/// device was given in the store's later life.
#[test]
fn a_restored_store_that_goes_on_does_not_run_into_a_device_that_was_away() {
    let mut fleet = Fleet::start(1);
    let file = fleet.lab.path("backup").display().to_string();
    fleet.controller.ok(&["run", "old", "--image=box"]);
    fleet.controller.ok(&["backup", &file]);
    fleet.controller.ok(&["run", "later", "--image=box"]);
    let before = running(&fleet);
    fleet.agents[0].kill();
    fleet.controller.stop();
    let fresh = fleet.lab.path("restored");
    fleet.controller.ok(&["restore", &file, "--data-dir", &fresh.display().to_string()]);
    fleet.controller.restart_on(&fresh);
    let more = ["more", "and-more", "and-still-more"];
    for name in more {
        fleet.controller.ok(&["run", name, "--image=box", "--detach"]);
    }
    fleet.agents[0].restart();
    fleet.eventually("the hold", || {
        fleet.controller.get("/api/v1/devices/dev-0")["on_hold"].is_string().then_some(())
    });
    let why = fleet.controller.fails(&["recover", "--adopt", "dev-0", "dev-1"]);
    assert!(why.contains("there is no device dev-1"), "{why}");
    fleet.controller.ok(&["recover", "--adopt", "dev-0"]);
    for name in more {
        fleet.until_phases(name, &["running"]);
    }
    fleet.until_phases("later", &["running"]);
    alive(&before);
    // Until it runs its program, a container's main process looks as its shim does.
    fleet.eventually("five shims", || (fleet.agents[0].shims().len() == 5).then_some(()));
}

//! A device that breaks, and the box that takes its place.

use limpet_tests::{Agent, Fleet, Value};

#[test]
fn another_box_takes_the_place_of_one_that_broke_and_that_one_never_comes_back() {
    let mut fleet = Fleet::start(1);
    let here = fleet.controller.join_string(&["--label", "site=berlin"]);
    let config = |id: &str| Agent::config(id, &fleet.registry.host);
    let old = Agent::member(&fleet.lab, "old", &here, &config("old"));
    let new = config("new");
    fleet.agents.push(old);
    fleet.until_online(2);
    let controller = &fleet.controller;
    let select = ["--select", "site=berlin"];
    controller.ok(&[&["run", "web", "--image=box", "--replicas=2"][..], &select].concat());
    controller.ok(&["run", "all", "--image=box", "--everywhere"]);
    fleet.until_phases("web", &["running"; 2]);

    let replace = ["device", "replace", "old", "new"];
    let why = controller.fails(&replace);
    assert!(why.contains("new has not connected as a member of this fleet yet"), "{why}");
    assert!(
        controller.fails(&["device", "replace", "x", "dev-0"]).contains("there is no device x")
    );
    let itself = controller.fails(&["device", "replace", "old", "old"]);
    assert!(itself.contains("cannot take its own place"), "{itself}");
    let waits = controller.join_string(&["--require-approval"]);
    let agent = Agent::member(&fleet.lab, "new", &waits, &new);
    assert!(controller.fails(&replace).contains("has not connected as a member"));
    controller.ok(&["device", "approve", "new"]);
    fleet.agents.push(agent);
    fleet.until_online(3);

    // The power of the old one is gone, and comes back later.
    fleet.agents[1].power_cut();
    let controller = &fleet.controller;
    let said = controller.ok(&replace);
    assert_eq!(said, "device/new has taken the place of old\n");
    fleet.eventually("all of it on the new one", || {
        let workloads = controller.list("/api/v1/workloads");
        let mut where_: Vec<String> = workloads
            .iter()
            .filter(|workload| workload["phase"] == "running")
            .map(|w| format!("{} {}", w["device"].as_str().unwrap(), w["id"].as_str().unwrap()))
            .collect();
        where_.sort_unstable();
        (where_ == ["dev-0 all", "new all", "new web.0", "new web.1"]).then_some(())
    });
    let device = |id: &str| -> Value {
        let all = controller.list("/api/v1/devices");
        all.into_iter().find(|device| device["id"] == id).unwrap()
    };
    assert_eq!(device("new")["labels"]["site"], "berlin");
    fleet.agents[1].restart();
    let controller = &fleet.controller;
    fleet.agents[1].process.until_said("the controller refused this device");
    let old = controller.list("/api/v1/devices").into_iter().find(|d| d["id"] == "old").unwrap();
    assert_eq!(old["presence"], "revoked", "{old}");
    let audit = controller.ok(&["get", "audit", "old"]);
    assert!(audit.contains("device.replace") && audit.contains("device.revoke"), "{audit}");
    // Nor does it join again with a string that is still good.
    let again = controller.join_string(&[]);
    fleet.agents[1].kill();
    let data = fleet.agents[1].data.display().to_string();
    let args = ["join", &again, "--data-dir", &data];
    let done = limpet_tests::output(limpet_tests::program("limpet-agent"), &args);
    assert!(done.err.contains("this device was revoked"), "{done:?}");
}

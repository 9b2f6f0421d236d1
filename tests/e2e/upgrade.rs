//! The agent replaces itself: with one that proves itself, and not with one that does not.

use std::path::Path;

use limpet_tests::upgrade::{agent_of_version, impostor};
use limpet_tests::{Agent, Controller, Fleet, Lab, Registry, Value, eventually_or};

/// A device, as the controller lists it.
pub(crate) fn device(controller: &Controller) -> Value {
    controller.get("/api/v1/devices/dev-0")
}

/// How far it is with its order: phase and message.
pub(crate) fn phase(controller: &Controller) -> (String, String) {
    let upgrade = &device(controller)["upgrade"];
    let text = |key: &str| upgrade[key].as_str().unwrap_or_default().to_owned();
    (text("phase"), text("message"))
}

/// Orders a version on the device, and does not wait; its program is uploaded first.
pub(crate) fn order(controller: &Controller, version: &str, from: &Path, more: &[&str]) {
    let from = from.display().to_string();
    let words = ["device", "upgrade", "dev-0", "--version", version, "--from", &from];
    controller.ok(&[&words[..], &["--dynamic", "--detach"], more].concat());
}

/// Waits until the device's order has come so far, as a supervisor would: an agent that ends is started
/// again.
pub(crate) fn until(controller: &Controller, agent: &mut Agent, wanted: &str) -> String {
    let log = agent.data.with_extension("log");
    let explain = || {
        let log = std::fs::read_to_string(&log).unwrap_or_default();
        format!("{:?}\n{}\n{log}", device(controller), controller.process.tail())
    };
    eventually_or(
        &format!("the upgrade to be {wanted}"),
        || {
            agent.keep_alive();
            let (phase, message) = phase(controller);
            (phase == wanted).then_some(message)
        },
        explain,
    )
}

fn kinds(controller: &Controller, kind: &str) -> Vec<String> {
    let events = controller.list("/api/v1/events?device=dev-0&limit=10000");
    let these = events.iter().filter(|event| event["kind"] == kind);
    these.map(|event| event["message"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn an_agent_replaces_itself_and_no_container_notices() {
    let mut fleet = Fleet::start(1);
    fleet.controller.run_script("web", "exec sleep 100000");
    let before = fleet.agents[0].mains();
    let own = fleet.agents[0].process.pid();
    let upload = agent_of_version(&fleet.lab, "0.2.0").display().to_string();
    let controller = &fleet.controller;

    let words = ["device", "upgrade", "dev-0", "--version", "0.2.0"];
    let why = controller.fails(&words);
    assert!(why.contains("nobody has uploaded the agent 0.2.0: there is none"), "{why}");
    let why = controller.fails(&[&words[..], &["--from", &upload]].concat());
    assert!(why.contains("needs a loader and libraries"), "{why}");
    let other = ["device", "upgrade", "--version", "0.3.0", "--dynamic", "--from", &upload];
    let why = controller.fails(&other);
    assert!(why.contains("is the agent 0.2.0, not 0.3.0"), "{why}");
    let script = fleet.lab.file("script", "#!/bin/sh\n").display().to_string();
    let why = controller.fails(&["device", "upgrade", "--version", "0.3.0", "--from", &script]);
    assert!(why.contains("it is no program for Linux"), "{why}");

    let done = controller.ok(&[&words[..], &["--dynamic", "--from", &upload]].concat());
    assert!(done.contains("agent/0.2.0 for ") && done.contains("1 done"), "{done}");
    assert_eq!(device(controller)["agent_version"], "0.2.0");
    assert_eq!(fleet.agents[0].process.pid(), own);
    assert!(fleet.agents[0].process.is_running());
    assert_eq!(fleet.agents[0].mains(), before);
    fleet.eventually("the events of it", || {
        let told = kinds(&fleet.controller, "upgrading") == ["to 0.2.0"];
        (told && kinds(&fleet.controller, "upgraded") == ["to 0.2.0"]).then_some(())
    });
    let listed = fleet.controller.ok(&["get", "agents"]);
    assert!(listed.contains("0.2.0") && listed.contains("here"), "{listed}");
    // The same order again is done at once, and by no other process.
    let again = fleet.controller.ok(&words);
    assert!(again.contains("1 done"), "{again}");

    // It is what starts from here on, also in the dark.
    fleet.controller.kill();
    fleet.agents[0].kill();
    fleet.agents[0].restart();
    let status = fleet.eventually("its status", || {
        let status = fleet.agents[0].ask(&["status"]);
        (status.status == 0).then_some(status.out)
    });
    assert!(status.contains("0.2.0"), "{status}");
    assert_eq!(fleet.agents[0].mains(), before);
    fleet.controller.restart();
    fleet.until_online(1);

    // And back to what was installed, which is not fetched: the order is the same, the file is there.
    let base = limpet_tests::program("limpet-agent").display().to_string();
    let back = ["device", "upgrade", "--all", "--version", "0.1.0", "--dynamic", "--from", &base];
    fleet.controller.ok(&back);
    assert_eq!(device(&fleet.controller)["agent_version"], "0.1.0");
    assert_eq!(fleet.agents[0].mains(), before);
    let programs = std::fs::read_dir(fleet.agents[0].data.join("agent")).unwrap().count();
    assert_eq!(programs, 0, "what does not run is collected");

    let removed = ["device", "upgrade", "--remove", "0.2.0"];
    fleet.controller.ok(&removed);
    assert!(fleet.controller.fails(&removed).contains("there is 0.1.0"));
    let audit = fleet.controller.ok(&["get", "audit", "-o", "wide"]);
    for action in ["agent.upload", "agent.remove", "device.upgrade"] {
        assert!(audit.contains(action), "{audit}");
    }
}

#[test]
fn whatever_does_not_prove_itself_makes_way_for_the_one_before_it() {
    let mut fleet = Fleet::start(1);
    fleet.controller.run_script("web", "exec sleep 100000");
    let before = fleet.agents[0].mains();
    let real = agent_of_version(&fleet.lab, "0.9.9").display().to_string();
    // A network with nobody in it, and a real agent.
    let away = format!("unshare(CLONE_NEWNET); execv(\"{real}\", argv);");
    for (version, does, says) in [
        ("0.2.0", "return 1;", "it ended after "),
        ("0.3.0", "__builtin_trap();", "it ended after "),
        ("0.4.0", "for (;;) pause();", "it has not proved itself in 10 s"),
        ("0.5.0", &away, "it has not proved itself in 10 s"),
    ] {
        let program = impostor(&fleet.lab, version, does);
        order(&fleet.controller, version, &program, &["--deadline", "10s"]);
        let why = until(&fleet.controller, &mut fleet.agents[0], "failed");
        assert!(why.starts_with(says), "{version}: {why}");
        fleet.until_online(1);
        assert_eq!(device(&fleet.controller)["agent_version"], "0.1.0", "{version}");
        assert_eq!(fleet.agents[0].mains(), before, "{version}");
        let described = fleet.controller.ok(&["describe", "device", "dev-0"]);
        assert!(described.contains(&format!("to {version}, failed: {says}")), "{described}");
        fleet.eventually("an event of it", || {
            let told = kinds(&fleet.controller, "upgrade-failed");
            let these = told.iter().filter(|told| told.starts_with(&format!("to {version}: ")));
            (these.count() == 1).then_some(())
        });
        // The next start is no other try.
        fleet.agents[0].kill();
        fleet.agents[0].restart();
        fleet.until_online(1);
        assert_eq!(phase(&fleet.controller).0, "failed", "{version}");
    }
    let log = fleet.agents[0].process.log();
    assert_eq!(log.matches("handing over to the agent").count(), 4, "{log}");
}

#[test]
fn a_program_that_is_not_what_was_ordered_is_not_even_begun() {
    let mut fleet = Fleet::start(1);
    fleet.controller.run_script("web", "exec sleep 100000");
    let before = fleet.agents[0].mains();
    let (agents, controller) = (&mut fleet.agents, &fleet.controller);
    // Marked as one version, and another by its own word.
    let liar = impostor(&fleet.lab, "0.2.0", "");
    let mut bytes = std::fs::read(&liar).unwrap();
    bytes.extend(b"limpet-agent-version: 0.3.0\0");
    let at = bytes.windows(27).position(|window| window == b"limpet-agent-version: 0.2.0").unwrap();
    // The mark that is found first is the one that is believed; what the program prints is behind it.
    bytes[at + 12] = b'_';
    let liar = fleet.lab.file("liar", bytes);
    order(controller, "0.3.0", &liar, &[]);
    let why = until(controller, &mut agents[0], "failed");
    assert_eq!(why, "it is not 0.3.0: it says that it is \"limpet-agent 0.2.0\"");
    // Damaged where the controller keeps it.
    let good = agent_of_version(&fleet.lab, "0.4.0");
    let words = ["device", "upgrade", "--version", "0.4.0", "--dynamic", "--from"];
    controller.ok(&[&words[..], &[&good.display().to_string()]].concat());
    let kept = std::fs::read_dir(fleet.lab.path("controller/agents")).unwrap().flatten();
    let kept = kept.map(|file| file.path());
    let kept = kept.max_by_key(|path| path.metadata().unwrap().len()).unwrap();
    let mut bytes = std::fs::read(&kept).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&kept, bytes).unwrap();
    controller.ok(&["device", "upgrade", "dev-0", "--version", "0.4.0", "--detach"]);
    let why = until(controller, &mut agents[0], "failed");
    assert!(why.starts_with("what came is not what was ordered"), "{why}");
    // Lost there, as after a restore.
    std::fs::remove_file(&kept).unwrap();
    let why = controller.fails(&["device", "upgrade", "dev-0", "--version", "0.4.0"]);
    assert!(why.contains("the file of 0.4.0 for ") && why.contains("--from"), "{why}");
    order(controller, "0.4.0", &good, &[]);
    until(controller, &mut agents[0], "done");
    assert_eq!(agents[0].mains(), before);
    // Damaged on the device, later: what was installed runs, and says so.
    let program =
        std::fs::read_dir(agents[0].data.join("agent")).unwrap().flatten().next().unwrap();
    std::fs::remove_file(program.path()).unwrap();
    std::fs::write(program.path(), "#!/bin/sh\n").unwrap();
    agents[0].kill();
    agents[0].restart();
    agents[0].process.until_said("is damaged");
    fleet.eventually("the one before it", || {
        (device(&fleet.controller)["agent_version"] == "0.1.0").then_some(())
    });
    assert_eq!(fleet.agents[0].mains(), before);
}

#[test]
fn a_program_comes_over_a_link_that_is_cut_again_and_again() {
    let lab = Lab::new();
    let registry = Registry::start(&lab);
    let (controller, api, _mqtt) = Controller::behind(&lab, "127.0.8.2");
    let mut agent = Agent::start(&lab, "dev-0", &controller, &registry);
    limpet_tests::eventually("the device", || {
        let devices = controller.list("/api/v1/devices");
        devices.iter().any(|device| device["presence"] == "online").then_some(())
    });
    let program = agent_of_version(&lab, "0.2.0");
    let size = std::fs::metadata(&program).unwrap().len();
    let words = ["device", "upgrade", "--version", "0.2.0", "--dynamic", "--from"];
    controller.ok(&[&words[..], &[&program.display().to_string()]].concat());
    let before = (api.carried(), api.connections());
    // Each connection brings a ninth, and every now and then the agent is killed as well.
    api.cut_after(size / 9);
    controller.ok(&["device", "upgrade", "dev-0", "--version", "0.2.0", "--detach"]);
    let part = || {
        let files = std::fs::read_dir(agent_data(&lab)).into_iter().flatten().flatten();
        let mut parts = files.filter(|file| file.file_name().to_string_lossy().ends_with(".part"));
        parts.next().and_then(|part| Some(part.metadata().ok()?.len())).unwrap_or(0)
    };
    for half in [4, 2] {
        limpet_tests::eventually("a part of it", || (part() > size / half).then_some(()));
        agent.kill();
        agent.restart();
    }
    until(&controller, &mut agent, "done");
    let carried = api.carried() - before.0;
    let connections = api.connections() - before.1;
    assert!(connections >= 9, "{connections} connections");
    // What was here was not fetched again: TLS, and what was on its way when the agent was killed.
    assert!(carried < size + size / 2, "{carried} bytes for {size}");
}

fn agent_data(lab: &Lab) -> std::path::PathBuf {
    lab.path("dev-0.data").join("agent")
}

#[test]
fn where_nobody_is_asked_who_it_is_the_order_says_where_the_program_is() {
    let mut fleet = Fleet::insecure(1);
    let program = agent_of_version(&fleet.lab, "0.2.0");
    order(&fleet.controller, "0.2.0", &program, &[]);
    until(&fleet.controller, &mut fleet.agents[0], "done");
    assert_eq!(device(&fleet.controller)["agent_version"], "0.2.0");
}

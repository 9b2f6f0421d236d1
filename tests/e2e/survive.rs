//! Programs die and links fail; what runs goes on, and nothing that happened is lost.

use limpet_tests::{Fleet, Value, start_time};
use rustix::process::{Pid, Signal, kill_process};

fn pid(workload: &Value) -> u64 {
    workload["pid"].as_u64().unwrap()
}

fn kill(workload: &Value) {
    let pid = Pid::from_raw(i32::try_from(pid(workload)).unwrap()).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
}

/// Waits until a deployment's events hold these texts, in this order.
fn tells(fleet: &Fleet, deployment: &str, texts: &[&str]) {
    fleet.eventually(&format!("{deployment} to tell {texts:?}"), || {
        let story = fleet.story(deployment);
        let mut rest = story.iter();
        texts.iter().all(|text| rest.any(|line| line.contains(text))).then_some(())
    });
}

#[test]
fn a_killed_agent_goes_on_with_what_runs_and_replaces_what_does_not() {
    let mut fleet = Fleet::start(1);
    let script = "n=0; while :; do echo $n; n=$((n+1)); sleep 0.05; done";
    fleet.controller.run_script("stays", script);
    fleet.controller.ok(&["run", "dies", "--image=box"]);
    let stays = fleet.until_phases("stays", &["running"]).remove(0);
    let dies = fleet.until_phases("dies", &["running"]).remove(0);
    let began = start_time(pid(&stays));

    fleet.agents[0].kill();
    kill(&dies);
    fleet.eventually("the shim of what died to end", || {
        (fleet.agents[0].shims().len() == 1).then_some(())
    });
    fleet.agents[0].restart();
    let replaced = fleet.eventually("the other one to be replaced", || {
        let now = fleet.workloads("dies").remove(0);
        (now["phase"] == "running" && now["pid"] != dies["pid"]).then_some(now)
    });
    assert_eq!(replaced["restarts"], 1);
    assert_eq!(replaced["exit"], limpet_tests::json!({"signal": 9}));
    let now = fleet.until_phases("stays", &["running"]).remove(0);
    assert_eq!(
        (&now["pid"], &now["restarts"], &now["container"]),
        (&stays["pid"], &stays["restarts"], &stays["container"])
    );
    assert_eq!(start_time(pid(&now)), began);

    tells(&fleet, "dies", &["started pid", "exited killed by SIGKILL", "started pid"]);
    tells(&fleet, "stays", &["started pid", "adopted pid"]);
    let log = fleet.controller.ok(&["logs", "stays", "--tail=10000"]);
    let numbers: Vec<usize> = log.lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(numbers, (0..numbers.len()).collect::<Vec<_>>(), "it kept logging");
}

#[test]
fn an_exit_while_the_agent_is_down_is_reported_truly() {
    let mut fleet = Fleet::start(1);
    let args = [
        "run",
        "brief",
        "--image=box",
        "--restart=never",
        "--detach",
        "--",
        "sh",
        "-c",
        "until [ -e /end ]; do sleep 0.1; done; exit 9",
    ];
    fleet.controller.ok(&args);
    let running = fleet.until_phases("brief", &["running"]).remove(0);
    fleet.agents[0].kill();
    std::fs::write(format!("/proc/{}/root/end", pid(&running)), "").unwrap();
    fleet.eventually("its end", || fleet.agents[0].shims().is_empty().then_some(()));
    fleet.agents[0].restart();
    let ended = fleet.until_phases("brief", &["failed"]).remove(0);
    assert_eq!(ended["exit"], limpet_tests::json!({"code": 9}));
    tells(&fleet, "brief", &["started pid", "exited exited with 9"]);
}

#[test]
fn a_killed_container_is_replaced_at_once_then_with_back_off() {
    let fleet = Fleet::start(1);
    fleet.controller.ok(&["run", "web", "--image=box"]);
    for restarts in 1..=2 {
        let before = fleet.until_phases("web", &["running"]).remove(0);
        kill(&before);
        fleet.eventually("its replacement", || {
            let now = fleet.workloads("web").remove(0);
            (now["phase"] == "running" && now["restarts"] == restarts).then_some(())
        });
    }
    tells(
        &fleet,
        "web",
        &[
            "exited killed by SIGKILL",
            "started",
            "exited killed by SIGKILL",
            "backoff next try in 1",
            "started",
        ],
    );
    let story = fleet.story("web");
    let backoffs = story.iter().filter(|line| line.starts_with("backoff")).count();
    assert_eq!(backoffs, 1, "none before the first restart: {story:#?}");
}

#[test]
fn a_killed_controller_knows_all_again_and_devices_only_reconnect() {
    let mut fleet = Fleet::start(2);
    fleet.controller.ok(&["run", "web", "--image=box", "--replicas=2"]);
    let before = fleet.until_phases("web", &["running", "running"]);
    let events = fleet.controller.list("/api/v1/events?limit=10000").len();
    fleet.controller.kill();
    // A device alone goes on healing.
    kill(&before[0]);
    fleet.controller.restart();
    fleet.until_online(2);
    fleet.eventually("the news", || {
        let now = fleet.workloads("web");
        let healed = now[0]["restarts"] == 1 && now[0]["phase"] == "running";
        (healed && now[1]["pid"] == before[1]["pid"]).then_some(())
    });
    let all = fleet.controller.list("/api/v1/events?limit=10000");
    assert!(all.len() > events, "events are kept, and more have come");
    fleet.controller.ok(&["scale", "web", "--replicas=3"]);
    let now = fleet.until_phases("web", &["running"; 3]);
    assert_eq!(now[1]["pid"], before[1]["pid"]);

    fleet.controller.stop();
    fleet.controller.restart();
    fleet.until_online(2);
    assert_eq!(fleet.until_phases("web", &["running"; 3])[1]["pid"], before[1]["pid"]);
}

#[test]
fn after_a_power_cut_workloads_run_again_without_a_controller() {
    let mut fleet = Fleet::start(1);
    fleet.controller.ok(&["run", "web", "--image=box", "--replicas=2"]);
    fleet.controller.kill();
    fleet.registry.process.kill();
    fleet.agents[0].power_cut();
    fleet.agents[0].restart();
    fleet.eventually("both workloads", || (fleet.agents[0].shims().len() == 2).then_some(()));
    fleet.controller.restart();
    fleet.until_online(1);
    fleet.eventually("the news", || {
        let now = fleet.workloads("web");
        let again = |w: &Value| w["phase"] == "running" && w["restarts"] == 1;
        now.iter().all(again).then_some(())
    });
    tells(&fleet, "web", &["started", "exited ended unseen", "started"]);
}

#[test]
fn events_of_an_outage_arrive_once_and_in_order() {
    let mut fleet = Fleet::start(1);
    fleet.controller.ok(&["run", "web", "--image=box"]);
    fleet.controller.kill();
    for agent_restarts in 0..3 {
        fleet.agents[0].kill();
        fleet.agents[0].restart();
        fleet.agents[0].process.until_said(&format!("device dev-0 with {} containers", 1));
        assert!(agent_restarts < 3);
    }
    fleet.controller.restart();
    fleet.until_online(1);
    let adopted = || fleet.story("web").iter().filter(|line| line.starts_with("adopted")).count();
    fleet.eventually("the events of the outage", || (adopted() >= 1).then_some(()));
    let seqs: Vec<Value> = fleet.controller.list("/api/v1/events?device=dev-0&limit=10000");
    let numbers: Vec<u64> = seqs.iter().filter_map(|event| event["seq"].as_u64()).collect();
    assert!(numbers.is_sorted());
    let started = seqs.iter().filter(|event| event["kind"] == "agent-started").count();
    assert!((2..=4).contains(&started), "{started} starts are told of");
    assert_eq!(fleet.workloads("web")[0]["restarts"], 0);
}

#[test]
fn a_controller_that_has_just_begun_assumes_nothing_of_its_devices() {
    let mut fleet = Fleet::start(2);
    fleet.controller.kill();
    fleet.agents[1].kill();
    fleet.controller.restart();
    // Nobody has spoken yet, or only one has: neither is a reason to give up, or to heap all on one.
    fleet.controller.ok(&["run", "web", "--image=box", "--replicas=2", "--detach"]);
    assert_eq!(fleet.controller.get("/api/v1/devices/dev-1")["presence"], "unknown");
    fleet.agents[1].restart();
    let placed = fleet.until_phases("web", &["running", "running"]);
    assert_ne!(placed[0]["device"], placed[1]["device"]);
}

#[test]
fn an_old_backup_never_rolls_a_device_back() {
    let mut fleet = Fleet::start(1);
    fleet.controller.ok(&["run", "old", "--image=box"]);
    fleet.controller.stop();
    let (store, backup) = (fleet.lab.path("controller"), fleet.lab.path("backup"));
    let copy = |from: &std::path::Path, to: &std::path::Path| {
        limpet_tests::run("cp", &["-r", &from.display().to_string(), &to.display().to_string()]);
    };
    copy(&store, &backup);
    fleet.controller.restart();
    fleet.until_online(1);
    fleet.controller.ok(&["run", "later", "--image=box"]);
    let later = fleet.until_phases("later", &["running"]).remove(0);
    fleet.controller.stop();
    std::fs::remove_dir_all(&store).unwrap();
    copy(&backup, &store);
    fleet.controller.restart();
    fleet.eventually("the hold", || {
        fleet.controller.get("/api/v1/devices/dev-0")["on_hold"].is_string().then_some(())
    });
    for name in ["more", "and-more", "and-still-more"] {
        let why = fleet.controller.fails(&["run", name, "--image=box"]);
        assert!(why.contains("restored from an old backup"), "{why}");
    }
    assert!(start_time(pid(&later)).is_some(), "what runs goes on");
    assert_eq!(fleet.agents[0].shims().len(), 2);
    // The operator's way out: forgotten, the device joins anew, and gets what the store says.
    let forget = |fleet: &Fleet| {
        let done = fleet.controller.limpet(&["device", "remove", "dev-0"]);
        done.out + &done.err
    };
    let said = forget(&fleet);
    assert!(said.contains("is connected"), "{said}");
    fleet.agents[0].kill();
    fleet
        .eventually("it to be forgotten", || forget(&fleet).contains("is forgotten").then_some(()));
    fleet.agents[0].join(fleet.controller.invitation());
    fleet.agents[0].restart();
    for name in ["old", "more", "and-more", "and-still-more"] {
        fleet.controller.ok(&["run", name, "--image=box"]);
    }
    fleet.until_phases("later", &[]);
}

#[test]
fn a_workload_that_fills_the_disk_can_be_deleted() {
    let mut fleet = Fleet::start(0);
    let data = fleet.lab.path("dev-0.data");
    let _disk = limpet_tests::Disk::mount(&data, "24m");
    let agent = limpet_tests::Agent::start(&fleet.lab, "dev-0", &fleet.controller, &fleet.registry);
    fleet.agents.push(agent);
    fleet.until_online(1);
    let greedy =
        "dd if=/dev/zero of=/fill bs=64k; dd if=/dev/zero of=/rest bs=1; exec sleep 100000";
    fleet.controller.run_script("greedy", greedy);
    fleet.eventually("a full disk", || {
        let stat = rustix::fs::statvfs(&data).unwrap();
        (stat.f_bavail * stat.f_frsize < 8192).then_some(())
    });
    fleet.controller.ok(&["delete", "greedy"]);
    fleet.controller.ok(&["run", "modest", "--image=box"]);
    fleet.agents.clear();
}

#[test]
fn a_damaged_document_gives_way_to_its_copy_and_the_operator_is_told() {
    let mut fleet = Fleet::start(1);
    fleet.controller.ok(&["run", "web", "--image=box"]);
    fleet.controller.ok(&["run", "other", "--image=box"]);
    let before = fleet.until_phases("web", &["running"]).remove(0);
    let fingerprint = |fleet: &Fleet| fleet.controller.list("/api/v1/devices").len();
    for name in ["identity", "desired", "checkpoint.0", "checkpoint.1"] {
        let agent = &mut fleet.agents[0];
        agent.kill();
        let path = agent.data.join(name);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[30] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        agent.restart();
        agent.process.until_said(&format!("{name} is damaged"));
        fleet.until_online(1);
        let now = fleet.until_phases("web", &["running"]).remove(0);
        assert_eq!((&now["pid"], fingerprint(&fleet)), (&before["pid"], 1), "{name}");
        fleet.eventually("the operator to be told", || {
            let events = fleet.controller.ok(&["get", "events"]);
            events.contains(&format!("{name} is damaged: going on with")).then_some(())
        });
    }
    // With nothing left to say what should run, what does run goes on until the controller says.
    let agent = &mut fleet.agents[0];
    agent.kill();
    for name in ["desired", "desired.old"] {
        std::fs::write(agent.data.join(name), b"").unwrap();
    }
    fleet.controller.kill();
    fleet.agents[0].restart();
    fleet.agents[0].process.until_said("so is its copy: going on without");
    assert_eq!(fleet.agents[0].shims().len(), 2);
    fleet.controller.restart();
    fleet.until_online(1);
    let now = fleet.until_phases("web", &["running"]).remove(0);
    assert_eq!(now["pid"], before["pid"]);
}

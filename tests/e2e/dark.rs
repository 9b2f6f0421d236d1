//! A device in the dark: no network, no time, a controller that is gone for long or for good.

use std::collections::BTreeMap;

use limpet_tests::{Fleet, Value, json, start_time};

/// What runs, by workload: number and start of each main process. Asked of the device itself.
fn running(fleet: &Fleet) -> BTreeMap<String, (u64, Option<u64>)> {
    let asked = fleet.agents[0].ask(&["status", "-o", "json"]);
    // An agent that has just begun does not listen yet.
    let status: Value = serde_json::from_str(&asked.out).unwrap_or_default();
    let lines = status["workloads"].as_array().into_iter().flatten();
    let runs = lines.filter(|line| line["phase"] == "running").filter_map(|line| {
        let pid = line["pid"].as_u64()?;
        Some((line["workload"].as_str()?.to_owned(), (pid, start_time(pid))))
    });
    runs.collect()
}

fn kill(pid: u64) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

#[test]
fn in_1970_and_in_2099_with_no_network_what_was_accepted_runs_and_is_kept_running() {
    let mut fleet = Fleet::start(1);
    let ticks = ["sh", "-c", "while :; do echo tick; sleep 1; done"];
    let run = ["run", "web", "--image=box", "--replicas=2", "--"];
    fleet.controller.ok(&[&run[..], &ticks].concat());
    fleet.until_phases("web", &["running"; 2]);
    for (clock, year) in [("0", "1970-01-01"), ("4070908800", "2099-01-01")] {
        fleet.controller.kill();
        fleet.registry.process.kill();
        fleet.agents[0].power_cut();
        fleet.agents[0].through = vec!["env".into(), format!("LIMPET_WALL_CLOCK_S={clock}")];
        fleet.agents[0].restart();
        let first = fleet.eventually("both to run", || {
            let now = running(&fleet);
            (now.len() == 2).then_some(now)
        });
        // Supervised, not merely started.
        let (victim, (pid, _)) = first.iter().next().unwrap();
        kill(*pid);
        let healed = fleet.eventually("the one that was killed to be replaced", || {
            let now = running(&fleet);
            (now.len() == 2 && now[victim].0 != *pid).then_some(now)
        });
        assert!(first.iter().all(|(name, was)| name == victim || healed[name] == *was));

        fleet.registry.restart();
        fleet.controller.restart();
        fleet.until_online(1);
        let told = fleet.eventually(&format!("the controller to know {healed:?}"), || {
            let now = fleet.workloads("web");
            let all = now.iter().all(|workload| {
                let (pid, _) = healed[workload["id"].as_str().unwrap()];
                workload["phase"] == "running" && workload["pid"] == json!(pid)
            });
            (now.len() == 2 && all).then_some(now)
        });
        assert_eq!(told.len(), 2);
        fleet.controller.ok(&["run", "more", "--image=box"]);
        let mut now = running(&fleet);
        assert!(now.remove("more.0").is_some());
        assert_eq!(now, healed, "nothing was restarted");
        // The clock was what the test says that it was.
        let path = format!("/api/v1/workloads/dev-0/{victim}/logs?tail=100");
        let log = fleet.controller.text(&path);
        assert!(log.lines().any(|line| line.contains(year)), "{log}");
        fleet.controller.ok(&["delete", "more"]);
    }
}

/// Events that a device keeps at most.
const KEPT: usize = 512;

#[test]
fn an_outage_with_more_events_than_fit_tells_how_many_are_lost_and_all_others() {
    let mut fleet = Fleet::start(1);
    fleet.registry.push("library/quick", "latest", &limpet_tests::Image::quick());
    fleet.controller.ok(&["run", "web", "--image=quick", "--replicas=30"]);
    let waiting = |fleet: &Fleet| {
        let asked = fleet.agents[0].ask_ok(&["status", "-o", "json"]);
        let status: Value = serde_json::from_str(&asked).unwrap();
        usize::try_from(status["events_waiting"].as_u64().unwrap()).unwrap()
    };
    let events = |fleet: &Fleet| {
        let all = fleet.controller.list("/api/v1/events?device=dev-0&limit=10000");
        all.into_iter().filter(|e| !e["kind"].as_str().unwrap().starts_with("device-"))
    };
    fleet.eventually("all to be told", || (waiting(&fleet) == 0).then_some(()));
    let mark = events(&fleet).count();
    fleet.controller.kill();
    let (mut happened, mut each) = (0, 0);
    while happened < KEPT + 100 {
        let before = running(&fleet);
        assert_eq!(before.len(), 30);
        for workload in before.keys() {
            fleet.agents[0].ask_ok(&["restart", workload]);
        }
        fleet.eventually("all to be replaced", || {
            let now = running(&fleet);
            let all = before.iter().all(|(name, was)| now.get(name).is_some_and(|is| is != was));
            all.then_some(())
        });
        if each == 0 {
            each = waiting(&fleet);
            assert!(each >= 90, "each stops, ends and starts");
        }
        happened += each;
        assert_eq!(waiting(&fleet), happened.min(KEPT), "each round is as the first");
    }
    fleet.controller.restart();
    fleet.until_online(1);
    fleet.eventually("all to be told", || (waiting(&fleet) == 0).then_some(()));
    let told: Vec<Value> = events(&fleet).skip(mark).collect();
    let (gaps, told): (Vec<_>, Vec<_>) = told.into_iter().partition(|e| e["kind"] == "gap");
    assert_eq!(gaps.len(), 1, "{gaps:#?}");
    let said = gaps[0]["message"].as_str().unwrap();
    assert!(said.starts_with(&format!("{} events are lost", happened - KEPT)), "{said}");
    assert_eq!(told.len(), KEPT, "those that were kept are all told");
    fleet.controller.ok(&["run", "after", "--image=box"]);
    fleet.eventually("what follows", || {
        fleet.story("after").iter().any(|line| line.starts_with("started")).then_some(())
    });
}

#[test]
fn a_controller_that_lost_everything_stops_nothing() {
    let mut fleet = Fleet::start(1);
    fleet.controller.ok(&["run", "web", "--image=box", "--replicas=2"]);
    fleet.eventually("the device's own word", || (running(&fleet).len() == 2).then_some(()));
    let before = running(&fleet);
    fleet.controller.kill();
    std::fs::remove_dir_all(fleet.lab.path("controller")).unwrap();
    fleet.controller.restart();
    // It has another authority: whatever it says is not believed.
    fleet.agents[0].process.until_said("is not from this fleet's authority");
    fleet.agents[0].kill();
    fleet.agents[0].restart();
    fleet.eventually("the device again", || (running(&fleet).len() == 2).then_some(()));
    assert_eq!(running(&fleet), before);
}

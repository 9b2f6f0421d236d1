//! Who starts our processes, and starts them again: units under a real systemd, and no systemd at all.

use std::os::unix::process::ExitStatusExt;

use limpet_tests::{
    Agent, Controller, Fleet, Hung, Lab, Place, Process, Registry, Told, Unit, eventually,
    eventually_or, processes_with, run, start_time,
};

const AGENT: &str = "/run/bin/limpet-agent\0run";
const NO_SYSTEMD: &str = "skipped: this machine has no systemd, or no cgroup v2";

/// A device of this fleet whose agent is a unit with this further line; online.
fn device(fleet: &Fleet, service: &'static str) -> Option<(Process, Unit)> {
    let join = fleet.lab.file("join", fleet.controller.invitation());
    let config = format!(
        "device_id = 'unit'\njoin_file = '{}'\n{}",
        join.display(),
        Agent::config("unit", &fleet.registry.host)
    );
    let told = Told { config, service, ..Told::default() };
    let (process, unit) = Unit::start(&fleet.lab, "limpet-agent", "limpet-agent", &told)?;
    let online = || {
        let devices = fleet.controller.list("/api/v1/devices");
        devices.iter().any(|device| device["presence"] == "online").then_some(())
    };
    eventually_or("a device", online, || process.log());
    Some((process, unit))
}

/// The main process of the container, and when it began.
fn main_process(unit: &Unit) -> Option<(u32, u64)> {
    let all = processes_with("sleep\x00100000").into_iter();
    let pid = all.into_iter().find(|pid| unit.holds(*pid)).map(i32::cast_unsigned)?;
    Some((pid, start_time(pid.into())?))
}

fn until_adopted(fleet: &Fleet, times: usize) {
    fleet.eventually("the agent to adopt it", || {
        let told = fleet.story("web");
        let adopted = told.iter().filter(|line| line.starts_with("adopted")).count();
        (adopted == times).then_some(())
    });
}

fn variables(pid: u32) -> String {
    let read = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
    String::from_utf8_lossy(&read).into_owned()
}

#[test]
fn containers_go_on_while_the_agent_s_unit_is_restarted_and_stopped() {
    let fleet = Fleet::start(0);
    let Some((_process, unit)) = device(&fleet, "") else {
        eprintln!("{NO_SYSTEMD}");
        return;
    };
    let script =
        "grep -E 'Seccomp:|NoNewPrivs:|CapBnd:' /proc/self/status; umask; exec sleep 100000";
    fleet.controller.run_script("web", script);
    let said = fleet.controller.ok(&["logs", "web"]);
    assert_eq!(said, "CapBnd:\t00000000000005fb\nNoNewPrivs:\t1\nSeccomp:\t2\n0022\n");
    let status = || unit.systemctl(&["show", "-p", "StatusText", "-p", "ActiveState"]);
    eventually("what systemd knows", || {
        let known = status();
        let told = "StatusText=link up, 1 of 1 workloads run";
        (known.contains(told) && known.contains("ActiveState=active")).then_some(())
    });

    // The supervisor's socket is the agent's alone.
    assert!(variables(unit.main(AGENT, None)).contains("NOTIFY_SOCKET="));
    let shim = processes_with("shim-wait\0").into_iter().find(|pid| unit.holds(*pid));
    assert_eq!(variables(shim.unwrap().cast_unsigned()), "");
    let before = main_process(&unit).unwrap();
    let inside = variables(before.0);
    assert!(!inside.contains("NOTIFY_SOCKET") && !inside.contains("WATCHDOG"), "{inside}");

    unit.systemctl(&["restart"]);
    until_adopted(&fleet, 1);
    unit.systemctl(&["stop"]);
    assert_eq!(main_process(&unit), Some(before));
    unit.systemctl(&["start"]);
    until_adopted(&fleet, 2);
    assert_eq!(main_process(&unit), Some(before));
    fleet.controller.ok(&["delete", "web"]);
    fleet.eventually("its end", || main_process(&unit).is_none().then_some(()));
}

#[test]
fn an_agent_of_which_a_part_hangs_is_started_again_and_its_containers_go_on() {
    let fleet = Fleet::start(0);
    let Some((process, unit)) = device(&fleet, "WatchdogSec=10") else {
        eprintln!("{NO_SYSTEMD}");
        return;
    };
    fleet.controller.run_script("web", "exec sleep 100000");
    let container = main_process(&unit).unwrap();
    for (times, hangs) in ["all of it", "limpet-agent", "mqtt"].into_iter().enumerate() {
        let before = unit.main(AGENT, None);
        if hangs == "all of it" {
            run("kill", &["-STOP", &before.to_string()]);
        } else {
            Hung::thread(before, hangs).until_ended();
        }
        unit.main(AGENT, Some(before));
        until_adopted(&fleet, times + 1);
        assert_eq!(main_process(&unit), Some(container), "{hangs}");
    }
    assert!(process.log().contains("the link's thread has not moved for 5s"), "{}", process.log());
}

#[test]
fn where_no_supervisor_asks_an_agent_of_which_a_part_hangs_ends_itself() {
    let mut fleet = Fleet::start(0);
    for (hangs, says, status) in [
        ("limpet-agent", "the device's loop has not moved", None),
        ("mqtt", "the link's thread has not moved", Some(1)),
    ] {
        // As often as a test can wait for; no socket to tell anybody.
        let through = ["env", "-u", "NOTIFY_SOCKET", "WATCHDOG_USEC=6000000"];
        let place = Place { through: through.map(str::to_owned).into(), ..Place::default() };
        let id = format!("without-{hangs}");
        let config = Agent::config(&id, &fleet.registry.host);
        let agent = Agent::placed(&fleet.lab, &id, &fleet.controller, &config, place);
        fleet.agents = vec![agent];
        fleet.agents[0].process.until_said("is up");
        let process = &mut fleet.agents[0].process;
        let hung = Hung::thread(process.pid(), hangs);
        if hangs == "mqtt" {
            hung.until_ended();
        }
        let ended = process.wait();
        assert_eq!((ended.code(), ended.signal()), (status, status.is_none().then_some(9)));
        assert!(process.log().contains(says), "{}", process.log());
    }
}

#[test]
fn a_controller_of_which_a_part_hangs_is_started_again() {
    let lab = Lab::new();
    let Some((controller, unit, pid)) = Controller::as_unit(&lab, "WatchdogSec=10") else {
        eprintln!("{NO_SYSTEMD}");
        return;
    };
    let registry = Registry::start(&lab);
    let config = Agent::config("dev-0", &registry.host);
    let _agent = Agent::member(&lab, "dev-0", &controller.join_string(&[]), &config);
    let mut before = pid;
    for hangs in ["all of it", "fleet"] {
        if hangs == "all of it" {
            run("kill", &["-STOP", &before.to_string()]);
        } else {
            Hung::thread(before, hangs).until_ended();
        }
        before = unit.main("/run/bin/limpet\0up", Some(before));
        eventually_or(
            "a device online",
            || controller.limpet(&["get", "devices"]).out.contains("online").then_some(()),
            || controller.process.tail(),
        );
    }
    let known = unit.systemctl(&["show", "-p", "Result", "-p", "ActiveState"]);
    assert!(known.contains("ActiveState=active"), "{known}");
}

#[test]
fn an_agent_that_cannot_begin_is_started_again_for_as_long_as_it_cannot() {
    let lab = Lab::new();
    let told = Told { config: "no_such_field = 1\n".to_owned(), ..Told::default() };
    let Some((process, _unit)) = Unit::start(&lab, "limpet-agent", "limpet-agent", &told) else {
        eprintln!("{NO_SYSTEMD}");
        return;
    };
    // Unless it is told otherwise, systemd gives up after five starts within ten seconds.
    eventually_or(
        "eight starts",
        || (process.log().matches("unknown field").count() >= 8).then_some(()),
        || process.log(),
    );
}

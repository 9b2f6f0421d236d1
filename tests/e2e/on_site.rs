//! A person beside the device, with no controller in reach; and a device that goes easy on its flash.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use limpet_tests::{Agent, Controller, Fleet, Proxy, Value, start_time};

/// What `limpet-agent status` says of a workload.
fn line(agent: &Agent, workload: &str) -> Value {
    let asked = agent.ask(&["status", "-o", "json"]);
    // An agent that has just begun does not listen yet.
    let status: Value = serde_json::from_str(&asked.out).unwrap_or_default();
    let mut lines = status["workloads"].as_array().into_iter().flatten();
    lines.find(|line| line["workload"] == workload).cloned().unwrap_or_default()
}

fn until(fleet: &Fleet, workload: &str, phase: &str) -> Value {
    fleet.eventually(&format!("{workload} to be {phase}"), || {
        let line = line(&fleet.agents[0], workload);
        (line["phase"] == phase).then_some(line)
    })
}

#[test]
fn a_stop_on_site_holds_until_a_start_or_another_change_and_the_operator_sees_it() {
    let mut fleet = Fleet::start(1);
    fleet.controller.ok(&["run", "web", "--image=box"]);
    fleet.controller.ok(&["run", "other", "--image=box"]);
    let other = until(&fleet, "other.0", "running")["pid"].clone();
    fleet.controller.kill();

    let agent = &fleet.agents[0];
    agent.ask_ok(&["stop", "web.0"]);
    let stopped = until(&fleet, "web.0", "exited");
    assert!(stopped["message"].as_str().unwrap().contains("limpet-agent start web.0"), "{stopped}");
    fleet.agents[0].kill();
    fleet.agents[0].restart();
    until(&fleet, "web.0", "exited");
    assert_eq!(until(&fleet, "other.0", "running")["pid"], other);

    fleet.agents[0].ask_ok(&["start", "web.0"]);
    let first = until(&fleet, "web.0", "running")["pid"].clone();
    fleet.agents[0].ask_ok(&["restart", "web.0"]);
    fleet.eventually("another container", || {
        let line = line(&fleet.agents[0], "web.0");
        (line["phase"] == "running" && line["pid"] != first).then_some(())
    });

    fleet.agents[0].ask_ok(&["stop", "web.0"]);
    fleet.controller.restart();
    fleet.until_online(1);
    let seen = fleet.until_phases("web", &["exited"]).remove(0);
    assert!(seen["message"].as_str().unwrap().contains("stopped on site"), "{seen}");
    fleet.eventually("the operator to be told", || {
        let story = fleet.story("web").join("\n");
        let kinds = ["stopped-on-site", "started-on-site", "restarted-on-site"];
        kinds.iter().all(|kind| story.contains(kind)).then_some(())
    });
    fleet.controller.ok(&["run", "more", "--image=box"]);
    fleet.until_phases("web", &["running"]);
    assert_eq!(until(&fleet, "other.0", "running")["pid"], other, "nobody asked for that");
}

#[test]
fn who_asks_for_nonsense_is_told_so() {
    let fleet = Fleet::start(1);
    fleet.controller.run_script("web", "echo hello on site; exec sleep 100000");
    let agent = &fleet.agents[0];
    for (args, status, says) in [
        (&["stop", "nobody.0"][..], 1, "no workload nobody.0 is here; there is: web.0"),
        (&["logs", "nobody.0"], 1, "there is: web.0"),
        (&["stop"], 2, "`limpet-agent stop WORKLOAD`"),
        (&["stop", "A/B"], 2, "A/B"),
        (&["sleep"], 2, "--until TIME"),
        (&["sleep", "--for", "8"], 2, "such as 8h"),
        (&["sleep", "--until", "1999-01-01T00:00:00Z"], 2, "over by this machine's clock"),
        (&["sleep", "--until", "tomorrow"], 2, "RFC 3339"),
        (&["status", "-o", "yaml"], 2, "use table or json"),
    ] {
        let done = agent.ask(args);
        assert_eq!(done.status, status, "{args:?}: {done:?}");
        assert!(done.err.contains(says), "{args:?}: {done:?}");
    }
    let done = limpet_tests::output(
        limpet_tests::program("limpet-agent"),
        &["status", "--run-dir", "/nonexistent"],
    );
    assert!(done.status == 1 && done.err.contains("is it running?"), "{done:?}");
    let mode = std::fs::metadata(agent.run.join("agent.sock")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    fleet.eventually("its log", || {
        agent.ask_ok(&["logs", "web.0"]).contains("hello on site").then_some(())
    });
    let table = agent.ask_ok(&["status"]);
    assert!(table.contains("connected to") && table.contains("web.0"), "{table}");
    // Garbage on the socket ends that conversation only.
    use std::io::{Read, Write};
    for garbage in [&b"\n"[..], b"{}\n", b"{\"verb\":\"fly\"}\n", &[0xff; 100_000]] {
        let path = agent.run.join("agent.sock");
        let mut stream = std::os::unix::net::UnixStream::connect(path).unwrap();
        // It may have hung up before all of it is written.
        let _ = stream.write_all(garbage);
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        assert!(garbage.len() > 100 || answer.contains("cannot be read"), "{answer}");
    }
    agent.ask_ok(&["status"]);
}

#[test]
fn last_words_survive_a_power_cut() {
    let mut fleet = Fleet::start(1);
    let dies = "echo the reason; sleep 1; exit 3";
    fleet.controller.ok(&["run", "web", "--image=box", "--detach", "--", "sh", "-c", dies]);
    fleet.eventually("its last words on disk", || {
        let kept = std::fs::read_dir(fleet.agents[0].data.join("logs")).ok()?;
        let written = |log: PathBuf| log.metadata().is_ok_and(|log| log.len() > 0);
        kept.flatten().any(|entry| written(entry.path().join("log.0"))).then_some(())
    });
    fleet.agents[0].power_cut();
    // Nothing runs that could say it anew.
    fleet.controller.kill();
    fleet.agents[0].restart();
    fleet.eventually("the agent", || (fleet.agents[0].ask(&["status"]).status == 0).then_some(()));
    fleet.agents[0].ask_ok(&["stop", "web.0"]);
    let log = fleet.agents[0].ask_ok(&["logs", "web.0"]);
    assert!(log.starts_with("the reason\n"), "{log}");
    fleet.controller.restart();
    fleet.until_online(1);
    assert!(fleet.controller.ok(&["logs", "web"]).contains("the reason"));
    fleet.controller.ok(&["delete", "web"]);
    fleet.eventually("nothing to be left of it", || {
        let mut kept = std::fs::read_dir(fleet.agents[0].data.join("logs")).unwrap();
        kept.next().is_none().then_some(())
    });
}

#[test]
fn logs_are_on_disk_where_the_owner_chose_so() {
    let mut fleet = Fleet::start(0);
    let config =
        format!("logs = 'disk'\n[registries.mirrors]\n'docker.io' = ['{}']\n", fleet.registry.host);
    let agent = Agent::with_config(&fleet.lab, "dev-0", &fleet.controller, &config);
    fleet.agents.push(agent);
    fleet.until_online(1);
    fleet.controller.run_script("web", "echo hello; exec sleep 100000");
    let agent = &fleet.agents[0];
    fleet
        .eventually("its log", || agent.ask_ok(&["logs", "web.0"]).contains("hello").then_some(()));
    fleet.agents[0].power_cut();
    fleet.agents[0].restart();
    until(&fleet, "web.0", "running");
    fleet.eventually("both logs", || {
        let log = fleet.agents[0].ask_ok(&["logs", "web.0"]);
        (log.matches("hello").count() == 2).then_some(())
    });
    fleet.eventually("both logs from afar", || {
        let log = fleet.controller.limpet(&["logs", "web"]).out;
        (log.matches("hello").count() == 2).then_some(())
    });
}

/// When each file below a folder was last written to.
fn written(folder: &Path) -> BTreeMap<PathBuf, (SystemTime, u64)> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let (path, about) = (entry.path(), entry.metadata().unwrap());
        files.extend(if about.is_dir() { written(&path) } else { BTreeMap::new() });
        files.insert(path, (about.modified().unwrap(), about.len()));
    }
    files
}

/// Promise P5: whatever the link does, a device with nothing to change writes nothing.
#[test]
fn a_device_with_nothing_to_change_writes_nothing() {
    let link = "127.0.0.2";
    let mut fleet = Fleet::of(0, |lab| Controller::advertised(lab, link));
    let proxy = Proxy::in_front(link, &fleet.controller.mqtt);
    let agent = Agent::start(&fleet.lab, "dev-0", &fleet.controller, &fleet.registry);
    fleet.agents.push(agent);
    fleet.until_online(1);
    fleet.controller.run_script("web", "echo hello; exec sleep 100000");
    let data = fleet.agents[0].data.clone();
    let waiting = |fleet: &Fleet| {
        let status = fleet.agents[0].ask_ok(&["status"]);
        status.contains("connected to") && status.contains("events         0 to be told")
    };
    // The last checkpoint follows the last acknowledgement, if any does.
    let mut before = BTreeMap::new();
    fleet.eventually("it to be at rest", || {
        let now = written(&data);
        let rests = waiting(&fleet) && now == before;
        before = now;
        std::thread::sleep(std::time::Duration::from_millis(500));
        rests.then_some(())
    });
    let main = fleet.workloads("web").remove(0)["pid"].as_u64().unwrap();
    let began = start_time(main);
    for _ in 0..5 {
        proxy.cut();
        fleet.eventually("it to notice", || {
            (!fleet.agents[0].ask_ok(&["status"]).contains("controller     connected"))
                .then_some(())
        });
        fleet.eventually("it to return", || {
            fleet.agents[0].ask_ok(&["status"]).contains("controller     connected").then_some(())
        });
        assert!(fleet.controller.ok(&["logs", "web"]).contains("hello"));
    }
    assert_eq!(written(&data), before, "something was written");
    assert_eq!(start_time(main), began);
}

/// Where a log has no room it is lost; the container neither waits nor ends.
#[test]
fn a_log_that_has_no_room_holds_up_nobody() {
    let mut fleet = Fleet::start(0);
    let run = fleet.lab.in_memory("dev-0.run");
    let _memory = limpet_tests::Disk::mount(&run, "2m");
    let agent = Agent::start(&fleet.lab, "dev-0", &fleet.controller, &fleet.registry);
    fleet.agents.push(agent);
    fleet.until_online(1);
    let talks = "while [ ! -e /go ]; do sleep 0.1; done; n=0; while [ $n -lt 20000 ]; do \
                 echo $n of a good many lines; n=$((n+1)); done; touch /told; exec sleep 100000";
    fleet.controller.run_script("web", talks);
    let pid = fleet.workloads("web").remove(0)["pid"].as_u64().unwrap();
    // As much as fits: the write that does not is cut short.
    let _ = std::fs::write(run.join("filler"), vec![0; 4 << 20]);
    let inside = |name: &str| PathBuf::from(format!("/proc/{pid}/root/{name}"));
    std::fs::write(inside("go"), "").unwrap();
    fleet.eventually("all to be said", || inside("told").exists().then_some(()));
    let now = fleet.until_phases("web", &["running"]).remove(0);
    assert_eq!(now["pid"].as_u64(), Some(pid));
    fleet.agents.clear();
}

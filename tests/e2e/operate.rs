//! What an operator does with the command line.

use limpet_tests::{Fleet, Process, Value};

#[test]
fn a_deployment_is_run_scaled_read_and_deleted() {
    let fleet = Fleet::start(3);
    let controller = &fleet.controller;
    let said = controller.run_script("web", "echo hello; exec sleep 100000");
    assert!(said.ends_with("web: 1 of 1 running\n"), "{said}");

    let said = controller.ok(&["scale", "web", "--replicas=3"]);
    assert!(said.ends_with("web: 3 of 3 running\n"), "{said}");
    let workloads = fleet.until_phases("web", &["running"; 3]);
    let mut devices: Vec<&str> = workloads.iter().filter_map(|w| w["device"].as_str()).collect();
    devices.sort_unstable();
    assert_eq!(devices, ["dev-0", "dev-1", "dev-2"], "one on each device");

    let table = controller.ok(&["get", "deployments"]);
    assert!(table.contains("web   3/3      settled  box"), "{table}");
    let manifest = controller.ok(&["get", "deployments", "web", "-o", "yaml"]);
    assert!(manifest.contains("replicas: 3\n"), "{manifest}");
    let json: Value =
        serde_json::from_str(&controller.ok(&["get", "workloads", "web", "-o", "json"])).unwrap();
    assert_eq!(json.as_array().map(Vec::len), Some(3));
    let all = controller.ok(&["describe", "deployment", "web"]);
    assert!(
        all.contains("settled, 3 of 3 running") && all.contains("deployment-accepted"),
        "{all}"
    );
    let all = controller.ok(&["describe", "device", "dev-1"]);
    assert!(all.contains("online for ") && all.contains("limit.memory"), "{all}");
    let one = controller.ok(&["get", "devices", "--select", "name=dev-2"]);
    assert!(one.contains("dev-2") && !one.contains("dev-1"), "{one}");

    let mut lines: Vec<String> =
        controller.ok(&["logs", "web"]).lines().map(str::to_owned).collect();
    lines.sort_unstable();
    assert_eq!(lines.len(), 3, "{lines:?}");
    for (line, device) in lines.iter().zip(["dev-0/web.", "dev-1/web.", "dev-2/web."]) {
        assert!(line.starts_with(device) && line.ends_with(": hello"), "{line}");
    }

    // The same manifest again changes nothing.
    let file = fleet.lab.file("web.yaml", &manifest);
    let said = controller.ok(&["apply", "-f", &file.display().to_string()]);
    assert!(said.starts_with("deployment/web unchanged\n"), "{said}");

    let said = controller.ok(&["delete", "web"]);
    assert_eq!(said, "deployment/web deleted\n");
    assert!(fleet.workloads("web").is_empty());
    for agent in &fleet.agents {
        fleet.eventually("an empty device", || {
            let containers = std::fs::read_dir(agent.run.join("containers")).unwrap().count();
            let writable = std::fs::read_dir(agent.data.join("containers")).unwrap().count();
            (containers + writable + agent.shims().len() == 0).then_some(())
        });
    }
}

#[test]
fn what_cannot_settle_says_why() {
    let fleet = Fleet::start(1);
    let controller = &fleet.controller;

    let why = controller.fails(&["run", "nowhere", "--image=box", "--select", "site=moon"]);
    assert!(why.contains("no device matches (dev-0: needs site=moon, has no label site)"), "{why}");

    let why = controller.fails(&["run", "absent", "--image=box:none"]);
    assert!(why.contains("dev-0/absent.0: image docker.io/library/box:none"), "{why}");
    assert!(why.contains(&fleet.registry.host) && why.contains("not found"), "{why}");

    let why = controller.fails(&[
        "run",
        "broken",
        "--image=box",
        "--",
        "sh",
        "-c",
        "echo no config; exit 1",
    ]);
    assert!(why.contains("dev-0/broken.0: exited with 1 again and again"), "{why}");
    assert!(why.contains("its last lines:") && why.contains("no config"), "{why}");

    let why = controller.fails(&["run", "typo", "--image=box", "--", "/bin/nothing"]);
    assert!(why.contains("the image has no program /bin/nothing"), "{why}");

    let why = controller.fails(&["run", "large", "--image=box", "--memory=1000Gi"]);
    assert!(why.contains("bytes of memory, has"), "{why}");

    let why = controller.fails(&["scale", "web", "--replicas=1"]);
    assert!(why.contains("there is no deployment \"web\""), "{why}");
    let why = controller.fails(&["delete", "web"]);
    assert!(why.contains("there is no deployment \"web\""), "{why}");
    let why = controller.fails(&["logs", "web"]);
    assert!(why.contains("`limpet get workloads` lists them"), "{why}");
    let why = controller.fails(&["describe", "device", "dev-9"]);
    assert!(why.contains("there is no device \"dev-9\""), "{why}");
}

#[test]
fn a_log_is_followed_until_its_container_ends() {
    let fleet = Fleet::start(1);
    let script =
        "n=0; while [ $n -lt 40 ]; do echo line $n; n=$((n+1)); sleep 0.05; done; echo oops >&2";
    let detached =
        ["run", "count", "--image=box", "--restart=never", "--detach", "--", "sh", "-c", script];
    fleet.controller.ok(&detached);
    fleet.until_phases("count", &["running"]);
    let followed = fleet.controller.limpet(&["logs", "count", "-f"]);
    let expected: String = (0..40).map(|n| format!("line {n}\n")).collect();
    assert_eq!((followed.out, followed.err), (expected, "oops\n".to_owned()));
    let tail = fleet.controller.ok(&["logs", "dev-0/count.0", "--tail=2"]);
    assert_eq!(tail, "line 39\n");
}

#[test]
fn everywhere_is_every_device_and_those_that_come_later() {
    let mut fleet = Fleet::start(1);
    fleet.controller.ok(&["run", "all", "--image=box", "--everywhere"]);
    let lab = &fleet.lab;
    let second = limpet_tests::Agent::start(lab, "dev-1", &fleet.controller, &fleet.registry);
    fleet.agents.push(second);
    let all = fleet.until_phases("all", &["running", "running"]);
    assert_eq!((all[0]["id"].as_str(), all[1]["device"].as_str()), (Some("all"), Some("dev-1")));
}

#[test]
fn the_command_line_answers_for_itself() {
    let fleet = Fleet::start(0);
    let controller = &fleet.controller;
    assert!(controller.ok(&["version"]).starts_with("limpet 0."));
    for shell in ["bash", "zsh", "fish"] {
        assert!(controller.ok(&["completion", shell]).contains("limpet"), "{shell}");
    }
    for verb in [
        "up",
        "run",
        "scale",
        "apply",
        "get",
        "describe",
        "logs",
        "delete",
        "backup",
        "restore",
        "recover",
        "version",
        "completion",
    ] {
        let help = controller.ok(&[verb, "--help"]);
        assert!(help.contains("Usage: limpet"), "{help}");
    }
    for wrong in [
        &["run", "web"][..],
        &["scale", "web"],
        &["get", "nonsense"],
        &["run", "a", "--image=b", "--env", "x"],
        &["run", "Upper", "--image=b"],
        &["delete", "web?x"],
        &["describe", "device", "a b"],
        &["get", "deployments", "--select", "a=b"],
        &["recover", "--adopt", "--override"],
        &["backup"],
        &["up", "--insecure", "--lost-after", "soon"],
    ] {
        assert_eq!(controller.limpet(wrong).status, 2, "{wrong:?}");
    }
    let absent = limpet_tests::output(
        limpet_tests::program("limpet"),
        &["get", "devices", "--server", "http://127.0.0.1:1"],
    );
    assert_eq!(absent.status, 1);
    assert!(absent.err.contains("no controller answers at http://127.0.0.1:1"), "{absent:?}");
    let file = fleet.lab.path("backup").display().to_string();
    let why = controller.fails(&["backup", "/nonexistent/backup"]);
    assert!(why.contains("cannot write /nonexistent/backup.part"), "{why}");
    let done = limpet_tests::output(
        limpet_tests::program("limpet"),
        &["backup", &file, "--server", &fleet.registry.host],
    );
    assert_eq!((done.status, std::path::Path::new(&file).exists()), (1, false), "{done:?}");
    let document = controller.get("/api/v1/openapi.json");
    for path in [
        "deployments",
        "deployments/{name}/scale",
        "devices",
        "workloads",
        "events",
        "recover",
        "backup",
    ] {
        assert!(document["paths"][format!("/api/v1/{path}")].is_object(), "{path}");
    }
}

#[test]
fn memory_that_is_given_up_goes_to_who_waits_for_it() {
    let fleet = Fleet::start(1);
    let controller = &fleet.controller;
    let bytes = controller.get("/api/v1/devices/dev-0")["memory_bytes"].as_u64().unwrap();
    let most = format!("--memory={}", bytes / 3 * 2);
    controller.ok(&["run", "first", "--image=box", &most]);
    let why = controller.fails(&["run", "second", "--image=box", &most]);
    assert!(why.contains("bytes of memory, has"), "{why}");
    controller.ok(&["delete", "first"]);
    fleet.until_phases("second", &["running"]);
}

#[test]
fn scaling_to_nothing_waits_until_nothing_is_left() {
    let fleet = Fleet::start(1);
    let slow = "trap 'sleep 1; exit 0' TERM; while :; do sleep 0.1; done";
    fleet.controller.ok(&["run", "slow", "--image=box", "--replicas=2", "--", "sh", "-c", slow]);
    fleet.controller.ok(&["scale", "slow", "--replicas=0"]);
    assert!(fleet.workloads("slow").is_empty());
}

#[test]
fn a_log_that_breaks_off_is_a_failure() {
    let mut fleet = Fleet::start(1);
    fleet.controller.run_script("web", "echo on; exec sleep 100000");
    let log = fleet.lab.path("followed");
    let words = fleet.controller.command(&["logs", "web", "-f"]);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let mut follower = Process::start(&log, words[0].as_ref(), &words[1..]);
    follower.until_said("on");
    fleet.agents[0].kill();
    assert_eq!(follower.wait().code(), Some(1));
    assert!(follower.log().contains("device dev-0 went offline"), "{}", follower.log());
}

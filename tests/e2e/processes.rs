//! What our own processes may do: as little as they need.

use std::collections::BTreeSet;

use limpet_tests::{Agent, Controller, Fleet, Image, Lab, Layer, Registry, Value, eventually, run};

/// A field of `/proc/PID/status`, of each thread.
fn field(pid: u32, name: &str) -> BTreeSet<String> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let value = |thread: std::fs::DirEntry| {
        let status = std::fs::read_to_string(thread.path().join("status")).ok()?;
        let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        value.map(|value| value.split_whitespace().collect::<Vec<_>>().join(" "))
    };
    threads.filter_map(value).collect()
}

fn is(value: &str) -> BTreeSet<String> {
    [value.to_owned()].into()
}

#[test]
fn the_controller_s_unit_serves_a_fleet_with_no_capability_and_as_nobody_else() {
    let lab = Lab::new();
    let Some((controller, _unit, pid)) = Controller::as_unit(&lab, "") else {
        eprintln!("skipped: this machine has no systemd, or no cgroup v2");
        return;
    };
    assert_eq!(field(pid, "Uid"), is("990 990 990 990"));
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(field(pid, set), is("0000000000000000"), "{set}");
    }
    for (name, value) in [("NoNewPrivs", "1"), ("Seccomp", "2"), ("Groups", "990")] {
        assert_eq!(field(pid, name), is(value), "{name}");
    }
    let folder = format!("/proc/{pid}/root/var/lib/limpet-controller");
    let modes = run("find", &[&folder, "-printf", "%U %m %f\\n"]);
    for line in modes.lines() {
        let open = line.split(' ').nth(1).is_some_and(|mode| !mode.ends_with("00"));
        assert!(line.starts_with("990 ") && !open, "{line} in {modes}");
    }

    let registry = Registry::start(&lab);
    registry.push("library/box", "latest", &Image::busybox());
    let config = Agent::config("dev-0", &registry.host);
    let agent = Agent::member(&lab, "dev-0", &controller.join_string(&[]), &config);
    let online = || {
        limpet_tests::eventually_or(
            "a device online",
            || {
                let devices = controller.limpet(&["get", "devices", "-o", "json"]).out;
                let devices: Value = serde_json::from_str(&devices).ok()?;
                (devices[0]["presence"] == "online").then_some(())
            },
            || controller.process.tail() + &agent.process.tail(),
        );
    };
    online();
    controller.run_script("web", "echo hello; exec sleep 100000");
    assert!(controller.ok(&["logs", "web"]).contains("hello"));
    let backup = lab.path("backup").display().to_string();
    controller.ok(&["backup", &backup]);

    // It is started again by systemd, and knows all.
    run("kill", &["-9", &pid.to_string()]);
    eventually("the end of a process", || is_gone(pid).then_some(()));
    online();
    let web = controller.ok(&["get", "deployments", "web"]);
    assert!(web.contains("1/1"), "{web}");
    controller.ok(&["delete", "web"]);
}

fn is_gone(pid: u32) -> bool {
    !std::path::Path::new(&format!("/proc/{pid}")).exists()
}

#[test]
fn the_agent_keeps_the_capabilities_that_it_needs_and_containers_get_theirs() {
    let fleet = Fleet::start(1);
    // Everything that takes a capability to unpack: other users' files and folders, modes, opaque
    // folders, whiteouts, a file that carries capabilities.
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut theirs = limpet_tests::image::header("d/f", tar::EntryType::Regular, 0o4750, "");
    theirs.set_uid(1000);
    theirs.set_gid(1001);
    theirs.set_size(2);
    let mut folder = limpet_tests::image::header("d/", tar::EntryType::Directory, 0o500, "");
    folder.set_uid(1000);
    folder.set_gid(1001);
    let below = Image::busybox_layer().folder("o/", 0o755).file("o/hidden", 0o644, "x");
    let below = below.file("gone", 0o644, "x");
    let above = Layer::new()
        .raw(folder, b"")
        .raw(theirs, b"x\n")
        .file("o/.wh..wh..opq", 0o644, "")
        .file(".wh.gone", 0o644, "")
        .pax("SCHILY.xattr.security.capability", &capability)
        .file("capable", 0o755, "x");
    fleet.registry.push("library/hard", "latest", &Image::of(vec![below.gzip(), above.gzip()]));
    // As another user, so that its end takes a capability too.
    let script = "stat -c '%u %g %a' /d /d/f; ls /o; ls /gone; exec sleep 100000";
    let args = ["run", "hard", "--image=hard", "--user=app", "--", "sh", "-c", script];
    fleet.controller.ok(&args);
    let said = fleet.controller.ok(&["logs", "hard"]);
    assert!(said.contains("1000 1001 500\n") && said.contains("1000 1001 4750\n"), "{said}");
    assert!(!said.contains("hidden"), "{said}");

    let agent = fleet.agents[0].process.pid();
    let needed = [0, 1, 3, 4, 5, 21, 31].iter().fold(0u64, |set, bit| set | 1 << bit);
    for set in ["CapPrm", "CapEff"] {
        assert_eq!(field(agent, set), is(&format!("{needed:016x}")), "{set}");
    }
    assert_eq!(
        (field(agent, "CapInh"), field(agent, "NoNewPrivs")),
        (is("0000000000000000"), is("0"))
    );
    // What shims get back when they are executed.
    assert_eq!(field(agent, "CapBnd"), field(std::process::id(), "CapBnd"));
    let main = fleet.workloads("hard").remove(0);
    let main = u32::try_from(main["pid"].as_u64().unwrap()).unwrap();
    assert_eq!(field(main, "CapBnd"), is("00000000000005fb"));
    assert_eq!(field(main, "CapEff"), is("0000000000000000"), "it is not root");

    fleet.controller.ok(&["delete", "hard"]);
    let empty = |folder: std::path::PathBuf| std::fs::read_dir(folder).unwrap().count() == 0;
    fleet.eventually("nothing left of it", || {
        let own = &fleet.agents[0];
        let gone = [own.run.join("containers"), own.data.join("containers")];
        gone.into_iter().all(empty).then_some(())
    });
}

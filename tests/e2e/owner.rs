//! The owner of a device outranks whoever controls it.

use std::path::{Path, PathBuf};

use limpet_tests::{Agent, Fleet, Place, Value, output, run};

/// A fleet of one device with these rules of its owner.
fn owned(rules: &str) -> Fleet {
    let mut fleet = Fleet::start(0);
    let config = config(&fleet, rules);
    let agent = Agent::with_config(&fleet.lab, "dev-0", &fleet.controller, &config);
    fleet.agents.push(agent);
    fleet.until_online(1);
    fleet
}

fn config(fleet: &Fleet, rules: &str) -> String {
    format!("{}[owner]\n{rules}\n", Agent::config("dev-0", &fleet.registry.host))
}

/// The owner changes the rules.
fn change(fleet: &mut Fleet, rules: &str) {
    let config = config(fleet, rules);
    let agent = &mut fleet.agents[0];
    agent.kill();
    std::fs::write(&agent.config, config).unwrap();
    agent.restart();
}

/// Runs a workload that is refused; gives why.
fn refused(fleet: &Fleet, name: &str, flags: &[&str]) -> String {
    let args = [&["run", name, "--image=box"], flags].concat();
    fleet.controller.fails(&args)
}

fn field(status: &str, name: &str) -> String {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_default().trim().to_owned()
}

#[test]
fn a_privileged_workload_needs_the_owner_s_word_and_loses_it() {
    let mut fleet = owned("privileged = false");
    let why = refused(&fleet, "strong", &["--privileged"]);
    assert!(why.contains("dev-0: its owner does not allow privileged"), "{why}");
    fleet.controller.ok(&["delete", "strong"]);
    change(&mut fleet, "privileged = true");
    fleet.until_online(1);
    let script = "cat /proc/self/status; ls -l /dev/fuse; mknod /tmp/null c 1 3 && echo made; \
                  cat /proc/keys >/dev/null && echo unmasked; mount -t tmpfs none /tmp && echo mounted";
    let said = fleet.says("mighty", &["--privileged"], script);
    let own = std::fs::read_to_string("/proc/self/status").unwrap();
    assert_eq!(field(&said, "CapEff:"), field(&own, "CapBnd:"), "{said}");
    assert_eq!((field(&said, "Seccomp:"), field(&said, "NoNewPrivs:")), ("0".into(), "0".into()));
    for done in ["/dev/fuse", "made", "unmasked", "mounted"] {
        assert!(said.contains(done), "{done}: {said}");
    }

    // The owner thinks better of it, while nobody can move the workload elsewhere.
    fleet.controller.ok(&["run", "strong", "--image=box", "--privileged"]);
    let before = fleet.until_phases("strong", &["running"]).remove(0);
    fleet.controller.kill();
    change(&mut fleet, "privileged = false");
    let status = |fleet: &Fleet| -> Value {
        let all: Value =
            serde_json::from_str(&fleet.agents[0].ask_ok(&["status", "-o", "json"])).unwrap();
        let all = all["workloads"].as_array().cloned().unwrap_or_default();
        all.into_iter().find(|workload| workload["workload"] == "strong.0").unwrap_or_default()
    };
    limpet_tests::eventually("the agent", || {
        let done = fleet.agents[0].ask(&["status"]);
        (done.status == 0).then_some(())
    });
    assert_eq!(status(&fleet)["phase"], "running", "what runs goes on: {}", status(&fleet));
    run("kill", &["-9", &before["pid"].to_string()]);
    let refused = limpet_tests::eventually("a refusal", || {
        let now = status(&fleet);
        (now["phase"] == "failed").then_some(now)
    });
    let why = "refused by this device's owner: privileged is not allowed";
    assert_eq!(refused["message"], why, "{refused}");
    fleet.controller.restart();
    fleet.eventually("the refusal as an event", || {
        let told = fleet.story("strong");
        let count = told.iter().filter(|line| **line == format!("start-failed {why}")).count();
        (count == 1).then_some(())
    });
}

/// A mount on the host that goes with the test.
struct Mounted(PathBuf);

impl Mounted {
    fn tmpfs(path: &Path) -> Self {
        std::fs::create_dir_all(path).unwrap();
        run("mount", &["-t", "tmpfs", "limpet-test", &path.display().to_string()]);
        Self(path.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        output("umount", &["-l", &self.0.display().to_string()]);
    }
}

#[test]
fn paths_of_the_host_are_given_as_far_as_the_owner_allows() {
    let lab = limpet_tests::Lab::new();
    let base = lab.path("host").canonicalize().unwrap_or_else(|_| {
        std::fs::create_dir(lab.path("host")).unwrap();
        lab.path("host").canonicalize().unwrap()
    });
    for folder in ["data", "database", "look"] {
        std::fs::create_dir(base.join(folder)).unwrap();
    }
    std::fs::write(base.join("data/file"), "inside\n").unwrap();
    std::fs::write(base.join("database/file"), "secret\n").unwrap();
    let link = |name: &str, to: &str| std::os::unix::fs::symlink(to, base.join(name)).unwrap();
    link("data/out", "../database");
    link("data/etc", "/etc");
    link("data/proc", "/proc/self/root/etc");
    let _disk = Mounted::tmpfs(&base.join("look/disk"));
    let at = |name: &str| base.join(name).display().to_string();
    let fleet = owned(&format!("host_paths = ['{}', '{}:ro']", at("data"), at("look")));
    let mount = |name: &str, rest: &str| {
        format!("--mount=type=bind,source={},target=/data{rest}", at(name))
    };

    let script = "cat /data/file; echo new > /data/made; grep ' /data ' /proc/mounts";
    let said = fleet.says("given", &[&mount("data", "")], script);
    assert!(said.starts_with("inside\n") && said.contains("nosuid,nodev"), "{said}");
    assert_eq!(std::fs::read_to_string(base.join("data/made")).unwrap(), "new\n");
    let said = fleet.says("file", &[&mount("data/file", "")], "cat /data");
    assert_eq!(said, "inside\n");
    for (name, source, rest, script) in [
        ("asked", "data", ",readonly", "touch /data/x"),
        ("forced", "look", "", "touch /data/x"),
        ("below", "look", "", "touch /data/disk/x"),
    ] {
        let said = fleet.says(name, &[&mount(source, rest)], &format!("{script}; echo ended"));
        assert!(said.contains("Read-only file system") && said.contains("ended"), "{said}");
    }

    let rule = "refused by this device's owner: host_paths does not allow";
    for (name, source, says) in [
        ("etc", "/etc".to_owned(), format!("{rule} /etc")),
        ("root", "/".to_owned(), format!("{rule} /")),
        ("near", at("database"), format!("{rule} {}", at("database"))),
        ("out", at("data/out"), format!("{rule} {}, which {}", at("database"), at("data/out"))),
        ("through", at("data/out/file"), format!("{rule} {}", at("database/file"))),
        ("away", at("data/etc"), format!("{rule} /etc, which {} leads to", at("data/etc"))),
        ("magic", at("data/proc"), "symbolic links".to_owned()),
    ] {
        let flag = format!("--mount=type=bind,source={source},target=/data");
        let why = refused(&fleet, name, &[&flag]);
        assert!(why.contains(&says), "{name}: {why}");
        assert!(fleet.story(name).iter().any(|line| line.contains(&says)), "{name}: no event");
        assert_eq!(fleet.story(name).iter().filter(|line| line.starts_with("started")).count(), 0);
    }
    let why = fleet.controller.limpet(&[
        "run",
        "up",
        "--image=box",
        &format!("--mount=type=bind,source={}/../database,target=/data", at("data")),
    ]);
    assert!(why.err.contains("must be an absolute path without . and .."), "{why:?}");

    // What ran before goes on, and it is said once.
    fleet.controller.ok(&["run", "web", "--image=box"]);
    let before = fleet.until_phases("web", &["running"]).remove(0);
    refused(&fleet, "web", &["--mount=type=bind,source=/etc,target=/data"]);
    let after = fleet.until_phases("web", &["running"]).remove(0);
    assert_eq!(before["pid"], after["pid"]);
    assert_eq!(after["message"], format!("{rule} /etc"));
    assert_eq!(fleet.story("web").iter().filter(|line| line.contains(rule)).count(), 1);

    // What is missing may come yet.
    let why = refused(&fleet, "late", &[&mount("data/late", "")]);
    assert!(why.contains("No such file or directory"), "{why}");
    std::fs::create_dir(base.join("data/late")).unwrap();
    fleet.until_phases("late", &["running"]);
}

#[test]
fn nobody_is_given_the_agent_s_own_folders_whatever_the_owner_allows() {
    let fleet = owned("host_paths = ['/']");
    let agent = &fleet.agents[0];
    let above = agent.data.parent().unwrap();
    for (name, source) in [
        ("key", &*agent.data.join("identity")),
        ("data", &agent.data),
        ("run", &agent.run),
        ("above", above),
    ] {
        let flag = format!("--mount=type=bind,source={},target=/data", source.display());
        let why = refused(&fleet, name, &[&flag]);
        assert!(why.contains("which is the agent's own"), "{name}: {why}");
    }
}

#[test]
fn devices_of_the_host_are_given_as_far_as_the_owner_allows() {
    let fleet = owned("host_devices = ['/dev/loop-c*', '/dev/fuse']");
    let open = "[ -e /dev/loop-control ] || exit 0; dd if=/dev/loop-control of=/dev/null count=0 && echo read; \
                dd if=/dev/null of=/dev/loop-control conv=notrunc count=0 && echo written; true";
    let said = fleet.says("plain", &[], open);
    assert!(!said.contains("read") && !said.contains("written"), "{said}");
    let said = fleet.says("given", &["--device=/dev/loop-control"], open);
    assert!(said.contains("read") && said.contains("written"), "{said}");
    let script = "ls -l /dev/other; ls /dev/fuse /dev/loop-control; cat /proc/self/status";
    let said = fleet.says("named", &["--device=/dev/fuse:/dev/other"], script);
    assert!(said.contains("10, 229") && field(&said, "CapEff:").ends_with("5fb"), "{said}");
    assert_eq!(said.matches("No such file").count(), 2, "no other is there: {said}");
    let why = refused(&fleet, "kmsg", &["--device=/dev/kmsg"]);
    let rule = "refused by this device's owner: host_devices does not allow /dev/kmsg";
    assert!(why.contains(rule) && fleet.story("kmsg").iter().any(|line| line.contains(rule)));
    let why = refused(&fleet, "shm", &["--device=/dev/shm"]);
    assert!(why.contains("does not allow /dev/shm"), "{why}");

    let said = fleet.says("reader", &["--device=/dev/loop-control:r"], open);
    assert!(said.contains("read") && !said.contains("written"), "{said}");
    assert!(said.contains("Operation not permitted"), "{said}");
}

/// A fleet of one device that sees cgroup v2 alone, where no controller minds devices; the agent is
/// started through these words.
fn unified(rules: &str, through: &[&str]) -> Fleet {
    let mut fleet = Fleet::start(0);
    let config = config(&fleet, rules);
    let script = "umount -R /sys/fs/cgroup; mount -t cgroup2 none /sys/fs/cgroup && exec \"$@\"";
    let words = ["unshare", "-m", "sh", "-c", script, "sh"];
    let through = words.iter().chain(through).map(ToString::to_string).collect();
    let place = Place { through, ..Place::default() };
    let agent = Agent::placed(&fleet.lab, "dev-0", &fleet.controller, &config, place);
    fleet.agents.push(agent);
    fleet.until_online(1);
    fleet
}

#[test]
fn on_cgroup_v2_too_the_kernel_refuses_what_was_not_given() {
    let fleet = unified("host_devices = ['/dev/fuse']\nprivileged = true", &[]);
    let open = "for n in null zero fuse; do dd if=/dev/$n of=/dev/null count=0 && echo read $n; done; \
                dd if=/dev/null of=/dev/fuse conv=notrunc count=0 && echo written; true";
    for (name, flag, can, cannot) in [
        ("both", "--device=/dev/fuse", &["null", "zero", "fuse", "written"][..], &[][..]),
        ("reader", "--device=/dev/fuse:r", &["null", "zero", "fuse"], &["written"]),
        ("writer", "--device=/dev/fuse:w", &["null", "zero", "written"], &["read fuse"]),
    ] {
        let said = fleet.says(name, &[flag], open);
        assert!(can.iter().all(|did| said.contains(did)), "{name}: {said}");
        assert!(cannot.iter().all(|did| !said.contains(did)), "{name}: {said}");
        assert_eq!(said.matches("Operation not permitted").count(), cannot.len(), "{name}: {said}");
    }

    // Somebody makes nodes in a container: that of a device that was not given opens nothing.
    let script = "until [ -e /dev/late ]; do sleep 0.1; done; for n in twin late; do \
                  dd if=/dev/$n of=/dev/null count=0 && echo read $n; done; echo ended; exec sleep 100000";
    fleet.controller.run_script("plain", script);
    let pid = fleet.until_phases("plain", &["running"]).remove(0)["pid"].to_string();
    for (name, major, minor) in [("twin", "1", "5"), ("late", "10", "229")] {
        let path = format!("/proc/{pid}/root/dev/{name}");
        run("mknod", &["-m", "666", &path, "c", major, minor]);
    }
    let said = fleet.eventually("the end of a script", || {
        let logs = fleet.controller.limpet(&["logs", "plain"]);
        logs.out.contains("ended").then(|| logs.out + &logs.err)
    });
    assert!(said.contains("read twin") && !said.contains("read late"), "{said}");
    assert!(said.contains("/dev/late': Operation not permitted"), "{said}");

    let script = "mknod /dev/own c 10 229; for n in fuse own; do \
                  dd if=/dev/$n of=/dev/null count=0 && echo read $n; done";
    let said = fleet.says("mighty", &["--privileged"], script);
    assert!(said.contains("read fuse") && said.contains("read own"), "{said}");
}

/// Answers one command of bpf(2), the first argument, with an error, the second, in all that is started
/// through this: a filter as of seccomp(2), of the call's number and its first argument.
#[cfg(target_arch = "x86_64")]
const REFUSE_BPF: &str = "my ($command, $error) = splice @ARGV, 0, 2; \
    my $filter = pack('SCCL' x 6, 0x20,0,0,0, 0x15,0,3,321, 0x20,0,0,16, 0x15,0,1,$command, \
        6,0,0,0x50000 | $error, 6,0,0,0x7fff0000); \
    syscall(157, 22, 2, pack('Sx6P', 6, $filter), 0, 0) == 0 or die $!; exec @ARGV";

#[cfg(target_arch = "x86_64")]
#[test]
fn where_the_kernel_takes_no_device_programs_access_is_not_limited_and_all_else_runs() {
    let (load, attach, no_such_call, not_permitted) = ("5", "8", "38", "1");
    for (command, error, says) in [
        (load, no_such_call, "cannot do device.access"),
        (attach, not_permitted, "cannot limit access to devices: Operation not permitted"),
    ] {
        let through = ["perl", "-e", REFUSE_BPF, command, error];
        let fleet = unified("host_devices = ['/dev/fuse']", &through);
        let why = refused(&fleet, "reader", &["--device=/dev/fuse:r"]);
        assert!(why.contains(says), "{why}");
        fleet.controller.ok(&["delete", "reader"]);
        for (name, flags) in [("plain", &[][..]), ("given", &["--device=/dev/fuse"])] {
            let said = fleet.says(name, flags, "dd if=/dev/fuse of=/dev/null count=0; echo ended");
            assert_eq!(said.contains("No such file"), name == "plain", "{name}: {said}");
            assert!(said.contains("ended") && !said.contains("not permitted"), "{name}: {said}");
        }
    }
}

#[test]
fn registries_memory_network_and_logs_are_the_owner_s() {
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap();
    let kib: u64 = memory.split_whitespace().nth(1).unwrap().parse().unwrap();
    // Of a hundredth, six tenths each: one fits.
    let limit = format!("--memory={}", kib * 1024 / 100 * 6 / 10);
    let rules = "registries = ['docker.io/library/box']\nmemory_share = 0.01\nremote_logs = false";
    let mut fleet = owned(rules);
    let why = fleet.controller.fails(&["run", "alien", "--image=docker.io/other/box", &limit]);
    let rule = "refused by this device's owner: registries does not allow docker.io/other/box";
    assert!(why.contains(rule), "{why}");
    assert!(fleet.story("alien").iter().any(|line| line.contains(rule)));
    assert!(
        fleet.story("alien").iter().all(|line| !line.starts_with("pull")),
        "nothing is fetched"
    );
    let why = refused(&fleet, "endless", &[]);
    assert!(why.contains("memory_share needs workloads with a limit"), "{why}");
    fleet.controller.ok(&["run", "first", "--image=box", &limit]);
    let why = refused(&fleet, "second", &[&limit]);
    assert!(why.contains("refused by this device's owner: memory_share leaves"), "{why}");
    let why = fleet.controller.limpet(&["logs", "first"]);
    assert!(
        why.err.contains("refused by this device's owner: remote_logs is not allowed"),
        "{why:?}"
    );
    fleet.controller.ok(&["delete", "first"]);
    fleet.until_phases("second", &["running"]);

    change(&mut fleet, "host_network = false");
    fleet.until_online(1);
    let why = refused(&fleet, "offline", &[]);
    assert!(why.contains("refused by this device's owner: host_network is not allowed"), "{why}");
    fleet.until_phases("second", &["running"]);
}

#[test]
fn a_rule_that_cannot_be_ends_the_agent_with_its_line() {
    let fleet = owned("");
    let config = config(&fleet, "host_paths = ['/srv/../etc']");
    let file = fleet.lab.file("bad.toml", &config).display().to_string();
    let done = output(limpet_tests::program("limpet-agent"), &["run", "--config", &file]);
    let line = format!("line {}", config.lines().count());
    assert_eq!(done.status, 2);
    assert!(done.err.contains(&line) && done.err.contains("host_paths"), "{}", done.err);
    assert!(done.err.contains("write an absolute path without . and .."), "{}", done.err);
}

//! What a container finds, may do, and is bounded by.

use limpet_tests::{Fleet, agent, json};

#[test]
fn a_container_finds_its_names_its_user_and_its_environment() {
    let fleet = Fleet::start(1);
    let flags = ["--env", "KEY=a value", "--env", "FROM=workload", "--workdir=/tmp", "--user=app"];
    let script = "hostname; cat /etc/hostname; cat /etc/hosts; id -u; id -g; id -G; pwd; echo $KEY; echo $FROM; echo $HOME";
    let said = fleet.says("names", &flags, script);
    let hosts = "127.0.0.1\tlocalhost names-0\n::1\tlocalhost names-0\n";
    assert_eq!(
        said,
        format!("names-0\nnames-0\n{hosts}1000\n1001\n1001 44\n/tmp\na value\nworkload\n/tmp\n")
    );
    let host = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    assert_eq!(fleet.says("resolv", &[], "cat /etc/resolv.conf").trim(), host.trim());
    let why = fleet.controller.fails(&["run", "nobody", "--image=box", "--user=nobody"]);
    assert!(why.contains("the image has no user \"nobody\" in /etc/passwd"), "{why}");
}

#[test]
fn a_container_may_do_little_to_its_host() {
    let fleet = Fleet::start(1);
    let status = fleet.says("status", &[], "cat /proc/self/status");
    let field = |name: &str| {
        status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned()
    };
    assert_eq!(field("NoNewPrivs:"), "1");
    assert_eq!(field("Seccomp:"), "2");
    // CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, SETPCAP, NET_BIND_SERVICE.
    assert_eq!(
        (field("CapEff:"), field("CapBnd:")),
        ("00000000000005fb".into(), "00000000000005fb".into())
    );
    for (name, script, refusal) in [
        ("mount", "mount -t tmpfs none /tmp", "ermi"),
        ("mknod", "mknod /tmp/disk b 8 0", "ermi"),
        ("chroot", "chroot / /bin/true", "ermi"),
        ("sys", "echo 1 > /proc/sys/vm/drop_caches", "Read-only"),
        (
            "cgroup",
            "for f in memory/memory.limit_in_bytes memory.max; do echo 64M > /sys/fs/cgroup/$f; done",
            "can't create",
        ),
    ] {
        let said = fleet.says(name, &[], &format!("{script}; echo ended"));
        assert!(said.contains(refusal) && said.contains("ended"), "{script}: {said}");
    }
    assert_eq!(
        fleet.says("masked", &[], "cat /proc/keys /proc/timer_list; ls /sys/firmware; echo $?"),
        "0\n"
    );
    // It inherits no ignored signal: a pipe that nobody reads ends who writes.
    assert_eq!(fleet.says("pipe", &[], "yes | cat </dev/null; echo ended"), "ended\n");
    // Its own processes are all it sees, and what it writes is seen nowhere else.
    assert_eq!(
        fleet
            .says("alone", &[], "echo $$; echo x > /new; ls /new; ls /proc | grep -c '^[0-9]'")
            .lines()
            .next(),
        Some("1")
    );
    assert!(!std::path::Path::new("/new").exists());
    assert_eq!(fleet.says("apart", &[], "ls /new 2>/dev/null; echo fresh"), "fresh\n");
}

/// What a container has of its own, and what it shares with its host until there are networks.
#[test]
fn a_container_sees_nothing_of_its_host() {
    let fleet = Fleet::start(1);
    let names = ["pid", "ipc", "uts", "mnt", "cgroup", "net", "user"];
    let script = format!(
        "for n in {}; do ls -l /proc/self/ns/$n; done; cat /proc/self/cgroup; echo end; \
         cat /proc/sysvipc/shm; echo end; ls /proc; echo end; ls /dev; echo end; ls /sys/fs/cgroup",
        names.join(" ")
    );
    // Memory that a process of the host shares: none of it is in the container's list.
    let made = limpet_tests::run("ipcmk", &["-M", "4096"]);
    let id = made.trim().rsplit(' ').next().unwrap().to_owned();
    let said = fleet.says("inside", &[], &script);
    limpet_tests::run("ipcrm", &["-m", &id]);
    let mut parts = said.split("end\n");
    let mut part = || parts.next().unwrap().to_owned();
    let own = part();
    for name in names {
        let host = std::fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
        let shared = own.contains(&host.display().to_string());
        assert_eq!(shared, ["net", "user"].contains(&name), "{name}: {own}");
    }
    let groups = own.lines().filter(|line| !line.contains("->") && line.contains(':'));
    assert!(groups.clone().count() > 0 && groups.into_iter().all(|l| l.ends_with(":/")), "{own}");
    assert_eq!(part().lines().count(), 1, "a head and no memory of the host");
    let processes = part().lines().filter(|name| name.parse::<u32>().is_ok()).count();
    assert!(processes <= 2, "{processes} processes are seen");
    let devices = part();
    let known = [
        "console", "core", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm",
        "stderr", "stdin", "stdout", "tty", "urandom", "zero",
    ];
    assert!(devices.lines().all(|device| known.contains(&device)), "{devices}");
}

#[test]
fn limits_hold() {
    let fleet = Fleet::start(1);
    let limits = ["--memory=16Mi", "--cpus=0.25", "--pids=6"];
    let args = [&["run", "small", "--image=box"][..], &limits, &["--", "sh", "-c", "sleep 100000"]]
        .concat();
    fleet.controller.ok(&args);
    let container = fleet.until_phases("small", &["running"]).remove(0)["container"]
        .as_str()
        .unwrap()
        .to_owned();
    let group = format!("{}/{container}", fleet.agents[0].cgroup);
    let value = |names: &[&str]| {
        let paths = agent::hierarchies().into_iter().flat_map(|mount| {
            names.iter().map(move |name| (mount.clone(), *name)).collect::<Vec<_>>()
        });
        let texts = paths.filter_map(|(mount, name)| {
            std::fs::read_to_string(mount.join(group.trim_start_matches('/')).join(name)).ok()
        });
        texts.map(|text| text.trim().to_owned()).next().unwrap_or_default()
    };
    assert_eq!(value(&["memory.limit_in_bytes", "memory.max"]), (16 << 20).to_string());
    assert!(["25000", "25000 100000"].contains(&value(&["cpu.cfs_quota_us", "cpu.max"]).as_str()));
    assert_eq!(value(&["pids.max"]), "6");

    let said = fleet.says(
        "forks",
        &["--pids=4"],
        "sh -c 'for n in 1 2 3 4 5 6 7 8; do sleep 5 & done'; echo ended",
    );
    assert!(said.contains("can't fork"), "{said}");
    let greedy = [
        "run",
        "greedy",
        "--image=box",
        "--restart=never",
        "--memory=16Mi",
        "--",
        "dd",
        "if=/dev/zero",
        "of=/dev/shm/x",
        "bs=1M",
        "count=60",
    ];
    fleet.controller.limpet(&greedy);
    let ended = fleet.until_phases("greedy", &["failed"]).remove(0);
    assert_eq!(ended["exit"], json!({"signal": 9}), "{ended}");
}

#[test]
fn restart_policies_and_ends_are_kept_to() {
    let fleet = Fleet::start(1);
    for (name, policy, script, phase, exit) in [
        ("never-0", "never", "exit 0", "exited", json!({"code": 0})),
        ("never-3", "never", "exit 3", "failed", json!({"code": 3})),
        ("failure-0", "on-failure", "exit 0", "exited", json!({"code": 0})),
    ] {
        let policy = format!("--restart={policy}");
        fleet.controller.limpet(&[
            "run",
            name,
            "--image=box",
            &policy,
            "--detach",
            "--",
            "sh",
            "-c",
            script,
        ]);
        let ended = fleet.until_phases(name, &[phase]).remove(0);
        assert_eq!((&ended["exit"], &ended["restarts"]), (&exit, &json!(0)), "{name}");
    }
    for (name, policy) in [("again-3", "on-failure"), ("again-0", "always")] {
        let (policy, script) = (format!("--restart={policy}"), format!("exit {}", &name[6..]));
        fleet.controller.limpet(&[
            "run",
            name,
            "--image=box",
            &policy,
            "--detach",
            "--",
            "sh",
            "-c",
            &script,
        ]);
        fleet.eventually("restarts", || {
            (fleet.workloads(name).first()?["restarts"].as_u64()? >= 2).then_some(())
        });
    }
}

#[test]
fn a_container_is_asked_to_end_and_then_made_to() {
    let fleet = Fleet::start(1);
    let polite = "trap 'exit 5' USR1; while :; do sleep 0.1; done";
    let stubborn = "trap '' TERM; while :; do sleep 0.1; done";
    fleet.controller.ok(&[
        "run",
        "polite",
        "--image=box",
        "--stop-signal=SIGUSR1",
        "--",
        "sh",
        "-c",
        polite,
    ]);
    fleet.controller.ok(&[
        "run",
        "stubborn",
        "--image=box",
        "--stop-grace=300ms",
        "--",
        "sh",
        "-c",
        stubborn,
    ]);
    fleet.controller.ok(&["delete", "polite", "stubborn"]);
    for (name, end) in
        [("polite", "exited exited with 5"), ("stubborn", "exited killed by SIGKILL")]
    {
        fleet.eventually(end, || {
            let story = fleet.story(name);
            let at = |text: &str| story.iter().position(|line| line.starts_with(text));
            (at("stopping")? < at(end)? && at(end)? < at("removed")?).then_some(())
        });
    }
}

#[test]
fn a_new_revision_replaces_the_container_and_a_bad_one_leaves_it_running() {
    let fleet = Fleet::start(1);
    fleet.controller.ok(&["run", "web", "--image=box"]);
    let first = fleet.until_phases("web", &["running"]).remove(0);
    let why = fleet.controller.fails(&["run", "web", "--image=box:none"]);
    assert!(why.contains("not found"), "{why}");
    let still = fleet.until_phases("web", &["running"]).remove(0);
    assert_eq!(still["pid"], first["pid"], "nothing is stopped before the next image is here");
    // It dies meanwhile: better the old one than none.
    limpet_tests::run("kill", &["-9", &first["pid"].to_string()]);
    let again = fleet.eventually("the old revision again", || {
        let now = fleet.workloads("web").remove(0);
        (now["phase"] == "running" && now["pid"] != first["pid"]).then_some(now)
    });
    assert_eq!(again["revision"], first["revision"]);
    assert!(fleet.controller.fails(&["scale", "web", "--replicas=1"]).contains("not found"));
    fleet.controller.ok(&["run", "web", "--image=box", "--env", "K=2"]);
    let second = fleet.until_phases("web", &["running"]).remove(0);
    assert_ne!(second["pid"], first["pid"]);
    assert_eq!(second["restarts"], 0, "a new revision is no restart");
}

/// Takes away what a test that fails leaves: the harness could not follow either.
struct Deep(std::path::PathBuf);

impl Drop for Deep {
    fn drop(&mut self) {
        limpet_tests::output("rm", &["-rf", &self.0.display().to_string()]);
    }
}

#[test]
fn folders_deeper_than_an_agent_could_follow_are_taken_away() {
    let fleet = Fleet::start(1);
    let writable = Deep(fleet.agents[0].data.join("containers"));
    // A thousand folders in each other, again and again below the one before.
    let script = "p=$(i=0; while [ $i -lt 1000 ]; do printf a/; i=$((i+1)); done); \
                  mkdir -p 0/$p; n=0; while [ $n -lt 25 ]; do m=$((n+1)); mkdir -p $m/$p; \
                  mv $n $m/$p; n=$m; done; echo deep";
    let args = ["run", "deep", "--image=box", "--restart=never", "--", "sh", "-c", script];
    fleet.controller.ok(&args);
    fleet.eventually("deep folders", || {
        let story = fleet.story("deep");
        story.iter().any(|line| line == "exited exited with 0").then_some(())
    });
    assert!(fleet.controller.ok(&["logs", "deep"]).contains("deep"));
    fleet.eventually("no writable layer", || {
        (std::fs::read_dir(&writable.0).unwrap().count() == 0).then_some(())
    });
    fleet.controller.ok(&["run", "web", "--image=box"]);
    fleet.until_phases("web", &["running"]);
}

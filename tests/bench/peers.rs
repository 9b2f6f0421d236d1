//! crun and runc on the bundle that a shim has made.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use limpet_tests::{Fleet, Lab, Value, json, output};

use crate::{TIMES, median};

/// Runs a command again and again; prints how long each took, in microseconds.
pub(crate) fn time(times: usize, command: &[String]) {
    for number in 0..times {
        let name = format!("bench-{}-{number}", std::process::id());
        let args = command.iter().map(|arg| arg.replace("NAME", &name));
        let args: Vec<String> = args.collect();
        let began = Instant::now();
        let status = Command::new(&args[0])
            .args(&args[1..])
            .stdin(Stdio::null())
            .status();
        let took = began.elapsed();
        assert!(status.unwrap().success(), "{args:?}");
        println!("{}", took.as_micros());
    }
}

/// The medians of both; a peer that does not run here says so.
pub(crate) fn run(lab: &Lab) -> Vec<(&'static str, Duration)> {
    let bundle = lab.path("bundle");
    make(&bundle);
    let measured = ["crun", "runc"].into_iter().filter_map(|peer| {
        // crun 1.8 refuses cgroup hybrid mode: `unified` is hidden from it in a namespace of its own.
        let script = format!(
            "umount -l /sys/fs/cgroup/unified 2>/dev/null; exec \"$0\" time {TIMES} {peer} run --bundle {} NAME",
            bundle.display()
        );
        let own = std::env::current_exe().unwrap().display().to_string();
        let args = ["--mount", "--propagation", "private", "sh", "-c", &script, &own];
        let done = output("unshare", &args);
        let times: Vec<Duration> = done.out.lines().filter_map(|line| Some(Duration::from_micros(line.parse().ok()?))).collect();
        if times.len() < TIMES {
            eprintln!("{peer} does not run here: {}", done.err);
            return None;
        }
        Some((peer, median(times)))
    });
    measured.collect()
}

/// A bundle as a shim makes it: its own configuration, with `true` for a program.
fn make(bundle: &Path) {
    let fleet = Fleet::start(1);
    fleet.controller.ok(&["run", "model", "--image=box"]);
    let folder = fs::read_dir(fleet.agents[0].run.join("containers"))
        .unwrap()
        .flatten()
        .next()
        .unwrap();
    let made = folder.path().join("bundle");
    fs::create_dir_all(bundle.join("rootfs/bin")).unwrap();
    fs::create_dir_all(bundle.join("rootfs/etc")).unwrap();
    fs::copy("/bin/busybox", bundle.join("rootfs/bin/true")).unwrap();
    let mut config: Value =
        serde_json::from_slice(&fs::read(made.join("config.json")).unwrap()).unwrap();
    config["process"]["args"] = json!(["/bin/true"]);
    config["linux"]["cgroupsPath"] = json!("/limpet-bench");
    for mount in config["mounts"].as_array_mut().unwrap() {
        let Some(source) = mount["source"]
            .as_str()
            .filter(|source| source.starts_with('/'))
        else {
            continue;
        };
        let copy = bundle.join(Path::new(source).file_name().unwrap());
        fs::copy(source, &copy).unwrap();
        mount["source"] = json!(copy);
    }
    fs::write(bundle.join("config.json"), config.to_string()).unwrap();
}

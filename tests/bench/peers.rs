//! crun and runc on the bundle that a shim has made.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use limpet_tests::{Fleet, Lab, Value, json};

/// Another runtime, run whenever it is asked to.
pub(crate) struct Peer {
    /// Its program.
    pub(crate) name: &'static str,
    child: Child,
    answers: BufReader<ChildStdout>,
}

impl Peer {
    /// Those of crun and runc that run here; one that does not says so.
    pub(crate) fn all(lab: &Lab) -> Vec<Self> {
        let bundle = lab.path("bundle");
        make(&bundle);
        let peers = ["crun", "runc"].map(|name| Self::start(name, &bundle));
        let works = |peer: &mut Self| {
            let works = peer.run().is_some();
            if !works {
                eprintln!("{} does not run here", peer.name);
            }
            works
        };
        peers.into_iter().filter_map(|mut peer| works(&mut peer).then_some(peer)).collect()
    }

    /// crun 1.8 refuses cgroup hybrid mode: `unified` is hidden from it in a namespace of its own.
    fn start(name: &'static str, bundle: &Path) -> Self {
        let own = std::env::current_exe().unwrap();
        let script = "umount -l /sys/fs/cgroup/unified 2>/dev/null; exec \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"]);
        command.arg(own).args(["serve", name, "run", "--bundle"]).arg(bundle).arg("NAME");
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        Self { name, child, answers }
    }

    /// Runs the bundle once; how long the whole command took.
    pub(crate) fn run(&mut self) -> Option<Duration> {
        self.child.stdin.as_mut()?.write_all(b"\n").ok()?;
        let mut line = String::new();
        self.answers.read_line(&mut line).ok()?;
        line.trim().parse().ok().map(Duration::from_micros)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// Runs a command for each line of standard input; prints how long it took, in microseconds.
pub(crate) fn serve(command: &[String]) {
    for (number, _) in std::io::stdin().lines().enumerate() {
        let name = format!("bench-{}-{number}", std::process::id());
        let args: Vec<String> = command.iter().map(|arg| arg.replace("NAME", &name)).collect();
        let began = Instant::now();
        let mut command = Command::new(&args[0]);
        let status = command.args(&args[1..]).stdin(Stdio::null()).status();
        let took = began.elapsed();
        match status.is_ok_and(|status| status.success()) {
            true => println!("{}", took.as_micros()),
            false => return,
        }
    }
}

/// A bundle as a shim makes it: its own configuration, with `true` for a program.
fn make(bundle: &Path) {
    let fleet = Fleet::start(1);
    fleet.controller.ok(&["run", "model", "--image=box"]);
    let folder =
        fs::read_dir(fleet.agents[0].run.join("containers")).unwrap().flatten().next().unwrap();
    let made = folder.path().join("bundle");
    fs::create_dir_all(bundle.join("rootfs/bin")).unwrap();
    fs::create_dir_all(bundle.join("rootfs/etc")).unwrap();
    fs::copy("/bin/busybox", bundle.join("rootfs/bin/true")).unwrap();
    let mut config: Value =
        serde_json::from_slice(&fs::read(made.join("config.json")).unwrap()).unwrap();
    config["process"]["args"] = json!(["/bin/true"]);
    config["linux"]["cgroupsPath"] = json!("/limpet-bench");
    for mount in config["mounts"].as_array_mut().unwrap() {
        let Some(source) = mount["source"].as_str().filter(|source| source.starts_with('/')) else {
            continue;
        };
        let copy = bundle.join(Path::new(source).file_name().unwrap());
        fs::copy(source, &copy).unwrap();
        mount["source"] = json!(copy);
    }
    fs::write(bundle.join("config.json"), config.to_string()).unwrap();
}

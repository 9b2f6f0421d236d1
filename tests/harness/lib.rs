//! What end-to-end tests and benchmarks stand on: real processes in folders of their own, ended
//! and swept away when a test ends, whichever way it does.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test stops where its premise fails")]

pub mod agent;
pub mod card;
pub mod controller;
pub mod disk;
pub mod hang;
pub mod image;
pub mod island;
pub mod member;
pub mod mosquitto;
pub mod process;
pub mod proxy;
pub mod registry;
pub mod signer;
pub mod tinyproxy;
pub mod unit;
pub mod upgrade;
pub mod vm;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

pub use agent::{Agent, Door, Place};
pub use card::{Card, Chance, Unflushed};
pub use controller::Controller;
pub use disk::Disk;
pub use hang::Hung;
pub use image::{Image, Layer};
pub use island::{Harbour, Island};
pub use member::Member;
pub use mosquitto::{Mosquitto, Overheard, Owner};
pub use process::{Process, output, run};
pub use proxy::Proxy;
pub use registry::Registry;
pub use serde_json::{Value, json};
pub use signer::Signer;
pub use tinyproxy::Tinyproxy;
pub use unit::{Told, Unit};
pub use vm::{Around, Board, Vm};

/// A folder for one test, and names that nothing else on this machine uses.
pub struct Lab {
    folder: tempfile::TempDir,
    memory: tempfile::TempDir,
}

impl Lab {
    /// A fresh one.
    ///
    /// # Panics
    /// When this is not root: containers could not be made.
    pub fn new() -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "end-to-end tests make containers: run them as root"
        );
        // `make bench` has a name of its own, so that tests that run beside it sweep none of it away.
        let prefix = std::env::var("LIMPET_LAB").unwrap_or("limpet-test-".to_owned());
        let folder = |place: &Path| {
            let made = tempfile::Builder::new().prefix(&prefix).tempdir_in(place);
            made.unwrap()
        };
        Self { folder: folder(&std::env::temp_dir()), memory: folder("/dev/shm".as_ref()) }
    }

    /// A path in the test's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A path in a folder of the test's that is kept in memory, as `/run` is.
    pub fn in_memory(&self, name: &str) -> PathBuf {
        self.memory.path().join(name)
    }

    /// A name that begins with the test's own: for control groups.
    pub fn name(&self, suffix: &str) -> String {
        let own = self.folder.path().file_name().unwrap().to_string_lossy();
        format!("{own}-{suffix}")
    }

    /// A file in the test's folder.
    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, content).unwrap();
        path
    }
}

impl Default for Lab {
    fn default() -> Self {
        Self::new()
    }
}

/// A controller, a registry that holds the image `box`, and devices.
pub struct Fleet {
    // In this order they are dropped: devices first.
    /// The devices, `dev-0` and so on.
    pub agents: Vec<Agent>,
    /// The controller.
    pub controller: Controller,
    /// The registry; devices know it as the mirror of `docker.io`.
    pub registry: Registry,
    /// The folder of all of them.
    pub lab: Lab,
}

impl Fleet {
    /// A fleet of `devices`, connected.
    pub fn start(devices: usize) -> Self {
        Self::of(devices, Controller::start)
    }

    /// The same, where nobody is asked who it is: for tests of `--insecure`.
    pub fn insecure(devices: usize) -> Self {
        Self::of(devices, |lab| Controller::insecure(lab, &[]))
    }

    /// A fleet of `devices` of this controller, connected.
    pub fn of(devices: usize, controller: impl Fn(&Lab) -> Controller) -> Self {
        let lab = Lab::new();
        let registry = Registry::start(&lab);
        registry.push("library/box", "latest", &Image::busybox());
        let controller = controller(&lab);
        let agents = (0..devices)
            .map(|n| Agent::start(&lab, &format!("dev-{n}"), &controller, &registry))
            .collect();
        let fleet = Self { agents, controller, registry, lab };
        fleet.until_online(devices);
        fleet
    }

    /// Waits until this many devices are connected.
    pub fn until_online(&self, count: usize) {
        self.eventually("devices online", || {
            let devices = self.controller.list("/api/v1/devices");
            let online = devices.iter().filter(|d| d["presence"] == "online");
            (online.count() == count).then_some(())
        });
    }

    /// Waits for something; when it does not come, fails with the ends of all logs.
    pub fn eventually<T>(&self, what: &str, look: impl FnMut() -> Option<T>) -> T {
        eventually_or(what, look, || {
            let mut text = self.controller.process.tail();
            for agent in &self.agents {
                text += &agent.process.tail();
            }
            text + &self.controller.limpet(&["get", "events"]).out
        })
    }

    /// Waits until a deployment's workloads are exactly these phases, in the order of their ids,
    /// and gives them.
    pub fn until_phases(&self, deployment: &str, phases: &[&str]) -> Vec<Value> {
        self.eventually(&format!("{deployment} to be {phases:?}"), || {
            let all = self.workloads(deployment);
            let now: Vec<&str> = all.iter().filter_map(|w| w["phase"].as_str()).collect();
            (now == phases).then_some(all)
        })
    }

    /// Waits until all workloads of a deployment have come to their end.
    pub fn until_ended(&self, deployment: &str) {
        self.eventually(&format!("the end of {deployment}"), || {
            let all = self.workloads(deployment);
            let ended =
                |workload: &Value| workload["phase"] == "exited" || workload["phase"] == "failed";
            (!all.is_empty() && all.iter().all(ended)).then_some(())
        });
    }

    /// The workloads of a deployment.
    pub fn workloads(&self, deployment: &str) -> Vec<Value> {
        self.controller.list(&format!("/api/v1/workloads?deployment={deployment}"))
    }

    /// Runs a script to its end as a workload with these flags; gives what it wrote.
    pub fn says(&self, name: &str, flags: &[&str], script: &str) -> String {
        let base = ["run", name, "--image=box", "--restart=never", "--timeout=60s"];
        let args = [&base[..], flags, &["--", "sh", "-c", script]].concat();
        self.controller.ok(&args);
        self.until_ended(name);
        let done = self.controller.limpet(&["logs", name, "--tail=1000"]);
        done.out + &done.err
    }

    /// Kinds and messages of a deployment's events, in order.
    pub fn story(&self, deployment: &str) -> Vec<String> {
        let path = format!("/api/v1/events?deployment={deployment}&limit=10000");
        let text = |event: &Value, key: &str| event[key].as_str().unwrap_or_default().to_owned();
        let events = self.controller.list(&path);
        let line = |event: &Value| format!("{} {}", text(event, "kind"), text(event, "message"));
        events.iter().map(line).collect()
    }
}

/// How long anything may take before a test gives up: far beyond what a loaded machine needs.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits for something that comes by itself.
pub fn eventually<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    eventually_or(what, look, String::new)
}

/// Waits for something; when it does not come, fails with what `explain` says.
pub fn eventually_or<T>(
    what: &str,
    mut look: impl FnMut() -> Option<T>,
    explain: impl FnOnce() -> String,
) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        if Instant::now() >= deadline {
            panic!("waited {PATIENCE:?} for {what}\n{}", explain());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Where the programs under test are: beside the test, unless `LIMPET_BIN_DIR` says otherwise.
pub fn program(name: &str) -> PathBuf {
    let folder = std::env::var_os("LIMPET_BIN_DIR").map(PathBuf::from);
    let folder = folder.unwrap_or_else(|| {
        let own = std::env::current_exe().unwrap();
        let folder = own.parent().unwrap();
        let deps = folder.file_name().is_some_and(|name| name == "deps");
        if deps { folder.parent().unwrap() } else { folder }.to_owned()
    });
    let path = folder.join(name);
    assert!(path.exists(), "{} is not built: run make", path.display());
    path
}

/// A port of loopback that nobody listens on, below those that the kernel gives to clients. No test of
/// this run gets it again: it may not listen there yet, or must never.
pub fn free_port() -> u16 {
    use std::collections::hash_map::RandomState;
    use std::hash::{BuildHasher, Hasher};
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    loop {
        let random = RandomState::new().build_hasher().finish();
        let port = 20_000 + u16::try_from(random % 10_000).unwrap_or(0);
        let is_free = || std::net::TcpListener::bind(("127.0.0.1", port)).is_ok();
        if GIVEN.lock().unwrap().insert(port) && is_free() {
            return port;
        }
    }
}

/// A program's start time (proc(5), field 22 of stat): with its pid it names it for good.
pub fn start_time(pid: u64) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// The processes whose command line has this in it, by pid.
pub fn processes_with(text: &str) -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid: &i32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(text)
    })
    .collect()
}

/// The end of a text, for a message.
pub(crate) fn last_lines(path: &Path, count: usize) -> String {
    let text = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(count);
    lines[from..].iter().map(|line| format!("  {line}\n")).collect()
}

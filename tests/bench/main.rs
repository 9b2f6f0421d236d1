//! `make bench`: sizes, memory and latencies of the released programs, beside their goals. Peers
//! run in the same run, on the same bundle.
#![expect(clippy::unwrap_used, reason = "a benchmark stops where its premise fails")]

mod connect;
mod memory;
mod mqtt;
mod peers;
mod process;
mod quiet;
mod sizes;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use limpet_tests::{Agent, Fleet, program};

/// Repetitions of a latency; the median of them is printed.
const TIMES: usize = 40;
/// Between two that take turns: the kernel waits longer for the first process that changes its control
/// group in a while (an RCU grace period), which is what a device sees.
const PAUSE: Duration = Duration::from_millis(100);

fn main() {
    if let [_, mode, command @ ..] = &std::env::args().collect::<Vec<_>>()[..]
        && mode == "serve"
    {
        return peers::serve(command);
    }
    println!("| What | Measured | Goal |\n|---|---|---|");
    match std::env::args().nth(1).as_deref() {
        Some("quiet") => return quiet::measure(),
        Some("connect") => return connect::measure(),
        Some("sizes") => return sizes::measure(),
        Some("memory") => return memory::measure(&Fleet::start(1)),
        Some(_) | None => {}
    }
    native_sizes();
    sizes::measure();
    let fleet = Fleet::start(1);
    memory::measure(&fleet);
    publish_to_running(&fleet);
    heal(&fleet);
    scale(&fleet);
    drop(fleet);
    connect::measure();
    quiet::measure();
}

fn row(what: &str, measured: &str, goal: &str) {
    println!("| {what} | {measured} | {goal} |");
}

fn ms(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}

pub(crate) fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn native_sizes() {
    for (name, goal) in [("limpet-agent", "5 MB (P2)"), ("limpet", "")] {
        let bytes = fs::metadata(program(name)).unwrap().len();
        let size = format!("{:.2} MB", bytes as f64 / 1e6);
        row(
            &format!("`{name}` of this machine ({}), stripped", std::env::consts::ARCH),
            &size,
            goal,
        );
    }
}

/// How many main processes run on the device, as their shims have recorded.
pub(crate) fn running(agent: &Agent) -> usize {
    let folders = fs::read_dir(agent.run.join("containers")).unwrap().flatten();
    let began = |path: &Path| path.join("state").exists() && !path.join("exit").exists();
    folders.filter(|entry| began(&entry.path())).count()
}

pub(crate) fn until_running(agent: &Agent, count: usize) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while running(agent) != count {
        assert!(Instant::now() < deadline, "{} of {count} run", running(agent));
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Turn about with the peers, so that all find the same machine.
fn publish_to_running(fleet: &Fleet) {
    let agent = &fleet.agents[0];
    let [.., ca, _, certificate, _, key] = fleet.controller.publisher()[..] else {
        unreachable!("a publisher has files");
    };
    let tls = mqtt::tls([ca, certificate, key]);
    let port = fleet.controller.mqtt_port;
    let mut publisher = mqtt::Client::connect(port, Some(&tls), "bench").unwrap();
    let mut peers = peers::Peer::all(&fleet.lab);
    let mut theirs = vec![Vec::new(); peers.len()];
    let mut ours = Vec::new();
    for _ in 0..TIMES {
        until_running(agent, 0);
        let began = Instant::now();
        publisher.publish("limpet/v1/deploy/quick", b"image: box\nstop: {grace: 0s}");
        until_running(agent, 1);
        ours.push(began.elapsed());
        publisher.publish("limpet/v1/deploy/quick", b"");
        fleet.until_phases("quick", &[]);
        for (peer, times) in peers.iter_mut().zip(&mut theirs) {
            std::thread::sleep(PAUSE);
            times.extend(peer.run());
        }
        std::thread::sleep(PAUSE);
    }
    let ours = median(ours);
    row("publish on MQTT to process running, image local", &ms(ours), "");
    for (peer, times) in peers.iter().zip(theirs) {
        let name = peer.name;
        let theirs = median(times);
        let ratio = ours.as_secs_f64() / theirs.as_secs_f64();
        let what =
            format!("`{name} run` of the same bundle with `true` for a program, whole command");
        row(&what, &ms(theirs), "");
        let goal = if name == "crun" { "1.5 (P3)" } else { "" };
        let what = format!("publish to running, as a ratio to `{name} run`");
        row(&what, &format!("{ratio:.2}"), goal);
    }
}

fn heal(fleet: &Fleet) {
    let agent = &fleet.agents[0];
    let times = (0..TIMES / 2).map(|n| {
        let name = format!("heal-{n}");
        fleet.controller.ok(&["run", &name, "--image=box", "--stop-grace=0s"]);
        let pid = fleet.workloads(&name)[0]["pid"].as_u64().unwrap();
        let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
        let folders = || fs::read_dir(agent.run.join("containers")).unwrap().count();
        let began = Instant::now();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        while folders() < 2 {
            std::thread::sleep(Duration::from_micros(200));
        }
        until_running(agent, 1);
        let took = began.elapsed();
        fleet.controller.ok(&["delete", &name]);
        took
    });
    row("main process killed to replacement running", &ms(median(times.collect())), "100 ms (P4)");
}

fn scale(fleet: &Fleet) {
    let agent = &fleet.agents[0];
    fleet.controller.ok(&["run", "many", "--image=box", "--stop-grace=0s"]);
    for (from, to) in [(1, 10), (10, 50)] {
        let replicas = format!("--replicas={to}");
        let began = Instant::now();
        fleet.controller.ok(&["scale", "many", &replicas, "--detach"]);
        until_running(agent, to);
        let took = began.elapsed();
        row(&format!("scale {from} to {to} on one device until all run"), &ms(took), "");
    }
    fleet.controller.ok(&["delete", "many"]);
}

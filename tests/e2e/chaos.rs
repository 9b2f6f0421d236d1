//! Everything is killed at random while everything changes; at the end all is as it should be, and
//! nothing else is there.

use std::time::{Duration, Instant};

use limpet_tests::{Chance, Fleet, Image, Layer, processes_with};
use rustix::process::{Pid, Signal, kill_process};

mod left;

/// How long it goes on; `CHAOS_S` says otherwise.
const CHAOS: Duration = Duration::from_secs(120);

/// Images, each with a layer of its own on top of busybox.
const IMAGES: usize = 6;

const DEVICES: usize = 3;

/// Something that fails, or somebody who changes their mind.
#[derive(Debug, Clone, Copy)]
enum Blow {
    Run,
    Scale,
    Delete,
    KillAgent,
    KillShim,
    KillMaker,
    KillMain,
    KillController,
    KillRegistry,
    ReturnAgent,
}

/// How often each comes, as compared with the others.
const BLOWS: [(Blow, usize); 10] = [
    (Blow::Run, 24),
    (Blow::Scale, 8),
    (Blow::Delete, 8),
    (Blow::KillAgent, 12),
    (Blow::KillShim, 8),
    (Blow::KillMaker, 14),
    (Blow::KillMain, 8),
    (Blow::KillController, 2),
    (Blow::KillRegistry, 2),
    (Blow::ReturnAgent, 24),
];

#[test]
fn killed_at_random_for_two_minutes_all_converges_and_nothing_is_left() {
    let asked = std::env::var("CHAOS_S").ok().and_then(|seconds| seconds.parse().ok());
    let until = Instant::now() + asked.map_or(CHAOS, Duration::from_secs);
    let mut chance = Chance::begin("chaos");
    let mut fleet = Fleet::start(DEVICES);
    for number in 0..IMAGES {
        fleet.registry.push(&format!("library/chaos-{number}"), "latest", &image(number));
    }
    let mut counts = std::collections::BTreeMap::new();
    let mut number = 0;
    while Instant::now() < until {
        number += 1;
        let blow = choose(&mut chance);
        *counts.entry(format!("{blow:?}")).or_insert(0) += 1;
        strike(&mut fleet, &mut chance, blow, number);
        // What was begun gets on its way before the next blow, or does not.
        std::thread::sleep(Duration::from_millis(chance.below(120) as u64));
    }
    println!("{counts:?}");
    for agent in &mut fleet.agents {
        agent.kill();
        agent.restart();
    }
    fleet.until_online(DEVICES);

    // In the end each image runs everywhere, and nothing else does.
    for name in NAMES {
        fleet.controller.limpet(&["delete", name, "--detach"]);
    }
    let mut run = Vec::new();
    for number in 0..IMAGES {
        let (name, image) = (format!("last-{number}"), format!("--image=chaos-{number}"));
        fleet.controller.ok(&["run", &name, &image, "--everywhere", "--detach"]);
        run.push(name);
    }
    for name in &run {
        fleet.until_phases(name, &["running"; DEVICES]);
    }
    for name in NAMES {
        fleet.until_phases(name, &[]);
    }
    let layers: Vec<String> = (0..IMAGES).flat_map(|n| left::layers(&image(n))).collect();
    for agent in &fleet.agents {
        let all = fleet.controller.list("/api/v1/workloads");
        let own = all.iter().filter(|workload| workload["device"] == agent.id.as_str());
        let wanted = own.map(|workload| workload["container"].as_str().unwrap().to_owned());
        left::exactly(&fleet, agent, &wanted.collect(), &layers);
    }
    for name in &run {
        fleet.controller.ok(&["delete", name]);
    }
    for agent in &fleet.agents {
        left::exactly(&fleet, agent, &std::collections::BTreeSet::new(), &layers);
    }
    for device in 0..DEVICES {
        assert!(!fleet.agents[device].process.log().contains("panicked"));
    }
    assert!(!fleet.controller.process.log().contains("panicked"));
}

const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];

/// Half a megabyte that does not compress, on busybox.
fn image(number: usize) -> Image {
    let mut chance = Chance(number as u64);
    let noise: Vec<u8> = (0..64_000).flat_map(|_| chance.roll().to_le_bytes()).collect();
    let own = Layer::new().file(&format!("noise-{number}"), 0o644, noise);
    Image { layers: vec![Image::busybox_layer().gzip(), own.gzip()], ..Image::quick() }
}

fn choose(chance: &mut Chance) -> Blow {
    let mut ticket = chance.below(BLOWS.iter().map(|(_, tickets)| tickets).sum());
    let found = BLOWS.iter().find(|(_, tickets)| match ticket.checked_sub(*tickets) {
        Some(rest) => {
            ticket = rest;
            false
        }
        None => true,
    });
    found.unwrap().0
}

fn strike(fleet: &mut Fleet, chance: &mut Chance, blow: Blow, number: usize) {
    let name = NAMES[chance.below(NAMES.len())];
    let replicas = format!("--replicas={}", chance.below(6));
    let agent = chance.below(fleet.agents.len());
    match blow {
        Blow::Run => {
            let image = format!("--image=chaos-{}", chance.below(IMAGES));
            let sleep = (1_000_000 + number).to_string();
            let run = ["run", name, &image, &replicas, "--detach", "--", "sleep", &sleep];
            fleet.controller.limpet(&run);
        }
        // There may be no such deployment.
        Blow::Scale => drop(fleet.controller.limpet(&["scale", name, &replicas, "--detach"])),
        Blow::Delete => drop(fleet.controller.limpet(&["delete", name, "--detach"])),
        Blow::KillAgent => {
            fleet.agents[agent].kill();
            // At once, as its supervisor would; or some time later.
            if chance.below(2) == 0 {
                fleet.agents[agent].restart();
            }
        }
        Blow::ReturnAgent => {
            let agent = &mut fleet.agents[agent];
            if !agent.process.is_running() {
                agent.restart();
            }
        }
        Blow::KillShim => {
            let shims = fleet.agents[agent].shims();
            if !shims.is_empty() {
                kill(shims[chance.below(shims.len())]);
            }
        }
        Blow::KillMaker => kill_maker(fleet, chance, agent),
        Blow::KillMain => {
            let containers = fleet.agents[agent].mains();
            if !containers.is_empty() {
                kill(containers[chance.below(containers.len())]);
            }
        }
        Blow::KillController => {
            fleet.controller.kill();
            std::thread::sleep(Duration::from_millis(chance.below(500) as u64));
            fleet.controller.restart();
        }
        Blow::KillRegistry => {
            fleet.registry.process.kill();
            std::thread::sleep(Duration::from_millis(chance.below(500) as u64));
            fleet.registry.restart();
        }
    }
}

/// Waits a moment for a shim that is at making a container, and kills it, or a child of it.
fn kill_maker(fleet: &Fleet, chance: &mut Chance, agent: usize) {
    let making = format!("shim\0{}", fleet.agents[agent].run.display());
    for _ in 0..100 {
        let makers = processes_with(&making);
        if !makers.is_empty() {
            std::thread::sleep(Duration::from_micros(chance.below(20_000) as u64));
            kill(makers[chance.below(makers.len())]);
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn kill(pid: i32) {
    // It may have ended by itself.
    let _ = kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL);
}

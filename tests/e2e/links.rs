//! Links that fail: cables that are pulled, peers that stall, registries that die.

use std::collections::BTreeMap;

use limpet_tests::{
    Agent, Controller, Fleet, Harbour, Image, Island, Layer, Place, Proxy, Value, start_time,
};
use rustix::process::Signal;

/// Containers by workload: their main process, by number and start.
type Processes = BTreeMap<String, (u64, Option<u64>)>;

/// The main processes of a deployment, by device and workload.
fn processes(fleet: &Fleet, deployment: &str) -> Processes {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let one = |workload: &Value| {
        let pid = workload["pid"].as_u64()?;
        let name = format!("{} {}", text(&workload["device"]), text(&workload["id"]));
        Some((name, (pid, start_time(pid))))
    };
    fleet.workloads(deployment).iter().filter_map(one).collect()
}

fn presence(fleet: &Fleet, device: usize) -> Value {
    fleet.controller.get(&format!("/api/v1/devices/dev-{device}"))["presence"].clone()
}

fn until_settled(fleet: &Fleet, deployments: &[&str]) {
    for name in deployments {
        fleet.eventually(&format!("{name} to settle"), || {
            let found = fleet.controller.get(&format!("/api/v1/deployments/{name}"));
            (found["status"] == "settled").then_some(())
        });
    }
}

/// A fleet whose devices are on islands, with what carries them across.
struct Archipelago {
    fleet: Fleet,
    // Behind the fleet: its devices leave first.
    islands: Vec<Island>,
    _ferries: Vec<Proxy>,
    _harbour: Harbour,
}

fn archipelago(devices: usize) -> Archipelago {
    let harbour = std::cell::OnceCell::new();
    let mut fleet = Fleet::of(0, |lab| {
        let Harbour { address } = harbour.get_or_init(|| Harbour::make(lab));
        Controller::advertised(lab, address)
    });
    let harbour = harbour.into_inner().unwrap();
    fleet.registry.push("library/quick", "latest", &Image::quick());
    let ferry = |to: &str| Proxy::in_front(&harbour.address, to);
    let ferries = vec![ferry(&fleet.controller.mqtt), ferry(&fleet.registry.host)];
    let mut islands = Vec::new();
    for number in 0..devices {
        let island = Island::make(&fleet.lab, number);
        let id = format!("dev-{number}");
        let place = Place { through: island.through(), ..Place::default() };
        let config = Agent::config(&id, &ferries[1].address);
        fleet.agents.push(Agent::placed(&fleet.lab, &id, &fleet.controller, &config, place));
        islands.push(island);
    }
    fleet.until_online(devices);
    Archipelago { fleet, islands, _ferries: ferries, _harbour: harbour }
}

#[test]
fn a_pulled_cable_while_everything_changes_restarts_nothing_that_did_not_change() {
    let Archipelago { fleet, islands, _ferries, _harbour } = archipelago(3);
    let run = |name: &str, args: &[&str]| {
        let all = [&["run", name, "--image=quick", "--detach"], args].concat();
        fleet.controller.ok(&all);
    };
    run("steady", &["--everywhere"]);
    run("grows", &["--replicas=2"]);
    run("goes", &["--replicas=3"]);
    run("changes", &["--replicas=3"]);
    until_settled(&fleet, &["steady", "grows", "goes", "changes"]);
    let (steady, grows) = (processes(&fleet, "steady"), processes(&fleet, "grows"));
    let changes = processes(&fleet, "changes");
    assert_eq!((steady.len(), grows.len(), changes.len()), (3, 2, 3));

    for island in &islands[..2] {
        island.cut();
    }
    // Longer than the keep-alive, and half as long again: then the broker gives them up.
    for device in 0..2 {
        fleet.eventually("it to be given up", || {
            (presence(&fleet, device) == "offline").then_some(())
        });
    }
    fleet.controller.ok(&["scale", "grows", "--replicas=5", "--detach"]);
    fleet.controller.ok(&["delete", "goes", "--detach"]);
    run("changes", &["--replicas=3", "--", "sleep", "2000000"]);
    run("late", &["--replicas=3"]);
    for (name, (pid, began)) in &steady {
        assert_eq!(start_time(*pid), *began, "{name} goes on");
    }
    for island in &islands[..2] {
        island.heal();
    }
    fleet.until_online(3);
    until_settled(&fleet, &["steady", "grows", "changes", "late"]);
    fleet.until_phases("goes", &[]);
    assert_eq!(processes(&fleet, "steady"), steady);
    let grown = processes(&fleet, "grows");
    assert_eq!(grown.len(), 5);
    assert!(grows.iter().all(|(name, process)| grown.get(name) == Some(process)));
    let changed = processes(&fleet, "changes");
    assert!(changed.len() == 3 && changed.values().all(|p| !changes.values().any(|old| old == p)));

    // A cable that is loose: in and out, for less than anybody notices, while the fleet changes.
    for replicas in [6, 3, 7, 4, 5] {
        islands[replicas % 3].cut();
        let scaled = format!("--replicas={replicas}");
        fleet.controller.ok(&["scale", "grows", &scaled, "--detach"]);
        islands[replicas % 3].heal();
    }
    fleet.until_online(3);
    until_settled(&fleet, &["steady", "grows", "changes", "late"]);
    fleet.until_phases("grows", &["running"; 5]);
    assert_eq!(processes(&fleet, "steady"), steady);
    assert_eq!(processes(&fleet, "changes"), changed);
    for agent in &fleet.agents {
        let wanted = fleet.controller.list("/api/v1/workloads");
        let wanted = wanted.iter().filter(|workload| workload["device"] == agent.id.as_str());
        let mut wanted: Vec<&str> = wanted.filter_map(|w| w["container"].as_str()).collect();
        wanted.sort_unstable();
        fleet.eventually("the containers that should be there, and no other", || {
            agent.containers().into_keys().eq(wanted.iter().copied()).then_some(())
        });
    }
}

#[test]
fn a_broker_that_accepts_and_never_answers_is_left_and_tried_again() {
    let mut fleet = Fleet::start(1);
    fleet.controller.ok(&["run", "web", "--image=box"]);
    let before = processes(&fleet, "web");
    // The kernel goes on accepting connections and bytes for a program that has stopped.
    fleet.controller.process.signal(Signal::STOP);
    fleet.agents[0].process.until_said("the broker has fallen silent");
    fleet.agents[0].process.until_said("does not answer: is it a broker?; next try");
    fleet.controller.process.signal(Signal::CONT);
    fleet.until_online(1);
    fleet.controller.ok(&["run", "other", "--image=box"]);
    assert_eq!(processes(&fleet, "web"), before);
}

#[test]
fn a_pull_goes_on_after_registry_and_agent_were_killed_in_the_midst_of_it() {
    let mut fleet = Fleet::start(0);
    let proxy = Proxy::start(&fleet.registry.host);
    let config = Agent::config("dev-0", &proxy.address);
    fleet.agents.push(Agent::with_config(&fleet.lab, "dev-0", &fleet.controller, &config));
    fleet.until_online(1);
    // What does not compress, so that it takes its time.
    let mut chance = limpet_tests::Chance(7);
    let noise: Vec<u8> = (0..500_000).flat_map(|_| chance.roll().to_le_bytes()).collect();
    let image = Image::of(vec![
        Image::busybox_layer().gzip(),
        Layer::new().file("noise", 0o644, &noise).plain(),
    ]);
    let size: usize = image.layers.iter().map(|layer| layer.packed.len()).sum();
    fleet.registry.push("library/large", "latest", &image);
    proxy.pace(500);
    fleet.controller.ok(&["run", "large", "--image=large", "--detach"]);
    for part in [3, 2] {
        fleet.eventually("some of it", || (proxy.carried() > (size / part) as u64).then_some(()));
        fleet.registry.process.kill();
        fleet.agents[0].kill();
        fleet.registry.restart();
        fleet.agents[0].restart();
    }
    fleet.until_phases("large", &["running"]);
    let carried = usize::try_from(proxy.carried()).unwrap();
    assert!(carried < size + size / 10, "{carried} bytes for {size}");
    let parts = std::fs::read_dir(fleet.agents[0].data.join("images/blobs")).unwrap().flatten();
    let mut left = parts.filter(|entry| entry.path().extension().is_some());
    assert!(left.next().is_none(), "nothing half is left");
}

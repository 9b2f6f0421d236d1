//! The power goes while an agent replaces itself: whatever is on the card then boots, and runs an agent
//! and the containers.

use std::collections::BTreeMap;
use std::path::Path;

use limpet_tests::upgrade::agent_of_version;
use limpet_tests::{
    Agent, Card, Chance, Controller, Disk, Door, Fleet, Place, Unflushed, Value, eventually_or,
};

use crate::upgrade::{device, order, until};

const CARD_BYTES: usize = 64 << 20;
/// Moments at which the power goes.
const CUTS: usize = 10;

#[test]
fn whenever_the_power_goes_the_device_boots_and_ends_with_an_agent_that_works() {
    let mut chance = Chance::begin("power cuts of an upgrade");
    let mut fleet = Fleet::start(0);
    let card = Card::insert(&fleet.lab, &fleet.lab.path("dev-0.data"), CARD_BYTES);
    fleet.agents.push(Agent::start(&fleet.lab, "dev-0", &fleet.controller, &fleet.registry));
    fleet.until_online(1);
    fleet.controller.ok(&["run", "web", "--image=box", "--", "sleep", "1000000"]);
    let program = agent_of_version(&fleet.lab, "0.2.0");
    let begun = card.moment();
    order(&fleet.controller, "0.2.0", &program, &[]);
    until(&fleet.controller, &mut fleet.agents[0], "done");
    let ended = card.moment();
    println!("{} writes and flushes", ended - begun);
    fleet.agents.clear();
    for number in 0..CUTS {
        // One in each tenth, and the whole of it more often at its end, where much is decided.
        let tenth = (ended - begun) / CUTS;
        let moment = match number % 2 {
            0 => begun + number * tenth + chance.below(tenth),
            _ => ended - chance.below(40.min(ended - begun)),
        };
        let unflushed = match number % 3 {
            0 => Unflushed::Kept,
            1 => Unflushed::Lost,
            _ => Unflushed::Torn(chance.roll()),
        };
        println!("cut at {} of {}, {unflushed:?}", moment - begun, ended - begun);
        let image = fleet.lab.in_memory("cut");
        std::fs::write(&image, card.cut(moment, unflushed)).unwrap();
        boots(&fleet, &image, number);
        std::fs::remove_file(&image).unwrap();
    }
}

/// Boots from a card, in the dark first, then with the controller in reach.
fn boots(fleet: &Fleet, image: &Path, number: usize) {
    let name = format!("cut-{number}");
    let _disk = Disk::insert(&fleet.lab.path(&format!("{name}.data")), image);
    let mut dark = boot(fleet, &name, &["-n"], &fleet.controller, number * 2);
    until_runs(&mut dark);
    dark.power_cut();
    drop(dark);
    let mut lit = boot(fleet, &name, &[], &fleet.controller, number * 2 + 1);
    until_runs(&mut lit);
    eventually_or(
        "the end of the upgrade",
        || {
            lit.keep_alive();
            // What it says itself: the controller knows of the life that the cut has undone.
            let status = lit.ask(&["status", "-o", "json"]).out;
            let status: Value = serde_json::from_str(&status).ok()?;
            let is_new = status["version"] == "0.2.0" && status["connected"] == true;
            let record = std::fs::read(lit.data.join("upgrade")).ok()?;
            (is_new && !on_trial(&record)).then_some(())
        },
        || format!("{:?}", device(&fleet.controller)),
    );
    until_runs(&mut lit);
    assert!(!lit.process.log().contains("panicked"), "{}", lit.process.log());
}

/// The device in another boot, in namespaces of its own.
fn boot(fleet: &Fleet, name: &str, more: &[&str], controller: &Controller, boot: usize) -> Agent {
    let id = format!("00000000-0000-4000-8000-{boot:012}\n");
    let id = fleet.lab.file(&format!("{name}.boot"), id).display().to_string();
    let script = "mount --bind $0 /proc/sys/kernel/random/boot_id && exec \"$@\"";
    let words = [&["unshare", "-m"], more, &["sh", "-c", script, &id]].concat();
    let through = words.into_iter().map(str::to_owned).collect();
    let place = Place { name: name.to_owned(), through };
    let config = Agent::config("dev-0", &fleet.registry.host);
    Agent::placed(&fleet.lab, "dev-0", Door::Fleet(controller), &config, place)
}

/// Whether a record of programs, a document, says that one has yet to prove itself.
fn on_trial(record: &[u8]) -> bool {
    let fields: BTreeMap<String, serde_cbor::Value> =
        serde_cbor::from_slice(&record[24..]).unwrap();
    fields["t"] != serde_cbor::Value::Null
}

fn until_runs(agent: &mut Agent) {
    let log = agent.data.with_extension("log");
    eventually_or(
        "its container",
        || {
            agent.keep_alive();
            let containers = agent.containers();
            containers.values().any(|line| line == "sleep 1000000").then_some(())
        },
        || std::fs::read_to_string(&log).unwrap_or_default(),
    );
}

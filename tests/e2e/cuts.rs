//! The power goes, at any moment; a card fails: what is left brings back what was promised.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use limpet_tests::{Agent, Card, Chance, Disk, Door, Fleet, Image, Lab, Place, Unflushed};

/// Deployments that should run, each with the number of the change that made it so.
type State = BTreeMap<String, usize>;

/// A change of what should run, and between which moments of the card it came into force.
struct Change {
    issued: usize,
    held: usize,
    state: State,
}

/// A moment at which the power goes.
#[derive(Debug)]
struct Cut {
    moment: usize,
    unflushed: Unflushed,
}

/// Power cuts, or damaged folders, that one run tries.
fn tries() -> usize {
    let asked = std::env::var("POWER_CUTS").ok().and_then(|count| count.parse().ok());
    asked.unwrap_or(25)
}

/// How the agent tells of a checkpoint that was being written over.
const TORN: &str =
    "is damaged: going on with the other one (a write that a power cut broke off leaves it so)";

/// Boots that go on side by side.
const AT_ONCE: usize = 4;

const CARD_BYTES: usize = 24 << 20;
const CHANGES: usize = 12;

#[test]
fn after_a_power_cut_at_any_moment_a_device_has_what_it_had_acknowledged() {
    let mut chance = Chance::begin("power cuts");
    let mut fleet = Fleet::start(0);
    fleet.registry.push("library/quick", "latest", &Image::quick());
    let card = Card::insert(&fleet.lab, &fleet.lab.path("dev-0.data"), CARD_BYTES);
    fleet.agents.push(Agent::start(&fleet.lab, "dev-0", &fleet.controller, &fleet.registry));
    fleet.until_online(1);
    fleet.controller.ok(&["run", "a", "--image=quick", "--", "sleep", "1000000"]);
    fleet.until_phases("a", &["running"]);
    let moment = card.moment();
    let first = BTreeMap::from([("a".to_owned(), 0)]);
    let mut history = vec![Change { issued: moment, held: moment, state: first }];
    for number in 1..=CHANGES {
        let change = change(&fleet, &card, &mut chance, number, &history[number - 1].state);
        history.push(change);
        if number == CHANGES / 2 {
            fleet.eventually("a full disk", || {
                let stat = rustix::fs::statvfs(&card.path).unwrap();
                (stat.f_bavail * stat.f_frsize < 8192).then_some(())
            });
        }
    }
    fleet.controller.kill();
    fleet.agents.clear();
    fleet.registry.process.kill();

    let end = card.moment();
    println!("{end} writes and flushes");
    let cuts: Vec<Cut> = (0..tries())
        .map(|number| {
            let at = chance.below(history.len());
            let from = history[at].issued;
            let to = history.get(at + 1).map_or(end, |next| next.issued);
            let unflushed = match number % 3 {
                0 => Unflushed::Kept,
                1 => Unflushed::Lost,
                _ => Unflushed::Torn(chance.roll()),
            };
            Cut { moment: from + chance.below(to - from + 1), unflushed }
        })
        .collect();
    side_by_side(cuts.len(), |number| {
        let cut = &cuts[number];
        let image = fleet.lab.in_memory(&format!("cut-{number}"));
        std::fs::write(&image, card.cut(cut.moment, cut.unflushed)).unwrap();
        let held = history.iter().rposition(|change| change.held <= cut.moment).unwrap();
        let issued = history.iter().rposition(|change| change.issued <= cut.moment).unwrap();
        let states: Vec<&State> =
            history[held..=issued].iter().map(|change| &change.state).collect();
        let name = format!("cut-{number}");
        let _disk = Disk::insert(&fleet.lab.path(&format!("{name}.data")), &image);
        let agent = dark(&fleet.lab, &name);
        limpet_tests::eventually_or(
            &format!("one of {states:?} after {cut:?}"),
            || states.contains(&&running(&agent)).then_some(()),
            || format!("there is {:?}\n{}", agent.containers(), agent.process.log()),
        );
        let said = agent.process.log();
        // A slot that was being written over may be torn, and the other one holds: that is what two
        // are for. Nothing else may have come to harm.
        let harm = |line: &&str| {
            let torn = line.contains("/checkpoint.") && line.ends_with(TORN);
            !torn && ["panicked", "damaged", "missing", "going on"].iter().any(|w| line.contains(w))
        };
        let harm: Vec<&str> = said.lines().filter(harm).collect();
        assert!(harm.is_empty(), "{cut:?}: {harm:#?}");
        drop(agent);
        std::fs::remove_file(&image).unwrap();
    });
}

/// One more change of what should run, from the order to the device's word that it has it.
fn change(fleet: &Fleet, card: &Card, chance: &mut Chance, number: usize, state: &State) -> Change {
    let mut state = state.clone();
    let generation = || {
        let device = fleet.controller.get("/api/v1/devices/dev-0");
        let number = |key: &str| device[key].as_u64().unwrap();
        (number("generation"), number("applied_generation"))
    };
    let (before, _) = generation();
    let issued = card.moment();
    let sleep = format!("{}", 1_000_000 + number);
    // It fills the disk while there is a registry: after a power cut here there is none.
    let fill = format!(
        "wget -q -O /dev/null http://{}/v2/ && {{ dd if=/dev/zero of=/fill bs=64k; dd if=/dev/zero of=/rest bs=1; }}; \
         exec sleep {sleep}",
        fleet.registry.host
    );
    let name = match number {
        _ if number == CHANGES / 2 => "greedy",
        _ if number + 2 == CHANGES => "greedy",
        _ => ["a", "b", "c"][chance.below(3)],
    };
    let delete = number + 2 == CHANGES || (state.contains_key(name) && chance.below(2) == 0);
    if delete {
        fleet.controller.ok(&["delete", name, "--detach"]);
        state.remove(name);
    } else {
        let command = if name == "greedy" { ["sh", "-c", &fill] } else { ["sleep", &sleep, ""] };
        let command = command.iter().filter(|word| !word.is_empty()).copied();
        let image = ["run", name, "--image=quick", "--detach", "--"];
        fleet.controller.ok(&image.into_iter().chain(command).collect::<Vec<_>>());
        state.insert(name.to_owned(), number);
    }
    fleet.eventually("the device to hold it", || {
        let (given, applied) = generation();
        (given > before && applied == given).then_some(())
    });
    let held = card.moment();
    // Sometimes the next change comes at once, sometimes when this one is carried out.
    if chance.below(2) == 0 && !state.contains_key("greedy") {
        let agent = &fleet.agents[0];
        fleet.eventually("it to be so", || (running(agent) == state).then_some(()));
    }
    Change { issued, held, state }
}

/// What becomes of a file of the data folder.
#[derive(Debug, Clone, Copy)]
enum Damage {
    /// Only so much of it is left.
    Prefix(usize),
    /// This bit is the other way round.
    Flip(usize),
    /// All its bytes are zero.
    Zeroed,
    Missing,
}

#[test]
fn whatever_is_damaged_in_the_data_folder_the_agent_boots_and_runs_what_it_can_prove() {
    let mut chance = Chance::begin("damage");
    let mut fleet = Fleet::start(1);
    fleet.registry.push("library/quick", "latest", &Image::quick());
    for (name, number) in [("a", 1), ("b", 2), ("c", 3)] {
        let sleep = (1_000_000 + number).to_string();
        fleet.controller.ok(&["run", name, "--image=quick", "--", "sleep", &sleep]);
    }
    let state: State = [("a", 1), ("b", 2), ("c", 3)].map(|(n, v)| (n.to_owned(), v)).into();
    fleet.controller.kill();
    fleet.agents[0].power_cut();
    let whole = fleet.agents[0].data.clone();
    let files = files_in(&whole, &whole);
    let of_state = |file: &&String| !file.contains('/');
    let documents: Vec<&String> = files.iter().filter(of_state).collect();
    assert!(documents.len() >= 5, "identity, desired, checkpoints, lock: {documents:?}");
    let damages: Vec<(&String, Damage)> = (0..2 * tries())
        .map(|number| {
            // Three of four hit a document: images are many files.
            let file = match number % 4 {
                0 => &files[chance.below(files.len())],
                _ => documents[chance.below(documents.len())],
            };
            let length = std::fs::metadata(whole.join(file)).unwrap().len();
            let length = usize::try_from(length).unwrap();
            let damage = match chance.below(8) {
                0..=2 => Damage::Prefix(chance.below(length)),
                3..=5 => Damage::Flip(chance.below(length * 8)),
                6 => Damage::Zeroed,
                _ => Damage::Missing,
            };
            (file, damage)
        })
        .collect();
    side_by_side(damages.len(), |number| {
        let (file, damage) = damages[number];
        let name = format!("damaged-{number}");
        let folder = fleet.lab.path(&format!("{name}.data"));
        let [from, to] = [&whole, &folder].map(|path| path.display().to_string());
        limpet_tests::run("cp", &["-a", &from, &to]);
        inflict(damage, &folder.join(file));
        let mut agent = dark(&fleet.lab, &name);
        // Its loop goes round: it tries to reach its controller.
        agent.process.until_said("next try in");
        // Of each document there is a copy; of an image there is not, and nobody to bring it anew.
        let lost = file.starts_with("images/");
        limpet_tests::eventually_or(
            &format!("what can be proved after {damage:?} of {file}"),
            || {
                let now = running(&agent);
                let proved = now.iter().all(|(name, number)| state.get(name) == Some(number));
                assert!(proved, "{damage:?} of {file} made {now:?}");
                (lost || now == state).then_some(())
            },
            || agent.process.log(),
        );
        assert!(agent.process.is_running(), "{damage:?} of {file}: {}", agent.process.log());
        assert!(!agent.process.log().contains("panicked"), "{damage:?} of {file}");
        drop(agent);
        std::fs::remove_dir_all(&folder).unwrap();
    });
}

fn inflict(damage: Damage, path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    match damage {
        Damage::Prefix(length) => bytes.truncate(length),
        Damage::Flip(bit) if bit / 8 < bytes.len() => bytes[bit / 8] ^= 1 << (bit % 8),
        Damage::Flip(_) => {}
        Damage::Zeroed => bytes.fill(0),
        Damage::Missing => return std::fs::remove_file(path).unwrap(),
    }
    std::fs::write(path, bytes).unwrap();
}

/// The files below a folder, as paths from `root`.
fn files_in(folder: &Path, root: &Path) -> Vec<String> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            files.extend(files_in(&path, root));
        } else if kind.is_file() {
            files.push(path.strip_prefix(root).unwrap().display().to_string());
        }
    }
    files.sort();
    files
}

/// A device with this data folder and nobody to talk to.
fn dark(lab: &Lab, name: &str) -> Agent {
    let place = Place { name: name.to_owned(), ..Place::default() };
    // Nobody listens on the port of discard.
    let nowhere = "127.0.0.1:9";
    Agent::placed(
        lab,
        "dev-0",
        Door::Broker(&format!("mqtt://{nowhere}")),
        &Agent::config("dev-0", nowhere),
        place,
    )
}

/// What runs on a device, as [`State`] has it: the number is how long a container sleeps.
fn running(agent: &Agent) -> State {
    let number =
        |line: &str| line.strip_prefix("sleep ")?.parse::<usize>().ok()?.checked_sub(1_000_000);
    let containers = agent.containers();
    let runs = containers
        .iter()
        .filter_map(|(id, line)| Some((id.split('.').next()?.to_owned(), number(line)?)));
    runs.collect()
}

/// Does this for each number below `count`, some at once.
fn side_by_side(count: usize, work: impl Fn(usize) + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE.min(count) {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::SeqCst);
                    if number >= count {
                        return;
                    }
                    work(number);
                }
            });
        }
    });
}

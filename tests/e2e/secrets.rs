//! Secrets reach the programs that need them, in memory, and lie open nowhere else.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use limpet_protocol::{DesiredState, Expected, Kind, Prefix, envelope};
use limpet_tests::{Agent, Door, Fleet, Member, Proxy, eventually};

use crate::hostile;

const FILE: &str = "the-file-secret-7d1e";
const ENV: &str = "the env secret=5b90\nsecond line";

/// Both secrets, one in each way.
const MANIFEST: &str = "name: web\nimage: box\nuser: app\nsecrets:\n  - {name: db, file: /srv/keys/db}\n  \
                        - {name: token, env: TOKEN}\n  - {name: token, env: AGAIN}\n";

fn set(fleet: &Fleet, name: &str, value: impl AsRef<[u8]>) -> String {
    let file = fleet.lab.file("value", value).display().to_string();
    let said = fleet.controller.ok(&["secret", "set", name, "--from-file", &file]);
    std::fs::remove_file(file).unwrap();
    said
}

fn apply(fleet: &Fleet, manifest: &str) -> String {
    let file = fleet.lab.file("manifest", manifest).display().to_string();
    fleet.controller.ok(&["apply", "-f", &file])
}

fn refused(fleet: &Fleet, manifest: &str) -> String {
    let file = fleet.lab.file("manifest", manifest).display().to_string();
    fleet.controller.fails(&["apply", "-f", &file])
}

/// A secret's file as the program with this pid sees it.
fn file_of(pid: i64, path: &str) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/root{path}")).unwrap()
}

fn variables_of(pid: i64) -> Vec<String> {
    let environ = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
    environ.split(|byte| *byte == 0).map(|v| String::from_utf8_lossy(v).into_owned()).collect()
}

/// The pid of the only workload's main process.
fn pid(fleet: &Fleet, deployment: &str) -> i64 {
    fleet.until_phases(deployment, &["running"])[0]["pid"].as_i64().unwrap()
}

fn has_secrets(pid: i64, file: &str) {
    assert_eq!(file_of(pid, "/srv/keys/db"), file);
    let path = format!("/proc/{pid}/root/srv/keys/db");
    let meta = std::fs::metadata(&path).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid()), (0o400, 1000, 1001));
    let tmpfs = 0x0102_1994;
    assert_eq!(rustix::fs::statfs(path.as_str()).unwrap().f_type, tmpfs);
    let variables = variables_of(pid);
    for variable in ["TOKEN", "AGAIN"] {
        assert!(variables.contains(&format!("{variable}={ENV}")), "{variables:?}");
    }
}

/// The files below a folder that hold these bytes.
fn files_with(folder: &Path, bytes: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let (path, kind) = (entry.path(), entry.file_type().unwrap());
        if kind.is_dir() {
            found.extend(files_with(&path, bytes));
        } else if kind.is_file() {
            // What went meanwhile is nowhere.
            let content = std::fs::read(&path).unwrap_or_default();
            if content.windows(bytes.len()).any(|part| part == bytes) {
                found.push(path.display().to_string());
            }
        }
    }
    found
}

/// Looks for the values in every file of controller and devices, logs included; that what must be
/// found is found shows that it is looked for in the right way.
fn lies_open_nowhere(fleet: &Fleet) {
    let folders = [fleet.lab.path(""), fleet.lab.in_memory("")];
    for value in [FILE, "the env secret"] {
        let found: Vec<String> =
            folders.iter().flat_map(|folder| files_with(folder, value.as_bytes())).collect();
        assert!(found.is_empty(), "{value}: {found:?}");
    }
    let named: Vec<String> =
        folders.iter().flat_map(|folder| files_with(folder, b"/srv/keys/db")).collect();
    for part in ["controller/limpet.db", "dev-0.data/desired", "dev-0.run/containers/"] {
        assert!(named.iter().any(|path| path.contains(part)), "{part}: {named:?}");
    }
}

/// The desired state that a device has stored.
fn stored(agent: &Agent) -> DesiredState {
    let (prefix, device) = (Prefix::default(), agent.id.parse().unwrap());
    let expected = Expected { prefix: &prefix, device: &device, kind: Kind::Desired, signer: None };
    eventually("a whole desired state", || {
        let bytes = std::fs::read(agent.data.join("desired")).ok()?;
        let starts = (0..bytes.len()).filter(|at| bytes[*at] == 0xd2);
        let mut whole = starts.filter_map(|at| envelope::open(&bytes[at..], expected).ok());
        whole.next()?.read().ok()
    })
}

/// The sealed secrets of a device's workload.
fn sealed(agent: &Agent, workload: &str) -> Vec<Vec<u8>> {
    let workloads = stored(agent).workloads;
    let found = workloads.into_iter().find(|found| found.id.as_str() == workload);
    found.unwrap().sealed.into_iter().map(|secret| secret.sealed).collect()
}

#[test]
fn a_secret_is_a_file_and_a_variable_and_on_no_disk() {
    let mut fleet = Fleet::start(1);
    let why = refused(&fleet, MANIFEST);
    assert!(why.contains("secrets[0]: there is no secret db: make it with `limpet secret set"));
    assert_eq!(set(&fleet, "db", FILE), "secret/db version 1\n");
    set(&fleet, "token", ENV);
    apply(&fleet, MANIFEST);
    let first = pid(&fleet, "web");
    has_secrets(first, FILE);
    lies_open_nowhere(&fleet);

    fleet.agents[0].kill();
    fleet.agents[0].restart();
    fleet.until_online(1);
    assert_eq!(pid(&fleet, "web"), first);

    // The power is cut, and nobody is there but the device.
    fleet.controller.kill();
    fleet.agents[0].power_cut();
    fleet.agents[0].restart();
    // Those that make it are in its control group for a moment.
    let main = eventually("the container's program", || {
        fleet.agents[0].mains().into_iter().find(|pid| {
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            name.trim() == "sleep"
        })
    });
    has_secrets(main.into(), FILE);
    lies_open_nowhere(&fleet);
    fleet.controller.restart();
    fleet.until_online(1);

    let listed = fleet.controller.ok(&["get", "secrets", "-o", "json"]);
    assert!(listed.contains("\"db\"") && listed.contains("\"web\""), "{listed}");
    let shown = [
        listed,
        fleet.controller.ok(&["get", "deployments", "web", "-o", "yaml"]),
        fleet.controller.ok(&["describe", "deployment", "web"]),
        fleet.controller.ok(&["get", "events", "-o", "json"]),
        fleet.agents[0].ask_ok(&["status"]),
    ];
    for text in shown {
        assert!(!text.contains(FILE) && !text.contains("the env secret"), "{text}");
    }
}

#[test]
fn another_version_is_rolled_out_and_an_earlier_one_goes_on_until_it_can_be() {
    let fleet = Fleet::start(1);
    set(&fleet, "db", FILE);
    set(&fleet, "token", ENV);
    apply(&fleet, MANIFEST);
    let first = pid(&fleet, "web");
    let said = set(&fleet, "db", "the second");
    assert!(said.starts_with("secret/db version 2\ndeployment/web updated\n"), "{said}");
    let second = pid(&fleet, "web");
    assert_ne!(second, first);
    has_secrets(second, "the second");
    let in_use = fleet.controller.fails(&["secret", "delete", "db"]);
    assert!(in_use.contains("the secret db is in use: web name it"), "{in_use}");

    // Nobody has this image: what ran before goes on, with the version that it had.
    let broken = fleet.lab.file("broken", MANIFEST.replace("box", "nobody/has"));
    fleet.controller.ok(&["apply", "--detach", "-f", &broken.display().to_string()]);
    let value = fleet.lab.file("value", "the third").display().to_string();
    fleet.controller.ok(&["secret", "set", "db", "--detach", "--from-file", &value]);
    fleet.eventually("the third to be stored", || {
        let spec = stored(&fleet.agents[0]).workloads.remove(0).spec;
        (spec.secrets[0].version == 3).then_some(())
    });
    assert_eq!(pid(&fleet, "web"), second);
    let kill = rustix::process::Pid::from_raw(i32::try_from(second).unwrap()).unwrap();
    rustix::process::kill_process(kill, rustix::process::Signal::KILL).unwrap();
    let third = fleet.eventually("a container in its place", || {
        let pid = fleet.workloads("web")[0]["pid"].as_i64()?;
        (pid != second && fleet.workloads("web")[0]["phase"] == "running").then_some(pid)
    });
    has_secrets(third, "the second");
    apply(&fleet, MANIFEST);
    has_secrets(pid(&fleet, "web"), "the third");

    // A version is never used again, not by another secret of the same name either.
    fleet.controller.ok(&["delete", "web"]);
    assert_eq!(fleet.controller.ok(&["secret", "delete", "db"]), "secret/db deleted\n");
    assert!(fleet.controller.fails(&["secret", "delete", "db"]).contains("there is no secret db"));
    assert_eq!(set(&fleet, "db", "x"), "secret/db version 4\n");
}

#[test]
fn each_device_gets_a_seal_of_its_own_and_always_the_same() {
    let mut fleet = Fleet::start(2);
    set(&fleet, "db", FILE);
    apply(&fleet, "name: web\nimage: box\neverywhere: true\nsecrets: [db]\n");
    fleet.until_phases("web", &["running", "running"]);
    let before: BTreeSet<_> = fleet.agents.iter().flat_map(|agent| sealed(agent, "web")).collect();
    assert_eq!(before.len(), 2);
    assert_eq!(file_of(pid_on(&fleet, "dev-1"), "/run/secrets/db"), FILE);

    // Told again, in another desired state and by another life of the controller.
    fleet.controller.stop();
    fleet.controller.restart();
    fleet.until_online(2);
    fleet.controller.ok(&["run", "more", "--image=box", "--everywhere", "--secret", "db:/x"]);
    let after: BTreeSet<_> = fleet
        .agents
        .iter()
        .flat_map(|agent| [sealed(agent, "web"), sealed(agent, "more")].concat())
        .collect();
    assert_eq!(after, before);
    assert!(fleet.agents.iter().all(|agent| stored(agent).workloads.len() == 2));
}

fn pid_on(fleet: &Fleet, device: &str) -> i64 {
    let all = fleet.workloads("web");
    all.iter().find(|w| w["device"] == device).unwrap()["pid"].as_i64().unwrap()
}

#[test]
fn what_cannot_be_given_is_refused_with_the_reason() {
    let fleet = Fleet::start(1);
    let file = |bytes: &[u8]| fleet.lab.file("value", bytes).display().to_string();
    let refuses = |name: &str, bytes: &[u8]| {
        fleet.controller.fails(&["secret", "set", name, "--from-file", &file(bytes)])
    };
    assert!(refuses("a", &[b'x'; 16_385]).contains("longer than 16384 bytes"));
    assert!(refuses("a", b"").contains("the value of the secret a is empty"));
    let stdin = fleet.controller.fails(&["secret", "set", "a"]);
    assert!(stdin.contains("the value of the secret a is empty"), "{stdin}");
    let missing = fleet.controller.fails(&["secret", "set", "a", "--from-env", "LIMPET_NONE"]);
    assert!(missing.contains("there is no variable LIMPET_NONE"), "{missing}");
    assert_eq!(fleet.controller.limpet(&["secret", "set", "A", "--from-file", "x"]).status, 2);

    set(&fleet, "binary", [0, 1, 2, 255]);
    let env = "name: web\nimage: box\nsecrets: [{name: binary, env: B}]\n";
    let why = refused(&fleet, env);
    assert!(why.contains("the secret binary is no text, as a variable must be"), "{why}");
    apply(&fleet, "name: web\nimage: box\nsecrets: [binary]\n");
    let path = format!("/proc/{}/root/run/secrets/binary", pid(&fleet, "web"));
    assert_eq!(std::fs::read(path).unwrap(), [0, 1, 2, 255]);

    // Together they would not fit into what a device can be told.
    let names: Vec<String> = (0..7).map(|n| format!("big-{n}")).collect();
    names.iter().for_each(|name| drop(set(&fleet, name, vec![b'x'; 16_384])));
    let big = format!("name: big\nimage: box\nsecrets: [{}]\n", names.join(", "));
    let why = refused(&fleet, &big);
    assert!(why.contains("a device takes 256 workloads in 98304 bytes"), "{why}");
    let six = format!("name: big\nimage: box\nsecrets: [{}, small]\n", names[..5].join(", "));
    set(&fleet, "small", "x");
    apply(&fleet, &six);
    assert!(refuses("small", &vec![b'x'; 16_384]).contains("deployment big cannot run with that"));
    fleet.until_phases("big", &["running"]);

    // A device that says that it takes secrets, and gives no key to seal them to.
    let features = vec![limpet_protocol::Feature::known(limpet_protocol::Feature::SECRETS)];
    let hello = limpet_protocol::Hello { features, ..hostile::evil_hello() };
    let evil = Member::join(&fleet.lab, "evil", &fleet.controller);
    assert_eq!(evil.publish(&fleet.lab, "hello", &evil.seal(Kind::Hello, &hello)), "");
    let path = "/api/v1/deployments/web";
    fleet.eventually("it to be refused", || {
        let refusals = fleet.controller.get(path)["refusals"]["evil"].clone();
        refusals.as_str()?.contains("cannot do secrets").then_some(())
    });
}

#[test]
fn what_a_program_writes_is_seen_by_nobody_on_the_way() {
    // Without TLS, so that the wire can be read as the broker's owner can.
    let mut fleet = Fleet::insecure(0);
    let proxy = Proxy::recording(&format!("127.0.0.1:{}", fleet.controller.mqtt_port));
    let broker = format!("mqtt://{}", proxy.address);
    let door = Door::Broker(&broker);
    let agent = Agent::start(&fleet.lab, "dev-0", door, &fleet.registry);
    fleet.agents.push(agent);
    fleet.until_online(1);
    let script = "for n in 1 2 3; do echo the-line-a3f8-$n; done; sleep 1000000";
    // The words of the command are in desired state, which is signed and not sealed.
    let script = script.replace("the-line", "$A-line");
    fleet.controller.ok(&["run", "web", "--image=box", "-e", "A=the", "--", "sh", "-c", &script]);
    fleet.until_phases("web", &["running"]);
    let lines = fleet.eventually("three lines", || {
        let lines = fleet.controller.ok(&["logs", "web"]);
        (lines.lines().count() == 3).then_some(lines)
    });
    assert_eq!(lines, "the-line-a3f8-1\nthe-line-a3f8-2\nthe-line-a3f8-3\n");
    let bytes = proxy.recorded();
    let crossed = |text: &str| bytes.windows(text.len()).any(|part| part == text.as_bytes());
    assert!(!crossed("line-a3f8-1"), "a line crossed the wire in the open");
    // What is only signed is there in the open, here: it is the wire that was looked at.
    for text in ["limpet/v1/d/dev-0/up/stream/", "-line-a3f8-$n"] {
        assert!(crossed(text), "{text}");
    }
}

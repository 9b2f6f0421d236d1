//! Whoever owns the broker, against the controller: what devices and publishers have signed is all
//! that counts, once and in its order.

use limpet_protocol::envelope::{Header, seal};
use limpet_protocol::manifest::SignedManifest;
use limpet_protocol::{
    BootId, DeploymentName, Digest, Event, EventBatch, EventKind, Feature, Held, Hello, Kind, Leaf,
    Nonce, OutboxId, Phase, Prefix, Presence, PresenceState, Record, Reported, SigningKey, Topic,
    WorkloadId, WorkloadStatus, reported,
};
use limpet_tests::{Controller, Lab, Member, Owner, Value};
use serde::Serialize;

use crate::external::{Foreign, answers, until_answered};
use crate::hostile::garbage;
use crate::secured::device;

/// A topic and what was published on it.
type Message = (String, Vec<u8>);

/// A member that says what the test has it say, as a device would.
struct Device {
    id: &'static str,
    key: SigningKey,
    boot: u8,
    connection: u64,
    recorded: u64,
    sequence: u64,
    said: Vec<Message>,
}

impl Device {
    fn join(lab: &Lab, controller: &Controller, id: &'static str) -> Self {
        let key = Member::join(lab, id, controller).key;
        Self { id, key, boot: 1, connection: 100, recorded: 0, sequence: 0, said: vec![] }
    }

    fn message<T: Serialize>(&self, key: &SigningKey, leaf: Leaf, body: &T) -> Message {
        let device = self.id.parse().unwrap();
        let topic = Topic::Device(self.id.parse().unwrap(), leaf).under(&Prefix::default());
        let (prefix, kind) = ("limpet/v1".to_owned(), leaf.kind());
        (topic, seal(key, &Header { prefix, device, kind, epoch: 1, number: 1 }, body))
    }

    fn say<T: Serialize>(&mut self, owner: &mut Owner, leaf: Leaf, body: &T) {
        let message = self.message(&self.key, leaf, body);
        owner.publish(&message.0, &message.1);
        self.said.push(message);
    }

    fn hello_of(&self, boot: u8, connection: u64) -> Hello {
        Hello {
            boot: BootId([boot; 16]),
            connection,
            nonce: Nonce([boot; 16]),
            agent_version: format!("{boot}.{connection}").as_str().try_into().unwrap(),
            features: vec![Feature::known(Feature::LIMIT_PIDS)],
            labels: [("name".try_into().unwrap(), self.id.try_into().unwrap())].into(),
            facts: Default::default(),
            held: Held { epoch: 1, generation: 0 },
            arriving: None,
            reported: Digest([0; 32]),
            outbox: OutboxId([1; 8]),
            keep_alive_s: 600,
            sealing_key: None,
            controller: None,
            sent_ms: connection,
            recorded: Some(self.recorded),
        }
    }

    fn hello(&mut self, owner: &mut Owner) {
        let hello = self.hello_of(self.boot, self.connection);
        self.say(owner, Leaf::Hello, &hello);
    }

    fn presence(&self) -> Presence {
        let boot = BootId([self.boot; 16]);
        Presence { state: PresenceState::Offline, boot, connection: self.connection }
    }

    fn report_of(&self, sequence: u64, phase: Phase) -> Reported {
        let workload: WorkloadId = "web.0".parse().unwrap();
        let status = WorkloadStatus {
            deployment: "web".parse().unwrap(),
            revision: Digest([5; 32]),
            phase,
            container: 1,
            pid: None,
            restarts: 0,
            exit: None,
            message: format!("report {sequence}"),
        };
        Reported {
            outbox: OutboxId([1; 8]),
            sequence,
            applied: Held { epoch: 1, generation: sequence },
            complete: true,
            whole: reported::digest([(&workload, &status)]),
            records: vec![Record { workload, status: Some(status) }],
            upgrade: None,
        }
    }

    fn report(&mut self, owner: &mut Owner, phase: Phase) {
        self.sequence += 1;
        let report = self.report_of(self.sequence, phase);
        self.say(owner, Leaf::Reported, &report);
    }

    fn event_of(&self, number: u64, message: &str) -> EventBatch {
        let boot = BootId([self.boot; 16]);
        let event = Event {
            number,
            boot,
            at_ms: number,
            kind: EventKind::AgentStarted,
            workload: None,
            container: None,
            exit: None,
            message: message.to_owned(),
        };
        let outbox = OutboxId([1; 8]);
        EventBatch { outbox, boot, sent_ms: 1000, oldest: number, events: vec![event] }
    }

    /// Tells an event, and waits until it is known: all that was published before it is, too.
    fn event(&mut self, fleet: &Foreign, owner: &mut Owner) {
        self.recorded += 1;
        let message = format!("event {} of {}", self.recorded, self.id);
        let batch = self.event_of(self.recorded, &message);
        self.say(owner, Leaf::Event, &batch);
        fleet.until_told("agent-started", &message);
    }
}

/// All that the controller says of its fleet, but for how old it is.
fn known(fleet: &Foreign) -> Vec<Value> {
    let mut all: Vec<Value> =
        ["devices", "workloads", "deployments"].iter().flat_map(|what| fleet.all(what)).collect();
    for one in &mut all {
        let fields = one.as_object_mut().unwrap();
        fields.retain(|name, _| !name.ends_with("age_s"));
    }
    all
}

fn events(fleet: &Foreign, kind: &str) -> Vec<String> {
    let all = fleet.all("events");
    let of_kind = all.iter().filter(|event| event["kind"] == kind);
    of_kind.map(|event| event["message"].as_str().unwrap().to_owned()).collect()
}

fn throw_all(owner: &mut Owner, messages: &[Message]) {
    for (topic, payload) in messages {
        owner.publish(topic, payload);
    }
}

fn until_online(fleet: &Foreign, id: &str, version: &str) {
    fleet.eventually(&format!("{id} online"), || {
        let device = device(&fleet.controller, id)?;
        (device["presence"] == "online" && device["agent_version"] == version).then_some(())
    });
}

#[test]
fn what_a_device_has_said_counts_once_and_in_its_order() {
    let mut fleet = Foreign::start(&[]);
    let mut owner = fleet.broker.owner();
    let mut played = Device::join(&fleet.lab, &fleet.controller, "played");
    fleet.controller.ok(&["run", "web", "--image=box", "--select", "name=played", "--detach"]);
    // A first connection, and its end.
    played.hello(&mut owner);
    until_online(&fleet, "played", "1.100");
    played.report(&mut owner, Phase::Running);
    played.event(&fleet, &mut owner);
    let will = played.presence();
    played.say(&mut owner, Leaf::Presence, &will);
    fleet.eventually("its end", || {
        (device(&fleet.controller, "played")?["presence"] == "offline").then_some(())
    });
    // Replayed while the device is away: it does not come back.
    let before = known(&fleet);
    throw_all(&mut owner, &played.said.clone());
    played.event(&fleet, &mut owner);
    assert_eq!(known(&fleet), before, "replayed while it is away");
    // A second connection, whose report is a bad one.
    played.connection = 200;
    played.hello(&mut owner);
    until_online(&fleet, "played", "1.200");
    played.report(&mut owner, Phase::Failed);
    played.event(&fleet, &mut owner);
    let before = known(&fleet);
    throw_all(&mut owner, &played.said.clone());
    throw_all(&mut owner, &played.said.clone());
    played.event(&fleet, &mut owner);
    assert_eq!(known(&fleet), before, "hello, reports, events and wills of the connection before");
    // What was held back, and is let go after the device has started anew.
    let held_back = [
        played.message(&played.key, Leaf::Hello, &played.hello_of(1, 300)),
        played.message(&played.key, Leaf::Reported, &played.report_of(2, Phase::Running)),
        played.message(&played.key, Leaf::Event, &played.event_of(2, "held back")),
        played.message(&played.key, Leaf::Presence, &played.presence()),
    ];
    (played.boot, played.connection) = (2, 50);
    played.hello(&mut owner);
    until_online(&fleet, "played", "2.50");
    played.event(&fleet, &mut owner);
    played.report(&mut owner, Phase::Failed);
    // Of a boot that was never heard: from before events that were told since.
    let never_heard = Hello { recorded: Some(0), ..played.hello_of(9, 900) };
    let never_heard = played.message(&played.key, Leaf::Hello, &never_heard);
    played.event(&fleet, &mut owner);
    let before = known(&fleet);
    throw_all(&mut owner, &held_back);
    throw_all(&mut owner, std::slice::from_ref(&never_heard));
    throw_all(&mut owner, &played.said.clone());
    played.event(&fleet, &mut owner);
    assert_eq!(known(&fleet), before, "held back and let go late");
    assert!(!events(&fleet, "agent-started").contains(&"held back".to_owned()));
    // A controller that begins anew remembers whom it has heard.
    fleet.controller.kill();
    fleet.controller.restart();
    fleet.until_presence("online");
    throw_all(&mut owner, &played.said.clone());
    throw_all(&mut owner, &held_back);
    throw_all(&mut owner, &[never_heard]);
    played.event(&fleet, &mut owner);
    let after = device(&fleet.controller, "played").unwrap();
    assert_eq!((&after["presence"], &after["agent_version"]), (&"unknown".into(), &"2.50".into()));
    let refused = events(&fleet, "message-refused").join("\n");
    assert!(refused.contains("somebody repeats it"), "{refused}");
    // The device itself is heard as ever.
    played.connection = 60;
    played.hello(&mut owner);
    until_online(&fleet, "played", "2.60");
}

#[test]
fn what_no_member_has_signed_is_nothing() {
    let fleet = Foreign::start(&[]);
    let mut owner = fleet.broker.owner();
    let overheard = fleet.broker.overheard(&fleet.lab);
    let mut played = Device::join(&fleet.lab, &fleet.controller, "played");
    played.hello(&mut owner);
    until_online(&fleet, "played", "1.100");
    let run = ["run", "web", "--image=box", "--select", "name=dev-0", "--"];
    fleet.controller.ok(&[&run[..], &["sh", "-c", "exec sleep 100000"]].concat());
    played.event(&fleet, &mut owner);
    let before = known(&fleet);
    let count = events(&fleet, "message-refused").len();
    let topic = |id: &str, leaf: &str| format!("limpet/v1/d/{id}/up/{leaf}");
    // One device's messages on another's topics, both ways.
    let said = |id: &str| {
        let own = format!("/{id}/up/");
        overheard.all().into_iter().filter(move |(topic, _)| topic.contains(&own))
    };
    let swapped = said("dev-0").map(|(on, bytes)| (on.replace("/dev-0/", "/played/"), bytes));
    let swapped: Vec<Message> = swapped.collect();
    assert!(swapped.len() > 2, "{swapped:?}");
    throw_all(&mut owner, &swapped);
    let back = said("played").map(|(on, bytes)| (on.replace("/played/", "/dev-0/"), bytes));
    throw_all(&mut owner, &back.collect::<Vec<_>>());
    // Signed with a key of nobody's: another hello, health, events, an end.
    let nobody = SigningKey::from_seed(&[9; 32]).unwrap();
    let forged = |device: &Device| {
        let report = Reported { sequence: 1000, ..device.report_of(1000, Phase::Failed) };
        [
            device.message(&nobody, Leaf::Hello, &device.hello_of(7, 1000)),
            device.message(&nobody, Leaf::Reported, &report),
            device.message(&nobody, Leaf::Event, &device.event_of(1000, "forged")),
            device.message(&nobody, Leaf::Presence, &device.presence()),
            device.message(&nobody, Leaf::Result, &limpet_protocol::CommandResult { error: None }),
        ]
    };
    let dev_0 = Device {
        id: "dev-0",
        key: SigningKey::from_seed(&[8; 32]).unwrap(),
        said: vec![],
        ..played
    };
    let ghost = Device {
        id: "ghost",
        key: SigningKey::from_seed(&[8; 32]).unwrap(),
        said: vec![],
        ..dev_0
    };
    for device in [&dev_0, &ghost] {
        throw_all(&mut owner, &forged(device));
    }
    throw_all(&mut owner, &forged(&played));
    // A device that nobody has let in, by its own key.
    let own = ghost.message(&ghost.key, Leaf::Hello, &ghost.hello_of(1, 1));
    throw_all(&mut owner, &[own]);
    // What a device did say, altered: a report whose one byte differs, and one that is cut short.
    for (on, bytes) in said("dev-0").collect::<Vec<_>>() {
        let mut flipped = bytes.clone();
        let middle = flipped.len() / 2;
        flipped[middle] ^= 1;
        throw_all(&mut owner, &[(on.clone(), flipped), (on, bytes[..bytes.len() - 1].to_vec())]);
    }
    // And what is no message at all, on every topic.
    let leaves = ["presence", "hello", "reported", "event", "result", "desired", "nonsense"];
    for leaf in leaves.into_iter().chain(["stream/0011223344556677"]) {
        for (_, bytes) in garbage() {
            owner.publish(&topic("dev-0", leaf), &bytes);
            owner.publish(&topic("played", leaf), &bytes);
        }
    }
    for odd in ["d/+x/up/hello", "d/dev-0/up", "d//up/hello", "deploy/UPPER", "deploy/web/result"] {
        let _ = owner.throw(&format!("limpet/v1/{}", odd.replace('+', "")), b"x");
    }
    played.event(&fleet, &mut owner);
    assert_eq!(known(&fleet), before);
    assert!(!events(&fleet, "agent-started").contains(&"forged".to_owned()));
    let refused = events(&fleet, "message-refused");
    let told = refused.join("\n");
    for why in ["signed by", "ghost has not joined this fleet"] {
        assert!(told.contains(why), "{why} in {told}");
    }
    assert!(refused.len() - count < 100, "refusals are told within bounds: {}", refused.len());
    // Nothing of it disturbs the device.
    fleet.controller.ok(&["scale", "web", "--replicas=2"]);
}

/// Signs a manifest at a time of the test's choice.
fn signed(key: &SigningKey, name: &str, manifest: &str, at_ms: u64) -> Vec<u8> {
    let name: DeploymentName = name.parse().unwrap();
    let manifest = manifest.as_bytes().to_vec();
    let signed = SignedManifest { until_ms: at_ms + 3_600_000, manifest };
    signed.seal(key, &Prefix::default(), &name, at_ms)
}

fn now_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    u64::try_from(now.unwrap().as_millis()).unwrap()
}

#[test]
fn a_manifest_counts_once_in_its_order_in_time_and_for_whom_it_was_signed() {
    let fleet = Foreign::start(&[]);
    let mut owner = fleet.broker.owner();
    let overheard = fleet.broker.overheard(&fleet.lab);
    let ci = SigningKey::generate().unwrap();
    let pem = |key: &SigningKey, name: &str| {
        let der = fleet.lab.file("key.der", key.pkcs8()).display().to_string();
        let public = fleet.lab.path(name).display().to_string();
        let args = ["pkey", "-inform", "DER", "-in", &der, "-pubout", "-out", &public];
        limpet_tests::run("openssl", &args);
        public
    };
    fleet.publisher("ci", &["--public-key", &pem(&ci, "ci.pub")]);
    let web = "limpet/v1/deploy/web";
    let begun = now_ms();
    let first = signed(&ci, "web", "image: one", begun);
    let second = signed(&ci, "web", "image: two", begun + 1);
    let held_back = signed(&ci, "web", "image: held-back", now_ms() + 2);
    owner.publish(web, &first);
    fleet.until_image("web", Some("one"));
    owner.publish(web, &second);
    fleet.until_image("web", Some("two"));
    // Nothing of what follows changes anything; each is answered with what to do.
    let nobody = SigningKey::generate().unwrap();
    let mut altered = signed(&ci, "web", "image: evil", now_ms());
    *altered.last_mut().unwrap() ^= 1;
    let late = begun - 24 * 3_600_000;
    let foreign = {
        let (name, prefix) = ("web".parse().unwrap(), "other/v1".parse().unwrap());
        let manifest = b"image: evil".to_vec();
        SignedManifest { until_ms: u64::MAX, manifest }.seal(&ci, &prefix, &name, now_ms())
    };
    let as_device = {
        let (prefix, device) = ("limpet/v1".to_owned(), "web".parse().unwrap());
        let header = Header { prefix, device, kind: Kind::Desired, epoch: 0, number: now_ms() };
        let manifest = b"image: evil".to_vec();
        seal(&ci, &header, &SignedManifest { until_ms: u64::MAX, manifest })
    };
    let attacks: [(&str, Vec<u8>, &str); 9] = [
        ("unsigned", b"image: evil".to_vec(), "limpet sign -f FILE"),
        ("deletion", vec![], "limpet sign -f FILE"),
        ("of nobody", signed(&nobody, "web", "image: evil", now_ms()), "no publisher's"),
        ("altered", altered, "the signature does not match"),
        ("older", first.clone(), "somebody repeats it"),
        ("of another fleet", foreign, "signed as other/v1"),
        ("another kind", as_device, "signed as limpet/v1 web desired"),
        ("expired", signed(&ci, "fresh", "image: evil", late), "was good until"),
        ("ahead", signed(&ci, "web", "image: evil", begun + 3_600_000), "yet to come"),
    ];
    for (what, bytes, why) in attacks {
        let name = if what == "expired" { "fresh" } else { "web" };
        // Again and again: not every one is answered.
        fleet.eventually(what, || {
            owner.publish(&format!("limpet/v1/deploy/{name}"), &bytes);
            answers(&overheard, name).contains(why).then_some(())
        });
        assert_eq!(fleet.image("web").as_deref(), Some("two"), "{what}");
    }
    assert_eq!(fleet.image("fresh"), None);
    // Signed for one deployment, published on another.
    owner.publish("limpet/v1/deploy/other", &signed(&ci, "web", "image: evil", now_ms()));
    until_answered(&fleet, &overheard, "other", "signed as limpet/v1 web");
    // What was published before this has been looked at.
    let settle = |owner: &mut Owner, name: &str| {
        owner.publish(&format!("limpet/v1/deploy/{name}"), b"image: evil");
        until_answered(&fleet, &overheard, name, "limpet sign -f FILE");
    };
    // The latest once more is nothing; cut short it is refused.
    owner.publish(web, &second);
    owner.publish(web, &second[..second.len() - 1]);
    let kept = signed(&ci, "kept", "image: evil", now_ms());
    // What an operator has changed since is not undone by what was held back.
    fleet.controller.ok(&["scale", "web", "--replicas=3", "--detach"]);
    owner.publish(web, &held_back);
    settle(&mut owner, "changed");
    assert_eq!(fleet.image("web").as_deref(), Some("two"));
    fleet.controller.ok(&["delete", "web"]);
    for late in [&held_back, &second, &first] {
        owner.publish(web, late);
    }
    settle(&mut owner, "deleted");
    assert_eq!(fleet.image("web"), None);
    // A deletion counts once: not for what came after it.
    let deletion = signed(&ci, "web", "", now_ms() + 5000);
    let third = signed(&ci, "web", "image: three", now_ms() + 6000);
    owner.publish(web, &third);
    fleet.until_image("web", Some("three"));
    owner.publish(web, &deletion);
    let gone = signed(&ci, "web", "", now_ms() + 7000);
    owner.publish(web, &gone);
    fleet.until_image("web", None);
    owner.publish(web, &signed(&ci, "web", "image: four", now_ms() + 8000));
    fleet.until_image("web", Some("four"));
    for late in [&gone, &deletion, &third] {
        owner.publish(web, late);
    }
    settle(&mut owner, "again");
    assert_eq!(fleet.image("web").as_deref(), Some("four"));
    // Retained while the controller is away, and met by it when it subscribes.
    let mut fleet = fleet;
    fleet.controller.kill();
    owner.retain("limpet/v1/deploy/kept", &kept);
    fleet.controller.restart();
    fleet.until_told("manifest-refused", "a copy that the broker has kept");
    // Who is revoked signs nothing any more, and all that was before stays as it is.
    let tokens = fleet.controller.ok(&["token", "list"]);
    let id = tokens.lines().find(|line| line.contains(" ci ")).unwrap().split(' ').next().unwrap();
    fleet.controller.ok(&["token", "revoke", id]);
    owner.publish(web, &signed(&ci, "web", "image: evil", now_ms() + 9000));
    until_answered(&fleet, &overheard, "web", &ci.public().fingerprint());
    assert_eq!(fleet.image("web").as_deref(), Some("four"));
    assert_eq!(
        (fleet.image("kept"), fleet.image("other"), fleet.image("fresh")),
        (None, None, None)
    );
    let audit = fleet.controller.ok(&["get", "audit", "-o", "json"]);
    let audit: Vec<Value> = serde_json::from_str(&audit).unwrap();
    let strangers: Vec<&str> = audit
        .iter()
        .filter(|entry| entry["who"] == "stranger" && entry["action"] == "deployment.apply")
        .map(|entry| entry["outcome"].as_str().unwrap())
        .collect();
    for why in ["must be signed", "no publisher's", "somebody repeats it", "yet to come"] {
        assert!(strangers.iter().any(|outcome| outcome.contains(why)), "{why}: {strangers:?}");
    }
}

#[test]
fn a_flood_of_junk_on_every_topic_harms_nobody() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    let fleet = Foreign::start(&[]);
    let ci = SigningKey::generate().unwrap();
    let over = Arc::new(AtomicBool::new(false));
    let thrown = Arc::new(AtomicU64::new(0));
    let flood = |mut owner: Owner, ci: SigningKey| {
        let (over, thrown) = (Arc::clone(&over), Arc::clone(&thrown));
        let whole = signed(&ci, "web", "image: evil", now_ms());
        std::thread::spawn(move || {
            for number in 0u64.. {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                for (leaf, payload) in [
                    (
                        format!(
                            "d/dev-0/up/{}",
                            ["hello", "reported", "event"][number as usize % 3]
                        ),
                        &whole[..],
                    ),
                    (format!("d/junk-{number}/up/hello"), &whole),
                    (format!("deploy/junk-{number}"), &whole),
                    (format!("deploy/junk-{}", number % 7), b"image: evil"),
                    ("d/dev-0/up/nonsense".to_owned(), &[0; 4096]),
                ] {
                    if owner.throw(&format!("limpet/v1/{leaf}"), payload).is_err() {
                        return;
                    }
                    thrown.fetch_add(1, Ordering::Relaxed);
                }
            }
        })
    };
    let floods = [
        flood(fleet.broker.owner(), ci),
        flood(fleet.broker.owner(), SigningKey::generate().unwrap()),
    ];
    let many = |count| {
        fleet.eventually("a flood", || (thrown.load(Ordering::Relaxed) > count).then_some(()))
    };
    many(20_000);
    fleet.controller.run_script("web", "exec sleep 100000");
    many(200_000);
    fleet.controller.ok(&["scale", "web", "--replicas=2"]);
    assert_eq!(device(&fleet.controller, "dev-0").unwrap()["presence"], "online");
    over.store(true, Ordering::Relaxed);
    floods.into_iter().for_each(|flood| flood.join().unwrap());
    let status =
        std::fs::read_to_string(format!("/proc/{}/status", fleet.controller.process.pid()));
    let status = status.unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak_kb: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak_kb < 512 << 10, "the controller took {peak_kb} kB");
    let told = events(&fleet, "message-refused").len() + events(&fleet, "manifest-refused").len();
    let audit: Vec<Value> = serde_json::from_str(&fleet.controller.ok(&[
        "get",
        "audit",
        "-o",
        "json",
        "--limit=10000",
    ]))
    .unwrap();
    let thrown = thrown.load(Ordering::Relaxed);
    assert!(
        told > 0 && told < 1000 && audit.len() < 100,
        "{thrown}: {told} events, {} audited",
        audit.len()
    );
    let names: Vec<Value> =
        fleet.all("deployments").iter().map(|one| one["name"].clone()).collect();
    assert_eq!(names, ["web"]);
    assert_eq!(fleet.all("devices").len(), 1);
}

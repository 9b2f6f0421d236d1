//! Peers that send what they must not: devices, operators, and whoever owns the broker.

use std::path::PathBuf;

use limpet_protocol::envelope::{Header, seal};
use limpet_protocol::{
    BootId, DesiredState, Held, Hello, Kind, Leaf, Nonce, Prefix, SigningKey, Topic,
};
use limpet_tests::{
    Agent, Door, Fleet, Lab, Member, Place, Process, eventually, free_port, output,
};

/// Bytes that are no message of anybody.
pub(crate) fn garbage() -> Vec<(&'static str, Vec<u8>)> {
    let key = SigningKey::from_seed(&[9; 32]).unwrap();
    let header = Header {
        prefix: "limpet/v1".into(),
        device: "dev-0".parse().unwrap(),
        kind: Kind::Hello,
        epoch: 0,
        number: 0,
    };
    let whole = seal(&key, &header, &"body");
    let mut flipped = whole.clone();
    *flipped.last_mut().unwrap() ^= 1;
    vec![
        ("empty", vec![]),
        ("text", b"hello".to_vec()),
        ("truncated", whole[..whole.len() / 2].to_vec()),
        ("trailing", [whole.as_slice(), b"x"].concat()),
        ("flipped", flipped),
        ("deep", [vec![0xd2], vec![0x81; 200_000]].concat()),
        ("deep map", [vec![0xd2], [0xa1, 0x00].repeat(50_000)].concat()),
        // A byte string, a text, an array and a map that claim 2^40 of what follows.
        ("long bytes", vec![0xd2, 0x5b, 0, 0, 1, 0, 0, 0, 0, 0, 1]),
        ("long text", vec![0xd2, 0x7b, 0, 0, 1, 0, 0, 0, 0, 0, 1]),
        ("long array", vec![0xd2, 0x9b, 0, 0, 1, 0, 0, 0, 0, 0, 1]),
        ("long map", vec![0xd2, 0xbb, 0, 0, 1, 0, 0, 0, 0, 0, 1]),
        ("long payload", vec![0xd2, 0x84, 0x41, 0, 0xa0, 0x5b, 0, 0, 1, 0, 0, 0, 0, 0, 0x41]),
        ("another's", whole),
    ]
}

/// Publishes bytes as a client of this id; gives what mosquitto_pub says.
fn publish(lab: &Lab, port: u16, client: &str, topic: &str, payload: &[u8]) -> String {
    let file = lab.file("payload", payload).display().to_string();
    let port = port.to_string();
    let args = ["-p", &port, "-V", "mqttv5", "-q", "1", "-i", client, "-t", topic, "-f", &file];
    let done = output("mosquitto_pub", &args);
    done.out + &done.err
}

/// What a device that means no good says first.
pub(crate) fn evil_hello() -> Hello {
    Hello {
        boot: BootId([1; 16]),
        connection: 1,
        nonce: Nonce([1; 16]),
        agent_version: "0".try_into().unwrap(),
        features: vec![],
        labels: Default::default(),
        facts: Default::default(),
        held: Held::default(),
        arriving: None,
        reported: limpet_protocol::Digest([0; 32]),
        outbox: limpet_protocol::OutboxId([1; 8]),
        keep_alive_s: 600,
        sealing_key: None,
        sent_ms: 0,
        recorded: None,
        controller: None,
    }
}

#[test]
fn garbage_on_every_topic_of_a_device_is_refused_and_disturbs_nobody() {
    let fleet = Fleet::start(1);
    fleet.controller.ok(&["run", "web", "--image=box", "--select", "name=dev-0"]);
    let before = fleet.until_phases("web", &["running"]);
    let evil = Member::join(&fleet.lab, "evil", &fleet.controller);
    let send = |leaf: &str, bytes: &[u8]| evil.publish(&fleet.lab, leaf, bytes);
    assert_eq!(send("hello", &evil.seal(Kind::Hello, &evil_hello())), "");
    let stream = "stream/0011223344556677";
    let kinds = [
        ("presence", Kind::Presence),
        ("hello", Kind::Hello),
        ("reported", Kind::Reported),
        ("event", Kind::Event),
        ("result", Kind::Result),
        ("desired", Kind::Returned),
        (stream, Kind::Stream),
        ("nonsense", Kind::Hello),
    ];
    for (leaf, kind) in kinds {
        // Well signed, and still no message of its kind.
        let bodies = [
            evil.seal(kind, &"text"),
            evil.seal(kind, &vec![0u8; 200_000]),
            evil.seal(kind, &std::collections::BTreeMap::from([("o", 1), ("e", 1)])),
        ];
        let signed = bodies.into_iter().map(|bytes| ("signed", bytes));
        for (what, bytes) in garbage().into_iter().chain(signed) {
            let said = send(leaf, &bytes);
            assert!(said.to_lowercase().contains("not authorized"), "{what} on {leaf}: {said}");
        }
    }
    for (what, bytes) in garbage().into_iter().filter(|(what, _)| *what != "empty") {
        let file = fleet.lab.file("payload", bytes).display().to_string();
        let topic = ["-V", "mqttv5", "-q", "1", "-t", "limpet/v1/deploy/web", "-f", &file];
        output("mosquitto_pub", &[&fleet.controller.publisher()[..], &topic].concat());
        assert_eq!(fleet.controller.get("/api/v1/deployments/web")["image"], "box", "{what}");
    }
    let events = fleet.controller.list("/api/v1/events?device=evil");
    let told = events.iter().any(|e| {
        e["kind"] == "message-refused"
            && e["message"].as_str().unwrap().contains("limpet/v1/d/evil/up/")
    });
    assert!(told, "{events:?}");
    assert_eq!(fleet.until_phases("web", &["running"])[0]["pid"], before[0]["pid"]);
    fleet.controller.ok(&["scale", "web", "--replicas=2"]);
}

#[test]
fn without_certificates_too_clients_reach_their_own_topics_only() {
    let fleet = Fleet::insecure(1);
    let (lab, port) = (&fleet.lab, fleet.controller.mqtt_port);
    let refused = |client: &str, topic: &str| {
        let said = publish(lab, port, client, topic, b"x");
        assert!(said.to_lowercase().contains("not authorized"), "{client} on {topic}: {said}");
    };
    for topic in [
        "d/dev-0/desired",
        "d/dev-0/command",
        "d/dev-0/down/ack",
        "d/dev-0/up/hello",
        "deploy/web/result",
        "other",
    ] {
        refused("operator", &format!("limpet/v1/{topic}"));
        refused("limpet/evil/0011223344556677", &format!("limpet/v1/{topic}"));
    }
    refused("limpet/evil/0011223344556677", "limpet/v1/deploy/web");
    let subscribe = |client: &str, filter: &str| {
        let port = port.to_string();
        let done = output(
            "mosquitto_sub",
            &["-p", &port, "-V", "mqttv5", "-i", client, "-t", filter, "-W", "1"],
        );
        done.out + &done.err
    };
    for filter in ["#", "limpet/v1/#", "limpet/v1/d/+/up/#", "limpet/v1/d/dev-0/desired", "$SYS/#"]
    {
        for client in ["operator", "limpet/evil/0011223344556677"] {
            let said = subscribe(client, filter).to_lowercase();
            assert!(
                said.contains("not authorized")
                    || said.contains("all subscription requests were denied"),
                "{client} on {filter}: {said}"
            );
        }
    }
    // Nobody takes a device's place with another key.
    let said =
        publish(lab, port, "limpet/dev-0/0011223344556677", "limpet/v1/d/dev-0/up/hello", b"x");
    assert!(said.to_lowercase().contains("not authorized"), "{said}");
    assert_eq!(fleet.controller.get("/api/v1/devices/dev-0")["presence"], "online");
}

/// A device on a broker that an attacker owns, and all that it has said there.
struct Owned {
    // In this order they are dropped.
    agent: Agent,
    heard: Process,
    broker: Process,
    log: PathBuf,
    port: u16,
    lab: Lab,
}

impl Owned {
    fn start() -> Self {
        let (lab, port) = (Lab::new(), free_port());
        let config = lab
            .file("mosquitto.conf", format!("listener {port} 127.0.0.1\nallow_anonymous true\n"));
        let broker = Process::start(
            &lab.path("mosquitto.log"),
            "/usr/sbin/mosquitto".as_ref(),
            &["-c", &config.display().to_string()],
        );
        eventually("mosquitto", || std::net::TcpStream::connect(("127.0.0.1", port)).ok());
        let log = lab.path("heard");
        let port_text = port.to_string();
        let heard = Process::start(
            &log,
            "/usr/bin/mosquitto_sub".as_ref(),
            &["-p", &port_text, "-t", "#", "-F", "%t %x"],
        );
        std::thread::sleep(std::time::Duration::from_millis(200));
        let url = format!("mqtt://127.0.0.1:{port}");
        // So that it says of each message why it is refused, which on flash would be too much.
        let through = ["env", "LIMPET_LOG=debug"].map(str::to_owned).to_vec();
        let place = Place { through, ..Place::default() };
        let agent = Agent::placed(&lab, "dev-0", Door::Broker(&url), "keep_alive_s = 6\n", place);
        Self { agent, heard, broker, log, port, lab }
    }

    /// The payloads that the device has published on a topic, in order.
    fn heard(&self, leaf: &str) -> Vec<Vec<u8>> {
        let topic = format!("limpet/v1/d/dev-0/up/{leaf} ");
        let text = std::fs::read_to_string(&self.log).unwrap();
        let unhex = |text: &str| {
            (0..text.len() / 2)
                .map(|n| u8::from_str_radix(&text[2 * n..2 * n + 2], 16).unwrap())
                .collect()
        };
        // The last line may not be whole yet.
        let whole = text.rsplit_once('\n').map(|(whole, _)| whole).unwrap_or_default();
        whole.lines().filter_map(|line| line.strip_prefix(&topic)).map(unhex).collect()
    }

    fn send(&self, leaf: Leaf, payload: &[u8]) {
        let topic = Topic::Device("dev-0".parse().unwrap(), leaf).under(&Prefix::default());
        publish(&self.lab, self.port, "controller", &topic, payload);
    }

    fn hello(&self) -> Hello {
        let bytes = eventually("hello", || self.heard("hello").pop());
        let (prefix, device) = (Prefix::default(), "dev-0".parse().unwrap());
        let expected = limpet_protocol::Expected {
            prefix: &prefix,
            device: &device,
            kind: Kind::Hello,
            signer: None,
        };
        limpet_protocol::envelope::open(&bytes, expected).unwrap().read().unwrap()
    }
}

fn desired(key: &SigningKey, device: &str, generation: u64, at_ms: u64) -> Vec<u8> {
    let held = Held { epoch: 1, generation };
    let state = DesiredState {
        held,
        at_ms,
        reconnect_spread_ms: 0,
        policy: None,
        upgrade: None,
        workloads: vec![],
    };
    let header = Header {
        prefix: "limpet/v1".into(),
        device: device.parse().unwrap(),
        kind: Kind::Desired,
        epoch: 1,
        number: generation,
    };
    seal(key, &header, &state)
}

#[test]
fn the_owner_of_the_broker_can_make_a_device_do_nothing() {
    let mut owned = Owned::start();
    let (mine, other) =
        (SigningKey::from_seed(&[1; 32]).unwrap(), SigningKey::from_seed(&[2; 32]).unwrap());
    let hello = owned.hello();
    assert_eq!(hello.held, Held::default());
    let ack = |key: &SigningKey, connection| {
        let header = Header {
            prefix: "limpet/v1".into(),
            device: "dev-0".parse().unwrap(),
            kind: Kind::Ack,
            epoch: 1,
            number: connection,
        };
        seal(
            key,
            &header,
            &limpet_protocol::Ack {
                outbox: hello.outbox,
                events: 0,
                sequence: 0,
                send_whole: false,
            },
        )
    };
    // The first key is trusted, and accepted state is applied.
    owned.send(Leaf::Desired, &desired(&mine, "dev-0", 5, 1));
    owned.send(Leaf::Ack, &ack(&mine, hello.connection));
    let applied = |owned: &Owned| -> Vec<u64> {
        let (prefix, device) = (Prefix::default(), "dev-0".parse().unwrap());
        let expected = limpet_protocol::Expected {
            prefix: &prefix,
            device: &device,
            kind: Kind::Reported,
            signer: None,
        };
        owned
            .heard("reported")
            .iter()
            .map(|bytes| {
                let report: limpet_protocol::Reported =
                    limpet_protocol::envelope::open(bytes, expected).unwrap().read().unwrap();
                report.applied.generation
            })
            .collect()
    };
    eventually("generation 5", || applied(&owned).contains(&5).then_some(()));
    // From here on: other keys, other devices, older and changed documents, garbage.
    owned.send(Leaf::Desired, &desired(&other, "dev-0", 6, 1));
    owned.send(Leaf::Desired, &desired(&mine, "dev-1", 7, 1));
    owned.send(Leaf::Desired, &desired(&mine, "dev-0", 4, 1));
    owned.send(Leaf::Desired, &desired(&mine, "dev-0", 5, 99));
    owned.send(Leaf::Command, &desired(&mine, "dev-0", 8, 1));
    for leaf in [Leaf::Desired, Leaf::Command, Leaf::Ack] {
        for (_, bytes) in garbage() {
            owned.send(leaf, &bytes);
        }
    }
    let command = |key: &SigningKey, nonce, action| {
        let header = Header {
            prefix: "limpet/v1".into(),
            device: "dev-0".parse().unwrap(),
            kind: Kind::Command,
            epoch: 1,
            number: 1,
        };
        seal(key, &header, &limpet_protocol::Command { nonce, action })
    };
    let stream = limpet_protocol::StreamId([1; 8]);
    let end = || limpet_protocol::Action::EndStream { stream };
    // Whoever has no key that the device believes gives it no other.
    let membership = limpet_protocol::Membership {
        controller: other.public(),
        roots: vec![],
        certificates: vec![],
        brokers: vec![],
        servers: vec![],
        broker_roots: vec![],
    };
    let rekey = limpet_protocol::Action::Membership(Box::new(membership));
    owned.send(Leaf::Command, &command(&other, hello.nonce, rekey));
    // A command of another connection is not carried out; one of this connection is.
    owned.send(Leaf::Command, &command(&mine, Nonce([0; 16]), end()));
    owned.send(Leaf::Command, &command(&mine, hello.nonce, end()));
    eventually("the answer to the one good command", || {
        (owned.heard("result").len() == 1).then_some(())
    });
    owned.send(Leaf::Desired, &desired(&mine, "dev-0", 9, 1));
    let mut greeted = 1;
    eventually("generation 9", || {
        // What nobody has acknowledged is told anew, from hello on.
        if owned.heard("hello").len() > greeted {
            greeted = owned.heard("hello").len();
            owned.send(Leaf::Ack, &ack(&mine, hello.connection));
        }
        applied(&owned).contains(&9).then_some(())
    });
    let mut seen = applied(&owned);
    seen.retain(|generation| *generation > 0);
    seen.dedup();
    assert_eq!(seen, [5, 9], "nothing else was ever applied");
    assert_eq!(owned.heard("result").len(), 1);
    let log = owned.agent.process.log();
    for reason in ["signed by", "signed as limpet/v1 dev-1", "not a signed message"] {
        assert!(log.contains(reason), "{reason} in {log}");
    }
    let lines = |level: &str| log.matches(&format!("{level} refused: ")).count();
    let (told, refused) = (lines("WARN "), lines("DEBUG"));
    assert!(told >= 1 && told < refused / 4, "{told} of {refused}");
    // The agent tells of it, and has not been restarted by any of it.
    eventually("the event", || {
        owned
            .heard("event")
            .iter()
            .any(|bytes| String::from_utf8_lossy(bytes).contains("refused"))
            .then_some(())
    });
    assert_eq!(owned.hello().boot, hello.boot);
    assert_ne!(owned.hello().boot, BootId([0; 16]));
    owned.heard.kill();
    owned.broker.kill();
}

#[test]
fn without_certificates_too_wills_and_web_pages_reach_nothing_that_is_not_theirs() {
    let fleet = Fleet::insecure(1);
    let port = fleet.controller.mqtt_port.to_string();
    for (client, topic) in [
        ("operator", "limpet/v1/d/dev-0/desired"),
        ("operator", "limpet/v1/deploy/web"),
        ("limpet/evil/0011223344556677", "limpet/v1/deploy/web/result"),
        ("limpet/evil/0011223344556677", "limpet/v1/d/dev-0/up/presence"),
    ] {
        let will = ["--will-topic", topic, "--will-payload", "image: box", "-i", client];
        let own = ["-p", &port, "-V", "mqttv5", "-t", "limpet/v1/deploy/x", "-m", "x"];
        let done = output("mosquitto_pub", &[&own[..], &will].concat());
        let said = (done.out + &done.err).to_lowercase();
        assert!(said.contains("not authorized"), "{client} leaves {topic}: {said}");
    }
    for (header, why) in [
        ("origin: https://evil.example", "pages of other sites are not served"),
        ("sec-fetch-site: cross-site", "pages of other sites are not served"),
        ("host: evil.example", "serves localhost only"),
    ] {
        let url = format!("{}/api/v1/deployments", fleet.controller.api);
        let args = ["-s", "-H", header, "--data-binary", "name: evil\nimage: box", &url];
        assert!(limpet_tests::run("curl", &args).contains(why), "{header}");
    }
    assert!(fleet.controller.list("/api/v1/deployments").is_empty());
    let own = format!("origin: {}", fleet.controller.api);
    let url = format!("{}/api/v1/deployments", fleet.controller.api);
    assert_eq!(limpet_tests::run("curl", &["-s", "-H", &own, &url]), "[]");
}

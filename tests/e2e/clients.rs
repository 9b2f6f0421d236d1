//! What clients of the broker may do, by their certificates, and what hostile ones come to.

use std::net::TcpStream;

use limpet_tests::{Agent, Member, Value, eventually, eventually_or, output};
use rustix::process::{Resource, Rlimit};

use crate::secured::{self, device};

#[test]
fn a_publisher_reaches_manifests_and_nothing_else_until_it_is_revoked() {
    let fleet = secured::start(&[]);
    let controller = &fleet.controller;
    let folder = fleet.lab.path("ci").display().to_string();
    let said = controller.ok(&["token", "create", "--publisher", "ci", "--out", &folder]);
    let id = said.trim_start_matches("token/").split(' ').next().unwrap();
    // What cannot be written, and what is refused, leaves nothing: neither a token, nor files.
    let create = |name: &str, folder: &str| {
        controller.fails(&["token", "create", "--publisher", name, "--out", folder])
    };
    let before = std::fs::read(format!("{folder}/key.pem")).unwrap();
    let why = create("again", &folder);
    assert!(why.contains("cannot make") && why.contains("key.pem"), "{why}");
    assert_eq!(std::fs::read(format!("{folder}/key.pem")).unwrap(), before);
    let other = fleet.lab.path("other");
    let why = create("No Name", &other.display().to_string());
    assert!(why.contains("use lower-case letters") && !other.exists(), "{why}");
    let tokens = controller.ok(&["token", "list"]);
    assert_eq!(tokens.matches("publisher").count(), 1, "{tokens}");
    let port = controller.mqtt_port.to_string();
    let [ca, cert, key] = ["ca", "cert", "key"].map(|name| format!("{folder}/{name}.pem"));
    let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&key).unwrap());
    assert_eq!(mode & 0o777, 0o600);
    let own = ["-h", "127.0.0.1", "-p", &port, "--cafile", &ca, "--cert", &cert, "--key", &key];
    let publish = |topic: &str, more: &[&str]| {
        let topic = format!("limpet/v1/{topic}");
        let message = ["-V", "mqttv5", "-q", "1", "-t", &topic, "-m", "image: box"];
        let done = output("mosquitto_pub", &[&own[..], &message, more].concat());
        (done.out + &done.err).to_lowercase()
    };
    assert_eq!(publish("deploy/web", &[]), "");
    let web = || {
        let all = controller.ok(&["get", "deployments", "-o", "json"]);
        let all: Vec<Value> = serde_json::from_str(&all).unwrap();
        all.iter().any(|deployment| deployment["name"] == "web")
    };
    assert!(web(), "published, and not there");
    let audit = controller.ok(&["get", "audit"]);
    assert!(audit.contains(&format!("publisher {id} ci")), "{audit}");
    for topic in ["d/dev-0/desired", "d/dev-0/command", "d/dev-0/up/hello", "deploy/web/result"] {
        assert!(publish(topic, &[]).contains("not authorized"), "{topic}");
    }
    for filter in ["#", "limpet/v1/#", "limpet/v1/d/dev-0/desired", "$SYS/#"] {
        let filter = ["-V", "mqttv5", "-t", filter, "-W", "1"];
        let done = output("mosquitto_sub", &[&own[..], &filter].concat());
        let said = (done.out + &done.err).to_lowercase();
        assert!(
            said.contains("not authorized")
                || said.contains("all subscription requests were denied"),
            "{filter:?}: {said}"
        );
    }
    // No device's session, and no will.
    let device = device(controller, "dev-0").unwrap();
    let taken = publish("deploy/web", &["-i", "limpet/dev-0/0011223344556677"]);
    assert!(taken.contains("not authorized"), "{taken}");
    let will = ["--will-topic", "limpet/v1/deploy/evil", "--will-payload", "image: box"];
    assert!(publish("deploy/web", &will).contains("not authorized"));
    assert_eq!(device["presence"], "online");
    controller.ok(&["token", "revoke", id]);
    assert!(publish("deploy/web", &[]).contains("not authorized"));
}

#[test]
fn a_device_speaks_for_itself_alone() {
    let fleet = secured::start(&[]);
    let controller = &fleet.controller;
    // A member that means no good, and has all that a member has.
    let join = controller.join_string(&[]);
    let evil = Agent::member(&fleet.lab, "evil", &join, "keep_alive_s = 6\n");
    eventually("evil online", || {
        (device(controller, "evil")?["presence"] == "online").then_some(())
    });
    // From here on it is in the test's hands.
    let evil = Member::of(&fleet.lab, evil, controller);
    let own = evil.credentials();
    let with = |program: &str, more: &[&str]| {
        let done = output(program, &[&own[..], &["-V", "mqttv5", "-q", "1"], more].concat());
        (done.out + &done.err).to_lowercase()
    };
    let known = device(controller, "dev-0").unwrap();
    // As anybody but itself it does not even connect: the other's session goes on.
    for id in ["limpet/dev-0/0011223344556677", "operator", "limpet/evil/0011223344556677"] {
        let said = with("mosquitto_pub", &["-i", id, "-t", "limpet/v1/deploy/web", "-m", "x"]);
        assert!(said.contains("not authorized"), "{id}: {said}");
    }
    let id = evil.client_id();
    for topic in [
        "d/dev-0/up/hello",
        "d/dev-0/up/presence",
        "d/dev-0/desired",
        "d/evil/desired",
        "deploy/web",
        "deploy/web/result",
        "other",
    ] {
        let topic = format!("limpet/v1/{topic}");
        let said = with("mosquitto_pub", &["-i", &id, "-t", &topic, "-m", "image: box"]);
        assert!(said.contains("not authorized"), "{topic}: {said}");
    }
    for filter in
        ["#", "+/+/d/+/desired", "limpet/v1/d/dev-0/desired", "limpet/v1/deploy/+", "$share/x/#"]
    {
        let said = with("mosquitto_sub", &["-i", &id, "-t", filter, "-W", "1"]);
        assert!(
            said.contains("not authorized")
                || said.contains("all subscription requests were denied"),
            "{filter}: {said}"
        );
    }
    assert_eq!(device(controller, "dev-0").unwrap()["presence"], known["presence"]);
}

#[test]
fn floods_of_clients_and_huge_publishes_harm_nobody_else() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let own = Rlimit { current: limit.maximum, ..limit };
    rustix::process::setrlimit(Resource::Nofile, own).unwrap();
    let fleet = secured::start(&[]);
    let controller = &fleet.controller;
    // Ten thousand that begin TLS and never go on, on the broker; and a thousand on the API.
    let half = |port: u16| {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        // One that is refused is as good.
        let _ = std::io::Write::write_all(&mut stream, &[0x16, 3, 1, 2, 0, 1]);
        stream
    };
    let api: u16 = controller.api.rsplit_once(':').unwrap().1.parse().unwrap();
    let mut flood: Vec<TcpStream> = (0..10_000).map(|_| half(controller.mqtt_port)).collect();
    flood.extend((0..1_000).map(|_| half(api)));
    controller.run_script("web", "exec sleep 100000");
    let late =
        Agent::member(&fleet.lab, "late", &controller.join_string(&[]), "keep_alive_s = 6\n");
    eventually_or(
        "a device that comes in the midst of it",
        || (device(controller, "late")?["presence"] == "online").then_some(()),
        || late.process.tail() + &controller.process.tail(),
    );
    // A member publishes 200 MB, again and again.
    let late = Member::of(&fleet.lab, late, controller);
    let ([ca, cert, key], id) = (&late.files, late.client_id());
    let huge = fleet.lab.file("huge", connect_and_publish(&id, "limpet/v1/d/late/up/event"));
    std::fs::File::options().write(true).open(&huge).unwrap().set_len(200 << 20).unwrap();
    let (address, huge) =
        (format!("127.0.0.1:{}", controller.mqtt_port), huge.display().to_string());
    let client = "exec openssl s_client -quiet -connect $0 -CAfile $1 -cert $2 -key $3 < $4";
    for _ in 0..3 {
        let said = output("sh", &["-c", client, &address, ca, cert, key, &huge]).err;
        assert!(said.contains("verify return:1") && !said.contains("alert"), "{said}");
    }
    let status =
        std::fs::read_to_string(format!("/proc/{}/status", controller.process.pid())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak_kb: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak_kb < 1 << 20, "the controller took {peak_kb} kB");
    assert_eq!(device(controller, "dev-0").unwrap()["presence"], "online");
    drop(flood);
    controller.ok(&["scale", "web", "--replicas=0"]);
}

/// The beginning of a connection (MQTT 5.0 section 3.1) and of a publish that claims 200 MB.
pub(crate) fn connect_and_publish(id: &str, topic: &str) -> Vec<u8> {
    let text = |text: &str| {
        let length = u16::try_from(text.len()).unwrap().to_be_bytes();
        [&length, text.as_bytes()].concat()
    };
    let body = [&text("MQTT")[..], &[5, 2, 0, 60, 0], &text(id)].concat();
    let connect = [&[0x10, u8::try_from(body.len()).unwrap()], &body[..]].concat();
    [&connect[..], &[0x30, 0x80, 0x80, 0x80, 0x64], &text(topic), &[0]].concat()
}

#[test]
fn whoever_has_no_certificate_of_the_fleet_gets_nowhere() {
    let fleet = secured::start(&[]);
    let port = fleet.controller.mqtt_port.to_string();
    let root = fleet.lab.path("controller/authority.pem").display().to_string();
    let publish = |more: &[&str]| {
        let own = ["-h", "localhost", "-p", &port, "--cafile", &root, "-V", "mqttv5", "-q", "1"];
        let message = ["-t", "limpet/v1/deploy/web", "-m", "image: box"];
        let done = output("mosquitto_pub", &[&own[..], &message, more].concat());
        (done.status, done.out + &done.err)
    };
    let (status, said) = publish(&[]);
    assert_ne!(status, 0, "without a certificate: {said}");
    let [key, certificate] =
        ["foreign.key", "foreign.pem"].map(|name| fleet.lab.path(name).display().to_string());
    let subject = "/CN=dev-0/O=0011223344556677";
    let own = ["req", "-x509", "-newkey", "ed25519", "-nodes", "-days", "1", "-subj", subject];
    let made = output("openssl", &[&own[..], &["-keyout", &key, "-out", &certificate]].concat());
    assert_eq!(made.status, 0, "{made:?}");
    let id = ["-i", "limpet/dev-0/0011223344556677", "--cert", &certificate, "--key", &key];
    let (status, said) = publish(&id);
    assert_ne!(status, 0, "with a certificate of another authority: {said}");
    // Plain MQTT and garbage on the port disturb nobody.
    let plain = output("mosquitto_pub", &["-p", &port, "-t", "x", "-m", "x"]);
    assert_ne!(plain.status, 0, "{plain:?}");
    for _ in 0..100 {
        let mut stream = TcpStream::connect(("127.0.0.1", fleet.controller.mqtt_port)).unwrap();
        let _ = std::io::Write::write_all(&mut stream, &[0x16; 600]);
    }
    fleet.controller.run_script("web", "exec sleep 100000");
}

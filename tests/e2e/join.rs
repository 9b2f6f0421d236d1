//! Joining, certificates, and who is let in.

use std::net::TcpStream;

use limpet_tests::{
    Agent, Controller, Image, Lab, Place, Registry, Value, eventually, eventually_or, output,
    program,
};
use rustix::process::{Resource, Rlimit};

/// A secured fleet of one.
struct Secured {
    // In this order they are dropped.
    agent: Agent,
    controller: Controller,
    _registry: Registry,
    lab: Lab,
}

impl Secured {
    fn start(flags: &[&str]) -> Self {
        let lab = Lab::new();
        let registry = Registry::start(&lab);
        registry.push("library/box", "latest", &Image::busybox());
        let controller = Controller::secured(&lab, flags);
        let join = controller.join_string(&["--label", "site=berlin"]);
        let agent = Agent::member(&lab, "dev-0", &join, &Agent::config("dev-0", &registry.host));
        let fleet = Self { agent, controller, _registry: registry, lab };
        fleet.until_presence("online");
        fleet
    }

    fn until_presence(&self, presence: &str) {
        let look = || (device(&self.controller, "dev-0")?["presence"] == presence).then_some(());
        eventually_or(presence, look, || {
            self.agent.process.tail() + &self.controller.process.tail()
        });
    }
}

fn device(controller: &Controller, id: &str) -> Option<Value> {
    let all: Vec<Value> =
        serde_json::from_str(&controller.ok(&["get", "devices", "-o", "json"])).unwrap();
    all.into_iter().find(|device| device["id"] == id)
}

/// Tries to join; gives what the device says of it.
fn join(lab: &Lab, string: &str, id: &str) -> String {
    let data = lab.path(&format!("{id}.data")).display().to_string();
    let args = ["join", string, "--device-id", id, "--data-dir", &data];
    let done = output(program("limpet-agent"), &args);
    done.out + &done.err
}

/// The outcomes of joining in the audit log.
fn joins(controller: &Controller) -> Vec<String> {
    let log: Vec<Value> =
        serde_json::from_str(&controller.ok(&["get", "audit", "-o", "json"])).unwrap();
    let joins = log.iter().filter(|entry| entry["action"] == "device.join");
    joins.map(|entry| entry["outcome"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_device_joins_with_one_line_and_runs_what_it_is_told() {
    let mut fleet = Secured::start(&[]);
    let controller = &mut fleet.controller;
    controller.run_script("web", "exec sleep 100000");
    assert_eq!(device(controller, "dev-0").unwrap()["labels"]["site"], "berlin");
    // Both come back as who they were.
    let before = fleet.agent.mains();
    fleet.agent.kill();
    fleet.agent.restart();
    controller.kill();
    controller.restart();
    fleet.until_presence("online");
    assert_eq!(fleet.agent.mains(), before);
    fleet.controller.ok(&["scale", "web", "--replicas=0"]);
    // Its key is its own.
    let identity = std::fs::metadata(fleet.agent.data.join("identity")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::mode(&identity) & 0o777, 0o600);
}

#[test]
fn a_flashed_device_joins_in_1970_with_the_string_in_a_file_which_is_deleted() {
    let lab = Lab::new();
    let controller = Controller::secured(&lab, &[]);
    let file = lab.file("join", controller.join_string(&[]));
    let config = format!("join_file = \"{}\"\n", file.display());
    let through = ["env", "LIMPET_WALL_CLOCK_S=0"].map(str::to_owned).to_vec();
    let place = Place { through, ..Place::default() };
    let _agent = Agent::flashed(&lab, "dev-0", &config, place);
    eventually("dev-0 online", || {
        (device(&controller, "dev-0")?["presence"] == "online").then_some(())
    });
    assert!(!file.exists(), "the used string is still there");
}

#[test]
fn whoever_may_not_join_is_told_why_and_the_operator_too() {
    let lab = Lab::new();
    let controller = Controller::secured(&lab, &[]);
    let good = controller.join_string(&[]);
    assert!(join(&lab, &good, "one").contains("joined as one"));
    // Used up, taken, revoked, wrong, expired, of another fleet, none at all.
    let said = join(&lab, &good, "two");
    assert!(said.contains("the join token is used up"), "{said}");
    let made = controller.limpet(&["token", "create", "--join", "--uses", "5"]);
    let many = made.out.trim().to_owned();
    let id = made.err.trim_start_matches("token/").split(' ').next().unwrap().to_owned();
    let other = lab.path("copy.data").display().to_string();
    let args = ["join", &many, "--device-id", "one", "--data-dir", &other];
    let said = output(program("limpet-agent"), &args).err;
    assert!(said.contains("the id one belongs to another device"), "{said}");
    controller.ok(&["token", "revoke", &id]);
    let said = join(&lab, &many, "two");
    assert!(said.contains("the join token was revoked"), "{said}");
    let short = controller.join_string(&["--ttl", "1s"]);
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let said = join(&lab, &short, "two");
    assert!(said.contains("the join token expired"), "{said}");
    let foreign = Lab::new();
    let stranger = Controller::secured(&foreign, &[]);
    let pinned = limpet_protocol::Invitation::parse(&good, limpet_protocol::Purpose::Join).unwrap();
    let elsewhere = limpet_protocol::Invitation {
        servers: vec![stranger.api.trim_start_matches("http://").to_owned()],
        ..pinned
    };
    let said = join(&lab, &elsewhere.to_string(), "two");
    assert!(said.contains("is not the one that made this join string"), "{said}");
    assert!(join(&lab, "nonsense", "two").contains("this is no string of"));
    let log = joins(&controller);
    for what in ["admitted by token", "used up", "belongs to another device", "revoked", "expired"]
    {
        assert!(log.iter().any(|outcome| outcome.contains(what)), "{what}: {log:?}");
    }
}

#[test]
fn a_device_that_waits_is_let_in_when_approved_and_cut_off_when_revoked() {
    let lab = Lab::new();
    let controller = Controller::secured(&lab, &[]);
    let string = controller.join_string(&["--require-approval"]);
    let agent = Agent::member(&lab, "dev-0", &string, "keep_alive_s = 6\n");
    eventually("the refusal", || {
        agent.process.log().contains("it waits for approval").then_some(())
    });
    assert!(device(&controller, "dev-0").is_none());
    controller.ok(&["device", "approve", "dev-0"]);
    eventually("dev-0 online", || {
        (device(&controller, "dev-0")?["presence"] == "online").then_some(())
    });
    controller.ok(&["device", "revoke", "dev-0"]);
    eventually("dev-0 offline", || {
        (device(&controller, "dev-0")?["presence"] == "offline").then_some(())
    });
    let said = controller.fails(&["device", "revoke", "nobody"]);
    assert!(said.contains("there is no device nobody"), "{said}");
}

#[test]
fn certificates_are_renewed_over_the_link_and_one_that_has_expired_over_https() {
    let mut fleet = Secured::start(&["--certificate-ttl", "8s"]);
    let certificate = |fleet: &Secured| std::fs::read(fleet.agent.data.join("identity")).unwrap();
    let first = certificate(&fleet);
    // Each sign of life asks whether it is time.
    eventually("a new certificate", || (certificate(&fleet) != first).then_some(()));
    // In a drawer, for longer than a certificate lives.
    fleet.agent.kill();
    let kept = certificate(&fleet);
    std::thread::sleep(std::time::Duration::from_secs(9));
    fleet.agent.restart();
    eventually("another certificate", || (certificate(&fleet) != kept).then_some(()));
    fleet.until_presence("online");
    let log = fleet.agent.process.log();
    assert!(log.contains("certificate has expired"), "{log}");
}

#[test]
fn a_publisher_reaches_manifests_and_nothing_else_until_it_is_revoked() {
    let fleet = Secured::start(&[]);
    let controller = &fleet.controller;
    let folder = fleet.lab.path("ci").display().to_string();
    let said = controller.ok(&["token", "create", "--publisher", "ci", "--out", &folder]);
    let id = said.trim_start_matches("token/").split(' ').next().unwrap();
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
    let fleet = Secured::start(&[]);
    let controller = &fleet.controller;
    // A member that means no good, and has all that a member has.
    let join = controller.join_string(&[]);
    let evil = Agent::member(&fleet.lab, "evil", &join, "keep_alive_s = 6\n");
    eventually("evil online", || {
        (device(controller, "evil")?["presence"] == "online").then_some(())
    });
    let [ca, cert, key] = credentials(&fleet.lab, &evil);
    let port = controller.mqtt_port.to_string();
    let own = ["-h", "127.0.0.1", "-p", &port, "--cafile", &ca, "--cert", &cert, "--key", &key];
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
    drop(evil);
    let id = format!("limpet/evil/{}", fingerprint(&cert));
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
    let fleet = Secured::start(&[]);
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
    let [ca, cert, key] = credentials(&fleet.lab, &late);
    let id = format!("limpet/late/{}", fingerprint(&cert));
    drop(late);
    let huge = fleet.lab.file("huge", connect_and_publish(&id, "limpet/v1/d/late/up/event"));
    std::fs::File::options().write(true).open(&huge).unwrap().set_len(200 << 20).unwrap();
    let (address, huge) =
        (format!("127.0.0.1:{}", controller.mqtt_port), huge.display().to_string());
    let client = "exec openssl s_client -quiet -connect $0 -CAfile $1 -cert $2 -key $3 < $4";
    for _ in 0..3 {
        let said = output("sh", &["-c", client, &address, &ca, &cert, &key, &huge]).err;
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
fn connect_and_publish(id: &str, topic: &str) -> Vec<u8> {
    let text = |text: &str| {
        let length = u16::try_from(text.len()).unwrap().to_be_bytes();
        [&length, text.as_bytes()].concat()
    };
    let body = [&text("MQTT")[..], &[5, 2, 0, 60, 0], &text(id)].concat();
    let connect = [&[0x10, u8::try_from(body.len()).unwrap()], &body[..]].concat();
    [&connect[..], &[0x30, 0x80, 0x80, 0x80, 0x64], &text(topic), &[0]].concat()
}

/// What a device proves itself with, taken out of its data folder: files of authority, certificate
/// and key.
fn credentials(lab: &Lab, agent: &Agent) -> [String; 3] {
    #[derive(serde::Deserialize)]
    struct Identity {
        #[serde(with = "serde_bytes")]
        seed: Vec<u8>,
        membership: limpet_protocol::Membership,
    }
    let bytes = std::fs::read(agent.data.join("identity")).unwrap();
    // The document's content is the CBOR map in it.
    let identity = (0..bytes.len())
        .find_map(|at| {
            let mut read = serde_cbor::Deserializer::from_slice(&bytes[at..]);
            <Identity as serde::Deserialize>::deserialize(&mut read).ok()
        })
        .unwrap();
    let key = limpet_protocol::SigningKey::from_seed(&identity.seed).unwrap();
    let write = |name: &str, form: &str, der: &[u8]| {
        let der = lab.file(&format!("{name}.der"), der).display().to_string();
        let pem = lab.path(&format!("{name}.pem")).display().to_string();
        let done = output("openssl", &[form, "-inform", "DER", "-in", &der, "-out", &pem]);
        assert_eq!(done.status, 0, "{done:?}");
        pem
    };
    [
        write("evil-ca", "x509", &identity.membership.roots[0]),
        write("evil-cert", "x509", &identity.membership.certificates[0]),
        write("evil-key", "pkey", &key.pkcs8()),
    ]
}

/// The organization that a certificate names.
fn fingerprint(certificate: &str) -> String {
    let done = output("openssl", &["x509", "-in", certificate, "-noout", "-subject"]);
    done.out.split("O = ").nth(1).unwrap().split(',').next().unwrap().trim().to_owned()
}

#[test]
fn whoever_has_no_certificate_of_the_fleet_gets_nowhere() {
    let fleet = Secured::start(&[]);
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

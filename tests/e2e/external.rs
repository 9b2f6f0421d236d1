//! A fleet on a broker of somebody else: mosquitto, set up as `limpet broker-config` says.

use limpet_tests::{
    Agent, Controller, Image, Lab, Member, Mosquitto, Overheard, Registry, Value, eventually_or,
    output, program,
};

use crate::secured::device;

/// A secured fleet of one, on such a broker.
pub(crate) struct Foreign {
    // In this order they are dropped.
    pub(crate) agent: Agent,
    pub(crate) controller: Controller,
    pub(crate) broker: Mosquitto,
    _registry: Registry,
    pub(crate) lab: Lab,
}

impl Foreign {
    /// Publishers of these names may reach the broker.
    pub(crate) fn start(publishers: &[&str]) -> Self {
        let lab = Lab::new();
        let registry = Registry::start(&lab);
        registry.push("library/box", "latest", &Image::busybox());
        let mut broker = Mosquitto::prepare(&lab);
        let ca = broker.ca.display().to_string();
        // The controller makes the authority that the broker is told of: it waits for the broker.
        let controller = Controller::secured(&lab, &["--broker", &broker.url, "--broker-ca", &ca]);
        broker.start(&lab, &lab.path("controller/authority.pem"), publishers);
        let join = controller.join_string(&[]);
        let config = Agent::config("dev-0", &registry.host);
        let agent = Agent::member(&lab, "dev-0", &join, &config);
        let fleet = Self { agent, controller, broker, _registry: registry, lab };
        fleet.until_presence("online");
        fleet
    }

    pub(crate) fn eventually<T>(&self, what: &str, look: impl FnMut() -> Option<T>) -> T {
        eventually_or(what, look, || {
            let events = self.controller.limpet(&["get", "events"]).out;
            self.agent.process.tail() + &self.controller.process.tail() + &events
        })
    }

    pub(crate) fn until_presence(&self, presence: &str) {
        self.eventually(&format!("dev-0 to be {presence}"), || {
            (device(&self.controller, "dev-0")?["presence"] == presence).then_some(())
        });
    }

    /// What `limpet get` says of these, as JSON.
    pub(crate) fn all(&self, what: &str) -> Vec<Value> {
        let more = if what == "events" { &["--limit=10000"][..] } else { &[] };
        let said = self.controller.ok(&[&["get", what, "-o", "json"], more].concat());
        serde_json::from_str(&said).unwrap()
    }

    /// Waits until an event of this kind says this.
    pub(crate) fn until_told(&self, kind: &str, what: &str) {
        self.eventually(&format!("{kind}: {what}"), || {
            let is_it = |event: &Value| {
                event["kind"] == kind && event["message"].as_str().unwrap().contains(what)
            };
            self.all("events").iter().any(is_it).then_some(())
        });
    }

    /// Makes a publisher; gives its folder.
    pub(crate) fn publisher(&self, name: &str, more: &[&str]) -> String {
        let folder = self.lab.path(name).display().to_string();
        let args = ["token", "create", "--publisher", name, "--out", &folder];
        self.controller.ok(&[&args[..], more].concat());
        folder
    }

    /// Signs with `limpet sign`; gives the file.
    pub(crate) fn sign(&self, key: &str, what: &[&str]) -> String {
        let out = self.lab.path("signed").display().to_string();
        let args = [&["sign", "--key", key, "--out", &out], what].concat();
        let signed = output(program("limpet"), &args);
        assert_eq!(signed.status, 0, "{signed:?}");
        out
    }

    /// Waits until a deployment has this image; None where it is to be gone.
    pub(crate) fn until_image(&self, name: &str, image: Option<&str>) {
        self.eventually(&format!("{name} to be {image:?}"), || {
            (self.image(name).as_deref() == image).then_some(())
        });
    }

    pub(crate) fn image(&self, name: &str) -> Option<String> {
        let all = self.all("deployments");
        let found = all.iter().find(|deployment| deployment["name"] == name)?;
        found["image"].as_str().map(str::to_owned)
    }
}

/// All answers to manifests of this name.
pub(crate) fn answers(overheard: &Overheard, name: &str) -> String {
    let all = overheard.on(&format!("limpet/v1/deploy/{name}/result"));
    all.iter().map(|bytes| String::from_utf8_lossy(bytes)).collect()
}

/// Waits for an answer that says this.
pub(crate) fn until_answered(fleet: &Foreign, overheard: &Overheard, name: &str, what: &str) {
    fleet.eventually(&format!("an answer to {name}: {what}"), || {
        answers(overheard, name).contains(what).then_some(())
    });
}

#[test]
fn devices_run_what_they_are_told_and_outlive_the_broker_and_the_controller() {
    let mut fleet = Foreign::start(&[]);
    fleet.controller.run_script("web", "echo hello; exec sleep 100000");
    let logs = fleet.controller.ok(&["logs", "web"]);
    assert!(logs.contains("hello"), "{logs}");
    let before = fleet.agent.mains();
    // Without its broker the controller hears nobody, and says so.
    fleet.broker.kill();
    fleet.until_presence("unknown");
    fleet.until_told("broker-lost", "");
    fleet.broker.restart();
    fleet.until_presence("online");
    // A controller that begins anew asks devices that have nothing to say.
    let ups = |fleet: &Foreign| fleet.agent.process.log().matches("is up").count();
    let links = ups(&fleet);
    fleet.controller.kill();
    fleet.controller.restart();
    fleet.until_presence("online");
    assert_eq!((ups(&fleet), fleet.agent.mains()), (links, before), "nothing was restarted");
    fleet.controller.ok(&["scale", "web", "--replicas=2"]);
    // One that is revoked is not listened to, and told nothing.
    fleet.controller.ok(&["device", "revoke", "dev-0"]);
    fleet.until_presence("revoked");
    let overheard = fleet.broker.overheard(&fleet.lab);
    let main = rustix::process::Pid::from_raw(fleet.agent.mains()[0]).unwrap();
    rustix::process::kill_process(main, rustix::process::Signal::KILL).unwrap();
    fleet.until_told("message-refused", "dev-0 was revoked");
    fleet.controller.ok(&["scale", "web", "--replicas=0", "--detach"]);
    fleet.controller.ok(&["policy", "set", "--require-digest", "--force"]);
    fleet.until_told("policy-changed", "");
    for leaf in ["desired", "command", "down/ack"] {
        assert!(overheard.on(&format!("limpet/v1/d/dev-0/{leaf}")).is_empty(), "{leaf}");
    }
}

#[test]
fn a_member_reaches_its_own_topics_and_takes_nobodys_session() {
    let fleet = Foreign::start(&[]);
    let join = fleet.controller.join_string(&[]);
    let evil = Agent::member(&fleet.lab, "evil", &join, "keep_alive_s = 6\n");
    fleet.eventually("evil online", || {
        (device(&fleet.controller, "evil")?["presence"] == "online").then_some(())
    });
    let evil = Member::of(&fleet.lab, evil, &fleet.controller);
    let [_, cert, key] = &evil.files;
    let (ca, port) = (fleet.broker.ca.display().to_string(), fleet.broker.port.to_string());
    let own = ["-h", "127.0.0.1", "-p", &port, "--cafile", &ca, "--cert", cert, "--key", key];
    let overheard = fleet.broker.overheard(&fleet.lab);
    let dev_0 = device(&fleet.controller, "dev-0").unwrap();
    let taken = evil.client_id().replace("evil", "dev-0");
    for topic in ["d/dev-0/up/hello", "d/dev-0/desired", "d/evil/desired", "deploy/web", "other"] {
        let topic = format!("limpet/v1/{topic}");
        for id in [taken.as_str(), "limpet-controller", "x"] {
            let message = ["-V", "mqttv5", "-q", "1", "-i", id, "-t", &topic, "-m", "evil"];
            output("mosquitto_pub", &[&own[..], &message].concat());
        }
    }
    let message = ["-q", "1", "-t", "limpet/v1/d/evil/up/event", "-m", "evil"];
    output("mosquitto_pub", &[&own[..], &message].concat());
    let evils = || {
        let all = overheard.all().into_iter().filter(|(_, payload)| payload == b"evil");
        all.map(|(topic, _)| topic).collect::<Vec<_>>()
    };
    fleet.eventually("its own topic", || (!evils().is_empty()).then_some(()));
    assert_eq!(evils(), ["limpet/v1/d/evil/up/event"]);
    for filter in ["#", "limpet/v1/d/+/desired", "limpet/v1/deploy/+"] {
        let read = ["-t", filter, "-C", "1", "-W", "1"];
        let heard = output("mosquitto_sub", &[&own[..], &read].concat()).out;
        assert_eq!(heard, "", "{filter}");
    }
    assert!(overheard.on("limpet/v1/d/dev-0/up/presence").is_empty(), "its session has ended");
    assert_eq!(device(&fleet.controller, "dev-0").unwrap()["presence"], dev_0["presence"]);
    // Nor does anybody get in without a certificate of the fleet.
    let bare = ["-h", "127.0.0.1", "-p", &port, "--cafile", &ca, "-t", "x", "-m", "x"];
    assert_ne!(output("mosquitto_pub", &bare).status, 0);
}

#[test]
fn a_publisher_signs_what_is_to_run() {
    let fleet = Foreign::start(&["ci"]);
    let ci = fleet.publisher("ci", &[]);
    let port = fleet.broker.port.to_string();
    let [ca, cert, key] = ["ca", "cert", "key"].map(|name| format!("{ci}/{name}.pem"));
    let own = ["-h", "127.0.0.1", "-p", &port, "--cafile", &ca, "--cert", &cert, "--key", &key];
    let overheard = fleet.broker.overheard(&fleet.lab);
    let publish = |file: &str| {
        let message = ["-q", "1", "-t", "limpet/v1/deploy/web", "-f", file];
        let done = output("mosquitto_pub", &[&own[..], &message].concat());
        assert_eq!((done.status, done.err), (0, String::new()));
    };
    let manifest = fleet.lab.file("web.yaml", "name: web\nimage: box\nargs: [sleep, '100000']\n");
    let manifest = manifest.display().to_string();
    publish(&manifest);
    until_answered(&fleet, &overheard, "web", "limpet sign -f FILE");
    assert_eq!(fleet.image("web"), None);
    publish(&fleet.sign(&key, &["-f", &manifest]));
    until_answered(&fleet, &overheard, "web", "\"action\":\"created\"");
    fleet.eventually("web to run", || {
        let all = fleet.all("workloads");
        all.iter().any(|workload| workload["phase"] == "running").then_some(())
    });
    let audit = fleet.controller.ok(&["get", "audit"]);
    assert!(audit.contains(" ci "), "{audit}");
    publish(&fleet.sign(&key, &["--delete", "web"]));
    fleet.until_image("web", None);
    // A key of openssl's, of which the controller sees the public half alone.
    let [own_key, public] =
        ["ops.key", "ops.pub"].map(|name| fleet.lab.path(name).display().to_string());
    limpet_tests::run("openssl", &["genpkey", "-algorithm", "ed25519", "-out", &own_key]);
    limpet_tests::run("openssl", &["pkey", "-in", &own_key, "-pubout", "-out", &public]);
    fleet.publisher("ops", &["--public-key", &public]);
    publish(&fleet.sign(&own_key, &["-f", &manifest]));
    fleet.until_image("web", Some("box"));
    // A manifest that is wrong, and a key that is none, are found where they are.
    let bad = fleet.lab.file("bad.yaml", "name: web\nimages: box\n").display().to_string();
    for (args, why) in [
        (["-f", &bad, "--key", &own_key], "line 2: images"),
        (["-f", &manifest, "--key", &public], "openssl genpkey -algorithm ed25519"),
        (["-f", &manifest, "--ttl=31d", &format!("--key={own_key}")], "at most 30d"),
    ] {
        let done = output(program("limpet"), &[&["sign"], &args[..]].concat());
        assert!(done.status != 0 && done.err.contains(why), "{done:?}");
    }
}

//! What is replaced while the fleet goes on: the controller's certificate, the fleet's authority,
//! the key that signs what devices are told.

use limpet_tests::{Agent, Controller, Lab, Value, eventually, eventually_or, output, program};

use crate::secured::{self, device, until_presence};

/// The serial number of the certificate that is shown on a port of this machine.
fn shown(port: &str) -> String {
    let look = "openssl s_client -connect $0 </dev/null 2>/dev/null | openssl x509 -noout -serial";
    output("sh", &["-c", look, &format!("127.0.0.1:{port}")]).out
}

/// How often a device's connection has come and gone, as the controller tells it.
fn comings(controller: &Controller, id: &str) -> (usize, usize) {
    let events = controller.list("/api/v1/events?limit=10000");
    let count = |kind: &str| {
        let told = events.iter().filter(|event| event["kind"] == kind && event["device"] == id);
        told.count()
    };
    (count("device-online"), count("device-offline"))
}

#[test]
fn the_controllers_certificate_is_renewed_and_no_connection_is_dropped() {
    let mut fleet = secured::start(&["--server-certificate-ttl", "12s"]);
    let api = fleet.controller.api.rsplit_once(':').unwrap().1.to_owned();
    let ports = [api, fleet.controller.mqtt_port.to_string()];
    let mut known = ports.each_ref().map(|port| vec![shown(port)]);
    for _ in 0..3 {
        for (port, known) in ports.iter().zip(&mut known) {
            eventually("another certificate", || {
                let now = shown(port);
                let is_another = now.starts_with("serial=") && !known.contains(&now);
                is_another.then(|| known.push(now))
            });
        }
    }
    // The connection that stands is as it was, and carries orders.
    fleet.controller.run_script("web", "exec sleep 100000");
    assert_eq!(comings(&fleet.controller, "dev-0"), (1, 0));
    let log = fleet.agents[0].process.log();
    assert_eq!(log.matches("is up").count(), 1, "{log}");
    // Whoever comes, or comes back, is let in by the latest.
    let join = fleet.controller.join_string(&[]);
    let _late = Agent::member(&fleet.lab, "late", &join, "keep_alive_s = 6\n");
    until_online(&fleet.controller, "late");
    fleet.agents[0].kill();
    until_presence(&fleet, "offline");
    fleet.agents[0].restart();
    until_presence(&fleet, "online");
}

/// Waits until `limpet rotate status` says this; gives all that it says.
fn until_status(controller: &Controller, says: &str) -> String {
    let said = || controller.ok(&["rotate", "status"]);
    let look = || Some(said()).filter(|status| status.contains(says));
    eventually_or(&format!("rotate status to say {says:?}"), look, said)
}

#[test]
fn an_authority_takes_the_place_of_another_and_nobody_is_lost() {
    let mut fleet = secured::start(&[]);
    let controller = &fleet.controller;
    controller.run_script("web", "exec sleep 100000");
    let before = fleet.agents[0].mains();
    // One sleeps from now until all is over; one publishes manifests.
    let former_string = controller.join_string(&["--uses", "9"]);
    let mut sleeper = Agent::member(&fleet.lab, "sleeper", &former_string, "keep_alive_s = 6\n");
    until_online(controller, "sleeper");
    sleeper.kill();
    let folder = fleet.lab.path("ci").display().to_string();
    controller.ok(&["token", "create", "--publisher", "ci", "--out", &folder]);
    let port = controller.mqtt_port.to_string();
    let [ca, cert, key] = ["ca", "cert", "key"].map(|name| format!("{folder}/{name}.pem"));
    let publish = || {
        let own = ["-h", "127.0.0.1", "-p", &port, "--cafile", &ca, "--cert", &cert, "--key", &key];
        let topic = ["-V", "mqttv5", "-q", "1", "-t", "limpet/v1/deploy/job"];
        let message = ["-m", "{image: box, replicas: 0}"];
        output("mosquitto_pub", &[&own[..], &topic, &message].concat()).status
    };
    assert_eq!(publish(), 0);

    assert!(controller.fails(&["rotate", "authority", "--finish"]).contains("no authority is"));
    controller.ok(&["rotate", "authority"]);
    let status = until_status(controller, "taken by 1 of 2 members");
    assert!(status.contains("not yet by: sleeper"), "{status}");
    assert!(status.contains("publishers of the former: ci"), "{status}");
    assert!(controller.fails(&["rotate", "authority"]).contains("is being replaced already"));
    // Both are believed: strings, publishers, logins, and whoever joins.
    let mid = Agent::member(&fleet.lab, "mid", &former_string, "keep_alive_s = 6\n");
    until_online(controller, "mid");
    assert_eq!(publish(), 0);
    let why = controller.fails(&["rotate", "authority", "--finish"]);
    assert!(why.contains("Members: sleeper; publishers: ci"), "{why}");

    controller.ok(&["rotate", "authority", "--finish", "--force"]);
    until_status(controller, "the only one");
    until_status(controller, "taken by 2 of 3 members");
    assert_ne!(publish(), 0, "a publisher of the former authority is let in");
    let data = fleet.lab.path("refused.data").display().to_string();
    let args = ["join", &former_string, "--device-id", "refused", "--data-dir", &data];
    let why = output(program("limpet-agent"), &args).err;
    assert!(why.contains("is not the one that made this join string"), "{why}");
    let string = controller.join_string(&[]);
    let _late = Agent::member(&fleet.lab, "late", &string, "keep_alive_s = 6\n");
    until_online(controller, "late");
    // The connections that stood then stand now.
    for id in ["dev-0", "mid"] {
        assert_eq!(comings(controller, id), (1, 0), "{id}");
    }
    // Who slept through all of it believes the controller, and proves its key.
    sleeper.restart();
    until_online(controller, "sleeper");
    until_status(controller, "taken by 4 of 4 members");
    let log = sleeper.process.log();
    assert!(log.contains("not in force any more"), "{log}");
    // After their next starts all know each other still.
    drop(mid);
    fleet.agents[0].kill();
    fleet.controller.kill();
    fleet.controller.restart();
    fleet.agents[0].restart();
    until_presence(&fleet, "online");
    assert_eq!(fleet.agents[0].mains(), before);
    let log = fleet.agents[0].process.log();
    assert!(!log.contains("not in force any more"), "{log}");
    let audit = fleet.controller.ok(&["get", "audit", "-o", "json"]);
    assert!(audit.contains("rotate.authority.finish"), "{audit}");
}

fn until_online(controller: &Controller, id: &str) {
    eventually_or(
        &format!("{id} online"),
        || (device(controller, id)?["presence"] == "online").then_some(()),
        || controller.process.tail(),
    );
}

/// Events that tell of something refused.
fn refusals(controller: &Controller) -> Vec<String> {
    let events = controller.list("/api/v1/events?limit=10000");
    let line = |event: &Value| format!("{} {}", event["kind"], event["message"]);
    let lines = events.iter().map(line);
    lines.filter(|line| line.contains("refused") || line.contains("tamper")).collect()
}

/// Runs where there is a registry.
const MORE: &[&str] =
    &["run", "more", "--image=box", "--select", "site=berlin", "--", "sleep", "100000"];

#[test]
fn the_signing_key_is_replaced_twice_whoever_is_there_away_or_killed() {
    let mut fleet = secured::start(&[]);
    fleet.controller.run_script("web", "exec sleep 100000");
    let before = fleet.agents[0].mains();
    let string = fleet.controller.join_string(&["--uses", "9"]);
    let member = |id: &str| {
        let mut agent = Agent::member(&fleet.lab, id, &string, "keep_alive_s = 6\n");
        until_online(&fleet.controller, id);
        agent.kill();
        agent
    };
    let (mut once, mut twice) = (member("once"), member("twice"));
    let controller = &fleet.controller;
    controller.ok(&["rotate", "signing-key"]);
    until_signer(controller, 1, 3);
    // One that slept through it takes it over its connection.
    once.restart();
    until_signer(controller, 2, 3);
    // An agent that is killed in the midst of it believes the one or the other, and says which.
    for _ in 0..3 {
        controller.ok(&["rotate", "signing-key"]);
        fleet.agents[0].kill();
        fleet.agents[0].restart();
    }
    until_signer(controller, 2, 3);
    // One that slept through all of them takes the last at once.
    twice.restart();
    until_signer(controller, 3, 3);
    // What devices are told reaches them, nothing was taken for a stranger's, nothing was restarted.
    controller.ok(MORE);
    controller.ok(&["delete", "more"]);
    assert_eq!(refusals(controller), [""; 0]);
    assert_eq!(fleet.agents[0].mains(), before);
    let keys = std::fs::read(fleet.lab.path("controller/signing.key")).unwrap();
    assert!(keys.len() > 32, "the former keys are not noted");

    // In the dark: what a device holds is proved by what it believes, whatever it was that it held
    // first; and its controller comes back, from a backup, to a fleet that believes it.
    let file = fleet.lab.path("backup").display().to_string();
    controller.ok(&["backup", &file]);
    fleet.controller.stop();
    fleet.agents[0].power_cut();
    fleet.agents[0].restart();
    eventually_or(
        "web in the dark",
        || (!fleet.agents[0].mains().is_empty()).then_some(()),
        || fleet.agents[0].process.tail(),
    );
    let log = fleet.agents[0].process.log();
    assert!(!log.contains("is not the controller's"), "{log}");
    let fresh = fleet.lab.path("restored");
    let folder = fresh.display().to_string();
    let done = output(program("limpet"), &["restore", &file, "--data-dir", &folder]);
    assert_eq!(done.status, 0, "{done:?}");
    fleet.controller.restart_on(&fresh);
    for id in ["dev-0", "once", "twice"] {
        until_online(&fleet.controller, id);
    }
    fleet.controller.ok(MORE);
    until_signer(&fleet.controller, 3, 3);
}

/// Waits until so many members have taken the signing key in force.
fn until_signer(controller: &Controller, taken: usize, members: usize) {
    let status = || controller.ok(&["rotate", "status"]);
    let look = || {
        let said = status();
        let said = said.split("signing key").nth(1).unwrap();
        said.contains(&format!("taken by {taken} of {members} members")).then_some(())
    };
    let explain = || status() + &controller.ok(&["get", "events"]) + &controller.process.tail();
    eventually_or(&format!("{taken} of {members} to take the key"), look, explain);
}

#[test]
fn a_controller_that_lets_anybody_in_replaces_nothing() {
    let lab = Lab::new();
    let controller = Controller::insecure(&lab, &[]);
    for (words, why) in [
        (&["rotate", "status"][..], "it has no authority to replace"),
        (&["rotate", "authority"], "it has no authority to replace"),
        (&["rotate", "signing-key"], "its devices trust the first key that they see"),
    ] {
        let said = controller.fails(words);
        assert!(said.contains(why), "{words:?}: {said}");
    }
}

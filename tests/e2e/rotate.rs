//! What is replaced while the fleet goes on: the controller's certificate, the fleet's authority,
//! the key that signs what devices are told.

use limpet_tests::{Agent, Controller, eventually, eventually_or, output, program};

use crate::secured::{Secured, device};

/// The serial number of the certificate that is shown on a port of this machine.
fn shown(port: &str) -> String {
    let look = "openssl s_client -connect $0 </dev/null 2>/dev/null | openssl x509 -noout -serial";
    output("sh", &["-c", look, &format!("127.0.0.1:{port}")]).out
}

/// How often a device's connection has come and gone, as the controller tells it.
fn comings(controller: &Controller, id: &str) -> (usize, usize) {
    let events = controller.ok(&["get", "events", "-o", "json"]);
    let events: Vec<limpet_tests::Value> = serde_json::from_str(&events).unwrap();
    let count = |kind: &str| {
        let told = events.iter().filter(|event| event["kind"] == kind && event["device"] == id);
        told.count()
    };
    (count("device-online"), count("device-offline"))
}

#[test]
fn the_controllers_certificate_is_renewed_and_no_connection_is_dropped() {
    let mut fleet = Secured::start(&["--server-certificate-ttl", "4s"]);
    let api = fleet.controller.api.rsplit_once(':').unwrap().1.to_owned();
    for port in [api, fleet.controller.mqtt_port.to_string()] {
        let mut known = vec![shown(&port)];
        for _ in 0..3 {
            eventually("another certificate", || {
                let now = shown(&port);
                let is_another = now.starts_with("serial=") && !known.contains(&now);
                is_another.then(|| known.push(now))
            });
        }
    }
    // The connection that stands is as it was, and carries orders.
    fleet.controller.run_script("web", "exec sleep 100000");
    assert_eq!(comings(&fleet.controller, "dev-0"), (1, 0));
    let log = fleet.agent.process.log();
    assert_eq!(log.matches("is up").count(), 1, "{log}");
    // Whoever comes, or comes back, is let in by the latest.
    let join = fleet.controller.join_string(&[]);
    let _late = Agent::member(&fleet.lab, "late", &join, "keep_alive_s = 6\n");
    until_online(&fleet.controller, "late");
    fleet.agent.kill();
    fleet.until_presence("offline");
    fleet.agent.restart();
    fleet.until_presence("online");
}

/// Waits until `limpet rotate status` says this; gives all that it says.
fn until_status(controller: &Controller, says: &str) -> String {
    let said = || controller.ok(&["rotate", "status"]);
    let look = || Some(said()).filter(|status| status.contains(says));
    eventually_or(&format!("rotate status to say {says:?}"), look, said)
}

#[test]
fn an_authority_takes_the_place_of_another_and_nobody_is_lost() {
    let mut fleet = Secured::start(&[]);
    let controller = &fleet.controller;
    controller.run_script("web", "exec sleep 100000");
    let before = fleet.agent.mains();
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
        let topic = ["-V", "mqttv5", "-q", "1", "-t", "limpet/v1/deploy/job", "-m", "image: box"];
        output("mosquitto_pub", &[&own[..], &topic].concat()).status
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
    let data = fleet.lab.path("late.data").display().to_string();
    let args = ["join", &former_string, "--device-id", "late", "--data-dir", &data];
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
    fleet.agent.kill();
    fleet.controller.kill();
    fleet.controller.restart();
    fleet.agent.restart();
    fleet.until_presence("online");
    assert_eq!(fleet.agent.mains(), before);
    let log = fleet.agent.process.log();
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

//! What is replaced while the fleet goes on: the controller's certificate, the fleet's authority,
//! the key that signs what devices are told.

use limpet_tests::{Agent, Controller, eventually, output};

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
    eventually("late online", || {
        (device(&fleet.controller, "late")?["presence"] == "online").then_some(())
    });
    fleet.agent.kill();
    fleet.until_presence("offline");
    fleet.agent.restart();
    fleet.until_presence("online");
}

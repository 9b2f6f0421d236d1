//! Manifests published over MQTT, by clients that know nothing of Limpet: mosquitto's.

use limpet_tests::{Fleet, Value, json};

/// Publishes with mosquitto_pub.
fn publish(fleet: &Fleet, name: &str, payload: &[&str]) -> String {
    let topic = format!("limpet/v1/deploy/{name}");
    let args = [&fleet.controller.publisher()[..], &["-V", "mqttv5", "-q", "1", "-t", &topic]];
    let done = limpet_tests::output("mosquitto_pub", &[&args.concat()[..], payload].concat());
    done.out + &done.err
}

/// The retained answer, with mosquitto_sub.
fn answer(fleet: &Fleet, name: &str) -> Value {
    let topic = format!("limpet/v1/deploy/{name}/result");
    serde_json::from_str(&heard(fleet, &topic, "30").out).unwrap()
}

/// The first message on a topic within so many seconds, with mosquitto_sub.
fn heard(fleet: &Fleet, topic: &str, seconds: &str) -> limpet_tests::process::Output {
    let own = fleet.controller.publisher();
    let args = [&own[..], &["-t", topic, "-C", "1", "-W", seconds]].concat();
    limpet_tests::output("mosquitto_sub", &args)
}

#[test]
fn yaml_json_and_cbor_are_deployments_and_nothing_is_an_end() {
    let mut fleet = Fleet::start(1);
    let yaml = "image: box\nreplicas: 2\nenv:\n  KIND: yaml\n";
    let json = json!({"image": "box", "env": {"KIND": "json"}});
    let cbor =
        serde_cbor::to_vec(&json!({"name": "c", "image": "box", "args": ["sleep", "77777"]}))
            .unwrap();
    let files = [
        ("y", yaml.as_bytes().to_vec(), 2),
        ("j", json.to_string().into_bytes(), 1),
        ("c", cbor, 1),
    ];
    for (name, bytes, replicas) in files {
        let file = fleet.lab.file(name, bytes).display().to_string();
        publish(&fleet, name, &["-f", &file]);
        let result = answer(&fleet, name);
        assert_eq!(
            (&result["accepted"], &result["action"]),
            (&json!(true), &json!("created")),
            "{result}"
        );
        fleet.until_phases(name, &vec!["running"; replicas]);
    }
    // The answers outlive the broker.
    fleet.controller.kill();
    fleet.controller.restart();
    assert_eq!(answer(&fleet, "y")["action"], "created");

    publish(&fleet, "y", &["-n"]);
    fleet.until_phases("y", &[]);
    assert_eq!(answer(&fleet, "y")["action"], "deleted");
    publish(&fleet, "y", &["-n"]);
    let again = answer(&fleet, "y");
    assert!(
        again["faults"][0]["message"].as_str().unwrap().contains("there is no such deployment"),
        "{again}"
    );
}

#[test]
fn a_bad_manifest_changes_nothing_and_every_fault_is_named() {
    let fleet = Fleet::start(1);
    publish(&fleet, "web", &["-m", "image: box"]);
    let before = fleet.until_phases("web", &["running"]);
    let long = "a".repeat(300);
    let long_name = format!("name: {long}\nimage: box");
    for (manifest, faults) in [
        ("image: box\nreplica: 2", &["replica|2|did you mean `replicas`?"][..]),
        ("image: box\nreplicas: many", &["replicas|2|must be a whole number"]),
        ("image: box\nreplicas: -1", &["replicas|2|must be 0 to 1000, is -1"]),
        ("image: box\nreplicas: 10000", &["replicas|2|must be 0 to 1000, is 10000"]),
        ("image: [box]\nargs: sleep", &["image|1|must be", "args|2|must be a list"]),
        ("image: box\nname: a/b", &["name|2|use lower-case letters"]),
        (&long_name, &["name|1|must have 1 to 63 characters"]),
        ("replicas: 1", &["image||is missing"]),
        (
            "image: box\nresources:\n  memory: 64Q\n  cpus: -1",
            &["resources.memory|3|write 64Mi", "resources.cpus|4|write 0.5"],
        ),
        ("image: box\n\tx: 1", &["||"]),
        ("{\"image\": \"box\",", &["||"]),
        ("image: box\nstop: {signal: SIGNOPE}", &["stop.signal|2|is not a signal"]),
        ("- a\n- b", &["||must be fields with values"]),
    ] {
        publish(&fleet, "web", &["-m", manifest]);
        let result = fleet.eventually("the answer", || {
            let result = answer(&fleet, "web");
            (result["accepted"] == false).then_some(result)
        });
        let told: Vec<String> = result["faults"]
            .as_array()
            .unwrap()
            .iter()
            .map(|fault| {
                let line = fault["line"].as_u64().map(|line| line.to_string()).unwrap_or_default();
                format!(
                    "{}|{line}|{}",
                    fault["path"].as_str().unwrap(),
                    fault["message"].as_str().unwrap()
                )
            })
            .collect();
        for expected in faults {
            let [path, line, message]: [&str; 3] =
                expected.split('|').collect::<Vec<_>>().try_into().unwrap();
            let found = told.iter().any(|fault| {
                let place = path.is_empty() || fault.starts_with(&format!("{path}|{line}"));
                place && fault.contains(message)
            });
            assert!(found, "{manifest}\nmust say {expected}, says {told:?}");
        }
        // A good one in between, so that the next answer is a new one.
        publish(&fleet, "web", &["-m", "image: box"]);
        fleet
            .eventually("the answer", || (answer(&fleet, "web")["accepted"] == true).then_some(()));
    }
    let after = fleet.workloads("web");
    assert_eq!(
        (&after[0]["pid"], &after[0]["container"]),
        (&before[0]["pid"], &before[0]["container"])
    );
}

#[test]
fn names_that_cannot_be_are_refused_where_they_come_in() {
    let fleet = Fleet::start(0);
    let long = "a".repeat(300);
    for name in [long.as_str(), "a/b", "Upper", "-a"] {
        let said = publish(&fleet, name, &["-m", "image: box"]);
        assert!(
            said.contains("Not authorized") || said.contains("not authorized"),
            "{name}: {said}"
        );
    }
    let file = fleet.lab.file("m.yaml", format!("name: {long}\nimage: box")).display().to_string();
    let why = fleet.controller.fails(&["apply", "-f", &file]);
    assert!(
        why.contains(&format!("{file}:1: name: ")) && why.contains("must have 1 to 63 characters"),
        "{why}"
    );
    assert!(fleet.controller.list("/api/v1/deployments").is_empty());
}

#[test]
fn a_retained_publish_is_an_order_once_and_not_kept() {
    let mut fleet = Fleet::start(1);
    publish(&fleet, "web", &["-r", "-m", "image: box"]);
    fleet.until_phases("web", &["running"]);
    fleet.controller.ok(&["delete", "web"]);
    let kept = heard(&fleet, "limpet/v1/deploy/web", "1");
    assert_eq!(kept.out, "", "nothing is retained");
    fleet.controller.kill();
    fleet.controller.restart();
    assert!(fleet.controller.list("/api/v1/deployments").is_empty());
}

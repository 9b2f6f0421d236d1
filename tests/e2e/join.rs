//! Joining, certificates, approval and revocation.

use limpet_tests::{Agent, Controller, Fleet, Lab, Place, Value, eventually, output, program};

use crate::secured::{self, device, until_presence};

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
    let mut fleet = secured::start(&[]);
    let controller = &mut fleet.controller;
    controller.run_script("web", "exec sleep 100000");
    assert_eq!(device(controller, "dev-0").unwrap()["labels"]["site"], "berlin");
    // Both come back as who they were.
    let before = fleet.agents[0].mains();
    fleet.agents[0].kill();
    fleet.agents[0].restart();
    controller.kill();
    controller.restart();
    until_presence(&fleet, "online");
    assert_eq!(fleet.agents[0].mains(), before);
    fleet.controller.ok(&["scale", "web", "--replicas=0"]);
    // Its key is its own.
    let identity = std::fs::metadata(fleet.agents[0].data.join("identity")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::mode(&identity) & 0o777, 0o600);
}

#[test]
fn a_flashed_device_joins_in_1970_with_the_string_in_a_file_which_is_deleted() {
    let lab = Lab::new();
    let controller = Controller::secured(&lab, &[]);
    let used = controller.join_string(&[]);
    assert!(join(&lab, &used, "other").contains("joined as other"));
    let file = lab.file("join", used);
    let config = format!("join_file = \"{}\"\n", file.display());
    let through = ["env", "LIMPET_WALL_CLOCK_S=0"].map(str::to_owned).to_vec();
    let place = Place { through, ..Place::default() };
    let agent = Agent::flashed(&lab, "dev-0", &config, place);
    // Refused, it waits; a string that is put there later is taken.
    eventually("the refusal", || agent.process.log().contains("is used up").then_some(()));
    lab.file("join", controller.join_string(&[]));
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
        servers: vec![stranger.api.trim_start_matches("https://").to_owned()],
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
fn a_device_that_lost_the_answer_joins_again_with_a_token_that_is_used_up_and_nobody_else_does() {
    let lab = Lab::new();
    let controller = Controller::secured(&lab, &[]);
    let made = controller.limpet(&["token", "create", "--join"]);
    let string = made.out.trim().to_owned();
    let id = made.err.trim_start_matches("token/").split(' ').next().unwrap().to_owned();
    for _ in 0..2 {
        let said = join(&lab, &string, "one");
        assert!(said.contains("joined as one"), "{said}");
    }
    let said = join(&lab, &string, "two");
    assert!(said.contains("the join token is used up"), "{said}");
    assert_eq!(joins(&controller).iter().filter(|said| said.contains("admitted")).count(), 1);
    controller.ok(&["token", "revoke", &id]);
    let said = join(&lab, &string, "one");
    assert!(said.contains("the join token was revoked"), "{said}");
}

#[test]
fn a_device_that_waits_is_let_in_when_approved_and_cut_off_when_revoked() {
    let lab = Lab::new();
    let controller = Controller::secured(&lab, &[]);
    let string = controller.join_string(&["--require-approval", "--label", "site=berlin"]);
    let agent = Agent::member(&lab, "dev-0", &string, "keep_alive_s = 6\n");
    eventually("the refusal", || {
        agent.process.log().contains("it waits for approval").then_some(())
    });
    let table = controller.ok(&["get", "devices", "--select", "site=berlin"]);
    assert!(table.contains("dev-0  waiting   joined "), "{table}");
    assert!(device(&controller, "dev-0").unwrap()["joined_at"].is_string());
    let said = controller.fails(&["run", "web", "--image=box", "--timeout=1s"]);
    assert!(said.contains("no device"), "{said}");
    controller.ok(&["delete", "web"]);
    controller.ok(&["device", "approve", "dev-0"]);
    eventually("dev-0 online", || {
        (device(&controller, "dev-0")?["presence"] == "online").then_some(())
    });
    controller.ok(&["device", "revoke", "dev-0"]);
    assert_eq!(device(&controller, "dev-0").unwrap()["presence"], "revoked");
    // It is forgotten only once the broker has no connection with it any more.
    eventually("dev-0 forgotten", || {
        (controller.limpet(&["device", "remove", "dev-0"]).status == 0).then_some(())
    });
    assert!(device(&controller, "dev-0").is_none());
    let said = controller.fails(&["device", "revoke", "nobody"]);
    assert!(said.contains("there is no device nobody"), "{said}");
}

#[test]
fn certificates_are_renewed_over_the_link_and_one_that_has_expired_over_https() {
    let mut fleet = secured::start(&["--certificate-ttl", "8s"]);
    let certificate = |fleet: &Fleet| std::fs::read(fleet.agents[0].data.join("identity")).unwrap();
    let first = certificate(&fleet);
    // Each sign of life asks whether it is time.
    eventually("a new certificate", || (certificate(&fleet) != first).then_some(()));
    // In a drawer, for longer than a certificate lives.
    fleet.agents[0].kill();
    let kept = certificate(&fleet);
    std::thread::sleep(std::time::Duration::from_secs(9));
    fleet.agents[0].restart();
    eventually("another certificate", || (certificate(&fleet) != kept).then_some(()));
    until_presence(&fleet, "online");
    let log = fleet.agents[0].process.log();
    assert!(log.contains("certificate has expired"), "{log}");
}

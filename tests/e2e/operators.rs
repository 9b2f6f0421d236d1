//! Who did what, and where a person's logins are kept.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use limpet_tests::{Controller, Fleet, Lab, Value, output, program};

/// Runs `limpet` with this folder as the user's configuration; gives its status and what it said.
fn limpet(config: &Path, args: &[&str]) -> (i32, String) {
    let mut command = Command::new(program("limpet"));
    command.args(args).env("XDG_CONFIG_HOME", config);
    for name in ["LIMPET_SERVER", "LIMPET_CONTEXT", "LIMPET_TOKEN"] {
        command.env_remove(name);
    }
    let done = command.output().unwrap();
    let said = [done.stdout, done.stderr].concat();
    (done.status.code().unwrap(), String::from_utf8_lossy(&said).into_owned())
}

/// The audit log, as its action, object and outcome.
fn audit(controller: &Controller) -> Vec<Value> {
    let json = controller.ok(&["get", "audit", "-o", "json"]);
    serde_json::from_str(&json).unwrap()
}

#[test]
fn changes_over_http_and_mqtt_are_in_the_audit_log_and_outlive_the_controller() {
    let mut fleet = Fleet::start(1);
    let controller = &fleet.controller;
    controller.run_script("web", "exec sleep 100000");
    controller.ok(&["scale", "web", "--replicas=2"]);
    let publish = |topic: &str, message: &[&str]| {
        let topic = format!("limpet/v1/deploy/{topic}");
        let args = [&controller.publisher()[..], &["-q", "1", "-t", &topic], message].concat();
        output("mosquitto_pub", &args);
    };
    publish("two", &["-m", "image: box"]);
    publish("two", &["-n"]);
    publish("three", &["-n"]);
    controller.fails(&["delete", "absent"]);
    controller.ok(&["delete", "web"]);

    let mut log = audit(controller);
    log.retain(|entry| entry["action"].as_str().unwrap().starts_with("deployment."));
    let told: Vec<String> = log
        .iter()
        .map(|entry| {
            let field = |name: &str| entry[name].as_str().unwrap_or("-");
            // Without the id in the midst of it.
            let who = field("who").split(' ');
            let who: Vec<&str> = who.clone().take(1).chain(who.skip(2)).collect();
            [&who[..], &["action", "object", "outcome"].map(field)].concat().join(" ")
        })
        .collect();
    assert_eq!(
        told,
        [
            "token login deployment.apply deployment/web created",
            "token login deployment.scale deployment/web updated",
            "publisher conveyor deployment.apply deployment/two created",
            "publisher conveyor deployment.delete deployment/two deleted",
            "publisher conveyor deployment.delete deployment/three refused: there is no such deployment",
            "token login deployment.delete deployment/absent refused: there is no such deployment",
            "token login deployment.delete deployment/web deleted",
        ]
    );
    for entry in &log {
        assert!(entry["from"].as_str().unwrap().starts_with("127.0.0.1:"), "{entry}");
    }
    let text = |index: usize, side: &str| log[index][side].as_str().unwrap().to_owned();
    assert!(
        text(1, "before").contains("replicas: 1\n") && text(1, "after").contains("replicas: 2\n")
    );
    assert!(log[6]["after"].is_null() && text(6, "before").contains("name: web\n"));

    fleet.controller.kill();
    fleet.controller.restart();
    let again = audit(&fleet.controller);
    assert!(log.iter().all(|entry| again.contains(entry)), "{again:?}");
    let wide = fleet.controller.ok(&["get", "audit", "web", "--limit=1", "-o", "wide"]);
    assert!(wide.contains("deployment/web") && wide.contains("name: web; "), "{wide}");
}

#[test]
fn logins_are_kept_for_their_owner_and_a_controller_without_tokens_makes_none() {
    let lab = Lab::new();
    let controller = Controller::insecure(&lab, &[]);
    let why = controller.fails(&["token", "create", "--join"]);
    assert!(why.contains("asks for no token (--insecure)"), "{why}");
    assert_eq!(controller.ok(&["token", "list"]), "no tokens\n");
    assert!(!lab.path("controller").join("login").exists());

    let config = lab.path("config");
    let (status, said) = limpet(&config, &["context", "list"]);
    assert_eq!((status, said.as_str()), (0, "no contexts: see `limpet login`\n"));
    let (status, said) = limpet(&config, &["login", "limpet-join-xyz"]);
    assert_eq!(status, 1);
    assert!(
        said.contains("this string is for `limpet-agent join`, not for `limpet login`"),
        "{said}"
    );
    let (status, said) = limpet(&config, &["login", "hello"]);
    assert_eq!(status, 1);
    assert!(said.contains("copy the whole line, from limpet-login- on"), "{said}");
    let (status, said) = limpet(&config, &["get", "devices", "--context", "work"]);
    assert_eq!(status, 1);
    assert!(said.contains("there is no context \"work\"; there is none"), "{said}");
    let both = ["get", "devices", "--context", "work", "--server", &controller.api];
    assert_eq!(limpet(&config, &both).0, 2);
    let (status, said) = limpet(&config, &["get", "devices", "--server", "https://127.0.0.1:1"]);
    assert_eq!(status, 2);
    assert!(said.contains("for others, `limpet login`"), "{said}");

    let file = config.join("limpet/contexts.json");
    std::fs::create_dir_all(config.join("limpet")).unwrap();
    std::fs::write(&file, "{}").unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    let (status, said) = limpet(&config, &["get", "devices"]);
    assert_eq!(status, 1);
    assert!(said.contains("can be read by others (mode 644)"), "{said}");
}

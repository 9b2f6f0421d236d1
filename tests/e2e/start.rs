//! What the programs say when they cannot begin.

use limpet_tests::process::Output;
use limpet_tests::{Agent, Fleet, Lab, output, program};

fn refused(done: &Output, status: i32, texts: &[&str]) {
    assert_eq!(done.status, status, "{done:?}");
    for text in texts {
        assert!(done.err.contains(text), "no {text:?} in {}", done.err);
    }
}

/// A controller on a data folder, on whatever ports.
fn up_on(data: &str) -> Output {
    let ports = ["--listen", "127.0.0.1:0", "--mqtt-listen", "127.0.0.1:0"];
    let args = ["up", "--data-dir", data];
    output(program("limpet"), &[&args[..], &ports].concat())
}

#[test]
fn plain_text_is_for_loopback_and_must_be_asked_for() {
    let lab = Lab::new();
    let data = lab.path("data").display().to_string();
    let up =
        |args: &[&str]| output(program("limpet"), &[&["up", "--data-dir", &data], args].concat());
    refused(
        &up(&["--insecure", "--listen", "0.0.0.0:0"]),
        1,
        &["--listen 0.0.0.0:0", "loopback only"],
    );
    refused(
        &up(&["--insecure", "--mqtt-listen", "10.1.2.3:1883"]),
        1,
        &["--mqtt-listen 10.1.2.3:1883"],
    );
    refused(&up(&["--insecure", "--listen", "nonsense"]), 2, &["nonsense"]);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    refused(
        &up(&["--insecure", "--listen", &address]),
        1,
        &[&address, "is another controller running there?"],
    );

    let run = |args: &[&str]| {
        output(program("limpet-agent"), &[&["run", "--data-dir", &data], args].concat())
    };
    refused(&run(&[]), 1, &["has not joined a fleet", "limpet-agent join STRING"]);
    refused(&run(&["--broker", "mqtt://127.0.0.1:1"]), 2, &["--insecure"]);
    refused(&run(&["--insecure"]), 2, &["--broker mqtt://HOST:PORT"]);
    refused(&run(&["--insecure", "--broker", "http://x"]), 2, &["write mqtt://HOST:PORT"]);
    refused(&run(&["--insecure", "--nonsense"]), 2, &["--nonsense", "limpet-agent --help"]);
    let config =
        lab.file("agent.toml", "broker = 'mqtt://127.0.0.1:1'\ninsecure = true\nkeepalive = 3\n");
    refused(&run(&["--config", &config.display().to_string()]), 2, &["agent.toml", "keepalive"]);
}

#[test]
fn a_folder_of_a_newer_version_is_left_alone() {
    let mut fleet = Fleet::start(1);
    fleet.controller.ok(&["run", "web", "--image=box"]);
    let agent = &mut fleet.agents[0];
    agent.kill();
    for name in ["identity", "desired", "checkpoint.0"] {
        let path = agent.data.join(name);
        let whole = std::fs::read(&path).unwrap();
        let newer = newer(&whole);
        std::fs::write(&path, &newer).unwrap();
        agent.restart();
        let ended = agent.process.wait();
        assert_eq!(ended.code(), Some(1));
        let said = agent.process.log();
        assert!(
            said.contains(&format!("{name} was written by a newer version of limpet-agent")),
            "{said}"
        );
        assert_eq!(std::fs::read(&path).unwrap(), newer, "it is not touched");
        std::fs::write(&path, whole).unwrap();
    }
    agent.restart();
    fleet.until_phases("web", &["running"]);

    fleet.controller.stop();
    let store = fleet.lab.path("controller/limpet.db");
    let store = store.display().to_string();
    let ours = limpet_tests::run("sqlite3", &[store.as_str(), "PRAGMA user_version"]);
    limpet_tests::run("sqlite3", &[store.as_str(), "PRAGMA user_version = 99"]);
    let data = fleet.lab.path("controller").display().to_string();
    let done = up_on(&data);
    refused(&done, 1, &["limpet.db", "newer version"]);
    let back = format!("PRAGMA user_version = {}", ours.trim());
    limpet_tests::run("sqlite3", &[store.as_str(), &back]);
    fleet.controller.restart();
    fleet.until_phases("web", &["running"]);
}

/// The document with the next version in its header, and the check that goes with it.
fn newer(document: &[u8]) -> Vec<u8> {
    let mut newer = document.to_vec();
    newer[5] += 1;
    let length = u64::from_be_bytes(newer[8..16].try_into().unwrap());
    let content = &newer[24..24 + usize::try_from(length).unwrap()];
    let hashed = limpet_protocol::Digest::of(&[&newer[..16], content].concat());
    newer[16..24].copy_from_slice(&hashed.0[..8]);
    newer
}

#[test]
fn one_folder_has_one_user() {
    let fleet = Fleet::start(1);
    let agent = &fleet.agents[0];
    let data = agent.data.display().to_string();
    let done = output(program("limpet-agent"), &["run", "--data-dir", &data]);
    refused(&done, 1, &["another agent uses the data folder", "--data-dir"]);
    let (own, taken) = (fleet.lab.path("own"), agent.run.display().to_string());
    let own = own.display().to_string();
    let join = ["join", fleet.controller.invitation(), "--device-id", "own", "--data-dir", &own];
    limpet_tests::run(program("limpet-agent"), &join);
    let run = ["run", "--data-dir", &own, "--run-dir", &taken];
    refused(&output(program("limpet-agent"), &run), 1, &["another agent uses the run folder"]);
    let data = fleet.lab.path("controller").display().to_string();
    let done = up_on(&data);
    refused(&done, 1, &["another controller"]);
}

#[test]
fn without_certificates_too_a_second_agent_with_the_same_id_is_refused() {
    let fleet = Fleet::insecure(1);
    fleet.controller.ok(&["run", "web", "--image=box"]);
    let before = fleet.until_phases("web", &["running"]);
    let config = format!(
        "data_dir = '{}'\nrun_dir = '{}'\n",
        fleet.lab.path("x").display(),
        fleet.lab.path("y").display()
    );
    let lab = Lab::new();
    let mut twin = Agent::with_config(&lab, "dev-0", &fleet.controller, &config);
    twin.process.until_said("the controller refused this device");
    twin.process.until_said("another device has its id");
    fleet.eventually("the controller's event", || {
        let events = fleet.controller.list("/api/v1/events?device=dev-0");
        events
            .iter()
            .any(|e| {
                e["kind"] == "device-refused"
                    && e["message"].as_str().unwrap().contains("another key")
            })
            .then_some(())
    });
    let now = fleet.until_phases("web", &["running"]);
    assert_eq!(
        (&now[0]["pid"], &now[0]["online"]),
        (&before[0]["pid"], &limpet_tests::json!(true))
    );
}

//! What a device's memory goes to (promise P2).

use std::time::Duration;

use limpet_tests::{Agent, Fleet};

use crate::process::Pss;
use crate::{row, until_running};

/// Containers that a small device has.
const FEW: usize = 3;
/// Containers whose memory is shared out.
const MANY: usize = 10;
/// How long an agent has settled for, when it is looked at.
const SETTLED: Duration = Duration::from_secs(2);

pub(crate) fn measure(fleet: &Fleet) {
    let agent = &fleet.agents[0];
    let idle = settled(agent, 0);
    row("agent idle, PSS", &idle.agent.to_string(), "4 MB (P2)");
    fleet.controller.ok(&["run", "box", "--image=box", &format!("--replicas={FEW}")]);
    let few = settled(agent, FEW);
    row(&format!("agent with {FEW} containers, PSS"), &few.agent.to_string(), "");
    row(&format!("shims of {FEW} containers, PSS"), &few.shims.to_string(), "");
    let all = [few.agent, few.shims].into_iter().sum::<Pss>().to_string();
    row(&format!("agent and {FEW} containers, PSS"), &all, "8 MB (P2)");
    fleet.controller.ok(&["scale", "box", &format!("--replicas={MANY}")]);
    let many = settled(agent, MANY);
    let [idle, many] = [idle, many].map(|device| device.agent.total() + device.shims.total());
    let each = many.saturating_sub(idle) as f64 / MANY as f64 / 1024.0;
    row(
        &format!("PSS more per running container of {MANY} (shim, and the agent's share)"),
        &format!("{each:.2} MB"),
        "0.5 MB (P2)",
    );
    fleet.controller.ok(&["delete", "box"]);
    until_running(agent, 0);
}

/// The memory of a device's processes.
struct Device {
    agent: Pss,
    shims: Pss,
}

fn settled(agent: &Agent, containers: usize) -> Device {
    until_running(agent, containers);
    std::thread::sleep(SETTLED);
    let shims = agent.shims().into_iter().map(i32::cast_unsigned);
    Device { agent: Pss::of(agent.process.pid()), shims: shims.map(Pss::of).sum() }
}

//! A fleet with certificates and tokens.

use limpet_tests::{Agent, Controller, Image, Lab, Registry, Value, eventually_or};

/// A secured fleet of one.
pub(crate) struct Secured {
    // In this order they are dropped.
    pub(crate) agent: Agent,
    pub(crate) controller: Controller,
    _registry: Registry,
    pub(crate) lab: Lab,
}

impl Secured {
    /// With these flags of `limpet up`.
    pub(crate) fn start(flags: &[&str]) -> Self {
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

    /// Waits until the device is there, or not.
    pub(crate) fn until_presence(&self, presence: &str) {
        let look = || (device(&self.controller, "dev-0")?["presence"] == presence).then_some(());
        eventually_or(presence, look, || {
            self.agent.process.tail() + &self.controller.process.tail()
        });
    }
}

/// A device, as the controller lists it.
pub(crate) fn device(controller: &Controller, id: &str) -> Option<Value> {
    let all: Vec<Value> =
        serde_json::from_str(&controller.ok(&["get", "devices", "-o", "json"])).unwrap();
    all.into_iter().find(|device| device["id"] == id)
}

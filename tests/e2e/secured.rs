//! A fleet of one whose device has joined with a label.

use limpet_tests::{Agent, Controller, Fleet, Value};

/// With these flags of `limpet up`.
pub(crate) fn start(flags: &[&str]) -> Fleet {
    let mut fleet = Fleet::of(0, |lab| Controller::secured(lab, flags));
    let join = fleet.controller.join_string(&["--label", "site=berlin"]);
    let config = Agent::config("dev-0", &fleet.registry.host);
    fleet.agents.push(Agent::member(&fleet.lab, "dev-0", &join, &config));
    until_presence(&fleet, "online");
    fleet
}

/// Waits until the device is there, or not.
pub(crate) fn until_presence(fleet: &Fleet, presence: &str) {
    fleet.eventually(presence, || {
        (device(&fleet.controller, "dev-0")?["presence"] == presence).then_some(())
    });
}

/// A device, as the controller lists it.
pub(crate) fn device(controller: &Controller, id: &str) -> Option<Value> {
    let all: Vec<Value> =
        serde_json::from_str(&controller.ok(&["get", "devices", "-o", "json"])).unwrap();
    all.into_iter().find(|device| device["id"] == id)
}

//! What is known of one device.

use limpet_controller_core::{Greetings, Inbox, Presence};
use limpet_protocol::hello::KEEP_ALIVE_S;
use limpet_protocol::{
    BootId, Facts, Feature, Held, Labels, Nonce, PublicKey, SealingKey, Upgrade, UpgradeStatus,
};
use serde::{Deserialize, Serialize};

/// A device, as it is stored and as it is connected.
#[derive(Debug)]
pub(super) struct Device {
    pub(super) record: DeviceRecord,
    pub(super) inbox: Inbox,
    pub(super) link: Option<Link>,
    pub(super) presence: Presence,
    /// By the steady clock; None where this controller does not know.
    pub(super) heard_ms: Option<u64>,
    pub(super) adoption: Option<Adoption>,
}

/// A device on hold was asked for what it holds.
#[derive(Debug, Clone)]
pub(super) enum Adoption {
    /// With this command.
    Asked(u64),
    /// It cannot be taken over.
    Failed(String),
}

/// What is stored of a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DeviceRecord {
    pub(super) key: PublicKey,
    pub(super) agent_version: heapless::String<32>,
    pub(super) labels: Labels,
    pub(super) facts: Facts,
    pub(super) features: Vec<Feature>,
    /// What secrets for it are sealed to.
    #[serde(default)]
    pub(super) sealing_key: Option<SealingKey>,
    #[serde(default = "keep_alive_s")]
    pub(super) keep_alive_s: u16,
    /// Of its desired state.
    pub(super) held: Held,
    /// The latest of its desired states that were sent to it. What it holds beyond that is from a
    /// later life of this store.
    #[serde(default)]
    pub(super) told: Held,
    /// What the device holds beyond that. Nothing is published to it.
    pub(super) ahead: Option<Held>,
    /// Its presence where it is not connected, by the wall clock, and when it was last heard.
    #[serde(default)]
    pub(super) absence: Option<Presence>,
    #[serde(default)]
    pub(super) heard_ms: Option<u64>,
    /// The latest order to run another program.
    #[serde(default)]
    pub(super) upgrade: Option<Upgrade>,
    /// How far it has come with one.
    #[serde(default)]
    pub(super) upgrading: Option<UpgradeStatus>,
    /// Its hellos that were taken in from a broker of somebody else.
    #[serde(default)]
    pub(super) greetings: Greetings,
}

fn keep_alive_s() -> u16 {
    KEEP_ALIVE_S
}

/// A device's connection, from its hello.
#[derive(Debug, Clone, Copy)]
pub(super) struct Link {
    pub(super) boot: BootId,
    pub(super) connection: u64,
    pub(super) nonce: Nonce,
    /// Whose signature it believes, where it says so.
    pub(super) controller: Option<PublicKey>,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use limpet_controller_core::placement::Slot;
    use limpet_controller_core::{Deployed, Deployment};
    use limpet_protocol::{DeploymentName, DeviceId, Digest, SigningKey, cbor};

    use super::*;

    /// What version 1 of the store has of a device.
    #[derive(Serialize)]
    struct DeviceRecord1 {
        key: PublicKey,
        agent_version: heapless::String<32>,
        labels: Labels,
        facts: Facts,
        features: Vec<Feature>,
        held: Held,
        ahead: Option<Held>,
    }

    #[derive(Serialize)]
    struct Deployed1 {
        deployment: Deployment,
        revision: Digest,
        changed_ms: u64,
        slots: BTreeSet<Slot>,
        unplaced: u32,
        refusals: Vec<(DeviceId, String)>,
    }

    #[test]
    fn records_of_the_first_version_are_read() {
        let held = Held { epoch: 1, generation: 7 };
        let old = DeviceRecord1 {
            key: SigningKey::from_seed(&[7; 32]).unwrap().public(),
            agent_version: "0.1.0".try_into().unwrap(),
            labels: Labels::new(),
            facts: Facts::default(),
            features: vec![],
            held,
            ahead: None,
        };
        let record: DeviceRecord = cbor::decode(&cbor::encode(&old), usize::MAX).unwrap();
        assert_eq!((record.held, record.keep_alive_s, record.absence), (held, 600, None));

        let name: DeploymentName = "web".parse().unwrap();
        let read = limpet_controller_core::manifest::parse(
            Some(&name),
            b"image: box",
            limpet_controller_core::manifest::Format::Yaml,
        );
        let deployment = read.unwrap();
        let old = Deployed1 {
            revision: deployment.spec.digest(),
            deployment: deployment.clone(),
            changed_ms: 5,
            slots: BTreeSet::new(),
            unplaced: 1,
            refusals: vec![],
        };
        let read: Deployed = cbor::decode(&cbor::encode(&old), usize::MAX).unwrap();
        assert_eq!((read.deployment, read.pinned, read.changed_ms), (deployment, false, 5));
    }
}

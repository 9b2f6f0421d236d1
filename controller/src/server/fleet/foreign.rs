//! What a broker of somebody else brings: nothing is known of it but what is signed.
//!
//! Whoever owns that broker can repeat, hold back and make up messages, and flood. What is refused is
//! told within bounds, whatever comes.

use limpet_controller_core::limit::{Limit, Quiet, Rate};
use limpet_controller_core::presence::Heard;
use limpet_protocol::{Ack, DeploymentName, DeviceId, Leaf, Topic};

use super::{Fleet, Standing};

/// What is refused is told once in this time for each device and word.
const TOLD_EVERY_MS: u64 = 10_000;
/// Devices that are told apart in that; others share one place.
const TOLD_APART_MAX: usize = 20;
/// Entries of the audit log about manifests that nobody has a right to, for each reason.
const AUDITED_EVERY_MS: u64 = 600_000;
const AUDITED_MAX: usize = 20;
/// Answers to such manifests, for each deployment.
const ANSWERS: Rate = Rate { every_ms: 1000, burst: 5, keys_max: 100 };

/// How such a broker is dealt with.
pub(super) struct Foreign {
    told: Quiet<(&'static str, Option<DeviceId>)>,
    pub(super) audited: Quiet<&'static str>,
    pub(super) answers: Limit<DeploymentName>,
    /// The broker cannot be reached: nobody is heard.
    is_gone: bool,
}

impl Foreign {
    fn new() -> Self {
        Self {
            told: Quiet::new(TOLD_EVERY_MS, TOLD_APART_MAX),
            audited: Quiet::new(AUDITED_EVERY_MS, AUDITED_MAX),
            answers: Limit::new(ANSWERS),
            is_gone: false,
        }
    }
}

impl Fleet {
    /// From here on messages come from a broker of somebody else.
    pub(in crate::server) fn set_foreign(&mut self) {
        self.foreign = Some(Foreign::new());
    }

    /// Takes a message that the broker brings, or refuses it. One that is retained was not published
    /// just now: it is no order.
    pub(in crate::server) fn carried(&mut self, topic: &str, payload: &[u8], is_retained: bool) {
        match Topic::parse(&self.prefix, topic) {
            Ok(Topic::Device(id, _)) => {
                if let Err(why) = self.take_message(&id, topic, payload) {
                    let known = self.members.records.contains_key(&id).then_some(&id);
                    self.refuse_foreign("message-refused", known, &format!("topic {topic}: {why}"));
                }
            }
            Ok(Topic::Deploy(_)) if is_retained => {
                self.refuse_foreign("manifest-refused", None, "a copy that the broker has kept");
            }
            Ok(Topic::Deploy(name)) => self.foreign_manifest(&name, payload),
            // Its own answers.
            Ok(Topic::DeployResult(_)) => {}
            Err(error) => self.refuse_foreign("message-refused", None, &error.to_string()),
        }
    }

    /// Something was refused: says so, but not every time.
    pub(super) fn refuse_foreign(
        &mut self,
        kind: &'static str,
        device: Option<&DeviceId>,
        why: &str,
    ) {
        let Some(foreign) = &mut self.foreign else { return };
        let Some(untold) = foreign.told.again(&(kind, device.cloned()), self.steady_ms) else {
            return;
        };
        let more = match untold {
            0 => String::new(),
            count => format!(" (and {count} more before it)"),
        };
        log::warn!("refused: {why:.512}");
        self.note(kind, device, format!("{why:.512}{more}"));
    }

    /// The broker is reached; gives the devices that are to say hello: what they have said meanwhile
    /// went by unheard.
    pub(in crate::server) fn broker_found(&mut self, address: &str) -> Vec<DeviceId> {
        if let Some(foreign) = &mut self.foreign {
            foreign.is_gone = false;
        }
        self.note("broker-connected", None, address.to_owned());
        // What it keeps may be gone.
        let put_back = self.put_results_back();
        self.stored(put_back);
        self.hear_nobody();
        let is_member = |id: &&DeviceId| {
            self.members.records.get(*id).is_some_and(|m| m.standing == Standing::Member)
        };
        self.devices.keys().filter(is_member).cloned().collect()
    }

    /// The broker is not reached any more.
    pub(in crate::server) fn broker_lost(&mut self, why: &str) {
        let Some(foreign) = self.foreign.as_mut().filter(|foreign| !foreign.is_gone) else {
            return;
        };
        foreign.is_gone = true;
        self.note("broker-lost", None, why.to_owned());
        self.hear_nobody();
    }

    fn hear_nobody(&mut self) {
        let ids: Vec<DeviceId> = self.devices.keys().cloned().collect();
        for id in ids {
            self.unlink(&id);
            self.hear(&id, Heard::Nobody);
        }
    }

    /// Whether time says nothing of those that are not heard.
    pub(super) fn hears_nobody(&self) -> bool {
        self.foreign.as_ref().is_some_and(|foreign| foreign.is_gone)
    }

    /// Asks a device to say hello again, whatever its connection.
    pub(in crate::server) fn ask_for_hello(&mut self, id: &DeviceId) {
        if let Some(ack) = self.devices.get(id).map(|device| device.inbox.ack(false)) {
            self.send(id, Leaf::Ack, Ack::NO_CONNECTION, &ack);
        }
    }
}

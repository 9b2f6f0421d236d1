//! What devices should run, as they are told.

use limpet_controller_core::plan;
use limpet_controller_core::presence::reconnect_spread_ms;
use limpet_protocol::envelope::{self, EnvelopeError, Expected};
use limpet_protocol::{DesiredState, DeviceId, Envelope, Header, Held, Kind, Leaf, Topic};

use super::Fleet;

impl Fleet {
    /// The desired state that follows from where deployments are; its secrets are not sealed yet.
    pub(super) fn desired(&self, id: &DeviceId, held: Held) -> DesiredState {
        let workloads = plan::workloads(&self.deployments, id);
        let reconnect_spread_ms = reconnect_spread_ms(self.devices.len());
        let at_ms = self.now_ms;
        let upgrade = self.devices.get(id).and_then(|device| device.record.upgrade.clone());
        let mut desired =
            DesiredState { held, at_ms, reconnect_spread_ms, policy: None, upgrade, workloads };
        plan::govern(&mut desired, self.policy.as_ref());
        desired
    }

    /// Gives a device its next desired state: stored, then published. One on hold is given none.
    pub(super) fn publish_desired(&mut self, id: &DeviceId) {
        let Some(device) = self.devices.get_mut(id).filter(|d| d.record.ahead.is_none()) else {
            return;
        };
        device.record.held.generation += 1;
        let held = device.record.held;
        let is_told = device.link.is_some();
        if is_told {
            device.record.told = held;
        }
        self.tell_time();
        let desired = self.sealed_desired(id, held);
        let header = Header {
            prefix: self.prefix.to_string(),
            device: id.clone(),
            kind: Kind::Desired,
            epoch: held.epoch,
            number: held.generation,
        };
        let signed = envelope::seal(self.signer(id), &header, &desired);
        let put = self.store.put_desired(id.as_str(), &signed);
        self.stored(put);
        self.put_device(id);
        if is_told {
            let topic = Topic::Device(id.clone(), Leaf::Desired).under(&self.prefix);
            self.publish(topic, signed, false);
        }
    }

    /// Sends its desired state to a device that holds an older one.
    pub(super) fn bring_up_to_date(&mut self, id: &DeviceId, holds: Held) {
        let Some(device) = self.devices.get_mut(id).filter(|d| holds < d.record.held) else {
            return;
        };
        if device.record.told < device.record.held {
            device.record.told = device.record.held;
            self.put_device(id);
        }
        let read = self.store.desired(id.as_str());
        if let Some(Some(signed)) = self.stored(read) {
            let topic = Topic::Device(id.clone(), Leaf::Desired).under(&self.prefix);
            self.publish(topic, signed, false);
        }
    }

    /// Opens a desired state that this controller has signed for a device.
    pub(super) fn open_desired(
        &self,
        id: &DeviceId,
        signed: &[u8],
    ) -> Result<Envelope, EnvelopeError> {
        let kind = Kind::Desired;
        let expected = Expected { prefix: &self.prefix, device: id, kind, signer: None };
        let opened = envelope::open(signed, expected)?;
        match self.keys.has(&opened.signer) {
            true => Ok(opened),
            false => {
                let expected = self.keys.present().public();
                Err(EnvelopeError::Signer { actual: opened.signer, expected })
            }
        }
    }

    /// Gives a device its next desired state where the latest says something else than it should, or
    /// is signed with a key that the device does not believe.
    pub(super) fn publish_desired_anew(&mut self, id: &DeviceId) {
        let read = self.store.desired(id.as_str());
        let signed = self.stored(read).flatten().unwrap_or_default();
        let latest = self.open_desired(id, &signed).ok();
        let latest = latest.and_then(|envelope| envelope.read::<DesiredState>().ok());
        let sorted = |state: DesiredState| {
            let mut workloads = state.workloads;
            workloads.sort_by(|a, b| a.id.cmp(&b.id));
            workloads
        };
        if self.is_signed_otherwise(id)
            || latest.map(sorted) != Some(sorted(self.sealed_desired(id, Held::default())))
        {
            self.publish_desired(id);
        }
    }
}

//! Devices that are ahead of this store, since it was restored from an old backup: they are told
//! nothing until an operator chooses what holds.

use std::collections::{BTreeMap, BTreeSet};

use limpet_controller_core::recover::{Known, adopt};
use limpet_protocol::{
    Action, DeploymentName, DesiredState, DeviceId, Digest, Held, Workload, WorkloadId,
};

use super::{Adoption, Caller, Deployed, Device, Entry, Fleet};
use crate::view::{HoldView, RecoverChoice, RecoverResult};

/// Why an operator's choice is not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(in crate::server) enum RecoverError {
    #[error("there is no device {0}")]
    NoDevice(DeviceId),
    #[error("device {0} is not on hold: `limpet recover` lists those that are")]
    NotOnHold(DeviceId),
    #[error("device {0} is not connected: what it holds can be taken over only from itself")]
    Away(DeviceId),
}

impl Fleet {
    /// Says that a device is on hold, and what to do.
    pub(super) fn tell_of_hold(&mut self, id: &DeviceId) {
        if let Some(why) = self.devices.get(id).and_then(|device| hold(id, device)) {
            self.refuse("device-on-hold", Some(id), &why);
        }
    }

    /// The devices on hold, and in what they and the store differ.
    pub(in crate::server) fn hold_views(&self) -> Vec<HoldView> {
        let all = self.devices.iter();
        all.filter_map(|(id, device)| self.hold_view(id, device, device.record.ahead?)).collect()
    }

    fn hold_view(&self, id: &DeviceId, device: &Device, ahead: Held) -> Option<HoldView> {
        let stored: BTreeMap<WorkloadId, Digest> =
            self.desired(id, ahead).workloads.into_iter().map(|w| (w.id, w.revision)).collect();
        let runs: BTreeMap<&WorkloadId, Digest> =
            device.inbox.statuses().iter().map(|(id, k)| (id, k.status.revision)).collect();
        let named = |ids: Vec<&WorkloadId>| ids.iter().map(ToString::to_string).collect();
        Some(HoldView {
            device: id.to_string(),
            presence: device.presence.to_string(),
            heard_age_s: self.heard_age_s(device),
            holds: ahead.to_string(),
            told: device.record.told.to_string(),
            only_device: named(runs.keys().copied().filter(|w| !stored.contains_key(*w)).collect()),
            only_store: named(stored.keys().filter(|w| !runs.contains_key(*w)).collect()),
            differ: named(
                stored
                    .iter()
                    .filter(|(w, r)| runs.get(w).is_some_and(|d| d != *r))
                    .map(|(w, _)| w)
                    .collect(),
            ),
            problem: match &device.adoption {
                Some(Adoption::Failed(why)) => Some(why.clone()),
                Some(Adoption::Asked(_)) | None => None,
            },
        })
    }

    /// Carries out what an operator chooses for devices on hold.
    pub(in crate::server) fn recover(
        &mut self,
        by: &Caller,
        choice: RecoverChoice,
        named: &[DeviceId],
    ) -> Result<RecoverResult, RecoverError> {
        let before = serde_json::to_string(&self.hold_views()).ok();
        let (action, done) = match choice {
            RecoverChoice::Adopt => ("recover.adopt", self.recover_adopt(named)),
            RecoverChoice::Override => ("recover.override", self.recover_override(named)),
        };
        let object = match &done {
            Ok(result) => format!("device/{}", result.devices.join(",")),
            Err(_) => "device".to_owned(),
        };
        let entry = Entry { action, object, before, ..Entry::default() };
        self.audit_done(by, entry, done.as_ref().err());
        done
    }

    /// The devices that an operator speaks of: those named, or all that are on hold.
    fn chosen(&self, named: &[DeviceId]) -> Result<Vec<DeviceId>, RecoverError> {
        for id in named {
            let device = self.devices.get(id).ok_or_else(|| RecoverError::NoDevice(id.clone()))?;
            if device.record.ahead.is_none() {
                return Err(RecoverError::NotOnHold(id.clone()));
            }
        }
        let on_hold = self.devices.iter().filter(|(_, device)| device.record.ahead.is_some());
        let chosen = on_hold.filter(|(id, _)| named.is_empty() || named.contains(id));
        Ok(chosen.map(|(id, _)| id.clone()).collect())
    }

    /// The store's truth wins: a new epoch.
    fn recover_override(&mut self, named: &[DeviceId]) -> Result<RecoverResult, RecoverError> {
        let chosen = self.chosen(named)?;
        for id in &chosen {
            let Some(device) = self.devices.get_mut(id) else {
                continue;
            };
            let record = &mut device.record;
            let ahead = record.ahead.take().unwrap_or_default();
            record.held.epoch = record.held.epoch.max(ahead.epoch) + 1;
            record.told = record.held;
            device.adoption = None;
            self.note("device-overridden", Some(id), format!("it held {ahead}"));
            self.publish_desired(id);
        }
        let devices = chosen.iter().map(ToString::to_string).collect();
        Ok(RecoverResult { devices, away: Vec::new() })
    }

    /// The devices' truth wins: they are asked for it.
    fn recover_adopt(&mut self, named: &[DeviceId]) -> Result<RecoverResult, RecoverError> {
        let connected = |fleet: &Self, id: &DeviceId| {
            fleet.devices.get(id).is_some_and(|device| device.link.is_some())
        };
        let (asked, away): (Vec<_>, Vec<_>) =
            self.chosen(named)?.into_iter().partition(|id| connected(self, id));
        if let Some(id) = away.first().filter(|_| !named.is_empty()) {
            return Err(RecoverError::Away(id.clone()));
        }
        for id in &asked {
            let number = self.command(id, Action::ReturnDesired);
            if let (Some(number), Some(device)) = (number, self.devices.get_mut(id)) {
                device.adoption = Some(Adoption::Asked(number));
            }
        }
        let texts = |ids: Vec<DeviceId>| ids.iter().map(ToString::to_string).collect();
        Ok(RecoverResult { devices: texts(asked), away: texts(away) })
    }

    /// A device says why it does not return what it holds.
    pub(super) fn not_returned(&mut self, id: &DeviceId, number: u64, why: &str) {
        let device = self.devices.get_mut(id);
        let asked = |device: &&mut Device| matches!(device.adoption, Some(Adoption::Asked(asked)) if asked == number);
        if let Some(device) = device.filter(asked) {
            device.adoption = Some(Adoption::Failed(why.to_owned()));
        }
    }

    /// A device has gone before it returned what it holds.
    pub(super) fn not_returned_any(&mut self, id: &DeviceId) {
        let number = self.devices.get(id).and_then(|device| match device.adoption {
            Some(Adoption::Asked(number)) => Some(number),
            Some(Adoption::Failed(_)) | None => None,
        });
        if let Some(number) = number {
            self.not_returned(id, number, "it went offline before it had answered");
        }
    }

    /// A device returns the desired state that it holds.
    pub(super) fn returned(
        &mut self,
        id: &DeviceId,
        number: u64,
        signed: Vec<u8>,
    ) -> Result<(), String> {
        let device = self.devices.get(id);
        let asked = device.is_some_and(
            |device| matches!(device.adoption, Some(Adoption::Asked(asked)) if asked == number),
        );
        let Some(ahead) = device.and_then(|device| device.record.ahead).filter(|_| asked) else {
            return Err("nobody has asked for it".to_owned());
        };
        let checked = self.checked(id, ahead, &signed);
        match checked {
            Ok(document) => {
                self.take_over(id, &document, &signed);
                Ok(())
            }
            Err(why) => {
                self.not_returned(id, number, &why);
                Err(why)
            }
        }
    }

    fn checked(&self, id: &DeviceId, ahead: Held, signed: &[u8]) -> Result<DesiredState, String> {
        let foreign = |e| format!("what it holds is not from this controller: {e}");
        let envelope = self.open_desired(id, signed).map_err(foreign)?;
        let document: DesiredState = envelope.read().map_err(|e| e.to_string())?;
        let outside = Held { epoch: envelope.header.epoch, generation: envelope.header.number };
        if document.held != outside || document.held < ahead {
            let (inside, outside, ahead) = (document.held, outside, ahead);
            return Err(format!(
                "it returned a document that is {inside}, signed as {outside}; it holds {ahead}"
            ));
        }
        Ok(document)
    }

    fn take_over(&mut self, id: &DeviceId, document: &DesiredState, signed: &[u8]) {
        let Some(device) = self.devices.get_mut(id) else {
            return;
        };
        let record = &mut device.record;
        (record.held, record.told, record.ahead) = (document.held, document.held, None);
        device.adoption = None;
        let put = self.store.put_desired(id.as_str(), signed);
        self.stored(put);
        self.keep_sealed(id, document);
        self.put_device(id);
        self.note("device-adopted", Some(id), format!("it holds {}", document.held));
        let mut held: BTreeMap<DeploymentName, Vec<&Workload>> = BTreeMap::new();
        let here = self.deployments.values().filter(|d| d.slots.iter().any(|(on, _)| on == id));
        held.extend(here.map(|d| (d.deployment.name.clone(), Vec::new())));
        for workload in &document.workloads {
            held.entry(workload.deployment.clone()).or_default().push(workload);
        }
        let mut touched = BTreeSet::from([id.clone()]);
        for (name, held) in &held {
            let known = self.deployments.get(name).map(known);
            let Some(known) = adopt(known, id, document.at_ms, held) else {
                continue;
            };
            touched.extend(known.slots.iter().map(|(id, _)| id.clone()));
            let sealed_bytes = self.sealed_bytes(&known.deployment.spec);
            self.deployments.insert(name.clone(), Deployed { sealed_bytes, ..adopted(known) });
            self.put_deployed(name);
        }
        // Releases those that are where their manifest places them.
        self.place_all();
        for id in touched {
            self.publish_desired_anew(&id);
        }
    }
}

fn known(deployed: &Deployed) -> Known {
    let Deployed { deployment, changed_ms, as_of_ms, slots, .. } = deployed.clone();
    Known { deployment, changed_ms, as_of_ms, slots }
}

fn adopted(known: Known) -> Deployed {
    let Known { deployment, changed_ms, as_of_ms, slots } = known;
    Deployed {
        revision: deployment.spec.digest(),
        deployment,
        changed_ms,
        as_of_ms,
        pinned: true,
        sealed_bytes: 0,
        slots,
        unplaced: 0,
        refusals: Vec::new(),
    }
}

/// Why a device is told nothing; None where it is not on hold.
pub(super) fn hold(id: &DeviceId, device: &Device) -> Option<String> {
    let ahead = device.record.ahead?;
    Some(format!(
        "device {id} holds desired state {}, this controller's last for it is {}: was the controller \
         restored from an old backup? Nothing is published to the device until `limpet recover` says \
         which of the two holds",
        ahead, device.record.told
    ))
}

//! Whose signature each device believes, and how that becomes another's.
//!
//! A device is told with the key that it believes, and is offered the present one in a membership
//! that this key signs. It says in its hello whom it believes: whatever was lost on the way, and
//! whenever it was killed, both sides know.

use std::collections::BTreeSet;

use limpet_protocol::{DeviceId, PublicKey, SigningKey};

use super::super::audit::Entry;
use super::super::caller::Caller;
use super::rotation::RotateError;
use super::{Fleet, Standing};
use crate::server::store::Table;
use crate::view::{RotationView, SigningKeyView};

impl Fleet {
    /// Makes another key sign what the fleet is told.
    pub(in crate::server) fn rotate_signing_key(
        &mut self,
        by: &Caller,
    ) -> Result<RotationView, RotateError> {
        if self.members.terms.is_none() {
            return Err(RotateError::TrustOnFirstUse);
        }
        let entry = Entry {
            action: "rotate.signing-key",
            object: "signing-key".to_owned(),
            before: Some(self.keys.present().public().fingerprint()),
            ..Entry::default()
        };
        if let Err(why) = self.keys.replace() {
            self.audit(by, Entry { outcome: format!("refused: {why}"), ..entry });
            return Err(RotateError::Key(why));
        }
        let after = self.keys.present().public().fingerprint();
        self.note("signing-key-replaced", None, format!("members are offered {after}"));
        self.audit(by, Entry { after: Some(after), outcome: "ok".to_owned(), ..entry });
        self.offer_to_all();
        self.rotation()
    }

    pub(super) fn signing_key_view(&self) -> SigningKeyView {
        let present = self.keys.present().public();
        let waiting = self.members.records.iter().filter(|(_, member)| {
            member.standing != Standing::Revoked && self.noted(member) != present
        });
        SigningKeyView {
            fingerprint: present.fingerprint(),
            waiting: waiting.map(|(id, _)| id.to_string()).collect(),
        }
    }

    /// The key that a device is told with: the one that it believes, as far as that is there.
    pub(in crate::server::fleet) fn signer(&self, id: &DeviceId) -> &SigningKey {
        let told = self.devices.get(id).and_then(|device| device.link?.controller);
        let noted = || self.members.records.get(id).map(|member| self.noted(member));
        let believed = told.or_else(noted);
        believed.and_then(|key| self.keys.signing(&key)).unwrap_or(self.keys.present())
    }

    /// The key that a member believed when it was last heard of.
    fn noted(&self, member: &super::Member) -> PublicKey {
        member.controller.unwrap_or(self.keys.first())
    }

    /// The key that a device says it believes, where it is one to sign with; else the one that is
    /// noted of it.
    pub(super) fn heard_or_noted(&self, id: &DeviceId, told: Option<PublicKey>) -> PublicKey {
        let told = told.filter(|key| self.keys.signing(key).is_some());
        told.unwrap_or_else(|| self.signer(id).public())
    }

    /// A device's hello says whose signature it believes.
    pub(in crate::server::fleet) fn believes(&mut self, id: &DeviceId, told: Option<PublicKey>) {
        let (Some(told), Some(member)) = (told, self.members.records.get_mut(id)) else { return };
        if member.controller != Some(told) {
            member.controller = Some(told);
            let put = self.store.put(Table::Members, id.as_str(), member);
            self.stored(put);
            self.retire_keys();
        }
        if self.keys.signing(&told).is_none() {
            let why = format!(
                "device {id} believes the signatures of {}, a key that is not here: was this \
                 controller restored from a backup of before `limpet rotate signing-key`? Restore a \
                 later one, or make the device anew",
                told.fingerprint()
            );
            self.refuse("device-believes-another", Some(id), &why);
        }
    }

    /// Whether a device can take another key: what it holds is signed with the one that it believes,
    /// and it can prove that after the next start with the key before its present one.
    pub(super) fn may_rekey(&self, id: &DeviceId) -> bool {
        let Some(device) = self.devices.get(id) else { return false };
        device.inbox.cursor.applied == device.record.held && !self.is_signed_otherwise(id)
    }

    /// Whether the latest desired state of a device is signed with another key than it believes.
    pub(in crate::server::fleet) fn is_signed_otherwise(&self, id: &DeviceId) -> bool {
        if !self.keys.has_former() {
            return false;
        }
        let signed = self.store.desired(id.as_str()).ok().flatten().unwrap_or_default();
        let signer = self.open_desired(id, &signed).ok().map(|envelope| envelope.signer);
        signer != Some(self.signer(id).public())
    }

    /// Forgets what signs for nobody any more.
    pub(super) fn retire_keys(&mut self) {
        let believed: BTreeSet<PublicKey> =
            self.members.records.values().map(|member| self.noted(member)).collect();
        if let Err(error) = self.keys.retire(&believed) {
            log::warn!("{error}: former signing keys are kept");
        }
    }
}

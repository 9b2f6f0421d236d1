//! A device takes the place of another: the box that somebody put where one broke.

use limpet_controller_core::plan;
use limpet_protocol::DeviceId;

use super::audit::Entry;
use super::caller::Caller;
use super::members::{MemberError, Standing};
use super::{Fleet, Table};

/// Why a device does not take another's place.
#[derive(Debug, thiserror::Error)]
pub(in crate::server) enum ReplaceError {
    #[error("a device cannot take its own place")]
    Itself,
    #[error(
        "{0} has not connected as a member of this fleet yet: have it join, approve it where that is \
         asked for, and start its agent"
    )]
    NotThere(DeviceId),
    #[error(transparent)]
    Member(#[from] MemberError),
}

impl Fleet {
    /// Gives `new` the labels of `old`'s token and all that is placed on `old`, which is let in no
    /// more and forgotten but for that.
    pub(in crate::server) fn replace_device(
        &mut self,
        by: &Caller,
        old: &DeviceId,
        new: &DeviceId,
    ) -> Result<(), ReplaceError> {
        if old == new {
            return Err(ReplaceError::Itself);
        }
        let labels = match self.members.records.get(old) {
            Some(member) => member.labels.clone(),
            None => return Err(MemberError::Unknown(old.clone()).into()),
        };
        let not_there = || ReplaceError::NotThere(new.clone());
        let device = self.devices.get_mut(new).ok_or_else(not_there)?;
        let member = self.members.records.get_mut(new);
        let member = member.filter(|member| member.standing == Standing::Member);
        let member = member.ok_or_else(not_there)?;
        member.labels.extend(labels.clone());
        device.record.labels.extend(labels);
        let put = self.store.put(Table::Members, new.as_str(), member);
        self.stored(put);
        self.put_device(new);
        self.audit(
            by,
            Entry {
                action: "device.replace",
                object: format!("device/{old}"),
                after: Some(format!("device/{new}")),
                outcome: "ok".to_owned(),
                ..Entry::default()
            },
        );
        self.set_standing(by, old, Standing::Revoked)?;
        self.forget_record(old);
        self.note("device-replaced", Some(old), format!("by {new}"));
        for name in plan::hand_over(&mut self.deployments, old, new) {
            self.put_deployed(&name);
        }
        self.publish_desired(new);
        self.place_all();
        Ok(())
    }
}

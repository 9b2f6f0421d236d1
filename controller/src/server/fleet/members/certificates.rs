//! Certificates of members: made when they ask, and offered over their connection in good time.

use limpet_protocol::{Action, DeviceId, Membership};
use serde_bytes::ByteBuf;

use super::{Fleet, MemberError};
use crate::server::store::Table;

impl Fleet {
    /// Makes a certificate for a member that takes it at once.
    pub(super) fn certify(&mut self, id: &DeviceId) -> Result<Membership, MemberError> {
        let (membership, until_ms) = self.membership(id)?;
        self.certified(id, until_ms);
        Ok(membership)
    }

    /// A member's terms with a new certificate, and when that ends.
    fn membership(&self, id: &DeviceId) -> Result<(Membership, u64), MemberError> {
        let terms = self.members.terms.as_ref().ok_or(MemberError::Insecure)?;
        let unknown = || MemberError::Unknown(id.clone());
        let member = self.members.records.get(id).ok_or_else(unknown)?;
        let lives_ms = terms.certificate_ms;
        let certificate = terms.authority.certify(id, &member.key, self.now_ms, lives_ms)?;
        let membership = Membership {
            controller: self.key.public(),
            roots: vec![terms.authority.root()],
            certificates: vec![ByteBuf::from(certificate)],
            brokers: terms.brokers.clone(),
            servers: terms.servers.clone(),
            broker_roots: terms.broker_roots.clone(),
        };
        Ok((membership, self.now_ms.saturating_add(lives_ms)))
    }

    /// A member has a certificate that ends then.
    fn certified(&mut self, id: &DeviceId, until_ms: u64) {
        if let Some(member) = self.members.records.get_mut(id) {
            member.certified_until_ms = until_ms;
            let put = self.store.put(Table::Members, id.as_str(), member);
            self.stored(put);
        }
    }

    /// Renews certificates that have lived half their life, over the device's connection.
    pub(in crate::server::fleet) fn renew_certificate(&mut self, id: &DeviceId) {
        let Some(terms) = &self.members.terms else { return };
        let Ok(Some(member)) = self.admitted(id) else { return };
        let left_ms = member.certified_until_ms.saturating_sub(self.now_ms);
        if left_ms > terms.certificate_ms / 2 {
            return;
        }
        match self.membership(id) {
            Ok((membership, until_ms)) => {
                let number = self.command(id, Action::Membership(Box::new(membership)));
                let offered = number.map(|number| (number, until_ms));
                offered.map(|offered| self.members.offered.insert(id.clone(), offered));
            }
            Err(error) => log::error!("device {id}: {error}"),
        }
    }

    /// A member has taken the certificate that it was offered, or says why not.
    pub(in crate::server::fleet) fn took_certificate(
        &mut self,
        id: &DeviceId,
        number: u64,
        error: Option<&str>,
    ) {
        match (self.members.offered.get(id).copied(), error) {
            (Some((offered, until_ms)), None) if offered == number => self.certified(id, until_ms),
            (Some((offered, _)), Some(why)) if offered == number => {
                log::error!("device {id} does not take its new certificate: {why:.512}");
            }
            _ => return,
        }
        self.members.offered.remove(id);
    }
}

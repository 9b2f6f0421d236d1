//! The controller's own certificate: renewed while it serves.

use limpet_controller_core::certificate;

use super::super::Outgoing;
use super::Fleet;
use crate::server::store::Table;

/// The latest time that a device was told, among the settings.
pub(super) const TOLD: &str = "told-ms";

impl Fleet {
    /// Serves with another certificate when half of the present one's life is over.
    pub(in crate::server) fn renew_own(&mut self) {
        let terms = self.members.terms.as_ref();
        let is_due = |terms: &super::Terms| {
            certificate::is_due(self.now_ms, terms.served_until_ms, terms.server_ms)
        };
        if terms.is_some_and(is_due) {
            self.serve_anew();
        }
    }

    /// Devices believe for ever that it is as late as they were told, whatever becomes of the clock:
    /// what they are shown must not end before that.
    pub(in crate::server::fleet) fn tell_time(&mut self) {
        if self.now_ms > self.members.told_ms {
            self.members.told_ms = self.now_ms;
            let put = self.store.put(Table::Settings, TOLD, &self.now_ms);
            self.stored(put);
        }
    }

    /// The latest time of what devices believe and the clock says, in milliseconds.
    pub(in crate::server) fn latest_ms(&self) -> u64 {
        self.now_ms.max(self.members.told_ms)
    }

    /// Serves with another certificate.
    pub(super) fn serve_anew(&mut self) {
        let latest_ms = self.latest_ms();
        let Some(terms) = self.members.terms.as_mut() else { return };
        match terms.authority.serve(latest_ms, terms.server_ms) {
            Ok(served) => {
                terms.served_until_ms = served.until_ms;
                self.to_publish.push(Outgoing::Serve(Box::new(served)));
            }
            Err(error) => log::error!("the controller's own certificate: {error}"),
        }
    }

    /// What was to be served is not: it is tried again at the next look.
    pub(in crate::server) fn not_served(&mut self) {
        if let Some(terms) = self.members.terms.as_mut() {
            terms.served_until_ms = 0;
        }
    }
}

//! The controller's own certificate: renewed while it serves.

use limpet_controller_core::certificate;

use super::super::Outgoing;
use super::Fleet;

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

    /// Serves with another certificate.
    pub(super) fn serve_anew(&mut self) {
        let Some(terms) = self.members.terms.as_mut() else { return };
        match terms.authority.serve(self.now_ms, terms.server_ms) {
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

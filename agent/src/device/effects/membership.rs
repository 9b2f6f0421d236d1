//! Taking over the terms on which the device is a member of its fleet.

use std::rc::Rc;
use std::sync::Arc;

use limpet_agent_core::Message;
use limpet_protocol::Membership;

use super::Shell;
use crate::link::Route;
use crate::state::Identity;
use crate::{join, tls};

impl Shell {
    /// Keeps what the controller has signed, and answers its command when that is on disk.
    pub(super) async fn store_membership(&self, number: u64, membership: Membership) {
        let known = self.identity();
        let member = known.with_membership(membership);
        let error = match (&known.membership, &member.membership) {
            (Some(_), Some(membership)) => match tls::client(membership, &known.key) {
                Ok(_) => self.become_member(member).await.err(),
                Err(error) => Some(format!("its certificates cannot be used: {error}")),
            },
            _ => Some("this device has not joined: it runs with --insecure".to_owned()),
        };
        self.publish(Message::Result { number, error });
    }

    async fn become_member(&self, member: Identity) -> Result<(), String> {
        let (state, stored) = (Arc::clone(&self.state), member.clone());
        let kept = smol::unblock(move || state.store_identity(&stored)).await;
        kept.map_err(|e| e.to_string())?;
        self.believe(member)
    }

    fn believe(&self, member: Identity) -> Result<(), String> {
        self.way.set(Route::of(&member).map_err(|e| e.to_string())?);
        *self.identity.borrow_mut() = Arc::new(member);
        Ok(())
    }

    /// Asks for a new certificate over HTTPS: the broker does not take the one that there is.
    pub(in crate::device) fn renew(self: &Rc<Self>) {
        let shell = Rc::clone(self);
        self.spawn(async move {
            let (state, known) = (Arc::clone(&shell.state), shell.identity());
            let renewed = smol::unblock(move || join::renew(&state, &known)).await;
            match renewed.map_err(|e| e.to_string()).and_then(|member| shell.believe(member)) {
                Ok(()) => log::info!("this device has a new certificate"),
                Err(why) => {
                    log::warn!(
                        "the certificate is not taken any more, and there is no new one: {why}"
                    )
                }
            }
        });
    }
}

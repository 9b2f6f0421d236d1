//! Taking over the terms on which the device is a member of its fleet.

use std::rc::Rc;
use std::sync::Arc;

use limpet_agent_core::Message;
use limpet_protocol::Membership;

use super::super::inbox;
use super::Shell;
use crate::join;
use crate::link::Route;
use crate::state::Identity;

impl Shell {
    /// Keeps what the controller has signed, and answers its command when that is on disk.
    pub(super) async fn store_membership(&self, number: u64, membership: Membership) {
        let _turn = self.memberships.lock().await;
        let known = self.identity();
        let taken = match &known.membership {
            Some(_) => self.take_over(&known, membership).await,
            None => Err("this device has not joined: it runs with --insecure".to_owned()),
        };
        self.publish(Message::Result { number, error: taken.err() });
    }

    async fn take_over(&self, known: &Identity, membership: Membership) -> Result<(), String> {
        let controller = membership.controller;
        let member = known.with_membership(membership);
        let proxies = self.way.get().proxies.clone();
        // Not kept where it leads nowhere: the agent could not begin with it.
        Route::of(&member, proxies).map_err(|e| e.to_string())?;
        if known.controller != Some(controller) {
            let state = Arc::clone(&self.state);
            let stored = smol::unblock(move || state.desired()).await.ok().flatten();
            if stored.is_some_and(|signed| inbox::rests_on_before(known, &signed)) {
                return Err(
                    "what this device holds is signed with the key before its present one: \
                            with another, it could not be proved any more"
                        .to_owned(),
                );
            }
        }
        self.become_member(member).await
    }

    /// On disk when this returns.
    async fn become_member(&self, member: Identity) -> Result<(), String> {
        let (state, stored) = (Arc::clone(&self.state), member.clone());
        let kept = smol::unblock(move || state.store_identity(&stored)).await;
        kept.map_err(|e| e.to_string())?;
        let proxies = self.way.get().proxies.clone();
        self.way.set(Route::of(&member, proxies).map_err(|e| e.to_string())?);
        let controller = member.controller;
        let before = self.identity.replace(Arc::new(member));
        if before.controller != controller {
            self.waning.set(before.controller);
        }
        Ok(())
    }

    /// Asks for a new certificate over HTTPS: the broker does not take the one that there is. Each
    /// connection that fails asks for this; one at a time is enough.
    pub(in crate::device) fn renew(self: &Rc<Self>) {
        if self.renewing.replace(true) {
            return;
        }
        let shell = Rc::clone(self);
        self.spawn(async move {
            let renewed = shell.renewed().await;
            shell.renewing.set(false);
            match renewed {
                Ok(()) => log::info!("this device has a new certificate"),
                Err(why) => {
                    log::warn!(
                        "the certificate is not taken any more, and there is no new one: {why}"
                    )
                }
            }
        });
    }

    async fn renewed(&self) -> Result<(), String> {
        let (asked, route) = (self.identity(), self.way.get());
        let known = Arc::clone(&asked);
        let answer = smol::unblock(move || join::renew(&known, &route.proxies)).await;
        let member = answer.map_err(|e| e.to_string())?;
        let _turn = self.memberships.lock().await;
        // Where the answer was long on its way, what came over the connection meanwhile is newer.
        if Arc::ptr_eq(&asked, &self.identity()) {
            self.become_member(member).await
        } else {
            Ok(())
        }
    }
}

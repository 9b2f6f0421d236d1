//! How everybody else reaches the fleet: with work for its thread.

use std::sync::mpsc::Sender;

use tokio::sync::oneshot;

use super::Fleet;

/// The answer could not be given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(in crate::server) enum CallError {
    /// Nothing was changed.
    #[error("nothing was changed: {0}")]
    Store(String),
    /// The process is ending.
    #[error("the controller is ending")]
    Ending,
}

pub(super) type Answer = Box<dyn FnOnce(Result<(), CallError>) + Send>;
pub(super) type Work = Box<dyn FnOnce(&mut Fleet) -> Option<Answer> + Send>;

/// Hands work to the fleet's thread.
#[derive(Clone)]
pub(in crate::server) struct Handle(pub(super) Sender<Option<Work>>);

impl Handle {
    /// Runs a piece of work; the answer comes when what it changed is on disk.
    pub(in crate::server) async fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Fleet) -> T + Send + 'static,
    ) -> Result<T, CallError> {
        let (sender, receiver) = oneshot::channel();
        let work: Work = Box::new(move |fleet| {
            let value = work(fleet);
            Some(Box::new(move |stored: Result<(), CallError>| {
                // Nobody waits any more: the work is done all the same.
                let _ = sender.send(stored.map(|()| value));
            }))
        });
        self.0.send(Some(work)).map_err(|_| CallError::Ending)?;
        receiver.await.map_err(|_| CallError::Ending)?
    }

    /// Runs a piece of work that nobody waits for.
    pub(in crate::server) fn tell(&self, work: impl FnOnce(&mut Fleet) + Send + 'static) {
        let work: Work = Box::new(move |fleet| {
            work(fleet);
            None
        });
        if self.0.send(Some(work)).is_err() {
            log::debug!("work came after the end");
        }
    }

    /// Ends the thread when it has done what it was given before.
    pub(in crate::server) fn end(&self) {
        if self.0.send(None).is_err() {
            log::debug!("the fleet's thread has ended already");
        }
    }
}

//! Whether both loops of an agent turn: the device's, and the link's, on a thread of its own. The
//! device's beats; a beat that the link's has not taken when the next is due, or that does not come,
//! ends the process, for whoever supervises it to start it again. A supervisor that asks for signs of
//! life (systemd's watchdog) has one for each beat.
//!
//! Beats are counted and no clock is read: in a machine that was suspended, and in a process that was
//! stopped for a while, nobody has missed one.

use std::time::Duration;

use limpet_service::{Supervisor, beat_every};
use rustix::process::{Signal, getpid, kill_process};
use smol::channel::{Receiver, Sender, TrySendError};
use tokio::time::{sleep, timeout};

/// How often, unless a supervisor wants it more often: a device at rest wakes up for each.
const EVERY: Duration = Duration::from_secs(300);
/// How long a last word may take: what hangs may be where it would be written to.
const LAST_WORD: Duration = Duration::from_secs(1);

/// What a loop has stopped turning for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Hung {
    #[error("the link's thread has not moved for {0:?}: ending, to be started again")]
    Link(Duration),
    #[error("the link's thread has ended")]
    NoLink,
}

/// The device's side.
pub(crate) struct Beat {
    /// How often.
    pub(crate) every: Duration,
    beats: Sender<()>,
}

/// The link's side.
pub(crate) struct Beaten {
    every: Duration,
    beats: Receiver<()>,
}

/// The two sides of one agent.
pub(crate) fn pair() -> (Beat, Beaten) {
    let every = beat_every().map_or(EVERY, |asked| asked.min(EVERY));
    let (sender, receiver) = smol::channel::bounded(1);
    (Beat { every, beats: sender }, Beaten { every, beats: receiver })
}

impl Beat {
    /// To be called once in the time of a beat.
    ///
    /// # Errors
    /// When the link's loop has not taken the one before.
    pub(crate) fn beat(&self, supervisor: &Supervisor) -> Result<(), Hung> {
        match self.beats.try_send(()) {
            Ok(()) => {
                supervisor.tell("WATCHDOG=1");
                Ok(())
            }
            Err(TrySendError::Full(())) => Err(Hung::Link(self.every)),
            Err(TrySendError::Closed(())) => Err(Hung::NoLink),
        }
    }
}

impl Beaten {
    /// Takes beats; ends the process where two in a row are late by as much as they are apart.
    pub(crate) async fn follow(self) {
        let mut late = false;
        loop {
            match timeout(self.every * 2, self.beats.recv()).await {
                Ok(Ok(())) => late = false,
                Ok(Err(_)) => return,
                Err(_) if late => return end().await,
                Err(_) => late = true,
            }
        }
    }
}

/// Ends a process whose other threads may be anywhere: no destructor, and no lock, is waited for.
async fn end() {
    let said = std::thread::Builder::new().spawn(|| {
        log::error!("the device's loop has not moved for long: ending, to be started again");
    });
    if said.is_ok() {
        sleep(LAST_WORD).await;
    }
    if let Err(error) = kill_process(getpid(), Signal::KILL) {
        log::error!("cannot end: {error}");
    }
}

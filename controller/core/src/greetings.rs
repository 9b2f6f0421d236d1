//! Which hello of a device is its latest, where somebody carries them who may keep them, repeat them,
//! and let them go late.
//!
//! Within a boot the time since boot orders them. Boots have random names; what orders those is how
//! many events the device had on its disk, since each start records one. Where that says nothing, a
//! boot that another has followed is over.

use std::collections::VecDeque;

use limpet_protocol::{BootId, Hello, OutboxId};
use serde::{Deserialize, Serialize};

use crate::inbox::Cursor;

/// Boots that are remembered to be over.
const OVER_MAX: usize = 32;

/// The hellos of one device that were taken in.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Greetings {
    latest: Option<Greeting>,
    /// The latest of them last.
    over: VecDeque<(BootId, OutboxId)>,
}

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Greeting {
    boot: BootId,
    outbox: OutboxId,
    connection: u64,
    sent_ms: u64,
}

/// Why a hello is not the latest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Outdated {
    /// The same boot has said more since.
    #[error("a hello that was said before, or is older than one that was: somebody repeats it")]
    Repeated,
    /// The device has started anew since.
    #[error("a hello of a boot that is over: somebody repeats it, or let it go late")]
    Boot,
    /// The device has recorded more since than it says.
    #[error(
        "a hello from before events that this device has told since: somebody repeats it, or the \
         device's disk is a copy of an older one. A device is asked to say it again"
    )]
    Events,
}

impl Greetings {
    /// Takes a hello in, where it is later than all before it; `known` is how far the device's outbox
    /// has been taken in.
    ///
    /// # Errors
    /// When it is not later.
    pub fn take(&mut self, hello: &Hello, known: Option<&Cursor>) -> Result<(), Outdated> {
        let Hello { boot, outbox, connection, sent_ms, .. } = *hello;
        let greeting = Greeting { boot, outbox, connection, sent_ms };
        match self.latest {
            Some(latest) if latest.boot == boot => {
                if (connection, sent_ms) <= (latest.connection, latest.sent_ms) {
                    return Err(Outdated::Repeated);
                }
            }
            Some(_) | None => self.is_later(&greeting)?,
        }
        let known = known.filter(|known| known.outbox == outbox).map_or(0, |known| known.events);
        if hello.recorded.is_some_and(|recorded| recorded < known) {
            return Err(Outdated::Events);
        }
        if let Some(before) = self.latest.replace(greeting)
            && (before.boot, before.outbox) != (boot, outbox)
        {
            self.over.push_back((before.boot, before.outbox));
            if self.over.len() > OVER_MAX {
                self.over.pop_front();
            }
        }
        Ok(())
    }

    /// Whether one of another boot than the latest is not known to be over.
    fn is_later(&self, greeting: &Greeting) -> Result<(), Outdated> {
        let outbox = self.latest.map(|latest| latest.outbox);
        let is_over = |(boot, before): &(BootId, OutboxId)| {
            *boot == greeting.boot
                || (*before == greeting.outbox && outbox != Some(greeting.outbox))
        };
        if self.over.iter().any(is_over) { Err(Outdated::Boot) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use limpet_protocol::{Digest, Held, Nonce};

    use super::*;

    fn hello(boot: u8, connection: u64, sent_ms: u64, recorded: u64) -> Hello {
        Hello {
            boot: BootId([boot; 16]),
            connection,
            nonce: Nonce([0; 16]),
            agent_version: "0".try_into().unwrap(),
            features: vec![],
            labels: Default::default(),
            facts: Default::default(),
            held: Held::default(),
            arriving: None,
            reported: Digest([0; 32]),
            outbox: OutboxId([1; 8]),
            keep_alive_s: 600,
            sealing_key: None,
            controller: None,
            sent_ms,
            recorded: Some(recorded),
        }
    }

    fn known(events: u64) -> Cursor {
        Cursor { events, ..Cursor::new(&hello(1, 1, 1, 0)) }
    }

    #[test]
    fn each_hello_counts_once_and_none_counts_after_a_later_one() {
        use Outdated::{Boot, Events, Repeated};
        let mut greetings = Greetings::default();
        let mut take = |hello: Hello, events| greetings.take(&hello, Some(&known(events)));
        assert_eq!(take(hello(1, 10, 10, 5), 5), Ok(()));
        assert_eq!(take(hello(1, 10, 10, 5), 5), Err(Repeated), "the same once more");
        assert_eq!(take(hello(1, 10, 40, 5), 5), Ok(()), "the same connection says it again");
        assert_eq!(take(hello(1, 10, 20, 5), 5), Err(Repeated), "one of it that came late");
        assert_eq!(take(hello(1, 90, 90, 8), 8), Ok(()), "another connection");
        assert_eq!(take(hello(1, 10, 99, 8), 8), Err(Repeated), "the one before it");
        // Nothing of the new boot has been told yet.
        assert_eq!(take(hello(2, 3, 3, 8), 8), Ok(()));
        assert_eq!(take(hello(1, 95, 95, 8), 8), Err(Boot));
        // One of a boot that was never heard, from before what has been told since.
        assert_eq!(take(hello(3, 3, 3, 8), 9), Err(Events));
        let lost = Hello { recorded: None, ..hello(4, 3, 3, 0) };
        assert_eq!(take(lost, 9), Ok(()), "its disk has lost something");
        assert_eq!(take(hello(2, 50, 50, 9), 9), Err(Boot));
    }

    #[test]
    fn an_outbox_that_another_has_followed_is_over_and_all_is_bounded() {
        let mut greetings = Greetings::default();
        let of = |boot, outbox| Hello { outbox: OutboxId([outbox; 8]), ..hello(boot, 1, 1, 0) };
        assert_eq!(greetings.take(&of(1, 1), None), Ok(()));
        assert_eq!(greetings.take(&of(2, 2), None), Ok(()));
        assert_eq!(greetings.take(&of(3, 1), None), Err(Outdated::Boot));
        for boot in 4..200 {
            assert_eq!(greetings.take(&of(boot, 2), None), Ok(()));
        }
        assert_eq!(greetings.over.len(), OVER_MAX);
    }
}

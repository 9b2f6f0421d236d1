//! When to connect again, and how often a silent connection shows that it is alive.

use crate::backoff::Jitter;

/// The first wait after a connection that did not come about, in milliseconds.
const FIRST_MS: u64 = 200;
/// The longest wait: a link that is back is found within two minutes, and one that is not costs
/// less than a megabyte a month.
const LONGEST_MS: u64 = 120_000;
/// Doublings after which the longest wait is reached for certain.
const DOUBLINGS_MAX: u32 = 10;
/// A connection that lasted this long was a good one, in milliseconds.
const STEADY_MS: u64 = 30_000;

/// The waits between connections.
#[derive(Debug)]
pub struct Reconnect {
    failures: u32,
    jitter: Jitter,
}

impl Reconnect {
    /// Any number spreads devices.
    pub fn new(seed: u64) -> Self {
        Self { failures: 0, jitter: Jitter(seed) }
    }

    /// The wait before the first connection: a fleet whose power returns does not come all at once.
    pub fn first_ms(&mut self, spread_ms: u32) -> u64 {
        self.jitter.below(u64::from(spread_ms))
    }

    /// The wait after one that lasted `up_ms`, in milliseconds; None where it did not come about. A
    /// fleet that loses its broker returns within `spread_ms`.
    pub fn wait_ms(&mut self, up_ms: Option<u64>, spread_ms: u32) -> u64 {
        if up_ms.is_some_and(|up_ms| up_ms >= STEADY_MS) {
            self.failures = 0;
        }
        let doublings = self.failures.min(DOUBLINGS_MAX);
        self.failures = self.failures.saturating_add(1);
        let longest = FIRST_MS.checked_shl(doublings).unwrap_or(LONGEST_MS).min(LONGEST_MS);
        let wait = (longest / 2).saturating_add(self.jitter.below(longest / 2));
        match up_ms {
            Some(_) => wait.saturating_add(self.jitter.below(u64::from(spread_ms))),
            None => wait,
        }
    }
}

/// A connection that lasted this long says nothing more of the brokers before its own, in milliseconds.
const FORGET_MS: u64 = 24 * 3_600_000;

/// Whose turn it is among brokers of which the first is the best.
///
/// The one that was reached last is tried first: where a wall keeps a device from the better one, it
/// waits for that once, and again when a connection that lasted a day ends, since walls are moved.
#[derive(Debug, Clone, Copy, Default)]
pub struct Turn {
    at: usize,
}

impl Turn {
    /// The one to try, of so many.
    pub fn of(self, count: usize) -> usize {
        self.at.checked_rem(count).unwrap_or(0)
    }

    /// It was not reached: the next one's turn.
    pub fn failed(&mut self, count: usize) {
        self.at = self.of(count).saturating_add(1);
    }

    /// A connection that it had has ended, after so many milliseconds.
    pub fn ended(&mut self, up_ms: u64) {
        if up_ms >= FORGET_MS {
            self.at = 0;
        }
    }
}

/// Below this a keep-alive is not shortened, in seconds: no NAT in use forgets TCP sooner.
const SHORTEST_S: u16 = 60;
/// A keep-alive that has held for this long may try to be longer, in milliseconds.
const LENGTHEN_AFTER_MS: u64 = 24 * 3_600_000;

/// The keep-alive, as long as what is between device and broker allows.
///
/// A NAT that forgets a silent connection looks like this: no answer to a ping, and the next
/// connection comes about at once. Where it does not, the link was gone, which proves nothing.
#[derive(Debug, Clone, Copy)]
pub struct KeepAlive {
    longest_s: u16,
    current_s: u16,
    /// The last connection fell silent.
    suspected: bool,
    changed_ms: u64,
}

impl KeepAlive {
    /// Begins with the longest, in seconds.
    pub fn new(longest_s: u16) -> Self {
        Self { longest_s, current_s: longest_s, suspected: false, changed_ms: 0 }
    }

    /// For the next connection, in seconds: shorter after one that fell silent.
    pub fn seconds(&self) -> u16 {
        match self.suspected {
            true => (self.current_s / 2).max(SHORTEST_S.min(self.longest_s)),
            false => self.current_s,
        }
    }

    /// A connection got no answer to its sign of life.
    pub fn fell_silent(&mut self) {
        self.suspected = true;
    }

    /// No connection came about.
    pub fn failed(&mut self) {
        self.suspected = false;
    }

    /// A connection came about at `now_ms`.
    pub fn connected(&mut self, now_ms: u64) {
        let held_ms = now_ms.saturating_sub(self.changed_ms);
        let next_s = match (self.suspected, held_ms >= LENGTHEN_AFTER_MS) {
            (true, _) => self.seconds(),
            (false, true) => self.current_s.saturating_mul(2).min(self.longest_s),
            (false, false) => return,
        };
        *self = Self { current_s: next_s, suspected: false, changed_ms: now_ms, ..*self };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_bound_and_are_spread() {
        let mut reconnect = Reconnect::new(1);
        for failures in 0..100 {
            let wait = reconnect.wait_ms(None, 5_000);
            let longest = (FIRST_MS << failures.min(20)).min(LONGEST_MS);
            assert!((longest / 2..=longest).contains(&wait), "{failures}: {wait}");
        }
        let wait = reconnect.wait_ms(Some(STEADY_MS), 0);
        assert!(wait <= FIRST_MS, "{wait}");
    }

    #[test]
    fn a_thousand_devices_return_over_the_whole_window() {
        let waits = (0..1000).map(|seed| Reconnect::new(seed).wait_ms(Some(STEADY_MS), 2_000));
        let mut tenths = std::collections::BTreeMap::new();
        waits.for_each(|wait| *tenths.entry(wait / 200).or_insert(0) += 1);
        let shares = (1..10).map(|tenth| tenths.get(&tenth).copied().unwrap_or(0));
        assert!(shares.min() > Some(50), "{tenths:?}");
    }

    #[test]
    fn the_broker_that_was_reached_is_tried_first_for_a_day() {
        let mut turn = Turn::default();
        assert_eq!(turn.of(2), 0);
        turn.failed(2);
        assert_eq!(turn.of(2), 1, "a wall");
        turn.ended(FORGET_MS - 1);
        assert_eq!(turn.of(2), 1);
        turn.failed(2);
        assert_eq!(turn.of(2), 0, "round again");
        turn.failed(2);
        turn.ended(FORGET_MS);
        assert_eq!(turn.of(2), 0, "walls are moved");
        turn.failed(2);
        assert_eq!((turn.of(1), turn.of(0)), (0, 0), "the list has changed");
    }

    #[test]
    fn a_nat_shortens_the_keep_alive_and_an_outage_does_not() {
        let mut keep_alive = KeepAlive::new(600);
        keep_alive.connected(0);
        assert_eq!(keep_alive.seconds(), 600);
        keep_alive.fell_silent();
        assert_eq!(keep_alive.seconds(), 300);
        keep_alive.failed();
        keep_alive.connected(1);
        assert_eq!(keep_alive.seconds(), 600, "the link was gone");
        for expected in [300, 150, 75, 60, 60] {
            keep_alive.fell_silent();
            keep_alive.connected(2);
            assert_eq!(keep_alive.seconds(), expected);
        }
        keep_alive.connected(LENGTHEN_AFTER_MS + 1);
        assert_eq!(keep_alive.seconds(), 60, "it has not held for a day");
        keep_alive.connected(LENGTHEN_AFTER_MS + 2);
        assert_eq!(keep_alive.seconds(), 120);
        let mut short = KeepAlive::new(5);
        short.fell_silent();
        short.connected(1);
        assert_eq!(short.seconds(), 5);
    }
}

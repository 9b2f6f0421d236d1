//! When to try again: later and later, and never with others at once.

use std::time::{Duration, Instant};

use ring::rand::{SecureRandom, SystemRandom};

const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(30);

/// Waits between connections.
pub(super) struct Pace {
    next: Duration,
    reached: Option<Instant>,
}

impl Pace {
    pub(super) fn new() -> Self {
        Self { next: FIRST, reached: None }
    }

    /// A connection has come about.
    pub(super) fn reached(&mut self) {
        self.reached = Some(Instant::now());
    }

    /// How long to wait: half of it by chance. One that held for a while counts as none that failed.
    pub(super) fn wait(&mut self) -> Duration {
        let held = self.reached.take().is_some_and(|reached| reached.elapsed() > LONGEST);
        let wait = if held { FIRST } else { self.next };
        self.next = (wait * 2).min(LONGEST);
        let mut chance = [128];
        // Without randomness the wait is the middle one.
        let _ = SystemRandom::new().fill(&mut chance);
        wait / 2 + wait.mul_f32(f32::from(chance[0]) / 512.0)
    }
}

//! The controller's clock, and times as people read them.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// A clock that does not jump: it shows the wall clock's time when it was made, and what has passed
/// since.
#[derive(Debug, Clone, Copy)]
pub(super) struct Steady {
    began: Instant,
    began_ms: u64,
}

impl Steady {
    pub(super) fn new() -> Self {
        Self { began: Instant::now(), began_ms: now_ms() }
    }

    pub(super) fn now_ms(&self) -> u64 {
        let passed = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.began_ms.saturating_add(passed)
    }
}

/// Milliseconds since 1970.
pub(super) fn now_ms() -> u64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
}

/// RFC 3339, UTC, to the millisecond.
pub(super) fn rfc3339(ms: u64) -> Option<String> {
    let time = jiff::Timestamp::from_millisecond(i64::try_from(ms).ok()?).ok()?;
    Some(format!("{time:.3}"))
}

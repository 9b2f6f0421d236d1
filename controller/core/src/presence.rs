//! Whether a device is there, as far as this controller can know.

use std::fmt;

/// A controller that has just begun has heard nobody: until a device could have spoken, or this
/// long has passed, in milliseconds, nothing is assumed of it. One and a half keep-alives.
pub const GRACE_MS: u64 = 900_000;

/// Whether a device is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Presence {
    /// It is connected.
    Online,
    /// Not heard since this controller began, and it has had no time to speak.
    Unknown,
    /// It is not connected.
    Offline,
}

impl Presence {
    /// What is known of a device that is connected or not, of which this controller has heard that
    /// it went, or nothing, `age_ms` after it began.
    pub fn of(connected: bool, went: bool, age_ms: u64) -> Self {
        match (connected, went) {
            (true, _) => Self::Online,
            (false, false) if age_ms < GRACE_MS => Self::Unknown,
            (false, _) => Self::Offline,
        }
    }
}

impl fmt::Display for Presence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Online => "online",
            Self::Unknown => "unknown",
            Self::Offline => "offline",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_assumed_of_who_could_not_speak_yet() {
        assert_eq!(Presence::of(true, false, 0), Presence::Online);
        assert_eq!(Presence::of(false, true, 0), Presence::Offline);
        assert_eq!(Presence::of(false, false, GRACE_MS - 1), Presence::Unknown);
        assert_eq!(Presence::of(false, false, GRACE_MS), Presence::Offline);
    }
}

//! Whether a device is there, as far as this controller can know.
//!
//! Time is that of a clock that does not jump, in milliseconds. What is stored counts by the wall
//! clock; [`Presence::moved`] carries it from one to the other.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A device that could return takes this long at most: its longest wait between two tries, and the
/// time to connect.
const RETURN_MS: u64 = 150_000;

/// Devices that return together are let in at this rate, in devices per second.
const RETURNS_PER_S: u64 = 500;

/// Whether a device is there.
///
/// ```text
///              hello                         hello
///   Unknown ───────────▶ Online ◀───────────────────────────┐
///      │                  │  │ goes            │            │
///      │ could have       │  └──────────┐      │            │
///      │ spoken           │ announces   ▼      │            │
///      └──────────────────┼────────▶ Offline ──┴──────▶ Lost ┘
///                         ▼             ▲     too long
///                       Asleep ─────────┘
///                          did not return in time
///
///   Online ── nobody is heard any more ──▶ Unknown
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Presence {
    /// Not heard since this controller began, or found its broker again, and it has had no time to
    /// speak.
    Unknown {
        /// When the controller began to listen.
        since_ms: u64,
    },
    /// It is connected.
    Online {
        /// When it connected.
        since_ms: u64,
    },
    /// It has announced that it goes, and for how long.
    Asleep {
        /// When it announced that.
        since_ms: u64,
        /// For how long, in milliseconds.
        for_ms: u64,
    },
    /// It is not connected.
    Offline {
        /// When it went, or should have returned.
        since_ms: u64,
    },
    /// It is offline for longer than the operator puts up with.
    Lost {
        /// When it went, or should have returned.
        since_ms: u64,
    },
}

/// What changes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// It has said hello.
    Hello,
    /// It goes, and returns after this long, in milliseconds.
    Sleeps(u64),
    /// Its connection is gone.
    Gone,
    /// Nobody is heard any more: whether it is there is not known.
    Nobody,
    /// Nothing; time has passed.
    Nothing,
}

/// How long a device is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// A device that is there has been heard after this long, in milliseconds.
    pub grace_ms: u64,
    /// One that is offline for this long is lost, in milliseconds.
    pub lost_after_ms: u64,
}

impl Patience {
    /// For a device with this keep-alive (MQTT 5.0 section 3.1.2.10: it is gone after one and a
    /// half of it), in a fleet of this size.
    pub fn new(keep_alive_s: u16, devices: usize, lost_after_ms: u64) -> Self {
        let keep_alive_ms = u64::from(keep_alive_s).saturating_mul(1500);
        let spread_ms = u64::from(reconnect_spread_ms(devices));
        let grace_ms = keep_alive_ms.saturating_add(RETURN_MS).saturating_add(spread_ms);
        Self { grace_ms, lost_after_ms }
    }
}

/// Devices that lose their connection together return over this window, in milliseconds: a power
/// of two, so that a fleet that grows by a device does not change it.
pub fn reconnect_spread_ms(devices: usize) -> u32 {
    let spread_ms = u64::try_from(devices).unwrap_or(u64::MAX).saturating_mul(1000) / RETURNS_PER_S;
    let spread_ms = spread_ms.checked_next_power_of_two().unwrap_or(u64::MAX);
    u32::try_from(spread_ms).unwrap_or(u32::MAX)
}

/// A time by another clock, which shows `to_ms` where this one shows `from_ms`. What would lie in the
/// future, since a wall clock has gone back, is then.
pub fn moved_ms(at_ms: u64, from_ms: u64, to_ms: u64) -> u64 {
    to_ms.saturating_sub(from_ms.saturating_sub(at_ms))
}

impl Presence {
    /// What follows.
    #[must_use]
    pub fn next(self, now_ms: u64, heard: Heard, patience: Patience) -> Self {
        match (self, heard) {
            (Self::Online { .. }, Heard::Hello) => self,
            (
                Self::Unknown { .. }
                | Self::Asleep { .. }
                | Self::Offline { .. }
                | Self::Lost { .. },
                Heard::Hello,
            ) => Self::Online { since_ms: now_ms },
            (
                Self::Unknown { .. }
                | Self::Online { .. }
                | Self::Asleep { .. }
                | Self::Offline { .. }
                | Self::Lost { .. },
                Heard::Sleeps(for_ms),
            ) => Self::Asleep { since_ms: now_ms, for_ms },
            (Self::Unknown { .. } | Self::Online { .. }, Heard::Gone) => {
                Self::Offline { since_ms: now_ms }
            }
            // One that has announced that it goes is gone as announced.
            (Self::Asleep { .. } | Self::Offline { .. } | Self::Lost { .. }, Heard::Gone) => self,
            // Its time to speak begins anew.
            (Self::Online { .. } | Self::Unknown { .. }, Heard::Nobody) => {
                Self::Unknown { since_ms: now_ms }
            }
            (Self::Asleep { .. } | Self::Offline { .. } | Self::Lost { .. }, Heard::Nobody) => self,
            (_, Heard::Nothing) => self.later(now_ms, patience),
        }
    }

    fn later(self, now_ms: u64, patience: Patience) -> Self {
        if self.due_ms(patience).is_none_or(|due_ms| now_ms < due_ms) {
            return self;
        }
        match self {
            Self::Online { .. } | Self::Lost { .. } => self,
            Self::Unknown { since_ms } => Self::Offline { since_ms }.later(now_ms, patience),
            Self::Asleep { since_ms, for_ms } => {
                let since_ms = since_ms.saturating_add(for_ms);
                Self::Offline { since_ms }.later(now_ms, patience)
            }
            Self::Offline { since_ms } => Self::Lost { since_ms },
        }
    }

    /// When time changes it.
    pub fn due_ms(self, patience: Patience) -> Option<u64> {
        let Patience { grace_ms, lost_after_ms } = patience;
        match self {
            Self::Online { .. } | Self::Lost { .. } => None,
            Self::Unknown { since_ms } => Some(since_ms.saturating_add(grace_ms)),
            Self::Asleep { since_ms, for_ms } => {
                Some(since_ms.saturating_add(for_ms).saturating_add(grace_ms))
            }
            Self::Offline { since_ms } => Some(since_ms.saturating_add(lost_after_ms)),
        }
    }

    /// Since when it is so.
    pub fn since_ms(self) -> u64 {
        match self {
            Self::Unknown { since_ms }
            | Self::Online { since_ms }
            | Self::Asleep { since_ms, .. }
            | Self::Offline { since_ms }
            | Self::Lost { since_ms } => since_ms,
        }
    }

    /// What a restart of the controller must find. Of a device that is connected it finds nothing:
    /// a fleet at rest writes nothing.
    pub fn to_store(self) -> Option<Self> {
        match self {
            Self::Unknown { .. } | Self::Online { .. } => None,
            Self::Asleep { .. } | Self::Offline { .. } | Self::Lost { .. } => Some(self),
        }
    }

    /// The same by another clock; see [`moved_ms`].
    #[must_use]
    pub fn moved(self, from_ms: u64, to_ms: u64) -> Self {
        let moved = |since_ms| moved_ms(since_ms, from_ms, to_ms);
        match self {
            Self::Unknown { since_ms } => Self::Unknown { since_ms: moved(since_ms) },
            Self::Online { since_ms } => Self::Online { since_ms: moved(since_ms) },
            Self::Asleep { since_ms, for_ms } => Self::Asleep { since_ms: moved(since_ms), for_ms },
            Self::Offline { since_ms } => Self::Offline { since_ms: moved(since_ms) },
            Self::Lost { since_ms } => Self::Lost { since_ms: moved(since_ms) },
        }
    }

    /// Whether it is connected.
    pub fn is_online(self) -> bool {
        matches!(self, Self::Online { .. })
    }

    /// Where new workloads go first, lowest first. One that has had no time to speak is as good as
    /// one that is there: else all would land on whichever was quickest to return.
    pub fn rank(self) -> u8 {
        match self {
            Self::Online { .. } | Self::Unknown { .. } => 0,
            Self::Asleep { .. } => 1,
            Self::Offline { .. } => 2,
            Self::Lost { .. } => 3,
        }
    }
}

impl fmt::Display for Presence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Online { .. } => "online",
            Self::Unknown { .. } => "unknown",
            Self::Asleep { .. } => "asleep",
            Self::Offline { .. } => "offline",
            Self::Lost { .. } => "lost",
        })
    }
}

//! The device's clocks, read at the process edge only.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use limpet_protocol::BootId;
use rustix::time::{ClockId, clock_gettime};

/// It is later than this, in milliseconds since 1970: a board without a real-time clock begins in
/// 1970 after every power cut.
static FLOOR_MS: AtomicU64 = AtomicU64::new(0);

/// A wall clock, in seconds since 1970, in place of the machine's: it begins with the process. To
/// try what a wrong clock does.
const WALL_CLOCK: &str = "LIMPET_WALL_CLOCK_S";

/// What another process of this device is told of its wall clock, in its environment.
pub fn told() -> Option<(&'static str, String)> {
    Some((WALL_CLOCK, std::env::var(WALL_CLOCK).ok()?))
}

/// Milliseconds since boot, time asleep included: never set, never goes back.
pub fn boot_ms() -> u64 {
    millis(clock_gettime(ClockId::Boottime))
}

/// Milliseconds since 1970, as far as the device knows.
pub fn wall_ms() -> u64 {
    static BEGUN: OnceLock<Option<(u64, u64)>> = OnceLock::new();
    let begun = BEGUN.get_or_init(|| {
        let seconds: u64 = std::env::var(WALL_CLOCK).ok()?.parse().ok()?;
        Some((seconds.saturating_mul(1000), boot_ms()))
    });
    let now = match begun {
        Some((wall_ms, at_ms)) => wall_ms.saturating_add(boot_ms().saturating_sub(*at_ms)),
        None => millis(clock_gettime(ClockId::Realtime)),
    };
    now.max(FLOOR_MS.load(Ordering::Relaxed))
}

/// It is later than this, in milliseconds since 1970, whatever the machine's clock says.
pub fn floor_ms() -> u64 {
    FLOOR_MS.load(Ordering::Relaxed)
}

/// It is at least this late, in milliseconds since 1970. Told by what was signed, never by the
/// machine's own clock: one that was wrong for a moment would be believed for ever.
pub fn raise_floor(floor_ms: u64) {
    FLOOR_MS.fetch_max(floor_ms, Ordering::Relaxed);
}

fn millis(time: rustix::time::Timespec) -> u64 {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds * 1000 + u64::try_from(time.tv_nsec).unwrap_or(0) / 1_000_000
}

/// The kernel's name for this boot; a fixed one where the kernel gives none.
pub fn boot_id() -> BootId {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .ok()
        .and_then(|text| text.trim().replace('-', "").parse().ok())
        .unwrap_or(BootId([0; 16]))
}

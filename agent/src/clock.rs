//! The device's clocks, read at the process edge only.

use limpet_protocol::BootId;
use rustix::time::{ClockId, clock_gettime};

/// Milliseconds since boot, time asleep included: never set, never goes back.
pub fn boot_ms() -> u64 {
    millis(clock_gettime(ClockId::Boottime))
}

/// Milliseconds since 1970, as far as the device knows.
pub fn wall_ms() -> u64 {
    millis(clock_gettime(ClockId::Realtime))
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

//! What the kernel has counted of a process.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

/// Proportional set size, in KiB.
pub(crate) fn pss(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse().unwrap()
}

/// How often its threads were given a processor.
pub(crate) fn switches(pid: u32) -> u64 {
    let status = threads(pid).map(|thread| fs::read_to_string(thread.join("status")).unwrap());
    let count = |status: String| -> u64 {
        let lines = status.lines().filter_map(|line| line.split_once("ctxt_switches:"));
        lines.map(|(_, count)| count.trim().parse::<u64>().unwrap()).sum()
    };
    status.map(count).sum()
}

/// The time that its threads had a processor (Documentation/scheduler/sched-stats).
pub(crate) fn cpu(pid: u32) -> Duration {
    let spent = threads(pid).map(|thread| {
        let text = fs::read_to_string(thread.join("schedstat")).unwrap();
        text.split_whitespace().next().unwrap().parse::<u64>().unwrap()
    });
    Duration::from_nanos(spent.sum())
}

fn threads(pid: u32) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten().map(|entry| entry.path())
}

//! Processes, named so that a number used again is never taken for the one before.

use std::os::fd::OwnedFd;

use rustix::process::{Pid, PidfdFlags, Signal as RawSignal, pidfd_open, pidfd_send_signal};

use super::order::Process;

/// A process by its number, as it is at this moment; None where there is none.
pub(super) fn look(pid: u32) -> Option<Process> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command's name is in parentheses and may hold anything: what follows the last one counts.
    let (_, rest) = stat.rsplit_once(')')?;
    let start = rest.split_whitespace().nth(19)?.parse().ok()?;
    Some(Process { pid, start })
}

/// A handle on exactly this process; None where it is gone and reaped.
pub(super) fn open(process: Process) -> Option<OwnedFd> {
    let pid = Pid::from_raw(i32::try_from(process.pid).ok()?)?;
    let fd = pidfd_open(pid, PidfdFlags::empty()).ok()?;
    // Opened first, looked at second: the handle is on the process that was seen.
    (look(process.pid) == Some(process)).then_some(fd)
}

/// Sends a signal; a process that is gone needs none.
pub(super) fn signal(process: Process, signal: i32) -> std::io::Result<()> {
    let Some(fd) = open(process) else {
        return Ok(());
    };
    let raw = RawSignal::from_named_raw(signal)
        .ok_or_else(|| std::io::Error::from(std::io::ErrorKind::InvalidInput))?;
    match pidfd_send_signal(fd, raw) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

//! Processes, named so that a number used again is never taken for the one before.

use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

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

/// How long processes that were killed may take to end.
const END_WAIT: Duration = Duration::from_secs(2);

/// Kills the shim that is at making the container of this folder, and the processes that it has
/// cloned: until a container's own program runs they all go by the shim's command line. A shim that
/// is killed alone leaves those behind, and they wait for it for ever.
pub(super) fn end_makers(folder: &Path) -> std::io::Result<()> {
    let tail = [b"\0shim\0", folder.as_os_str().as_bytes(), b"\0"].concat();
    let deadline = Instant::now() + END_WAIT;
    loop {
        let makers = with_command_line(&tail)?;
        if makers.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(std::io::ErrorKind::TimedOut.into());
        }
        for maker in makers {
            signal(maker, 9)?;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The processes whose command line ends with these bytes; one that has ended has none.
fn with_command_line(tail: &[u8]) -> std::io::Result<Vec<Process>> {
    let entries = std::fs::read_dir("/proc")?.flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    // Looked at first, read second, so that a number used again is not taken for the one before.
    let found = pids.filter_map(look).filter(|process| {
        let line = std::fs::read(format!("/proc/{}/cmdline", process.pid)).unwrap_or_default();
        line.ends_with(tail)
    });
    Ok(found.collect())
}

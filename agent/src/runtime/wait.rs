//! The waiting shim: moves a container's output into its log, waits for its end, records it.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::path::PathBuf;

use limpet_protocol::{Exit, LogStream};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, pidfd_open, waitid};

use super::order::{self, ExitRecord};
use crate::clock;
use crate::logs::ring::Writer;

/// Read from a pipe at once.
const READ_BYTES: usize = 8 * 1024;

/// What is read of each pipe after the end, at most: a pipe holds 64 KiB, and a process that was
/// left behind could write for ever.
const DRAIN_BYTES_MAX: usize = 256 * 1024;

/// One of the container's pipes.
struct Source {
    stream: LogStream,
    file: Option<File>,
}

/// What the shim passes on.
pub struct Waited {
    /// The container's run folder.
    pub folder: PathBuf,
    /// Its main process.
    pub pid: i32,
    /// The numbers of its pipes.
    pub stdout: i32,
    /// The same.
    pub stderr: i32,
    /// The folder of its log.
    pub logs: PathBuf,
}

/// Waits for a container.
pub fn run(waited: &Waited) -> std::process::ExitCode {
    match wait(waited) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        // The next look at the folder finds no exit and says that the end was not seen.
        Err(_) => std::process::ExitCode::FAILURE,
    }
}

fn wait(waited: &Waited) -> std::io::Result<()> {
    let pipes = [(LogStream::Stdout, waited.stdout), (LogStream::Stderr, waited.stderr)];
    let mut sources = pipes.map(|(stream, fd)| {
        #[expect(unsafe_code, reason = "the shim passes its pipes on by number")]
        // SAFETY: the shim that became this process opened these descriptors, cleared their
        // close-on-exec flag and handed them over; nothing else in this process knows them.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Source { stream, file: Some(File::from(fd)) }
    });
    for source in &sources {
        if let Some(file) = &source.file {
            rustix::io::ioctl_fionbio(file, true)?;
        }
    }
    let pid = Pid::from_raw(waited.pid).ok_or(std::io::ErrorKind::InvalidInput)?;
    let main = pidfd_open(pid, PidfdFlags::empty())?;
    let mut log = Writer::open(&waited.logs);
    while !look(&main, &mut sources, &mut log)? {}
    let exit = reap(&main)?;
    for source in &mut sources {
        drain(source, &mut log);
    }
    log.finish();
    order::write(&waited.folder.join("exit"), &ExitRecord { exit, at_ms: clock::boot_ms() })
}

/// Sleeps until something happens and moves what was written; true once the main process has ended.
fn look(main: &OwnedFd, sources: &mut [Source; 2], log: &mut Writer) -> std::io::Result<bool> {
    let ready = {
        let mut fds = vec![PollFd::new(main, PollFlags::IN)];
        let open = sources.iter().filter_map(|source| source.file.as_ref());
        fds.extend(open.map(|file| PollFd::from_borrowed_fd(file.as_fd(), PollFlags::IN)));
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        fds.first().is_some_and(|fd| !fd.revents().is_empty())
    };
    for source in sources {
        move_some(source, log);
    }
    Ok(ready)
}

/// Moves one read's worth; false where there is nothing more to read by now.
fn move_some(source: &mut Source, log: &mut Writer) -> bool {
    let Some(file) = &mut source.file else {
        return false;
    };
    let mut buffer = [0; READ_BYTES];
    match file.read(&mut buffer) {
        Ok(0) => source.file = None,
        Ok(read) => {
            log.write(source.stream, &buffer[..read], clock::wall_ms());
            return true;
        }
        Err(e) if e.kind() == std::io::ErrorKind::Interrupted => return true,
        Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
        Err(_) => source.file = None,
    }
    false
}

fn drain(source: &mut Source, log: &mut Writer) {
    for _ in 0..DRAIN_BYTES_MAX / READ_BYTES {
        if !move_some(source, log) {
            return;
        }
    }
}

fn reap(main: &OwnedFd) -> std::io::Result<Exit> {
    loop {
        match waitid(WaitId::PidFd(main.as_fd()), WaitIdOptions::EXITED) {
            Ok(Some(status)) => {
                let byte = |number: i32| u8::try_from(number).ok();
                let code = status.exit_status().and_then(byte).map(Exit::Code);
                let signal = status.terminating_signal().and_then(byte).map(Exit::Signal);
                return Ok(code.or(signal).unwrap_or(Exit::Unknown));
            }
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

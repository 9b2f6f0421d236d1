//! A thread that hangs: it is stopped as a debugger stops it, the others of its process go on.

use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::eventually;

/// A thread that does not move any more. To be used on one thread of the test: that is its debugger.
pub struct Hung(Pid);

impl Hung {
    /// Stops the thread of a process that has this name (comm, proc(5)).
    pub fn thread(pid: u32, name: &str) -> Self {
        let is_it = |thread: &std::fs::DirEntry| {
            std::fs::read_to_string(thread.path().join("comm"))
                .is_ok_and(|comm| comm.trim() == name)
        };
        let found = eventually(&format!("a thread {name} in {pid}"), || {
            let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
            threads.into_iter().find(is_it)
        });
        let thread = Pid::from_raw(found.file_name().to_str().unwrap().parse().unwrap());
        ptrace::seize(thread, ptrace::Options::empty()).unwrap();
        ptrace::interrupt(thread).unwrap();
        waitpid(thread, Some(WaitPidFlag::__WALL)).unwrap();
        Self(thread)
    }

    /// Waits until its process has ended; for the first thread of a child of the test, that is for the
    /// child's owner.
    pub fn until_ended(self) {
        let flags = WaitPidFlag::WNOHANG | WaitPidFlag::__WALL;
        eventually("the end of a thread that hangs", || match waitpid(self.0, Some(flags)) {
            Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) | Err(Errno::ECHILD) => Some(()),
            Ok(_) | Err(_) => None,
        });
    }
}

//! Programs that run beside a test and end with it.

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::{eventually_or, last_lines};

/// A program in the background, its output in a file.
pub struct Process {
    child: Child,
    log: PathBuf,
}

/// What a program that has ended leaves.
#[derive(Debug)]
pub struct Output {
    /// Exit status; -1 where a signal ended it.
    pub status: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Process {
    /// Starts a program; `log` takes its output, behind what is there. The kernel kills it should
    /// the test die without a chance to.
    pub fn start(log: &Path, program: &Path, args: &[&str]) -> Self {
        let file = File::options().create(true).append(true).open(log).unwrap();
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(program).args(args);
        command.stdin(Stdio::null()).stderr(file.try_clone().unwrap());
        let child = command.stdout(file).spawn();
        Self {
            child: child.unwrap_or_else(|e| panic!("{}: {e}", program.display())),
            log: log.to_owned(),
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything it has said so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// The end of what it said, under its file's name.
    pub fn tail(&self) -> String {
        format!("{}:\n{}", self.log.display(), last_lines(&self.log, 30))
    }

    /// Waits until it has said this.
    pub fn until_said(&mut self, what: &str) {
        let log = self.log.clone();
        let child = &mut self.child;
        let said =
            || String::from_utf8_lossy(&std::fs::read(&log).unwrap_or_default()).into_owned();
        eventually_or(
            &format!("{what:?} in {}", log.display()),
            || {
                let ended = child.try_wait().unwrap();
                let found = said().contains(what);
                assert!(found || ended.is_none(), "ended ({ended:?}) with:\n{}", said());
                found.then_some(())
            },
            said,
        );
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().cast_signed()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Whether it has not ended.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits for its own end.
    pub fn wait(&mut self) -> ExitStatus {
        let tail = self.tail();
        eventually_or("the end of a program", || self.child.try_wait().unwrap(), || tail)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Runs a program to its end.
pub fn output<S: AsRef<OsStr>>(program: impl AsRef<OsStr>, args: &[S]) -> Output {
    let done = Command::new(&program).args(args).stdin(Stdio::null()).output();
    let done = done.unwrap_or_else(|e| panic!("{}: {e}", program.as_ref().display()));
    Output {
        status: done.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&done.stdout).into_owned(),
        err: String::from_utf8_lossy(&done.stderr).into_owned(),
    }
}

/// Runs a program that must succeed; gives what it printed.
pub fn run<S: AsRef<OsStr>>(program: impl AsRef<OsStr>, args: &[S]) -> String {
    let done = output(&program, args);
    assert_eq!(done.status, 0, "{}: {done:?}", program.as_ref().display());
    done.out
}

//! What the kernel has counted of a process.

use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

/// Proportional set size in KiB: what is mapped by several counts for each in part.
#[derive(Clone, Copy, Default)]
pub(crate) struct Pss {
    /// The program's file, as it is on disk: the kernel may drop it and read it again.
    pub(crate) program: u64,
    /// The same of libraries.
    pub(crate) libraries: u64,
    /// What was written: relocated data, heap, stacks.
    pub(crate) written: u64,
}

impl Pss {
    pub(crate) fn of(pid: u32) -> Self {
        let program = fs::read_link(format!("/proc/{pid}/exe")).unwrap();
        let program = program.to_string_lossy();
        let mut pss = Self::default();
        let mut path = String::new();
        for line in fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap().lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let kib = |words: &[&str]| words.get(1).and_then(|word| word.parse::<u64>().ok());
            match words.first() {
                Some(&"Pss:") if path.starts_with(&*program) => pss.program += kib(&words).unwrap(),
                Some(&"Pss:") if path.starts_with('/') => pss.libraries += kib(&words).unwrap(),
                Some(&"Pss:") => pss.written += kib(&words).unwrap(),
                Some(&"Anonymous:") if path.starts_with('/') => {
                    let own = kib(&words).unwrap();
                    let of = path.starts_with(&*program);
                    let file = if of { &mut pss.program } else { &mut pss.libraries };
                    *file = file.saturating_sub(own);
                    pss.written += own;
                }
                Some(word) if !word.ends_with(':') => {
                    path = words.get(5..).unwrap_or_default().join(" ");
                }
                Some(_) | None => {}
            }
        }
        pss
    }

    pub(crate) fn total(&self) -> u64 {
        self.program + self.libraries + self.written
    }
}

impl std::iter::Sum for Pss {
    fn sum<I: Iterator<Item = Self>>(each: I) -> Self {
        each.fold(Self::default(), |sum, one| Self {
            program: sum.program + one.program,
            libraries: sum.libraries + one.libraries,
            written: sum.written + one.written,
        })
    }
}

impl fmt::Display for Pss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [total, program, libraries, written] =
            [self.total(), self.program, self.libraries, self.written]
                .map(|kib| kib as f64 / 1024.0);
        write!(
            f,
            "{total:.2} MB (program {program:.2}, libraries {libraries:.2}, written {written:.2})"
        )
    }
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

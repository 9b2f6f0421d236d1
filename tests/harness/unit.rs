//! Units of `systemd/`, run by a systemd of the test's own in namespaces of its own.

use std::path::{Path, PathBuf};

use crate::agent::{clear, hierarchies};
use crate::{Lab, Process, eventually, processes_with, program, run};

/// A unit that runs, until it is dropped.
pub struct Unit {
    name: String,
    group: Group,
}

/// What a unit is told.
#[derive(Debug, Default)]
pub struct Told {
    /// The flags of a controller.
    pub flags: String,
    /// The configuration of an agent.
    pub config: String,
    /// A further line of the unit's section Service.
    pub service: &'static str,
}

/// The control group that all of it is in.
struct Group(PathBuf);

impl Drop for Group {
    fn drop(&mut self) {
        // A second panic would end the whole test program.
        let _ = std::panic::catch_unwind(|| clear(&self.0));
    }
}

impl Unit {
    /// Starts `NAME.service`, whose program is `binary`; gives the systemd that runs it, with the
    /// program's output, too. None where this machine has no systemd, or no cgroup v2.
    pub fn start(lab: &Lab, name: &str, binary: &str, told: &Told) -> Option<(Process, Self)> {
        let unified =
            hierarchies().into_iter().find(|at| at.join("cgroup.controllers").exists())?;
        if !Path::new("/lib/systemd/systemd").exists() {
            return None;
        }
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/harness/unit.sh");
        let unit = format!("{}/../systemd/{name}.service", env!("CARGO_MANIFEST_DIR"));
        let group = unified.join(lab.name(name));
        let log = lab.path(&format!("{name}.log"));
        let config = lab.file(&format!("{name}.toml"), &told.config);
        let [place, binary, said, config] =
            [&group, &program(binary), &log, &config].map(|path| path.display().to_string());
        let words = [script, &place, &unit, &binary, &said, &told.flags, &config, told.service];
        let process = Process::start(&log, "sh".as_ref(), &words);
        Some((process, Self { name: format!("{name}.service"), group: Group(group) }))
    }

    /// Asks its systemd for something: `systemctl VERB... UNIT`; gives what it answers.
    pub fn systemctl(&self, verb: &[&str]) -> String {
        let inside =
            || processes_with("limpet-test.target").into_iter().find(|pid| self.holds(*pid));
        let pid = eventually("a systemd", inside).to_string();
        let words = [&["-t", &pid, "-a", "systemctl"], verb, &[&self.name]].concat();
        run("nsenter", &words)
    }

    /// Its main process, whose command line begins like this, where that is not `before`.
    pub fn main(&self, command: &str, before: Option<u32>) -> u32 {
        eventually("the unit's main process", || {
            let own = processes_with(command).into_iter().filter(|pid| self.holds(*pid));
            own.map(i32::cast_unsigned).find(|pid| Some(*pid) != before)
        })
    }

    /// Whether a process is in it.
    pub fn holds(&self, pid: i32) -> bool {
        let own = self.group.0.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        groups.contains(&format!("/{own}/"))
    }
}

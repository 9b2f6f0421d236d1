//! A real `limpet-agent run` with folders and a control group of its own.

use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, kill_process};

use crate::process::Output;
use crate::{Lab, Process, Registry, eventually, output, processes_with, program};

/// A device.
pub struct Agent {
    /// Its id.
    pub id: String,
    /// The program.
    pub process: Process,
    /// What survives a reboot.
    pub data: PathBuf,
    /// Containers and their logs.
    pub run: PathBuf,
    /// The control group above its containers.
    pub cgroup: String,
    /// Its configuration file.
    pub config: PathBuf,
    broker: String,
    log: PathBuf,
}

impl Agent {
    /// A device that knows `registry` as the mirror of `docker.io`, with the label `name=ID`.
    pub fn start(lab: &Lab, id: &str, broker: &str, registry: &Registry) -> Self {
        let host = &registry.host;
        let config = format!(
            "keep_alive_s = 6\n[labels]\nname = \"{id}\"\n\
             [registries.mirrors]\n\"docker.io\" = [\"{host}\"]\n"
        );
        Self::with_config(lab, id, broker, &config)
    }

    /// A device with a configuration file of these lines.
    pub fn with_config(lab: &Lab, id: &str, broker: &str, config: &str) -> Self {
        let data = lab.path(&format!("{id}.data"));
        let run = lab.in_memory(&format!("{id}.run"));
        let config = lab.file(&format!("{id}.toml"), config);
        let cgroup = format!("/{}", lab.name(id));
        let log = lab.path(&format!("{id}.log"));
        let process = launch(&log, id, broker, [&data, &run, &config], &cgroup);
        Self {
            id: id.to_owned(),
            process,
            data,
            run,
            cgroup,
            config,
            broker: broker.to_owned(),
            log,
        }
    }

    /// SIGKILL, as when memory runs out; its containers go on.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts the program again.
    pub fn restart(&mut self) {
        let folders = [&self.data, &self.run, &self.config];
        self.process = launch(&self.log, &self.id, &self.broker, folders, &self.cgroup);
    }

    /// A verb of `limpet-agent` on its own machine.
    pub fn ask(&self, args: &[&str]) -> Output {
        let run = self.run.display().to_string();
        let args: Vec<&str> = args.iter().copied().chain(["--run-dir", &run]).collect();
        output(program("limpet-agent"), &args)
    }

    /// The same, and it must succeed; gives what it printed.
    pub fn ask_ok(&self, args: &[&str]) -> String {
        let done = self.ask(args);
        assert_eq!(done.status, 0, "limpet-agent {args:?}: {done:?}\n{}", self.process.tail());
        done.out
    }

    /// The shims that are there, by pid.
    pub fn shims(&self) -> Vec<i32> {
        processes_with(&self.run.join("containers").display().to_string())
    }

    /// Kills everything that runs on the device, as a power cut does, and forgets its run folder.
    pub fn power_cut(&mut self) {
        self.process.kill();
        self.sweep();
        let _ = std::fs::remove_dir_all(&self.run);
    }

    fn sweep(&self) {
        for pid in self.shims() {
            signal_kill(pid);
        }
        for mount in hierarchies() {
            clear(&mount.join(self.cgroup.trim_start_matches('/')));
        }
        eventually("the end of all shims", || self.shims().is_empty().then_some(()));
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.process.kill();
        if std::thread::panicking() {
            // A second panic would end the whole test program.
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.sweep()));
        } else {
            self.sweep();
        }
    }
}

fn launch(log: &Path, id: &str, broker: &str, folders: [&PathBuf; 3], cgroup: &str) -> Process {
    let [data, run, config] = folders.map(|folder| folder.display().to_string());
    let args = [
        "run",
        "--insecure",
        "--broker",
        broker,
        "--device-id",
        id,
        "--data-dir",
        &data,
        "--run-dir",
        &run,
        "--config",
        &config,
        "--cgroup-parent",
        cgroup,
    ];
    Process::start(log, &program("limpet-agent"), &args)
}

fn signal_kill(pid: i32) {
    if let Some(pid) = Pid::from_raw(pid) {
        // Gone already is as good.
        let _ = kill_process(pid, Signal::KILL);
    }
}

/// Where control groups are mounted.
pub fn hierarchies() -> Vec<PathBuf> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let lines = text.lines().filter(|line| line.contains(" - cgroup"));
    lines.filter_map(|line| Some(PathBuf::from(line.split(' ').nth(4)?))).collect()
}

fn clear(group: &Path) {
    let Ok(entries) = std::fs::read_dir(group) else {
        return;
    };
    for entry in entries.flatten().filter(|entry| entry.path().is_dir()) {
        clear(&entry.path());
    }
    eventually(&format!("the end of {}", group.display()), || {
        let procs = std::fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
        procs.lines().filter_map(|line| line.parse().ok()).for_each(signal_kill);
        (std::fs::remove_dir(group).is_ok() || !group.exists()).then_some(())
    });
}

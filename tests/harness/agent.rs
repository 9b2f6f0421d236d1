//! A real `limpet-agent run` with folders and a control group of its own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, kill_process};

use crate::process::Output;
use crate::{Controller, Lab, Process, Registry, eventually, output, processes_with, program};

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
    /// What the program is started through: `env NAME=VALUE`, `nsenter --net=...`.
    pub through: Vec<String>,
    args: Vec<String>,
    log: PathBuf,
}

/// Where a device is, where that is not as usual.
#[derive(Debug, Default)]
pub struct Place {
    /// What its folders are named after; its id where this is empty.
    pub name: String,
    /// What the program is started through.
    pub through: Vec<String>,
}

impl Place {
    fn name<'a>(&'a self, id: &'a str) -> &'a str {
        if self.name.is_empty() { id } else { &self.name }
    }

    /// The data folder of a device that is there.
    fn data(&self, lab: &Lab, id: &str) -> PathBuf {
        lab.path(&format!("{}.data", self.name(id)))
    }
}

/// How a device gets in.
#[derive(Clone, Copy)]
pub enum Door<'a> {
    /// As this controller has it: where it is secured, it joins.
    Fleet(&'a Controller),
    /// With this join string.
    Join(&'a str),
    /// With `--insecure`, on this broker: `mqtt://HOST:PORT`.
    Broker(&'a str),
}

impl<'a> From<&'a Controller> for Door<'a> {
    fn from(controller: &'a Controller) -> Self {
        Self::Fleet(controller)
    }
}

impl Agent {
    /// A device that knows `registry` as the mirror of `docker.io`, with the label `name=ID`.
    pub fn start<'a>(lab: &Lab, id: &str, door: impl Into<Door<'a>>, registry: &Registry) -> Self {
        Self::with_config(lab, id, door, &Self::config(id, &registry.host))
    }

    /// The configuration of a device that knows `registry`, `HOST:PORT`, as the mirror of
    /// `docker.io`.
    pub fn config(id: &str, registry: &str) -> String {
        format!(
            "keep_alive_s = 6\n[labels]\nname = \"{id}\"\n\
             [registries]\ninsecure = [\"{registry}\"]\n\
             [registries.mirrors]\n\"docker.io\" = [\"{registry}\"]\n"
        )
    }

    /// A device with a configuration file of these lines.
    pub fn with_config<'a>(lab: &Lab, id: &str, door: impl Into<Door<'a>>, config: &str) -> Self {
        Self::placed(lab, id, door, config, Place::default())
    }

    /// A device that finds its join string in a file that its configuration names.
    pub fn flashed(lab: &Lab, id: &str, config: &str, place: Place) -> Self {
        Self::begin(lab, id, &["run", "--device-id", id], config, place)
    }

    /// A device that is somewhere else.
    pub fn placed<'a>(
        lab: &Lab,
        id: &str,
        door: impl Into<Door<'a>>,
        config: &str,
        place: Place,
    ) -> Self {
        let insecure = ["run", "--insecure", "--device-id", id, "--broker"];
        match door.into() {
            Door::Broker(broker) => {
                Self::begin(lab, id, &[&insecure[..], &[broker]].concat(), config, place)
            }
            Door::Fleet(controller) if !controller.is_secured() => {
                Self::begin(lab, id, &[&insecure[..], &[&controller.mqtt]].concat(), config, place)
            }
            Door::Fleet(controller) => {
                Self::placed(lab, id, Door::Join(controller.invitation()), config, place)
            }
            Door::Join(string) => {
                let data = place.data(lab, id);
                if !data.join("identity").exists() {
                    join(&place.through, id, &data, string);
                }
                Self::begin(lab, id, &["run"], config, place)
            }
        }
    }

    /// A device that joins a fleet with a join string.
    pub fn member(lab: &Lab, id: &str, join: &str, config: &str) -> Self {
        Self::with_config(lab, id, Door::Join(join), config)
    }

    fn begin(lab: &Lab, id: &str, door: &[&str], config: &str, place: Place) -> Self {
        let name = place.name(id);
        let data = place.data(lab, id);
        let run = lab.in_memory(&format!("{name}.run"));
        let config = lab.file(&format!("{name}.toml"), config);
        let cgroup = format!("/{}", lab.name(name));
        let log = lab.path(&format!("{name}.log"));
        let [data_dir, run_dir, file] = [&data, &run, &config].map(|p| p.display().to_string());
        let folders = [
            ["--data-dir", &data_dir],
            ["--run-dir", &run_dir],
            ["--config", &file],
            ["--cgroup-parent", &cgroup],
        ];
        let args = door.iter().chain(folders.as_flattened()).map(ToString::to_string).collect();
        let args: Vec<String> = args;
        let process = launch(&log, &place.through, &args);
        let id = id.to_owned();
        Self { id, process, data, run, cgroup, config, through: place.through, args, log }
    }

    /// SIGKILL, as when memory runs out; its containers go on.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts the program again.
    pub fn restart(&mut self) {
        self.process = launch(&self.log, &self.through, &self.args);
    }

    /// Starts the program again where it has ended, as a supervisor does.
    pub fn keep_alive(&mut self) {
        if !self.process.is_running() {
            self.restart();
        }
    }

    /// Joins once more, while the program does not run.
    pub fn join(&self, string: &str) {
        join(&self.through, &self.id, &self.data, string);
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

    /// The containers that run, by id, with the command line of each one's main process.
    pub fn containers(&self) -> BTreeMap<String, String> {
        let line = |pid: i32| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).trim_end_matches('\0').replace('\0', " ")
        };
        self.processes().into_iter().map(|(id, pids)| (id, line(pids[0]))).collect()
    }

    /// Every process in a container, by pid.
    pub fn mains(&self) -> Vec<i32> {
        self.processes().into_values().flatten().collect()
    }

    /// The processes of each container, as their control groups have them.
    fn processes(&self) -> BTreeMap<String, Vec<i32>> {
        let own = self.cgroup.trim_start_matches('/');
        let groups = hierarchies().into_iter().map(|mount| mount.join(own));
        let folders = groups.filter_map(|group| std::fs::read_dir(group).ok()).flatten().flatten();
        let mut found: BTreeMap<String, Vec<i32>> = BTreeMap::new();
        for folder in folders.filter(|entry| entry.path().is_dir()) {
            let procs = std::fs::read_to_string(folder.path().join("cgroup.procs"));
            let pids = found.entry(folder.file_name().to_string_lossy().into_owned()).or_default();
            pids.extend(procs.iter().flat_map(|procs| procs.lines()).flat_map(str::parse::<i32>));
            pids.sort_unstable();
            pids.dedup();
        }
        found.retain(|_, pids| !pids.is_empty());
        found
    }

    /// Kills everything that runs on the device, as a power cut does, and forgets its run folder.
    pub fn power_cut(&mut self) {
        self.process.kill();
        self.sweep();
        let _ = std::fs::remove_dir_all(&self.run);
    }

    fn sweep(&self) {
        eventually("the end of all shims", || {
            let shims = self.shims();
            shims.iter().copied().for_each(signal_kill);
            shims.is_empty().then_some(())
        });
        let own = self.cgroup.trim_start_matches('/');
        eventually("the end of all control groups", || {
            let all = hierarchies().into_iter().map(|mount| mount.join(own));
            let left: Vec<PathBuf> = all.filter(|group| group.exists()).collect();
            left.iter().for_each(|group| clear(group));
            // Looked at once more: one may come while another goes.
            left.is_empty().then_some(())
        });
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

/// Makes a device with this data folder a member.
pub(crate) fn join(through: &[String], id: &str, data: &Path, string: &str) {
    let (agent, data) = (program("limpet-agent").display().to_string(), data.display().to_string());
    let words = [&agent, "join", string, "--device-id", id, "--data-dir", &data];
    let words: Vec<&str> = through.iter().map(String::as_str).chain(words).collect();
    let joined = output(words[0], &words[1..]);
    assert_eq!(joined.status, 0, "limpet-agent join: {joined:?}");
}

fn launch(log: &Path, through: &[String], args: &[String]) -> Process {
    let agent = program("limpet-agent").display().to_string();
    let words: Vec<&str> = through.iter().chain([&agent]).chain(args).map(String::as_str).collect();
    Process::start(log, words[0].as_ref(), &words[1..])
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

/// Ends what is in a control group, and takes it away.
pub(crate) fn clear(group: &Path) {
    eventually(&format!("the end of {}", group.display()), || {
        // Each time anew: what is killed in the midst of making a group may make it all the same.
        end_below(group);
        (!group.exists()).then_some(())
    });
}

fn end_below(group: &Path) {
    for entry in std::fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            end_below(&entry.path());
        }
    }
    let procs = std::fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    procs.lines().filter_map(|line| line.parse().ok()).for_each(signal_kill);
    // Not empty yet: the next time.
    let _ = std::fs::remove_dir(group);
}

//! Containers on this device: made by a shim each, found again after a restart, removed whole.
//!
//! Everything here blocks for a bounded time and is called from the blocking pool. What runs
//! belongs to its shim: ending the agent, in whatever way, touches no container.

use std::collections::BTreeSet;
use std::fs::{DirBuilder, File};
use std::io::{BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use limpet_agent_core::{Found, FoundState, Owner};
use limpet_protocol::{ContainerId, Exit, Feature, HostAccess, Signal, Workload};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::image::Image;
use crate::{clock, tree};

mod bpf;
mod bundle;
mod cgroup;
mod devices;
mod end;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod host;
mod order;
mod process;
mod program;
mod seccomp;
pub mod secrets;
pub mod shim;
mod user;
pub mod wait;

use cgroup::Hierarchies;
pub use host::HostError;
use order::{ExitRecord, Process, StartOrder, StateRecord};
use secrets::Opened;

/// A shim that has not answered after this long is given up.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// What a shim wrote is shown as far as this.
const SHIM_LOG_BYTES_MAX: u64 = 400;

/// The containers below one run folder.
pub struct Runtime {
    containers: PathBuf,
    writable: PathBuf,
    cgroup_parent: String,
    program: PathBuf,
    hierarchies: Hierarchies,
    owner: Owner,
    _lock: File,
}

/// Where containers are kept.
#[derive(Debug, Clone)]
pub struct Folders {
    /// Does not survive a reboot; best in memory.
    pub run_dir: PathBuf,
    /// Holds the writable layers.
    pub data_dir: PathBuf,
    /// The control group above all containers.
    pub cgroup_parent: String,
    /// The agent's own program, which is the shim's too.
    pub program: PathBuf,
}

/// What a container is made of, besides its image.
#[derive(Debug)]
pub struct Content {
    /// The workload.
    pub workload: Workload,
    /// Its secrets, opened.
    pub secrets: Vec<Opened>,
    /// The folder of its log, where that is not the run folder.
    pub logs: Option<PathBuf>,
}

/// A container whose main process runs.
#[derive(Debug)]
pub struct Running {
    /// Its main process.
    pub pid: u32,
    /// Becomes readable when it has ended and its exit is recorded.
    pub ended: OwnedFd,
    /// To be reaped, where this agent made it.
    shim: Option<Child>,
}

/// Why a container could not be handled.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// A folder or file of the container.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Another agent holds it.
    #[error("another agent uses the run folder {0}: stop it, or say `--run-dir`")]
    InUse(PathBuf),
    /// The shim says why.
    #[error("{0}")]
    Refused(String),
    /// The shim said nothing to us.
    #[error("the shim of {0} ended or hung before it answered; it wrote {1:?}")]
    Silent(ContainerId, String),
    /// The signal did not arrive.
    #[error("cannot signal {container}: {source}")]
    Signal {
        /// The container.
        container: ContainerId,
        /// Why not.
        source: std::io::Error,
    },
}

fn io<'a>(
    action: &'static str,
    path: &'a Path,
) -> impl FnOnce(std::io::Error) -> RuntimeError + 'a {
    move |source| RuntimeError::Io { action, path: path.into(), source }
}

impl Runtime {
    /// Makes the folders that containers are kept in.
    ///
    /// # Errors
    /// When they cannot be made.
    pub fn open(folders: Folders, owner: Owner) -> Result<Self, RuntimeError> {
        make_folder(&folders.run_dir)?;
        let path = folders.run_dir.join("lock");
        let lock = File::create(&path).map_err(io("write", &path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => {
                return Err(RuntimeError::InUse(folders.run_dir));
            }
            Err(std::fs::TryLockError::Error(source)) => return Err(io("lock", &path)(source)),
        }
        let runtime = Self {
            containers: folders.run_dir.join("containers"),
            writable: folders.data_dir.join("containers"),
            cgroup_parent: folders.cgroup_parent,
            program: folders.program,
            hierarchies: Hierarchies::find(),
            owner,
            _lock: lock,
        };
        for path in [&runtime.containers, &runtime.writable] {
            make_folder(path)?;
        }
        runtime.sweep();
        Ok(runtime)
    }

    /// Removes the writable layers of containers that are gone: the machine lost power.
    fn sweep(&self) {
        let entries = std::fs::read_dir(&self.writable).into_iter().flatten().flatten();
        for entry in entries.filter(|entry| !self.containers.join(entry.file_name()).exists()) {
            let path = entry.path();
            if let Err(error) = tree::remove(&path) {
                log::error!("cannot remove {}, which nothing needs: {error}", path.display());
            }
        }
    }

    /// What can be enforced here.
    pub fn features(&self) -> Vec<Feature> {
        let given =
            [Feature::SECRETS, Feature::PRIVILEGED, Feature::HOST_PATHS, Feature::HOST_DEVICES];
        let given = given.into_iter().map(Feature::known);
        self.hierarchies.features().into_iter().chain(given).collect()
    }

    /// Whether a container could be given what it wants of the host, as things are.
    ///
    /// # Errors
    /// When it could not, or may not.
    pub fn look_at_host(&self, wanted: &HostAccess) -> Result<(), HostError> {
        let own = host::own(&self.containers, &self.writable);
        host::open(&self.owner, wanted, &own).map(drop)
    }

    /// The folder that run folders are in.
    pub fn containers(&self) -> PathBuf {
        self.containers.clone()
    }

    /// The run folder of a container.
    pub fn folder(&self, container: &ContainerId) -> PathBuf {
        self.containers.join(container.as_str())
    }

    /// Makes a container and starts its main process.
    ///
    /// # Errors
    /// When it could not be made; nothing of it runs, and [`Runtime::remove`] takes away the rest.
    pub fn start(
        &self,
        container: &ContainerId,
        image: &Image,
        content: Content,
    ) -> Result<Running, RuntimeError> {
        let Content { workload, secrets, logs } = content;
        let folder = self.folder(container);
        make_folder(&folder.join("bundle"))?;
        let order = StartOrder {
            id: container.clone(),
            workload,
            hostname: host_name(container),
            layers_dir: image.layers_dir.clone(),
            layers: image.layers.clone(),
            image: image.config.clone(),
            writable: self.writable.join(container.as_str()),
            cgroup: self.cgroup(container),
            logs,
            owner: self.owner.clone(),
        };
        let path = folder.join("order");
        order::write(&path, &order).map_err(io("write", &path))?;
        let mut shim = self.spawn(&folder, &secrets)?;
        drop(secrets);
        let answered = self.answer(container, &mut shim).and_then(|pid| {
            let state: Option<StateRecord> = order::read(&folder.join("state"));
            // Where the shim was killed meanwhile, its container is what is followed.
            let opened = state.and_then(|state| open_either(&state));
            opened.map(|ended| (pid, ended)).ok_or_else(|| self.silent(container))
        });
        match answered {
            Ok((pid, ended)) => Ok(Running { pid, ended, shim: Some(shim) }),
            Err(error) => {
                // It has ended by itself, or it hangs and must.
                let _ = shim.kill();
                let _ = shim.wait();
                self.end_making(container);
                Err(error)
            }
        }
    }

    /// Ends what is at making a container, and what has come of it: nothing of it runs when the next
    /// one is made.
    fn end_making(&self, container: &ContainerId) {
        let ended = process::end_makers(&self.folder(container))
            .and_then(|()| self.hierarchies.remove(&self.cgroup(container)));
        if let Err(error) = ended {
            log::warn!("{container} was not made, and leaves something: {error}");
        }
    }

    fn spawn(&self, folder: &Path, secrets: &[Opened]) -> Result<Child, RuntimeError> {
        let input = match secrets {
            [] => Stdio::null(),
            secrets => secrets::hand_over(secrets).map_err(io("hand secrets to", folder))?.into(),
        };
        let path = folder.join("shim.log");
        let log = File::create(&path).map_err(io("write", &path))?;
        Command::new(&self.program)
            .arg("shim")
            .arg(folder)
            .current_dir("/")
            // It needs no more of the agent's environment: that has passwords of proxies in it, and
            // the supervisor's socket.
            .env_clear()
            .envs(clock::told())
            .stdin(input)
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .map_err(io("run", &self.program))
    }

    fn answer(&self, container: &ContainerId, shim: &mut Child) -> Result<u32, RuntimeError> {
        let silent = || self.silent(container);
        let stdout = shim.stdout.take().ok_or_else(silent)?;
        let timeout = Timespec { tv_sec: ANSWER_TIMEOUT.as_secs().cast_signed(), tv_nsec: 0 };
        let mut fds = [PollFd::new(&stdout, PollFlags::IN)];
        if poll(&mut fds, Some(&timeout)).unwrap_or(0) == 0 {
            return Err(silent());
        }
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).map_err(|_| silent())?;
        match line.trim_end().split_once(' ') {
            Some(("started", pid)) => pid.parse().map_err(|_| silent()),
            Some(("failed", why)) => Err(RuntimeError::Refused(why.to_owned())),
            Some(_) | None => Err(silent()),
        }
    }

    fn silent(&self, container: &ContainerId) -> RuntimeError {
        let mut log = Vec::new();
        let file = File::open(self.folder(container).join("shim.log"));
        // What cannot be read says as much as what is not there.
        let _ = file.map(|file| file.take(SHIM_LOG_BYTES_MAX).read_to_end(&mut log));
        let log = String::from_utf8_lossy(&log).trim().to_owned();
        RuntimeError::Silent(container.clone(), log)
    }

    /// The layers that containers stand on which have not ended.
    pub fn layers_in_use(&self) -> BTreeSet<String> {
        let entries = std::fs::read_dir(&self.containers).into_iter().flatten().flatten();
        let alive = entries.map(|entry| entry.path()).filter(|path| !path.join("exit").exists());
        let orders = alive.filter_map(|path| order::read::<StartOrder>(&path.join("order")));
        orders.flat_map(|order| order.layers).collect()
    }

    /// The containers that are there, and handles on those that run.
    ///
    /// # Errors
    /// When the folder of containers cannot be read.
    pub fn scan(&self) -> Result<Vec<(Found, Option<Running>)>, RuntimeError> {
        let entries = std::fs::read_dir(&self.containers).map_err(io("read", &self.containers))?;
        let ids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        Ok(ids.map(|id| self.look(id)).collect())
    }

    fn look(&self, container: ContainerId) -> (Found, Option<Running>) {
        let folder = self.folder(&container);
        if ["state", "exit"].iter().all(|record| !folder.join(record).exists()) {
            // The agent ended in the midst of making it; its shim may be at it still.
            self.end_making(&container);
        }
        let made = order::read(&folder.join("order")).map(|order: StartOrder| order.workload);
        // The exit is read last: a container that ends meanwhile is seen either way.
        let state: Option<StateRecord> = order::read(&folder.join("state"));
        let running = state.and_then(|state| {
            let ended = open_either(&state)?;
            Some(Running { pid: state.main.pid, ended, shim: None })
        });
        let exit: Option<ExitRecord> = order::read(&folder.join("exit"));
        let (state, running) = match (exit, running, state) {
            (Some(record), _, _) => (FoundState::Ended(record.exit), None),
            (None, Some(running), _) => (FoundState::Running { pid: running.pid }, Some(running)),
            (None, None, Some(_)) => (FoundState::Ended(Exit::Unknown), None),
            (None, None, None) => (FoundState::Broken, None),
        };
        (Found { container, made, state }, running)
    }

    /// How a container ended, once [`Running::ended`] is readable; None where only its shim has,
    /// and a handle on the main process takes its place.
    pub fn exit(&self, container: &ContainerId, running: &mut Running) -> Option<Exit> {
        if let Some(mut shim) = running.shim.take() {
            // It has ended: this takes its place in the process table away.
            let _ = shim.wait();
        }
        let folder = self.folder(container);
        if let Some(record) = order::read::<ExitRecord>(&folder.join("exit")) {
            self.forget_writable(container);
            return Some(record.exit);
        }
        let main = order::read(&folder.join("state")).map(|state: StateRecord| state.main);
        match main.and_then(process::open) {
            Some(main) if !is_over(&main) => {
                running.ended = main;
                None
            }
            Some(_) | None => {
                self.forget_writable(container);
                Some(Exit::Unknown)
            }
        }
    }

    /// What a container that has ended wrote is of no use to the next, and may be what fills the
    /// disk; its log stays.
    fn forget_writable(&self, container: &ContainerId) {
        let path = self.writable.join(container.as_str());
        if let Err(error) = gone(tree::remove(&path)) {
            log::warn!("cannot remove {}: {error}", path.display());
        }
    }

    /// Sends a signal to a container's main process; one that has ended needs none.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn signal(
        &self,
        container: &ContainerId,
        signal: Option<Signal>,
    ) -> Result<(), RuntimeError> {
        let folder = self.folder(container);
        let state: Option<StateRecord> = order::read(&folder.join("state"));
        let Some(StateRecord { main, .. }) = state else {
            return Ok(());
        };
        let signal = signal.unwrap_or_else(|| {
            let order: Option<StartOrder> = order::read(&folder.join("order"));
            let image = order.and_then(|order| order.image.stop_signal);
            image.and_then(|name| name.parse().ok()).unwrap_or(Signal::TERM)
        });
        process::signal(main, signal.number())
            .map_err(|source| RuntimeError::Signal { container: container.clone(), source })
    }

    /// Takes everything of a container away; what is gone already is no error.
    ///
    /// # Errors
    /// When something would not go.
    pub fn remove(&self, container: &ContainerId) -> Result<(), RuntimeError> {
        let folder = self.folder(container);
        match order::read(&folder.join("state")) {
            Some(StateRecord { shim, .. }) => self.end_shim(shim),
            None => process::end_makers(&folder),
        }
        .map_err(io("end the shim of", &folder))?;
        let group = self.cgroup(container);
        self.hierarchies
            .remove(&group)
            .map_err(io("remove the control group", Path::new(&group)))?;
        self.hierarchies.remove_if_empty(&self.cgroup_parent);
        // The order first: with its exit gone and its order there it would pass for one that stands
        // on its layers.
        let order = folder.join("order");
        gone(std::fs::remove_file(&order)).map_err(io("remove", &order))?;
        for path in [self.writable.join(container.as_str()), folder] {
            gone(tree::remove(&path)).map_err(io("remove", &path))?;
        }
        Ok(())
    }

    /// A shim that still waits is ended with its container, whose exit nobody asks for.
    fn end_shim(&self, shim: Process) -> std::io::Result<()> {
        process::signal(shim, Signal::KILL.number())
    }

    fn cgroup(&self, container: &ContainerId) -> String {
        format!("{}/{container}", self.cgroup_parent)
    }
}

/// A handle on a container's shim, or where that is gone on its main process.
fn open_either(state: &StateRecord) -> Option<OwnedFd> {
    process::open(state.shim).or_else(|| process::open(state.main))
}

fn is_over(process: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(process, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap_or(0) > 0
}

/// What was gone before is as gone as what has been removed.
fn gone(removed: std::io::Result<()>) -> std::io::Result<()> {
    match removed {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

fn make_folder(path: &Path) -> Result<(), RuntimeError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io("make", path))
}

/// A name of at most 63 characters, as hosts may have (RFC 1123).
fn host_name(container: &ContainerId) -> String {
    let workload = container.parts().map_or_else(String::new, |(workload, _)| workload.to_string());
    let name: String = workload.replace('.', "-").chars().take(63).collect();
    name.trim_end_matches('-').to_owned()
}

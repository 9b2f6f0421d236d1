//! Control groups: which limits this kernel can enforce, and taking groups away again. Making them
//! is libcontainer's.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use limpet_protocol::Feature;

use super::bpf;

/// How long processes that were killed may take to leave their group.
const EMPTY_WAIT: Duration = Duration::from_secs(2);

/// The mounted hierarchies of cgroup v1 and v2.
#[derive(Debug, Clone)]
pub(super) struct Hierarchies(Vec<Hierarchy>);

#[derive(Debug, Clone)]
struct Hierarchy {
    mount: PathBuf,
    controllers: Vec<String>,
}

impl Hierarchies {
    /// Reads them from the kernel.
    pub(super) fn find() -> Self {
        let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        Self(text.lines().filter_map(hierarchy).collect())
    }

    /// What can be limited per container. Rules for devices are a controller of cgroup v1; on v2 they
    /// are programs.
    pub(super) fn features(&self) -> Vec<Feature> {
        let has = |name: &str| self.0.iter().any(|h| h.controllers.iter().any(|c| c == name));
        let devices = if unified("/").is_some() { device_programs() } else { has("devices") };
        [
            (has("memory"), Feature::LIMIT_MEMORY),
            (has("cpu"), Feature::LIMIT_CPU),
            (has("pids"), Feature::LIMIT_PIDS),
            (devices, Feature::DEVICE_ACCESS),
        ]
        .into_iter()
        .filter(|(enforced, _)| *enforced)
        .map(|(_, feature)| Feature::known(feature))
        .collect()
    }

    /// Kills what is in a group and takes the group away, in every hierarchy.
    pub(super) fn remove(&self, group: &str) -> std::io::Result<()> {
        for path in self.paths(group) {
            remove_tree(&path)?;
        }
        Ok(())
    }

    /// Takes a group away where it is empty, and leaves it where it is not.
    pub(super) fn remove_if_empty(&self, group: &str) {
        for path in self.paths(group) {
            // Not empty, or gone already: both are as they should be.
            let _ = std::fs::remove_dir(path);
        }
    }

    fn paths<'a>(&'a self, group: &'a str) -> impl Iterator<Item = PathBuf> + 'a {
        self.0.iter().map(move |h| h.mount.join(group.trim_start_matches('/')))
    }
}

/// The folder of a group where libcontainer makes groups of cgroup v2; None where it makes those of v1.
pub(super) fn unified(group: &str) -> Option<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let is_root = root.join("cgroup.controllers").exists();
    is_root.then(|| root.join(group.trim_start_matches('/')))
}

/// Whether the kernel takes programs that decide on devices.
fn device_programs() -> bool {
    let probed = bpf::probe();
    if let Err(error) = &probed {
        log::warn!("access to devices cannot be limited here: bpf(2) says {error}");
    }
    probed.is_ok()
}

/// One line of mountinfo (proc(5)): the mount point is field 5; behind ` - ` come the type, the
/// source and the options.
fn hierarchy(line: &str) -> Option<Hierarchy> {
    let (before, after) = line.split_once(" - ")?;
    let mount = PathBuf::from(before.split(' ').nth(4)?);
    let mut after = after.split(' ');
    let controllers = match after.next()? {
        "cgroup" => after.nth(1)?.split(',').map(str::to_owned).collect(),
        "cgroup2" => std::fs::read_to_string(mount.join("cgroup.controllers"))
            .unwrap_or_default()
            .split_whitespace()
            .map(str::to_owned)
            .collect(),
        _ => return None,
    };
    Some(Hierarchy { mount, controllers })
}

fn remove_tree(path: &Path) -> std::io::Result<()> {
    let Ok(entries) = std::fs::read_dir(path) else {
        return Ok(());
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    let deadline = Instant::now() + EMPTY_WAIT;
    loop {
        match std::fs::remove_dir(path) {
            Ok(()) => return Ok(()),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(e) if Instant::now() >= deadline => return Err(e),
            Err(_) => kill_all(path),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn kill_all(group: &Path) {
    let procs = std::fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    for pid in procs.lines().filter_map(|line| line.parse().ok()) {
        if let Some(process) = super::process::look(pid) {
            // Gone in the meantime, or killed: the caller looks again.
            let _ = super::process::signal(process, 9);
        }
    }
}

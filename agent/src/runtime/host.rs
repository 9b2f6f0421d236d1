//! What a container is given of its host, as far as the device's owner allows.
//!
//! What a path leads to is opened once, without opening its content; what was opened is looked at,
//! judged and used. Whoever changes a link in between changes nothing.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use limpet_agent_core::{Owner, PathUse, Refusal};
use limpet_protocol::{DeviceAccess, HostAccess, HostMount};
use rustix::fs::{
    CWD, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, major, minor, openat2, stat,
};
use rustix::mount::{
    MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount_change, move_mount, open_tree,
};

use super::devices::Kind;

/// Devices of one machine at most: a privileged container gets all of them.
const DEVICES_MAX: usize = 4096;
/// Folders of `/dev` in each other at most.
const DEPTH_MAX: usize = 8;
/// What a container has its own of, or none.
const NOT_GIVEN: [&str; 5] = ["/dev/console", "/dev/mqueue", "/dev/ptmx", "/dev/pts", "/dev/shm"];

/// Why a container does not get what it wants.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// By the owner's rules.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// It is not there, or cannot be reached.
    #[error("host path {path}: {source}; make it on this device, or change the manifest")]
    Open {
        /// As the manifest has it.
        path: String,
        /// Why not.
        source: std::io::Error,
    },
    /// It is no device.
    #[error("{0} is no device of this machine: list files and folders under mounts")]
    NoDevice(String),
    /// It could not be put where the runtime finds it.
    #[error("cannot mount host path {path}: {source}")]
    Mount {
        /// As the manifest has it.
        path: String,
        /// Why not.
        source: std::io::Error,
    },
}

/// What was opened and may be used.
pub(super) struct Host {
    mounts: Vec<Opened>,
    /// Nodes for the container's `/dev`.
    pub(super) devices: Vec<Node>,
}

/// What a mount leads to.
struct Opened {
    mount: HostMount,
    file: OwnedFd,
    is_folder: bool,
}

/// A mount that the runtime can make by its path.
pub(super) struct Staged {
    pub(super) source: PathBuf,
    pub(super) path: String,
    pub(super) read_only: bool,
}

/// A device node.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) path: String,
    pub(super) kind: Kind,
    pub(super) number: (u32, u32),
    pub(super) mode: u32,
    pub(super) owner: (u32, u32),
    pub(super) access: DeviceAccess,
}

/// The agent's own folders, which no container is given: those that run folders and writable layers
/// are kept in.
pub(super) fn own(containers: &Path, writable: &Path) -> Vec<String> {
    let real = |folder: &Path| folder.canonicalize().unwrap_or_else(|_| folder.into());
    let above = [containers, writable].into_iter().filter_map(Path::parent);
    above.map(|folder| real(folder).to_string_lossy().into_owned()).collect()
}

/// Opens and judges what a container wants; see [`own`].
pub(super) fn open(owner: &Owner, wanted: &HostAccess, own: &[String]) -> Result<Host, HostError> {
    let mut devices = if wanted.privileged { all_devices() } else { Vec::new() };
    for device in &wanted.devices {
        let (file, real) = follow(&device.host)?;
        owner.host_device(&device.host, &real)?;
        let stat = fstat(&file).map_err(failed(&device.host))?;
        let node = node(device.path(), &stat, device.access);
        let node = node.ok_or_else(|| HostError::NoDevice(device.host.clone()))?;
        devices.retain(|other| other.path != node.path);
        devices.push(node);
    }
    let mut mounts = Vec::new();
    for mount in &wanted.mounts {
        let (file, real) = follow(&mount.host)?;
        let read_only = match owner.host_path(&mount.host, &real, own)? {
            PathUse::ReadOnly => true,
            PathUse::AsAsked => mount.read_only,
        };
        let stat = fstat(&file).map_err(failed(&mount.host))?;
        let is_folder = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        mounts.push(Opened { mount: HostMount { read_only, ..mount.clone() }, file, is_folder });
    }
    // What is mounted below another comes after it.
    mounts.sort_by(|a, b| a.mount.path.cmp(&b.mount.path));
    Ok(Host { mounts, devices })
}

fn failed(path: &str) -> impl FnOnce(rustix::io::Errno) -> HostError {
    move |errno| HostError::Open { path: path.to_owned(), source: errno.into() }
}

/// What a path leads to, and its own name. Links of `/proc`, which lead into other processes'
/// views, are not followed: names in there are not ours.
fn follow(path: &str) -> Result<(OwnedFd, String), HostError> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let file = openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS)
        .map_err(failed(path))?;
    let real = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))
        .map_err(|source| HostError::Open { path: path.to_owned(), source })?;
    // A name that is no text matches no rule.
    Ok((file, real.to_string_lossy().into_owned()))
}

fn node(path: &str, stat: &Stat, access: DeviceAccess) -> Option<Node> {
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::CharacterDevice => Kind::Character,
        FileType::BlockDevice => Kind::Block,
        FileType::RegularFile
        | FileType::Directory
        | FileType::Symlink
        | FileType::Fifo
        | FileType::Socket
        | FileType::Unknown => return None,
    };
    Some(Node {
        path: path.to_owned(),
        kind,
        number: (major(stat.st_rdev), minor(stat.st_rdev)),
        mode: stat.st_mode & 0o777,
        owner: (stat.st_uid, stat.st_gid),
        access,
    })
}

/// Every device in `/dev`, but those that a container has its own of.
fn all_devices() -> Vec<Node> {
    let mut found = Vec::new();
    let mut folders = vec![(PathBuf::from("/dev"), 0)];
    while let Some((folder, depth)) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let Some(name) = path.to_str().filter(|name| !NOT_GIVEN.contains(name)) else {
                continue;
            };
            match entry.file_type() {
                Ok(kind) if kind.is_dir() && depth < DEPTH_MAX => {
                    folders.push((path.clone(), depth + 1));
                }
                Ok(kind) if !kind.is_symlink() && found.len() < DEVICES_MAX => {
                    // It may have been pulled out meanwhile.
                    let stat = stat(name).ok();
                    found.extend(stat.and_then(|stat| node(name, &stat, DeviceAccess::ReadWrite)));
                }
                Ok(_) | Err(_) => {}
            }
        }
    }
    found
}

impl Host {
    /// Mounts what was opened below `folder`, in this mount namespace alone.
    pub(super) fn stage(&self, folder: &Path) -> Result<Vec<Staged>, HostError> {
        let stage = |(number, opened): (usize, &Opened)| {
            let source = folder.join(number.to_string());
            opened
                .stage(&source)
                .map_err(|source| HostError::Mount { path: opened.mount.host.clone(), source })?;
            let HostMount { path, read_only, .. } = opened.mount.clone();
            Ok(Staged { source, path, read_only })
        };
        self.mounts.iter().enumerate().map(stage).collect()
    }
}

impl Opened {
    fn stage(&self, place: &Path) -> std::io::Result<()> {
        if self.is_folder {
            std::fs::create_dir_all(place)?;
        } else {
            place.parent().map_or(Ok(()), std::fs::create_dir_all)?;
            std::fs::write(place, "")?;
        }
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_EMPTY_PATH
            | OpenTreeFlags::AT_RECURSIVE;
        let tree = open_tree(&self.file, "", flags)?;
        move_mount(tree, "", CWD, place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
        // What the host mounts there later would come without the flags of this mount.
        mount_change(place, MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
        Ok(())
    }
}

#[cfg(test)]
impl Node {
    pub(super) fn example(kind: Kind, number: (u32, u32), access: DeviceAccess) -> Self {
        Self { path: "/dev/x".into(), kind, number, mode: 0o600, owner: (0, 0), access }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(text: &str) -> Owner {
        toml::from_str(text).unwrap()
    }

    fn mounts(host: &Path) -> HostAccess {
        let (host, path) = (host.display().to_string(), "/in".to_owned());
        let mounts = vec![HostMount { host, path, read_only: false }];
        HostAccess { mounts, ..HostAccess::default() }
    }

    #[test]
    fn a_link_is_judged_by_where_it_leads() {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().canonicalize().unwrap();
        for name in ["data", "data/inner", "database"] {
            std::fs::create_dir(base.join(name)).unwrap();
        }
        let link = |name: &str, to: &str| {
            std::os::unix::fs::symlink(to, base.join(name)).unwrap();
        };
        link("data/out", "/etc");
        link("data/near", "../database");
        link("data/in", "inner");
        link("data/proc", "/proc/self/root/etc");
        let allowed = owner(&format!("host_paths = ['{}']", base.join("data").display()));
        let says = |name: &str| match open(&allowed, &mounts(&base.join(name)), &[]) {
            Ok(_) => "given".to_owned(),
            Err(error) => error.to_string(),
        };
        assert_eq!(says("data"), "given");
        assert_eq!(says("data/in"), "given");
        assert!(says("data/out").contains("host_paths does not allow /etc, which"));
        assert!(says("data/near").contains("/database, which"), "{}", says("data/near"));
        assert!(says("database").contains("host_paths does not allow"));
        assert!(says("data/none").contains("No such file or directory"));
        assert!(says("data/proc").contains("symbolic links"), "{}", says("data/proc"));
    }

    #[test]
    fn the_agent_s_own_is_given_by_no_name() {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().canonicalize().unwrap();
        for name in ["lib/limpet/containers", "run/limpet/containers", "lib/other"] {
            std::fs::create_dir_all(base.join(name)).unwrap();
        }
        std::os::unix::fs::symlink("lib", base.join("link")).unwrap();
        // The agent may know its folder by another name, too.
        let own = own(&base.join("run/limpet/containers"), &base.join("link/limpet/containers"));
        let allowed = owner(&format!("host_paths = ['{}']", base.display()));
        let given = |name: &str| open(&allowed, &mounts(&base.join(name)), &own).is_ok();
        for name in ["", "lib", "link", "lib/limpet", "link/limpet/containers", "run", "run/limpet"]
        {
            assert!(!given(name), "{name}");
        }
        assert!(given("lib/other") && given("link/other"));
    }

    #[test]
    fn what_is_opened_stays_what_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().canonicalize().unwrap();
        std::fs::create_dir_all(base.join("data/one")).unwrap();
        std::os::unix::fs::symlink("one", base.join("data/link")).unwrap();
        let allowed = owner(&format!("host_paths = ['{}:ro']", base.join("data").display()));
        let host = open(&allowed, &mounts(&base.join("data/link")), &[]).unwrap();
        std::fs::remove_file(base.join("data/link")).unwrap();
        std::os::unix::fs::symlink("/etc", base.join("data/link")).unwrap();
        let real = std::fs::read_link(format!("/proc/self/fd/{}", host.mounts[0].file.as_raw_fd()));
        assert_eq!(real.unwrap(), base.join("data/one"));
        assert!(host.mounts[0].mount.read_only, "the owner has it read-only");
    }

    #[test]
    fn a_device_is_one() {
        let allowed = owner("host_devices = ['/dev/nul*', '/dev/shm']");
        let device = |host: &str| HostAccess {
            devices: vec![limpet_protocol::HostDevice {
                host: host.to_owned(),
                path: Some("/dev/x".to_owned()),
                access: DeviceAccess::Read,
            }],
            ..HostAccess::default()
        };
        let found = open(&allowed, &device("/dev/null"), &[]).unwrap().devices;
        assert_eq!(
            (found[0].kind, found[0].number, &*found[0].path),
            (Kind::Character, (1, 3), "/dev/x")
        );
        let says = |host: &str| open(&allowed, &device(host), &[]).err().unwrap().to_string();
        assert!(says("/dev/shm").contains("is no device"));
        assert!(says("/dev/zero").contains("host_devices does not allow /dev/zero"));
    }
}

//! Disks of this machine, and whether one may be written over.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::partitions::SECTOR_BYTES;

/// What a machine runs from, where these are of their own.
const SYSTEM: [&str; 6] = ["/", "/boot", "/boot/efi", "/boot/firmware", "/usr", "/var"];

/// A whole disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Disk {
    /// As it was named.
    pub path: PathBuf,
    /// What its maker calls it.
    pub model: String,
    /// Its size.
    pub bytes: u64,
    /// Whether it is a card, or on USB: something that a person takes out.
    pub removable: bool,
    /// Whether it lets itself be written to.
    pub read_only: bool,
    /// What of it is used for what: the system first.
    pub uses: Vec<Use>,
}

/// What a disk is used for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Use {
    /// This machine runs from it: mounted there.
    System(String),
    /// It is mounted there.
    Mounted(String),
    /// This machine swaps to it.
    Swap,
    /// A volume (LVM, RAID, encrypted) lies on it.
    Volume(String),
}

/// What a person has allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Larger disks are refused.
    pub bytes_max: u64,
    /// `--yes-really`: whatever its size, and fixed ones too.
    pub really: bool,
}

impl Disk {
    /// Looks at a disk.
    ///
    /// # Errors
    /// When it is none, or is a part of one.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        let metadata = fs::metadata(path).with_context(|| format!("there is no disk {shown}"))?;
        anyhow::ensure!(
            metadata.file_type().is_block_device(),
            "{shown} is no disk: `lsblk` lists those of this machine"
        );
        let device = device_of(metadata.rdev());
        let folder = fs::canonicalize(Path::new("/sys/dev/block").join(&device))
            .with_context(|| format!("the kernel does not know {shown}"))?;
        if folder.join("partition").exists() {
            let whole = folder.parent().and_then(Path::file_name).unwrap_or_default();
            anyhow::bail!(
                "{shown} is a part of a disk: name the whole, /dev/{}",
                whole.to_string_lossy()
            );
        }
        let read = |file: &str| fs::read_to_string(folder.join(file)).unwrap_or_default();
        let model = [read("device/vendor"), read("device/model"), read("device/name")];
        let model: Vec<_> =
            model.iter().map(|part| part.trim()).filter(|part| !part.is_empty()).collect();
        let sector = read("queue/logical_block_size");
        anyhow::ensure!(
            ["", "512"].contains(&sector.trim()),
            "{shown} has sectors of {} bytes, and images are for those of 512: use another card",
            sector.trim()
        );
        let sectors: u64 = read("size").trim().parse().context("it has no size")?;
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let on_usb =
            folder.components().any(|part| part.as_os_str().to_string_lossy().starts_with("usb"));
        Ok(Self {
            path: path.to_owned(),
            model: model.join(" "),
            bytes: sectors * SECTOR_BYTES,
            removable: read("removable").trim() == "1" || name.starts_with("mmcblk") || on_usb,
            read_only: read("ro").trim() == "1",
            uses: uses(&folder)?,
        })
    }

    /// Whether an image of this size may be written over it.
    ///
    /// # Errors
    /// When it must not, with what to do.
    pub fn may_be_written(&self, image_bytes: u64, limits: Limits) -> anyhow::Result<()> {
        let name = self.path.display();
        match self.uses.first() {
            Some(Use::System(at)) => anyhow::bail!(
                "{name} is the disk that this machine runs from ({at} is on it): it is never written over"
            ),
            Some(Use::Mounted(at)) => {
                anyhow::bail!("{name} is in use: it is mounted at {at}; unmount it first")
            }
            Some(Use::Swap) => {
                anyhow::bail!("{name} is in use: this machine swaps to it; swapoff first")
            }
            Some(Use::Volume(volume)) => anyhow::bail!(
                "{name} is in use: the volume {volume} lies on it; stop that first (lvm, mdadm, cryptsetup)"
            ),
            None => {}
        }
        anyhow::ensure!(!self.read_only, "{name} is read-only: the card's lock may be set");
        anyhow::ensure!(
            image_bytes <= self.bytes,
            "{name} has {}, and the image has {}: use a larger card",
            size(self.bytes),
            size(image_bytes)
        );
        anyhow::ensure!(
            limits.really || self.removable,
            "{name} is neither a card nor on USB: it may be a disk of this machine. If it is the right \
             one, say --yes-really"
        );
        anyhow::ensure!(
            limits.really || self.bytes <= limits.bytes_max,
            "{name} has {}, more than cards have: if it is the right one, say a larger --max-size (it is \
             {}), or --yes-really",
            size(self.bytes),
            size(limits.bytes_max)
        );
        Ok(())
    }
}

/// A size for a person.
pub fn size(bytes: u64) -> String {
    let (whole, tenth) = (bytes / 1_000_000_000, bytes / 100_000_000 % 10);
    if whole > 0 { format!("{whole}.{tenth} GB") } else { format!("{} MB", bytes / 1_000_000) }
}

/// Major and minor number, as /sys and mountinfo write them.
fn device_of(number: u64) -> String {
    format!("{}:{}", rustix::fs::major(number), rustix::fs::minor(number))
}

/// What the disk with this folder in /sys is used for.
fn uses(folder: &Path) -> anyhow::Result<Vec<Use>> {
    let (mut devices, mut found) = (BTreeSet::new(), BTreeSet::new());
    gather(folder, &mut devices, &mut found);
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("cannot read the mounts")?;
    for mount in mounts.lines().filter_map(Mount::read) {
        if mount.devices().iter().any(|device| devices.contains(device)) {
            let is_system = SYSTEM.contains(&mount.at.as_str());
            found.insert(if is_system { Use::System(mount.at) } else { Use::Mounted(mount.at) });
        }
    }
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    for swap in swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next()) {
        let number = fs::metadata(swap).map(|file| match file.rdev() {
            // A file on a disk.
            0 => file.dev(),
            device => device,
        });
        if number.is_ok_and(|number| devices.contains(&device_of(number))) {
            found.insert(Use::Swap);
        }
    }
    Ok(found.into_iter().collect())
}

/// A device with its partitions and all that lies on them, by number.
fn gather(folder: &Path, devices: &mut BTreeSet<String>, found: &mut BTreeSet<Use>) {
    if let Ok(number) = fs::read_to_string(folder.join("dev"))
        && !devices.insert(number.trim().to_owned())
    {
        return;
    }
    for inside in fs::read_dir(folder).into_iter().flatten().flatten() {
        if inside.path().join("partition").exists() {
            gather(&inside.path(), devices, found);
        }
    }
    for holder in fs::read_dir(folder.join("holders")).into_iter().flatten().flatten() {
        found.insert(Use::Volume(holder.file_name().to_string_lossy().into_owned()));
        if let Ok(folder) = fs::canonicalize(holder.path()) {
            gather(&folder, devices, found);
        }
    }
}

/// A line of mountinfo (proc(5)).
struct Mount {
    device: String,
    at: String,
    source: String,
    options: String,
}

impl Mount {
    fn read(line: &str) -> Option<Self> {
        let (own, rest) = line.split_once(" - ")?;
        let own: Vec<_> = own.split(' ').collect();
        let rest: Vec<_> = rest.split(' ').collect();
        Some(Self {
            device: (*own.get(2)?).to_owned(),
            at: (*own.get(4)?).replace("\\040", " "),
            source: (*rest.get(1)?).to_owned(),
            options: rest.get(2).unwrap_or(&"").to_string(),
        })
    }

    /// The devices that it stands on: its own, its source's (btrfs has numbers of its own), and those
    /// of what an overlay lies on.
    fn devices(&self) -> Vec<String> {
        let source = fs::metadata(&self.source).map(|file| file.rdev()).ok();
        let layers = self.options.split(',').filter_map(|option| {
            let (key, value) = option.split_once('=')?;
            matches!(key, "lowerdir" | "upperdir" | "workdir").then_some(value)
        });
        let layers = layers
            .flat_map(|all| all.split(':'))
            .filter_map(|layer| fs::metadata(layer).map(|file| file.dev()).ok());
        let further = source.into_iter().filter(|number| *number != 0).chain(layers).map(device_of);
        std::iter::once(self.device.clone()).chain(further).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card() -> Disk {
        let path = "/dev/sdx".into();
        Disk { path, bytes: 32_000_000_000, removable: true, ..Disk::default() }
    }

    const LIMITS: Limits = Limits { bytes_max: 128_000_000_000, really: false };

    #[test]
    fn a_card_may_be_written_over_and_little_else() {
        assert!(card().may_be_written(500_000_000, LIMITS).is_ok());
        let used = |uses: &[Use]| Disk { uses: uses.to_vec(), ..card() };
        let system = used(&[Use::System("/".into()), Use::Mounted("/mnt".into())]);
        let large = Disk { bytes: 256_000_000_000, ..card() };
        let fixed = Disk { removable: false, ..card() };
        for (disk, says, really_helps) in [
            (system, "runs from (/ is on it)", false),
            (used(&[Use::Mounted("/mnt".into())]), "mounted at /mnt; unmount it", false),
            (used(&[Use::Swap]), "swapoff", false),
            (used(&[Use::Volume("dm-0".into())]), "the volume dm-0", false),
            (Disk { read_only: true, ..card() }, "read-only", false),
            (Disk { bytes: 400_000_000, ..card() }, "use a larger card", false),
            (large, "has 256.0 GB, more than cards have", true),
            (fixed, "neither a card nor on USB", true),
        ] {
            let why = disk.may_be_written(500_000_000, LIMITS).unwrap_err().to_string();
            assert!(why.contains(says), "{why}");
            let really = Limits { really: true, ..LIMITS };
            assert_eq!(disk.may_be_written(500_000_000, really).is_ok(), really_helps, "{why}");
        }
    }

    #[test]
    fn what_lies_under_a_mount_is_found() {
        let line =
            "36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 - overlay none rw,lowerdir=/:/usr";
        let mount = Mount::read(line).unwrap();
        assert_eq!(mount.at, "/mnt 2");
        let root = device_of(fs::metadata("/").unwrap().dev());
        assert!(mount.devices().contains(&root) && mount.devices().contains(&"98:0".to_owned()));
    }
}

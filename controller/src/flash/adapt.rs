//! `limpet flash adapt`: an image of a distribution gets the agent, and what its devices are told.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::apt::log_line;
use super::board::{MACHINES, Machine};
use super::build::{copy_sparse, create_private, finish, work_beside};
use super::debugfs::{Entry, Ext4};
use super::partitions::{self, Partition};
use super::settings::{Files, Settings};
use super::tool::{self, DEBUGFS, E2FSCK, SKOPEO, XZ};
use super::{elf, preload};

/// Left free of what an image has, for its first boot.
const ROOM_BYTES: u64 = 8 << 20;

const UNIT: &str = include_str!("../../../systemd/limpet-agent.service");
const SYSUSERS: &str = include_str!("../../../systemd/sysusers.d/limpet.conf");
const TMPFILES: &str = include_str!("../../../systemd/tmpfiles.d/limpet.conf");
const PRELOAD: &str = include_str!("system/preload");
const PRELOAD_CONF: &str = include_str!("system/preload.conf");
/// All on: `NetworkManager.state` of NetworkManager(8).
const NETWORK_MANAGER_STATE: &str =
    "[main]\nNetworkingEnabled=true\nWirelessEnabled=true\nWWANEnabled=true\n";

/// What is adapted, and where that goes.
pub struct Order {
    /// The image, compressed or not. It stays as it is.
    pub image: PathBuf,
    /// What its devices are told.
    pub settings: Settings,
    /// The new image; compressed where it ends with `.xz`.
    pub out: PathBuf,
}

/// Makes the new image.
///
/// # Errors
/// When the image has no Linux with systemd on ext4, or no room; or it cannot be written. Nothing
/// half is left behind.
pub fn adapt(order: &Order) -> anyhow::Result<()> {
    let mut tools = vec![DEBUGFS, E2FSCK];
    let is_packed = |path: &Path| path.extension().is_some_and(|extension| extension == "xz");
    if is_packed(&order.image) || is_packed(&order.out) {
        tools.push(XZ);
    }
    if order.settings.preload.iter().any(|image| !Path::new(image).exists()) {
        tools.push(SKOPEO);
    }
    tool::require(&tools)?;
    let files = order.settings.files()?;
    let work = work_beside(&order.out)?;
    let (work, raw) = (work.path(), work.path().join("image"));
    order.settings.check_config(&files, work)?;
    take_in(&order.image, &raw)?;
    let name = order.image.display();
    let root = root_of(&raw, work).with_context(|| format!("{name} cannot be adapted"))?;
    log_line(&format!("{} on partition {}", root.release, root.partition.number));
    let file_system = Ext4::at(&raw, root.partition.start_bytes, work);
    let entries = entries(order, &files, &root, &file_system, work)?;
    let needed: u64 = entries.iter().map(Entry::bytes).sum();
    anyhow::ensure!(
        needed + ROOM_BYTES <= root.free_bytes,
        "{name} has {} MB free, and {} MB are needed: make its root larger first, with truncate, \
         parted and resize2fs",
        root.free_bytes / 1_000_000,
        (needed + ROOM_BYTES).div_ceil(1_000_000)
    );
    file_system.put(&entries)?;
    file_system.check().context("the file system is not right after it was changed")?;
    finish(&raw, &order.out)
}

fn take_in(image: &Path, raw: &Path) -> anyhow::Result<()> {
    let cannot = || format!("cannot read {}", image.display());
    let mut to = create_private(raw)?;
    if image.extension().is_some_and(|extension| extension == "xz") {
        let status = XZ.call()?.arg("-dc").arg("--").arg(image).stdout(to).status()?;
        anyhow::ensure!(status.success(), "{}: xz cannot unpack it", cannot());
    } else {
        let mut from = File::open(image).with_context(cannot)?;
        let bytes = from.metadata()?.len();
        to.set_len(bytes)?;
        copy_sparse(&mut from, &mut to, 0).with_context(cannot)?;
    }
    Ok(())
}

/// The system of an image.
struct Root {
    partition: Partition,
    release: String,
    machine: &'static Machine,
    /// Where units of packages are.
    units: &'static str,
    free_bytes: u64,
}

fn root_of(raw: &Path, work: &Path) -> anyhow::Result<Root> {
    let mut disk = File::open(raw)?;
    let partitions = partitions::read(&mut disk)?;
    for partition in &partitions {
        if kind_of(&mut disk, *partition)? == Kind::Ext4 {
            let file_system = Ext4::at(raw, partition.start_bytes, work);
            if let Some(release) = file_system.read("/etc/os-release")? {
                return examine(&file_system, *partition, &String::from_utf8_lossy(&release));
            }
        }
    }
    let kinds = partitions.iter().map(|partition| {
        Ok(format!("{}: {}", partition.number, kind_of(&mut disk, *partition)?.name()))
    });
    let kinds: Vec<_> = kinds.collect::<anyhow::Result<_>>()?;
    anyhow::bail!(
        "none of its partitions is an ext4 with /etc/os-release in it (it has {})",
        kinds.join(", ")
    )
}

fn examine(file_system: &Ext4<'_>, partition: Partition, release: &str) -> anyhow::Result<Root> {
    let name = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    let name = name.unwrap_or("a Linux").trim_matches('"').to_owned();
    let units = ["/usr/lib/systemd/system", "/lib/systemd/system"];
    let units = units.into_iter().find(|path| file_system.exists(path).unwrap_or(false));
    let units =
        units.with_context(|| format!("{name} has no systemd: nothing would start the agent"))?;
    let shell = file_system.read("/bin/sh")?.with_context(|| format!("{name} has no /bin/sh"))?;
    let shell = elf::read(&shell).context("/bin/sh")?;
    let machine = MACHINES.iter().find(|machine| machine.elf == shell.machine);
    let machine = machine.with_context(|| {
        format!("{name} is for a processor that there is no agent for (ELF {})", shell.machine)
    })?;
    file_system.check().context("its file system has faults")?;
    let free_bytes = file_system.free_bytes()?;
    Ok(Root { partition, release: name, machine, units, free_bytes })
}

/// What a partition has on it, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Ext4,
    Btrfs,
    Other,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4, without a system",
            Self::Btrfs => "btrfs, which cannot be changed from outside",
            Self::Other => "no ext4",
        }
    }
}

fn kind_of(disk: &mut File, partition: Partition) -> anyhow::Result<Kind> {
    let mut has = |offset: u64, magic: &[u8]| {
        let mut bytes = vec![0; magic.len()];
        let at = SeekFrom::Start(partition.start_bytes + offset);
        disk.seek(at).and_then(|_| disk.read_exact(&mut bytes)).is_ok() && bytes == magic
    };
    Ok(match (has(1080, &[0x53, 0xef]), has(0x1_0040, b"_BHRfS_M")) {
        (true, _) => Kind::Ext4,
        (_, true) => Kind::Btrfs,
        _ => Kind::Other,
    })
}

fn entries(
    order: &Order,
    files: &Files,
    root: &Root,
    file_system: &Ext4<'_>,
    work: &Path,
) -> anyhow::Result<Vec<Entry>> {
    let settings = &order.settings;
    let agent = preload::agent_for(root.machine, settings.agent.as_deref())?;
    let units = root.units;
    let text = |path: &str, text: &str, mode| Entry::File(path.to_owned(), text.into(), mode);
    let wants = "/etc/systemd/system/multi-user.target.wants";
    let unit = format!("{units}/limpet-agent.service");
    let mut entries = vec![
        Entry::File("/usr/bin/limpet-agent".to_owned(), fs::read(&agent)?, 0o755),
        text(&unit, UNIT, 0o644),
        text("/usr/lib/sysusers.d/limpet.conf", SYSUSERS, 0o644),
        text("/usr/lib/tmpfiles.d/limpet.conf", TMPFILES, 0o644),
        Entry::Link(format!("{wants}/limpet-agent.service"), unit.clone()),
        Entry::Folder("/etc/limpet".to_owned(), 0o750),
        text("/etc/limpet/agent.toml", &files.agent_toml, 0o640),
        text("/etc/limpet/join", &files.join, 0o600),
    ];
    if let Some(wifi) = &settings.wifi {
        anyhow::ensure!(
            file_system.exists(&format!("{units}/NetworkManager.service"))?,
            "--wifi: {} has no NetworkManager; set it up as the distribution says",
            root.release
        );
        let connection = "/etc/NetworkManager/system-connections/limpet.nmconnection";
        entries.push(text(connection, &wifi.network_manager(), 0o600));
        // Raspberry Pi OS comes with its radio switched off, until somebody has said a country.
        let state = "/var/lib/NetworkManager/NetworkManager.state";
        if file_system.exists(state)? {
            entries.push(text(state, NETWORK_MANAGER_STATE, 0o644));
        }
    }
    if let Some(keys) = &files.ssh_keys {
        let unit = format!("{units}/ssh.service");
        anyhow::ensure!(
            file_system.exists(&unit)?,
            "--ssh-key: {} has no ssh server",
            root.release
        );
        let known = file_system.read("/root/.ssh/authorized_keys")?.unwrap_or_default();
        let all = [known, keys.clone().into_bytes()].concat();
        entries.push(Entry::Folder("/root/.ssh".to_owned(), 0o700));
        entries.push(Entry::File("/root/.ssh/authorized_keys".to_owned(), all, 0o600));
        entries.push(Entry::Link(format!("{wants}/ssh.service"), unit));
    }
    if !settings.preload.is_empty() {
        entries.push(text("/usr/lib/limpet/preload", PRELOAD, 0o755));
        entries.push(text(&format!("{unit}.d/preload.conf"), PRELOAD_CONF, 0o644));
        for (index, image) in settings.preload.iter().enumerate() {
            let archive = preload::archive(image, root.machine, work, index)?;
            let path = format!("/var/lib/limpet-preload/{index:02}.tar");
            entries.push(Entry::File(path, fs::read(archive)?, 0o600));
        }
    }
    Ok(entries)
}

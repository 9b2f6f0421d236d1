//! The data partition: ext4 with what the device is told and what is preloaded.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::board::Machine;
use super::settings::{Files, Settings};
use super::tool::{self, DEBUGFS, MKE2FS};
use super::{preload, system};

const MIB: u64 = 1 << 20;
/// Room beside what is preloaded, until it has grown to the card.
const ROOM_BYTES: u64 = 48 * MIB;
/// What ext4 itself takes of a small one.
const OVERHEAD_BYTES: u64 = 16 * MIB;

/// Makes the partition in the file `to`, and gives its size.
///
/// # Errors
/// When an image cannot be preloaded, or something cannot be written.
pub(crate) fn build(
    settings: &Settings,
    files: &Files,
    machine: &Machine,
    (work, to): (&Path, &Path),
) -> anyhow::Result<u64> {
    let root = work.join("data");
    let private = fs::Permissions::from_mode(0o700);
    for folder in ["etc", "limpet"].map(|name| root.join(name)) {
        fs::create_dir_all(&folder)?;
        fs::set_permissions(&folder, private.clone())?;
    }
    system::write(&root.join("etc/agent.toml"), &files.agent_toml, 0o600)?;
    system::write(&root.join("etc/join"), &files.join, 0o600)?;
    if let Some(wifi) = &settings.wifi {
        system::write(&root.join("etc/wifi.conf"), &wifi.supplicant(), 0o600)?;
    }
    preload::preload(&settings.preload, machine, &root.join("limpet"), work)?;
    let taken = bytes_of(&root)?;
    let bytes = (taken + taken / 10 + ROOM_BYTES + OVERHEAD_BYTES).next_multiple_of(4 * MIB);
    let mut ext4 = MKE2FS.call()?;
    ext4.args(["-q", "-t", "ext4", "-L", "LIMPET-DATA", "-m", "1", "-b", "4096", "-i", "16384"]);
    ext4.args(["-I", "256", "-J", "size=8", "-E", "root_owner=0:0,lazy_itable_init=0"]);
    ext4.arg("-d").arg(&root).arg(to).arg(format!("{}k", bytes / 1024));
    tool::run(&mut ext4)?;
    if !rustix::process::geteuid().is_root() {
        give_to_root(to)?;
    }
    Ok(bytes)
}

/// Files that somebody else has made belong to root on the device.
fn give_to_root(partition: &Path) -> anyhow::Result<()> {
    let files = ["/etc", "/etc/agent.toml", "/etc/join", "/etc/wifi.conf", "/limpet"];
    let set = |file: &str| format!("set_inode_field {file} uid 0\nset_inode_field {file} gid 0\n");
    let commands: String = files.into_iter().map(set).collect();
    tool::run_with(DEBUGFS.call()?.arg("-w").arg(partition), &commands)?;
    Ok(())
}

/// What a folder takes on ext4: whole blocks, and an inode each.
fn bytes_of(folder: &Path) -> std::io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.metadata()?;
        bytes += 256 + kind.len().next_multiple_of(4096).max(4096);
        if kind.is_dir() {
            bytes += bytes_of(&entry.path())?;
        }
    }
    Ok(bytes)
}

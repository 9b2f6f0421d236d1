//! The boot partition: a FAT file system that the Raspberry Pi's firmware, UEFI and U-Boot all read.

use std::fs::{self, File};
use std::io::{self, Cursor};
use std::path::Path;

use anyhow::Context;
use fatfs::{Dir, FatType, FileSystem, FormatVolumeOptions, FsOptions};

use super::board::{Board, DeviceTrees};
use super::kernel::Kernel;

const LABEL: [u8; 11] = *b"LIMPET-BOOT";

/// What the Raspberry Pi's firmware consists of; the 4 has files of its own.
const RASPBERRY: [&str; 5] = ["bootcode.bin", "start.elf", "fixup.dat", "start4.elf", "fixup4.dat"];

const CONFIG_TXT: &str = include_str!("system/config.txt");

/// What a boot partition is made from.
pub(crate) struct Ingredients<'a> {
    /// What it is for.
    pub(crate) board: Board,
    /// All packages, unpacked into one folder.
    pub(crate) packages: &'a Path,
    /// Of these packages.
    pub(crate) kernel: &'a Kernel,
    /// A file.
    pub(crate) initrd: &'a Path,
    /// By which the initrd knows the disk.
    pub(crate) signature: u32,
}

impl Ingredients<'_> {
    /// The kernel's command line: it begins anew after 10 s when it cannot go on.
    fn command_line(&self) -> String {
        let consoles = self.board.consoles().iter().map(|console| format!("console={console} "));
        let consoles: String = consoles.collect();
        let signature = self.signature;
        format!("{consoles}quiet oops=panic panic=10 limpet.disk={signature:08x} limpet.system=2")
    }
}

/// Makes it, of this size.
///
/// # Errors
/// When the packages lack something, or it does not fit.
pub(crate) fn build(from: &Ingredients<'_>, bytes: usize) -> anyhow::Result<Vec<u8>> {
    let mut space = vec![0; bytes];
    let mut storage = Cursor::new(space.as_mut_slice());
    let options = FormatVolumeOptions::new()
        .fat_type(FatType::Fat32)
        .bytes_per_cluster(1024)
        .volume_id(from.signature)
        .volume_label(LABEL);
    fatfs::format_volume(&mut storage, options).context("cannot make the boot partition")?;
    let partition = FileSystem::new(storage, FsOptions::new())?;
    let volume = Volume { root: partition.root_dir() };
    volume.fill(from).context("cannot fill the boot partition")?;
    drop(volume);
    partition.unmount()?;
    Ok(space)
}

struct Volume<'a, 'b> {
    root: Dir<'a, Cursor<&'b mut [u8]>>,
}

impl Volume<'_, '_> {
    fn fill(&self, from: &Ingredients<'_>) -> anyhow::Result<()> {
        self.copy(&from.kernel.image(), "vmlinuz")?;
        self.copy(from.initrd, "initrd")?;
        let line = from.command_line();
        if let Some((loader, name)) = from.board.uefi() {
            let loader = from.packages.join("usr/lib/systemd/boot/efi").join(loader);
            self.copy(&loader, &format!("EFI/BOOT/{name}"))?;
            self.write("timeout 0\ndefault limpet-a.conf\n", "loader/loader.conf")?;
            let entry = format!("title Limpet\nlinux /vmlinuz\ninitrd /initrd\noptions {line}\n");
            self.write(&entry, "loader/entries/limpet-a.conf")?;
        }
        match from.board.device_trees() {
            DeviceTrees::None => return Ok(()),
            DeviceTrees::Raspberry => {
                let trees = from.kernel.device_trees().join("broadcom");
                self.copy_all(&trees, "", |name| name.starts_with("bcm2"))?;
                let firmware = from.packages.join("usr/lib/raspi-firmware");
                self.copy_all(&firmware, "", |name| RASPBERRY.contains(&name))?;
                self.write(CONFIG_TXT, "config.txt")?;
                self.write(&format!("{line}\n"), "cmdline.txt")?;
            }
            DeviceTrees::All => self.copy_all(&from.kernel.device_trees(), "dtbs", |_| true)?,
        }
        let extlinux = format!(
            "default limpet\nlabel limpet\n  linux /vmlinuz\n  initrd /initrd\n  fdtdir /dtbs\n  \
             append {line}\n"
        );
        self.write(&extlinux, "extlinux/extlinux.conf")
    }

    /// All files of a folder whose names are wanted, with those of its folders.
    fn copy_all(
        &self,
        from: &Path,
        to: &str,
        is_wanted: impl Fn(&str) -> bool + Copy,
    ) -> anyhow::Result<()> {
        let inside = fs::read_dir(from).with_context(|| format!("no folder {}", from.display()))?;
        let mut inside: Vec<_> = inside.flatten().collect();
        inside.sort_by_key(fs::DirEntry::file_name);
        for entry in inside {
            let name = entry.file_name().to_string_lossy().into_owned();
            let to = if to.is_empty() { name.clone() } else { format!("{to}/{name}") };
            if entry.path().is_dir() {
                self.copy_all(&entry.path(), &to, is_wanted)?;
            } else if is_wanted(&name) {
                self.copy(&entry.path(), &to)?;
            }
        }
        Ok(())
    }

    fn copy(&self, from: &Path, to: &str) -> anyhow::Result<()> {
        let mut file = File::open(from).with_context(|| format!("no file {}", from.display()))?;
        self.put(&mut file, to)
    }

    fn write(&self, text: &str, to: &str) -> anyhow::Result<()> {
        self.put(&mut text.as_bytes(), to)
    }

    fn put(&self, from: &mut dyn io::Read, to: &str) -> anyhow::Result<()> {
        let mut folder = self.root.clone();
        let (folders, name) = to.rsplit_once('/').unwrap_or(("", to));
        for name in folders.split('/').filter(|name| !name.is_empty()) {
            folder = folder.create_dir(name)?;
        }
        io::copy(from, &mut folder.create_file(name)?)
            .with_context(|| format!("cannot write {to}"))?;
        Ok(())
    }
}

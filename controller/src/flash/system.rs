//! The read-only system of an image: busybox as init and tools, the agent, what a board needs of the
//! distribution, and drivers. Its own files lie in `system/`.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use anyhow::Context;

use super::elf;
use super::kernel::Kernel;
use super::tool::{self, MKSQUASHFS};

/// The programs of `inittab` and what they call.
const SCRIPTS: [(&str, &str); 10] = [
    ("agent", include_str!("system/agent")),
    ("boot", include_str!("system/boot")),
    ("clock", include_str!("system/clock")),
    ("devices", include_str!("system/devices")),
    ("dhcp", include_str!("system/dhcp")),
    ("interface", include_str!("system/interface")),
    ("journal", include_str!("system/journal")),
    ("say", include_str!("system/say")),
    ("ssh", include_str!("system/ssh")),
    ("status", include_str!("system/status")),
];

const INITTAB: &str = include_str!("system/inittab");

/// What is added to it for those who have a key.
const INITTAB_SSH: &str = "::respawn:/usr/lib/limpet/ssh\n";

const ETC: [(&str, &str); 6] = [
    ("group", "root:x:0:\ntty:x:5:\nlimpet:x:101:\nnogroup:x:65534:\n"),
    ("hosts", "127.0.0.1\tlocalhost\n::1\tlocalhost\n"),
    ("mdev.conf", include_str!("system/mdev.conf")),
    ("nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n"),
    ("passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"),
    // Nobody gets in by a password.
    ("shadow", "root:*:::::::\nnobody:*:::::::\n"),
];

const APPLETS: &str = include_str!("system/applets");
const MODULES: [&str; 2] =
    [include_str!("system/modules.initrd"), include_str!("system/modules.system")];
const MODULES_WIFI: &str = include_str!("system/modules.wifi");

/// Programs of packages that every image has.
pub(crate) const PROGRAMS: [&str; 3] = ["e2fsck", "resize2fs", "rdate"];
/// What a wireless network needs.
pub(crate) const PROGRAMS_WIFI: [&str; 1] = ["wpa_supplicant"];
/// What those who have a key need.
pub(crate) const PROGRAMS_SSH: [&str; 2] = ["dropbear", "dropbearkey"];

/// Firmware for the wireless chips of the drivers in `modules.wifi`, and what may be sent where.
const FIRMWARE: [&str; 3] = ["brcm/brcmfmac434", "cypress/cyfmac434", "regulatory.db"];

/// What a system is made from.
pub(crate) struct Ingredients<'a> {
    /// All packages, unpacked into one folder.
    pub(crate) packages: &'a Path,
    /// Of these packages.
    pub(crate) kernel: &'a Kernel,
    /// The agent's binary.
    pub(crate) agent: &'a Path,
    /// Whether it has a wireless network to join.
    pub(crate) wifi: bool,
    /// Public keys that may log in; none leaves the way in out.
    pub(crate) ssh_keys: Option<&'a str>,
    /// What it says that it is, in `/etc/os-release`.
    pub(crate) release: &'a str,
}

/// Makes it in the file `to`, with a folder for what goes into it.
///
/// # Errors
/// When the packages lack something, or something cannot be written.
pub(crate) fn build(from: &Ingredients<'_>, work: &Path, to: &Path) -> anyhow::Result<()> {
    let root = work.join("system");
    folders(&root)?;
    install_busybox(&from.packages.join("bin/busybox"), APPLETS, &root.join("usr/bin"))?;
    let mut programs = PROGRAMS.to_vec();
    let mut modules = MODULES.to_vec();
    if from.wifi {
        programs.extend(PROGRAMS_WIFI);
        modules.push(MODULES_WIFI);
        firmware(&from.packages.join("lib/firmware"), &root.join("usr/lib/firmware"))?;
    }
    if from.ssh_keys.is_some() {
        programs.extend(PROGRAMS_SSH);
    }
    elf::install(from.packages, &programs, &root)?;
    from.kernel.install(&modules, &root)?;
    let agent = root.join("usr/bin/limpet-agent");
    fs::copy(from.agent, &agent)
        .with_context(|| format!("cannot read the agent {}", from.agent.display()))?;
    fs::set_permissions(&agent, fs::Permissions::from_mode(0o755))?;
    own_files(from, &root)?;
    let mut squash = MKSQUASHFS.call()?;
    squash.arg(&root).arg(to).args(["-noappend", "-no-progress", "-quiet", "-all-root"]);
    squash.args(["-comp", "zstd", "-Xcompression-level", "19", "-b", "256K"]);
    tool::run(&mut squash)?;
    Ok(())
}

fn folders(root: &Path) -> anyhow::Result<()> {
    for folder in
        ["usr/bin", "usr/lib", "usr/lib/limpet", "etc/limpet", "etc/ssl/certs", "var/lib/limpet"]
    {
        fs::create_dir_all(root.join(folder))?;
    }
    for folder in ["data", "dev", "proc", "root", "run", "sys", "tmp"] {
        fs::create_dir(root.join(folder))?;
    }
    for (link, target) in [
        ("bin", "usr/bin"),
        ("sbin", "usr/bin"),
        ("usr/sbin", "bin"),
        ("lib", "usr/lib"),
        ("lib64", "usr/lib"),
        ("etc/mtab", "/proc/self/mounts"),
        ("etc/resolv.conf", "/run/resolv.conf"),
        ("var/run", "/run"),
        ("var/tmp", "/tmp"),
    ] {
        symlink(target, root.join(link))?;
    }
    Ok(())
}

fn own_files(from: &Ingredients<'_>, root: &Path) -> anyhow::Result<()> {
    for (name, text) in SCRIPTS {
        write(&root.join("usr/lib/limpet").join(name), text, 0o755)?;
    }
    for (name, text) in ETC {
        write(&root.join("etc").join(name), text, 0o644)?;
    }
    write(&root.join("etc/os-release"), from.release, 0o644)?;
    let mut inittab = INITTAB.to_owned();
    if let Some(keys) = from.ssh_keys {
        inittab += INITTAB_SSH;
        fs::create_dir(root.join("root/.ssh"))?;
        fs::set_permissions(root.join("root/.ssh"), fs::Permissions::from_mode(0o700))?;
        write(&root.join("root/.ssh/authorized_keys"), keys, 0o600)?;
    }
    fs::set_permissions(root.join("root"), fs::Permissions::from_mode(0o700))?;
    write(&root.join("etc/inittab"), &inittab, 0o644)?;
    let bundle = certificates(&from.packages.join("usr/share/ca-certificates/mozilla"))?;
    write(&root.join("etc/ssl/certs/ca-certificates.crt"), &bundle, 0o644)
}

/// The authorities that the distribution trusts, in one file, as the package's own script makes it.
fn certificates(folder: &Path) -> anyhow::Result<String> {
    let files = fs::read_dir(folder).context("the package ca-certificates has no certificates")?;
    let mut files: Vec<_> = files.flatten().map(|entry| entry.path()).collect();
    files.sort();
    let mut bundle = String::new();
    for file in files {
        bundle += &fs::read_to_string(file)?;
    }
    Ok(bundle)
}

fn firmware(from: &Path, to: &Path) -> anyhow::Result<()> {
    let mut count = 0;
    for folder in ["", "brcm", "cypress"] {
        let Ok(inside) = fs::read_dir(from.join(folder)) else { continue };
        for entry in inside.flatten() {
            let name = Path::new(folder).join(entry.file_name());
            let is_wanted = FIRMWARE.iter().any(|start| name.to_string_lossy().starts_with(start));
            if is_wanted && entry.path().is_file() {
                fs::create_dir_all(to.join(folder))?;
                fs::copy(entry.path(), to.join(&name))?;
                count += 1;
            }
        }
    }
    anyhow::ensure!(
        count > 0,
        "the packages have no firmware for wireless networks: leave out --wifi"
    );
    Ok(())
}

/// Puts busybox into a folder, with a link for each of its words in `applets`.
pub(super) fn install_busybox(busybox: &Path, applets: &str, bin: &Path) -> anyhow::Result<()> {
    let own = bin.join("busybox");
    fs::copy(busybox, &own).with_context(|| format!("cannot read {}", busybox.display()))?;
    fs::set_permissions(&own, fs::Permissions::from_mode(0o755))?;
    for applet in applets.split_whitespace() {
        symlink("busybox", bin.join(applet))?;
    }
    Ok(())
}

/// Writes a file of an image.
pub(super) fn write(path: &Path, text: &str, mode: u32) -> anyhow::Result<()> {
    let cannot = || format!("cannot write {}", path.display());
    let mut file = fs::File::create(path).with_context(cannot)?;
    file.write_all(text.as_bytes()).with_context(cannot)?;
    file.set_permissions(fs::Permissions::from_mode(mode)).with_context(cannot)
}

//! What a board's loader puts into memory beside the kernel: the drivers that find the disk, and the
//! program that mounts the system (`system/init`).

use std::fs;
use std::path::Path;

use anyhow::Context;

use super::kernel::Kernel;
use super::{cpio, system};

/// The words of busybox that `system/init` uses.
const APPLETS: &str = "blockdev cat dd find grep hexdump mkdir modprobe mount mv printf reboot sed sh sleep \
                       sort switch_root sync tr xargs";

const MODULES: &str = include_str!("system/modules.initrd");

/// Makes it in the file `to`, with a folder for what goes into it.
///
/// # Errors
/// When something cannot be read or written.
pub(crate) fn build(kernel: &Kernel, busybox: &Path, work: &Path, to: &Path) -> anyhow::Result<()> {
    let root = work.join("initrd");
    for folder in ["bin", "dev", "proc", "run", "sys", "system", "lib"] {
        fs::create_dir_all(root.join(folder))?;
    }
    // Where the kernel looks for it when it wants a module.
    std::os::unix::fs::symlink("bin", root.join("sbin"))?;
    system::install_busybox(busybox, APPLETS, &root.join("bin"))?;
    system::write(&root.join("init"), include_str!("system/init"), 0o755)?;
    system::write(&root.join("say"), include_str!("system/say"), 0o644)?;
    kernel.install(&[MODULES], &root)?;
    let file = fs::File::create(to).with_context(|| format!("cannot write {}", to.display()))?;
    let mut packed = flate2::write::GzEncoder::new(file, flate2::Compression::best());
    cpio::archive(&root, &mut packed).context("cannot write the initrd")?;
    packed.finish()?;
    Ok(())
}

//! Disks of a test's own: small enough to be filled, or as a power cut left them.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::run;

/// A file system of its own; taken away when it is dropped.
pub struct Disk(PathBuf);

impl Disk {
    /// Makes the folder, and mounts a file system of this size there: `24m`.
    pub fn mount(path: &Path, size: &str) -> Self {
        std::fs::create_dir(path).unwrap();
        let (shown, size) = (path.display().to_string(), format!("size={size}"));
        run("mount", &["-t", "tmpfs", "-o", &size, "tmpfs", &shown]);
        Self(path.to_owned())
    }

    /// The same on a block device: ext4 in a file beside the folder, through a loop device, which
    /// goes with the mount.
    pub fn ext4(path: &Path, size: &str) -> Self {
        let image = path.with_extension("ext4");
        let shown = image.display().to_string();
        run("truncate", &["-s", size, &shown]);
        run("mkfs.ext4", &["-q", "-F", "-m", "0", &shown]);
        Self::insert(path, &image)
    }

    /// Makes the folder, and mounts there the file system that this image file holds.
    pub fn insert(path: &Path, image: &Path) -> Self {
        std::fs::create_dir(path).unwrap();
        let [image, shown] = [image, path].map(|path| path.display().to_string());
        run("mount", &["-o", "loop", &image, &shown]);
        Self(path.to_owned())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

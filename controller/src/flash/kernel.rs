//! A kernel as its package has it, and the part of its modules that an image gets.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::tool::{self, DEPMOD, XZ};

/// A kernel's package, unpacked.
pub(crate) struct Kernel {
    root: PathBuf,
    version: String,
    /// Of every module, by its path below the kernel's folder, those that it needs.
    needs: BTreeMap<String, Vec<String>>,
}

impl Kernel {
    /// The one kernel that is in a folder.
    ///
    /// # Errors
    /// When there is none, or it cannot be read.
    pub(crate) fn open(root: &Path) -> anyhow::Result<Self> {
        let folder = root.join("lib/modules");
        let mut versions =
            fs::read_dir(&folder).context("the kernel's package has no modules")?.flatten();
        let version = versions.next().context("the kernel's package has no modules")?.file_name();
        let version = version.to_string_lossy().into_owned();
        tool::run(DEPMOD.call()?.arg("-b").arg(root).arg(&version))?;
        let needs = fs::read_to_string(folder.join(&version).join("modules.dep"))?;
        let needs = needs.lines().filter_map(|line| line.split_once(':')).map(|(module, needs)| {
            (module.to_owned(), needs.split_whitespace().map(str::to_owned).collect())
        });
        Ok(Self { root: root.into(), version, needs: needs.collect() })
    }

    /// The file that a loader starts.
    pub(crate) fn image(&self) -> PathBuf {
        self.root.join("boot").join(format!("vmlinuz-{}", self.version))
    }

    /// The folder of its device trees.
    pub(crate) fn device_trees(&self) -> PathBuf {
        self.root.join("usr/lib").join(format!("linux-image-{}", self.version))
    }

    /// Its version, as `uname -r` says it.
    pub(crate) fn version(&self) -> &str {
        &self.version
    }

    /// Puts the modules that lists name into `lib/modules` of a system, with all that they need.
    ///
    /// # Errors
    /// When they cannot be written.
    pub(crate) fn install(&self, lists: &[&str], system: &Path) -> anyhow::Result<()> {
        let from = self.root.join("lib/modules").join(&self.version);
        let to = system.join("lib/modules").join(&self.version);
        fs::create_dir_all(&to)?;
        for module in select(&self.needs, lists) {
            copy_module(&from.join(module), &to.join(module))?;
        }
        for list in ["modules.builtin", "modules.builtin.modinfo", "modules.order"] {
            fs::copy(from.join(list), to.join(list))
                .with_context(|| format!("the kernel's package has no {list}"))?;
        }
        tool::run(DEPMOD.call()?.arg("-b").arg(system).arg(&self.version))?;
        // What only kmod and depmod read.
        for entry in fs::read_dir(&to)?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.ends_with(".bin") || name == "modules.builtin.modinfo" {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }
}

/// Copies a module, as one that every modprobe reads.
fn copy_module(from: &Path, to: &Path) -> anyhow::Result<()> {
    let folder = to.parent().context("a module has no folder")?;
    fs::create_dir_all(folder)?;
    if from.extension().is_some_and(|extension| extension == "xz") {
        let to = fs::File::create(to.with_extension(""))?;
        let status = XZ.call()?.arg("-dc").arg(from).stdout(to).status()?;
        anyhow::ensure!(status.success(), "xz cannot unpack {}", from.display());
    } else {
        fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    }
    Ok(())
}

/// The modules that lists name, and what those need. A line is a module's name, or a folder or
/// module below `kernel/`; what follows a `#` is a comment.
fn select<'a>(needs: &'a BTreeMap<String, Vec<String>>, lists: &[&str]) -> BTreeSet<&'a str> {
    let lines = lists.iter().flat_map(|list| list.lines());
    let wanted: Vec<_> = lines.filter_map(|line| line.split('#').next()).map(str::trim).collect();
    let names: BTreeSet<String> =
        wanted.iter().filter(|line| !line.contains('/')).map(|name| plain(name)).collect();
    let paths: Vec<_> = wanted.iter().filter(|line| line.contains('/')).collect();
    let is_named = |module: &str| {
        let path = module.strip_prefix("kernel/").unwrap_or(module);
        let file = module.rsplit('/').next().unwrap_or_default();
        let name = file.split(".ko").next().unwrap_or_default();
        names.contains(&plain(name))
            || paths.iter().any(|wanted| {
                let rest = path.strip_prefix(**wanted);
                rest.is_some_and(|rest| rest.starts_with(['/', '.']))
            })
    };
    let chosen = needs.iter().filter(|(module, _)| is_named(module));
    chosen.flat_map(|(module, needs)| needs.iter().chain([module])).map(String::as_str).collect()
}

/// A module's name as the kernel spells it.
fn plain(name: &str) -> String {
    name.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_come_with_what_they_need() {
        let needs = [
            ("kernel/fs/ext4/ext4.ko", vec!["kernel/fs/jbd2/jbd2.ko", "kernel/fs/mbcache.ko"]),
            ("kernel/fs/jbd2/jbd2.ko", vec![]),
            ("kernel/fs/mbcache.ko", vec![]),
            ("kernel/drivers/mmc/host/sdhci.ko.xz", vec![]),
            ("kernel/drivers/mmcx/other.ko", vec![]),
            ("kernel/drivers/usb/storage/usb-storage.ko", vec![]),
        ];
        let own = |needs: Vec<&str>| needs.into_iter().map(str::to_owned).collect();
        let needs = needs.into_iter().map(|(name, needs)| (name.to_owned(), own(needs))).collect();
        let lists = ["# a comment\n\next4 # data\n", "drivers/mmc\nusb_storage\nnot-there\n"];
        let selected: Vec<_> = select(&needs, &lists).into_iter().collect();
        assert_eq!(
            selected,
            [
                "kernel/drivers/mmc/host/sdhci.ko.xz",
                "kernel/drivers/usb/storage/usb-storage.ko",
                "kernel/fs/ext4/ext4.ko",
                "kernel/fs/jbd2/jbd2.ko",
                "kernel/fs/mbcache.ko",
            ]
        );
    }
}

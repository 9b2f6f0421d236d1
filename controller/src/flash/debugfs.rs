//! A file system (ext4) inside an image, read and changed by debugfs, which needs neither root nor a
//! loop device.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use super::tool::{self, DEBUGFS, E2FSCK};

/// Links that lead to links, at most.
const LINKS_MAX: usize = 8;

/// A file system, and a folder for what passes between it and this program.
pub(crate) struct Ext4<'a> {
    image: &'a Path,
    offset: u64,
    work: &'a Path,
}

/// What is put into a file system, root's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Entry {
    /// With these bits of its mode, and with what is in it already.
    Folder(String, u32),
    /// In the place of what is there.
    File(String, Vec<u8>, u32),
    /// To what it leads.
    Link(String, String),
}

impl<'a> Ext4<'a> {
    /// The file system that begins at this byte of an image.
    pub(crate) fn at(image: &'a Path, offset: u64, work: &'a Path) -> Self {
        Self { image, offset, work }
    }

    /// What e2fsprogs call it. They run in the image's folder, whose name may have any character.
    fn name(&self) -> anyhow::Result<(String, &Path)> {
        let name = self.image.file_name().context("the image has no name")?.to_string_lossy();
        let folder = self.image.parent().context("the image has no folder")?;
        Ok((format!("./{name}?offset={}", self.offset), folder))
    }

    fn ask(&self, request: &str) -> anyhow::Result<Option<Vec<u8>>> {
        let (name, folder) = self.name()?;
        let mut command = DEBUGFS.call()?;
        command.current_dir(folder).arg("-R").arg(request).arg(name);
        let output = command.output().context("cannot run debugfs")?;
        // It says its version first, and ends well even where it could not.
        let said = String::from_utf8_lossy(&output.stderr);
        Ok((output.status.success() && said.lines().count() <= 1).then_some(output.stdout))
    }

    /// The content of a file, wherever links lead; None where there is none.
    pub(crate) fn read(&self, path: &str) -> anyhow::Result<Option<Vec<u8>>> {
        match self.resolve(path)? {
            Some(path) => self.ask(&format!("cat {}", quoted(&path)?)),
            None => Ok(None),
        }
    }

    /// Whether there is something by this name, wherever links lead.
    pub(crate) fn exists(&self, path: &str) -> anyhow::Result<bool> {
        Ok(self.resolve(path)?.is_some())
    }

    /// Where links lead from a path, the last of which debugfs does not follow.
    fn resolve(&self, path: &str) -> anyhow::Result<Option<String>> {
        let mut path = path.to_owned();
        for _ in 0..LINKS_MAX {
            let Some(stat) = self.stat(&path)? else { return Ok(None) };
            if !stat.contains("Type: symlink") {
                return Ok(Some(path));
            }
            let target = stat.lines().find_map(|line| line.strip_prefix("Fast link dest: "));
            let Some(target) = target.map(|target| target.trim_matches('"')) else {
                return Ok(None);
            };
            path = match (target.starts_with('/'), split(&path).0) {
                (true, _) => target.to_owned(),
                (false, "/") => format!("/{target}"),
                (false, folder) => format!("{folder}/{target}"),
            };
        }
        Ok(None)
    }

    fn stat(&self, path: &str) -> anyhow::Result<Option<String>> {
        let said = self.ask(&format!("stat {}", quoted(path)?))?;
        Ok(said.map(|said| String::from_utf8_lossy(&said).into_owned()))
    }

    /// How many bytes files may still take.
    ///
    /// # Errors
    /// When it is no ext4, or was not unmounted cleanly.
    pub(crate) fn free_bytes(&self) -> anyhow::Result<u64> {
        let said = self.ask("stats -h")?.context("debugfs cannot read its ext4")?;
        let said = String::from_utf8_lossy(&said);
        let field = |key: &str| said.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
        anyhow::ensure!(
            !field("Filesystem features:").unwrap_or_default().contains("needs_recovery"),
            "it was not unmounted cleanly: take an image as its distribution publishes it"
        );
        let number = |key: &str| {
            field(key).and_then(|n| n.parse::<u64>().ok()).with_context(|| format!("no {key}"))
        };
        let blocks = number("Free blocks:")?.saturating_sub(number("Reserved block count:")?);
        Ok(blocks * number("Block size:")?)
    }

    /// Whether nothing is wrong with it.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        let (name, folder) = self.name()?;
        tool::run(E2FSCK.call()?.current_dir(folder).arg("-fn").arg(name))?;
        Ok(())
    }

    /// Puts all entries there, with the folders that they are in, and reads them back.
    pub(crate) fn put(&self, entries: &[Entry]) -> anyhow::Result<()> {
        let mut script = String::new();
        let mut made = BTreeSet::new();
        for (index, entry) in entries.iter().enumerate() {
            self.folders(entry.path(), &mut made, &mut script)?;
            let (folder, name) = split(entry.path());
            let (folder, name, path) = (quoted(folder)?, quoted(name)?, quoted(entry.path())?);
            let mode = match entry {
                Entry::Folder(own, mode) => {
                    if !self.exists(own)? && made.insert(own.clone()) {
                        writeln!(script, "mkdir {path}")?;
                    }
                    0o40_000 | mode
                }
                Entry::File(own, content, mode) => {
                    if self.stat(own)?.is_some() {
                        writeln!(script, "rm {path}")?;
                    }
                    let file = self.work.join(format!("entry-{index}"));
                    fs::write(&file, content)?;
                    writeln!(script, "cd {folder}\nwrite {} {name}", quoted(&shown(&file)?)?)?;
                    0o100_000 | mode
                }
                Entry::Link(own, target) => {
                    if self.stat(own)?.is_some() {
                        continue;
                    }
                    writeln!(script, "cd {folder}\nsymlink {name} {}", quoted(target)?)?;
                    continue;
                }
            };
            writeln!(script, "set_inode_field {path} mode 0{mode:o}")?;
            writeln!(script, "set_inode_field {path} uid 0\nset_inode_field {path} gid 0")?;
        }
        self.run(&script)?;
        entries.iter().try_for_each(|entry| self.verify(entry))
    }

    fn folders(
        &self,
        path: &str,
        made: &mut BTreeSet<String>,
        script: &mut String,
    ) -> anyhow::Result<()> {
        let (folder, _) = split(path);
        if folder == "/" || made.contains(folder) || self.exists(folder)? {
            return Ok(());
        }
        self.folders(folder, made, script)?;
        writeln!(script, "mkdir {}", quoted(folder)?)?;
        made.insert(folder.to_owned());
        Ok(())
    }

    fn run(&self, script: &str) -> anyhow::Result<()> {
        let (name, folder) = self.name()?;
        let file = self.work.join("commands");
        fs::write(&file, script)?;
        let mut command: Command = DEBUGFS.call()?;
        command.current_dir(folder).arg("-w").arg("-f").arg(std::path::absolute(&file)?).arg(name);
        let output = command.output().context("cannot run debugfs")?;
        let said = String::from_utf8_lossy(&output.stderr);
        let faults: Vec<_> = said.lines().skip(1).collect();
        anyhow::ensure!(
            output.status.success() && faults.is_empty(),
            "debugfs cannot write: {}",
            faults.join("; ")
        );
        Ok(())
    }

    fn verify(&self, entry: &Entry) -> anyhow::Result<()> {
        let path = entry.path();
        let differs = || format!("{path} is not what was written: the image is damaged");
        let stat = self.stat(path)?.with_context(differs)?;
        let mode = match entry {
            Entry::Folder(_, mode) | Entry::File(_, _, mode) => mode,
            Entry::Link(..) => return Ok(()),
        };
        let words: Vec<_> = stat.split_whitespace().collect();
        let follows = |key: &str, value: &str| words.windows(2).any(|pair| pair == [key, value]);
        let is_so = follows("Mode:", &format!("{mode:04o}"))
            && follows("User:", "0")
            && follows("Group:", "0");
        anyhow::ensure!(is_so, "{}", differs());
        if let Entry::File(_, content, _) = entry {
            anyhow::ensure!(self.read(path)?.as_ref() == Some(content), "{}", differs());
        }
        Ok(())
    }
}

impl Entry {
    fn path(&self) -> &str {
        match self {
            Self::Folder(path, _) | Self::File(path, _, _) | Self::Link(path, _) => path,
        }
    }

    /// What it takes at most.
    pub(crate) fn bytes(&self) -> u64 {
        match self {
            Self::Folder(..) | Self::Link(..) => 4096,
            Self::File(_, content, _) => 4096 + content.len() as u64,
        }
    }
}

/// Folder and name of an absolute path.
fn split(path: &str) -> (&str, &str) {
    match path.rsplit_once('/') {
        Some(("", name)) => ("/", name),
        Some((folder, name)) => (folder, name),
        None => ("/", path),
    }
}

/// A word for debugfs, which knows no escapes.
fn quoted(text: &str) -> anyhow::Result<String> {
    anyhow::ensure!(!text.contains(['"', '\n']), "{text:?} cannot be said to debugfs");
    Ok(format!("\"{text}\""))
}

fn shown(path: &Path) -> anyhow::Result<String> {
    let path: PathBuf = std::path::absolute(path)?;
    let text = std::str::from_utf8(path.as_os_str().as_bytes());
    Ok(text.with_context(|| format!("{} is not UTF-8", path.display()))?.to_owned())
}

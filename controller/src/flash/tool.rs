//! The programs of this machine that images are made with.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::Context;

/// What a failed program said at most, in a message.
const SAID_LINES_MAX: usize = 5;

/// A program, and the Debian package that has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tool(pub(crate) &'static str, pub(crate) &'static str);

pub(crate) const APT_GET: Tool = Tool("apt-get", "apt");
pub(crate) const APT_CACHE: Tool = Tool("apt-cache", "apt");
pub(crate) const DPKG_DEB: Tool = Tool("dpkg-deb", "dpkg");
pub(crate) const DEPMOD: Tool = Tool("depmod", "kmod");
pub(crate) const MKSQUASHFS: Tool = Tool("mksquashfs", "squashfs-tools");
pub(crate) const MKE2FS: Tool = Tool("mke2fs", "e2fsprogs");
pub(crate) const DEBUGFS: Tool = Tool("debugfs", "e2fsprogs");
pub(crate) const E2FSCK: Tool = Tool("e2fsck", "e2fsprogs");
pub(crate) const XZ: Tool = Tool("xz", "xz-utils");
pub(crate) const SKOPEO: Tool = Tool("skopeo", "skopeo");

/// Whoever is not root need not have these in `PATH`.
const FURTHER: [&str; 2] = ["/usr/sbin", "/sbin"];

impl Tool {
    fn find(self) -> Option<PathBuf> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = std::env::split_paths(&path).chain(FURTHER.map(PathBuf::from));
        folders.map(|folder| folder.join(self.0)).find(|file| file.is_file())
    }

    /// A call of it.
    ///
    /// # Errors
    /// When this machine does not have it.
    pub(crate) fn call(self) -> anyhow::Result<Command> {
        require(&[self])?;
        let mut command = Command::new(self.find().unwrap_or_else(|| self.0.into()));
        command.env("LC_ALL", "C");
        Ok(command)
    }
}

/// Says all tools that are missing, at once.
pub(crate) fn require(tools: &[Tool]) -> anyhow::Result<()> {
    let missing: Vec<_> = tools.iter().filter(|tool| tool.find().is_none()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let lines = missing
        .iter()
        .map(|Tool(name, package)| format!("{name} is missing: it is in the package {package}"));
    let packages: Vec<_> = missing.iter().map(|tool| tool.1).collect();
    let lines = lines.collect::<Vec<_>>().join("\n  ");
    anyhow::bail!("this machine lacks tools:\n  {lines}\n  apt-get install {}", packages.join(" "))
}

/// Runs a program to its end, and gives what it wrote.
///
/// # Errors
/// With the end of what it said, when it fails.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output();
    finished(command, output)
}

/// The same, with something to read for it.
pub(crate) fn run_with(command: &mut Command, input: &str) -> anyhow::Result<String> {
    use std::process::Stdio;
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = command.spawn().and_then(|mut child| {
        let pipe = child.stdin.take();
        std::thread::scope(|scope| {
            // One that reads no further says why by itself.
            scope.spawn(|| pipe.map(|mut pipe| pipe.write_all(input.as_bytes())));
            child.wait_with_output()
        })
    });
    finished(command, output)
}

fn finished(command: &Command, output: std::io::Result<Output>) -> anyhow::Result<String> {
    let name = Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy();
    let output = output.with_context(|| format!("cannot run {name}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<_> = said.lines().filter(|line| !line.trim().is_empty()).collect();
    let last = lines.iter().skip(lines.len().saturating_sub(SAID_LINES_MAX));
    let last = last.copied().collect::<Vec<_>>().join("\n  ");
    anyhow::bail!("{name} failed ({}):\n  {last}", output.status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_said_with_its_package() {
        let nowhere = Tool("limpet-no-such-tool", "nothing");
        let why = require(&[Tool("sh", "dash"), nowhere]).unwrap_err().to_string();
        assert!(why.contains("limpet-no-such-tool is missing: it is in the package nothing"));
        assert!(!why.contains("dash"));
    }

    #[test]
    fn what_fails_says_why() {
        let mut sh = Command::new("sh");
        let why = run(sh.args(["-c", "echo no >&2; exit 3"])).unwrap_err().to_string();
        assert_eq!(why, "sh failed (exit status: 3):\n  no");
        assert_eq!(run_with(&mut Command::new("cat"), "text").unwrap(), "text");
    }
}

//! Images that are on a card before its device has seen a network: fetched by skopeo where they are
//! named, and put into the device's store by the agent itself.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use super::board::Machine;
use super::tool::{self, SKOPEO};

/// Where agents are that came with this program, besides its own folder.
const AGENTS: &str = "/usr/share/limpet/agents";

/// The agent for a machine: `named`, or what came with this program.
///
/// # Errors
/// When there is none, or it is for another machine.
pub(crate) fn agent_for(machine: &Machine, named: Option<&Path>) -> anyhow::Result<PathBuf> {
    let name = format!("limpet-agent-{}", machine.name);
    let agent = match named {
        Some(file) => file.to_owned(),
        None => beside(&name).with_context(|| {
            format!("there is no {name} beside limpet, nor in {AGENTS}: say `--agent FILE`")
        })?,
    };
    let bytes =
        std::fs::read(&agent).with_context(|| format!("cannot read {}", agent.display()))?;
    let program = super::elf::read(&bytes).with_context(|| agent.display().to_string())?;
    anyhow::ensure!(
        program.machine == machine.elf,
        "{} is for another machine than {}",
        agent.display(),
        machine.name
    );
    anyhow::ensure!(
        program.loader.is_none() || named.is_some(),
        "{} is not static: the board may not have its libraries",
        agent.display()
    );
    Ok(agent)
}

/// An agent that runs here.
///
/// # Errors
/// When none came with this program.
pub(crate) fn agent_here() -> anyhow::Result<PathBuf> {
    let arch = if std::env::consts::ARCH == "arm" { "armv7" } else { std::env::consts::ARCH };
    let name = format!("limpet-agent-{arch}");
    let agent = beside(&name).or_else(|| beside("limpet-agent"));
    agent.with_context(|| format!("it needs an agent that runs here: put {name} beside limpet"))
}

fn beside(name: &str) -> Option<PathBuf> {
    let own = std::env::current_exe().ok()?;
    let folders = [own.parent()?.to_owned(), PathBuf::from(AGENTS)];
    folders.map(|folder| folder.join(name)).into_iter().find(|file| file.is_file())
}

/// Puts images into the data folder of a device.
///
/// # Errors
/// When one cannot be had, or there is no agent that runs here.
pub(crate) fn preload(
    images: &[String],
    machine: &Machine,
    data_dir: &Path,
    work: &Path,
) -> anyhow::Result<()> {
    if images.is_empty() {
        return Ok(());
    }
    anyhow::ensure!(
        rustix::process::geteuid().is_root(),
        "--preload unpacks layers with the owners that they name: be root (sudo)"
    );
    let agent = agent_here().context("--preload")?;
    for (index, image) in images.iter().enumerate() {
        let archive = archive(image, machine, work, index)?;
        let mut command = Command::new(&agent);
        command.arg("preload").arg(archive);
        command.args(["--platform", machine.platform, "--data-dir"]).arg(data_dir);
        let done = tool::run(&mut command).with_context(|| format!("cannot preload {image}"))?;
        super::apt::log_line(done.trim_end());
    }
    Ok(())
}

/// The file that has an image: fetched, unless it is one.
///
/// # Errors
/// When it cannot be fetched.
pub(crate) fn archive(
    image: &str,
    machine: &Machine,
    work: &Path,
    index: usize,
) -> anyhow::Result<PathBuf> {
    if Path::new(image).exists() {
        return Ok(image.into());
    }
    let archive = work.join(format!("image-{index}.tar"));
    fetch(image, machine, &archive).with_context(|| format!("cannot fetch {image}"))?;
    Ok(archive)
}

fn fetch(image: &str, machine: &Machine, archive: &Path) -> anyhow::Result<()> {
    let mut parts = machine.platform.split('/');
    let mut skopeo = SKOPEO.call()?;
    skopeo.arg("copy");
    for flag in ["--override-os", "--override-arch", "--override-variant"] {
        if let Some(part) = parts.next() {
            skopeo.args([flag, part]);
        }
    }
    // As agents do: a registry of this machine has no certificate.
    if image.starts_with("localhost:") || image.starts_with("127.") {
        skopeo.arg("--src-tls-verify=false");
    }
    skopeo.arg(format!("docker://{image}"));
    skopeo.arg(format!("oci-archive:{}:{image}", archive.display()));
    tool::run(&mut skopeo)?;
    Ok(())
}

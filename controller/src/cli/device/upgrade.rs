//! `limpet device upgrade`

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use limpet_controller_core::program;
use limpet_protocol::upgrade::PROGRAM_BYTES_MAX;
use limpet_protocol::{AgentVersion, DeviceId};
use ureq::http::Method;

use super::super::client::Client;
use super::super::progress::{self, POLL_EVERY, Progress};
use super::super::{Usage, pair, print};
use crate::view::{DeviceView, UpgradeRequest, UpgradeResult};

/// What files of agents are called in a folder.
const PREFIX: &str = "limpet-agent-";

/// Have devices replace their agent with another version of it
///
/// Each device fetches the program, as it can, over any link, and runs it beside its containers, which
/// do not notice. The program has --deadline to prove itself: it must connect, find all containers
/// again, and have its report acknowledged. Otherwise the one before it returns, and the reason is told
/// here, in `limpet describe device` and as an event; the device tries the same order no second time.
///
/// The programs come from --from: a file, or the folder that `make dist` fills. Once they are there,
/// --version alone is enough; `limpet get agents` lists them. An older version can be ordered as well:
/// where it cannot read what the newer one has written, it does not prove itself, and that one returns.
///
/// Examples:
///   limpet device upgrade pi-1 --version 0.2.0 --from dist/
///   limpet device upgrade --select site=berlin --version 0.2.0
///   limpet device upgrade --all --version 0.2.0 --detach
///   limpet device upgrade --remove 0.1.0
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Upgrade {
    /// The devices
    device: Vec<DeviceId>,
    /// The version that they are to run
    #[arg(long, required_unless_present = "remove")]
    version: Option<AgentVersion>,
    /// The devices with this label; can be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair, conflicts_with = "device")]
    select: Vec<(String, String)>,
    /// All devices
    #[arg(long, conflicts_with_all = ["device", "select"])]
    all: bool,
    /// Upload the version first: a program, or a folder of limpet-agent-ARCH
    #[arg(long, value_name = "FILE|DIR")]
    from: Option<PathBuf>,
    /// Also programs that need a loader and libraries, which the devices must have
    #[arg(long, requires = "from")]
    dynamic: bool,
    /// Remove the programs of this version from the controller, and order nothing
    #[arg(long, value_name = "VERSION", exclusive = true)]
    remove: Option<AgentVersion>,
    /// How long the program may take to prove itself: 10s to 1h
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = progress::duration)]
    deadline: Duration,
    /// Do not wait until the devices have done it
    #[arg(long)]
    detach: bool,
    /// Wait at most this long: 60s, 5m
    #[arg(long, value_name = "TIME", default_value = "15m", value_parser = progress::duration)]
    timeout: Duration,
}

impl Upgrade {
    pub(super) fn run(self, client: &Client) -> anyhow::Result<()> {
        let Some(version) = &self.version else {
            let version = self.remove.context("say --version or --remove")?;
            client.order(Method::DELETE, &format!("/api/v1/agents/{version}"))?;
            return print(&format!("agent/{version} removed\n"));
        };
        let picks = !self.device.is_empty() || !self.select.is_empty() || self.all;
        if !picks && self.from.is_none() {
            return Err(Usage("say which devices, --select, or --all").into());
        }
        if let Some(from) = &self.from {
            for file in files(from)? {
                self.upload(client, version, &file)?;
            }
        }
        if !picks {
            return Ok(());
        }
        let request = UpgradeRequest {
            version: version.to_string(),
            devices: self.device.iter().map(DeviceId::to_string).collect(),
            select: self.select.iter().cloned().collect(),
            deadline_s: u16::try_from(self.deadline.as_secs()).ok().or(Some(u16::MAX)),
        };
        let result: UpgradeResult = client.ask("/api/v1/upgrade", &request)?;
        for id in result.orders.keys() {
            print(&format!("device/{id} is to run agent {version}\n"))?;
        }
        if self.detach { Ok(()) } else { self.wait(client, version, &result.orders) }
    }

    fn upload(&self, client: &Client, version: &AgentVersion, file: &Path) -> anyhow::Result<()> {
        let shown = file.display();
        let size = std::fs::metadata(file).with_context(|| format!("cannot read {shown}"))?.len();
        if size > PROGRAM_BYTES_MAX {
            bail!(
                "{shown} has {size} bytes: a program of an agent has at most {PROGRAM_BYTES_MAX}"
            );
        }
        let bytes = std::fs::read(file).with_context(|| format!("cannot read {shown}"))?;
        let arch = program::arch(&bytes).with_context(|| shown.to_string())?;
        if program::is_dynamic(&bytes) && !self.dynamic {
            bail!(
                "{shown} needs a loader and libraries of the machine that it runs on: use what `make \
                 dist` puts into dist/, or say --dynamic where the devices have them"
            );
        }
        match program::version(&bytes) {
            None => bail!("{shown} is no agent of Limpet: it does not say which version it is"),
            Some(actual) if actual != *version => {
                bail!("{shown} is the agent {actual}, not {version}: say --version {actual}")
            }
            Some(_) => {}
        }
        client.send_to(&format!("/api/v1/agents/{version}/{arch}"), &bytes)?;
        print(&format!("agent/{version} for {arch} is uploaded\n"))
    }

    fn wait(
        &self,
        client: &Client,
        version: &AgentVersion,
        orders: &BTreeMap<String, u64>,
    ) -> anyhow::Result<()> {
        let deadline = Instant::now() + self.timeout;
        let mut progress = Progress::new(&format!("agent {version}"));
        loop {
            let devices: Vec<DeviceView> = client.get("/api/v1/devices")?;
            let standing = Standing::of(&devices, orders);
            let all = u32::try_from(orders.len()).unwrap_or(u32::MAX);
            progress.say(&standing.summary(), Some((standing.done, all)));
            let is_late = Instant::now() >= deadline;
            if standing.under_way.is_empty() || is_late {
                progress.end();
                print(&format!("agent {version}: {}\n", standing.summary()))?;
                for id in &standing.deferred {
                    print(&format!("  {id} is away: it does so when it is back\n"))?;
                }
                return standing.verdict(self.timeout);
            }
            std::thread::sleep(POLL_EVERY);
        }
    }
}

/// The programs that a path names.
fn files(from: &Path) -> anyhow::Result<Vec<PathBuf>> {
    if !from.is_dir() {
        return Ok(vec![from.to_owned()]);
    }
    let shown = from.display();
    let listed = std::fs::read_dir(from).with_context(|| format!("cannot read {shown}"))?;
    let is_program = |path: &PathBuf| {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        name.is_some_and(|name| name.starts_with(PREFIX) && !name.contains('.')) && path.is_file()
    };
    let mut files: Vec<_> = listed.flatten().map(|f| f.path()).filter(is_program).collect();
    files.sort();
    match files.is_empty() {
        true => bail!("there is no {PREFIX}ARCH in {shown}: `make dist` puts them into dist/"),
        false => Ok(files),
    }
}

/// How the devices stand that were picked.
#[derive(Debug, Default, PartialEq, Eq)]
struct Standing {
    done: u32,
    /// Those that have not begun, and are away.
    deferred: Vec<String>,
    /// Those that have failed, with why.
    failed: Vec<String>,
    /// All others, with how far they are.
    under_way: Vec<String>,
}

impl Standing {
    fn of(devices: &[DeviceView], orders: &BTreeMap<String, u64>) -> Self {
        let mut standing = Self::default();
        for (id, order) in orders {
            let device = devices.iter().find(|device| device.id == *id);
            let upgrade = device.and_then(|device| device.upgrade.as_ref());
            let Some((device, upgrade)) = device.zip(upgrade) else {
                standing.failed.push(format!("{id}: it was removed meanwhile"));
                continue;
            };
            let away = device.presence != "online";
            match upgrade.phase.as_str() {
                _ if upgrade.order != *order => {
                    standing.failed.push(format!("{id}: another order has taken its place"));
                }
                "done" => standing.done += 1,
                "failed" => standing.failed.push(format!("{id}: {}", upgrade.message)),
                "ordered" if away => standing.deferred.push(id.clone()),
                phase => {
                    let told = format!("{id} {phase} {}", upgrade.message);
                    standing.under_way.push(told.trim_end().to_owned());
                }
            }
        }
        standing
    }

    fn summary(&self) -> String {
        let Self { done, deferred, failed, under_way } = self;
        let mut text = format!("{done} done");
        for (count, what) in [(failed.len(), "failed"), (deferred.len(), "deferred")] {
            if count > 0 {
                text += &format!(", {count} {what}");
            }
        }
        match under_way.as_slice() {
            [] => text,
            [one] => format!("{text}, {one}"),
            [one, more @ ..] => format!("{text}, {one} and {} more", more.len()),
        }
    }

    fn verdict(&self, timeout: Duration) -> anyhow::Result<()> {
        let late = self.under_way.iter().map(|told| {
            let seconds = timeout.as_secs();
            format!("{told}: not done after {seconds} s; it goes on")
        });
        let whys: Vec<String> = self.failed.iter().cloned().chain(late).collect();
        if whys.is_empty() { Ok(()) } else { bail!("{}", whys.join("\n  ")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::UpgradeView;

    #[test]
    fn whoever_is_away_is_deferred_and_whoever_failed_is_named() {
        let device = |id: &str, presence: &str, phase: &str, message: &str| DeviceView {
            id: id.to_owned(),
            presence: presence.to_owned(),
            upgrade: Some(UpgradeView {
                order: 7,
                version: "0.2.0".to_owned(),
                phase: phase.to_owned(),
                message: message.to_owned(),
            }),
            ..DeviceView::default()
        };
        let devices = [
            device("a", "online", "done", ""),
            device("b", "offline", "ordered", ""),
            device("c", "online", "failed", "it ended"),
            device("d", "online", "fetching", "40 %"),
            device("e", "offline", "trying", ""),
        ];
        let order = |id: &str| (id.to_owned(), 7);
        let standing = Standing::of(&devices, &["a", "b", "c", "d", "e"].map(order).into());
        assert_eq!(standing.summary(), "1 done, 1 failed, 1 deferred, d fetching 40 % and 1 more");
        let why = standing.verdict(Duration::from_secs(9)).unwrap_err().to_string();
        expect_test::expect![[r#"
            c: it ended
              d fetching 40 %: not done after 9 s; it goes on
              e trying: not done after 9 s; it goes on"#]]
        .assert_eq(&why);
        let later = Standing::of(&devices, &[("a".to_owned(), 8), ("x".to_owned(), 7)].into());
        assert_eq!(later.failed.len(), 2, "{later:?}");
        let deferred = Standing::of(&devices, &[order("a"), order("b")].into());
        assert!(deferred.under_way.is_empty() && deferred.verdict(Duration::ZERO).is_ok());
    }
}

//! Waits until a change has settled, and says how far it is.

use std::io::{IsTerminal, Read};
use std::time::{Duration, Instant};

use anyhow::bail;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::client::Client;
use super::print;
use crate::view::{DeployResult, DeploymentView, LogLineView, WorkloadView};

/// How often the controller is asked.
pub(super) const POLL_EVERY: Duration = Duration::from_millis(100);
/// What is stuck for this long will not move by itself.
const STUCK_FOR: Duration = Duration::from_secs(3);
/// Lines of a failing workload's log that are shown.
const LOG_LINES: usize = 5;

/// Whether and how long to wait.
#[derive(Debug, Clone, Args)]
pub(super) struct Waiting {
    /// Do not wait until it has settled
    #[arg(long)]
    pub(super) detach: bool,
    /// Wait at most this long: 60s, 5m
    #[arg(long, value_name = "TIME", default_value = "120s", value_parser = duration)]
    pub(super) timeout: Duration,
}

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    limpet_controller_core::manifest::duration_ms(text).map(|ms| Duration::from_millis(ms.into()))
}

/// A line that changes, on a terminal; elsewhere a line whenever something changes.
pub(super) struct Progress {
    name: String,
    bar: Option<ProgressBar>,
    last: String,
}

impl Progress {
    pub(super) fn new(name: &str) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            let style = ProgressStyle::with_template("{spinner} {msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        Self { name: name.to_owned(), bar, last: String::new() }
    }

    pub(super) fn say(&mut self, what: &str, done: Option<(u32, u32)>) {
        let bar = match done {
            Some((done, all)) if all > 0 && self.bar.is_some() => {
                let filled = usize::try_from(u64::from(done) * 20 / u64::from(all)).unwrap_or(20);
                format!("[{}{}] ", "#".repeat(filled.min(20)), ".".repeat(20 - filled.min(20)))
            }
            _ => String::new(),
        };
        let line = format!("{}: {bar}{what}", self.name);
        match &self.bar {
            Some(bar) => bar.set_message(line),
            None if line != self.last => {
                let _ = std::io::Write::write_all(
                    &mut std::io::stderr(),
                    format!("{line}\n").as_bytes(),
                );
                self.last = line;
            }
            None => {}
        }
    }

    pub(super) fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Waits for a change that the controller has accepted.
pub(super) fn settle(
    client: &Client,
    result: &DeployResult,
    waiting: &Waiting,
) -> anyhow::Result<()> {
    if waiting.detach {
        return Ok(());
    }
    let name = &result.name;
    let deadline = Instant::now() + waiting.timeout;
    let mut progress = Progress::new(name);
    let mut stuck_since: Option<Instant> = None;
    loop {
        let Some(deployment) = client.deployment(name)? else {
            bail!("{name} was deleted meanwhile");
        };
        let pulling = pulling(client, &deployment);
        let done = Some((deployment.running, deployment.desired));
        progress.say(&format!("{}{pulling}", summary(&deployment)), done);
        match deployment.status.as_str() {
            "settled" => {
                progress.end();
                return print(&format!("{name}: {}\n", summary(&deployment)));
            }
            "stuck" => {
                let since = *stuck_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= STUCK_FOR {
                    progress.end();
                    bail!("{name} cannot settle: {}", why(client, &deployment));
                }
            }
            _ => stuck_since = None,
        }
        if Instant::now() >= deadline {
            progress.end();
            let waited = waiting.timeout.as_secs();
            bail!("{name} has not settled after {waited} s: {}", why(client, &deployment));
        }
        std::thread::sleep(POLL_EVERY);
    }
}

/// How far a pull has come, where one is under way.
fn pulling(client: &Client, deployment: &DeploymentView) -> String {
    if deployment.status != "progressing" || deployment.running == deployment.desired {
        return String::new();
    }
    let path = format!("/api/v1/workloads?deployment={}", deployment.name);
    let workloads: Vec<WorkloadView> = client.get(&path).unwrap_or_default();
    let told = workloads.iter().find(|w| w.phase == "pulling" && !w.message.is_empty());
    told.map(|w| format!(", {} pulls its image: {}", w.device, w.message)).unwrap_or_default()
}

fn summary(deployment: &DeploymentView) -> String {
    format!("{} of {} running", deployment.running, deployment.desired)
}

/// The reason, and what the failing workload wrote last.
fn why(client: &Client, deployment: &DeploymentView) -> String {
    let reason = deployment.reason.clone().unwrap_or_else(|| summary(deployment));
    let path = format!("/api/v1/workloads?deployment={}", deployment.name);
    let workloads: Vec<WorkloadView> = client.get(&path).unwrap_or_default();
    let failing = workloads.iter().find(|w| w.online && w.exit.is_some() && w.phase != "running");
    let lines = failing.map(|w| last_lines(client, w)).unwrap_or_default();
    match lines.is_empty() {
        true => reason,
        false => format!("{reason}\nits last lines:\n  {}", lines.join("\n  ")),
    }
}

fn last_lines(client: &Client, workload: &WorkloadView) -> Vec<String> {
    let path =
        format!("/api/v1/workloads/{}/{}/logs?tail={LOG_LINES}", workload.device, workload.id);
    let mut text = String::new();
    if let Ok(body) = client.stream(&path) {
        // What was read until it broke off is better than nothing.
        let _ = body.take(64 * 1024).read_to_string(&mut text);
    }
    text.lines()
        .filter_map(|l| serde_json::from_str::<LogLineView>(l).ok())
        .map(|l| l.line)
        .collect()
}

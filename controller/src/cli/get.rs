//! `limpet get`

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::Duration;

use anyhow::bail;
use clap::{Args, ValueEnum};
use limpet_protocol::DeviceId;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::client::Client;
use super::table::{age, bytes, known_age, table};
use super::{pair, print};
use crate::view::{
    AgentView, AuditView, DeploymentView, DeviceView, EventView, ExitView, SecretView, WorkloadView,
};

const WATCH_EVERY: Duration = Duration::from_secs(1);

/// List devices, deployments, workloads, events, secrets, versions of the agent, or who did what
///
/// Examples:
///   limpet get devices --select site=berlin
///   limpet get workloads web -o wide
///   limpet get events --watch
///   limpet get audit --limit 20 -o wide
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Get {
    /// What to list
    #[arg(value_enum)]
    kind: Kind,
    /// Only this one; of workloads and events, those of this deployment; of the audit log, what was
    /// done to it
    name: Option<DeviceId>,
    /// How to print it
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// Only devices with this label; can be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    select: Vec<(String, String)>,
    /// At most this many, the latest [200 events, 100 entries of the audit log]
    #[arg(long, value_name = "N")]
    limit: Option<u32>,
    /// Print again whenever something changes, until interrupted
    #[arg(short, long)]
    watch: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    #[value(alias = "device", alias = "dev")]
    Devices,
    #[value(alias = "deployment", alias = "deploy")]
    Deployments,
    #[value(alias = "workload", alias = "wl")]
    Workloads,
    #[value(alias = "event", alias = "ev")]
    Events,
    Audit,
    #[value(alias = "secret")]
    Secrets,
    #[value(alias = "agent")]
    Agents,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Wide,
    Json,
    Yaml,
}

impl Get {
    pub(super) fn run(self, client: &Client) -> anyhow::Result<()> {
        if !self.select.is_empty() && self.kind != Kind::Devices {
            let why = "--select picks devices; it goes with `limpet get devices`";
            return Err(super::Usage(why).into());
        }
        if self.limit.is_some() && !matches!(self.kind, Kind::Events | Kind::Audit) {
            let why = "--limit goes with `limpet get events` and `limpet get audit`";
            return Err(super::Usage(why).into());
        }
        let mut shown = String::new();
        loop {
            let text = self.text(client)?;
            if text != shown {
                let clear = self.watch && !shown.is_empty() && std::io::stdout().is_terminal();
                print(if clear { "\x1b[2J\x1b[H" } else { "" })?;
                print(&text)?;
                shown = text;
            }
            if !self.watch {
                return Ok(());
            }
            std::thread::sleep(WATCH_EVERY);
        }
    }

    fn text(&self, client: &Client) -> anyhow::Result<String> {
        let name = self.name.as_ref().map(DeviceId::as_str);
        match self.kind {
            Kind::Devices => {
                let mut rows: Vec<DeviceView> = client.get("/api/v1/devices")?;
                rows.retain(|row| carries(&row.labels, &self.select));
                self.show(named(rows, name, |row| &row.id)?, DEVICE, device)
            }
            Kind::Deployments => {
                let rows: Vec<DeploymentView> = client.get("/api/v1/deployments")?;
                if self.output == Output::Yaml
                    && let Some(name) = name
                {
                    return client.text(&format!("/api/v1/deployments/{name}/manifest"));
                }
                self.show(named(rows, name, |row| &row.name)?, DEPLOYMENT, deployment)
            }
            Kind::Workloads => self.show(self.listed(client, "workloads")?, WORKLOAD, workload),
            Kind::Events => self.show(self.listed(client, "events")?, EVENT, event),
            Kind::Secrets => {
                let rows: Vec<SecretView> = client.get("/api/v1/secrets")?;
                self.show(named(rows, name, |row| &row.name)?, SECRET, secret)
            }
            Kind::Agents => {
                let rows: Vec<AgentView> = client.get("/api/v1/agents")?;
                self.show(named(rows, name, |row| &row.version)?, AGENT, agent)
            }
            Kind::Audit => {
                let rows: Vec<AuditView> = self.listed(client, "audit")?;
                self.show(rows, AUDIT, audit)
            }
        }
    }

    fn listed<T: DeserializeOwned>(&self, client: &Client, what: &str) -> anyhow::Result<Vec<T>> {
        let key = if self.kind == Kind::Audit { "name" } else { "deployment" };
        let name = self.name.as_ref().map(|name| format!("{key}={name}"));
        let limit = self.limit.map(|limit| format!("limit={limit}"));
        let query: Vec<String> = name.into_iter().chain(limit).collect();
        client.get(&format!("/api/v1/{what}?{}", query.join("&")))
    }

    fn show<T: Serialize>(
        &self,
        rows: Vec<T>,
        (heads, narrow): (&[&str], usize),
        row: fn(&T) -> Vec<String>,
    ) -> anyhow::Result<String> {
        let cut = if self.output == Output::Wide { heads.len() } else { narrow };
        match self.output {
            Output::Table | Output::Wide if rows.is_empty() => Ok("nothing found\n".to_owned()),
            Output::Table | Output::Wide => {
                let cells: Vec<Vec<String>> =
                    rows.iter().map(|r| row(r).into_iter().take(cut).collect()).collect();
                Ok(table(&heads[..cut], &cells))
            }
            Output::Json => Ok(serde_json::to_string_pretty(&rows)? + "\n"),
            Output::Yaml => yaml(&rows),
        }
    }
}

/// A list as YAML: each field as JSON, which YAML contains.
fn yaml<T: Serialize>(rows: &[T]) -> anyhow::Result<String> {
    let mut out = String::new();
    for row in rows {
        let fields: serde_json::Map<String, serde_json::Value> =
            serde_json::from_value(serde_json::to_value(row)?)?;
        for (index, (key, value)) in fields.iter().enumerate() {
            let mark = if index == 0 { "- " } else { "  " };
            out += &format!("{mark}{key}: {value}\n");
        }
    }
    Ok(if out.is_empty() { "[]\n".to_owned() } else { out })
}

fn carries(labels: &BTreeMap<String, String>, select: &[(String, String)]) -> bool {
    select.iter().all(|(key, value)| labels.get(key) == Some(value))
}

fn named<T>(rows: Vec<T>, name: Option<&str>, id: fn(&T) -> &String) -> anyhow::Result<Vec<T>> {
    let Some(name) = name else { return Ok(rows) };
    let known: Vec<String> = rows.iter().map(|row| id(row).clone()).collect();
    let found: Vec<T> = rows.into_iter().filter(|row| id(row) == name).collect();
    if found.is_empty() {
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        bail!("there is no {name}; there is {known}");
    }
    Ok(found)
}

type Heads = (&'static [&'static str], usize);

const DEVICE: Heads = (
    &[
        "NAME",
        "PRESENCE",
        "LAST SEEN",
        "ARCH",
        "WORKLOADS",
        "LABELS",
        "AGENT",
        "KERNEL",
        "MEMORY",
        "GENERATION",
        "JOINED",
    ],
    6,
);

/// A device's presence, for a person.
pub(super) fn presence(row: &DeviceView) -> String {
    let until = row.asleep_until.as_ref().map(|until| format!(" until {until}"));
    let hold = if row.on_hold.is_some() { ", on hold" } else { "" };
    format!("{}{}{hold}", row.presence, until.unwrap_or_default())
}

fn device(row: &DeviceView) -> Vec<String> {
    let labels: Vec<String> = row.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    vec![
        row.id.clone(),
        presence(row),
        match row.has_said_hello() {
            true => known_age(row.heard_age_s),
            false => format!("joined {} ago", age(row.presence_age_s)),
        },
        dash(&row.arch),
        row.workloads.to_string(),
        if labels.is_empty() { "-".to_owned() } else { labels.join(",") },
        agent_of(row),
        dash(&row.kernel),
        bytes(row.memory_bytes),
        format!("{} of {}", row.applied_generation, row.generation),
        row.joined_at.clone().unwrap_or_else(|| "-".to_owned()),
    ]
}

/// The version of a device's agent, and what is to become of it.
fn agent_of(row: &DeviceView) -> String {
    let upgrade = row.upgrade.as_ref().filter(|upgrade| upgrade.phase != "done");
    let told = upgrade.map(|upgrade| format!(" ({} {})", upgrade.version, upgrade.phase));
    dash(&row.agent_version) + &told.unwrap_or_default()
}

/// What a device says of itself, once it has.
fn dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}

const DEPLOYMENT: Heads =
    (&["NAME", "RUNNING", "STATUS", "IMAGE", "AGE", "REVISION", "SELECT", "REASON"], 5);

/// How many run; those whose device is not online ran when it was last heard.
pub(super) fn running(row: &DeploymentView, of: &str, what: &str) -> String {
    let unheard = match row.running_unheard {
        0 => String::new(),
        count => format!(" (+{count} unheard)"),
    };
    format!("{}{of}{}{what}{unheard}", row.running, row.desired)
}

fn deployment(row: &DeploymentView) -> Vec<String> {
    let select: Vec<String> = row.select.iter().map(|(k, v)| format!("{k}={v}")).collect();
    vec![
        row.name.clone(),
        running(row, "/", ""),
        row.status.clone(),
        row.image.clone(),
        age(row.age_s),
        row.revision.clone(),
        if select.is_empty() { "-".to_owned() } else { select.join(",") },
        row.reason.clone().unwrap_or_default(),
    ]
}

const WORKLOAD: Heads =
    (&["NAME", "DEVICE", "PHASE", "RESTARTS", "AGE", "MESSAGE", "PID", "CONTAINER", "REVISION"], 6);

/// A workload's phase. Where its device is not online, it was so when the device was last heard.
pub(super) fn phase(row: &WorkloadView) -> String {
    let WorkloadView { phase, presence, heard_age_s, .. } = row;
    match (row.online, heard_age_s) {
        (true, _) => phase.clone(),
        (false, Some(seconds)) => format!("{phase} {} ago ({presence})", age(*seconds)),
        (false, None) => format!("{phase} once ({presence})"),
    }
}

fn workload(row: &WorkloadView) -> Vec<String> {
    vec![
        row.id.clone(),
        row.device.clone(),
        phase(row),
        row.restarts.to_string(),
        age(row.age_s),
        row.message.clone(),
        row.pid.map(|pid| pid.to_string()).unwrap_or_default(),
        row.container.clone().unwrap_or_default(),
        row.revision.clone(),
    ]
}

const EVENT: Heads = (&["SEQ", "TIME", "KIND", "DEVICE", "WORKLOAD", "MESSAGE"], 6);

fn event(row: &EventView) -> Vec<String> {
    let about = row.workload.clone().or_else(|| row.deployment.clone());
    vec![
        row.seq.to_string(),
        row.at.clone().unwrap_or_else(|| "unknown".to_owned()),
        row.kind.clone(),
        row.device.clone().unwrap_or_else(|| "-".to_owned()),
        about.unwrap_or_else(|| "-".to_owned()),
        row.message.clone(),
    ]
}

const AUDIT: Heads =
    (&["SEQ", "TIME", "WHO", "FROM", "ACTION", "OBJECT", "OUTCOME", "BEFORE", "AFTER"], 7);

fn audit(row: &AuditView) -> Vec<String> {
    let line = |text: &Option<String>| match text {
        Some(text) => text.trim_end().replace('\n', "; "),
        None => "-".to_owned(),
    };
    vec![
        row.seq.to_string(),
        row.at.clone(),
        row.who.clone(),
        row.from.clone().unwrap_or_else(|| "-".to_owned()),
        row.action.clone(),
        row.object.clone(),
        row.outcome.clone(),
        line(&row.before),
        line(&row.after),
    ]
}

const SECRET: Heads = (&["NAME", "VERSION", "SIZE", "AGE", "DEPLOYMENTS"], 5);

fn secret(row: &SecretView) -> Vec<String> {
    let users = row.deployments.join(",");
    vec![
        row.name.clone(),
        row.version.to_string(),
        format!("{} B", row.bytes),
        age(row.age_s),
        if users.is_empty() { "-".to_owned() } else { users },
    ]
}

const AGENT: Heads = (&["VERSION", "ARCH", "SIZE", "AGE", "FILE", "SHA256"], 5);

fn agent(row: &AgentView) -> Vec<String> {
    vec![
        row.version.clone(),
        row.arch.clone(),
        bytes(row.bytes),
        age(row.age_s),
        if row.is_here { "here" } else { "missing" }.to_owned(),
        row.digest.clone(),
    ]
}

/// How a container ended, for a person.
pub(super) fn exit(exit: &ExitView) -> String {
    match exit {
        ExitView::Code(code) => format!("exited with {code}"),
        ExitView::Signal(signal) => format!("killed by signal {signal}"),
        ExitView::Unknown(_) => "ended unseen".to_owned(),
    }
}

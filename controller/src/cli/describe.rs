//! `limpet describe`

use clap::{Args, ValueEnum};
use limpet_protocol::DeviceId;

use super::client::Client;
use super::table::{age, bytes, table};
use super::{get, print};
use crate::view::{DeploymentView, DeviceView, EventView, UpgradeView, WorkloadView};

/// Tell all about one device or deployment
///
/// Example: limpet describe deployment web
#[derive(Args)]
pub(super) struct Describe {
    /// What it is
    #[arg(value_enum)]
    kind: Kind,
    /// Its name
    name: DeviceId,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Kind {
    #[value(alias = "dev")]
    Device,
    #[value(alias = "deploy")]
    Deployment,
}

impl Describe {
    pub(super) fn run(self, client: &Client) -> anyhow::Result<()> {
        let name = &self.name;
        let (head, workloads, filter) = match self.kind {
            Kind::Device => {
                let view: DeviceView = client.get(&format!("/api/v1/devices/{name}"))?;
                let all: Vec<WorkloadView> = client.get("/api/v1/workloads")?;
                let here: Vec<WorkloadView> =
                    all.into_iter().filter(|w| w.device == name.as_str()).collect();
                (device(&view), here, "device")
            }
            Kind::Deployment => {
                let view: DeploymentView = client.get(&format!("/api/v1/deployments/{name}"))?;
                let path = format!("/api/v1/deployments/{name}/manifest");
                let manifest = client.text(&path)?;
                let here: Vec<WorkloadView> =
                    client.get(&format!("/api/v1/workloads?deployment={name}"))?;
                (deployment(&view) + "Manifest:\n" + &indent(&manifest), here, "deployment")
            }
        };
        let events: Vec<EventView> =
            client.get(&format!("/api/v1/events?{filter}={name}&limit=10"))?;
        print(&format!("{head}{}{}", workload_lines(&workloads), event_lines(&events)))
    }
}

fn fields(fields: &[(&str, String)]) -> String {
    fields
        .iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(key, value)| format!("{:14}{value}\n", format!("{key}:")))
        .collect()
}

fn pairs<'a>(pairs: impl IntoIterator<Item = (&'a String, &'a String)>) -> String {
    let texts: Vec<String> = pairs.into_iter().map(|(k, v)| format!("{k}={v}")).collect();
    texts.join(", ")
}

fn device(view: &DeviceView) -> String {
    let said = |text: String| if view.has_said_hello() { text } else { String::new() };
    fields(&[
        ("Device", view.id.clone()),
        (
            "Presence",
            format!(
                "{} for {}, {}",
                get::presence(view),
                age(view.presence_age_s),
                heard(view.heard_age_s)
            ),
        ),
        ("Joined", view.joined_at.clone().unwrap_or_default()),
        ("Keep-alive", said(format!("{} s", view.keep_alive_s))),
        ("On hold", view.on_hold.clone().unwrap_or_default()),
        ("Labels", pairs(&view.labels)),
        (
            "Machine",
            said(format!("{}, {} processors, {}", view.arch, view.cpus, bytes(view.memory_bytes))),
        ),
        ("Kernel", view.kernel.clone()),
        ("Agent", view.agent_version.clone()),
        ("Upgrade", view.upgrade.as_ref().map(upgrade).unwrap_or_default()),
        ("Features", view.features.join(", ")),
        ("Generation", said(format!("{} applied of {}", view.applied_generation, view.generation))),
    ])
}

fn upgrade(view: &UpgradeView) -> String {
    let UpgradeView { version, phase, message, .. } = view;
    let told = if message.is_empty() { String::new() } else { format!(": {message}") };
    format!("to {version}, {phase}{told}")
}

fn heard(age_s: Option<u64>) -> String {
    match age_s {
        Some(age_s) => format!("heard {} ago", age(age_s)),
        None => "not heard since the controller began".to_owned(),
    }
}

fn deployment(view: &DeploymentView) -> String {
    let refusals = view.refusals.iter().map(|(id, why)| format!("\n  {id}: {why}"));
    fields(&[
        ("Deployment", view.name.clone()),
        ("Status", format!("{}, {}", view.status, get::running(view, " of ", " running"))),
        ("Reason", view.reason.clone().unwrap_or_default()),
        ("Revision", view.revision.clone()),
        ("Changed", format!("{} ago", age(view.age_s))),
        ("Unfit", refusals.collect()),
    ])
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("  {line}\n")).collect()
}

fn workload_lines(views: &[WorkloadView]) -> String {
    let rows: Vec<Vec<String>> = views
        .iter()
        .map(|w| {
            let exit = w.exit.as_ref().map(get::exit).unwrap_or_default();
            vec![
                w.id.clone(),
                w.device.clone(),
                get::phase(w),
                w.restarts.to_string(),
                exit,
                age(w.age_s),
                w.message.clone(),
            ]
        })
        .collect();
    match rows.is_empty() {
        true => "Workloads:    none\n".to_owned(),
        false => {
            let heads = ["NAME", "DEVICE", "PHASE", "RESTARTS", "LAST EXIT", "AGE", "MESSAGE"];
            format!("Workloads:\n{}", indent(&table(&heads, &rows)))
        }
    }
}

fn event_lines(views: &[EventView]) -> String {
    let rows: Vec<Vec<String>> = views
        .iter()
        .map(|e| {
            let at = e.at.clone().unwrap_or_else(|| "unknown".to_owned());
            vec![at, e.kind.clone(), e.workload.clone().unwrap_or_default(), e.message.clone()]
        })
        .collect();
    match rows.is_empty() {
        true => String::new(),
        false => {
            format!("Events:\n{}", indent(&table(&["TIME", "KIND", "WORKLOAD", "MESSAGE"], &rows)))
        }
    }
}

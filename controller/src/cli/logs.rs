//! `limpet logs`

use std::io::{BufRead, BufReader, Write};

use anyhow::bail;
use clap::Args;

use super::client::Client;
use crate::view::{LogLineView, WorkloadView};

/// Print what workloads write
///
/// Example: limpet logs web -f --tail 20
#[derive(Args)]
pub(super) struct Logs {
    /// A deployment, a workload, or DEVICE/WORKLOAD
    name: String,
    /// Only on this device
    #[arg(long)]
    device: Option<String>,
    /// Go on with what is written from now on
    #[arg(short, long)]
    follow: bool,
    /// Begin with this many of the latest lines
    #[arg(long, value_name = "N", default_value_t = 100)]
    tail: u32,
}

impl Logs {
    pub(super) fn run(self, client: &Client) -> anyhow::Result<()> {
        let workloads = self.find(client)?;
        let several = workloads.len() > 1;
        let failed = std::thread::scope(|scope| {
            let looks: Vec<_> = workloads
                .iter()
                .map(|workload| scope.spawn(|| self.tell(client, workload, several)))
                .collect();
            looks.into_iter().filter_map(|look| look.join().ok()).any(|whole| !whole)
        });
        if failed {
            bail!("not everything could be read");
        }
        Ok(())
    }

    /// Prints a log; where it breaks off says so at once, and gives false.
    fn tell(&self, client: &Client, workload: &WorkloadView, several: bool) -> bool {
        match self.look(client, workload, several) {
            Ok(()) => true,
            // Whoever read has read enough.
            Err(error) if super::is_closed_pipe(&error) => true,
            Err(error) => {
                let WorkloadView { device, id, .. } = workload;
                let _ = writeln!(std::io::stderr(), "limpet: {device}/{id}: {error:#}");
                false
            }
        }
    }

    fn find(&self, client: &Client) -> anyhow::Result<Vec<WorkloadView>> {
        let all: Vec<WorkloadView> = client.get("/api/v1/workloads")?;
        let (device, name) = match self.name.split_once('/') {
            Some((device, name)) => (Some(device), name),
            None => (self.device.as_deref(), self.name.as_str()),
        };
        let found: Vec<WorkloadView> = all
            .into_iter()
            .filter(|w| device.is_none_or(|device| w.device == device))
            .filter(|w| w.deployment == name || w.id == name)
            .collect();
        if found.is_empty() {
            bail!("there is no workload of {}; `limpet get workloads` lists them", self.name);
        }
        Ok(found)
    }

    fn look(&self, client: &Client, workload: &WorkloadView, several: bool) -> anyhow::Result<()> {
        let WorkloadView { device, id, .. } = workload;
        let (tail, follow) = (self.tail, self.follow);
        let path = format!("/api/v1/workloads/{device}/{id}/logs?tail={tail}&follow={follow}");
        let prefix = if several { format!("{device}/{id}: ") } else { String::new() };
        for line in BufReader::new(client.stream(&path)?).lines() {
            let line: LogLineView = serde_json::from_str(&line?)?;
            match line.stream.as_str() {
                "error" => bail!(line.line),
                "gap" => writeln!(std::io::stderr(), "{prefix}[{}]", line.line)?,
                "stderr" => writeln!(std::io::stderr(), "{prefix}{}", line.line)?,
                _ => writeln!(std::io::stdout(), "{prefix}{}", line.line)?,
            }
        }
        Ok(())
    }
}

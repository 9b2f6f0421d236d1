//! `limpet apply`

use std::io::Read;

use anyhow::{Context, bail};
use clap::Args;

use super::client::Client;
use super::print;
use super::progress::{self, Waiting};
use crate::view::DeployResult;

/// Apply manifests: create deployments, or change them
///
/// Example: limpet apply -f web.yaml
#[derive(Args)]
pub(super) struct Apply {
    /// A manifest in YAML, JSON or CBOR; `-` is standard input; can be repeated
    #[arg(short, long, value_name = "FILE", required = true)]
    file: Vec<String>,
    #[command(flatten)]
    waiting: Waiting,
}

impl Apply {
    pub(super) fn run(self, client: &Client) -> anyhow::Result<()> {
        let mut results = Vec::new();
        for file in &self.file {
            let result = client.apply(&read(file)?)?;
            accepted(&result, file)?;
            results.push(result);
        }
        results.iter().try_for_each(|result| progress::settle(client, result, &self.waiting))
    }
}

pub(super) fn read(file: &str) -> anyhow::Result<Vec<u8>> {
    if file != "-" {
        return std::fs::read(file).with_context(|| format!("cannot read {file}"));
    }
    let mut bytes = Vec::new();
    std::io::stdin().read_to_end(&mut bytes).context("cannot read standard input")?;
    Ok(bytes)
}

/// Says what became of a manifest; a refused one is an error that lists every fault.
pub(super) fn accepted(result: &DeployResult, source: &str) -> anyhow::Result<()> {
    if result.accepted {
        let action = result.action.as_deref().unwrap_or("accepted");
        return print(&format!("deployment/{} {action}\n", result.name));
    }
    let faults: Vec<String> = result
        .faults
        .iter()
        .map(|fault| {
            let line = fault.line.map(|line| format!(":{line}")).unwrap_or_default();
            let path =
                if fault.path.is_empty() { String::new() } else { format!("{}: ", fault.path) };
            format!("{source}{line}: {path}{}", fault.message)
        })
        .collect();
    bail!("nothing was changed:\n{}", faults.join("\n"))
}

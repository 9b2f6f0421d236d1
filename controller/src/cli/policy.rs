//! `limpet policy`

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use super::apply::read;
use super::client::Client;
use super::{Usage, print};
use crate::view::{FaultView, PolicyResult};

/// Show or set what images must be, in the whole fleet
///
/// A policy says that images must be named by digest, which registries they may come from, and whose
/// cosign signature they must carry. Devices hold to it before anything of an image is unpacked, with
/// a network or without. A deployment can ask for more in its `image_policy`: both hold.
///
/// What runs goes on when a policy changes; what the policy does not permit is not started again.
///
/// Examples:
///   limpet policy set --require-digest --registry ghcr.io/acme --key cosign.pub
///   limpet policy get > policy.yaml && limpet policy set -f policy.yaml
///   limpet policy set --none
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Policy {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Print the policy, in YAML, as `limpet policy set -f` reads it
    ///
    /// Example: limpet policy get > policy.yaml
    Get,
    Set(Set),
}

/// Set the policy; it replaces the one before it
///
/// Signatures are those of `cosign sign --key KEY IMAGE`, beside the image in its repository: of
/// cosign 3 and later with --new-bundle-format=false --use-signing-config=false.
///
/// Deployments that break it are listed, and nothing is changed unless --force is said.
///
/// Examples:
///   limpet policy set --require-digest --registry ghcr.io/acme --key cosign.pub
///   limpet policy set -f policy.yaml
///
/// A file has the same fields, in YAML or JSON:
///   digest: required
///   registries: [docker.io/library, ghcr.io/acme]
///   keys:
///   - |
///     -----BEGIN PUBLIC KEY-----
///     ...
///     -----END PUBLIC KEY-----
#[derive(Args)]
#[command(verbatim_doc_comment)]
struct Set {
    /// The policy in YAML, JSON or CBOR; `-` is standard input
    #[arg(short, long, value_name = "FILE", conflicts_with_all = ["none", "require_digest", "registry", "key"])]
    file: Option<String>,
    /// Permit everything
    #[arg(long, conflicts_with_all = ["require_digest", "registry", "key"])]
    none: bool,
    /// Images must be named by digest: NAME@sha256:...
    #[arg(long)]
    require_digest: bool,
    /// A registry that images may come from, or a part of one; can be repeated
    #[arg(long, value_name = "HOST[/PATH]")]
    registry: Vec<String>,
    /// A file with a public key (PEM): images must be signed by one of these; can be repeated
    #[arg(long, value_name = "FILE")]
    key: Vec<String>,
    /// Also where deployments break it: they go on where they run, and are not started again
    #[arg(long)]
    force: bool,
}

impl Policy {
    pub(super) fn run(self, client: &Client) -> anyhow::Result<()> {
        match self.verb {
            Verb::Get => print(&client.text("/api/v1/policy")?),
            Verb::Set(set) => set.run(client),
        }
    }
}

impl Set {
    fn run(self, client: &Client) -> anyhow::Result<()> {
        let policy = match &self.file {
            Some(file) => read(file)?,
            None if self.none => Vec::new(),
            None => self.policy()?.to_string().into_bytes(),
        };
        let path = format!("/api/v1/policy?force={}", self.force);
        let result: PolicyResult = client.put(&path, &policy)?;
        let source = self.file.as_deref().unwrap_or("limpet policy set");
        if !result.faults.is_empty() {
            let faults: Vec<String> = result.faults.iter().map(|f| fault(source, f)).collect();
            bail!("nothing was changed:\n{}", faults.join("\n"));
        }
        let breaking: String = result
            .breaking
            .iter()
            .flat_map(|(name, all)| {
                all.iter().map(move |why| format!("deployment/{name}: {why}\n"))
            })
            .collect();
        if !result.accepted {
            bail!(
                "nothing was changed, because deployments would break it:\n{breaking}\
                 Change or delete them first, or say --force: they would go on where they run, and \
                 not be started again"
            );
        }
        print(&format!("policy set\n{breaking}"))
    }

    /// What the flags say.
    fn policy(&self) -> anyhow::Result<Value> {
        if !self.require_digest && self.registry.is_empty() && self.key.is_empty() {
            return Err(Usage(
                "say the policy: --file, --require-digest, --registry, --key, or --none",
            )
            .into());
        }
        let mut fields = Map::new();
        if self.require_digest {
            fields.insert("digest".to_owned(), json!("required"));
        }
        if !self.registry.is_empty() {
            fields.insert("registries".to_owned(), json!(self.registry));
        }
        if !self.key.is_empty() {
            let read = |path: &String| {
                std::fs::read_to_string(path).with_context(|| format!("cannot read {path}"))
            };
            let keys: Vec<String> = self.key.iter().map(read).collect::<Result<_, _>>()?;
            fields.insert("keys".to_owned(), json!(keys));
        }
        Ok(Value::Object(fields))
    }
}

fn fault(source: &str, fault: &FaultView) -> String {
    let line = fault.line.map(|line| format!(":{line}")).unwrap_or_default();
    let path = if fault.path.is_empty() { String::new() } else { format!("{}: ", fault.path) };
    format!("{source}{line}: {path}{}", fault.message)
}

//! `limpet sign`

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use clap::Args;
use jiff::Timestamp;
use limpet_controller_core::manifest::{self, Format};
use limpet_protocol::manifest::LIFE_MS_MAX;
use limpet_protocol::{DeploymentName, Prefix, SignedManifest, SigningKey, Topic};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;

use super::apply::read;
use super::up::days;
use super::{Usage, print};

/// Sign a manifest, so that anybody can carry it to the controller
///
/// Where the fleet's broker is somebody else's, manifests published over MQTT are taken only so. The
/// key is a publisher's: that of `limpet token create --publisher`, or one of `openssl genpkey
/// -algorithm ed25519` whose public half that was given.
///
/// A signed manifest is taken once, by this fleet, for this deployment, until --ttl is over, and not
/// where the deployment was changed after it was signed.
///
/// Examples:
///   limpet sign -f web.yaml --key ci/key.pem -o web.signed
///   mosquitto_pub ... -q 1 -t limpet/v1/deploy/web -f web.signed
///   limpet sign --delete web --key ci/key.pem -o web.signed
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Sign {
    /// A manifest in YAML, JSON or CBOR; `-` is standard input
    #[arg(short, long, value_name = "FILE", required_unless_present = "delete")]
    file: Option<String>,
    /// Sign that this deployment is to be deleted
    #[arg(long, value_name = "NAME", conflicts_with_all = ["file", "name"])]
    delete: Option<DeploymentName>,
    /// The publisher's private key: Ed25519, PKCS #8 in PEM
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// What the deployment is called, where the manifest does not say
    #[arg(long, value_name = "NAME")]
    name: Option<DeploymentName>,
    /// How long it may be on its way: 30m, 12h, 7d; at most 30d
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = days)]
    ttl: Duration,
    /// Where to write it [standard output]
    #[arg(short, long, value_name = "FILE")]
    out: Option<PathBuf>,
}

impl Sign {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let ttl_ms = u64::try_from(self.ttl.as_millis()).unwrap_or(u64::MAX);
        if !(1..=LIFE_MS_MAX).contains(&ttl_ms) {
            return Err(Usage("--ttl: at most 30d, and not 0").into());
        }
        if self.out.is_none() && std::io::stdout().is_terminal() {
            return Err(Usage("what is signed is no text: say --out FILE, or use a pipe").into());
        }
        let key = key(&self.key)?;
        let (name, manifest) = match (self.delete, &self.file) {
            (Some(name), _) => (name, Vec::new()),
            (None, Some(file)) => named(file, self.name.as_ref())?,
            (None, None) => return Err(Usage("say --file or --delete").into()),
        };
        let at_ms = now_ms()?;
        let until_ms = at_ms.saturating_add(ttl_ms);
        let prefix = Prefix::default();
        let signed = SignedManifest { until_ms, manifest }.seal(&key, &prefix, &name, at_ms);
        match &self.out {
            Some(path) => std::fs::write(path, &signed)
                .with_context(|| format!("cannot write {}", path.display()))?,
            None => std::io::stdout().write_all(&signed)?,
        }
        let said = format!(
            "deployment/{name} signed with the key {}, good until {}: publish it with QoS 1 on {}\n",
            key.public().fingerprint(),
            time(until_ms),
            Topic::Deploy(name.clone()).under(&prefix),
        );
        match self.out {
            Some(_) => print(&said),
            None => Ok(std::io::stderr().write_all(said.as_bytes())?),
        }
    }
}

/// A manifest that is good, and what its deployment is called.
fn named(file: &str, name: Option<&DeploymentName>) -> anyhow::Result<(DeploymentName, Vec<u8>)> {
    let bytes = read(file)?;
    match manifest::parse(name, &bytes, Format::Detect) {
        Ok(deployment) => Ok((deployment.name, bytes)),
        Err(faults) => {
            let faults: Vec<String> =
                faults.iter().map(|fault| format!("{file}: {fault}")).collect();
            bail!("nothing was signed:\n{}", faults.join("\n"))
        }
    }
}

fn key(path: &Path) -> anyhow::Result<SigningKey> {
    let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let der = PrivatePkcs8KeyDer::from_pem_slice(&text).ok();
    let key = der.and_then(|der| SigningKey::from_pkcs8(der.secret_pkcs8_der()).ok());
    key.with_context(|| {
        format!(
            "{} is no Ed25519 key in PEM: take the key.pem of `limpet token create --publisher`, or \
             make one with `openssl genpkey -algorithm ed25519`",
            path.display()
        )
    })
}

fn now_ms() -> anyhow::Result<u64> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now = now.context("this machine's clock is before 1970: set it")?;
    Ok(u64::try_from(now.as_millis())?)
}

fn time(at_ms: u64) -> String {
    let at = i64::try_from(at_ms).ok().and_then(|at_ms| Timestamp::from_millisecond(at_ms).ok());
    at.map(|at| format!("{at:.0}")).unwrap_or_default()
}

//! What a card is told about the fleet that its device is to join: the files of `/etc/limpet`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use clap::Args;
use limpet_protocol::{DeviceId, Invitation, Purpose};

use super::apt::log_line;
use super::{preload, tool};

/// Of a passphrase (IEEE 802.11i).
const PASSPHRASE_CHARS: std::ops::RangeInclusive<usize> = 8..=63;
/// Of a network's name.
const SSID_BYTES_MAX: usize = 32;
/// Of a prefix: what follows it must fit into a host's name.
const PREFIX_CHARS_MAX: usize = 30;
/// Of a label, in bytes, as agents take them.
const LABEL_BYTES_MAX: usize = 63;

/// What all cards of an image have in common.
#[derive(Args)]
pub struct Settings {
    /// What `limpet token create --join` prints, or @FILE; its token must let in as many devices as
    /// there will be cards (`--uses`)
    #[arg(long, value_name = "STRING")]
    pub join: String,
    /// Devices are called P-SERIAL, by their board's serial number or MAC address, or a random one
    #[arg(long, value_name = "P", default_value = "limpet")]
    pub hostname_prefix: String,
    /// A wireless network to join; `build` has drivers for Broadcom's chips, as Raspberry Pis have
    #[arg(long, value_name = "SSID:PSK", value_parser = wifi)]
    pub wifi: Option<Wifi>,
    /// Public keys that may log in as root with ssh; without, there is no way in
    #[arg(long, value_name = "FILE")]
    pub ssh_key: Option<PathBuf>,
    /// An image that is on the card already: its name in a registry, or a file of `docker save`
    #[arg(long, value_name = "IMAGE")]
    pub preload: Vec<String>,
    /// A label of the devices
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    pub labels: Vec<(String, String)>,
    /// What else is to be in agent.toml, as `[registries]` or `[proxy]`
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The agent's binary [limpet-agent-ARCH beside limpet, or in /usr/share/limpet/agents]
    #[arg(long, value_name = "FILE")]
    pub agent: Option<PathBuf>,
}

/// A wireless network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wifi {
    /// Its name.
    pub ssid: String,
    /// What lets in.
    pub passphrase: String,
}

/// The files of a card's `/etc/limpet`, checked: names and contents.
pub(crate) struct Files {
    pub(crate) agent_toml: String,
    pub(crate) join: String,
    /// The first server that the join string names.
    pub(crate) server: String,
    pub(crate) ssh_keys: Option<String>,
}

impl Settings {
    /// Reads what they name, and checks it.
    ///
    /// # Errors
    /// When the join string is damaged, or something else cannot be.
    pub(crate) fn files(&self) -> anyhow::Result<Files> {
        let join = match self.join.strip_prefix('@') {
            Some(file) => std::fs::read_to_string(file)
                .with_context(|| format!("cannot read the join string from {file}"))?,
            None => self.join.clone(),
        };
        let invitation = Invitation::parse(&join, Purpose::Join).context("--join")?;
        let ssh_keys = self.ssh_key.as_ref().map(|file| {
            let keys = std::fs::read_to_string(file)
                .with_context(|| format!("cannot read {}", file.display()))?;
            let is_public =
                keys.lines().any(|line| line.starts_with("ssh-") || line.starts_with("ecdsa-"));
            anyhow::ensure!(
                is_public && !keys.contains("PRIVATE KEY"),
                "{} holds no public key: --ssh-key wants a file such as ~/.ssh/id_ed25519.pub",
                file.display()
            );
            Ok(keys)
        });
        Ok(Files {
            agent_toml: self.agent_toml()?,
            join: join.trim().to_owned() + "\n",
            server: invitation.servers.first().cloned().unwrap_or_default(),
            ssh_keys: ssh_keys.transpose()?,
        })
    }

    /// Has an agent that runs here read the configuration: one that it does not take would keep every
    /// card from joining.
    ///
    /// # Errors
    /// When it does not take it.
    pub(crate) fn check_config(&self, files: &Files, work: &Path) -> anyhow::Result<()> {
        if self.config.is_none() {
            return Ok(());
        }
        let agent = match preload::agent_here() {
            Ok(agent) => agent,
            Err(error) => {
                log_line(&format!("--config is not checked: {error}"));
                return Ok(());
            }
        };
        let whole = work.join("agent.toml");
        std::fs::write(&whole, &files.agent_toml)?;
        let mut id = Command::new(agent);
        id.args(["id", "--config"]).arg(whole).arg("--data-dir").arg(work);
        tool::run(&mut id).context("agents will not take what --config says")?;
        Ok(())
    }

    fn agent_toml(&self) -> anyhow::Result<String> {
        let prefix = &self.hostname_prefix;
        let is_clean = prefix.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
            && prefix.starts_with(|c: char| c.is_ascii_alphanumeric())
            && prefix.len() <= PREFIX_CHARS_MAX
            && prefix.parse::<DeviceId>().is_ok();
        anyhow::ensure!(
            is_clean,
            "--hostname-prefix {prefix:?}: use letters, digits and dashes, {PREFIX_CHARS_MAX} at most"
        );
        let mut text = format!("device_id_prefix = {}\n", quoted(prefix));
        if !self.labels.is_empty() {
            let labels = self.labels.iter().map(|(k, v)| format!("{} = {}", quoted(k), quoted(v)));
            text += &format!("labels = {{ {} }}\n", labels.collect::<Vec<_>>().join(", "));
        }
        if let Some(file) = &self.config {
            let further = std::fs::read_to_string(file)
                .with_context(|| format!("cannot read {}", file.display()))?;
            text += &further;
        }
        let whole: Result<toml::Table, _> = text.parse();
        whole.context("--config and the other flags make no agent.toml together")?;
        Ok(text)
    }
}

impl Wifi {
    /// The configuration of `wpa_supplicant`.
    pub(crate) fn supplicant(&self) -> String {
        let ssid: String = self.ssid.bytes().map(|byte| format!("{byte:02x}")).collect();
        format!(
            "ctrl_interface=/run/wpa_supplicant\nnetwork={{\n\tssid={ssid}\n\tscan_ssid=1\n\tpsk=\"{}\"\n}}\n",
            self.passphrase
        )
    }

    /// A connection of NetworkManager.
    pub(crate) fn network_manager(&self) -> String {
        let ssid: String = self.ssid.bytes().map(|byte| format!("{byte};")).collect();
        let passphrase = self.passphrase.replace('\\', "\\\\");
        format!(
            "[connection]\nid=limpet\ntype=wifi\n\n[wifi]\nmode=infrastructure\nssid={ssid}\n\n\
             [wifi-security]\nkey-mgmt=wpa-psk\npsk={passphrase}\n\n[ipv4]\nmethod=auto\n\n\
             [ipv6]\nmethod=auto\n"
        )
    }
}

/// A text in TOML: JSON's strings are a part of it.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn wifi(text: &str) -> Result<Wifi, String> {
    let Some((ssid, passphrase)) = text.split_once(':') else {
        return Err("write SSID:PSK".to_owned());
    };
    if ssid.is_empty() || ssid.len() > SSID_BYTES_MAX {
        return Err(format!("an SSID has 1 to {SSID_BYTES_MAX} bytes"));
    }
    let is_printable = passphrase.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    if !is_printable || !PASSPHRASE_CHARS.contains(&passphrase.len()) {
        return Err("a PSK has 8 to 63 characters of ASCII".to_owned());
    }
    Ok(Wifi { ssid: ssid.to_owned(), passphrase: passphrase.to_owned() })
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value))
            if !key.is_empty()
                && key.len() <= LABEL_BYTES_MAX
                && value.len() <= LABEL_BYTES_MAX =>
        {
            Ok((key.to_owned(), value.to_owned()))
        }
        _ => Err(format!("write KEY=VALUE, of {LABEL_BYTES_MAX} bytes each at most")),
    }
}

//! Configuration: `/etc/limpet/agent.toml`, overruled by flags.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use limpet_agent_core::Owner;
use limpet_protocol::{DeviceId, Labels};
use serde::Deserialize;

use crate::image::Registries;
use crate::logs::Storage;
use crate::proxy::{self, Proxies, SettingError, Table};
use crate::{hardware, state};

/// Where the configuration is unless `--config` says otherwise.
pub const PATH: &str = "/etc/limpet/agent.toml";
/// Where the data folder is unless `--data-dir` says otherwise.
const DATA_DIR: &str = "/var/lib/limpet";
/// Where a flashed image has its join string unless the configuration says otherwise.
const JOIN_FILE: &str = "/etc/limpet/join";

/// What does not survive a reboot, unless `--run-dir` says otherwise.
const RUN_DIR: &str = "/run/limpet";

/// The shortest keep-alive: below it rmqtt waits for longer than one and a half of them.
const KEEP_ALIVE_S_MIN: u16 = 6;

/// What the file may say.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    broker: Option<String>,
    insecure: bool,
    device_id: Option<String>,
    device_id_prefix: Option<String>,
    data_dir: Option<PathBuf>,
    run_dir: Option<PathBuf>,
    cgroup_parent: Option<String>,
    keep_alive_s: Option<u16>,
    logs: Storage,
    labels: BTreeMap<String, String>,
    registries: Registries,
    join_file: Option<PathBuf>,
    owner: Owner,
    proxy: Table,
}

/// What the flags of `limpet-agent run` may say.
#[derive(Debug, Default)]
pub struct Flags {
    /// `--config`
    pub config: Option<PathBuf>,
    /// `--broker`
    pub broker: Option<String>,
    /// `--insecure`
    pub insecure: bool,
    /// `--device-id`
    pub device_id: Option<String>,
    /// `--data-dir`
    pub data_dir: Option<PathBuf>,
    /// `--run-dir`
    pub run_dir: Option<PathBuf>,
    /// `--cgroup-parent`
    pub cgroup_parent: Option<String>,
}

/// Everything that an agent is told by its owner, checked.
#[derive(Debug)]
pub struct Config {
    /// Host and port of a broker to speak plain MQTT with; a member of a fleet knows its own.
    pub broker: Option<(String, u16)>,
    /// A join string to use, then delete, where the device has not joined.
    pub join_file: PathBuf,
    /// What the device is called.
    pub naming: Naming,
    /// What survives a reboot.
    pub data_dir: PathBuf,
    /// What does not: containers, their logs and exits.
    pub run_dir: PathBuf,
    /// The control group below which all containers are.
    pub cgroup_parent: String,
    /// Time between signs of life on an idle connection.
    pub keep_alive: Duration,
    /// Where containers' output goes.
    pub logs: Storage,
    /// Labels of the device.
    pub labels: Labels,
    /// What leads to everything else.
    pub proxies: Proxies,
    /// How images are had.
    pub registries: Registries,
    /// What the device's owner allows the controller.
    pub owner: Owner,
}

/// What a device is called.
#[derive(Debug, Clone, Default)]
pub struct Naming {
    /// Its id; None leaves it as it is.
    pub id: Option<DeviceId>,
    /// What the hardware's own id follows, for a device that has none; None takes the host's name.
    prefix: Option<String>,
}

impl Naming {
    /// The id of a device that has none.
    pub fn fallback(&self) -> Option<DeviceId> {
        match &self.prefix {
            Some(prefix) => hardware::device_id(prefix),
            None => state::host_name(),
        }
    }
}

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not readable.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not TOML, or with keys that do not exist.
    #[error("{path}: {why}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// What and where, without passwords.
        why: String,
    },
    /// Not a proxy.
    #[error(transparent)]
    Proxy(#[from] SettingError),
    /// Nowhere to connect to.
    #[error(
        "--insecure: say which broker, `--broker mqtt://HOST:PORT` or `broker = \"...\"` in {0}"
    )]
    NoBroker(PathBuf),
    /// Not an address.
    #[error("broker {0:?}: write mqtt://HOST:PORT")]
    Broker(String),
    /// Plain MQTT was not asked for.
    #[error(
        "broker {0:?}: a device that has joined knows its brokers (`limpet-agent join`); to speak \
         plain MQTT on a network that you trust, add --insecure"
    )]
    NotInsecure(String),
    /// A value that cannot be.
    #[error("{key} = {value:?}: {reason}")]
    Value {
        /// Which key or flag.
        key: &'static str,
        /// Its value.
        value: String,
        /// What is wrong, and what to write.
        reason: String,
    },
}

impl Config {
    /// Reads the file and lets the flags overrule it. A file that does not exist is an empty one,
    /// unless a flag names it.
    ///
    /// # Errors
    /// When the file cannot be read or says something that cannot be.
    pub fn load(flags: Flags) -> Result<Self, ConfigError> {
        let (path, file) = read(flags.config.as_deref())?;
        let proxies = proxies_of(&path, &file, None)?;
        let naming = called(flags.device_id, &file)?;
        let broker = match (flags.broker.or(file.broker), flags.insecure || file.insecure) {
            (Some(broker), true) => Some(broker_address(&broker)?),
            (None, true) => return Err(ConfigError::NoBroker(path)),
            (Some(broker), false) => return Err(ConfigError::NotInsecure(broker)),
            (None, false) => None,
        };
        let keep_alive_s = file.keep_alive_s.unwrap_or(600);
        if keep_alive_s < KEEP_ALIVE_S_MIN {
            let reason = format!("use {KEEP_ALIVE_S_MIN} seconds or more");
            return Err(value("keep_alive_s", &keep_alive_s.to_string(), reason));
        }
        Ok(Self {
            broker,
            naming,
            join_file: file.join_file.unwrap_or_else(|| JOIN_FILE.into()),
            data_dir: absolute(flags.data_dir.or(file.data_dir), DATA_DIR),
            run_dir: absolute(flags.run_dir.or(file.run_dir), RUN_DIR),
            cgroup_parent: cgroup(flags.cgroup_parent.or(file.cgroup_parent))?,
            keep_alive: Duration::from_secs(keep_alive_s.into()),
            logs: file.logs,
            labels: labels(file.labels)?,
            registries: Registries { proxies: proxies.clone(), ..file.registries },
            proxies,
            owner: file.owner,
        })
    }
}

/// The run folder of the agent on this machine, for those who talk to it.
///
/// # Errors
/// When the file cannot be read or says something that cannot be.
pub fn run_dir(flags: &Flags) -> Result<PathBuf, ConfigError> {
    let (_, file) = read(flags.config.as_deref())?;
    Ok(absolute(flags.run_dir.clone().or(file.run_dir), RUN_DIR))
}

/// The data folder of this machine, for what needs no broker.
///
/// # Errors
/// When the file cannot be read or says something that cannot be.
pub fn data_dir(flags: &Flags) -> Result<PathBuf, ConfigError> {
    let (_, file) = read(flags.config.as_deref())?;
    Ok(absolute(flags.data_dir.clone().or(file.data_dir), DATA_DIR))
}

/// The data folder, also where the file says what only another version understands: that one may be
/// there.
pub fn data_dir_at_least(flags: &Flags) -> PathBuf {
    #[derive(Default, Deserialize)]
    struct Part {
        data_dir: Option<PathBuf>,
    }
    let text = std::fs::read_to_string(flags.config.as_deref().unwrap_or(Path::new(PATH)));
    let part: Part = text.ok().and_then(|text| toml::from_str(&text).ok()).unwrap_or_default();
    absolute(flags.data_dir.clone().or(part.data_dir), DATA_DIR)
}

/// What leads out of this machine's network; what a flag says of the proxy wins.
///
/// # Errors
/// When the file cannot be read, or file, environment or flag say something that cannot be.
pub fn proxies(flags: &Flags, proxy: Option<&str>) -> Result<Proxies, ConfigError> {
    let (path, file) = read(flags.config.as_deref())?;
    proxies_of(&path, &file, proxy)
}

fn proxies_of(path: &Path, file: &File, flag: Option<&str>) -> Result<Proxies, ConfigError> {
    let proxies = Proxies::new(flag, &file.proxy, |name| std::env::var(name).ok())?;
    let mode = std::fs::metadata(path).map_or(0, |file| file.permissions().mode());
    if flag.is_none() && file.proxy.url.is_some() && proxies.has_password() && mode & 0o004 != 0 {
        let path = path.display();
        log::warn!("{path} has a proxy's password and can be read by everybody: chmod 0600 {path}");
    }
    Ok(proxies)
}

/// What the file and the flags call this device.
///
/// # Errors
/// When the file cannot be read or says something that cannot be.
pub fn naming(flags: &Flags) -> Result<Naming, ConfigError> {
    let (_, file) = read(flags.config.as_deref())?;
    called(flags.device_id.clone(), &file)
}

fn called(flag: Option<String>, file: &File) -> Result<Naming, ConfigError> {
    let id = |key, text: &str| {
        text.parse::<DeviceId>().map_err(|error| value(key, text, error.to_string()))
    };
    let prefix = file.device_id_prefix.clone();
    prefix.as_deref().map(|prefix| id("device_id_prefix", prefix)).transpose()?;
    let own = flag.or_else(|| file.device_id.clone());
    let own = own.map(|own| id("device_id", &own)).transpose()?;
    Ok(Naming { id: own, prefix })
}

fn read(named: Option<&Path>) -> Result<(PathBuf, File), ConfigError> {
    let path = named.unwrap_or(Path::new(PATH)).to_owned();
    let file = match std::fs::read_to_string(&path) {
        Ok(text) => parse(&path, &text)?,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && named.is_none() => File::default(),
        Err(source) => return Err(ConfigError::Read { path, source }),
    };
    Ok((path, file))
}

fn parse(path: &Path, text: &str) -> Result<File, ConfigError> {
    // An error shows the line that it is in.
    toml::from_str(text).map_err(|error| ConfigError::Parse {
        path: path.into(),
        why: proxy::redacted(&error.to_string()),
    })
}

fn value(key: &'static str, value: &str, reason: String) -> ConfigError {
    ConfigError::Value { key, value: value.to_owned(), reason }
}

fn broker_address(url: &str) -> Result<(String, u16), ConfigError> {
    address(url, "mqtt://").ok_or_else(|| ConfigError::Broker(url.to_owned()))
}

/// Host and port of a URL of this scheme (`mqtt://`) and no path.
pub fn address(url: &str, scheme: &str) -> Option<(String, u16)> {
    let rest = url.strip_prefix(scheme)?;
    let (host, port) = rest.trim_end_matches('/').rsplit_once(':')?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let clean = !host.is_empty() && !host.contains(['/', '@']);
    clean.then(|| Some((host.to_owned(), port.parse().ok()?)))?
}

fn absolute(path: Option<PathBuf>, default: &str) -> PathBuf {
    let path = path.unwrap_or_else(|| default.into());
    std::path::absolute(&path).unwrap_or(path)
}

fn cgroup(path: Option<String>) -> Result<String, ConfigError> {
    let path = path.unwrap_or_else(|| "/limpet".into());
    let clean = path.strip_prefix('/').is_some_and(|rest| {
        rest.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
    });
    let reason = "write an absolute path below the root group, such as /limpet";
    if clean { Ok(path) } else { Err(value("cgroup_parent", &path, reason.to_owned())) }
}

fn labels(labels: BTreeMap<String, String>) -> Result<Labels, ConfigError> {
    let reason = "keys and values have at most 63 bytes, keys at least one";
    let mut out = Labels::new();
    for (key, text) in labels {
        let wrong = || value("labels", &format!("{key}={text}"), reason.to_owned());
        if key.is_empty() || out.len() == limpet_protocol::hello::LABELS_MAX {
            return Err(wrong());
        }
        let short_key = key.as_str().try_into().map_err(|_| wrong())?;
        out.insert(short_key, text.as_str().try_into().map_err(|_| wrong())?);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Config, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let flags = Flags { config: Some(file.path().into()), ..Flags::default() };
        let path = file.path().display().to_string();
        Config::load(flags).map_err(|e| e.to_string().replace(&path, "FILE"))
    }

    #[test]
    fn a_file_is_read() {
        let config = load(
            "broker = 'mqtt://10.0.0.1:1883'\ninsecure = true\ndevice_id = 'pi-1'\n\
             labels = { site = 'berlin' }\n[registries]\nmirrors = { 'docker.io' = ['m:5000'] }\n",
        )
        .unwrap();
        assert_eq!(config.broker, Some(("10.0.0.1".to_owned(), 1883)));
        assert_eq!(config.labels.len(), 1);
        assert_eq!(config.run_dir, Path::new("/run/limpet"));
        assert_eq!(config.owner, Owner::default());
    }

    #[test]
    fn faults_say_what_and_where() {
        for (text, says) in [
            ("broker = 'mqtt://h:1'", "add --insecure"),
            ("insecure = true", "say which broker"),
            ("insecure = true\nbroker = 'x'", "broker \"x\": write mqtt://HOST:PORT"),
            ("insecure = true\nbrokr = 'x'", "unknown field `brokr`"),
            ("insecure = 1", "invalid type"),
            ("insecure = true\nbroker='mqtt://h:1'\ndevice_id='a/b'", "device_id = \"a/b\""),
            ("device_id_prefix = 'a b'", "device_id_prefix = \"a b\""),
            ("insecure = true\nbroker='mqtt://h:1'\ncgroup_parent='/a/../b'", "cgroup_parent"),
            ("insecure = true\nbroker='mqtt://h:1'\nkeep_alive_s=5", "6 seconds or more"),
            ("[owner]\nprivilegd = true", "unknown field `privilegd`"),
            ("[owner]\nhost_paths = ['/a/../b']", "line 2"),
            ("[owner]\nhost_paths = ['/a/../b']", "host_paths"),
            ("[owner]\nhost_paths = ['/a/../b']", "write an absolute path without . and .."),
            ("[owner]\nhost_devices = ['sda']", "write a path below /dev"),
            ("[owner]\nmemory_share = 80", "write a part of 1, such as 0.8"),
            ("[owner]\nregistries = ['https://x']", "write HOST[:PORT][/PATH]"),
            ("[proxy]\nurl = 'http://u:secret@h:x'", "the proxy of [proxy] is no URL of one"),
            ("[proxy]\nurl = 'http://u:secret@h:1", "url = 'http://***@h:1"),
            ("[proxy]\nno_proxy = ['a b']", "no_proxy has \"a b\""),
            ("[registries]\nstall_timeout_s = 1", "a stall timeout of 1 s: use 5 to 600 seconds"),
        ] {
            let error = load(text).unwrap_err();
            assert!(error.contains(says) && !error.contains("secret"), "{text}: {error}");
        }
    }
}

//! Manifests: what an operator writes becomes a deployment, or a list of everything wrong with it.
//!
//! ```yaml
//! name: web                  # a DNS label; optional where the topic or the command names it
//! image: registry/web:1      # required; read as Docker reads it
//! command: [prog]            # replaces the image's entrypoint, and drops its arguments
//! args: [-v]                 # replaces the image's arguments
//! env: {KEY: value}
//! secrets:                   # by name; made with `limpet secret set`
//!   - db-password            # as the file /run/secrets/db-password
//!   - {name: key, file: /srv/key}
//!   - {name: token, env: TOKEN}
//! workdir: /srv              # absolute
//! user: "1000:1000"          # USER[:GROUP], names or numbers
//! replicas: 2                # 0 to 1000; 1 unless said
//! everywhere: true           # instead of replicas: one on every matching device
//! select: {site: berlin}     # labels that a device must carry
//! resources:
//!   memory: 64Mi             # bytes, or with Ki, Mi, Gi, k, M, G; 4 MiB at least
//!   cpus: 0.5                # processors; 0.01 at least
//!   pids: 64                 # processes and threads
//! image_policy:              # what the image must be; policy.rs has its fields
//!   digest: required
//! restart: always            # or on-failure, never
//! stop:
//!   signal: SIGTERM          # the image's unless said
//!   grace: 10s               # until SIGKILL; ms, s, m; at most 1h
//! mounts:                    # of the host, with what is mounted below; as the device's owner allows
//!   - {host: /srv/data, path: /data, read_only: true}
//! devices: [/dev/ttyUSB0]    # or {host: /dev/ttyUSB0, path: /dev/gps, access: rw}; access r, w, rw
//! privileged: true           # every capability and device, and no seccomp
//! ```

use std::collections::BTreeMap;
use std::fmt;

use limpet_protocol::spec::STOP_GRACE_MS_DEFAULT;
use limpet_protocol::{
    DeploymentName, ImagePolicy, Resources, Restart, Signal, Stop, WorkloadSpec,
};

use crate::deployment::{Count, Deployment, REPLICAS_MAX};

#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod host;
mod node;
mod policy;
mod quantity;
mod reader;
mod render;
mod secrets;

pub use policy::{image_faults, parse_policy, render_policy};
pub use quantity::{duration_ms, memory_bytes};
pub use render::render;

use node::Node;
use reader::Reader;

/// A manifest at most, in bytes: far above what a device could be told.
pub const BYTES_MAX: usize = 64 * 1024;

/// Arguments, variables or labels at most: more is a mistake, and would not fit on the wire.
const ITEMS_MAX: usize = 256;
/// One argument, variable or path at most, in bytes.
const TEXT_BYTES_MAX: usize = 4096;
/// An image name at most, in bytes, digest included.
const IMAGE_BYTES_MAX: usize = 512;
/// Less memory starts no process.
const MEMORY_BYTES_MIN: u64 = 4 << 20;
const MEMORY_BYTES_MAX: u64 = 1 << 44;
const CPU_MILLIS_MIN: u32 = 10;
const CPU_MILLIS_MAX: u32 = 1_000_000;
const PIDS_MAX: u32 = 1 << 22;
const GRACE_MS_MAX: u32 = 3_600_000;
/// Faults at most: what a person reads, and one message can carry.
const FAULTS_MAX: usize = 100;
/// What is wrong is quoted up to this length.
const QUOTED_CHARS_MAX: usize = 60;
/// A label's key or value at most, as devices carry them.
const LABEL_BYTES_MAX: usize = 63;

/// The language of a manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// YAML 1.2.
    Yaml,
    /// JSON.
    Json,
    /// CBOR.
    Cbor,
    /// By its first byte: `{` is JSON, the head of a CBOR map is CBOR, anything else YAML.
    Detect,
}

/// One thing that is wrong with a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Where: `resources.memory`, `args[2]`; empty for the whole document.
    pub path: String,
    /// Line in a text, from 1.
    pub line: Option<usize>,
    /// What, and what to write instead.
    pub message: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)
    }
}

/// The beginning of a text, in quotes: what an operator needs to find it, and no more.
fn quoted(text: &str) -> String {
    format!("{:?}", text.chars().take(QUOTED_CHARS_MAX).collect::<String>())
}

/// Reads a manifest. `name` is what the topic or the command calls it.
///
/// # Errors
/// What is wrong with it: the first faults, where there are many.
pub fn parse(
    name: Option<&DeploymentName>,
    bytes: &[u8],
    format: Format,
) -> Result<Deployment, Vec<Fault>> {
    let root = node::load(bytes, format).map_err(|fault| vec![fault])?;
    let mut reader = Reader::new(&root);
    let deployment = deployment(name, &mut reader);
    reader.finish("the manifest");
    let mut faults = reader.faults;
    match deployment {
        Some(deployment) if faults.is_empty() => readable(deployment),
        _ => {
            faults.sort_by_key(|fault| fault.line);
            faults.truncate(FAULTS_MAX);
            Err(faults)
        }
    }
}

/// What is accepted can be shown, edited and published again.
fn readable(deployment: Deployment) -> Result<Deployment, Vec<Fault>> {
    let bytes = render(&deployment).len();
    if bytes <= BYTES_MAX {
        return Ok(deployment);
    }
    let message = format!("written out it has {bytes} bytes: a manifest has at most {BYTES_MAX}");
    Err(vec![Fault { path: String::new(), line: None, message }])
}

fn deployment(given: Option<&DeploymentName>, reader: &mut Reader<'_>) -> Option<Deployment> {
    let written = reader.parsed::<DeploymentName>("name");
    let has_name = reader.node("name").is_some();
    let name = match (given, written) {
        (Some(given), Some(written)) if *given != written => {
            reader.fault("name", format!("is {written}, but this is published as {given}"));
            None
        }
        (Some(given), _) => Some(given.clone()),
        (None, Some(written)) => Some(written),
        (None, None) => {
            if !has_name {
                reader.fault("name", "is missing".to_owned());
            }
            None
        }
    };
    let spec = spec(reader);
    let count = count(reader);
    let select = reader.map("select", ITEMS_MAX, |key, value| {
        let fits = |text: &str| !text.is_empty() && text.len() <= LABEL_BYTES_MAX;
        match fits(key) && fits(value) {
            true => Ok(()),
            false => Err(format!("a label's key and value have 1 to {LABEL_BYTES_MAX} bytes")),
        }
    });
    let image_policy = image_policy(reader, spec.as_ref());
    Some(Deployment { name: name?, spec: spec?, image_policy, count: count?, select })
}

/// What the image must be, where anything is asked of it. What can be seen of it is checked at once.
fn image_policy(reader: &mut Reader<'_>, spec: Option<&WorkloadSpec>) -> Option<ImagePolicy> {
    let policy =
        reader.inner("image_policy", policy::policy).filter(|policy| !policy.is_empty())?;
    for fault in spec.iter().flat_map(|spec| image_faults(&spec.image, &policy, "image_policy")) {
        reader.fault("image", fault.message);
    }
    Some(policy)
}

fn count(reader: &mut Reader<'_>) -> Option<Count> {
    let everywhere = reader.boolean("everywhere").unwrap_or(false);
    let replicas = reader.number("replicas", 0, REPLICAS_MAX);
    match (everywhere, reader.node("replicas").is_some()) {
        (true, true) => {
            reader.fault("replicas", "says how many, but `everywhere` is set: keep one".to_owned());
            None
        }
        (true, false) => Some(Count::Everywhere),
        (false, true) => replicas.map(Count::Replicas),
        (false, false) => Some(Count::Replicas(1)),
    }
}

fn spec(reader: &mut Reader<'_>) -> Option<WorkloadSpec> {
    let image = reader.text("image");
    if reader.node("image").is_none() {
        reader.fault("image", "is missing: say which image to run".to_owned());
    }
    let image = image.filter(|image| {
        let printable = image.bytes().all(|byte| byte.is_ascii_graphic());
        let fits = printable && !image.is_empty() && image.len() <= IMAGE_BYTES_MAX;
        if !fits {
            reader.fault("image", format!("is no image name: {}", quoted(image)));
        }
        fits
    });
    let command = reader.list("command", ITEMS_MAX);
    let args = reader.list("args", ITEMS_MAX);
    let env = reader.map("env", ITEMS_MAX, |key, _| {
        let wrong = key.is_empty() || key.contains('=');
        if wrong { Err("a variable's name is not empty and has no '='".to_owned()) } else { Ok(()) }
    });
    let secrets = secrets::secrets(reader, &env);
    let workdir = reader.text("workdir").filter(|path| {
        let absolute = path.starts_with('/');
        if !absolute {
            reader.fault("workdir", "must be an absolute path".to_owned());
        }
        absolute
    });
    let user = reader.scalar("user");
    let resources = resources(reader);
    let restart = reader.one_of(
        "restart",
        &[
            ("always", Restart::Always),
            ("on-failure", Restart::OnFailure),
            ("never", Restart::Never),
        ],
    );
    let stop = stop(reader);
    let host = host::host(reader);
    let restart = restart.unwrap_or_default();
    Some(WorkloadSpec {
        image: image?,
        command,
        args,
        env,
        workdir,
        user,
        resources,
        restart,
        stop,
        secrets,
        host,
    })
}

fn resources(reader: &mut Reader<'_>) -> Resources {
    reader
        .inner("resources", |reader| Resources {
            memory_bytes: reader.quantity("memory", |text| {
                let bytes = memory_bytes(text)?;
                let fits = (MEMORY_BYTES_MIN..=MEMORY_BYTES_MAX).contains(&bytes);
                fits.then_some(bytes).ok_or_else(|| "must be 4Mi to 16Ti".to_owned())
            }),
            cpu_millis: reader.quantity("cpus", |text| {
                let millis = quantity::cpu_millis(text)?;
                let fits = (CPU_MILLIS_MIN..=CPU_MILLIS_MAX).contains(&millis);
                fits.then_some(millis).ok_or_else(|| "must be 0.01 to 1000".to_owned())
            }),
            pids: reader.number("pids", 1, PIDS_MAX),
        })
        .unwrap_or_default()
}

fn stop(reader: &mut Reader<'_>) -> Stop {
    reader
        .inner("stop", |reader| Stop {
            signal: reader.parsed::<Signal>("signal"),
            grace_ms: reader
                .quantity("grace", |text| {
                    let ms = duration_ms(text)?;
                    let fits = ms <= GRACE_MS_MAX;
                    fits.then_some(ms).ok_or_else(|| "must be at most 1h".to_owned())
                })
                .unwrap_or(STOP_GRACE_MS_DEFAULT),
        })
        .unwrap_or_default()
}

/// Variables, labels: text by text.
type Texts = BTreeMap<String, String>;

//! A deployment as a manifest again.

use std::fmt::Write;

use limpet_protocol::spec::STOP_GRACE_MS_DEFAULT;
use limpet_protocol::{
    HostAccess, HostDevice, HostMount, Restart, SecretPlace, SecretUse, WorkloadSpec,
};

use super::Texts;
use super::policy::render_policy;
use crate::deployment::{Count, Deployment};

/// A longer key must be marked as one (YAML 1.2, section 7.4.3: 1024 characters).
const KEY_BYTES_MAX: usize = 1000;

/// The manifest, in YAML, that [`super::parse`] reads as this deployment.
pub fn render(deployment: &Deployment) -> String {
    let Deployment { name, spec, image_policy, count, select } = deployment;
    let mut out = String::new();
    let mut line = |text: String| {
        out.push_str(&text);
        out.push('\n');
    };
    line(format!("name: {}", quote(name.as_str())));
    line(format!("image: {}", quote(&spec.image)));
    for (key, items) in [("command", &spec.command), ("args", &spec.args)] {
        if !items.is_empty() {
            let items: Vec<String> = items.iter().map(|item| quote(item)).collect();
            line(format!("{key}: [{}]", items.join(", ")));
        }
    }
    for (key, text) in [("workdir", &spec.workdir), ("user", &spec.user)] {
        if let Some(text) = text {
            line(format!("{key}: {}", quote(text)));
        }
    }
    match count {
        Count::Replicas(count) => line(format!("replicas: {count}")),
        Count::Everywhere => line("everywhere: true".to_owned()),
    }
    for (key, texts) in [("env", &spec.env), ("select", select)] {
        if !texts.is_empty() {
            line(format!("{key}:{}", fields(texts)));
        }
    }
    if !spec.secrets.is_empty() {
        line(format!("secrets:{}", secrets(&spec.secrets)));
    }
    if let Some(policy) = image_policy {
        line("image_policy:".to_owned());
        out += &render_policy(policy, "  ");
    }
    out + &limits(spec) + &host(&spec.host)
}

fn host(host: &HostAccess) -> String {
    let HostAccess { privileged, mounts, devices } = host;
    let mount = |HostMount { host, path, read_only }: &HostMount| {
        let read_only = if *read_only { ", read_only: true" } else { "" };
        format!("\n  - {{host: {}, path: {}{read_only}}}", quote(host), quote(path))
    };
    let device = |HostDevice { host, path, access }: &HostDevice| {
        let path = path.as_ref().map(|path| format!(", path: {}", quote(path)));
        let path = path.unwrap_or_default();
        format!("\n  - {{host: {}{path}, access: {}}}", quote(host), access.letters())
    };
    let mut out = String::new();
    if !mounts.is_empty() {
        let _ = writeln!(out, "mounts:{}", mounts.iter().map(mount).collect::<String>());
    }
    if !devices.is_empty() {
        let _ = writeln!(out, "devices:{}", devices.iter().map(device).collect::<String>());
    }
    if *privileged {
        let _ = writeln!(out, "privileged: true");
    }
    out
}

fn limits(spec: &WorkloadSpec) -> String {
    let mut out = String::new();
    let limits = spec.resources;
    let given = [
        limits.memory_bytes.map(|bytes| format!("\n  memory: {bytes}")),
        limits.cpu_millis.map(|millis| format!("\n  cpus: {millis}m")),
        limits.pids.map(|pids| format!("\n  pids: {pids}")),
    ];
    let given: String = given.into_iter().flatten().collect();
    if !given.is_empty() {
        let _ = writeln!(out, "resources:{given}");
    }
    let restart = match spec.restart {
        Restart::Always => "always",
        Restart::OnFailure => "on-failure",
        Restart::Never => "never",
    };
    let _ = writeln!(out, "restart: {restart}");
    let mut stop = String::new();
    if let Some(signal) = spec.stop.signal {
        let _ = write!(stop, "\n  signal: {}", signal.number());
    }
    if spec.stop.grace_ms != STOP_GRACE_MS_DEFAULT {
        let _ = write!(stop, "\n  grace: {}ms", spec.stop.grace_ms);
    }
    if !stop.is_empty() {
        let _ = writeln!(out, "stop:{stop}");
    }
    out
}

/// Their versions are the store's: a manifest asks for the latest.
fn secrets(secrets: &[SecretUse]) -> String {
    let item = |secret: &SecretUse| {
        let place = match &secret.place {
            SecretPlace::File(path) => format!("file: {}", quote(path)),
            SecretPlace::Env(key) => format!("env: {}", quote(key)),
        };
        format!("\n  - name: {}\n    {place}", quote(secret.name.as_str()))
    };
    secrets.iter().map(item).collect()
}

fn fields(texts: &Texts) -> String {
    let field = |(key, value): (&String, &String)| match (quote(key), quote(value)) {
        (key, value) if key.len() > KEY_BYTES_MAX => format!("\n  ? {key}\n  : {value}"),
        (key, value) => format!("\n  {key}: {value}"),
    };
    texts.iter().map(field).collect()
}

/// Words stay as they are; everything else is quoted as JSON, which YAML understands.
pub(super) fn quote(text: &str) -> String {
    let word = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
    let number = text.starts_with(|c: char| c.is_ascii_digit() || c == '.' || c == '-');
    let special = ["true", "false", "null"].contains(&text) || text.parse::<f64>().is_ok();
    if !text.is_empty() && text.chars().all(word) && !number && !special {
        return text.to_owned();
    }
    let mut out = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => {
                out.push('\\');
                out.push(c);
            }
            ' '..='~' => out.push(c),
            c => {
                let _ = write!(out, "\\U{:08x}", u32::from(c));
            }
        }
    }
    out.push('"');
    out
}

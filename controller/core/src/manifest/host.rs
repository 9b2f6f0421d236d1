//! What a workload wants of its host: `privileged`, `mounts`, `devices`.

use std::collections::BTreeSet;

use limpet_protocol::host::is_clean;
use limpet_protocol::{DeviceAccess, HostAccess, HostDevice, HostMount};

use super::quoted;
use super::reader::Reader;

/// Mounts, or devices, at most: more is a mistake.
const ITEMS_MAX: usize = 32;

pub(super) fn host(reader: &mut Reader<'_>) -> HostAccess {
    let fields = |_: &str| Err("must be fields: host, path and, if need be, read_only".to_owned());
    let host = HostAccess {
        privileged: reader.boolean("privileged").unwrap_or(false),
        mounts: reader.entries("mounts", ITEMS_MAX, fields, mount),
        devices: reader.entries("devices", ITEMS_MAX, short, device),
    };
    let paths = host.mounts.iter().map(|mount| ("mounts", mount.path.as_str()));
    let nodes = host.devices.iter().map(|device| ("devices", device.path()));
    let mut seen = BTreeSet::new();
    for (key, path) in paths.chain(nodes) {
        if !seen.insert(path) {
            reader.fault(key, format!("{} is there twice", quoted(path)));
        }
    }
    host
}

fn mount(reader: &mut Reader<'_>) -> Option<HostMount> {
    let host = reader.quantity("host", clean);
    let path = reader.quantity("path", |path| {
        let whole = ["/", "/proc", "/sys", "/dev"].contains(&path) || path.starts_with("/proc/");
        match whole {
            true => Err(format!("nothing can be mounted over {path}")),
            false => clean(path),
        }
    });
    for key in ["host", "path"] {
        if reader.node(key).is_none() {
            reader.fault(key, "is missing".to_owned());
        }
    }
    let read_only = reader.boolean("read_only").unwrap_or(false);
    Some(HostMount { host: host?, path: path?, read_only })
}

fn device(reader: &mut Reader<'_>) -> Option<HostDevice> {
    let host = reader.quantity("host", node);
    if reader.node("host").is_none() {
        reader.fault("host", "is missing".to_owned());
    }
    let path = reader.quantity("path", node);
    let access = reader.one_of(
        "access",
        &[("rw", DeviceAccess::ReadWrite), ("r", DeviceAccess::Read), ("w", DeviceAccess::Write)],
    );
    let host = host?;
    let path = path.filter(|path| *path != host);
    Some(HostDevice { host, path, access: access.unwrap_or_default() })
}

/// A device that is written as its path alone.
fn short(path: &str) -> Result<HostDevice, String> {
    Ok(HostDevice { host: node(path)?, path: None, access: DeviceAccess::default() })
}

fn node(path: &str) -> Result<String, String> {
    let path = clean(path)?;
    match path.starts_with("/dev/") {
        true => Ok(path),
        false => Err("must be below /dev".to_owned()),
    }
}

fn clean(path: &str) -> Result<String, String> {
    match is_clean(path) {
        true => Ok(path.to_owned()),
        false => Err(format!("must be an absolute path without . and .., is {}", quoted(path))),
    }
}

//! The flags of `limpet run` for what a workload wants of its host, as docker has them.

use clap::Args;
use serde_json::{Value, json};

/// What a workload wants of its host.
#[derive(Args)]
pub(super) struct Host {
    /// Every capability and device, and no seccomp: where the device's owner allows it
    #[arg(long)]
    privileged: bool,
    /// A device of the host, such as /dev/ttyUSB0:/dev/gps:r; can be repeated
    #[arg(long, value_name = "HOST[:PATH[:ACCESS]]", value_parser = device)]
    device: Vec<Value>,
    /// A path of the host: type=bind,source=/srv/data,target=/data[,readonly]; can be repeated
    #[arg(long, value_name = "FIELDS", value_parser = mount)]
    mount: Vec<Value>,
}

impl Host {
    /// The fields of the manifest.
    pub(super) fn manifest(&self) -> [(&'static str, Option<Value>); 3] {
        let list = |items: &[Value]| (!items.is_empty()).then(|| json!(items));
        [
            ("privileged", self.privileged.then_some(json!(true))),
            ("devices", list(&self.device)),
            ("mounts", list(&self.mount)),
        ]
    }
}

fn device(text: &str) -> Result<Value, String> {
    let mut parts = text.split(':');
    let (host, second, third) = (parts.next(), parts.next(), parts.next());
    let (path, access) = match (second, third) {
        // As docker reads it: what is no path is access.
        (Some(access), None) if !access.starts_with('/') => (None, Some(access)),
        rest => rest,
    };
    let mut fields = json!({ "host": host });
    for (key, value) in [("path", path), ("access", access)] {
        if let Some(value) = value {
            fields[key] = json!(value);
        }
    }
    match parts.next() {
        None => Ok(fields),
        Some(_) => Err("write HOST[:PATH[:ACCESS]], as in /dev/ttyUSB0:/dev/gps:rw".to_owned()),
    }
}

fn mount(text: &str) -> Result<Value, String> {
    let mut fields = json!({});
    let mut kind = None;
    for field in text.split(',') {
        let (key, value) = field.split_once('=').unwrap_or((field, "true"));
        match key {
            "type" => kind = Some(value),
            "source" | "src" => fields["host"] = json!(value),
            "target" | "destination" | "dst" => fields["path"] = json!(value),
            "readonly" | "ro" if matches!(value, "true" | "1") => fields["read_only"] = json!(true),
            "readonly" | "ro" if matches!(value, "false" | "0") => {}
            _ => {
                return Err(format!(
                    "{field:?} is no field of a mount: type, source, target, readonly"
                ));
            }
        }
    }
    match kind {
        Some("bind") => Ok(fields),
        Some(other) => Err(format!("type={other}: only type=bind is known")),
        None => Err("says no type: write type=bind,source=/srv/data,target=/data".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_read_as_docker_reads_them() {
        for (text, fields) in [
            ("/dev/a", json!({"host": "/dev/a"})),
            ("/dev/a:/dev/b", json!({"host": "/dev/a", "path": "/dev/b"})),
            ("/dev/a:r", json!({"host": "/dev/a", "access": "r"})),
            ("/dev/a:/dev/b:w", json!({"host": "/dev/a", "path": "/dev/b", "access": "w"})),
        ] {
            assert_eq!(device(text), Ok(fields), "{text}");
        }
        assert!(device("/dev/a:/dev/b:w:x").is_err());
        let both = json!({"host": "/a", "path": "/b", "read_only": true});
        assert_eq!(mount("type=bind,src=/a,dst=/b,readonly"), Ok(both.clone()));
        assert_eq!(mount("type=bind,source=/a,target=/b,ro=true"), Ok(both));
        for text in ["src=/a,dst=/b", "type=volume,src=a,dst=/b", "type=bind,src=/a,uid=5"] {
            assert!(mount(text).is_err(), "{text}");
        }
    }
}

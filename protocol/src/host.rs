//! What a workload is given of the machine that it runs on. All of it only as far as the owner of
//! the device allows.

use serde::{Deserialize, Serialize};

/// Paths, devices and privilege of the host. Empty unless the manifest asks for it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostAccess {
    /// Everything that the agent may, and every device.
    #[serde(rename = "p", default, skip_serializing_if = "is_false")]
    pub privileged: bool,
    /// Files and folders of the host.
    #[serde(rename = "m", default, skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<HostMount>,
    /// Devices of the host.
    #[serde(rename = "d", default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<HostDevice>,
}

impl HostAccess {
    /// Whether nothing is asked for.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands it a reference")]
fn is_false(value: &bool) -> bool {
    !*value
}

/// A file or folder of the host, seen inside a container with what is mounted below it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostMount {
    /// On the host: see [`is_clean`].
    #[serde(rename = "h")]
    pub host: String,
    /// In the container: see [`is_clean`].
    #[serde(rename = "p")]
    pub path: String,
    /// Nothing is written through it.
    #[serde(rename = "r", default, skip_serializing_if = "is_false")]
    pub read_only: bool,
}

/// A device of the host, as a node in a container's `/dev`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostDevice {
    /// On the host, below `/dev`: see [`is_clean`].
    #[serde(rename = "h")]
    pub host: String,
    /// In the container, below `/dev`; as on the host where absent.
    #[serde(rename = "p", default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// What may be done to it.
    #[serde(rename = "a", default, skip_serializing_if = "DeviceAccess::is_default")]
    pub access: DeviceAccess,
}

impl HostDevice {
    /// Where it is in the container.
    pub fn path(&self) -> &str {
        self.path.as_deref().unwrap_or(&self.host)
    }
}

/// What may be done to a device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceAccess {
    /// Read and write.
    #[default]
    #[serde(rename = "rw")]
    ReadWrite,
    /// Read.
    #[serde(rename = "r")]
    Read,
    /// Write.
    #[serde(rename = "w")]
    Write,
}

impl DeviceAccess {
    /// Its letters, as the kernel's device rules have them.
    pub fn letters(self) -> &'static str {
        match self {
            Self::ReadWrite => "rw",
            Self::Read => "r",
            Self::Write => "w",
        }
    }

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands it a reference")]
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Whether a path is absolute and says where it leads: no empty part, no `.`, no `..`, no slash at
/// its end unless it is the root.
pub fn is_clean(path: &str) -> bool {
    let parts = path.strip_prefix('/');
    let clean = |part: &str| !matches!(part, "" | "." | "..") && !part.contains('\0');
    path == "/" || parts.is_some_and(|parts| parts.split('/').all(clean))
}

/// Whether a clean path is `folder` or below it; `/srv/database` is not below `/srv/data`.
pub fn is_below(path: &str, folder: &str) -> bool {
    let rest = path.strip_prefix(folder.trim_end_matches('/'));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes() {
        let mut spec = crate::WorkloadSpec::of("a");
        let hex = |bytes: Vec<u8>| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        let plain = hex(crate::cbor::encode(&spec));
        let device = |host: &str, path: Option<&str>, access| HostDevice {
            host: host.to_owned(),
            path: path.map(str::to_owned),
            access,
        };
        let mount = |read_only| HostMount { host: "/h".into(), path: "/p".into(), read_only };
        spec.host = HostAccess {
            privileged: true,
            mounts: vec![mount(false), mount(true)],
            devices: vec![
                device("/dev/a", None, DeviceAccess::ReadWrite),
                device("/dev/a", Some("/dev/b"), DeviceAccess::Read),
                device("/dev/c", None, DeviceAccess::Write),
            ],
        };
        let access = hex(crate::cbor::encode(&spec.host));
        assert!(!plain.contains("6168"), "what asks for nothing is as it was: {plain}");
        expect_test::expect!["a36170f5616d82a26168622f686170622f70a36168622f686170622f706172f5616483a16168662f6465762f61a36168662f6465762f616170662f6465762f6261616172a26168662f6465762f6361616177"].assert_eq(&access);
        let names: Vec<String> = spec.requires().iter().map(ToString::to_string).collect();
        assert_eq!(names, ["privileged", "host.paths", "host.devices", "device.access"]);
        assert_eq!(crate::cbor::decode(&crate::cbor::encode(&spec), usize::MAX).ok(), Some(spec));
    }

    #[test]
    fn paths_are_compared_part_by_part() {
        for path in ["/", "/srv", "/srv/data", "/srv/...", "/srv/.x"] {
            assert!(is_clean(path), "{path}");
        }
        for path in ["", "srv", "//", "/srv/", "/srv//x", "/srv/./x", "/srv/..", "/..", "/a\0"] {
            assert!(!is_clean(path), "{path}");
        }
        for (path, folder, below) in [
            ("/srv/data", "/srv/data", true),
            ("/srv/data/x", "/srv/data", true),
            ("/srv/data/x", "/", true),
            ("/", "/", true),
            ("/srv/database", "/srv/data", false),
            ("/srv", "/srv/data", false),
        ] {
            assert_eq!(is_below(path, folder), below, "{path} {folder}");
        }
    }
}

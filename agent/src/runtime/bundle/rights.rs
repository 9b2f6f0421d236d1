//! What a container may do: little, or, where it is privileged, all that the agent may.

use limpet_protocol::HostAccess;
use rustix::thread::{CapabilitySet, capabilities};
use serde_json::{Value, json};

use crate::runtime::seccomp;

/// What a container may do beyond an ordinary process: own, change and signal its own files and
/// processes, change its user, and serve ports below 1024. Of Docker's default set MKNOD, NET_RAW,
/// SYS_CHROOT, SETFCAP and AUDIT_WRITE are left out: not every kernel can enforce device rules, and
/// the host's network is shared.
const CAPABILITIES: [&str; 9] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
];

const MASKED: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/firmware",
];

const READ_ONLY: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The two kinds of containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rights {
    /// Confined.
    Default,
    /// As the agent: there is nothing that such a container could not reach.
    Privileged,
}

impl Rights {
    pub(super) fn of(host: &HostAccess) -> Self {
        if host.privileged { Self::Privileged } else { Self::Default }
    }

    /// `process.capabilities` (config.md, Linux process).
    pub(super) fn capabilities(self) -> Value {
        let list = match self {
            Self::Default => json!(CAPABILITIES),
            // No more than the shim has: it could not give them.
            Self::Privileged => {
                json!(names(capabilities(None).map_or(CapabilitySet::empty(), |own| own.permitted)))
            }
        };
        json!({ "bounding": list, "effective": list, "permitted": list })
    }

    pub(super) fn masked(self) -> &'static [&'static str] {
        match self {
            Self::Default => &MASKED,
            Self::Privileged => &[],
        }
    }

    pub(super) fn read_only(self) -> &'static [&'static str] {
        match self {
            Self::Default => &READ_ONLY,
            Self::Privileged => &[],
        }
    }

    pub(super) fn seccomp(self) -> Value {
        match self {
            Self::Default => seccomp::profile(),
            Self::Privileged => Value::Null,
        }
    }

    /// How `/sys` is mounted.
    pub(super) fn kernel_mounts(self) -> &'static str {
        match self {
            Self::Default => "ro",
            Self::Privileged => "rw",
        }
    }

    /// How files of the host are mounted, with all that is mounted below them.
    pub(super) fn bind_flags(self) -> &'static [&'static str] {
        match self {
            Self::Default => &["rnosuid", "rnodev"],
            Self::Privileged => &[],
        }
    }
}

/// The names of capabilities, as the OCI configuration has them.
fn names(set: CapabilitySet) -> Vec<String> {
    set.iter_names().map(|(name, _)| format!("CAP_{name}")).collect()
}

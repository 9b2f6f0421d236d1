//! The OCI configuration of a container (runtime-spec 1.2, config.md).

use std::collections::BTreeMap;
use std::path::Path;

use rustix::process::{Resource, getrlimit};
use serde_json::{Value, json};

use super::order::StartOrder;
use super::seccomp;
use super::user::User;

/// What a container may do beyond an ordinary process: own, change and signal its own files and
/// processes, change its user, and serve ports below 1024. Of Docker's default set MKNOD, NET_RAW,
/// SYS_CHROOT, SETFCAP and AUDIT_WRITE are left out: cgroup v2 device rules are not enforced here,
/// and the host's network is shared.
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

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

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

/// CPU quotas are counted over this long, in microseconds.
const CPU_PERIOD_US: u64 = 100_000;

/// Open files a container may ask for, where the agent itself may: what container images are built
/// for, far from the kernel's own limit.
const OPEN_FILES_MAX: u64 = 65_536;

/// The configuration, with `rootfs` beside it. `etc` are the files to be mounted over the image's.
pub(super) fn config(order: &StartOrder, user: &User, etc: &[(String, String)]) -> Value {
    let cwd = order.workload.spec.workdir.as_deref().or(order.image.working_dir.as_deref());
    let cwd = cwd.filter(|cwd| cwd.starts_with('/')).unwrap_or("/");
    let open_files = getrlimit(Resource::Nofile).maximum;
    let open_files = open_files.map_or(OPEN_FILES_MAX, |own| own.min(OPEN_FILES_MAX));
    json!({
        "ociVersion": "1.0.2",
        "hostname": order.hostname,
        "root": { "path": "rootfs", "readonly": false },
        "process": {
            "terminal": false,
            "user": { "uid": user.uid, "gid": user.gid, "additionalGids": user.groups },
            "args": args(order),
            "env": env(order, user),
            "cwd": cwd,
            "capabilities": {
                "bounding": CAPABILITIES,
                "effective": CAPABILITIES,
                "permitted": CAPABILITIES,
            },
            "noNewPrivileges": true,
            "oomScoreAdj": 0,
            "rlimits": [{ "type": "RLIMIT_NOFILE", "soft": open_files, "hard": open_files }],
        },
        "mounts": mounts(etc),
        "linux": {
            "cgroupsPath": order.cgroup,
            "resources": resources(order),
            "namespaces": [
                { "type": "pid" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" },
                { "type": "cgroup" },
            ],
            "maskedPaths": MASKED,
            "readonlyPaths": READ_ONLY,
            "seccomp": seccomp::profile(),
        },
    })
}

/// As Docker joins them: a command replaces the image's entrypoint and drops its arguments;
/// arguments replace the image's arguments.
pub(super) fn args(order: &StartOrder) -> Vec<String> {
    let (spec, image) = (&order.workload.spec, &order.image);
    let entrypoint = if spec.command.is_empty() { &image.entrypoint } else { &spec.command };
    let args = match (spec.args.is_empty(), spec.command.is_empty()) {
        (false, _) => &spec.args,
        (true, true) => &image.cmd,
        (true, false) => &spec.args,
    };
    entrypoint.iter().chain(args).cloned().collect()
}

/// Defaults, then the image's, then the workload's.
pub(super) fn env(order: &StartOrder, user: &User) -> Vec<String> {
    let mut env: BTreeMap<&str, &str> =
        [("PATH", PATH), ("HOSTNAME", &order.hostname), ("HOME", &user.home)].into();
    env.extend(order.image.env.iter().filter_map(|pair| pair.split_once('=')));
    env.extend(order.workload.spec.env.iter().map(|(key, value)| (key.as_str(), value.as_str())));
    env.into_iter().map(|(key, value)| format!("{key}={value}")).collect()
}

fn mounts(etc: &[(String, String)]) -> Vec<Value> {
    let tmpfs = |destination: &str, source: &str, options: &[&str]| json!({ "destination": destination, "type": "tmpfs", "source": source, "options": options });
    let mut mounts = vec![
        json!({ "destination": "/proc", "type": "proc", "source": "proc",
                "options": ["nosuid", "noexec", "nodev"] }),
        tmpfs("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=64k"]),
        json!({ "destination": "/dev/pts", "type": "devpts", "source": "devpts", "options":
                ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"] }),
        tmpfs("/dev/shm", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=64m"]),
        json!({ "destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
                "options": ["nosuid", "noexec", "nodev"] }),
        json!({ "destination": "/sys", "type": "sysfs", "source": "sysfs",
                "options": ["nosuid", "noexec", "nodev", "ro"] }),
    ];
    // Of cgroup v1 libcontainer 0.7 mounts every hierarchy writable, whatever the options say: a
    // container could lift its own limits.
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        mounts.push(json!({ "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
                    "options": ["nosuid", "noexec", "nodev", "relatime", "ro"] }));
    }
    mounts.extend(etc.iter().map(|(source, destination)| {
        json!({ "destination": destination, "type": "bind", "source": source,
                "options": ["bind", "nosuid", "nodev", "rprivate", "ro"] })
    }));
    mounts
}

fn resources(order: &StartOrder) -> Value {
    let limits = order.workload.spec.resources;
    let mut out = json!({ "devices": [{ "allow": false, "access": "rwm" }] });
    if let Some(bytes) = limits.memory_bytes {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        out["memory"] = json!({ "limit": bytes });
    }
    if let Some(millis) = limits.cpu_millis {
        let quota_us = u64::from(millis) * CPU_PERIOD_US / 1000;
        out["cpu"] = json!({ "quota": quota_us.max(1000), "period": CPU_PERIOD_US });
    }
    if let Some(pids) = limits.pids {
        out["pids"] = json!({ "limit": pids });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn args_are_joined_as_docker_joins_them() {
        let list = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        for (command, arguments, joined) in [
            ("", "", "/entry image"),
            ("", "own", "/entry own"),
            ("/own", "", "/own"),
            ("/own", "x y", "/own x y"),
        ] {
            let mut order = StartOrder::example();
            order.image.entrypoint = list("/entry");
            order.image.cmd = list("image");
            order.workload.spec.command = list(command);
            order.workload.spec.args = list(arguments);
            assert_eq!(args(&order), list(joined));
        }
    }

    #[test]
    fn the_workload_s_environment_wins() {
        let mut order = StartOrder::example();
        order.image.env = vec!["A=image".into(), "PATH=/p".into(), "B=image".into()];
        order.workload.spec.env = [("A".to_owned(), "own=1".to_owned())].into();
        let env = env(&order, &User::root());
        assert_eq!(env, ["A=own=1", "B=image", "HOME=/root", "HOSTNAME=web-0", "PATH=/p"]);
    }
}

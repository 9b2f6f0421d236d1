//! The OCI configuration of a container (runtime-spec 1.2, config.md).

use std::collections::BTreeMap;

use rustix::process::{Resource, getrlimit};
use serde_json::{Value, json};

use super::cgroup;
use super::host::{Node, Staged};
use super::order::StartOrder;
use super::user::User;

mod rights;

use rights::Rights;

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// CPU quotas are counted over this long, in microseconds.
const CPU_PERIOD_US: u64 = 100_000;

/// Open files a container may ask for, where the agent itself may: what container images are built
/// for, far from the kernel's own limit.
const OPEN_FILES_MAX: u64 = 65_536;

/// What a container is given beside its image.
pub(super) struct Given {
    /// Files to be mounted over the image's: source and destination.
    pub(super) etc: Vec<(String, String)>,
    /// Of the host's files.
    pub(super) mounts: Vec<Staged>,
    /// Of the host's devices.
    pub(super) devices: Vec<Node>,
}

/// The configuration, with `rootfs` beside it.
pub(super) fn config(order: &StartOrder, user: &User, given: &Given) -> Value {
    let rights = Rights::of(&order.workload.spec.host);
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
            "capabilities": rights.capabilities(),
            "noNewPrivileges": rights == Rights::Default,
            "oomScoreAdj": 0,
            "rlimits": [{ "type": "RLIMIT_NOFILE", "soft": open_files, "hard": open_files }],
        },
        "mounts": mounts(rights, given),
        "linux": {
            "cgroupsPath": order.cgroup,
            "resources": resources(order, rights, &given.devices),
            "devices": given.devices.iter().map(device).collect::<Vec<_>>(),
            "namespaces": [
                { "type": "pid" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" },
                { "type": "cgroup" },
            ],
            "maskedPaths": rights.masked(),
            "readonlyPaths": rights.read_only(),
            "seccomp": rights.seccomp(),
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

fn mounts(rights: Rights, given: &Given) -> Vec<Value> {
    let kernel = rights.kernel_mounts();
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
                "options": ["nosuid", "noexec", "nodev", kernel] }),
    ];
    // Of cgroup v1 libcontainer 0.7 mounts every hierarchy writable, whatever the options say: a
    // container could lift its own limits.
    if cgroup::unified("/").is_some() {
        mounts.push(json!({ "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
                    "options": ["nosuid", "noexec", "nodev", "relatime", kernel] }));
    }
    mounts.extend(given.etc.iter().map(|(source, destination)| {
        json!({ "destination": destination, "type": "bind", "source": source,
                "options": ["bind", "nosuid", "nodev", "rprivate", "ro"] })
    }));
    mounts.extend(given.mounts.iter().map(|Staged { source, path, read_only }| {
        let read_only = read_only.then_some("rro");
        let flags = rights.bind_flags().iter().copied().chain(read_only);
        let options: Vec<&str> = ["rbind", "rprivate"].into_iter().chain(flags).collect();
        json!({ "destination": path, "type": "bind", "source": source, "options": options })
    }));
    mounts
}

fn device(node: &Node) -> Value {
    let ((major, minor), (uid, gid)) = (node.number, node.owner);
    json!({
        "path": node.path, "type": node.kind.letter(), "major": major, "minor": minor,
        "fileMode": node.mode, "uid": uid, "gid": gid,
    })
}

fn resources(order: &StartOrder, rights: Rights, nodes: &[Node]) -> Value {
    let limits = order.workload.spec.resources;
    let all = json!({ "allow": rights == Rights::Privileged, "access": "rwm" });
    let devices = nodes.iter().filter(|_| rights == Rights::Default).map(|node| {
        let (major, minor) = node.number;
        let (kind, access) = (node.kind.letter(), node.access.letters());
        json!({ "allow": true, "type": kind, "major": major, "minor": minor, "access": access })
    });
    let devices: Vec<Value> = [all].into_iter().chain(devices).collect();
    let mut out = json!({ "devices": devices });
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

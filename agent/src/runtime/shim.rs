//! The shim: makes one container, then becomes the tiny process that waits for it.
//!
//! libcontainer clones without exec, which only a process with one thread may do: this process has
//! one, from its first instruction to its last. It has a mount namespace of its own, so that a
//! container's overlay is seen nowhere else and goes away with it.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use limpet_protocol::Feature;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use rustix::fs::OFlags;
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::pipe::{PipeFlags, pipe_with};

use super::host::Node;
use super::order::{self, StartOrder, StateRecord};
use super::secrets::{self, Opened, WithSecrets};
use super::{bpf, bundle, cgroup, devices, host, process, program, user};

/// The kernel reads mount options from one page.
const MOUNT_OPTIONS_MAX: usize = 4095;

#[derive(Debug, thiserror::Error)]
enum ShimError {
    #[error("{0} is missing or damaged")]
    Order(PathBuf),
    #[error("cannot {action}: {source}")]
    System { action: &'static str, source: std::io::Error },
    #[error("cannot write {path}: {source}")]
    Write { path: PathBuf, source: std::io::Error },
    #[error(
        "cannot mount the image's {layers} layers as overlay on {rootfs}: {source} (is overlayfs in \
         this kernel, and {writable} on a file system that can carry it?)"
    )]
    Overlay { layers: usize, rootfs: PathBuf, writable: PathBuf, source: std::io::Error },
    #[error("the image has too many layers for one overlay mount")]
    Layers,
    #[error(transparent)]
    Host(#[from] host::HostError),
    #[error(transparent)]
    User(#[from] user::UserError),
    #[error(transparent)]
    Program(#[from] program::ProgramError),
    #[error(transparent)]
    Secret(#[from] secrets::SecretError),
    #[error("the image names no program to run; give the workload a command")]
    NoProgram,
    #[error("cannot make the container: {}", chain(.0))]
    Create(#[source] libcontainer::error::LibcontainerError),
    #[error("cannot start {program:?}: {}", chain(.source))]
    Start { program: String, source: libcontainer::error::LibcontainerError },
    #[error(
        "cannot limit access to devices: {0} (device programs of cgroup v2 take CONFIG_CGROUP_BPF, and \
         no group above that has one of its own and lets none be added)"
    )]
    Devices(#[source] std::io::Error),
    #[error("the container's main process cannot be found")]
    Lost,
}

fn system(action: &'static str) -> impl FnOnce(rustix::io::Errno) -> ShimError {
    move |errno| ShimError::System { action, source: errno.into() }
}

/// An error with its causes, each said once.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    text
}

/// Makes the container that `folder` orders. Answers on standard output with one line, `started
/// PID` or `failed WHY`, and returns only where it failed.
pub fn run(folder: &Path) -> std::process::ExitCode {
    let error = match make(folder) {
        Ok((pid, output, logs)) => {
            answer(&format!("started {pid}"));
            become_waiter(folder, pid, output, logs.as_deref())
        }
        Err(error) => error,
    };
    answer(&format!("failed {}", error.to_string().replace('\n', " ")));
    std::process::ExitCode::FAILURE
}

fn answer(line: &str) {
    // Nobody listens where the agent has ended; the records in the folder tell the next one.
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// The ends of the container's output that are read.
struct Output {
    stdout: OwnedFd,
    stderr: OwnedFd,
}

fn make(folder: &Path) -> Result<(u32, Output, Option<PathBuf>), ShimError> {
    let path = folder.join("order");
    let order: StartOrder = order::read(&path).ok_or(ShimError::Order(path))?;
    let secrets = secrets::take()?;
    detach()?;
    // A container inherits what its maker ignores; Rust ignores SIGPIPE, shells some others.
    for signal in Signal::iterator().filter(|s| !matches!(s, Signal::SIGKILL | Signal::SIGSTOP)) {
        handle(signal, SigHandler::SigDfl)?;
    }
    let bundle = folder.join("bundle");
    mount_root(&order, &bundle.join("rootfs"))?;
    let devices = write_bundle(&order, &secrets, folder)?;
    let (stdout, stdout_write) = pipe_with(PipeFlags::CLOEXEC).map_err(system("make a pipe"))?;
    let (stderr, stderr_write) = pipe_with(PipeFlags::CLOEXEC).map_err(system("make a pipe"))?;
    let null =
        rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, rustix::fs::Mode::empty());
    let root = folder.join("libcontainer");
    std::fs::create_dir_all(&root)
        .map_err(|source| ShimError::Write { path: root.clone(), source })?;
    let mut container = ContainerBuilder::new(order.id.to_string(), SyscallType::default())
        .with_root_path(root)
        .map_err(ShimError::Create)?
        .with_stdin(null.map_err(system("open /dev/null"))?)
        .with_stdout(stdout_write)
        .with_stderr(stderr_write)
        .with_executor(WithSecrets::new(&secrets)?)
        .as_init(&bundle)
        .with_systemd(false)
        .with_detach(true)
        .build()
        .map_err(ShimError::Create)?;
    // Nobody may listen to the answer: that must not end the shim.
    handle(Signal::SIGPIPE, SigHandler::SigIgn)?;
    let pid = container.pid().and_then(|pid| u32::try_from(pid.as_raw()).ok());
    let main = pid.and_then(process::look).ok_or(ShimError::Lost)?;
    guard_devices(&order, &devices)?;
    container.start().map_err(|source| {
        let program = bundle::args(&order).into_iter().next().unwrap_or_default();
        ShimError::Start { program, source }
    })?;
    let shim = process::look(std::process::id()).ok_or(ShimError::Lost)?;
    let path = folder.join("state");
    order::write(&path, &StateRecord { main, shim })
        .map_err(|source| ShimError::Write { path, source })?;
    Ok((main.pid, Output { stdout, stderr }, order.logs))
}

fn handle(signal: Signal, handler: SigHandler) -> Result<(), ShimError> {
    let action = SigAction::new(handler, SaFlags::empty(), SigSet::empty());
    #[expect(unsafe_code, reason = "the kernel's interface for this is a C function")]
    // SAFETY: the disposition is the default or to ignore: no function of ours is ever called from
    // a signal.
    let set = unsafe { sigaction(signal, &action) };
    set.map(drop).map_err(|errno| ShimError::System { action: "set signals", source: errno.into() })
}

/// A session and a mount namespace of its own, and the last to be killed when memory runs out.
fn detach() -> Result<(), ShimError> {
    // It leads a group already only where a person runs it by hand.
    let _ = rustix::process::setsid();
    // Not allowed in a container of another's: the shim then takes its chances.
    let _ = std::fs::write("/proc/self/oom_score_adj", "-999");
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).map_err(|errno| {
        ShimError::System {
            action: "make a mount namespace (is the agent root?)",
            source: errno.into(),
        }
    })?;
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
        .map_err(system("keep mounts to this namespace"))
}

fn mount_root(order: &StartOrder, rootfs: &Path) -> Result<(), ShimError> {
    let (upper, work) = (order.writable.join("upper"), order.writable.join("work"));
    for path in [&upper, &work, &rootfs.to_path_buf()] {
        std::fs::create_dir_all(path)
            .map_err(|source| ShimError::Write { path: path.clone(), source })?;
    }
    // Relative to their folder, so that many names fit.
    rustix::process::chdir(&order.layers_dir).map_err(system("enter the folder of layers"))?;
    // Topmost first. The same layer again further down shows nothing, and overlayfs refuses it.
    let mut lower: Vec<&str> = Vec::new();
    for layer in order.layers.iter().rev() {
        if !lower.contains(&layer.as_str()) {
            lower.push(layer);
        }
    }
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        lower.join(":"),
        upper.display(),
        work.display()
    );
    if options.len() > MOUNT_OPTIONS_MAX {
        return Err(ShimError::Layers);
    }
    let options = std::ffi::CString::new(options).map_err(|_| ShimError::Layers)?;
    let mounted = mount("overlay", rootfs, "overlay", MountFlags::NODEV, options.as_c_str());
    mounted.map_err(|errno| ShimError::Overlay {
        layers: order.layers.len(),
        rootfs: rootfs.into(),
        writable: order.writable.clone(),
        source: errno.into(),
    })?;
    rustix::process::chdir("/").map_err(system("enter /"))
}

/// Writes what libcontainer reads; gives the devices of the host in it.
fn write_bundle(
    order: &StartOrder,
    secrets: &[Opened],
    folder: &Path,
) -> Result<Vec<Node>, ShimError> {
    let bundle = &folder.join("bundle");
    let hosts = format!("127.0.0.1\tlocalhost {0}\n::1\tlocalhost {0}\n", order.hostname);
    let resolv = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let mut etc = Vec::new();
    for (name, text) in
        [("hostname", format!("{}\n", order.hostname)), ("hosts", hosts), ("resolv.conf", resolv)]
    {
        let path = bundle.join(name);
        std::fs::write(&path, text)
            .map_err(|source| ShimError::Write { path: path.clone(), source })?;
        etc.push((path.display().to_string(), format!("/etc/{name}")));
    }
    let rootfs = bundle.join("rootfs");
    let who =
        order.workload.spec.user.as_ref().or(order.image.user.as_ref()).map_or("", String::as_str);
    let user = user::look_up(&rootfs, who)?;
    etc.extend(secrets::place(secrets, &bundle.join("secrets"), &user)?);
    let args = bundle::args(order);
    let first = args.first().ok_or(ShimError::NoProgram)?;
    program::check(&rootfs, first, &bundle::env(order, &user))?;
    let [containers, writable] =
        [folder, &order.writable].map(|of_one| of_one.parent().unwrap_or(of_one));
    let own = host::own(containers, writable);
    let host = host::open(&order.owner, &order.workload.spec.host, &own)?;
    let mounts = host.stage(&bundle.join("host"))?;
    let given = bundle::Given { etc, mounts, devices: host.devices };
    let config = bundle::config(order, &user, &given);
    let path = bundle.join("config.json");
    // It holds variables of the workload's environment.
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path);
    file.and_then(|mut file| file.write_all(config.to_string().as_bytes()))
        .map_err(|source| ShimError::Write { path, source })?;
    Ok(given.devices)
}

/// On cgroup v2, where libcontainer leaves devices alone: nothing of the container's own has run yet,
/// and what will is in its group, or in one below.
fn guard_devices(order: &StartOrder, given: &[Node]) -> Result<(), ShimError> {
    let spec = &order.workload.spec;
    let Some(group) = cgroup::unified(&order.cgroup).filter(|_| !spec.host.privileged) else {
        return Ok(());
    };
    match bpf::attach(&devices::program(given), &group) {
        // Without it a container makes no node still, and opens none in folders of the host or of an
        // image, which are mounted without devices: it reaches what it is given, for all access.
        Err(source) if spec.requires().contains(&Feature::known(Feature::DEVICE_ACCESS)) => {
            Err(ShimError::Devices(source))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Replaces this process: its memory goes, its child and its open pipes stay.
fn become_waiter(folder: &Path, pid: u32, output: Output, logs: Option<&Path>) -> ShimError {
    for fd in [output.stdout.as_fd(), output.stderr.as_fd()] {
        if let Err(errno) = fcntl_setfd(fd, FdFlags::empty()) {
            return system("keep the container's output")(errno);
        }
    }
    let number = |fd: &OwnedFd| std::os::fd::AsRawFd::as_raw_fd(fd).to_string();
    let source = Command::new("/proc/self/exe")
        .arg("shim-wait")
        .arg(folder)
        .args([pid.to_string(), number(&output.stdout), number(&output.stderr)])
        .arg(logs.unwrap_or(folder))
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .exec();
    ShimError::System { action: "become the waiting shim", source }
}

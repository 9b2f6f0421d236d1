//! The command line of `limpet-agent`.

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use lexopt::prelude::*;
use limpet_service::Supervisor;

use crate::config::{self, Config, Flags};
use crate::runtime::wait::Waited;
use crate::runtime::{shim, wait};
use crate::{device, privilege, upgrade, version};

mod id;
mod install;
mod join;
mod local;
mod preload;
mod time;

const HELP: &str = "\
Runs the containers that a Limpet controller publishes for this device.

Usage: limpet-agent join STRING | --file FILE [--device-id ID] [--data-dir DIR] [--proxy URL]
       limpet-agent run [OPTIONS]
       limpet-agent install [--join STRING]      as a service of this machine's systemd
       limpet-agent uninstall [--purge]
       limpet-agent end                          every container, once its agent is stopped
       limpet-agent status [-o json]             where this device stands
       limpet-agent logs WORKLOAD [-f] [--tail N]
       limpet-agent stop WORKLOAD                until the next change, or `start`
       limpet-agent start|restart WORKLOAD
       limpet-agent sleep --until TIME | --for DURATION
       limpet-agent wake
       limpet-agent preload FILE [--name NAME] [--platform OS/ARCH[/VARIANT]] [--data-dir DIR]
       limpet-agent preload --list | --unpin NAME [--data-dir DIR]
       limpet-agent id [--data-dir DIR]          what this device is called
       limpet-agent version

join makes this device a member of a fleet, with the line that `limpet token create --join` prints.
Its key is made here and stays here. Where `run` finds that the device has not joined, it uses the
line in /etc/limpet/join (`join_file` in the configuration), and deletes it then.

install puts this program into /usr/bin and its unit beside systemd's others, has it start with the
machine, and starts it where the device has joined; with --join it joins then. Done again, it replaces
what differs in this version, but for a unit that somebody has changed. uninstall stops the agent, ends
its containers and takes all of that away; data and configuration stay unless there is --purge. Where a
Debian package put the agent in place, use apt.

Where a site lets nothing out but through an HTTP proxy, the section [proxy] of the configuration
file names it: url = \"http://USER:PASSWORD@HOST:PORT\" (chmod 0600), no_proxy = [\"10.0.0.0/8\",
\"registry.local\", \".example.com\"] for what is reached without. Joining, the link and pulls all take
it, with CONNECT. What the file does not say, HTTPS_PROXY and NO_PROXY of the environment do; join
has --proxy as well, for this once.

preload puts the images of FILE on this device, for places with no registry, and pins them: they
stay, needed or not, until `--unpin`. FILE is what `docker save` or `skopeo copy` to docker-archive:
or oci-archive: writes, compressed with gzip or zstd or not, or a folder of OCI's image layout. NAME
is what workloads call the image; needed where FILE names none. Where an agent runs, it takes them
in; only root may ask it to. `--platform` prepares the disk of another device.

Options of run (each is also a key of the configuration file; flags win):
  --device-id ID         the device's id; unless said or known the host's name, or, where the file
                         has `device_id_prefix = \"gw\"`, gw- with the board's serial number, else
                         with a MAC address, else with a random number
  --data-dir DIR         what survives a reboot [/var/lib/limpet]
  --run-dir DIR          containers and their logs, best in memory [/run/limpet]
  --cgroup-parent PATH   the control group above all containers [/limpet]
  --insecure             speak plain MQTT with --broker, and trust the first controller: for
                         loopback and networks that you trust
  --broker URL           the broker to speak plain MQTT with, mqtt://HOST:PORT

Options of all:
  --config FILE          the configuration file [/etc/limpet/agent.toml]
  --run-dir DIR          which agent is meant, where several run
  -h, --help             this text
  -V, --version          the version

status, logs, stop, start, restart, sleep and wake talk to the agent of this machine, whether or not
it has a link: they are for root and the group `limpet` (if there is one when it begins). A workload's id is as in status. sleep tells
the controller that the device is away on purpose, and keeps off the network until then; containers
go on. TIME is RFC 3339, as 2026-11-26T06:00:00Z; DURATION is a number with s, m, h or d.

The section [owner] of the configuration file says what a controller may not do on this device,
whoever asks: privileged = false, host_paths = [] (\"/srv/data\" with all below it, \"/run/foo:ro\"
for reading), host_devices = [] (\"/dev/ttyUSB*\"; * stands for anything but a slash), host_network =
true, registries (any unless it is there; \"docker.io\", \"ghcr.io/acme\"), memory_share (0.8 of this
machine's memory for all workloads together, which then need a limit each), remote_logs = true. Links
are followed before paths are compared. It is read when the agent begins; what runs then goes on.

`limpet device upgrade` has this agent fetch another version of itself. `run` hands over to it, as the
same process, and containers go on. It must connect, find all containers, and have its report
acknowledged within its deadline; otherwise the one before it returns. What has proved itself is in
DIR/agent of the data folder, and `run` begins with it from then on, until this program here is replaced
by another: then that one runs.

Several agents can run on one machine, each with its own --device-id, --data-dir, --run-dir and
--cgroup-parent. Ending an agent ends no container: the next one goes on with them.

Example: limpet-agent join limpet-join-omFh... && limpet-agent run
";

/// What was asked for.
enum Command {
    Install(install::Order),
    Join(join::Order),
    Run(Flags),
    Local(local::Asked),
    Preload(preload::Order),
    Id(Flags),
    Shim(PathBuf),
    Wait(Waited),
    Help,
    Version,
}

/// Does what the arguments say: 0 done, 1 failed, 2 the arguments were wrong.
pub fn main() -> ExitCode {
    match parse(lexopt::Parser::from_env()) {
        Ok(Command::Install(order)) => report(install::run(order)),
        Ok(Command::Join(order)) => {
            begin_logging();
            report(join::run(order))
        }
        Ok(Command::Run(flags)) => run(flags),
        Ok(Command::Preload(order)) => {
            begin_logging();
            report(preload::run(order))
        }
        Ok(Command::Id(flags)) => {
            begin_logging();
            report(id::run(&flags))
        }
        Ok(Command::Shim(folder)) => shim::run(&folder),
        Ok(Command::Wait(waited)) => wait::run(&waited),
        Ok(Command::Local(asked)) => report(local::ask(&asked)),
        Ok(Command::Help) => print(HELP),
        Ok(Command::Version) => print(&format!("limpet-agent {}\n", version::version())),
        Err(error) => {
            complain(&format!("{error}\nTry `limpet-agent --help`."));
            ExitCode::from(2)
        }
    }
}

fn run(flags: Flags) -> ExitCode {
    begin_logging();
    let launched = upgrade::launch(&config::data_dir_at_least(&flags));
    if let Err(error) = privilege::drop_unneeded() {
        log::warn!("{error}");
    }
    let done = Config::load(flags).map_err(Into::into);
    let done = done.and_then(|config| device::run(config, launched));
    if let Err(error) = &done {
        let supervisor = Supervisor::of_process();
        supervisor.tell("STOPPING=1");
        supervisor.status(chain(error));
    }
    report(done)
}

fn report(done: anyhow::Result<()>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let usage = error.downcast_ref::<config::ConfigError>().is_some();
            complain(&chain(&error));
            ExitCode::from(if usage { 2 } else { 1 })
        }
    }
}

/// An error with its causes, each said once.
fn chain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for said in error.chain().map(ToString::to_string).filter(|said| !said.is_empty()) {
        if text.is_empty() {
            text = said;
        } else if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
    }
    text
}

fn print(text: &str) -> ExitCode {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn complain(text: &str) {
    // There is nowhere left to say that standard error is closed.
    let _ = writeln!(std::io::stderr(), "limpet-agent: {text}");
}

fn parse(mut parser: lexopt::Parser) -> Result<Command, lexopt::Error> {
    let verb = match parser.next()? {
        Some(Value(verb)) => verb.string()?,
        Some(Short('V') | Long("version")) => return Ok(Command::Version),
        Some(Short('h') | Long("help")) | None => return Ok(Command::Help),
        Some(other) => return Err(other.unexpected()),
    };
    match verb.as_str() {
        "install" | "uninstall" | "end" => {
            Ok(install::parse(&verb, parser)?.map_or(Command::Help, Command::Install))
        }
        "join" => Ok(join::parse(parser)?.map_or(Command::Help, Command::Join)),
        "run" => parse_run(parser),
        "status" | "logs" | "stop" | "start" | "restart" | "sleep" | "wake" => {
            Ok(local::parse(&verb, parser)?.map_or(Command::Help, Command::Local))
        }
        "preload" => Ok(preload::parse(parser)?.map_or(Command::Help, Command::Preload)),
        "id" => Ok(id::parse(parser)?.map_or(Command::Help, Command::Id)),
        "version" => Ok(Command::Version),
        "help" => Ok(Command::Help),
        "shim" => Ok(Command::Shim(parser.value()?.into())),
        "shim-wait" => Ok(Command::Wait(Waited {
            folder: parser.value()?.into(),
            pid: parser.value()?.parse()?,
            stdout: parser.value()?.parse()?,
            stderr: parser.value()?.parse()?,
            logs: parser.value()?.into(),
        })),
        _ => Err(format!("there is no command {verb:?}").into()),
    }
}

fn parse_run(mut parser: lexopt::Parser) -> Result<Command, lexopt::Error> {
    let mut flags = Flags::default();
    let path = |value: OsString| Some(PathBuf::from(value));
    while let Some(argument) = parser.next()? {
        match argument {
            Long("broker") => flags.broker = Some(parser.value()?.string()?),
            Long("insecure") => flags.insecure = true,
            Long("device-id") => flags.device_id = Some(parser.value()?.string()?),
            Long("data-dir") => flags.data_dir = path(parser.value()?),
            Long("run-dir") => flags.run_dir = path(parser.value()?),
            Long("cgroup-parent") => flags.cgroup_parent = Some(parser.value()?.string()?),
            Long("config") => flags.config = path(parser.value()?),
            Short('h') | Long("help") => return Ok(Command::Help),
            Short(_) | Long(_) | Value(_) => return Err(argument.unexpected()),
        }
    }
    Ok(Command::Run(flags))
}

/// Lines on standard error; `LIMPET_LOG=debug` says more, `LIMPET_LOG=warn` less.
fn begin_logging() {
    struct Lines;
    impl log::Log for Lines {
        fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
            metadata.target().starts_with("limpet")
        }
        fn log(&self, record: &log::Record<'_>) {
            if self.enabled(record.metadata()) {
                let _ = writeln!(std::io::stderr(), "{:5} {}", record.level(), record.args());
            }
        }
        fn flush(&self) {}
    }
    let level = std::env::var("LIMPET_LOG").ok().and_then(|level| level.parse().ok());
    log::set_max_level(level.unwrap_or(log::LevelFilter::Info));
    if log::set_logger(&Lines).is_err() {
        complain("logging was begun twice");
    }
}

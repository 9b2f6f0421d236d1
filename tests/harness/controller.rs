//! A real `limpet up`, and the command line that speaks to it.

use std::path::PathBuf;

use rustix::process::Signal;
use serde_json::Value;

use crate::process::Output;
use crate::unit::{Told, Unit};
use crate::{Lab, Process, eventually, free_port, output, processes_with, program};

/// A controller on ports of its own.
pub struct Controller {
    /// `http://HOST:PORT` of its API.
    pub api: String,
    /// `mqtt://HOST:PORT` of its broker.
    pub mqtt: String,
    /// The port of its broker.
    pub mqtt_port: u16,
    /// The program.
    pub process: Process,
    args: Vec<String>,
    log: PathBuf,
    /// Where the command line is logged in; None where nobody asks who it is.
    login: Option<PathBuf>,
}

impl Controller {
    /// Starts one with an empty store.
    pub fn start(lab: &Lab) -> Self {
        Self::with_flags(lab, &[])
    }

    /// Starts one with an empty store and further flags.
    pub fn with_flags(lab: &Lab, more: &[&str]) -> Self {
        Self::begin(lab, &["--insecure"], more)
    }

    /// Starts one that lets members and whoever has a token in, and logs in.
    pub fn secured(lab: &Lab, more: &[&str]) -> Self {
        let mut controller = Self::begin(lab, &[], more);
        let login = lab.path("login");
        controller.login = Some(login);
        let file = lab.path("controller/login").display().to_string();
        controller.ok(&["login", "--file", &file]);
        controller
    }

    /// A string that lets a device join.
    pub fn join_string(&self, more: &[&str]) -> String {
        let args = [&["token", "create", "--join"], more].concat();
        self.ok(&args).trim().to_owned()
    }

    fn begin(lab: &Lab, door: &[&str], more: &[&str]) -> Self {
        let (api, mqtt_port) = (free_port(), free_port());
        let (listen, mqtt) = (format!("127.0.0.1:{api}"), format!("127.0.0.1:{mqtt_port}"));
        let data = lab.path("controller").display().to_string();
        let flags = ["up", "--listen", &listen, "--mqtt-listen", &mqtt];
        let args: Vec<String> = flags
            .iter()
            .chain(door)
            .chain(more)
            .chain(&["--data-dir", &data])
            .map(ToString::to_string)
            .collect();
        let log = lab.path("controller.log");
        let process = launch(&log, &args);
        let mut controller = Self {
            api: format!("http://{listen}"),
            mqtt: format!("mqtt://{mqtt}"),
            mqtt_port,
            process,
            args,
            log,
            login: None,
        };
        controller.process.until_said("Next, on this machine");
        controller
    }

    /// Starts one as its unit does, with its user, in its sandbox, and logs in; gives its process,
    /// too. None where units cannot be run.
    pub fn as_unit(lab: &Lab) -> Option<(Self, Unit, u32)> {
        let (api, mqtt_port) = (free_port(), free_port());
        let (listen, mqtt) = (format!("127.0.0.1:{api}"), format!("127.0.0.1:{mqtt_port}"));
        let flags = format!("--listen {listen} --mqtt-listen {mqtt}");
        let told = Told { flags, ..Told::default() };
        let (mut process, unit) = Unit::start(lab, "limpet-controller", "limpet", &told)?;
        process.until_said("Next, on this machine");
        let log = lab.path("limpet-controller.log");
        let (api, mqtt, args) = (format!("http://{listen}"), format!("mqtt://{mqtt}"), Vec::new());
        let login = Some(lab.path("login"));
        let controller = Self { api, mqtt, mqtt_port, process, args, log, login };
        let own = processes_with("/run/bin/limpet\0up").into_iter().find(|pid| unit.holds(*pid));
        let pid = own.unwrap().cast_unsigned();
        let file = format!("/proc/{pid}/root/var/lib/limpet-controller/login");
        controller.ok(&["login", "--file", &file]);
        Some((controller, unit, pid))
    }

    /// SIGKILL: the power is gone.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// SIGTERM, and its end.
    pub fn stop(&mut self) {
        self.process.signal(Signal::TERM);
        assert!(self.process.wait().success(), "{}", self.process.tail());
    }

    /// Starts it again on the same store and ports.
    pub fn restart(&mut self) {
        std::fs::remove_file(&self.log).unwrap();
        self.process = launch(&self.log, &self.args);
        self.process.until_said("Next, on this machine");
        if self.login.is_none() {
            eventually("the API", || ureq::get(format!("{}/healthz", self.api)).call().ok());
        }
    }

    /// Starts it again on the same ports and another store.
    pub fn restart_on(&mut self, data_dir: &std::path::Path) {
        if let Some(data) = self.args.last_mut() {
            *data = data_dir.display().to_string();
        }
        self.restart();
    }

    /// Runs the command line against it.
    pub fn limpet(&self, args: &[&str]) -> Output {
        if let Some(login) = &self.login {
            let home = format!("XDG_CONFIG_HOME={}", login.display());
            let program = program("limpet").display().to_string();
            let clean = ["-u", "LIMPET_SERVER", "-u", "LIMPET_CONTEXT", "-u", "LIMPET_TOKEN"];
            return output("env", &[&clean[..], &[&home, &program], args].concat());
        }
        let all: Vec<&str> = args.iter().copied().chain(["--server", &self.api]).collect();
        // Words behind `--` belong to the container.
        let (own, container) = match args.iter().position(|arg| *arg == "--") {
            Some(at) => args.split_at(at),
            None => return output(program("limpet"), &all),
        };
        let all: Vec<&str> = own
            .iter()
            .copied()
            .chain(["--server", &self.api])
            .chain(container.iter().copied())
            .collect();
        output(program("limpet"), &all)
    }

    /// Runs a command that must succeed; gives what it printed.
    pub fn ok(&self, args: &[&str]) -> String {
        let done = self.limpet(args);
        assert_eq!(done.status, 0, "limpet {args:?}: {done:?}\n{}", self.process.tail());
        done.out
    }

    /// Runs a deployment of the image `box` whose program is this shell script, and waits until it
    /// runs; gives what the command printed.
    pub fn run_script(&self, name: &str, script: &str) -> String {
        self.ok(&["run", name, "--image=box", "--", "sh", "-c", script])
    }

    /// Runs a command that must fail with exit status 1; gives what it complained.
    pub fn fails(&self, args: &[&str]) -> String {
        let done = self.limpet(args);
        assert_eq!(done.status, 1, "limpet {args:?}: {done:?}");
        done.err
    }

    /// GET, as JSON.
    pub fn get(&self, path: &str) -> Value {
        let answer = ureq::get(format!("{}{path}", self.api)).call();
        let mut answer = answer.unwrap_or_else(|e| panic!("{path}: {e}\n{}", self.process.tail()));
        answer.body_mut().read_json().unwrap()
    }

    /// GET of a list; empty where the controller does not answer.
    pub fn list(&self, path: &str) -> Vec<Value> {
        let answer = ureq::get(format!("{}{path}", self.api)).call();
        let list = answer.ok().and_then(|mut answer| answer.body_mut().read_json().ok());
        list.unwrap_or_default()
    }
}

fn launch(log: &std::path::Path, args: &[String]) -> Process {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    Process::start(log, &program("limpet"), &args)
}

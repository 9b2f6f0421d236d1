//! A real `limpet up`, and the command line that speaks to it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustix::process::Signal;
use serde_json::Value;
use ureq::Body;
use ureq::http::Response;
use ureq::tls::{PemItem, RootCerts, TlsConfig};

use crate::process::Output;
use crate::unit::{Told, Unit};
use crate::{Lab, Process, Proxy, eventually, free_port, output, program};

const LOOPBACK: &str = "127.0.0.1";

/// A controller on ports of its own.
pub struct Controller {
    /// `http://HOST:PORT` of its API; `https` where it is secured.
    pub api: String,
    /// `mqtt://HOST:PORT` of its broker; `mqtts` where it is secured.
    pub mqtt: String,
    /// The port of its broker.
    pub mqtt_port: u16,
    /// The program.
    pub process: Process,
    args: Vec<String>,
    log: PathBuf,
    /// Where the command line is logged in; None where nobody asks who it is.
    login: Option<PathBuf>,
    http: OnceLock<Http>,
    /// Lets any device join.
    invitation: OnceLock<String>,
    /// What mosquitto's programs are told to publish manifests with.
    publisher: OnceLock<Vec<String>>,
}

/// What the API is asked with.
#[derive(Debug)]
struct Http {
    agent: ureq::Agent,
    token: Option<String>,
}

impl Controller {
    /// Starts one with an empty store, and logs in.
    pub fn start(lab: &Lab) -> Self {
        Self::secured(lab, &[])
    }

    /// Starts one with `--insecure`, for tests of that.
    pub fn insecure(lab: &Lab, more: &[&str]) -> Self {
        Self::begin(lab, LOOPBACK, &[&["--insecure"], more].concat())
    }

    /// Starts one with an empty store and further flags, and logs in.
    pub fn secured(lab: &Lab, more: &[&str]) -> Self {
        let mut controller = Self::begin(lab, LOOPBACK, more);
        controller.log_in(lab, &lab.path("controller/login"));
        controller
    }

    /// Starts one that its devices know by this address, and logs in. Its API is there; its broker is
    /// on loopback, so that a [`crate::Proxy`] can stand in front of it.
    pub fn advertised(lab: &Lab, address: &str) -> Self {
        Self::advertised_with(lab, address, &[])
    }

    /// The same, with further flags.
    pub fn advertised_with(lab: &Lab, address: &str, more: &[&str]) -> Self {
        let mut controller = Self::begin(lab, address, &[&["--advertise", address], more].concat());
        controller.log_in(lab, &lab.path("controller/login"));
        controller
    }

    /// Starts one whose API and broker its devices and the command line reach through proxies on this
    /// address, and logs in; gives the API's, and the broker's.
    pub fn behind(lab: &Lab, address: &str) -> (Self, Proxy, Proxy) {
        let mut controller = Self::begin(lab, LOOPBACK, &["--advertise", address]);
        let proxies = [&controller.api, &controller.mqtt].map(|url| Proxy::in_front(address, url));
        controller.log_in(lab, &lab.path("controller/login"));
        let [api, mqtt] = proxies;
        (controller, api, mqtt)
    }

    /// Has the command line log in with this file, as an admin.
    fn log_in(&mut self, lab: &Lab, file: &Path) {
        self.login = Some(lab.path("login"));
        self.api = self.api.replace("http:", "https:");
        self.mqtt = self.mqtt.replace("mqtt:", "mqtts:");
        self.ok(&["login", "--file", &file.display().to_string()]);
    }

    /// Whether it asks who is there.
    pub fn is_secured(&self) -> bool {
        self.login.is_some()
    }

    /// A string that lets any number of devices join.
    pub fn invitation(&self) -> &str {
        self.invitation.get_or_init(|| self.join_string(&["--uses=1000"]))
    }

    /// What mosquitto's programs must be told to reach its manifests: address and credentials of a
    /// publisher, where those are asked for.
    pub fn publisher(&self) -> Vec<&str> {
        let args = self.publisher.get_or_init(|| {
            let port = self.mqtt_port.to_string();
            let mut args = vec!["-h".to_owned(), "127.0.0.1".to_owned(), "-p".to_owned(), port];
            if let Some(login) = &self.login {
                let folder = login.with_extension("publisher").display().to_string();
                self.ok(&["token", "create", "--publisher", "conveyor", "--out", &folder]);
                for (flag, name) in [("--cafile", "ca"), ("--cert", "cert"), ("--key", "key")] {
                    args.extend([flag.to_owned(), format!("{folder}/{name}.pem")]);
                }
            }
            args
        });
        args.iter().map(String::as_str).collect()
    }

    /// A string that lets a device join.
    pub fn join_string(&self, more: &[&str]) -> String {
        let args = [&["token", "create", "--join"], more].concat();
        self.ok(&args).trim().to_owned()
    }

    fn begin(lab: &Lab, api: &str, flags: &[&str]) -> Self {
        let ports = (free_port(), free_port());
        let data = ["--data-dir".to_owned(), lab.path("controller").display().to_string()];
        // One on a broker of somebody else has none of its own.
        let own = if flags.contains(&"--broker") { 2 } else { 4 };
        let own = ["up".to_owned()].into_iter().chain(listening(api, ports).into_iter().take(own));
        let args = own.chain(flags.iter().map(ToString::to_string)).chain(data);
        let args: Vec<String> = args.collect();
        let log = lab.path("controller.log");
        let mut process = launch(&log, &args);
        process.until_said("Next, on this machine");
        Self::of(process, api, ports, args, log)
    }

    fn of(process: Process, api: &str, ports: (u16, u16), args: Vec<String>, log: PathBuf) -> Self {
        let (port, mqtt_port) = ports;
        Self {
            api: format!("http://{api}:{port}"),
            mqtt: format!("mqtt://127.0.0.1:{mqtt_port}"),
            mqtt_port,
            process,
            args,
            log,
            login: None,
            http: OnceLock::new(),
            invitation: OnceLock::new(),
            publisher: OnceLock::new(),
        }
    }

    /// Starts one as its unit does, with its user, in its sandbox, and logs in; gives its process,
    /// too. `service` is a further line of its unit. None where units cannot be run.
    pub fn as_unit(lab: &Lab, service: &'static str) -> Option<(Self, Unit, u32)> {
        let ports = (free_port(), free_port());
        let flags = listening(LOOPBACK, ports).join(" ");
        let told = Told { flags, service, ..Told::default() };
        let (mut process, unit) = Unit::start(lab, "limpet-controller", "limpet", &told)?;
        process.until_said("Next, on this machine");
        let mut controller =
            Self::of(process, LOOPBACK, ports, Vec::new(), lab.path("limpet-controller.log"));
        let pid = unit.main("/run/bin/limpet\0up", None);
        let file = format!("/proc/{pid}/root/var/lib/limpet-controller/login");
        controller.log_in(lab, file.as_ref());
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
            eventually("the API", || self.ask("/healthz").ok());
        }
    }

    /// Starts it again on the same ports and another store.
    pub fn restart_on(&mut self, data_dir: &Path) {
        if let Some(data) = self.args.last_mut() {
            *data = data_dir.display().to_string();
        }
        self.restart();
    }

    /// Runs the command line against it.
    pub fn limpet(&self, args: &[&str]) -> Output {
        let words = self.command(args);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        output(words[0], &words[1..])
    }

    /// The words of a command of `limpet` against it, in no other environment than its own.
    pub fn command(&self, args: &[&str]) -> Vec<String> {
        let clean = ["env", "-u", "LIMPET_SERVER", "-u", "LIMPET_CONTEXT", "-u", "LIMPET_TOKEN"];
        let found = match &self.login {
            Some(login) => format!("XDG_CONFIG_HOME={}", login.display()),
            None => format!("LIMPET_SERVER={}", self.api),
        };
        let program = program("limpet").display().to_string();
        let words = clean.iter().copied().chain([found.as_str(), &program]);
        words.chain(args.iter().copied()).map(str::to_owned).collect()
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
        serde_json::from_str(&self.text(path)).unwrap()
    }

    /// GET, as text.
    pub fn text(&self, path: &str) -> String {
        let answer = self.ask(path);
        let mut answer = answer.unwrap_or_else(|e| panic!("{path}: {e}\n{}", self.process.tail()));
        answer.body_mut().read_to_string().unwrap()
    }

    /// GET of a list; empty where the controller does not answer.
    pub fn list(&self, path: &str) -> Vec<Value> {
        let answer = self.ask(path);
        let list = answer.ok().and_then(|mut answer| answer.body_mut().read_json().ok());
        list.unwrap_or_default()
    }

    fn ask(&self, path: &str) -> Result<Response<Body>, ureq::Error> {
        let Http { agent, token } = self.http.get_or_init(|| Http::of(self.login.as_deref()));
        let request = agent.get(format!("{}{path}", self.api));
        match token {
            Some(token) => request.header("authorization", format!("Bearer {token}")),
            None => request,
        }
        .call()
    }
}

impl Http {
    /// As the command line has logged in there.
    fn of(login: Option<&Path>) -> Self {
        let Some(login) = login else {
            return Self { agent: ureq::agent(), token: None };
        };
        let file = std::fs::read(login.join("limpet/contexts.json")).unwrap();
        let contexts: Value = serde_json::from_slice(&file).unwrap();
        let current = contexts["current"].as_str().unwrap();
        let context = &contexts["contexts"][current];
        let text = |name: &str| context[name].as_str().unwrap().to_owned();
        let roots: Vec<_> = ureq::tls::parse_pem(text("roots").as_bytes())
            .filter_map(|item| match item {
                Ok(PemItem::Certificate(root)) => Some(root),
                Ok(_) | Err(_) => None,
            })
            .collect();
        let provider = rustls::crypto::ring::default_provider();
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::new_with_certs(&roots))
            .unversioned_rustls_crypto_provider(Arc::new(provider));
        let agent = ureq::Agent::config_builder().tls_config(tls.build()).build().new_agent();
        Self { agent, token: Some(text("token")) }
    }
}

/// The flags that say where it listens: the address of its API, and ports of API and broker.
fn listening(api: &str, (port, mqtt): (u16, u16)) -> [String; 4] {
    let (listen, mqtt) = (format!("{api}:{port}"), format!("{LOOPBACK}:{mqtt}"));
    ["--listen".to_owned(), listen, "--mqtt-listen".to_owned(), mqtt]
}

fn launch(log: &Path, args: &[String]) -> Process {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    Process::start(log, &program("limpet"), &args)
}

//! A real HTTP proxy (Debian's tinyproxy).

use std::path::PathBuf;

use crate::{Lab, Process, eventually, free_port};

/// A proxy on a port of its own.
pub struct Tinyproxy {
    /// `HOST:PORT`
    pub address: String,
    /// The program.
    pub process: Process,
    config: PathBuf,
    log: PathBuf,
}

impl Tinyproxy {
    /// Starts one on this address, with more lines of configuration (tinyproxy.conf(5)).
    pub fn start(lab: &Lab, host: &str, more: &str) -> Self {
        let port = free_port();
        let base = format!("Port {port}\nListen {host}\nLogLevel Connect\nMaxClients 100\n");
        let config = lab.file(&format!("proxy-{port}.conf"), base + more);
        let log = lab.path(&format!("proxy-{port}.log"));
        let process = launch(&log, &config);
        let proxy = Self { address: format!("{host}:{port}"), process, config, log };
        proxy.until_up();
        proxy
    }

    /// Starts it again with other lines of configuration in the place of some.
    pub fn restart_with(&mut self, old: &str, new: &str) {
        let text = std::fs::read_to_string(&self.config).unwrap();
        assert!(text.contains(old), "{text}");
        std::fs::write(&self.config, text.replace(old, new)).unwrap();
        self.process.kill();
        self.process = launch(&self.log, &self.config);
        self.until_up();
    }

    /// Whether somebody has asked it for a connection to `HOST:PORT`.
    pub fn was_asked_for(&self, target: &str) -> bool {
        self.process.log().contains(&format!("CONNECT {target} "))
    }

    fn until_up(&self) {
        eventually("the proxy", || std::net::TcpStream::connect(&self.address).ok());
    }
}

fn launch(log: &std::path::Path, config: &std::path::Path) -> Process {
    let config = config.display().to_string();
    Process::start(log, "/usr/bin/tinyproxy".as_ref(), &["-d", "-c", &config])
}

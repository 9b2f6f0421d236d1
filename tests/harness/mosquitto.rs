//! A broker of somebody else: mosquitto, set up as `limpet broker-config` says, with a door for its owner.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::{Lab, Process, eventually, free_port, program, run};

/// A broker on ports of its own, and its certificates.
pub struct Mosquitto {
    /// `mqtts://HOST:PORT` for members of the fleet.
    pub url: String,
    /// The port of that.
    pub port: u16,
    /// Certificate (PEM) of the authority of its own certificate.
    pub ca: PathBuf,
    /// Where its owner reads and writes what he likes, by plain MQTT.
    pub owner_port: u16,
    log: PathBuf,
    config: PathBuf,
    process: Option<Process>,
}

impl Mosquitto {
    /// One that has its certificates and ports, and does not run yet.
    pub fn prepare(lab: &Lab) -> Self {
        let path = |name: &str| lab.path(name).display().to_string();
        let [ca, ca_key, key, request, own] =
            ["b-ca.pem", "b-ca.key", "b.key", "b.csr", "b.pem"].map(path);
        let more = lab.file("b.ext", "subjectAltName=IP:127.0.0.1\n").display().to_string();
        let new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
        let authority = ["req", "-x509", "-days", "2", "-subj", "/CN=somebody else"];
        let out = ["-keyout", &ca_key, "-out", &ca];
        run("openssl", &[&authority[..], &new_key, &out].concat());
        let out = ["-keyout", &key, "-out", &request];
        run("openssl", &[&["req", "-subj", "/CN=broker"], &new_key[..], &out].concat());
        let signed = ["x509", "-req", "-days", "1", "-in", &request, "-CA", &ca, "-CAkey", &ca_key];
        let more = ["-CAcreateserial", "-extfile", &more, "-out", &own];
        run("openssl", &[&signed[..], &more].concat());
        let port = free_port();
        Self {
            url: format!("mqtts://127.0.0.1:{port}"),
            port,
            ca: ca.into(),
            owner_port: free_port(),
            log: lab.path("mosquitto.log"),
            config: lab.path("mosquitto.conf"),
            process: None,
        }
    }

    /// Starts it for the fleet of this authority (PEM), whose publishers have these names.
    pub fn start(&mut self, lab: &Lab, authority: &Path, publishers: &[&str]) {
        let limpet = program("limpet");
        let config = run(&limpet, &["broker-config", "mosquitto"]);
        let named = publishers.iter().flat_map(|name| ["--publisher", name]);
        let args: Vec<&str> =
            ["broker-config", "mosquitto", "--acl"].into_iter().chain(named).collect();
        let acl = lab.file("limpet.acl", run(&limpet, &args));
        let show = |path: &Path| path.display().to_string();
        let config = config
            .replace("listener 8883", &format!("listener {}", self.port))
            .replace("/etc/mosquitto/certs/broker.pem", &show(&lab.path("b.pem")))
            .replace("/etc/mosquitto/certs/broker.key", &show(&lab.path("b.key")))
            .replace("/etc/mosquitto/certs/limpet-authority.pem", &show(authority))
            .replace("/etc/mosquitto/limpet.acl", &show(&acl));
        let owner = format!("listener {} 127.0.0.1\nallow_anonymous true\n", self.owner_port);
        let first = "user root\nper_listener_settings true\n";
        std::fs::write(&self.config, format!("{first}{config}\n{owner}")).unwrap();
        self.restart();
    }

    /// Starts it again.
    pub fn restart(&mut self) {
        let config = self.config.display().to_string();
        let process = Process::start(&self.log, "/usr/sbin/mosquitto".as_ref(), &["-c", &config]);
        self.process = Some(process);
        eventually("mosquitto", || TcpStream::connect(("127.0.0.1", self.owner_port)).ok());
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Its owner, who may do everything there.
    pub fn owner(&self) -> Owner {
        Owner::connect(self.owner_port)
    }

    /// Everything that passes through it from now on.
    pub fn overheard(&self, lab: &Lab) -> Overheard {
        let log = lab.path("overheard");
        let port = self.owner_port.to_string();
        // The broker's own topics first: what is retained there says that the subscription holds.
        let args = ["-p", &port, "-q", "1", "-t", "$SYS/broker/version", "-t", "#", "-F", "%t %x"];
        let process = Process::start(&log, "/usr/bin/mosquitto_sub".as_ref(), &args);
        let heard = Overheard { log, _process: process };
        eventually("mosquitto_sub", || (!heard.all().is_empty()).then_some(()));
        heard
    }
}

/// All messages, by topic, in their order.
pub struct Overheard {
    log: PathBuf,
    _process: Process,
}

impl Overheard {
    /// Topics and payloads.
    pub fn all(&self) -> Vec<(String, Vec<u8>)> {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let unhex = |text: &str| {
            (0..text.len() / 2)
                .map(|n| u8::from_str_radix(&text[2 * n..2 * n + 2], 16).unwrap())
                .collect()
        };
        // The last line may not be whole yet.
        let whole = text.rsplit_once('\n').map(|(whole, _)| whole).unwrap_or_default();
        let lines = whole.lines().filter_map(|line| line.split_once(' '));
        lines.map(|(topic, payload)| (topic.to_owned(), unhex(payload))).collect()
    }

    /// The payloads on one topic.
    pub fn on(&self, topic: &str) -> Vec<Vec<u8>> {
        self.all().into_iter().filter(|(on, _)| on == topic).map(|(_, payload)| payload).collect()
    }
}

/// A client that speaks as much of MQTT 3.1.1 as an attacker needs.
pub struct Owner {
    stream: TcpStream,
    last_id: u16,
}

/// A field with its length (MQTT 3.1.1 section 1.5.3).
fn field(text: &[u8]) -> Vec<u8> {
    let length = u16::try_from(text.len()).unwrap().to_be_bytes();
    [&length, text].concat()
}

fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![first];
    let mut left = body.len();
    loop {
        let low = u8::try_from(left % 128).unwrap();
        left /= 128;
        packet.push(if left > 0 { low | 0x80 } else { low });
        if left == 0 {
            break;
        }
    }
    packet.extend_from_slice(body);
    packet
}

impl Owner {
    fn connect(port: u16) -> Self {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let body = [&field(b"MQTT")[..], &[4, 2, 0, 0], &field(b"")].concat();
        stream.write_all(&packet(0x10, &body)).unwrap();
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(answer, [0x20, 2, 0, 0], "CONNACK");
        Self { stream, last_id: 0 }
    }

    /// Publishes with QoS 1, and waits until the broker has it.
    pub fn publish(&mut self, topic: &str, payload: &[u8]) {
        self.send(0x32, topic, payload);
    }

    /// Publishes, and has the broker keep it.
    pub fn retain(&mut self, topic: &str, payload: &[u8]) {
        self.send(0x33, topic, payload);
    }

    fn send(&mut self, first: u8, topic: &str, payload: &[u8]) {
        self.last_id = self.last_id % 1000 + 1;
        let body = [&field(topic.as_bytes()), &self.last_id.to_be_bytes()[..], payload].concat();
        self.stream.write_all(&packet(first, &body)).unwrap();
        let mut answer = [0; 4];
        self.stream.read_exact(&mut answer).unwrap();
        assert_eq!(answer[..2], [0x40, 2], "PUBACK");
    }

    /// Publishes with QoS 0, as fast as the broker takes it.
    pub fn throw(&mut self, topic: &str, payload: &[u8]) -> std::io::Result<()> {
        let body = [&field(topic.as_bytes())[..], payload].concat();
        self.stream.write_all(&packet(0x30, &body))
    }
}

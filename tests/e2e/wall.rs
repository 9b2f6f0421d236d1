//! Sites that let almost nothing out: one port, or an HTTP proxy.

use std::net::TcpListener;

use limpet_tests::{
    Agent, Controller, Image, Island, Lab, Member, Place, Proxy, Registry, Tinyproxy,
    eventually_or, free_port, output, program,
};

use crate::clients::connect_and_publish;
use crate::secured::{self, device};

/// A controller, a registry, and an island, from which both can be seen.
struct Site {
    // In this order they are dropped.
    controller: Controller,
    /// The registry, as the island sees it.
    ferry: Proxy,
    _broker: Proxy,
    _registry: Registry,
    /// Where the controller serves WebSocket.
    wss_port: u16,
    island: Island,
    lab: Lab,
}

impl Site {
    fn start() -> Self {
        let lab = Lab::new();
        let registry = Registry::start(&lab);
        registry.push("library/box", "latest", &Image::busybox());
        let island = Island::make(&lab, 0);
        let ferry = Proxy::at(&island.shore, &registry.host);
        let wss_port = free_port();
        let wss = format!("{}:{wss_port}", island.shore);
        let controller = Controller::advertised_with(&lab, &island.shore, &["--wss-listen", &wss]);
        let broker = Proxy::in_front(&island.shore, &controller.mqtt);
        Self { controller, ferry, _broker: broker, _registry: registry, wss_port, island, lab }
    }

    fn registry_port(&self) -> u16 {
        self.ferry.address.rsplit_once(':').unwrap().1.parse().unwrap()
    }

    fn mqtts(&self) -> String {
        format!("{}:{}", self.island.shore, self.controller.mqtt_port)
    }

    fn wss(&self) -> String {
        format!("{}:{}", self.island.shore, self.wss_port)
    }

    /// A device that was flashed with a join string, with more lines of configuration.
    fn flashed(&self, id: &str, more: &str, place: Place) -> Agent {
        let join = self.lab.file(&format!("{id}.join"), self.controller.join_string(&[]));
        let config = format!(
            "join_file = \"{}\"\n{}{more}",
            join.display(),
            Agent::config(id, &self.ferry.address)
        );
        Agent::flashed(&self.lab, id, &config, place)
    }

    fn on_the_island(&self) -> Place {
        Place { through: self.island.through(), ..Place::default() }
    }

    fn until_online(&self, agent: &Agent) {
        let online =
            || (device(&self.controller, &agent.id)?["presence"] == "online").then_some(());
        let explain = || agent.process.tail() + &self.controller.process.tail();
        eventually_or(&format!("{} online", agent.id), online, explain);
    }

    fn until_said(&self, agent: &Agent, what: &str) {
        let said = || agent.process.log().contains(what).then_some(());
        eventually_or(what, said, || agent.process.tail());
    }
}

#[test]
fn where_one_port_is_let_through_a_device_joins_and_runs_over_websocket() {
    let mut site = Site::start();
    site.island.let_out_only(&[site.wss_port, site.registry_port()]);
    let mut agent = site.flashed("dev-0", "", site.on_the_island());
    site.until_online(&agent);
    site.controller.run_script("web", "echo hello from here; exec sleep 100000");
    assert!(site.controller.ok(&["logs", "web"]).contains("hello from here"));
    let way = format!("connected to wss://{}/mqtt", site.wss());
    assert!(agent.ask_ok(&["status"]).contains(&way));
    // It has met the wall once; when the link is lost, it does not begin with it.
    let lines = |agent: &Agent| -> Vec<String> {
        let log = agent.process.log();
        log.lines().filter(|line| line.contains("link to ")).map(str::to_owned).collect()
    };
    let before = lines(&agent);
    assert_eq!(before.iter().filter(|line| line.contains(&site.mqtts())).count(), 1, "{before:?}");
    site.controller.kill();
    let tried = || (lines(&agent).len() >= before.len() + 2).then(|| lines(&agent));
    let after = eventually_or("two more lines", tried, || agent.process.tail());
    for line in &after[before.len()..before.len() + 2] {
        assert!(line.contains(&format!("link to wss://{}/mqtt", site.wss())), "{after:?}");
    }
    site.controller.restart();
    site.until_online(&agent);
    // What it says last, as it goes to sleep, arrives.
    agent.ask_ok(&["sleep", "--for", "1h"]);
    eventually_or(
        "dev-0 asleep",
        || {
            let presence = device(&site.controller, "dev-0")?["presence"].to_string();
            presence.contains("asleep").then_some(())
        },
        || agent.process.tail(),
    );
    agent.kill();
}

#[test]
fn behind_a_proxy_with_credentials_a_device_joins_pulls_runs_and_is_looked_into() {
    let site = Site::start();
    let login = "BasicAuth limpet s3cret\n";
    let mut proxy = Tinyproxy::start(&site.lab, &site.island.shore, login);
    let port = proxy.address.rsplit_once(':').unwrap().1.parse().unwrap();
    site.island.let_out_only(&[port]);
    let url = format!("http://limpet:s3c%72et@{}", proxy.address);
    let agent = site.flashed("dev-0", &format!("[proxy]\nurl = \"{url}\"\n"), site.on_the_island());
    site.until_online(&agent);
    site.controller.run_script("web", "echo hello from here; exec sleep 100000");
    assert!(site.controller.ok(&["logs", "web"]).contains("hello from here"));
    let status = agent.ask_ok(&["status"]);
    let mqtts =
        format!("connected to mqtts://{} through the proxy {}", site.mqtts(), proxy.address);
    assert!(status.contains(&mqtts), "{status}");
    for target in [&site.mqtts(), &site.ferry.address] {
        assert!(proxy.was_asked_for(target), "{target}: {}", proxy.process.log());
    }
    // A proxy that lets nothing through but what looks like HTTPS.
    proxy.restart_with(login, &format!("{login}ConnectPort {}\n", site.wss_port));
    let forbidden = format!(
        "the proxy {} does not let this device through to {} (403)",
        proxy.address,
        site.mqtts()
    );
    site.until_said(&agent, &forbidden);
    site.until_online(&agent);
    let wss = format!("connected to wss://{}/mqtt through the proxy {}", site.wss(), proxy.address);
    let status = || agent.ask_ok(&["status"]);
    eventually_or("the way over WebSocket", || status().contains(&wss).then_some(()), status);
    let log = agent.process.log();
    assert!(log.contains("has a proxy's password and can be read by everybody"), "{log}");
    for text in [log, agent.ask_ok(&["status", "-o", "json"])] {
        assert!(!text.contains("s3c"), "{text}");
    }
}

#[test]
fn what_a_proxy_refuses_is_said_on_the_device_with_its_name() {
    let site = Site::start();
    let shore = &site.island.shore;
    let join = |id: &str, url: &str| {
        let data = site.lab.path(&format!("{id}.data")).display().to_string();
        let string = site.controller.join_string(&[]);
        let args = ["join", &string, "--device-id", id, "--data-dir", &data, "--proxy", url];
        let done = output(program("limpet-agent"), &args);
        assert!(!done.err.contains("s3cret"), "{done:?}");
        (done.status, done.out + &done.err)
    };
    let asks = Tinyproxy::start(&site.lab, shore, "BasicAuth limpet s3cret\n");
    let strict = Tinyproxy::start(&site.lab, shore, "ConnectPort 1\n");
    let silent = TcpListener::bind((shore.as_str(), 0)).unwrap();
    let mute = silent.local_addr().unwrap().to_string();
    let gone = format!("{shore}:{}", free_port());
    for (url, says) in [
        (
            format!("http://{}", asks.address),
            format!("the proxy {} wants credentials (407)", asks.address),
        ),
        (
            format!("http://limpet:not-s3cret@{}", asks.address),
            format!("the proxy {} wants other credentials (401)", asks.address),
        ),
        (
            format!("http://{}", strict.address),
            format!("the proxy {} does not let this device through to ", strict.address),
        ),
        (format!("http://{gone}"), format!("the proxy {gone} is not reached: ")),
        (format!("http://limpet:s3cret@{mute}"), format!("the proxy {mute} is not reached: ")),
        (
            format!("https://limpet:s3cret@{mute}"),
            "the proxy of --proxy is no URL of one".to_owned(),
        ),
    ] {
        let (status, said) = join("dev-0", &url);
        assert!(status != 0 && said.contains(&says), "{url}: {said}");
    }
    let (status, said) = join("dev-0", &format!("http://limpet:s3cret@{}", asks.address));
    assert!(status == 0 && said.contains("as `url` of [proxy] in agent.toml"), "{said}");
    // The link says it as well.
    let wrong = format!("[proxy]\nurl = \"http://limpet:wrong@{}\"\n", asks.address);
    let config = Agent::config("dev-0", &site.ferry.address) + &wrong;
    let agent = Agent::flashed(&site.lab, "dev-0", &config, Place::default());
    site.until_said(&agent, &format!("the proxy {} wants other credentials (401)", asks.address));
    assert!(!agent.process.log().contains(":wrong"), "{}", agent.process.log());
}

#[test]
fn a_proxy_of_the_environment_is_taken_but_for_whom_it_is_not() {
    let site = Site::start();
    let proxy = Tinyproxy::start(&site.lab, &site.island.shore, "");
    let url = format!("HTTPS_PROXY=http://{}", proxy.address);
    let told = |no_proxy: String| Place {
        through: vec!["env".to_owned(), url.clone(), no_proxy],
        ..Place::default()
    };
    let open = site.flashed("dev-0", "", told("NO_PROXY=10.0.0.0/8".to_owned()));
    site.until_online(&open);
    site.controller.run_script("web", "exec sleep 100000");
    assert!(!proxy.process.log().contains("): CONNECT "), "{}", proxy.process.log());
    let both =
        site.flashed("dev-1", "[proxy]\nno_proxy = []\n", told("NO_PROXY=10.0.0.0/8".to_owned()));
    site.until_online(&both);
    assert!(proxy.was_asked_for(&site.mqtts()), "{}", proxy.process.log());
}

/// A frame of WebSocket as clients send it, its mask all zeros.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&[first, 0xff, 0, 0, 0, 0], &length[..], &[0; 4], payload].concat()
}

#[test]
fn hostile_clients_of_websocket_harm_nobody() {
    let port = free_port();
    let wss = format!("127.0.0.1:{port}");
    let fleet = secured::start(&["--wss-listen", &wss]);
    let controller = &fleet.controller;
    let evil = Member::join(&fleet.lab, "evil", controller);
    let [ca, cert, key] = &evil.files;
    // Sends a request and what follows it to its end; gives what is answered, as text and as numbers.
    let said = |certified: bool, request: &[u8]| {
        let file = fleet.lab.file("request", request).display().to_string();
        let own = format!("-cert {cert} -key {key}");
        let own = if certified { own.as_str() } else { "" };
        let client = format!(
            "timeout 30 openssl s_client -quiet -connect {wss} -CAfile {ca} {own} < {file} > {file}.out; \
             echo status $?; head -c 400 {file}.out; od -An -tx1 -v {file}.out | tr -d '\n'"
        );
        output("sh", &["-c", &client]).out
    };
    let request = |more: &str| {
        let base = "Host: x\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n";
        format!("GET /mqtt HTTP/1.1\r\n{base}{more}\r\n").into_bytes()
    };
    let (close, mqtt) = ("Connection: close\r\n", "Sec-WebSocket-Protocol: mqtt\r\n");
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\n";
    let good = request(&format!("{upgrade}{mqtt}"));
    for (what, certified, request, answer) in [
        ("a page", true, request(close), "HTTP/1.1 400"),
        (
            "another method",
            true,
            b"POST /mqtt HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".to_vec(),
            "HTTP/1.1 401",
        ),
        ("garbage", true, vec![0xff; 70_000], "HTTP/1.1 400"),
        (
            "a page of another site",
            true,
            request(&format!("{close}Origin: https://evil.example\r\n")),
            "HTTP/1.1 403",
        ),
        ("nobody", false, request(close), "HTTP/1.1 401"),
    ] {
        let said = said(certified, &request);
        assert!(said.contains(answer) && !said.contains("status 124"), "{what}: {said}");
    }
    // Whoever upgrades without a certificate, or to something else, is not upgraded.
    let ended = |what: &str, said: &str| assert!(!said.contains("status 124"), "{what}: {said}");
    let pieces: Vec<u8> =
        (0..4).flat_map(|n| frame(if n == 0 { 2 } else { 0 }, &[0; 128 << 10])).collect();
    let id = evil.client_id();
    for (what, frames) in [
        ("an unmasked frame", vec![0x82, 2, 0x10, 0]),
        ("a giant frame", [&[0x82, 0xff, 0x3f][..], &[0xff; 7], &[0; 100_000]].concat()),
        ("a message in giant pieces", pieces),
        ("text", frame(0x81, b"hello")),
        ("a kind that is none", frame(0x83, b"x")),
        ("no MQTT", frame(0x82, &[0xff; 1000])),
        (
            "a publish that claims 200 MB",
            frame(0x82, &connect_and_publish(&id, "limpet/v1/d/evil/up/event")),
        ),
    ] {
        let said = said(true, &[&good[..], &frames].concat());
        assert!(said.contains("HTTP/1.1 101"), "{what}: {said}");
        ended(what, &said);
    }
    // Another device's session, with the right certificate of the wrong one: not authorized.
    let other = connect_and_publish("limpet/dev-0/0011223344556677", "limpet/v1/deploy/web");
    let said = said(true, &[&good[..], &frame(0x82, &other)].concat());
    assert!(said.contains("20 03 00 87"), "{said}");
    // The broker's own door for WebSocket, whose guests are nobody without the word.
    let other: Vec<u8> = connect_and_publish(&id, "limpet/v1/deploy/web");
    let mut stranger = std::net::TcpStream::connect(inner_door(controller.process.pid())).unwrap();
    let header = [&b"\r\n\r\n\0\r\nQUIT\n\x21\x21\0\x24"[..], &[7; 36]].concat();
    std::io::Write::write_all(&mut stranger, &[header, other].concat()).unwrap();
    let mut answer = Vec::new();
    // Cut off after the answer is as good as an end.
    let _ = std::io::Read::read_to_end(&mut stranger, &mut answer);
    assert_eq!(answer.get(..4), Some(&[0x20, 3, 0, 0x87][..]), "{answer:?}");
    let status = std::fs::read_to_string(format!("/proc/{}/status", controller.process.pid()));
    let status = status.unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak_kb: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak_kb < 512 << 10, "the controller took {peak_kb} kB");
    assert_eq!(device(controller, "dev-0").unwrap()["presence"], "online");
    controller.run_script("web", "exec sleep 100000");
}

/// Where the controller listens on loopback for itself.
fn inner_door(pid: u32) -> String {
    let listening = output("ss", &["-Hltnp"]).out;
    let own = listening.lines().filter(|line| line.contains(&format!("pid={pid},")));
    let ports = own.filter_map(|line| line.split_whitespace().nth(3));
    // The others were chosen by the test, below those that the kernel gives out.
    let mut inner = ports.filter(|address| {
        address
            .rsplit_once(':')
            .is_some_and(|(_, port)| port.parse::<u16>().is_ok_and(|p| p >= 30_000))
    });
    inner.next_back().unwrap().to_owned()
}

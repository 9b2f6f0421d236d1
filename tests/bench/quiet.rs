//! What a device at rest costs: its link, its flash, its processor (promise P5).
//!
//! Devices with no workload and with ten, and one that speaks plain MQTT beside them, are left alone
//! for [`REST`] at the default keep-alive; what the kernel counted meanwhile is extrapolated, and the
//! factor is printed. Bytes are those of IP packets, counted by nftables on the address and port that
//! the device connects to.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use limpet_tests::{Agent, Controller, Door, Fleet, Lab, Proxy, eventually, run};

use crate::process::{cpu, switches};
use crate::row;

/// Two keep-alives.
const REST: Duration = Duration::from_secs(20 * 60);
const KEEP_ALIVE: Duration = Duration::from_secs(600);
const MONTH: Duration = Duration::from_secs(30 * 86_400);
const RECONNECTS: u32 = 6;

/// Where links are that are counted.
const LINK: &str = "127.0.0.2";

/// A device on a disk of its own, the link that is counted, and a controller for it alone.
struct Device {
    what: &'static str,
    // In this order they are dropped.
    counter: Counter,
    agent: Agent,
    link: Proxy,
    fleet: Fleet,
    disk: Disk,
}

pub(crate) fn measure() {
    let devices = [
        Device::start("TLS, 0 workloads", 0, |lab| Controller::advertised(lab, LINK)),
        Device::start("TLS, 10 workloads", 10, |lab| Controller::advertised(lab, LINK)),
        Device::start("plain MQTT, 10 workloads", 10, |lab| Controller::insecure(lab, &[])),
    ];
    devices.iter().for_each(Device::until_told);
    // The kernel writes back what it holds within half a minute.
    std::thread::sleep(Duration::from_secs(60));
    let before = devices.each_ref().map(Counts::of);
    std::thread::sleep(REST);
    let after = devices.each_ref().map(Counts::of);
    let factor = MONTH.as_secs_f64() / REST.as_secs_f64();
    println!(
        "| at rest for {} minutes, keep-alive {} minutes; a month is {factor:.0} times that | | |",
        REST.as_secs() / 60,
        KEEP_ALIVE.as_secs() / 60
    );
    for (device, (before, after)) in devices.iter().zip(before.iter().zip(&after)) {
        after.since(before).print(device.what, factor);
    }
    devices.iter().for_each(reconnects);
}

impl Device {
    fn start(what: &'static str, workloads: usize, controller: fn(&Lab) -> Controller) -> Self {
        let fleet = Fleet::of(0, controller);
        let [card, data] = ["dev-0.card", "dev-0.data"].map(|name| fleet.lab.path(name));
        let disk = Disk::mount(&card, &data);
        let link = Proxy::in_front(LINK, &fleet.controller.mqtt);
        let counter = Counter::of(&link.address);
        let config =
            format!("[registries.mirrors]\n\"docker.io\" = [\"{}\"]\n", fleet.registry.host);
        let broker = format!("mqtt://{}", link.address);
        let door = match fleet.controller.is_secured() {
            true => Door::Fleet(&fleet.controller),
            false => Door::Broker(&broker),
        };
        let agent = Agent::with_config(&fleet.lab, "dev-0", door, &config);
        fleet.until_online(1);
        if workloads > 0 {
            let replicas = format!("--replicas={workloads}");
            fleet.controller.ok(&["run", "many", "--image=box", &replicas]);
        }
        Self { what, counter, agent, link, fleet, disk }
    }

    fn until_told(&self) {
        self.fleet.eventually("the controller to know all", || {
            let status = self.agent.ask_ok(&["status"]);
            let told = status.contains("controller     connected to");
            (told && status.contains("events         0 to be told")).then_some(())
        });
    }

    /// The agent and its shims.
    fn processes(&self) -> Vec<u32> {
        let shims = self.agent.shims().into_iter().map(i32::cast_unsigned);
        shims.chain([self.agent.process.pid()]).collect()
    }
}

/// What the kernel has counted of a device.
struct Counts {
    packets: u64,
    bytes: u64,
    disk_bytes: u64,
    wakeups: u64,
    cpu: Duration,
}

impl Counts {
    fn of(device: &Device) -> Self {
        let (packets, bytes) = device.counter.read();
        let processes = device.processes();
        Self {
            packets,
            bytes,
            disk_bytes: device.disk.written(),
            wakeups: processes.iter().map(|pid| switches(*pid)).sum(),
            cpu: processes.iter().map(|pid| cpu(*pid)).sum(),
        }
    }

    fn since(&self, before: &Self) -> Self {
        Self {
            packets: self.packets - before.packets,
            bytes: self.bytes - before.bytes,
            disk_bytes: self.disk_bytes - before.disk_bytes,
            wakeups: self.wakeups - before.wakeups,
            cpu: self.cpu.saturating_sub(before.cpu),
        }
    }

    fn print(&self, what: &str, factor: f64) {
        let Self { packets, bytes, disk_bytes, wakeups, cpu } = self;
        let seconds = REST.as_secs_f64();
        let month = *bytes as f64 * factor / 1e6;
        row(
            &format!("{what}: IP bytes a month ({packets} packets, {bytes} bytes seen)"),
            &format!("{month:.2} MB"),
            "1 MB (P5)",
        );
        let day = *disk_bytes as f64 * 86_400.0 / seconds;
        row(
            &format!("{what}: bytes written a day to the data folder's disk"),
            &format!("{day:.0}"),
            "0 (P5)",
        );
        let each = *wakeups as f64 / seconds;
        row(&format!("{what}: wake-ups a second, agent and shims"), &format!("{each:.3}"), "");
        let hour = cpu.as_secs_f64() * 1000.0 * 3600.0 / seconds;
        row(&format!("{what}: processor time an hour"), &format!("{hour:.0} ms"), "");
    }
}

/// What it costs to come back after the connection was lost.
fn reconnects(device: &Device) {
    let (_, before) = device.counter.read();
    for _ in 0..RECONNECTS {
        let connections = || device.agent.process.log().matches(" is up").count();
        let known = connections();
        device.link.cut();
        eventually("another connection", || (connections() > known).then_some(()));
        device.until_told();
    }
    let each = (device.counter.read().1 - before) / u64::from(RECONNECTS);
    row(&format!("{}: IP bytes for each reconnect", device.what), &each.to_string(), "");
}

/// A file system of its own on a loop device.
struct Disk {
    path: PathBuf,
    device: String,
}

impl Disk {
    fn mount(card: &Path, path: &Path) -> Self {
        fs::File::create(card).unwrap().set_len(64 << 20).unwrap();
        let [card, shown] = [card, path].map(|path| path.display().to_string());
        run("mkfs.ext4", &["-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", &card]);
        let device = run("losetup", &["-f", "--show", &card]).trim().to_owned();
        fs::create_dir(path).unwrap();
        run("mount", &["-o", "noatime", &device, &shown]);
        Self { path: path.to_owned(), device }
    }

    /// Bytes written to the device since it was made (Documentation/block/stat: field 7, sectors).
    fn written(&self) -> u64 {
        let name = self.device.trim_start_matches("/dev/");
        let text = fs::read_to_string(format!("/sys/block/{name}/stat")).unwrap();
        text.split_whitespace().nth(6).unwrap().parse::<u64>().unwrap() * 512
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
        let _ = Command::new("losetup").args(["-d", &self.device]).status();
    }
}

/// Counts the IP packets to and from one address and port of loopback: a table of nftables.
struct Counter(String);

impl Counter {
    /// Of `HOST:PORT`.
    fn of(link: &str) -> Self {
        let (host, port) = link.rsplit_once(':').unwrap();
        let made = Self(format!("limpet-bench-{port}"));
        let table = &made.0;
        run("nft", &["add", "table", "inet", table]);
        let hook = "{ type filter hook output priority 0; }";
        run("nft", &["add", "chain", "inet", table, "out", hook]);
        for (end, side) in [("saddr", "sport"), ("daddr", "dport")] {
            let rule = ["ip", end, host, "tcp", side, port, "counter"];
            run("nft", &[&["add", "rule", "inet", table, "out"][..], &rule].concat());
        }
        made
    }

    /// Packets and bytes.
    fn read(&self) -> (u64, u64) {
        let text = run("nft", &["list", "table", "inet", &self.0]);
        let words: Vec<&str> = text.split_whitespace().collect();
        let sum = |what: &str| {
            let values = words.windows(2).filter(|pair| pair[0] == what);
            values.map(|pair| pair[1].parse::<u64>().unwrap()).sum()
        };
        (sum("packets"), sum("bytes"))
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        let _ = Command::new("nft").args(["delete", "table", "inet", &self.0]).status();
    }
}

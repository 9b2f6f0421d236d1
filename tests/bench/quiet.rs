//! What a device at rest costs: its link, its flash, its processor (promise P5).
//!
//! Two devices, with no workload and with ten, are left alone for [`REST`] at the default keep-alive;
//! what the kernel counted meanwhile is extrapolated, and the factor is printed. Bytes are those of
//! IP packets, counted by nftables on the port that the device connects to.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use limpet_tests::{Agent, Door, Fleet, Proxy, eventually, run};

use crate::row;

/// Two keep-alives.
const REST: Duration = Duration::from_secs(20 * 60);
const KEEP_ALIVE: Duration = Duration::from_secs(600);
const MONTH: Duration = Duration::from_secs(30 * 86_400);
const RECONNECTS: u32 = 6;

/// A device on a disk of its own, and the link that is counted.
struct Device {
    agent: Agent,
    link: Proxy,
    disk: Disk,
}

pub(crate) fn measure() {
    let fleet = Fleet::insecure(0);
    let devices = ["rests", "ten"].map(|id| Device::start(&fleet, id));
    fleet.until_online(devices.len());
    fleet.controller.ok(&["run", "ten", "--image=box", "--replicas=10", "--select", "name=ten"]);
    devices.iter().for_each(|device| device.until_told(&fleet));
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
    for (workloads, (before, after)) in ["0", "10"].iter().zip(before.iter().zip(&after)) {
        after.since(before).print(workloads, factor);
    }
    reconnects(&fleet, &devices[1]);
}

impl Device {
    fn start(fleet: &Fleet, id: &str) -> Self {
        let disk = Disk::mount(
            &fleet.lab.path(&format!("{id}.card")),
            &fleet.lab.path(&format!("{id}.data")),
        );
        let link = Proxy::start(&format!("127.0.0.1:{}", fleet.controller.mqtt_port));
        let config = format!(
            "[labels]\nname = \"{id}\"\n[registries.mirrors]\n\"docker.io\" = [\"{}\"]\n",
            fleet.registry.host
        );
        let broker = format!("mqtt://{}", link.address);
        Self {
            agent: Agent::with_config(&fleet.lab, id, Door::Broker(&broker), &config),
            link,
            disk,
        }
    }

    fn until_told(&self, fleet: &Fleet) {
        fleet.eventually("the controller to know all", || {
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
        let (packets, bytes) = Counter::of(device).read();
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

    fn print(&self, workloads: &str, factor: f64) {
        let Self { packets, bytes, disk_bytes, wakeups, cpu } = self;
        let seconds = REST.as_secs_f64();
        let month = *bytes as f64 * factor / 1e6;
        row(
            &format!(
                "{workloads} workloads: IP bytes a month ({packets} packets, {bytes} bytes seen)"
            ),
            &format!("{month:.2} MB"),
            "1 MB (P5)",
        );
        let day = *disk_bytes as f64 * 86_400.0 / seconds;
        row(
            &format!("{workloads} workloads: bytes written a day to the data folder's disk"),
            &format!("{day:.0}"),
            "0 (P5)",
        );
        let each = *wakeups as f64 / seconds;
        row(
            &format!("{workloads} workloads: wake-ups a second, agent and shims"),
            &format!("{each:.3}"),
            "",
        );
        let hour = cpu.as_secs_f64() * 1000.0 * 3600.0 / seconds;
        row(
            &format!("{workloads} workloads: processor time an hour"),
            &format!("{hour:.0} ms"),
            "",
        );
    }
}

/// What it costs to come back after the connection was lost.
fn reconnects(fleet: &Fleet, device: &Device) {
    let counter = Counter::of(device);
    let (_, before) = counter.read();
    for _ in 0..RECONNECTS {
        let connections = || device.agent.process.log().matches(" is up").count();
        let known = connections();
        device.link.cut();
        eventually("another connection", || (connections() > known).then_some(()));
        device.until_told(fleet);
    }
    let each = (counter.read().1 - before) / u64::from(RECONNECTS);
    row("10 workloads: IP bytes for each reconnect", &each.to_string(), "");
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

/// Counts the IP packets of one port of loopback, both ways.
struct Counter(String);

impl Counter {
    /// The counter of a device's link; made where there is none.
    fn of(device: &Device) -> Self {
        let port = device.link.address.rsplit_once(':').unwrap().1;
        let table = format!("limpet-bench-{port}");
        if !Command::new("nft")
            .args(["list", "table", "inet", &table])
            .output()
            .unwrap()
            .status
            .success()
        {
            run("nft", &["add", "table", "inet", &table]);
            run(
                "nft",
                &["add", "chain", "inet", &table, "out", "{ type filter hook output priority 0; }"],
            );
            for side in ["sport", "dport"] {
                run("nft", &["add", "rule", "inet", &table, "out", "tcp", side, port, "counter"]);
            }
        }
        Self(table)
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

impl Drop for Device {
    fn drop(&mut self) {
        let _ =
            Command::new("nft").args(["delete", "table", "inet", &Counter::of(self).0]).status();
        self.agent.process.kill();
    }
}

fn threads(pid: u32) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten().map(|entry| entry.path())
}

/// How often its threads were given a processor.
fn switches(pid: u32) -> u64 {
    let status = threads(pid).map(|thread| fs::read_to_string(thread.join("status")).unwrap());
    let count = |status: String| -> u64 {
        let lines = status.lines().filter_map(|line| line.split_once("ctxt_switches:"));
        lines.map(|(_, count)| count.trim().parse::<u64>().unwrap()).sum()
    };
    status.map(count).sum()
}

/// The time that its threads had a processor (Documentation/scheduler/sched-stats).
fn cpu(pid: u32) -> Duration {
    let spent = threads(pid).map(|thread| {
        let text = fs::read_to_string(thread.join("schedstat")).unwrap();
        text.split_whitespace().next().unwrap().parse::<u64>().unwrap()
    });
    Duration::from_nanos(spent.sum())
}

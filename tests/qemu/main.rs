//! Cards made by `limpet flash build`, in boards that QEMU emulates: they boot, join, pull, run
//! containers under cgroup v2, and come back from power cuts, in the dark too.
//!
//! `make qemu CUTS=100` is the long form; a short one is in `make test`.
#![expect(clippy::unwrap_used, reason = "a test stops where its premise fails")]

mod bay;
mod devices;

use std::path::Path;
use std::time::Duration;

use bay::Bay;
use limpet_tests::{Around, Board, Chance, Vm, json};

#[test]
fn generic_amd64() {
    story(Board::GenericAmd64, share(10));
}

#[test]
fn generic_arm64() {
    story(Board::GenericArm64, share(2));
}

#[test]
fn generic_armhf() {
    story(Board::GenericArmhf, share(5));
}

#[test]
fn rpi() {
    story(Board::Rpi, share(5));
}

/// One of so many parts of the power cuts that a run tries.
fn share(of: usize) -> usize {
    let asked = std::env::var("CUTS").ok().and_then(|count| count.parse().ok());
    asked.unwrap_or(2usize).div_ceil(of)
}

/// A card is made and put in; the device that it becomes does what it is told, within its bounds; the
/// watchdog bites, and the power is cut so many times.
fn story(board: Board, cuts: usize) {
    let bay = Bay::open();
    let image = bay.image(board);
    let card = bay.card(&image, board.name());
    sizes(board, &image);
    let mut vm = arrival(&bay, board, &card);
    enforced(&bay, board, &mut vm);
    devices::guarded(&bay, board, &mut vm);
    memory(&bay, board, &mut vm);
    bitten(&bay, board, vm);
    power_cuts(&bay, board, &card, cuts);
}

/// One row of the table that a run prints.
fn row(board: Board, what: &str, measured: impl std::fmt::Display) {
    println!("| {}: {what} | {measured} |", board.name());
}

fn sizes(board: Board, image: &Path) {
    let size =
        |path: &Path| format!("{:.0} MB", std::fs::metadata(path).unwrap().len() as f64 / 1e6);
    limpet_tests::run("xz", &["-1", "-k", "-T2", &image.display().to_string()]);
    row(board, "image, raw", size(image));
    row(board, "image, xz -1", size(&image.with_extension("img.xz")));
}

/// From a card that nobody has touched to a device that runs what was ordered before it was there.
fn arrival(bay: &Bay, board: Board, card: &Path) -> Vm {
    bay.run(board, "first", &["--detach"]);
    bay.change(board, 0);
    let mut vm = Vm::boot(&bay.fleet.lab, board, card, Around::Network);
    let device = vm.eventually("a device that has joined", |_| bay.online(board));
    let joined = vm.began.elapsed();
    vm.eventually("its first container", |_| bay.runs("first"));
    let running = vm.began.elapsed();
    let id = device["id"].as_str().unwrap();
    assert!(id.starts_with("vm-"), "{device}");
    // The data partition of the image has no more than 64 MiB.
    let data = vm.ssh(&bay.key, "stat -f -c '%b %S' /var/lib/limpet").out;
    let [blocks, size] =
        [0, 1].map(|n| data.split_whitespace().nth(n).unwrap().parse::<u64>().unwrap());
    assert!(blocks * size > 500 << 20, "the data partition has not grown: {data}");
    row(board, "power-on to joined", format!("{:.1} s", joined.as_secs_f64()));
    row(board, "power-on to first container running", format!("{:.1} s", running.as_secs_f64()));
    vm
}

/// Limits, system calls and devices are what the workload's bounds say, under this kernel.
fn enforced(bay: &Bay, board: Board, vm: &mut Vm) {
    let fleet = &bay.fleet;
    let script = "grep Seccomp: /proc/self/status; \
        mknod /tmp/disk b 254 0 || echo no new node; \
        mount -t tmpfs none /tmp || echo no mount; \
        for n in 1 2 3 4 5 6 7 8 9; do sleep 5 & done; wait; echo done";
    let bounds = ["--restart=never", "--pids=6", "--memory=16Mi", "--detach", "--"];
    bay.run(board, "proof", &[&bounds[..], &["sh", "-c", script]].concat());
    let ended = || {
        let workload = fleet.workloads("proof").pop()?;
        ["exited", "failed"].contains(&workload["phase"].as_str()?).then_some(workload)
    };
    vm.eventually("the proof's end", |_| ended());
    let said = fleet.controller.limpet(&["logs", "proof", "--tail=100"]);
    let said = said.out + &said.err;
    for proof in ["Seccomp:\t2", "no new node", "no mount", "can't fork"] {
        assert!(said.contains(proof), "{proof} in: {said}");
    }
    gone(bay, vm, "proof");

    let dd = ["dd", "if=/dev/zero", "of=/dev/shm/x", "bs=1M", "count=60"];
    bay.run(board, "proof", &[&bounds[..], &dd].concat());
    let ended = vm.eventually("the end of the greedy", |_| ended());
    assert_eq!(ended["exit"], json!({"signal": 9}), "{ended}");
    fleet.controller.ok(&["delete", "proof"]);
}

/// Deletes a deployment, until its container is away.
fn gone(bay: &Bay, vm: &mut Vm, deployment: &str) {
    bay.fleet.controller.ok(&["delete", deployment]);
    vm.eventually("it to go", |_| bay.fleet.workloads(deployment).is_empty().then_some(()));
}

/// What agent and shims take of a board's memory with three containers, and when these have gone.
fn memory(bay: &Bay, board: Board, vm: &mut Vm) {
    bay.run(board, "third", &["--detach"]);
    let three = ["first", "change", "third"];
    vm.eventually("three containers", |_| three.iter().try_for_each(|name| bay.runs(name)));
    let row = |what: &str, mib: f64| row(board, what, format!("{mib:.2} MiB"));
    let busy = Usage::of(vm, bay);
    row("agent with three containers, PSS", busy.agent);
    row("shim of each, PSS", busy.shims / 3.0);
    row("agent and three containers, PSS", busy.agent + busy.shims);
    row("memory that the kernel gives out", busy.total);
    row("memory that is available then", busy.available);
    three.iter().for_each(|name| gone(bay, vm, name));
    let idle = Usage::of(vm, bay).agent;
    row("agent when they have gone, PSS", idle);
    row("more for each container, PSS", (busy.agent + busy.shims - idle) / 3.0);
    bay.run(board, "first", &[]);
    bay.change(board, 0);
    vm.eventually("what the power cuts find", |_| bay.runs("change"));
}

/// MiB of a board's memory.
struct Usage {
    agent: f64,
    shims: f64,
    total: f64,
    available: f64,
}

impl Usage {
    fn of(vm: &Vm, bay: &Bay) -> Self {
        let script = "for process in /proc/[0-9]*; do \
            case $(readlink $process/exe) in */limpet-agent*) ;; *) continue ;; esac; \
            echo $(awk '/^Pss:/ {print $2}' $process/smaps_rollup) \
                $(tr '\\0' ' ' <$process/cmdline | cut -d ' ' -f 2); done; \
            awk '/^Mem(Total|Available)/ {print $2, $1}' /proc/meminfo";
        let said = vm.ssh(&bay.key, script).out;
        let sum = |what: &str| {
            let lines = said.lines().filter_map(|line| line.split_once(' '));
            let of = lines.filter(|(_, of)| *of == what);
            of.map(|(kib, _)| kib.parse::<f64>().unwrap() / 1024.0).sum()
        };
        Self {
            agent: sum("run"),
            shims: sum("shim-wait"),
            total: sum("MemTotal:"),
            available: sum("MemAvailable:"),
        }
    }
}

/// A machine on which nobody feeds the watchdog any more goes off.
fn bitten(bay: &Bay, board: Board, vm: Vm) {
    if board == Board::Rpi {
        println!("rpi: QEMU's has no watchdog that bites");
        return vm.cut();
    }
    let fed = vm.ssh(&bay.key, "cat /sys/class/watchdog/watchdog0/state; killall -STOP watchdog");
    assert_eq!((fed.status, fed.out.trim()), (0, "active"), "{fed:?}");
    vm.goes_off("the watchdog's bite");
}

/// Pulls the plug at random moments, with the network and without; whatever the moment, the next boot
/// in the dark, in 1970, runs what the device had accepted.
fn power_cuts(bay: &Bay, board: Board, card: &Path, count: usize) {
    let mut chance = Chance::begin("power cuts");
    let mut ready = Duration::from_secs(10);
    for cut in 1..=count {
        let lit = chance.below(3) == 0;
        if lit {
            in_a_change(bay, board, card, cut, &mut chance);
        } else {
            let vm = Vm::boot(&bay.fleet.lab, board, card, Around::Dark);
            let latest = usize::try_from(ready.as_millis()).unwrap() * 5 / 4;
            std::thread::sleep(Duration::from_millis(chance.below(latest) as u64));
            vm.cut();
        }
        let mut vm = Vm::boot(&bay.fleet.lab, board, card, Around::Dark);
        vm.eventually(&format!("what was accepted to run, after cut {cut}"), |vm| {
            vm.runs(&["first", "change"]).then_some(())
        });
        ready = vm.began.elapsed();
        vm.cut();
    }
    row(board, "power cuts survived", format!("{count} of {count}"));
}

/// Boots with the network, has a deployment's revision replaced, and pulls the plug meanwhile.
fn in_a_change(bay: &Bay, board: Board, card: &Path, number: usize, chance: &mut Chance) {
    let mut vm = Vm::boot(&bay.fleet.lab, board, card, Around::Network);
    vm.eventually("the device", |_| bay.online(board));
    bay.change(board, number);
    std::thread::sleep(Duration::from_millis(chance.below(3000) as u64));
    vm.cut();
}

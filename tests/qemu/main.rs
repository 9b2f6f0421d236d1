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

/// Power cuts that one run tries.
fn cuts() -> usize {
    let asked = std::env::var("CUTS").ok().and_then(|count| count.parse().ok());
    asked.unwrap_or(2)
}

#[test]
fn generic_arm64() {
    story(Board::GenericArm64, cuts());
}

#[test]
fn generic_armhf() {
    story(Board::GenericArmhf, 2);
}

#[test]
fn rpi() {
    story(Board::Rpi, 2);
}

/// A card is made, put in, and the power cut so many times.
fn story(board: Board, cuts: usize) {
    let bay = Bay::open();
    let image = bay.image(board);
    let card = bay.card(&image, board.name());
    tour(&bay, board, &image, &card);
    power_cuts(&bay, board, &card, cuts);
}

/// From a card that nobody has touched to a device that runs what it is told, within its bounds.
fn tour(bay: &Bay, board: Board, image: &Path, card: &Path) {
    let (fleet, name) = (&bay.fleet, board.name());
    let image_of_board = format!("--image={}", board.arch());
    let every = [image_of_board.as_str(), "--everywhere"];
    fleet.controller.ok(&[&["run", "first", "--detach"][..], &every].concat());
    bay.change(board, 0);

    let mut vm = Vm::boot(&fleet.lab, board, card, Around::Network);
    let device = vm.eventually("a device that has joined", |_| bay.online(board));
    let joined = vm.began.elapsed();
    vm.eventually("its first container", |_| bay.runs("first"));
    let running = vm.began.elapsed();
    let id = device["id"].as_str().unwrap();
    assert!(id.starts_with("vm-"), "{device}");
    let booted = vm.ssh(&bay.key, "cat /sys/class/watchdog/watchdog0/state; df -m /var/lib/limpet");
    println!("{name}: {}", booted.out);

    enforced(bay, &mut vm, &every);
    devices::guarded(bay, &mut vm, &every);
    memory(bay, board, &mut vm, &every);
    let size = |path: &Path| std::fs::metadata(path).unwrap().len() as f64 / 1e6;
    let packed = image.with_extension("img.xz");
    limpet_tests::run("xz", &["-1", "-k", "-T2", &image.display().to_string()]);
    println!("| {name}: power-on to joined | {:.1} s |", joined.as_secs_f64());
    println!("| {name}: power-on to first container running | {:.1} s |", running.as_secs_f64());
    println!("| {name}: image, raw | {:.0} MB |", size(image));
    println!("| {name}: image, xz | {:.0} MB |", size(&packed));
    vm.cut();
}

/// Limits, system calls and devices are what the workload's bounds say, under this kernel.
fn enforced(bay: &Bay, vm: &mut Vm, every: &[&str]) {
    let fleet = &bay.fleet;
    let script = "grep Seccomp: /proc/self/status; \
        mknod /tmp/disk b 254 0 || echo no new node; \
        mount -t tmpfs none /tmp || echo no mount; \
        for n in 1 2 3 4 5 6 7 8 9; do sleep 5 & done; wait; echo done";
    let run = ["run", "proof", "--restart=never", "--pids=6", "--memory=16Mi", "--detach"];
    fleet.controller.ok(&[&run, every, &["--", "sh", "-c", script]].concat());
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
    fleet.controller.ok(&["delete", "proof"]);
    vm.eventually("the proof to go", |_| fleet.workloads("proof").is_empty().then_some(()));

    let dd = ["dd", "if=/dev/zero", "of=/dev/shm/x", "bs=1M", "count=60"];
    fleet.controller.ok(&[&run, every, &["--"], &dd].concat());
    let ended = vm.eventually("the end of the greedy", |_| ended());
    assert_eq!(ended["exit"], json!({"signal": 9}), "{ended}");
    fleet.controller.ok(&["delete", "proof"]);
}

/// What agent and shims take of a board's memory with three containers: PSS, in MiB.
fn memory(bay: &Bay, board: Board, vm: &mut Vm, every: &[&str]) {
    bay.fleet.controller.ok(&[&["run", "third", "--detach"], every].concat());
    vm.eventually("three containers", |_| bay.runs("third"));
    let script = "for process in /proc/[0-9]*; do \
        case $(readlink $process/exe) in */limpet-agent*) ;; *) continue ;; esac; \
        echo $(awk '/^Pss:/ {print $2}' $process/smaps_rollup) \
            $(tr '\\0' ' ' <$process/cmdline | cut -d ' ' -f 2); done; \
        awk '/^Mem(Total|Available)/ {print $2, $1}' /proc/meminfo";
    let said = vm.ssh(&bay.key, script).out;
    let lines: Vec<(f64, &str)> = said
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(kib, of)| (kib.parse::<f64>().unwrap() / 1024.0, of))
        .collect();
    let sum = |what: &str| lines.iter().filter(|(_, of)| *of == what).map(|(mib, _)| mib).sum();
    let (agent, shims): (f64, f64) = (sum("run"), sum("shim-wait"));
    let (total, free): (f64, f64) = (sum("MemTotal:"), sum("MemAvailable:"));
    let row = |what: &str, mib: f64| println!("| {}: {what} | {mib:.2} MB |", board.name());
    row("agent with three containers, PSS", agent);
    row("shim of each, PSS", shims / 3.0);
    row("agent and three containers, PSS", agent + shims);
    row("memory that the kernel gives out", total);
    row("memory that is available then", free);
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
    println!("| {}: power cuts survived | {count} of {count} |", board.name());
}

/// Boots with the network, has a deployment's revision replaced, and pulls the plug meanwhile.
fn in_a_change(bay: &Bay, board: Board, card: &Path, number: usize, chance: &mut Chance) {
    let mut vm = Vm::boot(&bay.fleet.lab, board, card, Around::Network);
    vm.eventually("the device", |_| bay.online(board));
    bay.change(board, number);
    std::thread::sleep(Duration::from_millis(chance.below(3000) as u64));
    vm.cut();
}

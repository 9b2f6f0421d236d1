//! Boards, as QEMU has them: a card that `limpet flash build` has made is put in, and the power switched
//! on. Their processors are emulated; kernel, file systems and everything else are a board's own.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::process::Output;
use crate::{Lab, Process, free_port, output, run};

/// How long an emulated board may take for anything.
pub const BOARD_PATIENCE: Duration = Duration::from_secs(240);

/// Where the first partition begins, in bytes.
const BOOT_PARTITION: &str = "1M";

/// A board that QEMU knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Board {
    /// A PC that boots by UEFI.
    GenericAmd64,
    /// A 64-bit ARM machine that boots by UEFI.
    GenericArm64,
    /// A 32-bit ARM machine; kernel and initrd are taken from the card and handed over, which is
    /// U-Boot's work on a real one.
    GenericArmhf,
    /// A Raspberry Pi 3B. QEMU skips the stage of its GPU's firmware: kernel, initrd and device tree
    /// are taken from the card and handed over.
    Rpi,
}

/// What is around a board.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Around {
    /// A network in which this machine is reached, and the time.
    Network,
    /// No network device, and a clock that stands at 1970.
    Dark,
}

impl Board {
    /// What `limpet flash build --board` calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::GenericAmd64 => "generic-amd64",
            Self::GenericArm64 => "generic-arm64",
            Self::GenericArmhf => "generic-armhf",
            Self::Rpi => "rpi",
        }
    }

    /// Its architecture, as OCI names it.
    pub fn arch(self) -> &'static str {
        match self {
            Self::GenericAmd64 => "amd64",
            Self::GenericArm64 | Self::Rpi => "arm64",
            Self::GenericArmhf => "arm",
        }
    }

    /// The network device that is put in.
    fn network(self) -> &'static str {
        match self {
            Self::GenericAmd64 => "virtio-net-pci,netdev=net",
            Self::GenericArm64 | Self::GenericArmhf => "virtio-net-device,netdev=net",
            Self::Rpi => "usb-net,netdev=net",
        }
    }

    /// Its memory, in MiB.
    fn memory_mib(self) -> u32 {
        match self {
            Self::GenericAmd64 | Self::GenericArm64 => 256,
            Self::GenericArmhf => 64,
            // The only size that this board has.
            Self::Rpi => 1024,
        }
    }
}

/// A board that is switched on. Dropping it pulls the plug.
pub struct Vm {
    /// When it was switched on.
    pub began: Instant,
    process: Process,
    console: PathBuf,
    keyboard: PathBuf,
    ssh_port: u16,
}

impl Vm {
    /// Puts the card in, and switches the power on.
    pub fn boot(lab: &Lab, board: Board, card: &Path, around: Around) -> Self {
        let ssh_port = free_port();
        let [console, keyboard, log] =
            ["console", "keyboard", "qemu.log"].map(|suffix| card.with_extension(suffix));
        for old in [&console, &keyboard] {
            let _ = std::fs::remove_file(old);
        }
        let line = format!(
            "socket,id=console,path={},server=on,wait=off,logfile={}",
            keyboard.display(),
            console.display()
        );
        let memory = board.memory_mib().to_string();
        let net = format!("user,id=net,hostfwd=tcp:127.0.0.1:{ssh_port}-:22");
        let around = match around {
            Around::Network => ["-netdev", &net, "-device", board.network()],
            Around::Dark => ["-nic", "none", "-rtc", "base=1970-01-01"],
        };
        let common = [
            "-display",
            "none",
            "-monitor",
            "none",
            "-no-reboot",
            "-m",
            &memory,
            "-chardev",
            &line,
        ];
        let parts = machine(lab, board, card);
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let words = [&parts[1..], &common, &around].concat();
        let began = Instant::now();
        let process = Process::start(&log, parts[0].as_ref(), &words);
        Self { began, process, console, keyboard, ssh_port }
    }

    /// Pulls the plug: SIGKILL.
    pub fn cut(mut self) {
        self.process.kill();
    }

    /// Waits until it goes off by itself.
    pub fn goes_off(mut self, why: &str) {
        let deadline = Instant::now() + BOARD_PATIENCE;
        while self.process.is_running() {
            assert!(Instant::now() < deadline, "waited in vain: {why}\n{}", self.console());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// All that its console has shown.
    pub fn console(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.console).unwrap_or_default()).into_owned()
    }

    /// Waits for something; fails with what is on the console when it does not come, or when the
    /// board goes off.
    pub fn eventually<T>(&mut self, what: &str, mut look: impl FnMut(&Self) -> Option<T>) -> T {
        let deadline = Instant::now() + BOARD_PATIENCE;
        loop {
            if let Some(found) = look(self) {
                return found;
            }
            let on = self.process.is_running();
            if !on || Instant::now() > deadline {
                let why = if on { "waited in vain" } else { "the board went off" };
                panic!("{why}: {what}\n{}\n{}", self.process.tail(), self.console());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// What `limpet-agent status` says there: Enter is pressed on its console, and what comes is read.
    /// Not before an agent is there: Enter leads into the firmware's menus.
    pub fn status(&self) -> Option<String> {
        let shown = self.console();
        let before = shown.contains("agent starts as").then_some(shown.len())?;
        UnixStream::connect(&self.keyboard).ok()?.write_all(b"\n").ok()?;
        std::thread::sleep(Duration::from_millis(700));
        let said = self.console();
        let from = said.get(before..)?.rfind("device  ")?;
        said.get(before + from..).map(str::to_owned)
    }

    /// Which of a list of workloads run, as its status has it.
    pub fn runs(&self, workloads: &[&str]) -> bool {
        let Some(status) = self.status() else { return false };
        let running = |workload: &&str| {
            status.lines().any(|line| {
                let mut words = line.split_whitespace();
                words.next() == Some(*workload) && words.next() == Some("running")
            })
        };
        workloads.iter().all(running)
    }

    /// Runs a script on it, as root, over ssh with this key.
    pub fn ssh(&self, key: &Path, script: &str) -> Output {
        let (key, port) = (key.display().to_string(), self.ssh_port.to_string());
        let options =
            ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR"];
        let mut words = vec!["-i", &key, "-p", &port, "-o", "ConnectTimeout=20"];
        words.extend(options.iter().flat_map(|option| ["-o", option]));
        words.extend(["root@127.0.0.1", script]);
        output("ssh", &words)
    }
}

/// The program and the flags that make the board, with its card in.
fn machine(lab: &Lab, board: Board, card: &Path) -> Vec<String> {
    let disk = format!("format=raw,file={}", card.display());
    let own = match board {
        // Its watchdog is strapped not to bite unless told otherwise.
        Board::GenericAmd64 => format!(
            "qemu-system-x86_64 -M q35 -global ICH9-LPC.noreboot=false -cpu max -serial chardev:console \
             -bios /usr/share/ovmf/OVMF.fd -drive if=virtio,{disk}"
        ),
        Board::GenericArm64 => format!(
            "qemu-system-aarch64 -M virt,gic-version=3 -cpu cortex-a53 -serial chardev:console \
             -bios /usr/share/qemu-efi-aarch64/QEMU_EFI.fd -drive if=virtio,{disk}"
        ),
        Board::GenericArmhf => format!(
            "qemu-system-arm -M virt -cpu cortex-a15 -serial chardev:console \
             -drive if=none,id=card,{disk} -device virtio-blk-device,drive=card"
        ),
        // Its first serial line is the Bluetooth chip's; its console is the second.
        Board::Rpi => format!(
            "qemu-system-aarch64 -M raspi3b -serial null -serial chardev:console -drive if=sd,{disk}"
        ),
    };
    let own = own.split_whitespace().map(str::to_owned);
    own.chain(kernel(lab, board, card)).collect()
}

/// What a board's own loader would take from the card.
fn kernel(lab: &Lab, board: Board, card: &Path) -> Vec<String> {
    let partition = format!("{}@@{BOOT_PARTITION}", card.display());
    let read = |name: &str| run("mtype", &["-i", &partition, &format!("::{name}")]);
    let take = |name: &str| {
        let to = lab.path(&name.replace('/', "-")).display().to_string();
        run("mcopy", &["-n", "-o", "-i", &partition, &format!("::{name}"), &to]);
        to
    };
    match board {
        Board::GenericAmd64 | Board::GenericArm64 => Vec::new(),
        Board::GenericArmhf => {
            let config = read("extlinux/extlinux.conf");
            let value = |key: &str| {
                let line = config.lines().find_map(|line| line.trim().strip_prefix(key));
                line.unwrap_or_else(|| panic!("no {key} in {config}")).trim().to_owned()
            };
            let file = |key: &str| take(value(key).trim_start_matches('/'));
            let flags =
                ["-kernel".to_owned(), file("linux "), "-initrd".to_owned(), file("initrd ")];
            [&flags[..], &["-append".to_owned(), value("append ")]].concat()
        }
        Board::Rpi => [
            ["-kernel".to_owned(), take("vmlinuz")],
            ["-initrd".to_owned(), take("initrd")],
            ["-dtb".to_owned(), take("bcm2837-rpi-3-b.dtb")],
            // QEMU's resets when its watchdog is armed.
            ["-append".to_owned(), format!("{} limpet.watchdog=off", read("cmdline.txt").trim())],
        ]
        .concat(),
    }
}

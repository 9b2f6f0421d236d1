//! `limpet flash build`: an image from the packages of a distribution.

use std::fs::{self, File, Permissions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use ring::rand::{SecureRandom, SystemRandom};
use tokio::signal::unix::{SignalKind, signal};

use super::apt::{self, Apt, log_line};
use super::board::Board;
use super::kernel::Kernel;
use super::partitions::{self, BOOT_BYTES, Partition, SYSTEM_BYTES};
use super::settings::Settings;
use super::tool::{self, DEBUGFS, DEPMOD, DPKG_DEB, MKE2FS, MKSQUASHFS, SKOPEO, XZ};
use super::{boot, data, initrd, preload, system};

/// What an image is made from, and where it goes.
pub struct Order {
    /// What it is for.
    pub board: Board,
    /// What its devices are told.
    pub settings: Settings,
    /// apt's sources, instead of this machine's.
    pub sources: Option<PathBuf>,
    /// Where packages are kept.
    pub cache: PathBuf,
    /// The image; compressed where it ends with `.xz`.
    pub out: PathBuf,
}

/// Builds it.
///
/// # Errors
/// When a tool, a package or an agent is missing, or something cannot be written. A half image is
/// not left behind.
pub fn build(order: &Order) -> anyhow::Result<()> {
    check_tools(order)?;
    let machine = order.board.machine();
    let files = order.settings.files()?;
    let agent = preload::agent_for(&machine, order.settings.agent.as_deref())?;
    if files.server.starts_with("127.") || files.server.starts_with("localhost") {
        log_line(&format!(
            "devices will look for their controller at {}, which is themselves: start it with \
             --advertise, and make another join string",
            files.server
        ));
    }
    let work = work_beside(&order.out)?;
    let work = work.path();
    order.settings.check_config(&files, work)?;
    let packages = packages(order, work)?;
    let kernel = Kernel::open(&packages)?;
    log_line(&format!("kernel {}", kernel.version()));

    let initrd = work.join("initrd.img");
    initrd::build(&kernel, &packages.join("bin/busybox"), work, &initrd)?;
    let squashed = work.join("system.img");
    let release = release(order.board);
    let of_system = system::Ingredients {
        packages: &packages,
        kernel: &kernel,
        agent: &agent,
        wifi: order.settings.wifi.is_some(),
        ssh_keys: files.ssh_keys.as_deref(),
        release: &release,
    };
    system::build(&of_system, work, &squashed)?;
    let system_bytes = fs::metadata(&squashed)?.len();
    anyhow::ensure!(system_bytes <= SYSTEM_BYTES, "the system does not fit into its partition");
    log_line(&format!("system {} MB", mb(system_bytes)));

    let mut signature = [0; 4];
    SystemRandom::new().fill(&mut signature).map_err(|_| anyhow::anyhow!("no random numbers"))?;
    let signature = u32::from_be_bytes(signature);
    let of_boot = boot::Ingredients {
        board: order.board,
        packages: &packages,
        kernel: &kernel,
        initrd: &initrd,
        signature,
    };
    let boot = boot::build(&of_boot, BOOT_BYTES)?;
    let stored = work.join("data.img");
    let bytes = data::build(&order.settings, &files, &machine, (work, &stored))?;
    let layout = partitions::layout(bytes);
    let raw = work.join("image");
    let mut image = Image::create(&raw, &layout[3])?;
    image.put(0, &mut partitions::boot_sector(signature, &layout)?.as_slice())?;
    image.put(layout[0].start_bytes, &mut boot.as_slice())?;
    image.put(layout[1].start_bytes, &mut File::open(&squashed)?)?;
    image.put(layout[3].start_bytes, &mut File::open(&stored)?)?;
    finish(&raw, &order.out)
}

fn check_tools(order: &Order) -> anyhow::Result<()> {
    let mut tools = vec![tool::APT_GET, DPKG_DEB, DEPMOD, MKSQUASHFS, MKE2FS, DEBUGFS];
    if order.out.extension().is_some_and(|extension| extension == "xz") {
        tools.push(XZ);
    }
    if order.settings.preload.iter().any(|image| !Path::new(image).exists()) {
        tools.push(SKOPEO);
    }
    tool::require(&tools)
}

/// Fetches and unpacks all that the image needs of the distribution.
fn packages(order: &Order, work: &Path) -> anyhow::Result<PathBuf> {
    let board = order.board;
    let apt = Apt::open(&order.cache, board.machine().debian, order.sources.as_deref())?;
    // What programs link to is resolved by apt; what has no programs comes alone.
    let mut linked = vec!["e2fsprogs", "rdate"];
    let mut alone = vec!["busybox-static", "ca-certificates"];
    if board.uefi().is_some() {
        alone.push("systemd-boot-efi");
    }
    if board == Board::Rpi {
        alone.push("raspi-firmware");
    }
    if order.settings.wifi.is_some() {
        if board != Board::Rpi {
            log_line("--wifi: there are drivers for Broadcom's wireless chips only (brcmfmac)");
        }
        linked.push("wpasupplicant");
        alone.extend(["firmware-brcm80211", "wireless-regdb"]);
    }
    if order.settings.ssh_key.is_some() {
        linked.push("dropbear-bin");
    }
    let kernels = apt.closure(&[board.kernel()])?;
    let is_kernel = |name: &String| name.starts_with("linux-image-") && name != board.kernel();
    let mut names = apt.closure(&linked)?;
    names.extend(kernels.into_iter().filter(is_kernel));
    names.extend(alone.into_iter().map(str::to_owned));
    log_line(&format!("{} packages for {}", names.len(), board.machine().debian));
    let folder = work.join("packages");
    fs::create_dir(&folder)?;
    for package in apt.fetch(&names)? {
        apt::extract(&package, &folder)?;
    }
    // Later distributions have them below `usr` only.
    for place in ["bin/busybox", "lib/firmware", "lib/modules"] {
        let (place, merged) = (folder.join(place), folder.join("usr").join(place));
        if !place.exists() && merged.exists() {
            place.parent().map_or(Ok(()), fs::create_dir_all)?;
            symlink(merged, place)?;
        }
    }
    Ok(folder)
}

fn release(board: Board) -> String {
    format!(
        "NAME=Limpet\nID=limpet\nPRETTY_NAME=\"Limpet {0}\"\nVERSION_ID={0}\nVARIANT_ID={1:?}\n",
        env!("CARGO_PKG_VERSION"),
        board
    )
}

/// A folder for what becomes an image, on the same disk, for its owner only: there are secrets in it.
/// It goes when it is dropped, and when Ctrl-C ends this program.
///
/// # Errors
/// When it cannot be made, or what the image is to be called is something else than a file.
pub(super) fn work_beside(out: &Path) -> anyhow::Result<tempfile::TempDir> {
    if let Ok(known) = out.metadata() {
        let name = out.display();
        anyhow::ensure!(
            known.is_file(),
            "{name} is no file: an image goes onto a disk by `flash write`"
        );
    }
    let folder = out.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = std::path::absolute(folder.unwrap_or(Path::new(".")))?;
    let mut work = tempfile::Builder::new();
    let work = work.prefix(".limpet-flash-").permissions(Permissions::from_mode(0o700));
    let work = work.tempdir_in(&folder);
    let work = work.with_context(|| format!("cannot make a folder in {}", folder.display()))?;
    go_when_interrupted(work.path().to_owned())?;
    Ok(work)
}

/// Removes a folder, and ends this program, when that is asked to end.
fn go_when_interrupted(folder: PathBuf) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let (mut interrupt, mut terminate) = {
        let _context = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    std::thread::spawn(move || {
        let number = runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => SignalKind::interrupt(),
                _ = terminate.recv() => SignalKind::terminate(),
            }
        });
        // A tool that has not ended yet may make something anew.
        let mut tries = 0..20;
        while fs::remove_dir_all(&folder).is_err() && folder.exists() && tries.next().is_some() {
            std::thread::sleep(Duration::from_millis(50));
        }
        std::process::exit(128 + number.as_raw_value());
    });
    Ok(())
}

/// The image becomes what it is called.
pub(super) fn finish(raw: &Path, out: &Path) -> anyhow::Result<()> {
    let bytes = fs::metadata(raw)?.len();
    let name = out.display();
    if out.extension().is_some_and(|extension| extension == "xz") {
        tool::run(XZ.call()?.args(["-T0", "-6", "--check=crc32"]).arg(raw))?;
        fs::rename(raw.with_extension("xz"), out)
            .with_context(|| format!("cannot write {name}"))?;
        log_line(&format!("{name}: {} MB, {} MB written", mb(fs::metadata(out)?.len()), mb(bytes)));
    } else {
        fs::rename(raw, out).with_context(|| format!("cannot write {name}"))?;
        log_line(&format!("{name}: {} MB", mb(bytes)));
    }
    Ok(())
}

/// A new file that its owner reads only, as an image stays: it lets devices into the fleet.
pub(super) fn create_private(path: &Path) -> io::Result<File> {
    File::options().write(true).create_new(true).mode(0o600).open(path)
}

fn mb(bytes: u64) -> u64 {
    bytes.div_ceil(1_000_000)
}

/// A new file in which zeros take no room.
struct Image(File);

impl Image {
    fn create(path: &Path, last: &Partition) -> anyhow::Result<Self> {
        let file =
            create_private(path).with_context(|| format!("cannot write {}", path.display()))?;
        file.set_len(last.start_bytes + last.bytes)?;
        Ok(Self(file))
    }

    fn put(&mut self, start: u64, from: &mut dyn Read) -> io::Result<()> {
        copy_sparse(from, &mut self.0, start)
    }
}

/// Copies to a place of a file that has nothing but zeros there.
pub(super) fn copy_sparse(from: &mut dyn Read, to: &mut File, start: u64) -> io::Result<()> {
    let mut at = start;
    let mut block = vec![0; 1 << 16];
    loop {
        let read = from.read(&mut block)?;
        if read == 0 {
            return Ok(());
        }
        if block[..read].iter().any(|byte| *byte != 0) {
            to.seek(SeekFrom::Start(at))?;
            to.write_all(&block[..read])?;
        }
        at += read as u64;
    }
}

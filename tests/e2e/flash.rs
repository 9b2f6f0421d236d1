//! Cards: images are built, adapted and written without anybody's disk being at risk.

use std::io::Read;
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use limpet_protocol::{Digest, Invitation, Purpose, Token};
use limpet_tests::process::Output;
use limpet_tests::{Disk, Lab, Process, eventually_or, output, program, run};
use rustix::process::{Pid, Signal, kill_process_group};

const MIB: usize = 1 << 20;

fn flash(args: &[&str]) -> Output {
    output(program("limpet"), &[&["flash"], args].concat())
}

fn refused(args: &[&str]) -> String {
    let done = flash(args);
    assert_ne!(done.status, 0, "{done:?}");
    done.err
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// A disk of this machine that is a file; goes when it is dropped.
struct Loop(String);

impl Loop {
    fn over(file: &Path) -> Self {
        Self(run("losetup", &["--find", "--show", &text(file)]).trim().to_owned())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = std::process::Command::new("losetup").args(["-d", &self.0]).status();
    }
}

/// An image that has a boot sector with one partition, and then bytes that are nowhere the same.
fn image(lab: &Lab, bytes: usize) -> PathBuf {
    let content: Vec<u8> = (0..bytes).map(|at| (at * 31 + at / 4096 * 7) as u8).collect();
    image_of(lab, "card.img", content)
}

fn image_of(lab: &Lab, name: &str, mut content: Vec<u8>) -> PathBuf {
    let sectors = u32::try_from(content.len() / 512 - 1).unwrap().to_le_bytes();
    content[446..510].fill(0);
    content[450] = 0x83;
    content[454] = 1;
    content[458..462].copy_from_slice(&sectors);
    content[510..512].copy_from_slice(&[0x55, 0xaa]);
    lab.file(name, content)
}

#[test]
fn a_card_is_written_and_read_back() {
    let lab = Lab::new();
    let card = image(&lab, 9 * MIB + 512);
    let medium = lab.file("medium", vec![0xee; 16 * MIB]);
    let disk = Loop::over(&medium);
    run("xz", &["-k", &text(&card)]);
    for image in [text(&card), format!("{}.xz", text(&card))] {
        std::fs::write(&medium, vec![0xee; 16 * MIB]).unwrap();
        let done = flash(&["write", &image, &disk.0, "--yes", "--yes-really"]);
        assert_eq!(done.status, 0, "{done:?}");
        assert!(done.out.ends_with("was read back\n"), "{done:?}");
        let (on_card, made) = (std::fs::read(&medium).unwrap(), std::fs::read(&card).unwrap());
        assert!(on_card.starts_with(&made), "the card holds the image");
        assert!(on_card.ends_with(&[0xee; MIB]), "what lies behind it is left alone");
    }
}

#[test]
fn what_is_no_card_is_never_written_over() {
    let lab = Lab::new();
    let card = image(&lab, 2 * MIB);
    let (shown, medium) = (text(&card), lab.file("medium", vec![0xee; 4 * MIB]));
    let disk = Loop::over(&medium);
    let really = |image: &str, disk: &str| refused(&["write", image, disk, "--yes-really"]);

    // Neither a card nor on USB, as loop devices are; and too large, whatever is said of the other.
    let why = refused(&["write", &shown, &disk.0, "--yes"]);
    assert!(why.contains("neither a card nor on USB"), "{why}");
    // Where nobody can be asked.
    assert!(refused(&["write", &shown, &disk.0]).contains("--yes"));
    assert!(really(&shown, &shown).contains("is no disk"));
    assert!(really(&shown, &text(&lab.path("none"))).contains("there is no disk"));
    // What is no image, or not all of it.
    let words = lab.file("words", "hello");
    assert!(really(&text(&words), &disk.0).contains("is no image of a disk"));
    run("xz", &["-k", &shown]);
    let packed = std::fs::read(format!("{shown}.xz")).unwrap();
    let cut = lab.file("cut.xz", &packed[..packed.len() / 2]);
    assert!(really(&text(&cut), &disk.0).contains("damaged"));
    // One that ends well and is damaged in its middle.
    let mut rotten = packed.clone();
    rotten[packed.len() / 2] ^= 1;
    let rotten = lab.file("rotten.xz", &rotten);
    assert!(really(&text(&rotten), &disk.0).contains("ends too soon"));
    // Of what cannot be packed, xz gives all, and says only then that it is not what it was.
    let mut random = vec![0; MIB];
    std::fs::File::open("/dev/urandom").unwrap().read_exact(&mut random).unwrap();
    let random = image_of(&lab, "random.img", random);
    run("xz", &[&text(&random)]);
    let random = random.with_extension("img.xz");
    let mut rotten = std::fs::read(&random).unwrap();
    rotten[MIB / 2] ^= 1;
    std::fs::write(&random, rotten).unwrap();
    let why = really(&text(&random), &disk.0);
    assert!(why.contains("random.img.xz: it is damaged"), "{why}");
    let half = lab.file("half.img", &std::fs::read(&card).unwrap()[..MIB]);
    assert!(really(&text(&half), &disk.0).contains("is cut short"));
    // A table of partitions (GPT) is said to come, and does not.
    let mut headless = std::fs::read(&card).unwrap();
    headless[450] = 0xee;
    let headless = lab.file("headless.img", headless);
    assert!(really(&text(&headless), &disk.0).contains("its header is damaged"));
    assert!(really("/dev/null", &disk.0).contains("is no file"));
    std::fs::write(&medium, vec![0xee; 4 * MIB]).unwrap();
    // A card that is too small.
    let small = lab.file("small", vec![0xee; MIB]);
    let small = Loop::over(&small);
    assert!(really(&shown, &small.0).contains("use a larger card"));
    assert!(
        std::fs::read(&medium).unwrap().iter().all(|byte| *byte == 0xee),
        "nothing was written"
    );
}

#[test]
fn a_disk_in_use_is_never_written_over() {
    let lab = Lab::new();
    let card = text(&image(&lab, MIB));
    let place = lab.path("mounted");
    let mounted = Disk::ext4(&place, "8m");
    let source = run("findmnt", &["-n", "-o", "SOURCE", &text(&place)]).trim().to_owned();
    let why = refused(&["write", &card, &source, "--yes-really"]);
    assert!(why.contains(&format!("mounted at {}", place.display())), "{why}");
    // A mount that only another mount namespace sees.
    let file = lab.file("hidden", vec![0; 8 * MIB]);
    run("mkfs.ext4", &["-q", "-F", &text(&file)]);
    let hidden = Loop::over(&file);
    let limpet = program("limpet").display().to_string();
    let script = format!(
        "mount {0} /mnt && nsenter -t {1} -m {limpet} flash write {card} {0} --yes-really; exit $?",
        hidden.0,
        std::process::id()
    );
    let done = output("unshare", &["-m", "sh", "-c", &script]);
    assert!(done.err.contains("in use by something"), "{done:?}");
    drop(mounted);
    // What this machine runs from.
    let root = run("findmnt", &["-n", "-o", "SOURCE", "/"]).trim().to_owned();
    if root.starts_with("/dev/") {
        let parent = run("lsblk", &["-n", "-o", "PKNAME", &root]);
        let parent = parent.lines().next().unwrap_or_default().trim();
        let disk = if parent.is_empty() { root } else { format!("/dev/{parent}") };
        let why = refused(&["write", &card, &disk, "--yes-really"]);
        assert!(why.contains("is the disk that this machine runs from"), "{why}");
    } else {
        println!("skipped: the system of this machine is on no disk of its own ({root})");
    }
}

/// A file with a join string.
fn join_file(lab: &Lab) -> String {
    let servers = vec!["limpet.example:8420".to_owned()];
    let token = Token::generate().unwrap();
    let invitation = Invitation { purpose: Purpose::Join, servers, pin: Digest([7; 32]), token };
    format!("@{}", text(&lab.file("join", invitation.to_string())))
}

/// The root of a small Debian.
fn root_of_a_distribution(lab: &Lab, systemd: bool) -> PathBuf {
    let root = lab.path("root");
    let _ = std::fs::remove_dir_all(&root);
    for folder in ["etc/systemd/system", "usr/bin", "usr/sbin", "var/lib", "root"] {
        std::fs::create_dir_all(root.join(folder)).unwrap();
    }
    if systemd {
        std::fs::create_dir_all(root.join("usr/lib/systemd/system")).unwrap();
        std::fs::write(root.join("usr/lib/systemd/system/ssh.service"), "[Unit]\n").unwrap();
    }
    std::fs::create_dir_all(root.join("usr/lib")).unwrap();
    std::fs::write(root.join("usr/lib/os-release"), "PRETTY_NAME=\"Debian 12\"\n").unwrap();
    std::os::unix::fs::symlink("../usr/lib/os-release", root.join("etc/os-release")).unwrap();
    std::os::unix::fs::symlink("usr/bin", root.join("bin")).unwrap();
    std::fs::copy("/bin/busybox", root.join("usr/bin/dash")).unwrap();
    std::os::unix::fs::symlink("dash", root.join("usr/bin/sh")).unwrap();
    root
}

/// An image with a FAT-like first partition and this root as the second, in a table of this kind.
fn distribution(lab: &Lab, table: &str, root: &Path) -> PathBuf {
    let disk = lab.file("distribution.img", "");
    run("truncate", &["-s", "128M", &text(&disk)]);
    let script = lab.file(
        "script",
        format!("label: {table}\nstart=1MiB, size=8MiB\nstart=16MiB, size=104MiB\n"),
    );
    run("sh", &["-c", &format!("sfdisk -q {} < {}", text(&disk), text(&script))]);
    let (root, disk_name) = (text(root), text(&disk));
    let made = ["-q", "-F", "-t", "ext4", "-d", &root, "-E", "offset=16777216", &disk_name, "104M"];
    run("mke2fs", &made);
    disk
}

/// What debugfs says of the root of an adapted image.
fn of(lab: &Lab, image: &Path, request: &str) -> String {
    let part = lab.path("part");
    let (from, to) = (format!("if={}", text(image)), format!("of={}", text(&part)));
    run("dd", &[&from, &to, "bs=1M", "skip=16", "count=104", "status=none"]);
    run("debugfs", &["-R", request, &text(&part)])
}

#[test]
fn an_image_of_a_distribution_is_adapted() {
    let lab = Lab::new();
    let join = join_file(&lab);
    let agent = text(&program("limpet-agent"));
    let key = text(&lab.file("key.pub", "ssh-ed25519 AAAA somebody\n"));
    let archive = text(&lab.file("image.tar", "not looked at here"));
    for table in ["dos", "gpt"] {
        let image = distribution(&lab, table, &root_of_a_distribution(&lab, true));
        let before = std::fs::read(&image).unwrap();
        let out = lab.path("out.img");
        let done = flash(&[
            "adapt",
            &text(&image),
            "--join",
            &join,
            "--label",
            "site=berlin",
            "--hostname-prefix",
            "gw",
            "--agent",
            &agent,
            "--ssh-key",
            &key,
            "--preload",
            &archive,
            "-o",
            &text(&out),
        ]);
        assert_eq!(done.status, 0, "{done:?}");
        assert_eq!(std::fs::read(&image).unwrap(), before, "the original stays as it is");
        let toml = of(&lab, &out, "cat /etc/limpet/agent.toml");
        assert_eq!(toml, "device_id_prefix = \"gw\"\nlabels = { \"site\" = \"berlin\" }\n");
        let join = std::fs::read_to_string(lab.path("join")).unwrap() + "\n";
        assert_eq!(of(&lab, &out, "cat /etc/limpet/join"), join);
        let wants = "/etc/systemd/system/multi-user.target.wants";
        assert!(of(&lab, &out, &format!("ls {wants}")).contains("limpet-agent.service"));
        let link = of(&lab, &out, &format!("stat {wants}/limpet-agent.service"));
        assert!(link.contains("/usr/lib/systemd/system/limpet-agent.service"), "{link}");
        let unit = of(&lab, &out, "cat /usr/lib/systemd/system/limpet-agent.service");
        assert_eq!(unit, include_str!("../../systemd/limpet-agent.service"));
        assert!(of(&lab, &out, "stat /usr/bin/limpet-agent").contains("Mode:  0755"));
        let join = of(&lab, &out, "stat /etc/limpet/join");
        assert!(join.contains("Mode:  0600") && join.contains("User:     0"), "{join}");
        assert_eq!(of(&lab, &out, "cat /root/.ssh/authorized_keys"), "ssh-ed25519 AAAA somebody\n");
        assert_eq!(of(&lab, &out, "cat /var/lib/limpet-preload/00.tar"), "not looked at here");
        run("e2fsck", &["-fn", &text(&lab.path("part"))]);
        // Adapted once more, as with another join string: what is there is replaced.
        let again = flash(&[
            "adapt",
            &text(&out),
            "--join",
            &format!("@{}", text(&lab.path("join"))),
            "--agent",
            &agent,
            "-o",
            &text(&lab.path("again.img.xz")),
        ]);
        assert_eq!(again.status, 0, "{again:?}");
        run("xz", &["-df", &text(&lab.path("again.img.xz"))]);
        let toml = of(&lab, &lab.path("again.img"), "cat /etc/limpet/agent.toml");
        assert_eq!(toml, "device_id_prefix = \"limpet\"\n");
    }
}

#[test]
fn what_cannot_be_adapted_says_why() {
    let lab = Lab::new();
    let join = join_file(&lab);
    let (agent, out) = (text(&program("limpet-agent")), text(&lab.path("out.img")));
    let adapt = |image: &Path, more: &[&str]| {
        let image = text(image);
        let args = ["adapt", &image, "--join", &join, "-o", &out];
        let why = refused(&[&args, more].concat());
        assert!(!lab.path("out.img").exists(), "nothing half stays");
        why
    };
    let no_agent = ["--agent", &agent];
    let plain = distribution(&lab, "dos", &root_of_a_distribution(&lab, false));
    let why = adapt(&plain, &no_agent);
    assert!(why.contains("Debian 12 has no systemd"), "{why}");

    let image = distribution(&lab, "gpt", &root_of_a_distribution(&lab, true));
    let words = text(&lab.file("words", "hello"));
    assert!(adapt(&image, &["--agent", &words]).contains("no program (ELF)"));
    assert!(
        adapt(&image, &["--agent", &agent, "--wifi", "net:passphrase"]).contains("NetworkManager")
    );
    assert!(adapt(&image, &["--agent", &agent, "--ssh-key", &words]).contains("no public key"));
    // An agent for another machine: its ELF header says so.
    let mut foreign = std::fs::read(program("limpet-agent")).unwrap();
    foreign[18..20].copy_from_slice(&243u16.to_le_bytes());
    let foreign = text(&lab.file("foreign", foreign));
    assert!(adapt(&image, &["--agent", &foreign]).contains("is for another machine"));
    // More than there is room for.
    let large = text(&lab.file("large.tar", vec![1; 120 * MIB]));
    assert!(
        adapt(&image, &["--agent", &agent, "--preload", &large]).contains("make its root larger")
    );
    // No system, and no table.
    let mut btrfs = vec![0; 4 * MIB];
    btrfs[510..512].copy_from_slice(&[0x55, 0xaa]);
    btrfs[446 + 4] = 0x83;
    btrfs[446 + 8..446 + 12].copy_from_slice(&2048u32.to_le_bytes());
    btrfs[446 + 12..446 + 16].copy_from_slice(&4096u32.to_le_bytes());
    btrfs[MIB + 0x1_0040..][..8].copy_from_slice(b"_BHRfS_M");
    let why = adapt(&lab.file("btrfs.img", btrfs), &no_agent);
    assert!(why.contains("1: btrfs, which cannot be changed"), "{why}");
    assert!(
        adapt(&lab.file("empty.img", vec![0; MIB]), &no_agent).contains("no table of partitions")
    );
}

/// An agent that is not run here: any program for the board is one.
fn program_of_arm64(lab: &Lab) -> PathBuf {
    let mut program = std::fs::read("/bin/busybox").unwrap();
    program[18..20].copy_from_slice(&183u16.to_le_bytes());
    lab.file("agent", program)
}

#[test]
fn an_image_is_built_from_packages_of_the_distribution() {
    let lab = Lab::new();
    let join = join_file(&lab);
    let key = text(&lab.file("key.pub", "ssh-ed25519 AAAA somebody\n"));
    let config = text(&lab.file("more.toml", "[registries]\ninsecure = [\"10.0.2.2:5000\"]\n"));
    let agent = program_of_arm64(&lab);
    let out = lab.path("card.img");
    let done = flash(&[
        "build",
        "--board",
        "generic-arm64",
        "--join",
        &join,
        "--hostname-prefix",
        "gw",
        "--label",
        "site=berlin",
        "--config",
        &config,
        "--ssh-key",
        &key,
        "--agent",
        &text(&agent),
        "-o",
        &text(&out),
    ]);
    assert_eq!(done.status, 0, "{done:?}");

    let table = run("sfdisk", &["-d", &text(&out)]);
    let kinds: Vec<_> = table.lines().filter_map(|line| line.split("type=").nth(1)).collect();
    assert_eq!(kinds, ["c, bootable", "83", "83", "83"], "{table}");
    run("sfdisk", &["--verify", &text(&out)]);
    let boot = format!("{}@@1M", text(&out));
    for file in ["vmlinuz", "initrd", "EFI/BOOT/BOOTAA64.EFI", "extlinux/extlinux.conf"] {
        run("mdir", &["-b", "-i", &boot, &format!("::{file}")]);
    }
    let line = run("mtype", &["-i", &boot, "::loader/entries/limpet-a.conf"]);
    let id = table.lines().find_map(|line| line.strip_prefix("label-id: 0x")).unwrap();
    assert!(line.contains(&format!("panic=10 limpet.disk={id} limpet.system=2")), "{line}");

    let (system, data) = (lab.path("system"), lab.path("data"));
    let from = format!("if={}", text(&out));
    let part = |to: &Path, skip: &str| {
        run("dd", &[&from, &format!("of={}", text(to)), "bs=1M", skip, "status=none"]);
    };
    part(&system, "skip=193");
    part(&data, "skip=385");
    let listed = run("unsquashfs", &["-ll", &text(&system)]);
    for file in [
        "usr/bin/limpet-agent",
        "usr/bin/init -> busybox",
        "usr/bin/e2fsck",
        "usr/lib/ld-linux-aarch64.so.1",
        "kernel/fs/overlayfs/overlay.ko",
        "modules.alias",
        "etc/ssl/certs/ca-certificates.crt",
        "usr/bin/dropbear",
        "root/.ssh/authorized_keys",
    ] {
        assert!(listed.contains(file), "{file} is missing");
    }
    assert!(
        listed
            .lines()
            .filter(|line| line.starts_with('-'))
            .all(|line| line.contains(" root/root "))
    );
    let inittab = run("unsquashfs", &["-cat", &text(&system), "etc/inittab"]);
    assert!(
        inittab.contains("::respawn:/usr/lib/limpet/agent") && inittab.contains("/ssh"),
        "{inittab}"
    );
    run("e2fsck", &["-fn", &text(&data)]);
    let toml = run("debugfs", &["-R", "cat /etc/agent.toml", &text(&data)]);
    assert!(
        toml.starts_with("device_id_prefix = \"gw\"\n") && toml.contains("[registries]"),
        "{toml}"
    );
    let join = run("debugfs", &["-R", "stat /etc/join", &text(&data)]);
    assert!(join.contains("Mode:  0600"), "{join}");
}

#[test]
fn what_ctrl_c_ends_leaves_nothing_behind() {
    let lab = Lab::new();
    // Packages come from where nobody answers.
    let mirror = TcpListener::bind("127.0.0.1:0").unwrap();
    mirror.set_nonblocking(true).unwrap();
    let from = format!("http://{}", mirror.local_addr().unwrap());
    let sources = format!("Types: deb\nURIs: {from}\nSuites: stable\nComponents: main\n");
    let sources = text(&lab.file("mirror.sources", sources));
    let cache = format!("XDG_CACHE_HOME={}", text(&lab.path("cache")));
    let (limpet, agent) = (text(&program("limpet")), text(&program_of_arm64(&lab)));
    let (join, out) = (join_file(&lab), text(&lab.path("out/card.img")));
    std::fs::create_dir(lab.path("out")).unwrap();
    let inputs = ["--join", &join, "--agent", &agent, "--sources", &sources, "-o", &out];
    let words = [
        "env",
        "no_proxy=127.0.0.1",
        &cache,
        &limpet,
        "flash",
        "build",
        "--board",
        "generic-arm64",
    ];
    let args = [&words[..], &inputs].concat();
    let mut build = Process::start(&lab.path("build.log"), Path::new("setsid"), &args);
    let _asked = eventually_or("apt", || mirror.accept().ok(), || build.tail());
    let left = || std::fs::read_dir(lab.path("out")).unwrap().count();
    assert_eq!(left(), 1, "what it works in");
    // As a terminal does: to the program, and to the tools that it calls.
    let group = Pid::from_raw(build.pid().cast_signed()).unwrap();
    kill_process_group(group, Signal::INT).unwrap();
    assert!(!build.wait().success(), "{}", build.tail());
    assert_eq!(left(), 0, "{}", build.tail());
}

#[test]
fn what_cannot_be_built_says_why() {
    let lab = Lab::new();
    let join = join_file(&lab);
    let (agent, out) = (text(&program("limpet-agent")), text(&lab.path("card.img")));
    let build = |args: &[&str]| {
        refused(&[&["build", "--board", "generic-arm64", "-o", &out], args].concat())
    };
    assert!(build(&["--join", "nonsense"]).contains("copy the whole line"));
    let of_here = ["--join", &join, "--agent", &agent, "--label", "twice=0"];
    if cfg!(target_arch = "x86_64") {
        assert!(build(&of_here).contains("is for another machine than aarch64"));
    }
    for (flag, value, says) in [
        ("--wifi", "no-colon", "write SSID:PSK"),
        ("--wifi", "net:short", "8 to 63 characters"),
        ("--label", "novalue", "write KEY=VALUE"),
        ("--hostname-prefix", "a_b", "use letters, digits and dashes"),
        ("--config", "/nonexistent", "cannot read /nonexistent"),
        ("--label", "twice=1", "make no agent.toml together"),
    ] {
        let why = build(&[&of_here[..], &[flag, value]].concat());
        assert!(why.contains(says), "{why}");
    }
    let config = text(&lab.file("twice.toml", "device_id_prefix = \"x\"\n"));
    let why = build(&[&of_here[..], &["--config", &config]].concat());
    assert!(why.contains("make no agent.toml together"), "{why}");
    let config = text(&lab.file("typo.toml", "[registries]\ninsecur = []\n"));
    let agent = text(&program_of_arm64(&lab));
    let why = build(&["--join", &join, "--agent", &agent, "--config", &config]);
    assert!(
        why.contains("agents will not take") && why.contains("unknown field `insecur`"),
        "{why}"
    );
    assert!(!Path::new(&out).exists());
}

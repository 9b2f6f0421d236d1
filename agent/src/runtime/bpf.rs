//! Loads programs that decide on devices into the kernel, and attaches them to groups of cgroup v2:
//! bpf(2), BPF_PROG_TYPE_CGROUP_DEVICE, in Linux since 4.15 where CONFIG_CGROUP_BPF is set. What they
//! say is made by `devices`.

use std::fs::File;
use std::io::{Error, Result};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use nix::libc;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

// Of linux/bpf.h.
const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const CGROUP_DEVICE: u32 = 6;
/// Programs of groups above are asked as well, and containers' own runtimes may add theirs below.
const F_ALLOW_MULTI: u32 = 2;

/// `union bpf_attr`, as far as a command reads it: the kernel takes the rest for zero. Addresses have
/// 64 bits, at a multiple of 8, on 32-bit machines too.
#[repr(C)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    licence: u64,
}

#[repr(C)]
struct Attach {
    group: RawFd,
    program: RawFd,
    kind: u32,
    flags: u32,
}

const _: () = assert!(size_of::<Load>() == 24 && size_of::<Attach>() == 16);

/// Has the kernel ask this program about each device that a process of the group, or of one below it,
/// opens or makes a node of; for as long as the group is there.
///
/// # Errors
/// When there is no such group, the kernel cannot do this, or it may not be done here.
pub(super) fn attach(program: &[u64], group: &Path) -> Result<()> {
    let group = File::open(group)?;
    let program = load(program)?;
    let attach = Attach {
        group: group.as_raw_fd(),
        program: program.as_raw_fd(),
        kind: CGROUP_DEVICE,
        flags: F_ALLOW_MULTI,
    };
    #[expect(unsafe_code, reason = "there is no safe interface for this system call")]
    // SAFETY: the kernel reads `attach`, which has the layout that this command wants, and no other
    // memory.
    unsafe { bpf(PROG_ATTACH, &attach) }.map(drop)
}

/// Whether the kernel takes such programs, tried with the smallest.
///
/// # Errors
/// When it does not.
pub(super) fn probe() -> Result<()> {
    match load(&super::devices::REFUSE) {
        // EPERM is for want of locked memory, of which a shim gets more: who may mount, as every agent
        // may, may load.
        Err(error) if error.raw_os_error() != Some(libc::EPERM) => Err(error),
        Ok(_) | Err(_) => Ok(()),
    }
}

fn load(program: &[u64]) -> Result<OwnedFd> {
    let load = Load {
        kind: PROG_TYPE_CGROUP_DEVICE,
        count: program.len().try_into().map_err(Error::other)?,
        instructions: program.as_ptr().expose_provenance() as u64,
        licence: c"Apache-2.0".as_ptr().expose_provenance() as u64,
    };
    // Before Linux 5.11 all programs of root count as its locked memory, of which 64 KiB are allowed:
    // sixteen containers' worth.
    let before = getrlimit(Resource::Memlock);
    let unlimited = Rlimit { current: None, maximum: None };
    let raised = setrlimit(Resource::Memlock, unlimited).is_ok();
    #[expect(unsafe_code, reason = "there is no safe interface for this system call")]
    // SAFETY: `load` has the layout that this command wants, and its addresses are of `count`
    // instructions and of a text that ends with 0, both borrowed until the end of this function. The
    // kernel reads them. What it answers is a descriptor that it has opened for us alone.
    let loaded = unsafe { bpf(PROG_LOAD, &load).map(|fd| OwnedFd::from_raw_fd(fd)) };
    if raised {
        setrlimit(Resource::Memlock, before)?;
    }
    loaded
}

/// bpf(2).
///
/// # Safety
/// `attr` is laid out as `command` wants it, and what it points to may be read.
#[expect(unsafe_code, reason = "there is no safe interface for this system call")]
unsafe fn bpf<T>(command: libc::c_int, attr: &T) -> Result<RawFd> {
    let attr = std::ptr::from_ref(attr);
    // SAFETY: as the caller promises; the size is that of what is pointed to.
    match unsafe { libc::syscall(libc::SYS_bpf, command, attr, size_of::<T>()) } {
        -1 => Err(Error::last_os_error()),
        answer => RawFd::try_from(answer).map_err(Error::other),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::process::Command;

    use limpet_protocol::DeviceAccess;

    use super::super::devices::{self, Kind};
    use super::super::host::Node;
    use super::*;

    /// A group of cgroup v2, below the one that is mounted.
    struct Group(PathBuf);

    impl Group {
        /// None where this machine cannot.
        fn make(name: &str) -> Option<Self> {
            let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
            let line = mounts.lines().find(|line| line.contains(" - cgroup2 "))?;
            let mount = line.split(' ').nth(4)?;
            let group = Path::new(mount).join(format!("limpet-test-{name}-{}", std::process::id()));
            std::fs::create_dir(&group).ok()?;
            let group = Self(group);
            probe().ok()?;
            Some(group)
        }

        /// What a shell in it says, which is root with every capability.
        fn says(&self, script: &str) -> String {
            let join = format!("echo $$ > {}/cgroup.procs", self.0.display());
            says(&format!("{join} || exit\n{script}"))
        }
    }

    impl Drop for Group {
        fn drop(&mut self) {
            std::fs::remove_dir(&self.0).unwrap();
        }
    }

    fn says(script: &str) -> String {
        let output = Command::new("sh").args(["-c", script]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    const SCRIPT: &str = r#"
        look() {
            said=$(eval ": $2" 2>&1) && said=yes
            echo "$1: ${said##*: }"
        }
        cd "$(mktemp -d)"
        mknod kmsg c 1 11 && mknod zero c 1 5 && mknod tun c 10 200 && mknod loop b 7 0 || exit
        look 'zero, both' '<> zero'
        look 'kmsg, read' '< kmsg'
        look 'kmsg, write' '> kmsg'
        look 'kmsg, both' '<> kmsg'
        look 'tun, read' '< tun'
        look 'loop, read' '< loop'
        look 'loop, write' '> loop'
        rm -r "$PWD"
    "#;

    #[test]
    fn the_kernel_refuses_root_what_is_not_listed() {
        let Some(group) = Group::make("listed") else {
            eprintln!(
                "skipped: this is not root, or a kernel without cgroup v2 and device programs"
            );
            return;
        };
        let free = group.says(SCRIPT);
        assert_eq!(free.matches(": yes").count(), 7, "{free}");
        let kmsg = |access| Node::example(Kind::Character, (1, 11), access);
        let block = Node::example(Kind::Block, (7, 0), DeviceAccess::ReadWrite);
        let given = [kmsg(DeviceAccess::Read), block];
        attach(&devices::program(&given), &group.0).unwrap();
        expect_test::expect![[r#"
            zero, both: yes
            kmsg, read: yes
            kmsg, write: Operation not permitted
            kmsg, both: Operation not permitted
            tun, read: Operation not permitted
            loop, read: yes
            loop, write: yes
        "#]]
        .assert_eq(&group.says(SCRIPT));
        assert_eq!(says(SCRIPT), free, "others are left alone");
    }

    #[test]
    fn what_two_rules_allow_may_be_done_at_once() {
        let Some(group) = Group::make("rules") else {
            eprintln!(
                "skipped: this is not root, or a kernel without cgroup v2 and device programs"
            );
            return;
        };
        let kmsg = |access| Node::example(Kind::Character, (1, 11), access);
        let given = [kmsg(DeviceAccess::Read), kmsg(DeviceAccess::Write)];
        attach(&devices::program(&given), &group.0).unwrap();
        assert!(group.says(SCRIPT).contains("kmsg, both: yes"));
        // A second program narrows what the first allows.
        attach(&devices::REFUSE, &group.0).unwrap();
        let said = group.says("{ cat < /dev/null; } 2>&1; true");
        assert!(said.contains("/dev/null: Operation not permitted"), "{said}");
        let error = attach(&[0], &group.0).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL), "{error}");
    }
}

//! Which devices a container may use on cgroup v2, as a program that the kernel asks at each `open`
//! and `mknod` (Documentation/admin-guide/cgroup-v2.rst, "Device controller"). On cgroup v1
//! libcontainer writes the same rules to `devices.allow`. Loading is `bpf`'s.

use limpet_protocol::DeviceAccess;

use super::host::Node;

/// The two kinds of devices, with the kernel's numbers: BPF_DEVCG_DEV_* (linux/bpf.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Block = 1,
    Character = 2,
}

impl Kind {
    /// Its letter, as the OCI configuration has it.
    pub(super) fn letter(self) -> &'static str {
        match self {
            Self::Block => "b",
            Self::Character => "c",
        }
    }
}

/// What may be done to a device, as sums of BPF_DEVCG_ACC_*.
const MKNOD: i32 = 1;
const READ: i32 = 2;
const WRITE: i32 = 4;
const ALL: i32 = MKNOD | READ | WRITE;

/// An entry of `linux.resources.devices` that allows (OCI runtime-spec, config-linux.md, "Allowed
/// Device list"). What no entry allows is refused: in front of them all is one that denies all.
#[derive(Debug, Clone, Copy)]
struct Allowed {
    kind: Kind,
    /// Any where absent.
    major: Option<u32>,
    /// Any where absent.
    minor: Option<u32>,
    access: i32,
}

/// Behind the list, as in crun and runc: the devices that each container has (config-linux.md,
/// "Default Devices"), terminals, and to make any node, which is not to open it.
const ALWAYS: [Allowed; 11] = [
    any(Kind::Character),
    any(Kind::Block),
    character(1, Some(3)), // null
    character(1, Some(5)), // zero
    character(1, Some(7)), // full
    character(1, Some(8)), // random
    character(1, Some(9)), // urandom
    character(5, Some(0)), // tty
    character(5, Some(1)), // console
    character(5, Some(2)), // ptmx
    character(136, None),  // pts/*
];

const fn any(kind: Kind) -> Allowed {
    Allowed { kind, major: None, minor: None, access: MKNOD }
}

const fn character(major: u32, minor: Option<u32>) -> Allowed {
    Allowed { kind: Kind::Character, major: Some(major), minor, access: ALL }
}

/// The program for a container that is given these devices: at most 6 instructions for each, and 70.
pub(super) fn program(given: &[Node]) -> Vec<u64> {
    let rules = given.iter().map(Allowed::from).chain(ALWAYS);
    LOOK.into_iter().chain(rules.flat_map(Allowed::instructions)).chain(REFUSE).collect()
}

impl From<&Node> for Allowed {
    fn from(node: &Node) -> Self {
        let (major, minor) = node.number;
        let access = match node.access {
            DeviceAccess::ReadWrite => READ | WRITE,
            DeviceAccess::Read => READ,
            DeviceAccess::Write => WRITE,
        };
        Self { kind: node.kind, major: Some(major), minor: Some(minor), access }
    }
}

// Registers. The kernel calls with the address of `struct bpf_cgroup_dev_ctx` in the first, and wants
// the answer in RESULT: 1 to allow, 0 to refuse.
const RESULT: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
/// What is asked for and that no rule has allowed so far: two rules can allow it together.
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

/// Takes the question apart: access (upper half) and kind, major, minor, 32 bits each.
const LOOK: [u64; 7] = [
    instruction(LOAD, [KIND, CONTEXT], 0, 0),
    instruction(COPY, [ACCESS, KIND], 0, 0),
    instruction(AND, [KIND, 0], 0, 0xffff),
    instruction(SHIFT_RIGHT, [ACCESS, 0], 0, 16),
    instruction(LOAD, [MAJOR, CONTEXT], 4, 0),
    instruction(LOAD, [MINOR, CONTEXT], 8, 0),
    instruction(SET, [RESULT, 0], 0, 1),
];
/// A program by itself, too: it refuses everything.
pub(super) const REFUSE: [u64; 2] =
    [instruction(SET, [RESULT, 0], 0, 0), instruction(EXIT, [0, 0], 0, 0)];

impl Allowed {
    /// Ends the program where nothing is left to be allowed; goes on behind itself otherwise.
    fn instructions(self) -> Vec<u64> {
        let allow = [
            instruction(EXIT, [0, 0], 0, 0),
            instruction(JUMP_UNLESS, [ACCESS, 0], 1, 0),
            instruction(AND, [ACCESS, 0], 0, !self.access),
        ];
        let wanted = [(MINOR, self.minor), (MAJOR, self.major), (KIND, Some(self.kind as u32))];
        let wanted = wanted.into_iter().filter_map(|(register, value)| Some((register, value?)));
        // Written from behind, so that each place is known by how many instructions follow it.
        let compare = wanted.zip(3..).map(|((register, value), behind)| {
            instruction(JUMP_UNLESS, [register, 0], behind, value.cast_signed())
        });
        let mut backwards: Vec<u64> = allow.into_iter().chain(compare).collect();
        backwards.reverse();
        backwards
    }
}

// Codes (Documentation/bpf/standardization/instruction-set.rst). Those with a value extend its sign
// to 64 bits.
const LOAD: u8 = 0x61; // to = *(u32 *)(from + offset)
const COPY: u8 = 0xbf; // to = from
const SET: u8 = 0xb7; // to = value
const AND: u8 = 0x57; // to &= value
const SHIFT_RIGHT: u8 = 0x77; // to >>= value
const JUMP_UNLESS: u8 = 0x55; // unless to == value, leave out `offset` instructions
const EXIT: u8 = 0x95;

/// One instruction (`struct bpf_insn`), as a little-endian machine has it in memory.
const fn instruction(code: u8, [to, from]: [u8; 2], offset: i16, value: i32) -> u64 {
    const { assert!(cfg!(target_endian = "little"), "the fields lie in another order") };
    let offset = offset.cast_unsigned() as u64;
    let value = value.cast_unsigned() as u64;
    code as u64 | (to as u64) << 8 | (from as u64) << 12 | offset << 16 | value << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One line per instruction, as `bpftool prog dump xlated` has them.
    fn listing(program: &[u64]) -> String {
        let line = |(at, instruction): (usize, &u64)| {
            let [code, registers, ..] = instruction.to_le_bytes();
            let (to, from) = (registers & 15, registers >> 4);
            let (offset, value) = ((instruction >> 16) as i16, (instruction >> 32) as i32);
            let text = match code {
                LOAD => format!("r{to} = *(u32 *)(r{from} +{offset})"),
                COPY => format!("r{to} = r{from}"),
                SET => format!("r{to} = {value}"),
                AND => format!("r{to} &= {value:#x}"),
                SHIFT_RIGHT => format!("r{to} >>= {value}"),
                JUMP_UNLESS => format!("if r{to} != {value} goto {}", at as i16 + 1 + offset),
                EXIT => "exit".to_owned(),
                other => format!("{other:#x}?"),
            };
            format!("{at}: {text}\n")
        };
        program.iter().enumerate().map(line).collect()
    }

    #[test]
    fn golden_program() {
        let given = Node::example(Kind::Block, (179, 1), DeviceAccess::Read);
        let program = program(&[given]);
        assert_eq!(program.len(), 70 + 6);
        // The rule of the given device, the first that is always there, and the last.
        let listing = listing(&program);
        let (head, rest) = listing.split_once("17: ").unwrap();
        let (_, tail) = rest.split_once("69: ").unwrap();
        expect_test::expect![[r#"
            0: r2 = *(u32 *)(r1 +0)
            1: r3 = r2
            2: r2 &= 0xffff
            3: r3 >>= 16
            4: r4 = *(u32 *)(r1 +4)
            5: r5 = *(u32 *)(r1 +8)
            6: r0 = 1
            7: if r2 != 1 goto 13
            8: if r4 != 179 goto 13
            9: if r5 != 1 goto 13
            10: r3 &= 0xfffffffd
            11: if r3 != 0 goto 13
            12: exit
            13: if r2 != 2 goto 17
            14: r3 &= 0xfffffffe
            15: if r3 != 0 goto 17
            16: exit
        "#]]
        .assert_eq(head);
        expect_test::expect![[r#"
            if r2 != 2 goto 74
            70: if r4 != 136 goto 74
            71: r3 &= 0xfffffff8
            72: if r3 != 0 goto 74
            73: exit
            74: r0 = 0
            75: exit
        "#]]
        .assert_eq(tail);
        let bytes: Vec<u8> = program[7..9].iter().flat_map(|word| word.to_ne_bytes()).collect();
        expect_test::expect!["[55, 02, 05, 00, 01, 00, 00, 00, 55, 04, 04, 00, b3, 00, 00, 00]"]
            .assert_eq(&format!("{bytes:02x?}"));
    }
}

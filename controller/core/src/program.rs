//! What a file is that is to become devices' agent: read from its first bytes (ELF, `elf.h`), and from
//! the mark that an agent carries.

use limpet_protocol::AgentVersion;
use limpet_protocol::upgrade::VERSION_MARK;

/// Bytes at a file's beginning that say which machine it is for.
pub const HEAD_BYTES: usize = 64;

const EXECUTABLE: u16 = 2;
const SHARED: u16 = 3;
/// A segment that names the loader of a program that is linked dynamically (`PT_INTERP`).
const INTERPRETER: u32 = 3;

/// Machines that agents are made for: ELF's number and size of a word, and OCI's name.
const MACHINES: [(u16, u8, &str); 3] = [(62, 2, "amd64"), (183, 2, "arm64"), (40, 1, "arm")];

/// Why a file is no agent's program.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProgramError {
    /// Something else.
    #[error("it is no program for Linux (no ELF file): use what `make dist` puts into dist/")]
    NotElf,
    /// A library, or a part of a program.
    #[error("it is an ELF file, but no program: use what `make dist` puts into dist/")]
    NotProgram,
    /// Nobody makes agents for it.
    #[error(
        "it is for a machine that Limpet does not know (ELF machine {machine}): it takes x86_64, \
         aarch64 and armv7, little-endian"
    )]
    Machine {
        /// Its number in ELF.
        machine: u16,
    },
}

/// The architecture that a program is for, as OCI names it, from its first [`HEAD_BYTES`].
///
/// # Errors
/// When it is no program, or for no machine that is known.
pub fn arch(head: &[u8]) -> Result<&'static str, ProgramError> {
    let header = Header::read(head).ok_or(ProgramError::NotElf)?;
    if !matches!(header.kind, EXECUTABLE | SHARED) {
        return Err(ProgramError::NotProgram);
    }
    let machine = header.machine;
    let known = MACHINES.iter().find(|(number, class, _)| {
        header.is_little && (*number, *class) == (machine, header.class)
    });
    known.map(|(.., arch)| *arch).ok_or(ProgramError::Machine { machine })
}

/// Whether a program needs a loader and libraries of the machine that it runs on.
pub fn is_dynamic(program: &[u8]) -> bool {
    let Some(header) = Header::read(program) else { return false };
    let (offset_at, size_at, count_at) =
        if header.class == 2 { (32, 54, 56) } else { (28, 42, 44) };
    let offset = match header.class {
        2 => number(program, offset_at, 8),
        _ => number(program, offset_at, 4),
    };
    let (size, count) = (number(program, size_at, 2), number(program, count_at, 2));
    let (Some(offset), Some(size), Some(count)) = (offset, size, count) else { return false };
    (0..count).any(|index| {
        let at = index.checked_mul(size).and_then(|at| at.checked_add(offset));
        let kind = at.and_then(|at| number(program, usize::try_from(at).ok()?, 4));
        kind == Some(INTERPRETER.into())
    })
}

/// The version that an agent's file is marked with; None in what is no agent.
pub fn version(program: &[u8]) -> Option<AgentVersion> {
    let versions = program.windows(VERSION_MARK.len()).enumerate();
    let mut marks = versions.filter(|(_, window)| *window == VERSION_MARK.as_slice());
    marks.find_map(|(at, _)| {
        let rest = program.get(at.checked_add(VERSION_MARK.len())?..)?;
        let end =
            rest.iter().take(AgentVersion::MAX.saturating_add(1)).position(|byte| *byte == 0)?;
        std::str::from_utf8(rest.get(..end)?).ok()?.parse().ok()
    })
}

struct Header {
    /// 1 for words of 32 bits, 2 for those of 64.
    class: u8,
    is_little: bool,
    kind: u16,
    machine: u16,
}

impl Header {
    fn read(bytes: &[u8]) -> Option<Self> {
        let rest = bytes.strip_prefix(b"\x7fELF")?;
        let (class, data) = (*rest.first()?, *rest.get(1)?);
        let short = |at| u16::try_from(number(bytes, at, 2)?).ok();
        Some(Self { class, is_little: data == 1, kind: short(16)?, machine: short(18)? })
    }
}

/// A number of so many bytes, little-endian.
fn number(bytes: &[u8], at: usize, size: usize) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(size)?)?;
    Some(bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

#[cfg(test)]
#[expect(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "the files are made here"
)]
mod tests {
    use super::*;

    /// The beginning of an ELF file, with one segment of this kind.
    fn elf(class: u8, kind: u16, machine: u16, segment: u32) -> Vec<u8> {
        let mut bytes = vec![0; 128];
        bytes[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', class, 1]);
        bytes[16..18].copy_from_slice(&kind.to_le_bytes());
        bytes[18..20].copy_from_slice(&machine.to_le_bytes());
        let (offset_at, size_at) = if class == 2 { (32, 54) } else { (28, 42) };
        bytes[offset_at] = 64;
        bytes[size_at..size_at + 4].copy_from_slice(&[56, 0, 1, 0]);
        bytes[64..68].copy_from_slice(&segment.to_le_bytes());
        bytes
    }

    #[test]
    fn a_programs_machine_is_read_from_its_head() {
        for (class, kind, machine, arch_or_not) in [
            (2, 2, 62, Ok("amd64")),
            (2, 3, 183, Ok("arm64")),
            (1, 2, 40, Ok("arm")),
            (1, 2, 62, Err(ProgramError::Machine { machine: 62 })),
            (2, 2, 243, Err(ProgramError::Machine { machine: 243 })),
            (2, 1, 62, Err(ProgramError::NotProgram)),
        ] {
            assert_eq!(arch(&elf(class, kind, machine, 1)[..HEAD_BYTES]), arch_or_not);
        }
        for text in [&b""[..], b"#!/bin/sh\n", b"\x7fELF\x02\x01"] {
            assert_eq!(arch(text), Err(ProgramError::NotElf));
        }
    }

    #[test]
    fn one_that_needs_a_loader_is_seen() {
        for class in [1, 2] {
            assert!(is_dynamic(&elf(class, 3, 62, INTERPRETER)));
            assert!(!is_dynamic(&elf(class, 2, 62, 1)));
        }
        let mut endless = elf(2, 2, 62, 1);
        endless[32..40].fill(0xff);
        assert!(!is_dynamic(&endless));
    }

    #[test]
    fn a_version_is_read_from_its_mark() {
        let marked =
            |version: &str| [b"..", &VERSION_MARK[..], version.as_bytes(), b"\0.."].concat();
        assert_eq!(version(&marked("0.2.0")), "0.2.0".parse().ok());
        // What looks for the mark has it too.
        let twice = [marked("not one"), marked("0.3.0")].concat();
        assert_eq!(version(&twice), "0.3.0".parse().ok());
        for none in ["", "a/b", &"1".repeat(40)] {
            assert_eq!(version(&marked(none)), None, "{none}");
        }
        assert_eq!(version(&VERSION_MARK[..]), None);
    }
}

//! Serves one file from memory over FUSE (linux/fuse.h, protocol 7.31): just what a loop device asks
//! of its backing file.

use std::fs::File;
use std::io::{Read, Write as _};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::{Arc, Mutex};

use rustix::mount::{MountFlags, mount};

use super::{Write, Writes};

/// The most that one request may carry, and what the kernel puts before it.
const WRITE_BYTES_MAX: usize = 128 * 1024;
const HEADERS_BYTES: usize = 4096;

/// Operations (enum fuse_opcode).
mod op {
    pub(super) const FORGET: u32 = 2;
    pub(super) const GETATTR: u32 = 3;
    pub(super) const SETATTR: u32 = 4;
    pub(super) const OPEN: u32 = 14;
    pub(super) const READ: u32 = 15;
    pub(super) const WRITE: u32 = 16;
    pub(super) const RELEASE: u32 = 18;
    pub(super) const FSYNC: u32 = 20;
    pub(super) const FLUSH: u32 = 25;
    pub(super) const INIT: u32 = 26;
    pub(super) const BATCH_FORGET: u32 = 42;
}

const ENOSYS: i32 = 38;

/// Mounts a file over `path` whose content is `writes`; served until it is unmounted.
pub(super) fn serve(path: &Path, writes: Arc<Mutex<Writes>>) {
    let kernel = File::options().read(true).write(true).open("/dev/fuse").unwrap();
    let fd = kernel.as_raw_fd();
    let data = format!("fd={fd},rootmode=100600,user_id=0,group_id=0,max_read=131072");
    let data = std::ffi::CString::new(data).unwrap();
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    mount("limpet-card", path, "fuse", flags, Some(data.as_c_str())).unwrap();
    std::thread::spawn(move || answer_all(kernel, &writes));
}

fn answer_all(mut kernel: File, writes: &Mutex<Writes>) {
    let mut request = vec![0; WRITE_BYTES_MAX + HEADERS_BYTES];
    // An error says that it was unmounted.
    while let Ok(length @ 40..) = kernel.read(&mut request) {
        let opcode = number(&request, 4, 4) as u32;
        let unique = &request[8..16];
        if matches!(opcode, op::FORGET | op::BATCH_FORGET) {
            continue;
        }
        let (error, body) = match answer(opcode, &request[40..length], writes) {
            Some(body) => (0, body),
            None => (-ENOSYS, Vec::new()),
        };
        let mut reply = u32::try_from(16 + body.len()).unwrap().to_ne_bytes().to_vec();
        reply.extend(error.to_ne_bytes());
        reply.extend(unique);
        reply.extend(body);
        // One that was interrupted wants no answer.
        let _ = kernel.write(&reply);
    }
}

/// What an operation answers; None where this file does not know it.
fn answer(opcode: u32, body: &[u8], writes: &Mutex<Writes>) -> Option<Vec<u8>> {
    let mut writes = writes.lock().unwrap();
    Some(match opcode {
        op::INIT => init(),
        op::GETATTR | op::SETATTR => attributes(writes.content.len()),
        op::OPEN => vec![0; 16],
        op::READ => {
            let from = number(body, 8, 8).min(writes.content.len());
            let to = (from + number(body, 16, 4)).min(writes.content.len());
            writes.content[from..to].to_vec()
        }
        op::WRITE => {
            let (offset, size) = (number(body, 8, 8), number(body, 16, 4));
            let bytes = body[40..40 + size].to_vec();
            writes.content[offset..offset + size].copy_from_slice(&bytes);
            writes.log.push(Write::Data { offset, bytes });
            [u32::try_from(size).unwrap().to_ne_bytes(), [0; 4]].concat()
        }
        op::FSYNC => {
            writes.log.push(Write::Flush);
            Vec::new()
        }
        op::FLUSH | op::RELEASE => Vec::new(),
        _ => return None,
    })
}

/// struct fuse_init_out: version 7.31, no options, requests of up to 128 KiB.
fn init() -> Vec<u8> {
    let mut out = Vec::new();
    for word in [7_u32, 31, 0, 0] {
        out.extend(word.to_ne_bytes());
    }
    out.extend([0; 4]);
    out.extend(u32::try_from(WRITE_BYTES_MAX).unwrap().to_ne_bytes());
    out.extend(1_u32.to_ne_bytes());
    out.resize(64, 0);
    out
}

/// struct fuse_attr_out, valid for a second.
fn attributes(size: usize) -> Vec<u8> {
    let (size, blocks) = (size as u64, (size / 512) as u64);
    let mut out = Vec::new();
    for word in [1, 0, 1, size, blocks, 0, 0, 0] {
        out.extend(word.to_ne_bytes());
    }
    for word in [0_u32, 0, 0, 0o100_600, 1, 0, 0, 0, 4096, 0] {
        out.extend(word.to_ne_bytes());
    }
    out
}

/// A number of the kernel's, in its byte order.
fn number(bytes: &[u8], at: usize, size: usize) -> usize {
    let mut word = [0; 8];
    word[..size].copy_from_slice(&bytes[at..at + size]);
    usize::try_from(u64::from_le_bytes(word)).unwrap()
}

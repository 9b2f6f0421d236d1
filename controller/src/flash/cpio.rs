//! The archive that a kernel unpacks as its first file system: cpio in the form "newc", as the
//! kernel's buffer-format.rst describes it.

use std::fs;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Writes a folder with all that is in it, in the order of names and as root's, so that equal folders
/// make equal archives.
///
/// # Errors
/// When it cannot be read or written.
pub(crate) fn archive(folder: &Path, out: &mut dyn Write) -> io::Result<()> {
    let mut inode = 0;
    let mut waiting = vec![PathBuf::new()];
    while let Some(path) = waiting.pop() {
        let whole = folder.join(&path);
        let kind = fs::symlink_metadata(&whole)?;
        let content = if kind.is_symlink() {
            fs::read_link(&whole)?.into_os_string().as_bytes().to_vec()
        } else if kind.is_dir() {
            let mut inside: Vec<_> = fs::read_dir(&whole)?
                .map(|entry| entry.map(|entry| entry.file_name()))
                .collect::<Result<_, _>>()?;
            inside.sort_by(|a, b| b.cmp(a));
            waiting.extend(inside.into_iter().map(|name| path.join(name)));
            Vec::new()
        } else {
            fs::read(&whole)?
        };
        if !path.as_os_str().is_empty() {
            inode += 1;
            entry(out, inode, kind.permissions().mode(), path.as_os_str().as_bytes(), &content)?;
        }
    }
    entry(out, 0, 0, b"TRAILER!!!", &[])
}

fn entry(
    out: &mut dyn Write,
    inode: u32,
    mode: u32,
    name: &[u8],
    content: &[u8],
) -> io::Result<()> {
    let size = u32::try_from(content.len()).map_err(io::Error::other)?;
    let name_size = u32::try_from(name.len() + 1).map_err(io::Error::other)?;
    // Magic, inode, mode, uid, gid, links, time, size, device and node numbers, name's size, checksum.
    let fields = [inode, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
    let mut header = b"070701".to_vec();
    for field in fields {
        write!(header, "{field:08x}")?;
    }
    header.extend_from_slice(name);
    header.push(0);
    for part in [header.as_slice(), content] {
        out.write_all(part)?;
        let padding = part.len().next_multiple_of(4) - part.len();
        out.write_all(&[0; 3][..padding])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn busybox_reads_what_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let from = folder.path().join("from");
        fs::create_dir_all(from.join("bin")).unwrap();
        fs::write(from.join("bin/odd"), b"12345").unwrap();
        fs::set_permissions(from.join("bin/odd"), fs::Permissions::from_mode(0o755)).unwrap();
        std::os::unix::fs::symlink("odd", from.join("bin/link")).unwrap();
        fs::write(from.join("init"), vec![7; 1000]).unwrap();
        let mut bytes = Vec::new();
        archive(&from, &mut bytes).unwrap();

        let to = folder.path().join("to");
        fs::create_dir(&to).unwrap();
        let mut cpio = Command::new("busybox");
        cpio.args(["cpio", "-id"]).current_dir(&to).stdin(Stdio::piped());
        let mut child = cpio.spawn().unwrap();
        child.stdin.take().unwrap().write_all(&bytes).unwrap();
        assert!(child.wait().unwrap().success());
        assert_eq!(fs::read(to.join("bin/link")).unwrap(), b"12345");
        assert_eq!(fs::read(to.join("init")).unwrap(), vec![7; 1000]);
        let mode = fs::metadata(to.join("bin/odd")).unwrap().permissions().mode();
        assert_eq!(mode, 0o100_755);
    }
}

//! Takes a tree of files away, however deep it is. Images and containers make trees; one that is
//! deeper than an agent may open files, or than its stack, must not keep it from starting.

use std::ffi::CString;
use std::io::Result;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{self, AtFlags, CWD, Dir, Mode, OFlags};
use rustix::io::Errno;

/// Removes a folder with all that is in it; follows no link.
///
/// # Errors
/// When something would not go, or the folder is not there.
pub(crate) fn remove(folder: &Path) -> Result<()> {
    let root = fs::openat(CWD, folder, FOLDER, Mode::empty())?;
    let mut risen = 0;
    // What is in a folder of the root rises into it: neither paths, nor stack, nor the number of
    // open files grow with the depth.
    loop {
        let names = clear(&root)?;
        if names.is_empty() {
            return Ok(fs::unlinkat(CWD, folder, AtFlags::REMOVEDIR)?);
        }
        for name in names {
            let inner = fs::openat(&root, &name, FOLDER, Mode::empty())?;
            for deeper in clear(&inner)? {
                rise(&inner, &deeper, &root, &mut risen)?;
            }
            fs::unlinkat(&root, &name, AtFlags::REMOVEDIR)?;
        }
    }
}

const FOLDER: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Takes away what is no folder; gives the names of the folders.
fn clear(folder: &OwnedFd) -> Result<Vec<CString>> {
    let mut folders = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        match fs::unlinkat(folder, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::ISDIR) => folders.push(name.to_owned()),
            Err(e) => return Err(e.into()),
        }
    }
    Ok(folders)
}

/// Moves a folder up into `root`, under a number that nothing there has for its name.
fn rise(from: impl AsFd, name: &CString, root: &OwnedFd, risen: &mut u64) -> Result<()> {
    loop {
        *risen += 1;
        match fs::renameat(&from, name, root, risen.to_string()) {
            Err(Errno::EXIST | Errno::NOTEMPTY | Errno::NOTDIR) => {}
            done => return Ok(done?),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn no_depth_is_too_deep() {
        let outer = tempfile::tempdir().unwrap();
        let root = outer.path().join("root");
        std::fs::create_dir(&root).unwrap();
        let mut folder = fs::openat(CWD, &root, FOLDER, Mode::empty()).unwrap();
        for depth in 0..4000 {
            // Names that are in the way of those that rise.
            let name = (depth % 7).to_string();
            fs::mkdirat(&folder, &name, Mode::RWXU).unwrap();
            folder = fs::openat(&folder, &name, FOLDER, Mode::empty()).unwrap();
        }
        remove(&root).unwrap();
        assert!(!root.exists());
    }

    #[test]
    fn nothing_beside_it_goes() {
        let outer = tempfile::tempdir().unwrap();
        let (root, kept) = (outer.path().join("root"), outer.path().join("kept"));
        std::fs::create_dir_all(root.join("1/2/3")).unwrap();
        std::fs::create_dir_all(root.join("2/1")).unwrap();
        std::fs::create_dir(&kept).unwrap();
        for file in [root.join("1/file"), root.join("2/1/file"), kept.join("file")] {
            std::fs::write(file, "x").unwrap();
        }
        symlink(&kept, root.join("1/2/link")).unwrap();
        symlink(&kept, outer.path().join("link")).unwrap();
        assert!(remove(&outer.path().join("link")).is_err());
        remove(&root).unwrap();
        assert!(!root.exists());
        assert!(kept.join("file").exists());
        assert!(remove(&root).is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound));
    }
}

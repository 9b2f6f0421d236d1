//! Whether an image has the program that a container is to run: what the runtime itself would say
//! only after much else, and not to a person.

use std::fs::File;
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

/// A program that is not there.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProgramError {
    #[error("the image has no program {0}; give the workload a command that it has")]
    Path(String),
    #[error("the image has no program {program:?} in its PATH ({path}); give its whole path")]
    Name { program: String, path: String },
}

/// Looks for `program` below `rootfs` as execvp(3) does: a name in the folders of PATH, anything
/// else as it is. A path that is relative to the working folder is left to the runtime.
pub(super) fn check(rootfs: &Path, program: &str, env: &[String]) -> Result<(), ProgramError> {
    let path = env.iter().find_map(|pair| pair.strip_prefix("PATH="));
    let path = path.unwrap_or_default();
    if program.starts_with('/') {
        let found = is_there(rootfs, program);
        return found.then_some(()).ok_or_else(|| ProgramError::Path(program.to_owned()));
    }
    let relative = program.contains('/') || path.split(':').any(|folder| !folder.starts_with('/'));
    let found = path.split(':').any(|folder| is_there(rootfs, &format!("{folder}/{program}")));
    let missing = || ProgramError::Name { program: program.to_owned(), path: path.to_owned() };
    (relative || found).then_some(()).ok_or_else(missing)
}

fn is_there(rootfs: &Path, path: &str) -> bool {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    File::open(rootfs)
        .is_ok_and(|root| openat2(&root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_as_the_shell_finds_them() {
        let rootfs = tempfile::tempdir().unwrap();
        std::fs::create_dir(rootfs.path().join("bin")).unwrap();
        std::fs::write(rootfs.path().join("bin/prog"), "").unwrap();
        std::os::unix::fs::symlink("/bin/prog", rootfs.path().join("link")).unwrap();
        let says = |program: &str, path: &str| {
            let env = [format!("PATH={path}")];
            check(rootfs.path(), program, &env).map_err(|e| e.to_string())
        };
        for (program, path) in [
            ("prog", "/sbin:/bin"),
            ("/bin/prog", ""),
            ("/link", "/bin"),
            ("./prog", "/sbin"),
            ("none", ".:/bin"),
        ] {
            assert_eq!(says(program, path), Ok(()), "{program}");
        }
        let why = says("none", "/sbin:/bin").unwrap_err();
        assert!(why.contains("no program \"none\" in its PATH (/sbin:/bin)"), "{why}");
        assert!(says("/bin/none", "/bin").unwrap_err().contains("no program /bin/none"));
    }
}

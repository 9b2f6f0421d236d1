//! A program, its unit and what else systemd needs of it, put in place on this machine and taken away
//! again. Only what differs is written; what a person has changed is left to them.

use std::fs::{File, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use ring::digest::{SHA256, digest};

/// Where programs are put.
const PROGRAMS: &str = "/usr/bin";
/// What dpkg knows of its packages.
const PACKAGES: &str = "/var/lib/dpkg/info";
/// Where a person's own units are, which win over those that are put in place.
const OWN_UNITS: &str = "/etc/systemd/system";
/// Begins the last line of each file that is put in place; the digest of the lines above it follows.
const SEAL: &str = "# As installed: sha256 ";

/// Something that systemd runs.
pub struct Service {
    /// What its unit is called.
    pub name: &'static str,
    /// What the program is called, and its package.
    pub program: &'static str,
    /// The files of its unit, its user and its folders: paths and texts.
    pub files: &'static [(&'static str, &'static str)],
}

/// What became of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// It was put in place.
    Written,
    /// It was so already.
    Same,
    /// A person has changed it: it is as it was.
    Kept,
}

/// Why a service is not put in place, or not taken away.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// Only root may.
    #[error("be root: sudo {0} ...")]
    NotRoot(&'static str),
    /// It would be of no use.
    #[error(
        "this machine has no systemd: have its init run {0}, and start it again whenever it ends"
    )]
    NoSystemd(&'static str),
    /// It is a package's.
    #[error("{0} is here as a Debian package: use `apt install {0}` and `apt remove {0}`")]
    Packaged(&'static str),
    /// The file system would not.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A tool of systemd's would not.
    #[error("`{command}` failed: {said}")]
    Tool {
        /// What was run.
        command: String,
        /// What it said.
        said: String,
    },
}

fn io<'a>(
    action: &'static str,
    path: &'a Path,
) -> impl FnOnce(std::io::Error) -> InstallError + 'a {
    move |source| InstallError::Io { action, path: path.into(), source }
}

impl Service {
    /// Looks whether anything may be changed here.
    ///
    /// # Errors
    /// Where it may not: by whom, where, or because dpkg sees to it.
    pub fn check(&self) -> Result<(), InstallError> {
        if !rustix::process::geteuid().is_root() {
            return Err(InstallError::NotRoot(self.program));
        }
        if !["/usr/bin/systemctl", "/bin/systemctl"].iter().any(|path| Path::new(path).exists()) {
            return Err(InstallError::NoSystemd(self.program));
        }
        let list = format!("{PACKAGES}/{}.list", self.program);
        let program = self.program();
        // A package that was removed, but not purged, lists its configuration only.
        match std::fs::read_to_string(list) {
            Ok(files) if files.lines().any(|file| Path::new(file) == program) => {
                Err(InstallError::Packaged(self.program))
            }
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Puts this process's own program and the files in place, and has systemd know and start it at
    /// each boot; gives whether anything was changed.
    ///
    /// # Errors
    /// When something would not go; whatever was put in place until then stays.
    pub fn install(&self, say: &mut dyn FnMut(String)) -> Result<bool, InstallError> {
        let own = Path::new("/proc/self/exe");
        let bytes = std::fs::read(own).map_err(io("read", own))?;
        let mut changed = false;
        let mut note = |path: &Path, put: Put| {
            changed |= put == Put::Written;
            let path = path.display();
            match put {
                Put::Written => say(format!("installed {path}")),
                Put::Same => {}
                Put::Kept => say(format!(
                    "kept {path}, which somebody has changed: delete it for that of this version; \
                     changes belong into {OWN_UNITS}/{}.service.d/",
                    self.name
                )),
            }
        };
        let program = self.program();
        note(&program, put(&program, &bytes, 0o755)?);
        for (path, text) in self.files {
            note(Path::new(path), put_text(Path::new(path), text)?);
        }
        for (tool, place) in
            [("systemd-sysusers", "sysusers.d"), ("systemd-tmpfiles", "tmpfiles.d")]
        {
            let mut paths = self.files.iter().map(|(path, _)| *path);
            if let Some(path) = paths.find(|path| path.contains(place)) {
                let create = (tool == "systemd-tmpfiles").then_some("--create");
                run(tool, &create.into_iter().chain([path]).collect::<Vec<_>>())?;
            }
        }
        if is_booted() && changed {
            run("systemctl", &["daemon-reload"])?;
        }
        run("systemctl", &["--quiet", "enable", &self.unit()])?;
        Ok(changed)
    }

    /// Starts it, anew where it was changed.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start(&self, changed: bool) -> Result<(), InstallError> {
        run("systemctl", &[if changed { "restart" } else { "start" }, &self.unit()])
    }

    /// Ends it, and has systemd forget it.
    ///
    /// # Errors
    /// When it does not end.
    pub fn stop(&self) -> Result<(), InstallError> {
        if is_booted() && self.is_known() {
            run("systemctl", &["stop", &self.unit()])?;
        }
        if self.is_known() {
            run("systemctl", &["--quiet", "disable", &self.unit()])
        } else {
            Ok(())
        }
    }

    /// Takes the files and the program away.
    ///
    /// # Errors
    /// When something would not go.
    pub fn uninstall(&self, say: &mut dyn FnMut(String)) -> Result<(), InstallError> {
        let program = self.program();
        let files = self.files.iter().map(|(path, _)| Path::new(path));
        for path in files.chain([program.as_path()]) {
            remove(path, say)?;
        }
        if is_booted() { run("systemctl", &["daemon-reload"]) } else { Ok(()) }
    }

    fn program(&self) -> PathBuf {
        Path::new(PROGRAMS).join(self.program)
    }

    fn unit(&self) -> String {
        format!("{}.service", self.name)
    }

    fn is_known(&self) -> bool {
        self.files.iter().any(|(path, _)| path.ends_with(".service") && Path::new(path).exists())
    }
}

/// Whether systemd runs this machine (sd_booted(3)): in a chroot, and where images are made, it does
/// not.
pub fn is_booted() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// Takes a file, or a folder with all that is in it, away, and says so; one that is not there is as
/// good.
///
/// # Errors
/// When it would not go.
pub fn remove(path: &Path, say: &mut dyn FnMut(String)) -> Result<(), InstallError> {
    let removed = match path.symlink_metadata() {
        Ok(found) if found.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) | Err(_) => std::fs::remove_file(path),
    };
    match removed {
        Ok(()) => say(format!("removed {}", path.display())),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(io("remove", path)(error)),
    }
    Ok(())
}

fn put_text(path: &Path, text: &str) -> Result<Put, InstallError> {
    match std::fs::read_to_string(path) {
        Ok(found) if found != text && !is_sealed(&found) => Ok(Put::Kept),
        // As a package or an image has it.
        Ok(found) if found == text => Ok(Put::Same),
        Ok(_) | Err(_) => put(path, sealed(text).as_bytes(), 0o644),
    }
}

/// A file is replaced whole: a power cut leaves the one or the other.
fn put(path: &Path, bytes: &[u8], mode: u32) -> Result<Put, InstallError> {
    if std::fs::read(path).is_ok_and(|found| found == bytes) {
        return Ok(Put::Same);
    }
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(io("make", folder))?;
    }
    let beside = path.with_extension("installing");
    let write = || {
        let mut file = File::create(&beside)?;
        file.set_permissions(Permissions::from_mode(mode))?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&beside, path)
    };
    write().map_err(io("write", path))?;
    Ok(Put::Written)
}

fn sealed(text: &str) -> String {
    let hex: String = digest(&SHA256, text.as_bytes())
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("{text}{SEAL}{hex}\n")
}

/// Whether a file is as it was put in place, by whatever version.
fn is_sealed(found: &str) -> bool {
    found.rfind(SEAL).is_some_and(|at| sealed(&found[..at]) == found)
}

fn run(tool: &str, args: &[&str]) -> Result<(), InstallError> {
    let failed = |said: String| InstallError::Tool {
        command: [&[tool], args].concat().join(" "),
        said: said.trim().to_owned(),
    };
    let done = Command::new(tool).args(args).output().map_err(|error| failed(error.to_string()))?;
    if done.status.success() {
        return Ok(());
    }
    Err(failed(String::from_utf8_lossy(&done.stderr).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_person_has_changed_is_kept_and_the_rest_follows_the_version() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lib/a.service");
        let put = |text: &str| put_text(&path, text).unwrap();
        let edit = |change: &dyn Fn(String) -> String| {
            std::fs::write(&path, change(std::fs::read_to_string(&path).unwrap())).unwrap();
        };
        assert_eq!([put("1\n"), put("1\n"), put("2\n"), put("2\n")], {
            [Put::Written, Put::Same, Put::Written, Put::Same]
        });
        edit(&|text| text.replace("2\n", "2\nmine\n"));
        assert_eq!([put("2\n"), put("3\n")], [Put::Kept, Put::Kept]);
        // Below the seal is as good as above it.
        std::fs::write(&path, sealed("1\n") + "mine\n").unwrap();
        assert_eq!(put("2\n"), Put::Kept);
        // What came some other way, as it is.
        std::fs::write(&path, "2\n").unwrap();
        assert_eq!([put("2\n"), put("3\n")], [Put::Same, Put::Kept]);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(put("3\n"), Put::Written);
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }
}

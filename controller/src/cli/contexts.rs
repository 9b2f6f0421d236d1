//! Controllers that somebody has logged in to: a file in the user's configuration folder.
//!
//! It holds tokens, so it is read only where nobody else can read it, and is never there with
//! another mode than 0600, not for a moment.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Bytes of the file at most.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// All of them, by the name that the user gave.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Contexts {
    /// Which is used where nothing else is said.
    pub(super) current: Option<String>,
    #[serde(default)]
    pub(super) contexts: BTreeMap<String, Context>,
}

/// A controller, and a token for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Context {
    /// `HOST:PORT` of its API.
    pub(super) server: String,
    /// SHA-256 of its authority's certificate, in hexadecimal, as it was when somebody logged in.
    pub(super) pin: String,
    /// Certificates (PEM) of its authorities: the only ones that its own must come from.
    pub(super) roots: String,
    pub(super) token: String,
}

/// Why contexts cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum ContextError {
    #[error("cannot {action} {path}: {source}")]
    Io { action: &'static str, path: PathBuf, source: std::io::Error },
    #[error(
        "{path} can be read by others (mode {mode:03o}) and holds tokens: revoke those if somebody \
         may have read it; then `chmod 600 {path}`"
    )]
    Mode { path: PathBuf, mode: u32 },
    #[error("{path} is damaged: {source}; remove it, and `limpet login` again")]
    Damaged { path: PathBuf, source: serde_json::Error },
    #[error("there is no context {name:?}; there is {known}: see `limpet context list`")]
    Absent { name: String, known: String },
    #[error("where contexts are kept is not known: set HOME or XDG_CONFIG_HOME")]
    NoHome,
}

type Result<T> = std::result::Result<T, ContextError>;

/// `$XDG_CONFIG_HOME/limpet/contexts.json`, or the same in `~/.config`.
pub(super) fn path() -> Result<PathBuf> {
    // XDG Base Directory Specification 0.8: a path that is not absolute is ignored.
    let set = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let config = set("XDG_CONFIG_HOME").or_else(|| Some(set("HOME")?.join(".config")));
    Ok(config.ok_or(ContextError::NoHome)?.join("limpet/contexts.json"))
}

impl Contexts {
    /// Reads them; there are none where there is no file.
    pub(super) fn load(path: &Path) -> Result<Self> {
        let io = |source| ContextError::Io { action: "read", path: path.into(), source };
        let file = match File::open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Self::default()),
            Err(e) => return Err(io(e)),
        };
        let mode = file.metadata().map_err(io)?.mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(ContextError::Mode { path: path.into(), mode });
        }
        let mut text = String::new();
        file.take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(io)?;
        serde_json::from_str(&text)
            .map_err(|source| ContextError::Damaged { path: path.into(), source })
    }

    /// Writes them, whole or not at all.
    pub(super) fn save(&self, path: &Path) -> Result<()> {
        let io = |source| ContextError::Io { action: "write", path: path.into(), source };
        let part = path.with_extension(format!("{}.part", std::process::id()));
        let text = serde_json::to_string_pretty(self).map_err(|e| io(e.into()))?;
        let written = || {
            if let Some(folder) = path.parent() {
                DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
            }
            let mut file =
                OpenOptions::new().write(true).create_new(true).mode(0o600).open(&part)?;
            file.write_all(format!("{text}\n").as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&part, path)
        };
        let done = written();
        if done.is_err() {
            let _ = std::fs::remove_file(&part);
        }
        done.map_err(io)
    }

    /// The one of this name, or the current one; None where there is none and none was named.
    pub(super) fn chosen(&self, name: Option<&str>) -> Result<Option<(&str, &Context)>> {
        let Some(name) = name.or(self.current.as_deref()) else {
            return Ok(None);
        };
        match self.contexts.get_key_value(name) {
            Some((name, context)) => Ok(Some((name, context))),
            None => {
                let known: Vec<&str> = self.contexts.keys().map(String::as_str).collect();
                let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                Err(ContextError::Absent { name: name.to_owned(), known })
            }
        }
    }

    /// Forgets one; it is current no more.
    pub(super) fn remove(&mut self, name: &str) -> Result<()> {
        self.chosen(Some(name))?;
        self.contexts.remove(name);
        self.current = self.current.take().filter(|current| current != name);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn contexts() -> Contexts {
        let context = Context {
            server: "limpet.example:8420".to_owned(),
            pin: "07".repeat(32),
            roots: String::new(),
            token: "limpet_secret".to_owned(),
        };
        Contexts {
            current: Some("home".to_owned()),
            contexts: [("home".to_owned(), context)].into(),
        }
    }

    #[test]
    fn they_are_kept_where_only_their_owner_reads_them() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("limpet/contexts.json");
        assert_eq!(Contexts::load(&path).unwrap(), Contexts::default());
        contexts().save(&path).unwrap();
        contexts().save(&path).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        assert_eq!(Contexts::load(&path).unwrap(), contexts());
        let left = std::fs::read_dir(path.parent().unwrap()).unwrap().count();
        assert_eq!(left, 1, "no part is left");

        for open in [0o644, 0o640, 0o660, 0o602] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(open)).unwrap();
            let why = Contexts::load(&path).unwrap_err().to_string();
            let mode = format!("(mode {open:03o})");
            assert!(why.contains(&mode) && why.contains("chmod 600"), "{why}");
        }
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::write(&path, "{").unwrap();
        let why = Contexts::load(&path).unwrap_err().to_string();
        assert!(why.contains("is damaged"), "{why}");
    }

    #[test]
    fn one_is_chosen_by_name_or_is_the_current_one() {
        let mut contexts = contexts();
        assert_eq!(contexts.chosen(None).unwrap().unwrap().0, "home");
        assert_eq!(contexts.chosen(Some("home")).unwrap().unwrap().0, "home");
        let why = contexts.chosen(Some("work")).unwrap_err().to_string();
        assert!(why.starts_with("there is no context \"work\"; there is home"), "{why}");
        contexts.remove("home").unwrap();
        assert_eq!(contexts, Contexts::default());
        assert_eq!(contexts.chosen(None).unwrap(), None);
    }
}

//! What fuzzing feeds the decoders of the run folder, and of an image's own files, with.

use std::fmt::Debug;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::order::{self, ExitRecord, StartOrder, StateRecord};
use super::user;

/// Reads `data` as a record of a container's folder, or as the users of an image.
pub(crate) fn record(folder: &Path, what: u8, data: &[u8]) {
    let path = folder.join("record");
    assert!(std::fs::write(&path, data).is_ok());
    match what % 4 {
        0 => reads_back::<StartOrder>(&path),
        1 => reads_back::<StateRecord>(&path),
        2 => reads_back::<ExitRecord>(&path),
        _ => users(&String::from_utf8_lossy(data)),
    }
    let _ = std::fs::remove_file(path);
}

fn reads_back<T: Serialize + DeserializeOwned + PartialEq + Debug>(path: &Path) {
    if let Some(record) = order::read::<T>(path) {
        assert!(order::write(path, &record).is_ok());
        assert_eq!(order::read::<T>(path), Some(record));
    }
}

/// A user to be looked up, then `/etc/passwd`, then `/etc/group`, with a NUL between them.
fn users(text: &str) {
    let mut parts = text.splitn(3, '\0');
    let [user, passwd, group] = [(); 3].map(|()| parts.next().unwrap_or_default());
    if let Ok(found) = user::find(user, passwd, group) {
        assert!(found.groups.len() <= group.lines().count());
    }
}

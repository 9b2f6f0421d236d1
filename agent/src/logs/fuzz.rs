//! What fuzzing feeds the reader of logs with.

use std::path::Path;

use super::ring::Reader;

/// Reads a ring of two files: the first two bytes of `data` say where the second begins.
pub(crate) fn ring(folder: &Path, data: &[u8]) {
    let Some(([high, low], data)) = data.split_first_chunk() else {
        return;
    };
    let middle = usize::from(u16::from_be_bytes([*high, *low])).min(data.len());
    let (before, current) = data.split_at(middle);
    let folder = folder.join("logs");
    let files = [("log.1", before), ("log.0", current)];
    let written = std::fs::create_dir_all(&folder)
        .and_then(|()| files.iter().try_for_each(|(name, b)| std::fs::write(folder.join(name), b)));
    assert!(written.is_ok(), "{written:?}");
    let mut reader = Reader::open(&folder, &folder);
    let lines = reader.tail(10);
    assert!(lines.iter().map(|line| line.bytes.len()).sum::<usize>() <= data.len());
    let more = reader.more();
    assert!(more.lines.iter().map(|line| line.bytes.len()).sum::<usize>() <= data.len());
}

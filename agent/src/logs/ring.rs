//! The ring that a container's output is kept in: `log.0` is written, `log.1` is the one before.
//!
//! A file begins with `MAGIC` and the number of record bytes that were written before it, u64, so
//! that a reader knows where it is in the whole of the output; a record is `stream u8, 0 u8, length u16, wall clock u64 in ms`,
//! big endian, then the bytes of one line, or of a part of a long one.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use limpet_protocol::{LogLine, LogStream};

/// Names the format and its version.
const MAGIC: &[u8; 8] = b"LMPLOG1\n";
/// What a file begins with.
const BEGIN_BYTES: usize = 16;
/// What a record begins with.
const HEADER_BYTES: usize = 12;
/// A file of the ring at most: two of them per container, in memory by default.
const FILE_BYTES_MAX: u64 = 128 * 1024;
/// A longer line is kept in parts.
const LINE_BYTES_MAX: usize = 4 * 1024;

/// Writes a container's output. What cannot be written is lost, never waited for.
pub struct Writer {
    folder: PathBuf,
    file: Option<File>,
    /// Bytes in the current file, and record bytes in those before it.
    written: u64,
    before: u64,
    partial: [Vec<u8>; 2],
}

impl Writer {
    /// Begins a ring in a container's folder.
    pub fn open(folder: &Path) -> Self {
        let mut writer = Self {
            folder: folder.into(),
            file: None,
            written: BEGIN_BYTES as u64,
            before: 0,
            partial: Default::default(),
        };
        writer.begin();
        writer
    }

    fn begin(&mut self) {
        let current = self.folder.join("log.0");
        // There is none before the first.
        let _ = std::fs::rename(&current, self.folder.join("log.1"));
        self.before += self.written - BEGIN_BYTES as u64;
        self.written = BEGIN_BYTES as u64;
        self.file = File::create(&current).ok();
        if let Some(file) = &mut self.file {
            // Without it no reader takes the file for a log: the output is lost until the next one.
            let _ = file.write_all(&begin(self.before));
        }
    }

    /// Takes bytes as they come; whole lines are written.
    pub fn write(&mut self, stream: LogStream, mut bytes: &[u8], wall_ms: u64) {
        let mut partial = std::mem::take(&mut self.partial[stream as usize]);
        while !bytes.is_empty() {
            let room = LINE_BYTES_MAX - partial.len();
            let end = bytes.iter().position(|byte| *byte == b'\n');
            let taken = end.unwrap_or(bytes.len()).min(room);
            partial.extend_from_slice(&bytes[..taken]);
            let line_ends = end == Some(taken);
            bytes = &bytes[taken + usize::from(line_ends)..];
            if line_ends || partial.len() == LINE_BYTES_MAX {
                self.record(stream, &partial, wall_ms);
                partial.clear();
            }
        }
        self.partial[stream as usize] = partial;
    }

    /// Writes what did not end with a newline.
    pub fn finish(&mut self) {
        for stream in [LogStream::Stdout, LogStream::Stderr] {
            let partial = std::mem::take(&mut self.partial[stream as usize]);
            if !partial.is_empty() {
                self.record(stream, &partial, crate::clock::wall_ms());
            }
        }
    }

    fn record(&mut self, stream: LogStream, line: &[u8], wall_ms: u64) {
        let record = encode(stream, line, wall_ms);
        if self.written + record.len() as u64 > FILE_BYTES_MAX {
            self.begin();
        }
        if let Some(file) = &mut self.file
            && file.write_all(&record).is_ok()
        {
            self.written += record.len() as u64;
        }
    }
}

fn begin(before: u64) -> Vec<u8> {
    [MAGIC.as_slice(), &before.to_be_bytes()].concat()
}

fn encode(stream: LogStream, line: &[u8], wall_ms: u64) -> Vec<u8> {
    let mut record = vec![stream as u8, 0];
    record.extend(u16::try_from(line.len()).unwrap_or(u16::MAX).to_be_bytes());
    record.extend(wall_ms.to_be_bytes());
    record.extend(line);
    record
}

/// What a line takes in a file.
pub fn record_bytes(line: &LogLine) -> usize {
    HEADER_BYTES + line.bytes.len()
}

/// A file of a ring that holds these lines.
pub fn file(lines: &[LogLine]) -> Vec<u8> {
    let records = lines.iter().map(|line| encode(line.stream, &line.bytes, line.at_ms));
    std::iter::once(begin(0)).chain(records).flatten().collect()
}

/// Reads a ring while it is being written.
pub struct Reader {
    folder: PathBuf,
    /// The run folder of the container, which tells when nothing follows.
    run: PathBuf,
    /// Record bytes that have been read, of all that were ever written.
    position: u64,
}

/// What a look at the ring found.
#[derive(Debug, Default)]
pub struct News {
    /// Lines, in order.
    pub lines: Vec<LogLine>,
    /// Record bytes that were overwritten unread.
    pub gap_bytes: u64,
}

impl Reader {
    /// A reader of the ring in `folder`, of the container whose run folder is `run`.
    pub fn open(folder: &Path, run: &Path) -> Self {
        Self { folder: folder.into(), run: run.into(), position: 0 }
    }

    /// The latest lines, at most `tail`; [`Reader::more`] goes on from there.
    pub fn tail(&mut self, tail: usize) -> Vec<LogLine> {
        let mut lines = self.more().lines;
        lines.split_off(lines.len().saturating_sub(tail))
    }

    /// What was written since the last look.
    pub fn more(&mut self) -> News {
        let mut news = News::default();
        for name in ["log.1", "log.0"] {
            let Some((mut file, before)) = self.file(name) else {
                continue;
            };
            if before > self.position {
                news.gap_bytes = news.gap_bytes.saturating_add(before - self.position);
                self.position = before;
            }
            let (lines, read) = records(&mut file, self.position - before);
            news.lines.extend(lines);
            self.position = self.position.saturating_add(read);
        }
        news
    }

    /// Whether nothing more will be written: the container's exit is recorded, or its folder gone.
    pub fn is_over(&self) -> bool {
        self.run.join("exit").exists() || !self.run.exists()
    }

    fn file(&self, name: &str) -> Option<(File, u64)> {
        let mut file = File::open(self.folder.join(name)).ok()?;
        let mut begin = [0; BEGIN_BYTES];
        file.read_exact(&mut begin).ok()?;
        let (magic, before) = begin.split_first_chunk()?;
        (magic == MAGIC).then_some((file, u64::from_be_bytes(before.try_into().ok()?)))
    }
}

/// The whole records behind the first `skip` bytes of them, and how many bytes they have.
fn records(file: &mut File, skip: u64) -> (Vec<LogLine>, u64) {
    let mut bytes = Vec::new();
    let mut lines = Vec::new();
    let sought = file.seek(SeekFrom::Start(skip.saturating_add(BEGIN_BYTES as u64)));
    if sought.and_then(|_| file.take(FILE_BYTES_MAX).read_to_end(&mut bytes)).is_err() {
        return (lines, 0);
    }
    let mut rest = bytes.as_slice();
    while let Some((line, after)) = record(rest) {
        rest = after;
        lines.push(line);
    }
    (lines, (bytes.len() - rest.len()) as u64)
}

fn record(bytes: &[u8]) -> Option<(LogLine, &[u8])> {
    let (header, rest) = bytes.split_first_chunk::<HEADER_BYTES>()?;
    let [stream, _, high, low, wall @ ..] = header;
    let (line, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes([*high, *low])))?;
    let stream = if *stream == 0 { LogStream::Stdout } else { LogStream::Stderr };
    let at_ms = u64::from_be_bytes(*wall);
    Some((LogLine { stream, at_ms, bytes: line.to_vec() }, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(lines: &[LogLine]) -> Vec<String> {
        lines.iter().map(|line| String::from_utf8_lossy(&line.bytes).into_owned()).collect()
    }

    #[test]
    fn golden_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = Writer::open(folder.path());
        writer.write(LogStream::Stderr, b"hi\n", 5);
        let bytes = std::fs::read(folder.path().join("log.0")).unwrap();
        assert_eq!(bytes, b"LMPLOG1\n\0\0\0\0\0\0\0\0\x01\0\0\x02\0\0\0\0\0\0\0\x05hi");
    }

    #[test]
    fn lines_are_joined_and_long_ones_parted() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = Writer::open(folder.path());
        writer.write(LogStream::Stdout, b"a", 1);
        writer.write(LogStream::Stderr, b"x\n", 2);
        writer.write(LogStream::Stdout, b"b\nc\n\n", 3);
        writer.write(LogStream::Stdout, &vec![b'l'; LINE_BYTES_MAX + 1], 4);
        writer.finish();
        let lines = Reader::open(folder.path(), folder.path()).tail(100);
        let texts = texts(&lines);
        assert_eq!(&texts[..4], ["x", "ab", "c", ""]);
        assert_eq!(texts[4].len(), LINE_BYTES_MAX);
        assert_eq!(texts[5], "l");
    }

    #[test]
    fn a_reader_follows_through_a_turn_of_the_ring() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = Writer::open(folder.path());
        let mut reader = Reader::open(folder.path(), folder.path());
        writer.write(LogStream::Stdout, b"first\n", 1);
        assert_eq!(texts(&reader.tail(1)), ["first"]);
        let mut seen = 0;
        for number in 0..5000 {
            writer.write(LogStream::Stdout, format!("{number:0>60}\n").as_bytes(), 1);
            if number % 500 == 499 {
                let more = reader.more();
                assert_eq!(more.gap_bytes, 0);
                seen += more.lines.len();
            }
        }
        assert_eq!(seen, 5000);
        let used: u64 = ["log.0", "log.1"]
            .map(|name| std::fs::metadata(folder.path().join(name)).unwrap().len())
            .iter()
            .sum();
        assert!(used <= 2 * FILE_BYTES_MAX, "{used}");
        for _ in 0..9000 {
            writer.write(LogStream::Stdout, &[b'x'; 60], 1);
            writer.write(LogStream::Stdout, b"\n", 1);
        }
        assert!(reader.more().gap_bytes > 0);
    }

    #[test]
    fn torn_and_foreign_files_are_read_as_far_as_they_go() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = Writer::open(folder.path());
        writer.write(LogStream::Stdout, b"one\ntwo\n", 1);
        let path = folder.path().join("log.0");
        let whole = std::fs::read(&path).unwrap();
        for length in 0..whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            assert!(Reader::open(folder.path(), folder.path()).tail(9).len() < 2, "{length}");
        }
        for before in [[0xff; 8], [0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]] {
            std::fs::write(&path, [&whole[..8], &before, &whole[16..]].concat()).unwrap();
            assert_eq!(Reader::open(folder.path(), folder.path()).tail(9).len(), 2);
            std::fs::copy(&path, folder.path().join("log.1")).unwrap();
            Reader::open(folder.path(), folder.path()).tail(9);
            std::fs::remove_file(folder.path().join("log.1")).unwrap();
        }
        std::fs::write(&path, b"something else").unwrap();
        assert!(Reader::open(folder.path(), folder.path()).tail(9).is_empty());
    }
}

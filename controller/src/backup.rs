//! The file that `limpet backup` writes and `limpet restore` reads.
//!
//! ```text
//! "limpet backup\n" | format, 1 byte | length of the header, 4 bytes, big-endian
//! header, CBOR | the store, an SQLite database | SHA-256 of all that comes before it
//! ```
//!
//! Format 1 knew one key, as `seed`; since format 2 there are several, by the names of their files.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};

use limpet_protocol::cbor;
use ring::digest::{Context, SHA256, SHA256_OUTPUT_LEN};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

const MAGIC: &[u8; 14] = b"limpet backup\n";
/// The format that this version writes; one that it reads is not higher.
const FORMAT: u8 = 2;
const HEADER_BYTES_MAX: u32 = 64 * 1024;
const CHUNK_BYTES: usize = 256 * 1024;

/// What a backup holds.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Header {
    /// Controller's wall clock when it was made, in milliseconds since 1970.
    pub(crate) made_ms: u64,
    /// Version of the controller.
    pub(crate) version: String,
    /// Of the key that signs what the fleet is told, in format 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    seed: Option<[u8; 32]>,
    /// The key files of the data folder.
    #[serde(default)]
    pub(crate) keys: BTreeMap<String, ByteBuf>,
    pub(crate) devices: u64,
    pub(crate) deployments: u64,
    pub(crate) events: u64,
    pub(crate) store_bytes: u64,
}

impl Header {
    /// Of a store of this many bytes, with these keys.
    pub(crate) fn new(made_ms: u64, keys: BTreeMap<String, ByteBuf>, store_bytes: u64) -> Self {
        Self {
            made_ms,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            seed: None,
            keys,
            devices: 0,
            deployments: 0,
            events: 0,
            store_bytes,
        }
    }
}

/// Why a file is not a backup that can be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BackupError {
    #[error("it cannot be read: {0}")]
    Read(#[source] io::Error),
    #[error("what it holds cannot be written: {0}")]
    Write(#[source] io::Error),
    #[error("it is no backup of limpet")]
    Foreign,
    #[error(
        "it was written by a newer version of limpet (format {0}, this one knows {FORMAT}): use \
         that version"
    )]
    Newer(u8),
    #[error("it is damaged or cut short: nothing of it can be trusted; use another backup")]
    Damaged,
}

/// The bytes of a backup, piece by piece.
pub(crate) struct Pieces {
    head: Option<Vec<u8>>,
    store: io::Take<File>,
    left: u64,
    digest: Option<Context>,
}

impl Pieces {
    /// A backup of a store of which nobody else holds this copy.
    pub(crate) fn new(header: &Header, store: File) -> Self {
        let body = cbor::encode(header);
        let length = u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes();
        let head = [MAGIC.as_slice(), &[FORMAT], &length, &body].concat();
        let left = header.store_bytes;
        Self {
            head: Some(head),
            store: store.take(left),
            left,
            digest: Some(Context::new(&SHA256)),
        }
    }

    fn piece(&mut self) -> io::Result<Option<Vec<u8>>> {
        let Some(digest) = &mut self.digest else {
            return Ok(None);
        };
        if let Some(head) = self.head.take() {
            digest.update(&head);
            return Ok(Some(head));
        }
        let mut piece = vec![0; CHUNK_BYTES];
        let bytes = self.store.read(&mut piece)?;
        piece.truncate(bytes);
        self.left = self.left.saturating_sub(bytes as u64);
        match (bytes, self.left) {
            (0, 0) => Ok(self.digest.take().map(|digest| digest.finish().as_ref().to_vec())),
            (0, _) => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => {
                digest.update(&piece);
                Ok(Some(piece))
            }
        }
    }
}

impl Iterator for Pieces {
    type Item = io::Result<Vec<u8>>;

    fn next(&mut self) -> Option<Self::Item> {
        let piece = self.piece().transpose();
        if matches!(piece, Some(Err(_))) {
            self.digest = None;
        }
        piece
    }
}

/// Reads a backup to its end and writes the store that it holds to `store`, which is to be believed
/// only where this succeeds.
///
/// # Errors
/// When it is none, was written by a newer version, is damaged, or cannot be read or written.
pub(crate) fn read(from: impl Read, store: &mut impl Write) -> Result<Header, BackupError> {
    let mut from = Hashing { from, digest: Context::new(&SHA256) };
    let mut magic = [0; MAGIC.len() + 1];
    from.fill(&mut magic).map_err(|error| match error {
        error @ BackupError::Read(_) => error,
        BackupError::Write(_)
        | BackupError::Foreign
        | BackupError::Newer(_)
        | BackupError::Damaged => BackupError::Foreign,
    })?;
    match magic.split_last() {
        Some((format, magic)) if magic == MAGIC => match *format {
            1..=FORMAT => {}
            format => return Err(BackupError::Newer(format)),
        },
        Some(_) | None => return Err(BackupError::Foreign),
    }
    let mut length = [0; 4];
    from.fill(&mut length)?;
    let length = u32::from_be_bytes(length);
    if length > HEADER_BYTES_MAX {
        return Err(BackupError::Damaged);
    }
    let mut header = vec![0; length as usize];
    from.fill(&mut header)?;
    let mut header: Header =
        cbor::decode(&header, header.len()).map_err(|_| BackupError::Damaged)?;
    if let Some(seed) = header.seed.take() {
        header.keys.insert("signing.key".to_owned(), ByteBuf::from(seed));
    }
    let mut left = header.store_bytes;
    let mut piece = vec![0; CHUNK_BYTES];
    while left > 0 {
        let some = usize::try_from(left).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
        let piece = &mut piece[..some];
        from.fill(piece)?;
        store.write_all(piece).map_err(BackupError::Write)?;
        left -= some as u64;
    }
    let Hashing { mut from, digest } = from;
    let mut end = Vec::new();
    let more = SHA256_OUTPUT_LEN as u64 + 1;
    from.by_ref().take(more).read_to_end(&mut end).map_err(BackupError::Read)?;
    match digest.finish().as_ref() == end {
        true => Ok(header),
        false => Err(BackupError::Damaged),
    }
}

struct Hashing<R> {
    from: R,
    digest: Context,
}

impl<R: Read> Hashing<R> {
    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), BackupError> {
        self.from.read_exact(bytes).map_err(|error| {
            let is_cut = error.kind() == io::ErrorKind::UnexpectedEof;
            if is_cut { BackupError::Damaged } else { BackupError::Read(error) }
        })?;
        self.digest.update(bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Seek;

    use super::*;

    const STORE: &[u8] = b"rows";

    fn bytes() -> Vec<u8> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(STORE).unwrap();
        file.rewind().unwrap();
        let keys = [("signing.key".to_owned(), ByteBuf::from([7; 32]))].into();
        let counts = Header::new(1, keys, STORE.len() as u64);
        let header = Header { devices: 2, deployments: 3, events: 4, ..counts };
        Pieces::new(&header, file).map(Result::unwrap).collect::<Vec<_>>().concat()
    }

    /// What format 1 wrote.
    const FORMAT_1: &str = "6c696d706574206261636b75700a010000006aa7676d6164655f6d73016776657273696f6e65302e312e306473656564982007070707070707070707070707070707070707070707070707070707070707076764657669636573026b6465706c6f796d656e747303666576656e7473046b73746f72655f627974657304726f7773a8c0a0faf19466c120df7ebb9f627949863818ce6fd4ef003ba2f6210563c83f";

    #[test]
    fn a_backup_of_format_1_is_read() {
        let old: Vec<u8> = (0..FORMAT_1.len() / 2)
            .map(|at| u8::from_str_radix(&FORMAT_1[2 * at..2 * at + 2], 16).unwrap())
            .collect();
        let header = read(old.as_slice(), &mut io::sink()).unwrap();
        assert_eq!(header.keys["signing.key"], [7; 32]);
    }

    #[test]
    fn a_backup_keeps_its_bytes() {
        let hex: String = bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        expect_test::expect!["6c696d706574206261636b75700a0200000077a7676d6164655f6d73016776657273696f6e65302e312e30646b657973a16b7369676e696e672e6b6579582007070707070707070707070707070707070707070707070707070707070707076764657669636573026b6465706c6f796d656e747303666576656e7473046b73746f72655f627974657304726f7773c02ddcfedf8482be43009b16697e9773a5d75e2603d1233c28140945ea23c28b"].assert_eq(&hex);
        let mut store = Vec::new();
        let header = read(bytes().as_slice(), &mut store).unwrap();
        assert_eq!((header.devices, header.events, store.as_slice()), (2, 4, STORE));
    }

    #[test]
    fn no_other_byte_and_no_part_is_accepted() {
        let good = bytes();
        for at in 0..good.len() {
            assert!(read(&good[..at], &mut io::sink()).is_err(), "cut at {at}");
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(read(bad.as_slice(), &mut io::sink()).is_err(), "flipped at {at}");
        }
        let longer = [good.as_slice(), b"x"].concat();
        assert!(matches!(read(longer.as_slice(), &mut io::sink()), Err(BackupError::Damaged)));
        let mut newer = good;
        newer[MAGIC.len()] = FORMAT + 1;
        assert!(matches!(read(newer.as_slice(), &mut io::sink()), Err(BackupError::Newer(3))));
        assert!(matches!(read(&b"no"[..], &mut io::sink()), Err(BackupError::Foreign)));
    }
}

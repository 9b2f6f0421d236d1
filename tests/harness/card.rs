//! A memory card that remembers every write, so that the power can be cut at any of them afterwards.
//!
//! An ext4 on a loop device whose backing file is served by this process (over FUSE): each write
//! and each flush passes here, in order. What a power cut at some moment leaves is then exactly
//! known: all that was written before the last flush, and of what was written since, whatever the
//! card got round to: all of it, nothing, or some sectors and not others.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use crate::{Lab, run};

mod fuse;

/// What is written whole or not at all: the sector of a card.
const SECTOR: usize = 512;

/// A card in its slot: a file system, taken away when it is dropped.
pub struct Card {
    /// Where it is mounted.
    pub path: PathBuf,
    backing: PathBuf,
    device: String,
    writes: Arc<Mutex<Writes>>,
}

/// What has come to a card, in order.
struct Writes {
    /// Its content as it was made.
    made: Vec<u8>,
    /// Its content.
    content: Vec<u8>,
    log: Vec<Write>,
}

enum Write {
    Data {
        offset: usize,
        bytes: Vec<u8>,
    },
    /// The card answers a flush when all before it is there to stay.
    Flush,
}

/// What becomes of writes that no flush has followed when the power goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unflushed {
    /// All are there: the card has no cache.
    Kept,
    /// None is there.
    Lost,
    /// Each sector is there or is not, as this seed decides.
    Torn(u64),
}

impl Card {
    /// A fresh one of this size, mounted at `path`.
    pub fn insert(lab: &Lab, path: &Path, bytes: usize) -> Self {
        let made = lab.file(&lab.name("card"), vec![0; bytes]);
        let shown = made.display().to_string();
        // A journal and blocks as small as they come: many writes, each a moment to be cut at.
        run("mkfs.ext4", &["-q", "-b", "1024", "-J", "size=1", "-m", "0", &shown]);
        let made = std::fs::read(&made).unwrap();
        let content = made.clone();
        let writes = Arc::new(Mutex::new(Writes { made, content, log: Vec::new() }));
        let backing = lab.file(&lab.name("slot"), "");
        fuse::serve(&backing, Arc::clone(&writes));
        let device = run("losetup", &["-f", "--show", &backing.display().to_string()]);
        let device = device.trim().to_owned();
        let card = Self { path: path.to_owned(), backing, device, writes };
        std::fs::create_dir_all(path).unwrap();
        run("mount", &[&card.device, &path.display().to_string()]);
        card
    }

    /// Writes and flushes so far: a moment.
    pub fn moment(&self) -> usize {
        self.writes.lock().unwrap().log.len()
    }

    /// What is on the card when the power goes at this moment.
    pub fn cut(&self, moment: usize, unflushed: Unflushed) -> Vec<u8> {
        let writes = self.writes.lock().unwrap();
        let before = &writes.log[..moment];
        let flush = before.iter().rposition(|write| matches!(write, Write::Flush));
        let flushed = flush.map_or(0, |at| at + 1);
        let mut content = writes.made.clone();
        let mut chance = Chance(match unflushed {
            Unflushed::Torn(seed) => seed,
            Unflushed::Kept | Unflushed::Lost => 0,
        });
        for (at, write) in before.iter().enumerate() {
            let Write::Data { offset, bytes } = write else { continue };
            for (sector, bytes) in bytes.chunks(SECTOR).enumerate() {
                let kept = match unflushed {
                    _ if at < flushed => true,
                    Unflushed::Kept => true,
                    Unflushed::Lost => false,
                    Unflushed::Torn(_) => chance.below(2) == 0,
                };
                if kept {
                    let from = offset + sector * SECTOR;
                    content[from..from + bytes.len()].copy_from_slice(bytes);
                }
            }
        }
        content
    }
}

impl Drop for Card {
    fn drop(&mut self) {
        // Each may have gone already: what counts is that none stays.
        let umount = |path| Command::new("umount").arg("-l").arg(path).status();
        let _ = umount(&self.path);
        // Once: it may be somebody else's next.
        let _ = Command::new("losetup").arg("-d").arg(&self.device).output();
        let _ = umount(&self.backing);
    }
}

/// Numbers that a seed decides (splitmix64).
#[derive(Debug, Clone)]
pub struct Chance(pub u64);

impl Chance {
    /// A seed that the clock gives, or that `LIMPET_SEED` names; it is printed.
    pub fn begin(what: &str) -> Self {
        let given = std::env::var("LIMPET_SEED").ok().and_then(|seed| seed.parse().ok());
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let seed = given.unwrap_or_else(|| u64::from(now.unwrap().subsec_nanos()));
        println!("{what}: LIMPET_SEED={seed}");
        Self(seed)
    }

    /// The next number.
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// The next number, below this one.
    pub fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.roll() % bound.max(1) as u64).unwrap()
    }
}

//! `limpet flash write`: an image onto a card, and read back from it.
//!
//! The disk is opened for this program alone, which the kernel grants only where nothing else uses
//! it, whatever mount namespace that is in; and past its cache, so that what is read is what the card
//! has.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::Path;
use std::process::{Child, Stdio};

use anyhow::Context;
use ring::digest::{Digest, SHA256, digest};
use rustix::fs::{Mode, OFlags};

use super::disk::{Disk, Limits};
use super::partitions;
use super::tool::{self, XZ};

/// What is written, and read, at a time.
const CHUNK_BYTES: usize = 4 << 20;
/// What disks count in at most: direct access wants memory and sizes in these.
const BLOCK_BYTES: usize = 4096;

/// An image, and how large it is unpacked.
pub struct Image<'a> {
    path: &'a Path,
    /// Unpacked.
    pub bytes: u64,
    packed: bool,
}

/// How far it has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Bytes written.
    Written(u64),
    /// Bytes read back, and found right.
    Verified(u64),
}

impl<'a> Image<'a> {
    /// Looks at an image, compressed with xz where it is called so.
    ///
    /// # Errors
    /// When it is no image of a disk, or is cut short.
    pub fn open(path: &'a Path) -> anyhow::Result<Self> {
        let shown = path.display();
        let cannot = || format!("cannot read {shown}");
        // Of a pipe nobody knows how long it is, and it cannot be read twice.
        anyhow::ensure!(
            path.metadata().with_context(cannot)?.is_file(),
            "{shown} is no file: copy it into one"
        );
        let mut file = File::open(path).with_context(cannot)?;
        let packed = path.extension().is_some_and(|extension| extension == "xz");
        let bytes = if packed {
            let listed = tool::run(XZ.call()?.args(["--robot", "--list", "--"]).arg(path));
            let listed =
                listed.with_context(|| format!("{shown} is damaged: make or copy it again"))?;
            // totals STREAMS BLOCKS PACKED UNPACKED ...
            let totals = listed.lines().find_map(|line| line.strip_prefix("totals\t"));
            let unpacked = totals.and_then(|totals| totals.split('\t').nth(3)?.parse().ok());
            unpacked.with_context(|| format!("xz does not say how large {shown} is"))?
        } else {
            let bytes = file.metadata()?.len();
            let partitions = partitions::read(&mut file)
                .with_context(|| format!("{shown} is no image of a disk, or is damaged"))?;
            let ends = partitions.iter().map(|part| part.start_bytes.saturating_add(part.bytes));
            let end = ends.max();
            anyhow::ensure!(
                end.is_none_or(|end| end <= bytes),
                "{shown} is cut short: make or copy it again"
            );
            bytes
        };
        let image = Self { path, bytes, packed };
        let mut sector = [0; 512];
        let is_disk = image.read()?.content()?.read_exact(&mut sector).is_ok()
            && sector[510..] == [0x55, 0xaa];
        anyhow::ensure!(is_disk, "{shown} is no image of a disk: it has no table of partitions");
        Ok(image)
    }

    fn read(&self) -> anyhow::Result<Source> {
        let file = File::open(self.path)?;
        if !self.packed {
            return Ok(Source::Plain(file));
        }
        let mut xz = XZ.call()?;
        xz.arg("-dc").stdin(file).stdout(Stdio::piped()).stderr(Stdio::null());
        Ok(Source::Unpacked(xz.spawn().context("cannot run xz")?))
    }
}

/// An image's content.
enum Source {
    Plain(File),
    Unpacked(Child),
}

impl Source {
    fn content(&mut self) -> anyhow::Result<&mut dyn Read> {
        Ok(match self {
            Self::Plain(file) => file,
            Self::Unpacked(xz) => xz.stdout.as_mut().context("xz has no output")?,
        })
    }

    /// Whether this was all of it, and what xz has unpacked is what was packed.
    fn end(&mut self) -> anyhow::Result<()> {
        let rest = self.content()?.read(&mut [0])?;
        let is_right = match self {
            Self::Plain(_) => true,
            Self::Unpacked(xz) => xz.wait()?.success(),
        };
        anyhow::ensure!(rest == 0 && is_right, "it is damaged: make or copy it again");
        Ok(())
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        if let Self::Unpacked(xz) = self {
            // Who has read enough lets it go.
            let _ = xz.kill();
            let _ = xz.wait();
        }
    }
}

/// Writes an image over a disk, and reads it back.
///
/// # Errors
/// When the disk must not be written over, cannot be written, or does not hold what was written.
pub fn write(
    image: &Image<'_>,
    disk: &Disk,
    limits: Limits,
    tell: &dyn Fn(Step),
) -> anyhow::Result<()> {
    disk.may_be_written(image.bytes, limits)?;
    let name = disk.path.display();
    let flags = OFlags::RDWR | OFlags::EXCL | OFlags::DIRECT | OFlags::CLOEXEC;
    let opened = rustix::fs::open(&disk.path, flags, Mode::empty()).map_err(|error| match error {
        rustix::io::Errno::BUSY => anyhow::anyhow!("{name} is in use by something of this machine"),
        error => anyhow::Error::from(io::Error::from(error)).context(format!("cannot open {name}")),
    });
    let mut device = File::from(opened?);
    // Nobody takes it out any more without the writing failing; meanwhile somebody may have.
    anyhow::ensure!(
        Disk::open(&disk.path)? == *disk,
        "{name} is another disk than a moment ago: begin again"
    );
    let sums =
        put(image, (disk, &mut device), tell).with_context(|| format!("cannot write to {name}"))?;
    verify(&mut device, &sums, tell).with_context(|| format!("cannot verify {name}"))
}

/// Writes all, and gives the digest of each piece.
fn put(
    image: &Image<'_>,
    (disk, device): (&Disk, &mut File),
    tell: &dyn Fn(Step),
) -> anyhow::Result<Vec<Sum>> {
    let mut source = image.read()?;
    let (mut memory, mut written, mut sums) = (Memory::new(), 0, Vec::new());
    while written < image.bytes {
        let left = image.bytes - written;
        let length = usize::try_from(left).unwrap_or(usize::MAX).min(CHUNK_BYTES);
        // Whole blocks, which the disk may have as smaller ones at its end.
        let room = usize::try_from(disk.bytes - written).unwrap_or(usize::MAX);
        let chunk = memory.chunk(length.next_multiple_of(BLOCK_BYTES).min(room));
        chunk.fill(0);
        let read = source.content()?.read_exact(&mut chunk[..length]);
        read.with_context(|| format!("{} ends too soon", image.path.display()))?;
        device.write_all(chunk)?;
        sums.push(Sum { bytes: chunk.len(), digest: digest(&SHA256, chunk) });
        written += length as u64;
        tell(Step::Written(written));
    }
    source.end().with_context(|| image.path.display().to_string())?;
    // What a card keeps in a cache of its own is written, too.
    device.sync_all()?;
    Ok(sums)
}

/// What a piece must be.
struct Sum {
    bytes: usize,
    digest: Digest,
}

fn verify(device: &mut File, sums: &[Sum], tell: &dyn Fn(Step)) -> anyhow::Result<()> {
    device.rewind()?;
    let (mut memory, mut verified) = (Memory::new(), 0);
    for sum in sums {
        let chunk = memory.chunk(sum.bytes);
        device.read_exact(chunk)?;
        anyhow::ensure!(
            digest(&SHA256, chunk).as_ref() == sum.digest.as_ref(),
            "it does not hold what was written, from byte {verified} on: it is worn out, or has less \
             memory than it claims; use another card"
        );
        verified += sum.bytes as u64;
        tell(Step::Verified(verified));
    }
    Ok(())
}

/// Memory that begins where direct access wants it to.
struct Memory {
    bytes: Vec<u8>,
    start: usize,
}

impl Memory {
    fn new() -> Self {
        let bytes = vec![0; CHUNK_BYTES + BLOCK_BYTES];
        let start = bytes.as_ptr().align_offset(BLOCK_BYTES);
        Self { bytes, start }
    }

    fn chunk(&mut self, length: usize) -> &mut [u8] {
        &mut self.bytes[self.start..][..length]
    }
}

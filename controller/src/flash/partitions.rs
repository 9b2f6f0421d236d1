//! Partition tables: the one that images get (MBR), and those that images of others have (MBR, and
//! GPT as of UEFI's specification, 5.3).

use std::io::{self, Read, Seek, SeekFrom};

use anyhow::Context;

/// What tables count in; images have no others.
pub(crate) const SECTOR_BYTES: u64 = 512;

const MIB: u64 = 1 << 20;
/// Before the first partition.
const HEAD_BYTES: u64 = MIB;
/// Room for two kernels with what belongs to them.
pub(crate) const BOOT_BYTES: usize = 192 << 20;
/// Room for a system that has grown.
pub(crate) const SYSTEM_BYTES: u64 = 96 * MIB;

/// Types of partitions in an MBR.
const FAT32: u8 = 0x0c;
const LINUX: u8 = 0x83;
const EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];
const GPT_AHEAD: u8 = 0xee;

/// Entries of a GPT at most: 128 is what everybody makes.
const GPT_ENTRIES_MAX: u32 = 1024;

/// A part of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Partition {
    /// From 1.
    pub(crate) number: u32,
    /// Where it begins.
    pub(crate) start_bytes: u64,
    /// How long it is.
    pub(crate) bytes: u64,
}

/// The partitions of an image: boot, system A, system B, and data of this size.
pub(crate) fn layout(data_bytes: u64) -> [Partition; 4] {
    let mut start_bytes = HEAD_BYTES;
    let sizes = [BOOT_BYTES as u64, SYSTEM_BYTES, SYSTEM_BYTES, data_bytes.next_multiple_of(MIB)];
    let mut number = 0;
    sizes.map(|bytes| {
        let partition = Partition { number: number + 1, start_bytes, bytes };
        number += 1;
        start_bytes += bytes;
        partition
    })
}

/// The boot sector of an image with these partitions, of which the first has FAT.
///
/// # Errors
/// When one ends beyond 2 TiB.
pub(crate) fn boot_sector(signature: u32, all: &[Partition; 4]) -> anyhow::Result<[u8; 512]> {
    let mut sector = [0; 512];
    sector[440..444].copy_from_slice(&signature.to_le_bytes());
    for (index, partition) in all.iter().enumerate() {
        let count =
            |bytes: u64| u32::try_from(bytes / SECTOR_BYTES).context("an image has 2 TiB at most");
        let entry = &mut sector[446 + 16 * index..][..16];
        let (bootable, kind) = if index == 0 { (0x80, FAT32) } else { (0, LINUX) };
        // Cylinders and heads: "beyond what can be said so".
        entry[..8].copy_from_slice(&[bootable, 0xfe, 0xff, 0xff, kind, 0xfe, 0xff, 0xff]);
        entry[8..12].copy_from_slice(&count(partition.start_bytes)?.to_le_bytes());
        entry[12..].copy_from_slice(&count(partition.bytes)?.to_le_bytes());
    }
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    Ok(sector)
}

/// The partitions of a disk or an image.
///
/// # Errors
/// When it has no table, or cannot be read.
pub(crate) fn read<D: Read + Seek>(disk: &mut D) -> anyhow::Result<Vec<Partition>> {
    let sector = sector(disk, 0).context("cannot read its first sector")?;
    anyhow::ensure!(sector[510..] == [0x55, 0xaa], "it has no table of partitions");
    let entries = (1..).zip(sector[446..510].chunks_exact(16));
    let entries: Vec<_> = entries.filter(|(_, entry)| entry[4] != 0).collect();
    if entries.iter().any(|(_, entry)| entry[4] == GPT_AHEAD) {
        return read_gpt(disk).context("cannot read its table of partitions (GPT)");
    }
    let used = entries.into_iter().filter(|(_, entry)| !EXTENDED.contains(&entry[4]));
    let partitions = used.map(|(number, entry)| Partition {
        number,
        start_bytes: u64::from(u32_at(entry, 8)) * SECTOR_BYTES,
        bytes: u64::from(u32_at(entry, 12)) * SECTOR_BYTES,
    });
    Ok(partitions.collect())
}

fn read_gpt<D: Read + Seek>(disk: &mut D) -> anyhow::Result<Vec<Partition>> {
    let header = sector(disk, 1)?;
    anyhow::ensure!(header.starts_with(b"EFI PART"), "its header is damaged");
    let (count, size) = (u32_at(&header, 80), u32_at(&header, 84));
    anyhow::ensure!(count <= GPT_ENTRIES_MAX && size == 128, "it has an odd form");
    let start = u64_at(&header, 72).checked_mul(SECTOR_BYTES).context("it has an odd form")?;
    disk.seek(SeekFrom::Start(start))?;
    let mut partitions = Vec::new();
    for number in 1..=count {
        let mut entry = [0; 128];
        disk.read_exact(&mut entry)?;
        let (first, last) = (u64_at(&entry, 32), u64_at(&entry, 40));
        let place = || {
            let sectors = last.checked_sub(first)?.checked_add(1)?;
            let bytes = sectors.checked_mul(SECTOR_BYTES)?;
            Some(Partition { number, start_bytes: first.checked_mul(SECTOR_BYTES)?, bytes })
        };
        if entry[..16] != [0; 16] {
            partitions.push(place().context("an entry of it is damaged")?);
        }
    }
    Ok(partitions)
}

fn sector<D: Read + Seek>(disk: &mut D, number: u64) -> io::Result<[u8; 512]> {
    let mut sector = [0; 512];
    disk.seek(SeekFrom::Start(number * SECTOR_BYTES))?;
    disk.read_exact(&mut sector)?;
    Ok(sector)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut number = [0; 4];
    number.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(number)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let layout = layout(5_000_000);
        assert_eq!(layout[3], Partition { number: 4, start_bytes: 385 * MIB, bytes: 5 * MIB });
        let sector = boot_sector(0x1234_5678, &layout).unwrap();
        assert_eq!(sector[440..444], [0x78, 0x56, 0x34, 0x12]);
        assert_eq!(read(&mut Cursor::new(sector)).unwrap(), layout);
        assert!(boot_sector(1, &super::layout(1 << 42)).is_err());
    }

    #[test]
    fn what_is_no_table_is_refused() {
        assert!(read(&mut Cursor::new(vec![0; 512])).is_err());
        assert!(read(&mut Cursor::new(vec![0; 5])).is_err());
        let mut gpt = vec![0; 4096];
        gpt[510..512].copy_from_slice(&[0x55, 0xaa]);
        gpt[450] = GPT_AHEAD;
        let odd = read(&mut Cursor::new(&gpt)).unwrap_err();
        assert!(format!("{odd:#}").ends_with("its header is damaged"));
        // An entry that ends before it begins.
        gpt[512..520].copy_from_slice(b"EFI PART");
        gpt[512 + 72] = 2;
        gpt[512 + 80] = 1;
        gpt[512 + 84] = 128;
        gpt[1024] = 1;
        gpt[1024 + 32] = 9;
        assert!(read(&mut Cursor::new(&gpt)).is_err());
        gpt[1024 + 40] = 9;
        let found = read(&mut Cursor::new(&gpt)).unwrap();
        assert_eq!(found, [Partition { number: 1, start_bytes: 9 * 512, bytes: 512 }]);
    }
}

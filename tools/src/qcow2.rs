//! Writes a qcow2 image as a stream: every cluster's place is known before the first byte, so no seek is needed.
//!
//! ```text
//! cluster 0      header (version 3, 104 bytes; the rest zero)
//! then           refcount table, refcount blocks (16 bit), L1 table, L2 tables (those that have an entry)
//! then           data clusters in the order of the guest's addresses
//! ```
//!
//! Written from QEMU's description of the format (docs/interop/qcow2.rst). Clusters are 64 KiB; clusters without an
//! entry read as zeroes, since there is no backing file.

use std::io::{self, Write};

/// Size of a cluster.
pub const CLUSTER: u64 = 64 << 10;
const ENTRIES: u64 = CLUSTER / 8;
const REFS_PER_BLOCK: u64 = CLUSTER / 2;
const COPIED: u64 = 1 << 63;

/// Which clusters are there, and so where everything lies.
#[derive(Debug)]
pub struct Layout {
    size: u64,
    /// Guest clusters with data: (first, count), in order, apart.
    runs: Vec<(u64, u64)>,
    l1_entries: u64,
    table: u64,
    blocks: u64,
    l1: u64,
    l2_tables: Vec<u64>,
    total: u64,
}

impl Layout {
    /// The layout for a disk of `size` bytes with data in `ranges` (offset, length), which are in order.
    #[must_use]
    pub fn new(size: u64, ranges: &[(u64, u64)]) -> Layout {
        let runs = clusters(ranges);
        let l1_entries = size.div_ceil(CLUSTER * ENTRIES).max(1);
        let mut l2_tables: Vec<u64> =
            runs.iter().flat_map(|(first, count)| first / ENTRIES..=(first + count - 1) / ENTRIES).collect();
        l2_tables.dedup();
        let l1 = (l1_entries * 8).div_ceil(CLUSTER);
        let rest = 1 + l1 + l2_tables.len() as u64 + runs.iter().map(|(_, count)| count).sum::<u64>();
        // Refcount blocks count themselves and their table: raise until it fits.
        let (mut blocks, mut table) = (1, 1);
        while blocks * REFS_PER_BLOCK < rest + blocks + table {
            blocks += 1;
            table = (blocks * 8).div_ceil(CLUSTER);
        }
        let total = rest + blocks + table;
        Layout { size, runs, l1_entries, table, blocks, l1, l2_tables, total }
    }

    /// Bytes of the file.
    #[must_use]
    pub const fn file_size(&self) -> u64 {
        self.total * CLUSTER
    }

    /// The guest ranges (offset, length) whose bytes follow the metadata, in order. The last one may reach past
    /// the end of the disk: what lies there is zero.
    pub fn data(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.runs.iter().map(|(first, count)| (first * CLUSTER, count * CLUSTER))
    }

    /// Writes everything that comes before the data.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write_metadata(&self, out: &mut dyn Write) -> io::Result<()> {
        let table_at = 1;
        let blocks_at = table_at + self.table;
        let l1_at = blocks_at + self.blocks;
        let l2_at = l1_at + self.l1;
        let data_at = l2_at + self.l2_tables.len() as u64;
        self.write_header(out, table_at, l1_at)?;
        write_words(out, (0..self.blocks).map(|i| (blocks_at + i) * CLUSTER), self.table)?;
        for block in 0..self.blocks {
            let used = self.total.saturating_sub(block * REFS_PER_BLOCK).min(REFS_PER_BLOCK);
            let counts: Vec<u8> = (0..REFS_PER_BLOCK).flat_map(|i| u16::from(i < used).to_be_bytes()).collect();
            out.write_all(&counts)?;
        }
        let mut tables = self.l2_tables.iter().enumerate().peekable();
        let l1 = (0..self.l1_entries).map(|i| match tables.next_if(|(_, at)| **at == i) {
            Some((n, _)) => ((l2_at + n as u64) * CLUSTER) | COPIED,
            None => 0,
        });
        write_words(out, l1.collect::<Vec<_>>().into_iter(), self.l1)?;
        self.write_l2(out, data_at)
    }

    fn write_header(&self, out: &mut dyn Write, table_at: u64, l1_at: u64) -> io::Result<()> {
        let small = |n: u64| u32::try_from(n).map_err(|_| io::Error::other("the disk is too large for qcow2"));
        let mut h = Vec::with_capacity(104);
        h.extend_from_slice(b"QFI\xfb");
        h.extend_from_slice(&3u32.to_be_bytes());
        h.extend_from_slice(&[0; 12]); // no backing file
        h.extend_from_slice(&CLUSTER.trailing_zeros().to_be_bytes());
        h.extend_from_slice(&self.size.to_be_bytes());
        h.extend_from_slice(&0u32.to_be_bytes()); // no encryption
        h.extend_from_slice(&small(self.l1_entries)?.to_be_bytes());
        h.extend_from_slice(&(l1_at * CLUSTER).to_be_bytes());
        h.extend_from_slice(&(table_at * CLUSTER).to_be_bytes());
        h.extend_from_slice(&small(self.table)?.to_be_bytes());
        h.extend_from_slice(&[0; 12]); // no snapshots
        h.extend_from_slice(&[0; 24]); // no incompatible, compatible, autoclear features
        h.extend_from_slice(&4u32.to_be_bytes()); // refcounts of 2^4 bits
        h.extend_from_slice(&104u32.to_be_bytes());
        h.resize(usize::try_from(CLUSTER).unwrap_or(1 << 16), 0);
        out.write_all(&h)
    }

    fn write_l2(&self, out: &mut dyn Write, data_at: u64) -> io::Result<()> {
        let mut guest = self.runs.iter().flat_map(|(first, count)| *first..first + count).peekable();
        let mut host = data_at;
        for table in &self.l2_tables {
            let entries = (0..ENTRIES).map(|i| match guest.next_if_eq(&(table * ENTRIES + i)) {
                Some(_) => {
                    host += 1;
                    ((host - 1) * CLUSTER) | COPIED
                }
                None => 0,
            });
            write_words(out, entries.collect::<Vec<_>>().into_iter(), 1)?;
        }
        Ok(())
    }
}

/// Byte ranges as runs of clusters, neighbours and overlaps joined.
fn clusters(ranges: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for (offset, len) in ranges.iter().filter(|(_, len)| *len > 0) {
        let (first, end) = (offset / CLUSTER, (offset + len).div_ceil(CLUSTER));
        match runs.last_mut() {
            Some((start, count)) if *start + *count >= first => *count = (*count).max(end - *start),
            _ => runs.push((first, end - first)),
        }
    }
    runs
}

fn write_words(out: &mut dyn Write, words: impl Iterator<Item = u64>, clusters: u64) -> io::Result<()> {
    let mut bytes: Vec<u8> = words.flat_map(u64::to_be_bytes).collect();
    bytes.resize(usize::try_from(clusters * CLUSTER).unwrap_or(bytes.len()), 0);
    out.write_all(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// Makes an image by our writer and lets QEMU judge it and read it back.
    fn round_trip(size: u64, ranges: &[(u64, u64)]) {
        let dir = tempfile::tempdir().unwrap();
        let (raw, ours) = (dir.path().join("raw"), dir.path().join("ours.qcow2"));
        let mut disk = vec![0u8; usize::try_from(size).unwrap()];
        for (offset, len) in ranges {
            let (from, to) = (usize::try_from(*offset).unwrap(), usize::try_from(offset + len).unwrap());
            disk[from..to].iter_mut().enumerate().for_each(|(i, b)| *b = u8::try_from(i % 255 + 1).unwrap());
        }
        std::fs::write(&raw, &disk).unwrap();
        let layout = Layout::new(size, ranges);
        let mut out = Vec::new();
        layout.write_metadata(&mut out).unwrap();
        disk.resize(disk.len().next_multiple_of(1 << 16), 0);
        for (offset, len) in layout.data() {
            out.extend_from_slice(&disk[usize::try_from(offset).unwrap()..usize::try_from(offset + len).unwrap()]);
        }
        assert_eq!(out.len() as u64, layout.file_size());
        std::fs::write(&ours, &out).unwrap();
        for args in [
            vec!["check", "-q", "-f", "qcow2", ours.to_str().unwrap()],
            vec!["compare", "-q", "-f", "raw", "-F", "qcow2", raw.to_str().unwrap(), ours.to_str().unwrap()],
        ] {
            let run = Command::new("qemu-img").args(&args).output().unwrap();
            assert!(run.status.success(), "{args:?}: {run:?}");
        }
    }

    #[test]
    fn qemu_accepts_and_reads_what_we_write() {
        const MIB: u64 = 1 << 20;
        round_trip(4 * MIB, &[]);
        round_trip(512, &[(0, 512)]);
        round_trip(10 * MIB + 512, &[(0, 4096), (70_000, 10), (MIB, 3 * MIB), (10 * MIB, 512)]);
        round_trip(1200 * MIB, &[(511 * MIB, 2 * MIB), (1199 * MIB, 4096)]);
    }

    #[test]
    fn tables_grow_with_the_disk() {
        let big = Layout::new(8 << 40, &[(0, 4 << 40)]);
        assert!(big.blocks * REFS_PER_BLOCK >= big.total);
        assert_eq!(big.total, 1 + big.table + big.blocks + big.l1 + big.l2_tables.len() as u64 + (4 << 40) / CLUSTER);
    }
}

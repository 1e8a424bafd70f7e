//! Reads a ring's file from outside, changing nothing: for `check` and `dump`.

use crate::problem::Problem;
use afterimage_format::record::{HEADER_LEN, Kind, Record};
use afterimage_format::ring::{END_MASK, FIXED_LEN, PAGE, RingHeader, SLOT, Tail, word};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::xxh3_64;

const PAGE_LEN: usize = 4096;

/// Names of the volumes whose state is in an agent's folder, sorted.
///
/// # Errors
/// If the folder cannot be read; one that is not there has no volumes.
pub fn volumes(agent: &Path) -> Result<Vec<String>, Problem> {
    if !agent.exists() {
        return Ok(Vec::new());
    }
    let entries = std::fs::read_dir(agent).map_err(|e| Problem::file(agent, &e))?;
    let with_ring = entries.filter_map(|e| e.ok()).filter(|e| e.path().join("ring").exists());
    let mut names: Vec<String> = with_ring.filter_map(|e| e.file_name().into_string().ok()).collect();
    names.sort();
    Ok(names)
}

/// An open ring file.
#[derive(Debug)]
pub struct RingFile {
    file: File,
    path: PathBuf,
    /// What never changes.
    pub header: RingHeader,
    /// Where the records begin.
    pub tail: Tail,
    /// Whether the last stop was in order.
    pub clean: bool,
    /// Since when the ring is closed, in nanoseconds since 1970; 0 while it is open.
    pub closed: u64,
}

impl RingFile {
    /// Opens and checks the header page.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn open(path: &Path) -> Result<RingFile, String> {
        let file = File::open(path).map_err(|e| e.to_string())?;
        let mut page = [0; PAGE_LEN];
        file.read_exact_at(&mut page, 0).map_err(|e| e.to_string())?;
        let (fixed, _) = page.split_first_chunk::<FIXED_LEN>().ok_or("too short")?;
        let header = RingHeader::decode(fixed).map_err(|e| e.to_string())?;
        let words: Vec<u64> = page.as_chunks::<8>().0.iter().map(|w| u64::from_le_bytes(*w)).collect();
        let turn = words[word::TURN];
        let at = word::TAILS[usize::from(turn % 2 == 1)];
        let raw = <[u64; 6]>::try_from(&words[at..at + 6]).map_err(|e| e.to_string())?;
        let tail = Tail::decode(raw, turn, &header.ring).map_err(|e| e.to_string())?;
        let len = file.metadata().map_err(|e| e.to_string())?.len();
        if len != header.file_len() {
            return Err(format!("the file has {len} bytes, its header says {}", header.file_len()));
        }
        let (clean, closed) = (words[word::CLEAN] != 0, words[word::CLOSED]);
        Ok(RingFile { file, path: path.to_owned(), header, tail, clean, closed })
    }

    /// The records from the first one held up to the first slot that holds no sound record of its own seq.
    #[must_use]
    pub fn records(&self) -> Vec<Record> {
        let mut out = Vec::new();
        for seq in self.tail.seq..self.tail.seq.saturating_add(self.header.slots) {
            let mut slot = [0; HEADER_LEN];
            let at = PAGE + (seq % self.header.slots) * SLOT;
            let found = self.file.read_exact_at(&mut slot, at).ok().and_then(|()| Record::decode(&slot).ok());
            let Some(record) = found.filter(|r| r.seq == seq) else { break };
            out.push(record);
        }
        out
    }

    /// Checks a record's payload.
    ///
    /// # Errors
    /// What is wrong, with the record's seq.
    pub fn check_payload(&self, record: &Record) -> Result<(), String> {
        if !matches!(record.kind, Kind::Write | Kind::Point) {
            return Ok(());
        }
        let bad = |what: &str| format!("the record of write @{} {what}", record.seq);
        let len = record.payload_len();
        let pages = (len as u64).div_ceil(PAGE);
        let start =
            (record.place & END_MASK).checked_sub(pages).ok_or_else(|| bad("has no place"))? % self.header.pages;
        if start + pages > self.header.pages {
            return Err(bad("reaches past the data area"));
        }
        let mut payload = vec![0; len];
        let at = self.header.data_at() + start * PAGE;
        self.file.read_exact_at(&mut payload, at).map_err(|e| format!("{}: {e}", self.path.display()))?;
        if xxh3_64(&payload) == record.payload_hash {
            Ok(())
        } else {
            Err(bad("has a payload that is not what was written"))
        }
    }
}

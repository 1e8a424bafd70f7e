//! What many seeds gave, in a file to which several runs add: a line for each count, the number first.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

/// The counts of a file and of this run together.
#[derive(Debug)]
pub struct Sums {
    path: Option<PathBuf>,
    before: BTreeMap<String, u64>,
}

fn parse(text: &str) -> BTreeMap<String, u64> {
    let counts = text.lines().filter_map(|l| l.trim().split_once(' '));
    counts.filter_map(|(n, what)| Some((what.to_owned(), n.parse().ok()?))).collect()
}

impl Sums {
    /// With what the file holds already, if there is one.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn new(path: Option<&Path>) -> io::Result<Sums> {
        let before = match path.map(std::fs::read_to_string) {
            Some(Ok(text)) => parse(&text),
            Some(Err(e)) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => BTreeMap::new(),
        };
        Ok(Sums { path: path.map(Path::to_path_buf), before })
    }

    /// Writes the file anew: what was there, and what this run has counted so far.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, seeds: u64, failed: u64, counts: &BTreeMap<String, u64>) -> io::Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        let mut sums = self.before.clone();
        let own = [("seeds".to_owned(), seeds), ("failed".to_owned(), failed)];
        for (what, n) in own.into_iter().chain(counts.iter().map(|(w, n)| (w.clone(), *n))) {
            *sums.entry(what).or_default() += n;
        }
        let text: String = sums.iter().map(|(what, n)| format!("{n:>12} {what}\n")).collect();
        let new = path.with_extension("new");
        std::fs::write(&new, text)?;
        std::fs::rename(&new, path)
    }
}

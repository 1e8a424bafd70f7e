//! Puts the page cache into a known state, and reads a process's CPU time.

use afterimage_tests::tool::tool;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use std::fs::File;
use std::path::Path;

/// Writes a file back and drops it from the page cache. Returns the bytes that stayed cached nevertheless.
///
/// # Panics
/// If the file cannot be synced.
pub fn make_cold(path: &Path) -> u64 {
    let file = File::open(path).unwrap_or_else(|e| panic!("open {}: {e}", path.display()));
    file.sync_all().expect("write the image back");
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).expect("drop the image from the cache");
    let cached = tool("fincore").args(["--bytes", "--noheadings", "--output", "RES"]).arg(path).run_any().stdout;
    cached.trim().parse().unwrap_or(0)
}

/// Writes back everything that the machine holds, so that one run does not pay for the last one.
pub fn write_all_back() {
    nix::unistd::sync();
}

/// The CPU time of a process, its threads and its ended children so far, in microseconds, as the kernel counts it (in
/// 10 ms steps).
#[must_use]
pub fn cpu_microseconds(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name, in parentheses, may hold anything; utime, stime, cutime and cstime are the 12th to 15th behind it.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: u64 = fields.iter().skip(11).take(4).filter_map(|f| f.parse::<u64>().ok()).sum();
    ticks * 10_000
}

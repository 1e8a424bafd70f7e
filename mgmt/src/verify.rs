//! What the control socket says of a verification: a live comparison of disk and newest history.

use serde::{Deserialize, Serialize};

/// What is to be verified.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct VerifyOptions {
    /// First byte and length; the whole disk if missing.
    #[serde(default)]
    pub range: Option<(u64, u64)>,
    /// Has what differs copied to the appliance.
    #[serde(default)]
    pub repair: bool,
    /// Bytes a second, at most; 0 gives way to the guest and is otherwise as fast as can be.
    #[serde(default)]
    pub rate: u64,
}

/// How far it is: a line with `more`, at least every few seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyProgress {
    /// Bytes done.
    pub done: u64,
    /// Bytes in all.
    pub total: u64,
    /// Bytes that differ, so far.
    pub differing: u64,
}

/// A range of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyRange {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

/// What it found: the last line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VerifyReport {
    /// Name of the volume.
    pub volume: String,
    /// Whether every byte was compared and is equal.
    pub equal: bool,
    /// The newest write that was compared with.
    pub seq: u64,
    /// Bytes that were to be compared.
    pub total_bytes: u64,
    /// Bytes that are equal.
    pub equal_bytes: u64,
    /// Bytes that differ.
    pub differing_bytes: u64,
    /// Bytes that could not be compared, because the appliance cannot read or does not keep its copy.
    pub unknown_bytes: u64,
    /// Where they differ; the first 10,000 ranges.
    pub differing: Vec<VerifyRange>,
    /// What could not be compared; the first 10,000 ranges.
    pub unknown: Vec<VerifyRange>,
    /// A gap has begun, and what differs is copied to the appliance.
    pub repairing: bool,
    /// How long it took.
    pub seconds: f64,
}

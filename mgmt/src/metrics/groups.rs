//! Metrics of groups: what became of barriers since mgmt started, and how long they held writes.

use super::{escaped, head};
use crate::catalogue::CatalogueError;
use crate::groups::PointState;
use crate::office::Office;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Upper bounds of the histogram of holds, in microseconds, with how they are written in seconds.
const BOUNDS: [(u64, &str); 11] = [
    (500, "0.0005"),
    (1_000, "0.001"),
    (2_000, "0.002"),
    (5_000, "0.005"),
    (10_000, "0.01"),
    (20_000, "0.02"),
    (50_000, "0.05"),
    (100_000, "0.1"),
    (200_000, "0.2"),
    (500_000, "0.5"),
    (1_000_000, "1"),
];

/// Name, type, help.
const OWN: [(&str, &str, &str); 5] = [
    ("group_points_total", "counter", "Points of a group since mgmt started, by what became of them"),
    ("group_newest_point_seconds", "gauge", "When the newest point of a group that can be restored was made"),
    ("group_interval_seconds", "gauge", "How often a group wants points; 0: on demand only"),
    ("group_members", "gauge", "Machines of a group"),
    ("group_hold_seconds", "histogram", "How long writes were held for a point"),
];

/// Names of all of them, with those of the histogram's parts.
pub(super) fn families() -> Vec<String> {
    let parts = ["bucket", "sum", "count"].map(|part| format!("group_hold_seconds_{part}"));
    OWN.iter().map(|(name, ..)| (*name).to_owned()).chain(parts).collect()
}

#[derive(Debug, Default, Clone)]
struct Counts {
    complete: u64,
    partial: u64,
    failed: u64,
    holds: [u64; BOUNDS.len()],
    held: u64,
    held_us: u64,
}

/// What is counted, by the name of the group.
#[derive(Debug, Default)]
pub struct Tally(Mutex<BTreeMap<String, Counts>>);

impl Tally {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Counts>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A barrier has held writes for so long.
    pub fn held(&self, group: &str, us: u64) {
        let mut all = self.lock();
        let counts = all.entry(group.to_owned()).or_default();
        for (bucket, (bound, _)) in counts.holds.iter_mut().zip(BOUNDS) {
            *bucket += u64::from(us <= bound);
        }
        (counts.held, counts.held_us) = (counts.held + 1, counts.held_us.saturating_add(us));
    }

    /// This became of a point.
    pub fn ended(&self, group: &str, state: PointState) {
        let mut all = self.lock();
        let counts = all.entry(group.to_owned()).or_default();
        match state {
            PointState::Complete => counts.complete += 1,
            PointState::Partial => counts.partial += 1,
            PointState::Failed => counts.failed += 1,
            PointState::Settling | PointState::Expired => {}
        }
    }
}

/// Adds them.
pub(super) fn put(out: &mut String, office: &Office) -> Result<(), CatalogueError> {
    let (groups, tally) = (office.catalogue.groups()?, office.tally.lock().clone());
    for (name, kind, help) in OWN {
        head(out, name, kind, help);
        for group in &groups {
            let (of, counts) = (escaped(&group.name), tally.get(&group.name).cloned().unwrap_or_default());
            let value = match name {
                "group_points_total" => {
                    for (word, n) in
                        [("complete", counts.complete), ("partial", counts.partial), ("failed", counts.failed)]
                    {
                        let _ = writeln!(out, "afterimage_{name}{{group=\"{of}\",state=\"{word}\"}} {n}");
                    }
                    continue;
                }
                "group_hold_seconds" => {
                    histogram(out, &of, &counts);
                    continue;
                }
                "group_newest_point_seconds" => match office.catalogue.newest_point(group.id)? {
                    Some(nanos) => nanos / 1_000_000_000,
                    None => continue,
                },
                "group_interval_seconds" => group.every_seconds,
                _ => u64::try_from(group.members.len()).unwrap_or(u64::MAX),
            };
            let _ = writeln!(out, "afterimage_{name}{{group=\"{of}\"}} {value}");
        }
    }
    Ok(())
}

fn histogram(out: &mut String, of: &str, counts: &Counts) {
    let name = "afterimage_group_hold_seconds";
    for (n, (_, bound)) in counts.holds.iter().zip(BOUNDS) {
        let _ = writeln!(out, "{name}_bucket{{group=\"{of}\",le=\"{bound}\"}} {n}");
    }
    let _ = writeln!(out, "{name}_bucket{{group=\"{of}\",le=\"+Inf\"}} {}", counts.held);
    let (whole, part) = (counts.held_us / 1_000_000, counts.held_us % 1_000_000);
    let _ = writeln!(out, "{name}_sum{{group=\"{of}\"}} {whole}.{part:06}");
    let _ = writeln!(out, "{name}_count{{group=\"{of}\"}} {}", counts.held);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hold_is_in_every_bucket_that_is_large_enough() {
        let tally = Tally::default();
        [400, 1_000, 30_000, 3_000_000].iter().for_each(|us| tally.held("g", *us));
        let mut out = String::new();
        histogram(&mut out, "g", &tally.lock()["g"]);
        for line in [
            "afterimage_group_hold_seconds_bucket{group=\"g\",le=\"0.0005\"} 1",
            "afterimage_group_hold_seconds_bucket{group=\"g\",le=\"0.001\"} 2",
            "afterimage_group_hold_seconds_bucket{group=\"g\",le=\"0.02\"} 2",
            "afterimage_group_hold_seconds_bucket{group=\"g\",le=\"0.05\"} 3",
            "afterimage_group_hold_seconds_bucket{group=\"g\",le=\"1\"} 3",
            "afterimage_group_hold_seconds_bucket{group=\"g\",le=\"+Inf\"} 4",
            "afterimage_group_hold_seconds_sum{group=\"g\"} 3.031400",
            "afterimage_group_hold_seconds_count{group=\"g\"} 4",
        ] {
            assert!(out.lines().any(|l| l == line), "{line} is not in\n{out}");
        }
    }
}

//! What is asked of the agent while it runs: verifications, which find what somebody else has written to the disk, and nothing else.

use super::Story;
use crate::hosts::{Lab, image, lock};
use crate::model::{GRANULE, Sent};
use crate::sched::{Host, MILLI, SECOND};
use afterimage_agent::{VerifyOptions, VerifyReport};
use afterimage_format::record::Kind;
use std::sync::Arc;

/// How often a verification may be refused because another one has begun a gap.
const TRIES: usize = 3;

/// The gaps that a volume's log shows. Not how many: when the vault is lost, a log with one gap begins anew with another.
fn gaps(lab: &Lab, index: usize) -> Vec<(u64, u64)> {
    let is_gap = |s: &&Sent| s.record.kind == Kind::Gap;
    lab.model.with(index, |v| v.log.iter().filter(is_gap).map(|s| (s.record.seq, s.record.digest())).collect())
}

fn verify(lab: &Arc<Lab>, index: usize, repair: bool) -> Option<VerifyReport> {
    let volume = lock(&lab.board).volumes.get(index).cloned()?;
    let options = VerifyOptions { repair, ..VerifyOptions::default() };
    match volume.verify(&options, &mut |_| true) {
        Ok(report) => {
            lab.sim.state().count("verification");
            Some(report)
        }
        Err(e) => {
            lab.sim.say(&format!("no verification: {e}"));
            None
        }
    }
}

impl Story {
    /// A volume that is verified beside the load is equal to its history.
    pub(super) fn verify(&mut self) {
        let index = self.rng.index(self.lab.setup.sizes.len());
        let may_differ = self.damaged || self.differing.contains(&index);
        self.lab.on(Host::Agent, "verify", 60 * SECOND, move |lab| {
            if let Some(report) = verify(lab, index, false)
                && report.differing > 0
                && !may_differ
            {
                crate::fail(&format!("volume {index}: a verification finds what is not so: {report:?}"));
            }
        });
    }

    /// Somebody writes to the disk behind the agent's back; a verification finds that.
    pub(super) fn write_behind(&mut self) {
        let index = self.rng.index(self.lab.setup.sizes.len());
        if !self.volumes() || !self.lab.up(Host::Agent) {
            return;
        }
        let size = self.lab.model.with(index, |v| v.size());
        let at = self.rng.index(size / GRANULE) * GRANULE;
        let mark = self.lab.model.with(index, |v| v.write_behind(at));
        let mut bytes = [0; GRANULE];
        mark.fill(at / GRANULE, &mut bytes);
        self.lab.with_disk(Host::Agent, |d| d.overwrite(&image(index), at, &bytes));
        self.lab.sim.state().count("write behind the agent's back");
        self.lab.sim.say(&format!("somebody writes to volume {index} at byte {at}"));
        self.differing.push(index);
        let (damaged, before) = (self.damaged, gaps(&self.lab, index));
        self.lab.on(Host::Agent, "verify", 60 * SECOND, move |lab| {
            let Some(report) = verify(lab, index, true) else { return };
            let there = lab.disk(index)[at..at + GRANULE] == bytes;
            // Where a gap was, the sync may have copied it; and what the appliance cannot read is not compared.
            let seen = report.differing_ranges.iter().any(|r| r.contains(&(at as u64)));
            if seen {
                lab.sim.state().count("difference found");
            } else if there && gaps(lab, index) == before && report.unknown == 0 && !damaged {
                crate::fail(&format!("volume {index}: byte {at} differs, and a verification does not find it"));
            }
        });
    }

    /// Another size of a volume: smaller, as large as its disk, or larger with the disk.
    pub(super) fn resize(&mut self) {
        let index = self.rng.index(self.lab.setup.sizes.len());
        if !self.volumes() || !self.lab.up(Host::Agent) {
            return;
        }
        let (size, most) = self.lab.model.with(index, |v| (v.size(), v.most()));
        let disk = self.lab.disk(index).len();
        let by = (1 + self.rng.index(12)) * [512, 4096][self.rng.index(2)];
        let to = match self.rng.below(3) {
            0 if size > by + 8 * 4096 => size - by,
            1 => disk,
            _ => {
                let to = (disk + by).min(most);
                self.lab.with_disk(Host::Agent, |d| d.grow(&image(index), to));
                to
            }
        };
        self.lab.sim.say(&format!("volume {index}: {size} bytes, and {to} are asked for"));
        self.lab.model.with(index, |v| v.ask_size(to));
        self.lab.on(Host::Agent, "resize", 60 * SECOND, move |lab| {
            let Some(volume) = lock(&lab.board).volumes.get(index).cloned() else { return };
            match volume.resize(Some(to as u64)) {
                Ok(done) => {
                    lab.model.with(index, |v| v.sized(usize::try_from(done.to).unwrap_or(0)));
                    lab.sim.state().count("change of size");
                }
                Err(e) => {
                    lab.model.with(index, |v| v.sized(v.size()));
                    lab.sim.say(&format!("no other size: {e}"));
                }
            }
        });
    }

    /// Has what was written behind the agent's back copied. Whether anything was.
    pub(super) fn repair(&mut self) -> bool {
        let mut which = std::mem::take(&mut self.differing);
        which.sort_unstable();
        which.dedup();
        for index in &which {
            self.repair_one(*index);
        }
        !which.is_empty()
    }

    fn repair_one(&mut self, index: usize) {
        for _ in 0..TRIES {
            let report = self.lab.on(Host::Agent, "verify", 600 * SECOND, move |lab| verify(lab, index, true));
            if report.flatten().is_some() {
                return;
            }
            // A verification that was asked for before may have found something a moment ago, which is copied now.
            self.wait(300 * MILLI);
            let now = self.lab.sim.state().now;
            self.converge(now);
        }
        let status = self
            .lab
            .on(Host::Agent, "status", SECOND, move |lab| lock(&lab.board).volumes.get(index).map(|v| v.status()));
        crate::fail(&format!("volume {index} cannot be verified, and nothing is wrong: {status:?}"));
    }
}

//! What is asked of the agent while it runs: verifications, which find what somebody else has written to the disk, and nothing else.

use super::Story;
use crate::hosts::{Lab, image, lock};
use crate::model::GRANULE;
use crate::sched::{Host, SECOND};
use afterimage_agent::{VerifyOptions, VerifyReport};
use afterimage_format::record::Kind;
use std::sync::Arc;

/// Gaps that a volume's log shows.
fn gaps(lab: &Lab, index: usize) -> usize {
    lab.model.with(index, |v| v.log.iter().filter(|s| s.record.kind == Kind::Gap).count())
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
        let at = self.rng.index(self.lab.setup.sizes[index] / GRANULE) * GRANULE;
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

    /// Has what was written behind the agent's back copied. Whether anything was.
    pub(super) fn repair(&mut self) -> bool {
        let which = std::mem::take(&mut self.differing);
        for index in &which {
            let index = *index;
            let report = self.lab.on(Host::Agent, "verify", 600 * SECOND, move |lab| verify(lab, index, true));
            if report.flatten().is_none() {
                crate::fail(&format!("volume {index} cannot be verified, and nothing is wrong"));
            }
        }
        !which.is_empty()
    }
}

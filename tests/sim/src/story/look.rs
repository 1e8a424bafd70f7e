//! What is looked at: what the appliance offers, disks, and the vault offline.

use super::Story;
use crate::hosts::{Lab, VAULT, lock};
use crate::rng::Rng;
use crate::sched::{Host, SECOND};
use afterimage_appliance::{Appliance, KeySource};
use afterimage_base::block::Request;
use afterimage_base::buf::AlignedBuf;

impl Story {
    /// Looks at some seqs that the appliance offers.
    pub(super) fn look(&mut self) {
        let (mut rng, damaged) = (self.rng.fork(), self.damaged);
        self.lab.ask(move |lab, appliance| {
            for index in 0..lab.model.len() {
                examine(lab, appliance, index, &mut rng, 3, damaged);
            }
        });
    }

    pub(super) fn compare(&mut self) {
        for index in 0..self.lab.model.len() {
            let disk = self.lab.disk(index);
            if let Err(e) = self.lab.model.with(index, |v| v.check(&disk, false)) {
                crate::fail(&e);
            }
            let (image, size) = self.lab.model.with(index, |v| (v.image(u64::MAX).to_vec(), v.size()));
            let told = lock(&self.lab.board).status.get(index).map(|s| s.size);
            if image.len() != size || told != Some(size as u64) {
                let history = image.len();
                crate::fail(&format!("volume {index}: size {size}, the agent says {told:?}, the history {history}"));
            }
            if let Some(at) = disk.iter().zip(&image).position(|(a, b)| a != b) {
                crate::fail(&format!("volume {index}: the newest image differs from the disk at byte {at}"));
            }
        }
        let mut rng = self.rng.fork();
        let looked = self.lab.ask(move |lab, appliance| {
            for index in 0..lab.model.len() {
                let last = lab.model.with(index, |v| v.last());
                let newest =
                    appliance.choose(&format!("v{index}"), afterimage_appliance::history::timeline::Wish::Latest);
                if !newest.as_ref().is_ok_and(|n| *n == last) {
                    let name = format!("v{index}");
                    let knows = appliance.volumes().into_iter().find(|v| v.name == name);
                    let gaps = appliance.gaps(&name);
                    crate::fail(&format!(
                        "volume {index}: the newest seq is {last}, and {newest:?} is offered; {knows:?}, {gaps:?}"
                    ));
                }
                examine(lab, appliance, index, &mut rng, 8, false);
            }
        });
        if looked.is_none() {
            crate::fail("the appliance is gone, and nobody killed it");
        }
    }

    /// The offline check finds nothing wrong.
    pub(super) fn check(&mut self) {
        self.lab.sim.state().hosts[Host::Appliance as usize].up = true;
        let report = self.lab.on(Host::Appliance, "check", 3600 * SECOND, |_| {
            let key = KeySource::File(Lab::vault().join("key"));
            afterimage_appliance::check::check(Lab::vault(), Some(&key)).map_err(|e| e.to_string())
        });
        match report {
            Some(Ok(report)) if report.damages.is_empty() => {}
            Some(Ok(_)) if self.damaged => self.lab.sim.state().count("damage named by check"),
            Some(Err(_)) if self.damaged => {}
            Some(Ok(report)) => crate::fail(&format!("check of {VAULT} finds: {:?}", report.damages)),
            Some(Err(e)) => crate::fail(&format!("check of {VAULT}: {e}")),
            None => crate::fail("check died"),
        }
    }
}

/// Compares what the appliance offers of a volume with the model: the newest, the points, and some more.
fn examine(lab: &Lab, appliance: &Appliance, index: usize, rng: &mut Rng, more: usize, damaged: bool) {
    use afterimage_appliance::history::timeline::Wish;
    let name = format!("v{index}");
    let Ok(latest) = appliance.choose(&name, Wish::Latest) else { return };
    let last = lab.model.with(index, |v| v.last());
    let mut seqs = vec![latest];
    seqs.extend(appliance.points(&name).unwrap_or_default().iter().rev().take(3).map(|p| p.seq));
    seqs.extend((0..more).map(|_| 1 + rng.below(last.max(1))));
    // The model goes through its log once.
    seqs.sort_unstable();
    seqs.dedup();
    for seq in seqs {
        if appliance.check_seq(&name, seq).is_err() {
            continue;
        }
        if !lab.model.with(index, |v| v.valid(seq)) {
            let bounds = lab.model.with(index, |v| v.bounds());
            let gaps = appliance.gaps(&name);
            let window = appliance.volumes();
            crate::fail(&format!(
                "I6: volume {name}: seq {seq} is offered, and lies in a gap: sent were {bounds:?}, the appliance knows {gaps:?} and {window:?}"
            ));
        }
        let bytes = match read(appliance, &name, seq) {
            Ok(bytes) => bytes,
            Err(e) => {
                let reads = lab.sim.state().disks.of(Host::Appliance).faults.read == 0;
                if !damaged && reads && appliance.check_seq(&name, seq).is_ok() {
                    crate::fail(&format!("volume {name}: seq {seq} is offered, and cannot be read: {e}"));
                }
                continue;
            }
        };
        lab.sim.state().note(b'=', seq);
        let wrong = lab.model.with(index, |v| {
            let image = v.image(seq);
            if image.len() != bytes.len() {
                let (has, was) = (bytes.len(), image.len());
                crate::fail(&format!(
                    "volume {name}: the image of seq {seq} has {has} bytes, and the volume had {was}"
                ));
            }
            image.iter().zip(&bytes).position(|(a, b)| a != b)
        });
        if let Some(at) = wrong {
            crate::fail(&format!("volume {name}: the image of seq {seq} is wrong at byte {at}"));
        }
        lab.sim.state().count("image compared");
    }
}

fn read(appliance: &Appliance, name: &str, seq: u64) -> Result<Vec<u8>, String> {
    let device = appliance.open_at(name, seq).map_err(|e| e.to_string())?;
    let size = usize::try_from(device.geometry().size).map_err(|e| e.to_string())?;
    let mut queue = device.open_queue().map_err(|e| e.to_string())?;
    let read = afterimage_base::simple::call(&mut *queue, Request::Read { offset: 0, buf: AlignedBuf::zeroed(size) });
    Ok(read.map_err(|e| e.to_string())?.map(|b| b.to_vec()).unwrap_or_default())
}

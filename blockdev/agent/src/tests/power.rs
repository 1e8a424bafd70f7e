//! Power cuts: the disk keeps any subset of the sectors that were not synced, the write-intent map too (torn, even), the ring
//! is gone, the dirty map is gone or stale; the appliance, which is elsewhere, keeps all, or is an older copy of itself.
//!
//! The model is a pair of images of each file: as it reads now, and as it was durable last. What is durable moves only where
//! the code syncs.

use crate::breaks::Break;
use crate::disk::CacheMode;
use crate::disk::ops::Op;
use crate::intent::Wrap;
use crate::kit::{Dice, Kept, Lab, wait};
use crate::{Agent, IntentConfig, Volume, VolumeState};
use afterimage_base::block::{Queue, Request, Submitted};
use afterimage_format::dirtymap::{DirtyMapHeader, word};
use afterimage_journal::intent::Medium;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

const SIZE: u64 = 4 << 20;
const SECTOR: usize = 512;

/// What is durable, and how the map's file reads.
#[derive(Default)]
struct World {
    disk: Vec<u8>,
    intent: Vec<u8>,
    intent_now: Vec<u8>,
    /// A sync of the map's file takes so many milliseconds.
    slow: u64,
    read: Vec<Range<u64>>,
}

struct Watched(Arc<Mutex<World>>);

impl Medium for Watched {
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        let at = usize::try_from(at).unwrap();
        self.0.lock().unwrap().intent_now[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let slow = self.0.lock().unwrap().slow;
        thread::sleep(Duration::from_millis(slow));
        let mut world = self.0.lock().unwrap();
        world.intent = world.intent_now.clone();
        Ok(())
    }
}

struct Rig {
    lab: Lab,
    world: Arc<Mutex<World>>,
    dice: Dice,
    broken: Option<Break>,
}

/// What is left after the cut.
struct Left {
    kept: Kept,
    disk: Vec<u8>,
    intent: Vec<u8>,
    meta: Vec<u8>,
}

fn mix(dice: &mut Dice, now: &[u8], durable: &[u8], torn: bool) -> Vec<u8> {
    let mut out = now.to_vec();
    for (new, old) in out.chunks_mut(SECTOR).zip(durable.chunks(SECTOR)) {
        if new != old && dice.below(2) == 0 {
            let cut = if torn && dice.below(4) == 0 { usize::try_from(dice.below(512)).unwrap() } else { 0 };
            let len = new.len();
            new[cut.min(len)..].copy_from_slice(&old[cut.min(len)..]);
        }
    }
    out
}

impl Rig {
    fn new(seed: u64, cache: CacheMode, broken: Option<Break>) -> Rig {
        let mut lab = Lab::new(SIZE);
        // The power cut puts another file's content in place of the disk's, which looks like somebody else's writes.
        lab.foreign = crate::ForeignWrite::Ignore;
        (lab.ring_bytes, lab.cache) = (8 << 20, cache);
        Rig { lab, world: Arc::default(), dice: Dice::new(seed), broken }
    }

    fn chance(&mut self, one_in: u64) -> bool {
        self.dice.below(one_in) == 0
    }

    /// Opens the volume with the appliance away; passes of the clearer come when the test asks for them.
    fn open(&self) -> (Agent, Arc<Volume>) {
        let world = Arc::clone(&self.world);
        let wrap = move |_, path: &std::path::Path| {
            let bytes = std::fs::read(path).unwrap();
            let mut w = world.lock().unwrap();
            (w.intent, w.intent_now) = (bytes.clone(), bytes);
            Box::new(Watched(Arc::clone(&world))) as Box<dyn Medium>
        };
        let config = IntentConfig {
            pass: Duration::from_secs(1000),
            idle: 1,
            wrap: Wrap(Some(Arc::new(wrap))),
            ..IntentConfig::default()
        };
        self.lab.appliance.away.store(true, Ordering::SeqCst);
        self.lab.appliance.stalled.store(false, Ordering::SeqCst);
        self.lab.appliance.cut();
        let agent = Agent::new(self.lab.config()).with_intent(config);
        let volume = agent.add_volume(self.lab.volume_config()).unwrap();
        self.world.lock().unwrap().disk = self.lab.disk_bytes();
        self.world.lock().unwrap().read.clear();
        let (world, path) = (Arc::clone(&self.world), self.lab.disk());
        let hook = move |op, offset, len| {
            match op {
                Op::Sync => world.lock().unwrap().disk = std::fs::read(&path).unwrap(),
                Op::Read => world.lock().unwrap().read.push(offset..offset + len),
                Op::Write | Op::Zero => {}
            }
            None
        };
        volume.shared().core.disk.faults.set(Some(Box::new(hook)));
        if let Some(broken) = self.broken {
            volume.shared().p.breaks.set(broken);
        }
        (agent, volume)
    }

    /// Writes here and there; ends with a write that may still be waiting for its mark.
    fn work(&mut self, volume: &Volume, queue: &mut dyn Queue) {
        let mut base = 0;
        for n in 0..40 {
            if self.chance(8) {
                base = self.dice.below(SIZE / 2);
            }
            let len = (1 + self.dice.below(32)) * 512;
            let offset = (base + self.dice.below(SIZE / 8)) / 512 * 512;
            let data = vec![u8::try_from(1 + self.dice.below(255)).unwrap(); usize::try_from(len).unwrap()];
            let request = match self.dice.below(12) {
                0 => Request::Trim { offset, len, fua: false },
                1 => Request::Flush,
                2 => Request::Write { offset, data: &data, fua: true },
                _ => Request::Write { offset, data: &data, fua: false },
            };
            let submitted = queue.submit(n, request);
            queue.kick();
            if n == 39 {
                break;
            }
            let mut out = Vec::new();
            while matches!(submitted, Submitted::Pending) && out.is_empty() {
                thread::sleep(Duration::from_micros(200));
                queue.reap(&mut out);
            }
            match self.dice.below(16) {
                0..=3 => volume.shared().p.intent.iter().for_each(|i| i.bell.ring()),
                4 => self.lab.appliance.stalled.store(self.dice.below(2) == 0, Ordering::SeqCst),
                5 => volume.shared().p.close("the test closes it"),
                6 => self.world.lock().unwrap().slow = self.dice.below(3),
                7..=9 => thread::sleep(Duration::from_millis(2)),
                _ => {}
            }
        }
    }

    /// The power goes.
    fn cut(&mut self) -> Left {
        let world = Arc::clone(&self.world);
        let world = world.lock().unwrap();
        let kept = self.lab.appliance.kept();
        let meta = std::fs::read(self.lab.dir.path().join("agent/vol/volume.json")).unwrap();
        let disk = mix(&mut self.dice, &self.lab.disk_bytes(), &world.disk, false);
        let intent = mix(&mut self.dice, &world.intent_now, &world.intent, true);
        Left { kept, disk, intent, meta }
    }

    /// And comes back. True if the appliance is an older copy.
    fn boot(&mut self, left: Left) -> bool {
        let dir = self.lab.dir.path().join("agent/vol");
        let Left { mut kept, disk, intent, meta } = left;
        let file = std::fs::File::options().write(true).open(self.lab.disk()).unwrap();
        file.write_all_at(&disk, 0).unwrap();
        std::fs::write(dir.join("intent"), intent).unwrap();
        std::fs::write(dir.join("volume.json"), meta).unwrap();
        std::fs::remove_file(dir.join("ring")).unwrap();
        let dirty = dir.join("dirty");
        match self.dice.below(3) {
            0 => std::fs::remove_file(&dirty).unwrap(),
            1 => std::fs::write(&dirty, vec![0; 8192]).unwrap(),
            _ => {
                let bytes = std::fs::read(&dirty).unwrap();
                let header = DirtyMapHeader::decode(bytes[..64].try_into().unwrap()).unwrap();
                let file = std::fs::File::options().write(true).open(&dirty).unwrap();
                for (at, n) in [(word::BOOT, 1), (word::BOOT + 1, 2), (word::BOOT_CHECK, header.boot_check([1, 2]))] {
                    file.write_all_at(&n.to_le_bytes(), at as u64 * 8).unwrap();
                }
            }
        }
        let may = self.broken.is_none_or(|b| b == Break::IgnoreRelied);
        let older = may && self.chance(6) && kept.log.len() > 2;
        if older {
            let keep = self.dice.below(kept.log.len() as u64);
            kept.go_back(usize::try_from(keep).unwrap());
        }
        *self.lab.appliance.kept.lock().unwrap() = kept;
        older
    }

    /// Whether disk and replica are the same in the end, and only marked regions were looked at.
    fn recover(&self, volume: &Volume, older: bool) -> Result<(), String> {
        let map = &volume.shared().p.intent.as_ref().unwrap().map();
        let regions = |marked: bool| (0..map.regions()).filter(move |r| map.look(*r).is_some() == marked);
        let clean: Vec<u64> = regions(false).collect();
        let report = volume.status().recovered.unwrap();
        assert!(!report.whole_disk && !report.clean && report.reason.is_some(), "{report:?}");
        assert_eq!(report.intent_regions, map.regions() - clean.len() as u64);
        self.lab.appliance.away.store(false, Ordering::SeqCst);
        wait(volume, |s| s.state == VolumeState::Live && s.seq_durable == s.seq_acked && s.connected);
        assert_eq!(*self.lab.appliance.complaint.lock().unwrap(), None);
        if let Some(at) = self.lab.difference() {
            return Err(format!("disk and replica differ at byte {at}"));
        }
        let world = self.world.lock().unwrap();
        let foreign = clean
            .into_iter()
            .map(|r| map.region_range(r))
            .find(|c| world.read.iter().any(|r| r.start < c.end && c.start < r.end));
        match foreign.filter(|_| !older) {
            Some(c) => Err(format!("{c:?} was read and not marked; read: {:?}", world.read)),
            None => Ok(()),
        }
    }

    fn rounds(&mut self, rounds: u64) -> Result<(), String> {
        let (mut agent, mut volume) = self.open();
        self.lab.appliance.away.store(false, Ordering::SeqCst);
        if self.chance(2) {
            self.lab.settle(&volume);
        }
        for round in 0..rounds {
            let mut queue = volume.device().open_queue().unwrap();
            self.work(&volume, &mut *queue);
            let left = self.cut();
            self.lab.appliance.stalled.store(false, Ordering::SeqCst);
            drop(queue);
            drop((agent, volume));
            let older = self.boot(left);
            (agent, volume) = self.open();
            self.recover(&volume, older).map_err(|e| format!("round {round}, older {older}: {e}"))?;
        }
        Ok(())
    }
}

#[test]
fn whatever_a_power_cut_leaves_disk_and_history_are_equal_again() {
    let seeds = std::env::var("POWER_CUT_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(12);
    for seed in 1..=seeds {
        if let Err(e) = Rig::new(seed, CacheMode::Writeback, None).rounds(6) {
            panic!("seed {seed}: {e}");
        }
    }
}

#[test]
fn the_same_power_cuts_past_the_page_cache() {
    for seed in 1..=5 {
        if let Err(e) = Rig::new(100 + seed, CacheMode::None, None).rounds(5) {
            panic!("seed {seed}: {e}");
        }
    }
}

fn is_caught(broken: Break) {
    let found = (1..=60).find_map(|seed| Rig::new(seed, CacheMode::Writeback, Some(broken)).rounds(4).err());
    println!("{broken:?}: {found:?}");
    assert!(found.is_some_and(|e| e.contains("differ")));
}

#[test]
fn a_write_before_its_mark_is_durable_is_lost_by_a_power_cut() {
    is_caught(Break::WriteCold);
}

#[test]
fn a_mark_taken_away_before_the_appliance_is_durable_is_missed() {
    is_caught(Break::ClearUndurable);
}

#[test]
fn a_mark_taken_away_before_the_disk_was_synced_is_missed() {
    is_caught(Break::ClearUnsynced);
}

#[test]
fn a_history_without_what_clean_regions_rely_on_is_missed() {
    is_caught(Break::IgnoreRelied);
}

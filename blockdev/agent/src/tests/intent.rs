//! The write-intent map: what it costs, whom it holds up, and what its errors do.

use crate::intent::Wrap;
use crate::intent::clear::Clearer;
use crate::kit::{Lab, Load, load, wait};
use crate::{Agent, IntentConfig, Volume, VolumeState};
use afterimage_base::block::{Queue, Request, Submitted};
use afterimage_base::simple::call;
use afterimage_journal::intent::Medium;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

const REGION: u64 = 64 << 10;

/// Holds syncs up, and lets them fail.
#[derive(Default)]
struct Control {
    held: AtomicBool,
    errno: AtomicI32,
}

struct Controlled(Box<dyn Medium>, Arc<Control>);

impl Medium for Controlled {
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.0.write_at(bytes, at)
    }

    fn sync(&self) -> io::Result<()> {
        while self.1.held.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(1));
        }
        match self.1.errno.load(Ordering::SeqCst) {
            0 => self.0.sync(),
            e => Err(io::Error::from_raw_os_error(e)),
        }
    }
}

/// A volume on an empty disk, live, without a clearer of its own.
fn open(lab: &Lab, control: &Arc<Control>) -> (Agent, Arc<Volume>) {
    let control = Arc::clone(control);
    let wrap = move |m, _: &std::path::Path| Box::new(Controlled(m, Arc::clone(&control))) as Box<dyn Medium>;
    let wrap = Wrap(Some(Arc::new(wrap)));
    let config =
        IntentConfig { pass: Duration::from_secs(1000), idle: 3, hot: 16, cool: 2, wrap, ..Default::default() };
    let agent = Agent::new(lab.config()).with_intent(config);
    let volume = agent.add_volume(lab.volume_config()).unwrap();
    wait(&volume, |s| s.connected && s.state != VolumeState::InitialSync);
    (agent, volume)
}

fn write(queue: &mut dyn Queue, offset: u64) {
    call(queue, Request::Write { offset, data: &[7; 4096], fua: false }).unwrap();
}

fn syncs(volume: &Volume) -> u64 {
    volume.shared().p.intent.as_ref().unwrap().map().syncs()
}

fn marked(volume: &Volume) -> u64 {
    volume.shared().p.intent.as_ref().unwrap().map().marked()
}

#[test]
fn a_cold_region_costs_one_sync_at_most_and_a_warm_one_none() {
    let lab = Lab::new(64 * REGION);
    let (_agent, volume) = open(&lab, &Arc::default());
    assert_eq!((syncs(&volume), marked(&volume)), (0, 0));
    let mut queue = volume.device().open_queue().unwrap();
    for n in 0..20 {
        write(&mut *queue, n * 3 * REGION);
        assert_eq!(syncs(&volume), n + 1);
    }
    for n in 0..2000 {
        write(&mut *queue, n % 20 * 3 * REGION + n / 20 % 16 * 4096);
    }
    assert_eq!((syncs(&volume), marked(&volume)), (20, 20));
    // From front to back: marked ahead.
    for n in 0..64 {
        write(&mut *queue, n * REGION);
    }
    assert!(syncs(&volume) < 20 + 30, "{}", syncs(&volume));
    assert_eq!(marked(&volume), 64);
    call(&mut *queue, Request::Trim { offset: 0, len: 64 * REGION, fua: false }).unwrap();
    lab.settle(&volume);
}

/// All that wait are served by one sync, and nobody else waits.
#[test]
fn who_waits_for_a_mark_holds_up_nobody_and_shares_the_sync() {
    let lab = Lab::new(64 * REGION);
    let control: Arc<Control> = Arc::default();
    let (_agent, volume) = open(&lab, &control);
    let mut warm = volume.device().open_queue().unwrap();
    write(&mut *warm, 0);
    control.held.store(true, Ordering::SeqCst);
    let mut cold = volume.device().open_queue().unwrap();
    for n in 1..40 {
        let request = Request::Write { offset: n * REGION + 4096, data: &[9; 4096], fua: false };
        assert!(matches!(cold.submit(n, request), Submitted::Pending));
    }
    let next = volume.shared().p.ring.next();
    write(&mut *warm, 8192);
    volume.create_point("while others wait", false).unwrap();
    assert_eq!(volume.shared().p.ring.next(), next + 2, "who waits has no seq");
    assert!(volume.shared().core.ranges.is_empty(), "and no claim");
    control.held.store(false, Ordering::SeqCst);
    let mut out = Vec::new();
    while out.len() < 39 {
        cold.reap(&mut out);
        thread::sleep(Duration::from_millis(1));
    }
    assert!(out.iter().all(|c| c.result.is_ok()));
    assert!(syncs(&volume) <= 3, "{} syncs", syncs(&volume));
    lab.settle(&volume);
}

#[test]
fn marks_go_when_nobody_writes_there_and_stay_where_somebody_does() {
    let lab = Lab::new(64 * REGION);
    let (_agent, volume) = open(&lab, &Arc::default());
    let mut queue = volume.device().open_queue().unwrap();
    (0..12).for_each(|n| write(&mut *queue, n * 5 * REGION));
    lab.settle(&volume);
    let mut clearer = Clearer::new(Arc::clone(volume.shared()));
    let before = syncs(&volume);
    for _ in 0..10 {
        clearer.pass();
        (0..4).for_each(|n| write(&mut *queue, n * 5 * REGION));
    }
    lab.settle(&volume);
    clearer.pass();
    assert_eq!((marked(&volume), syncs(&volume)), (4, before), "a steady working set costs no sync");
    // More than may be hot: the oldest go, down to three quarters.
    (0..40).for_each(|n| write(&mut *queue, (63 - n) * REGION));
    lab.settle(&volume);
    assert_eq!(marked(&volume), 44);
    clearer.pass();
    assert_eq!(marked(&volume), 44, "not before they have cooled down");
    clearer.pass();
    assert_eq!(marked(&volume), 40, "those that were not written to this time");
    clearer.pass();
    assert_eq!(marked(&volume), 12);
}

#[test]
fn no_mark_goes_while_the_appliance_is_behind_or_the_region_is_dirty() {
    let lab = Lab::new(64 * REGION);
    let (_agent, volume) = open(&lab, &Arc::default());
    lab.settle(&volume);
    let mut queue = volume.device().open_queue().unwrap();
    let mut clearer = Clearer::new(Arc::clone(volume.shared()));
    let mut passes = |n| (0..n).for_each(|_| clearer.pass());
    lab.appliance.away.store(true, Ordering::SeqCst);
    lab.appliance.cut();
    wait(&volume, |s| !s.connected);
    write(&mut *queue, 0);
    passes(8);
    assert_eq!(marked(&volume), 1);
    volume.shared().p.close("the test closes it");
    write(&mut *queue, 2 * REGION);
    passes(8);
    assert_eq!(marked(&volume), 2);
    lab.appliance.away.store(false, Ordering::SeqCst);
    lab.settle(&volume);
    passes(8);
    assert_eq!(marked(&volume), 0);
}

#[test]
fn an_error_of_the_map_is_said_and_the_guest_goes_on() {
    let lab = Lab::new(64 * REGION);
    let control: Arc<Control> = Arc::default();
    let (agent, volume) = open(&lab, &control);
    control.errno.store(libc::EIO, Ordering::SeqCst);
    load(&volume.device(), Load::small(1));
    let status = volume.status();
    assert_eq!(status.state, VolumeState::Error);
    assert!(status.reason.unwrap().contains("whole disk"));
    let file = lab.dir.path().join("agent/vol/intent");
    assert!(!file.exists());
    // On a busy machine the ring may have been full for a while.
    wait(&volume, |s| s.seq_durable == s.seq_acked && s.dirty_bytes == 0);
    lab.compare();
    agent.stop(Duration::from_secs(30));
    drop((agent, volume));
    // The ring is sound: a new map begins with everything marked.
    control.errno.store(0, Ordering::SeqCst);
    let (agent, volume) = open(&lab, &control);
    assert!(!volume.status().recovered.unwrap().whole_disk);
    assert_eq!(marked(&volume), 64);
    lab.settle(&volume);
    control.errno.store(libc::EIO, Ordering::SeqCst);
    volume.shared().p.intent.as_ref().unwrap().mark_all();
    drop((agent, volume));
    std::fs::remove_file(lab.dir.path().join("agent/vol/ring")).unwrap();
    control.errno.store(0, Ordering::SeqCst);
    let (_agent, volume) = open(&lab, &control);
    assert!(volume.status().recovered.unwrap().whole_disk);
    lab.settle(&volume);
}

/// A volume of a version without the map, and one that was used without it in between.
#[test]
fn a_map_that_was_not_kept_all_the_time_is_not_relied_on() {
    let lab = Lab::new(64 * REGION);
    let off = IntentConfig { on: false, ..IntentConfig::default() };
    let open = |config: &IntentConfig| {
        let agent = Agent::new(lab.config()).with_intent(config.clone());
        let volume = agent.add_volume(lab.volume_config()).unwrap();
        wait(&volume, |s| s.connected && s.state == VolumeState::Live);
        (agent, volume)
    };
    drop(open(&IntentConfig::default()));
    let (agent, volume) = open(&off);
    load(&volume.device(), Load::small(1));
    wait(&volume, |s| s.seq_durable == s.seq_acked);
    drop((agent, volume));
    let ring = lab.dir.path().join("agent/vol/ring");
    std::fs::remove_file(&ring).unwrap();
    let (agent, volume) = open(&IntentConfig::default());
    assert!(volume.status().recovered.unwrap().whole_disk);
    lab.settle(&volume);
    drop((agent, volume));
    let json = lab.dir.path().join("agent/vol/volume.json");
    let text = std::fs::read_to_string(&json).unwrap();
    std::fs::write(&json, text.replacen("\"version\": 2", "\"version\": 1", 1)).unwrap();
    std::fs::remove_file(&ring).unwrap();
    let (_agent, volume) = open(&IntentConfig::default());
    assert!(volume.status().recovered.unwrap().whole_disk);
    lab.settle(&volume);
}

/// Writers wait for marks that are taken away under them all the time.
#[test]
fn marks_that_come_and_go_under_load_lose_nothing() {
    let lab = Lab::new(64 * REGION);
    let (_agent, volume) = open(&lab, &Arc::default());
    let done = AtomicBool::new(false);
    let clearer = Mutex::new(Clearer::new(Arc::clone(volume.shared())));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                clearer.lock().unwrap().pass();
            }
        });
        let loads = crate::kit::loads(&volume.device(), 3, |n| Load {
            span: 64 * REGION,
            operations: 1500,
            ..Load::small(n + 1)
        });
        done.store(true, Ordering::SeqCst);
        assert!(loads.iter().all(|d| d.ok));
    });
    lab.settle(&volume);
}

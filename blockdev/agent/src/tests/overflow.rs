//! Initial sync, a full ring, dirty tracking, resync.

use crate::breaks::Break;
use crate::kit::{Lab, Load, load, loads, wait};
use crate::{CacheMode, PointError, VolumeState};
use afterimage_format::record::{FLAG_SYNC, Kind};
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

fn fill(lab: &Lab, from: u64, len: usize, byte: u8) {
    std::fs::File::options().write(true).open(lab.disk()).unwrap().write_all_at(&vec![byte; len], from).unwrap();
}

#[test]
fn what_is_on_the_disk_is_copied_beside_live_writes_and_holes_are_not() {
    for cache in [CacheMode::Writeback, CacheMode::None] {
        let mut lab = Lab::new(64 << 20);
        (lab.cache, lab.ring_bytes) = (cache, 8 << 20);
        fill(&lab, 1 << 20, 9 << 20, 3);
        fill(&lab, 40 << 20, 70_000, 4);
        let (_agent, volume) = lab.open();
        assert!(matches!(volume.create_point("early", false), Err(PointError::NotLive { .. })));
        let device = volume.device();
        loads(&device, 2, |n| Load { span: 4 << 20, longest: 8192, ..Load::small(n + 1) });
        lab.settle(&volume);
        let kept = lab.appliance.kept();
        assert!(kept.gaps()[0] == (1, true));
        let synced: u64 = kept.log.iter().filter(|(r, _)| r.flags & FLAG_SYNC != 0).map(|(r, _)| r.len).sum();
        assert!((9 << 20..16 << 20).contains(&synced), "{synced} bytes copied");
        volume.create_point("now", false).unwrap();
    }
}

#[test]
fn a_full_ring_costs_the_guest_nothing_and_the_replica_converges() {
    let mut lab = Lab::new(32 << 20);
    lab.ring_bytes = 8 << 20;
    let (_agent, volume) = lab.open();
    wait(&volume, |s| s.state == VolumeState::Live);
    let device = volume.device();
    for round in 0..4 {
        lab.appliance.stalled.store(true, Ordering::SeqCst);
        let big = |n| Load { span: 32 << 20, longest: 128 << 10, operations: 400, ..Load::small(n + 10 * round) };
        let done = loads(&device, 3, big);
        assert!(done.iter().all(|d| d.ok));
        let status = wait(&volume, |s| s.state == VolumeState::Dirty);
        assert!(status.dirty_bytes > 0 && status.lag_seconds > 0.0 && status.reason.is_some());
        assert!(matches!(volume.create_point("no", false), Err(PointError::NotLive { .. })));
        lab.appliance.stalled.store(false, Ordering::SeqCst);
        // Live writes go on beside the resync.
        loads(&device, 2, |n| Load { span: 32 << 20, ..Load::small(n + 10 * round + 5) });
        lab.settle(&volume);
    }
    assert!(lab.appliance.kept().gaps().len() >= 5);
    let told = lab.appliance.fullest.load(Ordering::SeqCst);
    assert!(told >= 10, "the ring was full, and the appliance was told of {told} sixteenths");
    assert!(lab.appliance.kept().gaps()[1..].iter().all(|(_, initial)| !initial));
}

/// Whether a guest's writes end while the appliance takes nothing.
fn goes_on_without_the_appliance(broken: Option<Break>) -> bool {
    let mut lab = Lab::new(32 << 20);
    lab.ring_bytes = 8 << 20;
    let (_agent, volume) = lab.open();
    wait(&volume, |s| s.state == VolumeState::Live);
    if let Some(what) = broken {
        volume.shared().p.breaks.set(what);
    }
    lab.appliance.stalled.store(true, Ordering::SeqCst);
    let device = volume.device();
    let big = Load { span: 32 << 20, longest: 128 << 10, operations: 400, ..Load::small(1) };
    thread::scope(|scope| {
        let guest = scope.spawn(|| load(&device, big));
        let (mut full, mut patience) = (false, 100);
        while !guest.is_finished() && patience > 0 {
            thread::sleep(Duration::from_millis(20));
            let status = volume.status();
            full |= status.ring_used > status.ring_bytes / 10 * 9;
            patience -= u32::from(full && status.state != VolumeState::Dirty);
        }
        let ended = guest.is_finished() || volume.status().state == VolumeState::Dirty;
        lab.appliance.stalled.store(false, Ordering::SeqCst);
        assert!(guest.join().unwrap().iter().all(|d| d.ok));
        ended
    })
}

#[test]
fn i4_a_write_that_waits_for_the_appliance_is_seen() {
    assert!(goes_on_without_the_appliance(None));
    assert!(!goes_on_without_the_appliance(Some(Break::WaitWhenFull)));
}

#[test]
fn a_ring_that_flaps_under_load_loses_nothing() {
    let mut lab = Lab::new(4 << 20);
    lab.ring_bytes = 8 << 20;
    let (_agent, volume) = lab.open();
    let device = volume.device();
    thread::scope(|scope| {
        let busy = scope.spawn(|| {
            loads(&device, 3, |n| Load { span: 4 << 20, longest: 64 << 10, operations: 3000, ..Load::small(n + 1) })
        });
        while !busy.is_finished() {
            lab.appliance.stalled.store(true, Ordering::SeqCst);
            thread::sleep(Duration::from_millis(30));
            lab.appliance.stalled.store(false, Ordering::SeqCst);
            thread::sleep(Duration::from_millis(60));
        }
        assert!(busy.join().unwrap().iter().all(|d| d.ok));
    });
    lab.settle(&volume);
}

#[test]
fn a_prefix_up_to_a_gap_is_the_disk_as_it_was() {
    let mut lab = Lab::new(16 << 20);
    lab.ring_bytes = 8 << 20;
    let (_agent, volume) = lab.open();
    wait(&volume, |s| s.state == VolumeState::Live);
    let device = volume.device();
    load(&device, Load { span: 16 << 20, ..Load::small(1) });
    lab.settle(&volume);
    let before = lab.disk_bytes();
    lab.appliance.away.store(true, Ordering::SeqCst);
    lab.appliance.cut();
    wait(&volume, |s| !s.connected);
    volume.shared().p.close("the test closes it");
    load(&device, Load { span: 16 << 20, ..Load::small(2) });
    lab.appliance.away.store(false, Ordering::SeqCst);
    lab.settle(&volume);
    let mut kept = lab.appliance.kept();
    let gap = kept.log.iter().rposition(|(r, _)| r.kind == Kind::Gap).unwrap();
    kept.log.truncate(gap);
    assert!(kept.image(16 << 20) == before);
}

#[test]
fn a_disk_that_ends_within_a_block_is_copied_to_its_last_byte() {
    let size = (1 << 20) + 777;
    let mut lab = Lab::new(size);
    lab.ring_bytes = 8 << 20;
    fill(&lab, 1 << 20, 777, 5);
    let (_agent, volume) = lab.open();
    lab.settle(&volume);
    let tail = |seed| Load { span: size, grain: 1, operations: 400, ..Load::small(seed) };
    loads(&volume.device(), 2, |n| tail(n + 1));
    volume.shared().p.close("the test closes it");
    loads(&volume.device(), 2, |n| tail(n + 3));
    lab.settle(&volume);
}

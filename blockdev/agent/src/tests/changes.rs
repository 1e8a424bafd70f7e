//! Disks that change: their size, while they are served and while they are not; their content, behind our back.

use crate::kit::{Lab, Load, load, loads, wait};
use crate::{Agent, AgentError, ForeignWrite, ResizeError, Volume, VolumeState};
use afterimage_base::block::{BlockError, Request};
use afterimage_base::simple::call;
use afterimage_format::record::Kind;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

const MIB: u64 = 1 << 20;

fn some(seed: u64) -> Load {
    Load { span: 3 * MIB, operations: 400, ..Load::small(seed) }
}

fn truncate(lab: &mut Lab, size: u64) {
    std::fs::File::options().write(true).open(lab.disk()).unwrap().set_len(size).unwrap();
}

fn poke(lab: &Lab, offset: u64, bytes: &[u8]) {
    std::fs::File::options().write(true).open(lab.disk()).unwrap().write_all_at(bytes, offset).unwrap();
}

fn write(volume: &Volume, offset: u64, byte: u8) -> Result<(), BlockError> {
    let mut queue = volume.device().open_queue().unwrap();
    call(&mut *queue, Request::Write { offset, data: &[byte; 4096], fua: false }).map(drop)
}

fn stop(agent: Agent, volume: Arc<Volume>) {
    agent.stop(Duration::from_secs(60));
    drop((agent, volume));
}

fn count(lab: &Lab, kind: Kind) -> usize {
    lab.appliance.kept().log.iter().filter(|(r, _)| r.kind == kind).count()
}

#[test]
fn a_volume_grows_and_shrinks_under_load_without_a_gap() {
    let mut lab = Lab::new(4 * MIB);
    // Never full, whatever else the machine does.
    lab.ring_bytes = 256 << 20;
    let (_agent, volume) = lab.open();
    lab.settle(&volume);
    let device = volume.device();
    thread::scope(|scope| {
        let busy = scope.spawn(|| loads(&device, 3, |n| Load { operations: 1500, ..some(n + 1) }));
        for size in [8 * MIB, 5 * MIB + 12_345, 6 * MIB] {
            truncate(&mut lab, size.max(volume.status().size));
            let done = volume.resize(Some(size)).unwrap();
            assert!(done.to == size && !done.gap, "{done:?}");
            truncate(&mut lab, size);
            assert_eq!(volume.device().geometry().size, size);
            write(&volume, size - 4096, 7).unwrap();
            assert_eq!(write(&volume, size - 4095, 7), Err(BlockError::NoSpace));
        }
        assert!(busy.join().unwrap().iter().all(|d| d.ok));
    });
    lab.settle(&volume);
    assert_eq!((count(&lab, Kind::Resize), lab.appliance.kept().gaps().len()), (3, 1));
    assert_eq!(volume.resize(None).unwrap().to, 6 * MIB);
    assert!(matches!(volume.resize(Some(7 * MIB)), Err(ResizeError::Disk { disk, .. }) if disk == 6 * MIB));
    assert!(matches!(volume.resize(Some(0)), Err(ResizeError::Size { .. })));
}

#[test]
fn a_new_part_that_holds_something_is_copied_in_a_gap() {
    let mut lab = Lab::new(4 * MIB);
    let (_agent, volume) = lab.open();
    lab.settle(&volume);
    truncate(&mut lab, 8 * MIB);
    poke(&lab, 7 * MIB, &[9; 5000]);
    assert!(volume.resize(None).unwrap().gap);
    load(&volume.device(), some(1));
    lab.settle(&volume);
    let kept = lab.appliance.kept();
    assert_eq!((kept.gaps().len(), count(&lab, Kind::Resize)), (2, 0));
    let gap = kept.log.iter().rev().find(|(r, _)| r.kind == Kind::Gap).unwrap();
    assert_eq!(gap.0.new_size(), Some(8 * MIB));
}

#[test]
fn a_size_that_changes_in_a_gap_is_in_the_gaps_record() {
    for restart in [false, true] {
        let mut lab = Lab::new(4 * MIB);
        let (mut agent, mut volume) = lab.open();
        load(&volume.device(), some(1));
        lab.settle(&volume);
        lab.appliance.away.store(true, Ordering::SeqCst);
        lab.appliance.cut();
        volume.shared().p.close("the test closes it");
        load(&volume.device(), some(2));
        truncate(&mut lab, 6 * MIB);
        volume.resize(None).unwrap();
        write(&volume, 5 * MIB, 3).unwrap();
        volume.resize(Some(4 * MIB + 4096)).unwrap();
        if restart {
            stop(agent, volume);
            (agent, volume) = lab.open();
            assert_eq!(volume.status().size, 4 * MIB + 4096, "smaller than its disk, as it was told");
        }
        volume.resize(None).unwrap();
        lab.appliance.away.store(false, Ordering::SeqCst);
        lab.settle(&volume);
        drop(agent);
    }
}

#[test]
fn an_appliance_of_the_first_version_has_no_changes_of_size() {
    let mut lab = Lab::new(4 * MIB);
    lab.appliance.old.store(true, Ordering::SeqCst);
    let (_agent, volume) = lab.open();
    lab.settle(&volume);
    truncate(&mut lab, 8 * MIB);
    let e = volume.resize(None).unwrap_err();
    assert!(matches!(e, ResizeError::Appliance { version: 1, .. }), "{e}");
    truncate(&mut lab, 4 * MIB);
    load(&volume.device(), some(1));
    lab.settle(&volume);
}

#[test]
fn another_size_at_the_start_is_refused_and_can_be_taken_over() {
    let mut lab = Lab::new(4 * MIB);
    for (i, size) in [7 * MIB, 5 * MIB, 5 * MIB + 4096].into_iter().enumerate() {
        let (agent, volume) = lab.open();
        load(&volume.device(), some(i as u64 + 1));
        lab.settle(&volume);
        stop(agent, volume);
        truncate(&mut lab, size);
        let e = Agent::new(lab.config()).add_volume(lab.volume_config()).map(drop).unwrap_err();
        assert!(matches!(e, AgentError::OtherSize { now, .. } if now == size), "{e}");
        assert!(e.to_string().contains("--resize"), "{e}");
        lab.resize = true;
        lab.foreign = ForeignWrite::Ignore;
        let (agent, volume) = lab.open();
        lab.settle(&volume);
        assert_eq!(volume.status().size, size);
        stop(agent, volume);
        lab.resize = false;
    }
    assert_eq!((count(&lab, Kind::Resize), lab.appliance.kept().gaps().len()), (3, 1));
}

/// The write-intent map goes with the size: a power cut costs what is marked and what is new, not the whole disk.
#[test]
fn after_a_change_of_size_a_power_cut_costs_what_is_marked() {
    const REGION: u64 = 64 << 10;
    for (size, died_between) in [(24 * MIB, false), (10 * MIB, false), (24 * MIB, true), (10 * MIB, true)] {
        let mut lab = Lab::new(16 * MIB);
        let (agent, volume) = lab.open();
        lab.settle(&volume);
        (0..3).for_each(|n| write(&volume, n * MIB, 1).unwrap());
        lab.settle(&volume);
        let intent = lab.dir.path().join("agent/vol/intent");
        let before = std::fs::read(&intent).unwrap();
        truncate(&mut lab, size.max(16 * MIB));
        assert_eq!(volume.resize(Some(size)).unwrap().to, size);
        truncate(&mut lab, size);
        // The last region was not there, or is marked by this write.
        write(&volume, size - 4096, 2).unwrap();
        write(&volume, 5 * MIB, 3).unwrap();
        lab.settle(&volume);
        let marked = volume.status().intent_bytes / REGION;
        let new = size.saturating_sub(16 * MIB) / REGION;
        assert_eq!(marked, if size > 16 * MIB { 4 + new } else { 5 });
        drop((agent, volume));
        if died_between {
            std::fs::write(&intent, before).unwrap();
        }
        std::fs::remove_file(lab.dir.path().join("agent/vol/ring")).unwrap();
        poke(&lab, MIB, &[9; 4096]);
        lab.foreign = ForeignWrite::Ignore;
        let (_agent, volume) = lab.open();
        let report = volume.status().recovered.unwrap();
        assert!(
            !report.whole_disk && report.intent_regions >= 3 + new && report.intent_regions <= marked,
            "{report:?}"
        );
        lab.settle(&volume);
    }
}

/// A crash between the note in volume.json and everything behind it: the next start does the rest.
#[test]
fn a_change_of_size_that_was_cut_off_is_brought_to_its_end() {
    for (size, dirty) in [(8 * MIB, false), (3 * MIB, false), (8 * MIB, true), (3 * MIB, true)] {
        let mut lab = Lab::new(4 * MIB);
        let (agent, volume) = lab.open();
        load(&volume.device(), some(1));
        lab.settle(&volume);
        if dirty {
            lab.appliance.away.store(true, Ordering::SeqCst);
            lab.appliance.cut();
            volume.shared().p.close("the test closes it");
            load(&volume.device(), some(2));
        }
        // No stop in order.
        drop((agent, volume));
        truncate(&mut lab, size);
        let json = lab.dir.path().join("agent/vol/volume.json");
        let mut meta: serde_json::Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
        (meta["size"], meta["identity"]["size"]) = (size.into(), size.into());
        (meta["resized"], meta["announce"]) = (true.into(), true.into());
        std::fs::write(&json, serde_json::to_vec(&meta).unwrap()).unwrap();
        lab.appliance.away.store(false, Ordering::SeqCst);
        let (_agent, volume) = lab.open();
        assert_eq!(volume.status().size, size);
        lab.settle(&volume);
        assert!(lab.appliance.kept().log.iter().any(|(r, _)| r.new_size() == Some(size)));
    }
}

#[test]
fn a_whole_disk_is_discarded_with_one_record() {
    let lab = Lab::new(1 << 40);
    let (_agent, volume) = lab.open();
    wait(&volume, |s| s.state == VolumeState::Live);
    write(&volume, 1 << 39, 5).unwrap();
    let mut queue = volume.device().open_queue().unwrap();
    let before = volume.status().seq_acked;
    call(&mut *queue, Request::Trim { offset: 0, len: 1 << 40, fua: false }).unwrap();
    assert_eq!(volume.status().seq_acked, before + 1);
    wait(&volume, |s| s.seq_durable > before);
    let kept = lab.appliance.kept();
    let last = kept.log.last().unwrap().0;
    assert_eq!((last.kind, last.offset, last.len), (Kind::Zero, 0, 1 << 40));
    // The same where the ring is closed: one mark of everything, copied back as a few holes.
    lab.appliance.away.store(true, Ordering::SeqCst);
    lab.appliance.cut();
    volume.shared().p.close("the test closes it");
    call(&mut *queue, Request::Trim { offset: 0, len: 1 << 40, fua: false }).unwrap();
    assert_eq!(volume.status().dirty_bytes, 1 << 40);
    lab.appliance.away.store(false, Ordering::SeqCst);
    let live = wait(&volume, |s| s.state == VolumeState::Live && s.seq_durable == s.seq_acked);
    assert!(live.seq_acked < before + 4000, "{live:?}");
}

#[test]
fn a_disk_written_behind_our_back_is_compared_refused_or_left_alone() {
    for policy in [ForeignWrite::Compare, ForeignWrite::Refuse, ForeignWrite::Ignore] {
        let mut lab = Lab::new(4 * MIB);
        let (agent, volume) = lab.open();
        load(&volume.device(), some(1));
        lab.settle(&volume);
        stop(agent, volume);
        // Nobody wrote: nothing happens, whatever the rule.
        lab.foreign = policy;
        let (agent, volume) = lab.open();
        lab.settle(&volume);
        assert_eq!(lab.appliance.kept().gaps().len(), 1);
        stop(agent, volume);
        let old = lab.disk_bytes()[1_234_567];
        poke(&lab, 1_234_567, &[!old]);
        if policy == ForeignWrite::Refuse {
            let e = Agent::new(lab.config()).add_volume(lab.volume_config()).map(drop).unwrap_err();
            assert!(matches!(e, AgentError::Foreign { .. }), "{e}");
            // It is refused again, until somebody decides.
            assert!(Agent::new(lab.config()).add_volume(lab.volume_config()).is_err());
            lab.foreign = ForeignWrite::Compare;
        }
        let (_agent, volume) = lab.open();
        assert!(volume.status().recovered.unwrap().foreign);
        if policy == ForeignWrite::Ignore {
            wait(&volume, |s| s.state == VolumeState::Live && s.connected);
            assert_eq!(lab.difference(), Some(1_234_567), "what the rule is for");
        } else {
            lab.settle(&volume);
            assert_eq!(lab.appliance.kept().gaps().len(), 2);
        }
    }
}

#[test]
fn a_comparison_that_was_asked_for_finds_what_nobody_noticed() {
    let lab = Lab::new(4 * MIB);
    let (_agent, volume) = lab.open();
    load(&volume.device(), some(1));
    lab.settle(&volume);
    poke(&lab, 3 * MIB, b"behind our back");
    assert!(lab.difference().is_some());
    volume.compare();
    load(&volume.device(), some(2));
    lab.settle(&volume);
    assert_eq!(lab.appliance.kept().gaps().len(), 2);
}

/// Ring lost, and the appliance back to an older copy: no seq that was used is used again for something else.
#[test]
fn a_seq_of_a_lost_future_is_not_used_again() {
    let lab = Lab::new(4 * MIB);
    let (agent, volume) = lab.open();
    load(&volume.device(), some(1));
    lab.settle(&volume);
    let old = lab.appliance.kept();
    load(&volume.device(), some(2));
    lab.settle(&volume);
    let used = lab.appliance.kept().durable();
    stop(agent, volume);
    *lab.appliance.kept.lock().unwrap() = old.clone();
    std::fs::remove_file(lab.dir.path().join("agent/vol/ring")).unwrap();
    let (_agent, volume) = lab.open();
    load(&volume.device(), some(3));
    lab.settle(&volume);
    let kept = lab.appliance.kept();
    assert!(kept.log.iter().map(|(r, _)| r.seq).filter(|s| *s > old.durable()).all(|s| s > used + 1));
}

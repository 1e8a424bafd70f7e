//! Appliances that go, stall, forget and lie; disks that refuse.

use crate::disk::ops::Op;
use crate::kit::{Dice, Lab, Load, load, loads, wait};
use crate::{Volume, VolumeState};
use afterimage_base::block::{BlockError, Request};
use afterimage_base::simple::call;
use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

fn some(seed: u64) -> Load {
    Load { span: 4 << 20, operations: 500, ..Load::small(seed) }
}

#[test]
fn connections_that_break_again_and_again_deliver_everything_once() {
    let lab = Lab::new(4 << 20);
    lab.appliance.break_after.store(3, Ordering::SeqCst);
    let (_agent, volume) = lab.open();
    loads(&volume.device(), 2, |n| some(n + 1));
    lab.settle(&volume);
    for (i, (record, _)) in lab.appliance.kept().log.iter().enumerate() {
        assert_eq!(record.seq, i as u64 + 1);
    }
}

#[test]
fn an_appliance_that_lost_everything_gets_everything_again() {
    let lab = Lab::new(4 << 20);
    let (_agent, volume) = lab.open();
    load(&volume.device(), some(1));
    lab.settle(&volume);
    lab.appliance.kept.lock().unwrap().log.clear();
    lab.appliance.cut();
    load(&volume.device(), some(2));
    wait(&volume, |s| s.state != VolumeState::Live || lab.appliance.kept().durable() > 0);
    lab.settle(&volume);
    assert!(lab.appliance.kept().gaps()[0].1, "there is no history before it");
}

#[test]
fn an_appliance_from_an_older_copy_is_not_gone_on_with_in_silence() {
    let lab = Lab::new(4 << 20);
    let (_agent, volume) = lab.open();
    load(&volume.device(), some(1));
    lab.settle(&volume);
    let old = lab.appliance.kept();
    load(&volume.device(), some(2));
    lab.settle(&volume);
    *lab.appliance.kept.lock().unwrap() = old.clone();
    lab.appliance.cut();
    wait(&volume, |_| lab.appliance.kept().durable() > old.durable());
    load(&volume.device(), some(3));
    lab.settle(&volume);
    assert!(lab.appliance.kept().gaps().len() > old.gaps().len());
}

#[test]
fn a_history_with_another_digest_is_a_fork() {
    let lab = Lab::new(4 << 20);
    let (_agent, volume) = lab.open();
    load(&volume.device(), some(1));
    lab.settle(&volume);
    lab.appliance.kept.lock().unwrap().log.last_mut().unwrap().0.time += 1;
    let before = lab.appliance.kept().durable();
    lab.appliance.cut();
    wait(&volume, |_| lab.appliance.kept().durable() > before);
    lab.settle(&volume);
    assert_eq!(lab.appliance.kept().gaps().len(), 2);
}

#[test]
fn an_appliance_that_is_ahead_of_the_ring_is_a_fork_and_the_gap_jumps() {
    let lab = Lab::new(4 << 20);
    let (_agent, volume) = lab.open();
    load(&volume.device(), some(1));
    lab.settle(&volume);
    let ahead = {
        let mut kept = lab.appliance.kept.lock().unwrap();
        let mut last = kept.log.last().unwrap().clone();
        last.0.seq += 1000;
        kept.log.push(last);
        kept.durable()
    };
    lab.appliance.cut();
    wait(&volume, |_| lab.appliance.kept().durable() > ahead);
    lab.settle(&volume);
    assert_eq!(lab.appliance.kept().gaps().last().unwrap().0, ahead + 1);
}

/// Lets one in `n` writes fail, some of them half done.
pub(super) fn refusing(volume: &Volume, n: u64, errno: i32) {
    let dice = Mutex::new(Dice::new(5));
    let fault = move |op: Op, _, _| {
        let hit = matches!(op, Op::Write | Op::Zero) && dice.lock().unwrap().below(n) == 0;
        hit.then_some(errno)
    };
    volume.shared().core.disk.faults.set(Some(Box::new(fault)));
}

#[test]
fn a_refused_write_is_the_guests_error_and_disk_and_history_agree_again() {
    for errno in [libc::EIO, libc::ENOSPC] {
        let lab = Lab::new(4 << 20);
        let (_agent, volume) = lab.open();
        wait(&volume, |s| s.state == VolumeState::Live);
        refusing(&volume, 40, errno);
        let done = loads(&volume.device(), 3, |n| some(n + 1));
        assert!(done.iter().any(|d| !d.ok) && done.iter().any(|d| d.ok));
        volume.shared().core.disk.faults.set(None);
        lab.settle(&volume);
        assert!(lab.appliance.kept().gaps().len() > 1);
    }
}

#[test]
fn the_guest_gets_the_disks_error_number() {
    let lab = Lab::new(4 << 20);
    let (_agent, volume) = lab.open();
    wait(&volume, |s| s.state == VolumeState::Live);
    let mut queue = volume.device().open_queue().unwrap();
    let mut errors = Vec::new();
    for errno in [libc::EIO, libc::ENOSPC] {
        refusing(&volume, 1, errno);
        errors.push(call(&mut *queue, Request::Write { offset: 0, data: &[1; 4096], fua: false }).unwrap_err());
    }
    assert_eq!(errors, [BlockError::Io(libc::EIO), BlockError::NoSpace]);
    volume.shared().core.disk.faults.set(None);
    lab.settle(&volume);
}

#[test]
fn a_region_that_cannot_be_read_keeps_the_volume_from_live_until_it_can() {
    let lab = Lab::new(4 << 20);
    std::fs::write(lab.disk(), vec![9; 4 << 20]).unwrap();
    lab.appliance.away.store(true, Ordering::SeqCst);
    let (_agent, volume) = lab.open();
    let bad = |op: Op, offset: u64, len: u64| {
        (op == Op::Read && offset <= 70_000 && 70_000 < offset + len).then_some(libc::EIO)
    };
    volume.shared().core.disk.faults.set(Some(Box::new(bad)));
    lab.appliance.away.store(false, Ordering::SeqCst);
    let status = wait(&volume, |s| s.state == VolumeState::Error && s.dirty_bytes <= 256 << 10);
    assert!(status.reason.unwrap().contains("cannot read the disk"));
    volume.shared().core.disk.faults.set(None);
    lab.settle(&volume);
}

#[test]
fn everything_at_once() {
    let mut lab = Lab::new(4 << 20);
    lab.ring_bytes = 8 << 20;
    let (_agent, volume) = lab.open();
    let device = volume.device();
    thread::scope(|scope| {
        let busy = scope.spawn(|| {
            loads(&device, 3, |n| Load { span: 4 << 20, longest: 64 << 10, operations: 2500, ..Load::small(n + 1) })
        });
        let mut dice = Dice::new(9);
        while !busy.is_finished() {
            match dice.below(5) {
                0 => lab.appliance.cut(),
                1 => lab.appliance.stalled.store(true, Ordering::SeqCst),
                2 => {
                    let mut kept = lab.appliance.kept.lock().unwrap();
                    let to = kept.log.len() * 2 / 3;
                    kept.log.truncate(to);
                    drop(kept);
                    lab.appliance.cut();
                }
                _ => {}
            }
            thread::sleep(Duration::from_millis(40));
            lab.appliance.stalled.store(false, Ordering::SeqCst);
        }
        assert!(busy.join().unwrap().iter().all(|d| d.ok));
    });
    *lab.appliance.complaint.lock().unwrap() = None;
    lab.appliance.cut();
    lab.settle(&volume);
}

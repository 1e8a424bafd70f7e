//! Each invariant broken on purpose, and seen caught by the checks that pass when nothing is broken.

use super::order::{seqs_out_of_order, uneven};
use super::trouble::refusing;
use crate::VolumeState;
use crate::breaks::Break;
use crate::disk::ops::Op;
use crate::kit::{Answers, Lab, Load, load, loads, wait};
use afterimage_base::block::Request;
use afterimage_base::simple::call;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

/// Whether disk and replica differ in the end, after up to `tries` rounds.
fn differs(lab: &Lab, tries: u64, mut round: impl FnMut(u64)) -> bool {
    (0..tries).any(|n| {
        round(n);
        lab.difference().is_some()
    })
}

#[test]
fn i1_without_range_lock_disk_and_history_differ() {
    let mut lab = Lab::new(1 << 20);
    lab.ring_bytes = 256 << 20;
    let (_agent, volume) = lab.open();
    wait(&volume, |s| s.state == VolumeState::Live);
    uneven(&volume);
    volume.shared().p.breaks.set(Break::NoRangeLock);
    assert!(differs(&lab, 20, |n| {
        loads(&volume.device(), 4, |q| Load { operations: 500, ..Load::small(q + 1 + 10 * n) });
        wait(&volume, |s| s.state == VolumeState::Live && s.seq_durable == s.seq_acked);
    }));
}

#[test]
fn i2_the_check_sees_seqs_that_are_swapped() {
    let lab = Lab::new(1 << 20);
    let (_agent, volume) = lab.open();
    wait(&volume, |s| s.state == VolumeState::Live);
    let done = load(&volume.device(), Load { depth: 1, zeroes: 1000, operations: 50, ..Load::small(1) });
    lab.settle(&volume);
    let mut kept = lab.appliance.kept();
    assert_eq!(seqs_out_of_order(&kept, &done), []);
    let n = kept.log.len();
    (kept.log[n - 1].0.seq, kept.log[n - 9].0.seq) = (kept.log[n - 9].0.seq, kept.log[n - 1].0.seq);
    assert_ne!(seqs_out_of_order(&kept, &done), []);
}

#[test]
fn i3_a_dirty_write_without_a_mark_is_missed() {
    let lab = Lab::new(4 << 20);
    let (_agent, volume) = lab.open();
    wait(&volume, |s| s.state == VolumeState::Live);
    volume.shared().p.breaks.set(Break::NoMark);
    lab.appliance.away.store(true, Ordering::SeqCst);
    lab.appliance.cut();
    wait(&volume, |s| !s.connected);
    volume.shared().p.close("the test closes it");
    load(&volume.device(), Load::small(1));
    lab.appliance.away.store(false, Ordering::SeqCst);
    wait(&volume, |s| s.state == VolumeState::Live && s.seq_durable == s.seq_acked);
    assert!(lab.difference().is_some());
}

/// A live write has its seq and is held up on its way to the disk while the sync copies its region.
#[test]
fn i1_a_sync_that_does_not_wait_for_writes_copies_what_is_old() {
    for broken in [false, true] {
        let lab = Lab::new(256 << 10);
        let (_agent, volume) = lab.open();
        lab.settle(&volume);
        // The way without comparison; the other has a test of its own.
        *lab.appliance.answers.lock().unwrap() = Answers::CannotTell;
        if broken {
            volume.shared().p.breaks.set(Break::SyncUnlocked);
        }
        lab.appliance.away.store(true, Ordering::SeqCst);
        lab.appliance.cut();
        wait(&volume, |s| !s.connected);
        volume.shared().p.close("the test closes it");
        load(&volume.device(), Load { operations: 1, zeroes: 1000, ..Load::small(1) });
        let (submitted, go) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (seen, held) = (Arc::clone(&submitted), Arc::clone(&go));
        let hook = move |op, _, _| {
            if op == Op::Write {
                seen.store(true, Ordering::SeqCst);
            }
            let flag = if op == Op::Write { &held } else { &seen };
            while !flag.load(Ordering::SeqCst) {
                thread::sleep(Duration::from_millis(1));
            }
            None
        };
        volume.shared().core.disk.faults.set(Some(Box::new(hook)));
        lab.appliance.away.store(false, Ordering::SeqCst);
        wait(&volume, |s| s.state == VolumeState::Resync);
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut queue = volume.device().open_queue().unwrap();
                let whole = vec![0x77; 256 << 10];
                call(&mut *queue, Request::Write { offset: 0, data: &whole, fua: false }).unwrap();
            });
            while !submitted.load(Ordering::SeqCst) {
                thread::sleep(Duration::from_millis(1));
            }
            if broken {
                wait(&volume, |s| s.state == VolumeState::Live);
            } else {
                thread::sleep(Duration::from_millis(50));
                assert_eq!(volume.status().state, VolumeState::Resync, "it waits for the write");
            }
            go.store(true, Ordering::SeqCst);
        });
        wait(&volume, |s| s.state == VolumeState::Live && s.seq_durable == s.seq_acked);
        assert_eq!(lab.difference().is_some(), broken);
    }
}

#[test]
fn a_refused_write_without_a_gap_leaves_disk_and_history_apart() {
    let lab = Lab::new(4 << 20);
    let (_agent, volume) = lab.open();
    wait(&volume, |s| s.state == VolumeState::Live);
    volume.shared().p.breaks.set(Break::NoGapOnError);
    assert!(differs(&lab, 20, |n| {
        refusing(&volume, 20, libc::EIO);
        loads(&volume.device(), 2, |q| Load { operations: 200, ..Load::small(q + 1 + 10 * n) });
        volume.shared().core.disk.faults.set(None);
        wait(&volume, |s| s.state == VolumeState::Live && s.seq_durable == s.seq_acked);
    }));
}

#[test]
fn i6_writes_that_do_not_pass_the_gate_get_in_while_it_is_held() {
    for broken in [false, true] {
        let lab = Lab::new(4 << 20);
        let (_agent, volume) = lab.open();
        wait(&volume, |s| s.state == VolumeState::Live);
        if broken {
            volume.shared().p.breaks.set(Break::NoGate);
        }
        thread::scope(|scope| {
            let shared = Arc::clone(volume.shared());
            let hold = shared.p.gate.close();
            let next = shared.p.ring.next();
            let busy = scope.spawn(|| load(&volume.device(), Load { operations: 50, ..Load::small(1) }));
            if broken {
                while !busy.is_finished() {
                    thread::sleep(Duration::from_millis(1));
                }
            } else {
                thread::sleep(Duration::from_millis(50));
            }
            assert_eq!(shared.p.ring.next() != next, broken);
            drop(hold);
            busy.join().unwrap();
        });
    }
}

#[test]
fn a_fork_that_is_ignored_is_refused_by_the_appliance() {
    let lab = Lab::new(4 << 20);
    let (_agent, volume) = lab.open();
    load(&volume.device(), Load::small(1));
    lab.settle(&volume);
    volume.shared().p.breaks.set(Break::IgnoreFork);
    lab.appliance.kept.lock().unwrap().log.truncate(10);
    lab.appliance.cut();
    load(&volume.device(), Load::small(2));
    wait(&volume, |_| lab.appliance.complaint.lock().unwrap().is_some());
}

/// The first copy of the region fails between look and publication; its mark must still be there for the next.
#[test]
fn i3_a_mark_taken_away_before_the_record_is_there_is_lost() {
    for broken in [false, true] {
        let lab = Lab::new(64 << 10);
        std::fs::write(lab.disk(), vec![6; 64 << 10]).unwrap();
        lab.appliance.away.store(true, Ordering::SeqCst);
        let (_agent, volume) = lab.open();
        if broken {
            volume.shared().p.breaks.set(Break::ClearEarly);
        }
        let reads = AtomicU64::new(0);
        let second = move |op, _, _| (op == Op::Read && reads.fetch_add(1, Ordering::SeqCst) == 1).then_some(libc::EIO);
        volume.shared().core.disk.faults.set(Some(Box::new(second)));
        lab.appliance.away.store(false, Ordering::SeqCst);
        wait(&volume, |s| s.state == VolumeState::Live && s.seq_durable == s.seq_acked);
        assert_eq!(lab.difference().is_some(), broken);
    }
}

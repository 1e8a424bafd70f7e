//! I1, I2: the order of seqs.

use crate::CacheMode;
use crate::disk::ops::Op;
use crate::kit::{Dice, Done, Kept, Lab, Load, loads, wait};
use crate::{PointError, Volume, VolumeState};
use afterimage_base::block::{BlockDevice, Request};
use afterimage_base::simple::call;
use afterimage_format::record::{FLAG_SYNC, Kind};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// Makes the disk slow and uneven, so that what can overtake does.
pub(super) fn uneven(volume: &Volume) {
    let dice = Mutex::new(Dice::new(77));
    let fault = move |op: Op, _, _| {
        let roll = dice.lock().unwrap().below(12);
        if op != Op::Read && roll == 0 {
            thread::sleep(Duration::from_micros(300));
        }
        None
    };
    volume.shared().core.disk.faults.set(Some(Box::new(fault)));
}

/// If a write was submitted after another had been acknowledged, its seq is higher (I2). Says which are not.
pub(super) fn seqs_out_of_order(kept: &Kept, done: &[Done]) -> Vec<(u64, u64)> {
    let guest = kept.log.iter().filter(|(r, p)| r.kind == Kind::Write && r.flags & FLAG_SYNC == 0 && p.len() >= 8);
    let seqs: HashMap<u64, u64> = guest.map(|(r, p)| (u64::from_le_bytes(p[..8].try_into().unwrap()), r.seq)).collect();
    let mut events: Vec<(u64, bool, u64)> = Vec::new();
    for d in done.iter().filter(|d| d.stamp != 0) {
        let seq = seqs[&d.stamp];
        events.push((d.submitted, false, seq));
        events.push((d.acked, true, seq));
    }
    events.sort_unstable();
    let (mut highest, mut wrong) = (0, Vec::new());
    for (_, acked, seq) in events {
        if acked {
            highest = highest.max(seq);
        } else if seq < highest {
            wrong.push((seq, highest));
        }
    }
    wrong
}

fn many_queues(cache: CacheMode, grain: u64, without_uring: bool) {
    let mut lab = Lab::new(1 << 20);
    lab.cache = cache;
    lab.ring_bytes = 512 << 20;
    let (_agent, volume) = lab.open();
    wait(&volume, |s| s.state == VolumeState::Live);
    uneven(&volume);
    if without_uring {
        volume.shared().core.disk.faults.forbid_uring();
    }
    let device = volume.device();
    let done = loads(&device, 4, |n| Load { grain, ..Load::small(n + 1) });
    assert!(done.iter().all(|d| d.ok));
    lab.settle(&volume);
    assert_eq!(seqs_out_of_order(&lab.appliance.kept(), &done), []);
    assert_eq!(lab.appliance.kept().gaps().len(), 1, "the ring was large enough");
}

#[test]
fn overlapping_writes_reach_disk_and_history_in_one_order() {
    many_queues(CacheMode::Writeback, 512, false);
}

#[test]
fn the_same_at_every_byte() {
    many_queues(CacheMode::Writeback, 1, false);
}

#[test]
fn the_same_past_the_page_cache() {
    many_queues(CacheMode::None, 4096, false);
}

#[test]
fn the_same_past_the_page_cache_at_every_byte() {
    many_queues(CacheMode::None, 1, false);
}

#[test]
fn the_same_without_io_uring() {
    many_queues(CacheMode::None, 512, true);
}

#[test]
fn a_long_write_is_several_records_and_one_acknowledgement() {
    let mut lab = Lab::new(64 << 20);
    lab.ring_bytes = 128 << 20;
    let (_agent, volume) = lab.open();
    wait(&volume, |s| s.state == VolumeState::Live);
    let mut queue = volume.device().open_queue().unwrap();
    let data: Vec<u8> = (0..32 << 20).map(|i: u32| u8::try_from(i % 251).unwrap()).collect();
    call(&mut *queue, Request::Write { offset: 12_345, data: &data, fua: false }).unwrap();
    call(&mut *queue, Request::Trim { offset: 1 << 20, len: 30 << 20, fua: true }).unwrap();
    lab.settle(&volume);
    let kept = lab.appliance.kept();
    assert_eq!(kept.log.iter().filter(|(r, _)| r.kind == Kind::Write).count(), 32);
    assert_eq!(kept.log.iter().filter(|(r, _)| r.kind == Kind::Zero).count(), 1);
}

/// What a reader sees at a point is what was written before it, and nothing from behind it.
#[test]
fn a_point_is_a_cut_through_all_queues() {
    let mut lab = Lab::new(1 << 20);
    lab.ring_bytes = 256 << 20;
    let (agent, volume) = lab.open();
    assert!(matches!(volume.create_point("", false), Err(PointError::Name(_))));
    wait(&volume, |s| s.state == VolumeState::Live);
    let device: Arc<dyn BlockDevice> = volume.device();
    let (seqs, done) = thread::scope(|scope| {
        let busy = scope.spawn(|| loads(&device, 3, |n| Load { zeroes: 1000, ..Load::small(n + 1) }));
        let seqs: Vec<u64> = (0..50).map(|i| volume.create_point(&format!("p{i}"), i % 2 == 0).unwrap().0).collect();
        (seqs, busy.join().unwrap())
    });
    lab.settle(&volume);
    let kept = lab.appliance.kept();
    assert!(seqs.is_sorted());
    for (i, seq) in seqs.iter().enumerate() {
        let (record, name) = &kept.log[usize::try_from(*seq).unwrap() - 1];
        assert_eq!((record.seq, record.kind), (*seq, Kind::Point));
        assert_eq!(name, format!("p{i}").as_bytes());
    }
    assert_eq!(seqs_out_of_order(&kept, &done), []);
    assert!(agent.stop(Duration::from_secs(30)));
    assert_eq!(lab.appliance.kept().log.last().map(|(_, p)| p.clone()), Some(b"shutdown".to_vec()));
}

//! Comparing disk and history without stopping the guest.

use crate::breaks::Break;
use crate::kit::{Answers, Lab, Load, load, loads, wait};
use crate::{VerifyError, VerifyOptions, VerifyProgress, VerifyReport, Volume, VolumeState};
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;
use std::thread;

const MIB: u64 = 1 << 20;

fn verify(volume: &Volume, options: &VerifyOptions) -> VerifyReport {
    let mut last = 0;
    let report = volume.verify(options, &mut |p: &VerifyProgress| {
        assert!(p.done >= last && p.done <= p.total);
        last = p.done;
        true
    });
    report.unwrap()
}

fn behind_the_back(lab: &Lab, offset: u64, byte: u8) {
    std::fs::File::options().write(true).open(lab.disk()).unwrap().write_all_at(&[byte], offset).unwrap();
}

#[test]
fn a_flipped_byte_is_found_and_healed_and_nothing_else() {
    for size in [16 * MIB, 16 * MIB + 777] {
        let mut lab = Lab::new(size);
        lab.ring_bytes = 256 * MIB;
        let (_agent, volume) = lab.open();
        load(&volume.device(), Load { span: 8 * MIB, ..Load::small(1) });
        lab.settle(&volume);
        let all = VerifyOptions::default();
        let report = verify(&volume, &all);
        assert_eq!((report.equal, report.differing, report.unknown), (size, 0, 0));
        let last = size - 1;
        for at in [0, 3 * MIB + 5000, 12 * MIB, last] {
            behind_the_back(&lab, at, 0xAB);
        }
        let block = |at: u64| at / 4096 * 4096..(at / 4096 * 4096 + 4096).min(size);
        let report = verify(&volume, &all);
        assert_eq!(report.differing_ranges, [block(0), block(3 * MIB + 5000), block(12 * MIB), block(last)]);
        assert_eq!(report.equal + report.differing, size);
        assert!(!report.repairing);
        let part = VerifyOptions { range: Some(3 * MIB + 5000..3 * MIB + 5001), ..VerifyOptions::default() };
        let found = verify(&volume, &part);
        assert_eq!((found.total, found.differing_ranges.first()), (4096, Some(&block(3 * MIB + 5000))));
        assert_eq!(lab.appliance.kept().gaps().len(), 1, "looking changes nothing");
        assert!(verify(&volume, &VerifyOptions { repair: true, ..VerifyOptions::default() }).repairing);
        lab.settle(&volume);
        assert_eq!(lab.appliance.kept().gaps().len(), 2);
        assert_eq!(verify(&volume, &all).differing, 0);
    }
}

#[test]
fn beside_full_random_load_nothing_is_found_and_with_the_wrong_seq_something_is() {
    for broken in [false, true] {
        let mut lab = Lab::new(4 * MIB);
        lab.ring_bytes = 256 * MIB;
        let (_agent, volume) = lab.open();
        lab.settle(&volume);
        if broken {
            volume.shared().p.breaks.set(Break::WrongSeq);
        }
        let device = volume.device();
        let found = thread::scope(|scope| {
            let busy = scope.spawn(|| {
                loads(&device, 3, |n| Load { span: 4 * MIB, longest: 8192, operations: 6000, ..Load::small(n + 1) })
            });
            let (mut found, mut rounds) = (0, 0);
            while !busy.is_finished() || rounds == 0 {
                let report = verify(&volume, &VerifyOptions::default());
                assert_eq!(report.unknown, 0);
                (found, rounds) = (found + report.differing, rounds + 1);
            }
            busy.join().unwrap();
            found
        });
        assert_eq!(found > 0, broken);
        lab.settle(&volume);
    }
}

#[test]
fn it_says_when_it_cannot() {
    let lab = Lab::new(4 * MIB);
    let (_agent, volume) = lab.open();
    load(&volume.device(), Load::small(1));
    lab.settle(&volume);
    let mut on = |_: &VerifyProgress| true;
    let beyond = VerifyOptions { range: Some(0..4 * MIB + 1), ..VerifyOptions::default() };
    assert!(matches!(volume.verify(&beyond, &mut on), Err(VerifyError::Range { .. })));
    let all = VerifyOptions::default();
    assert!(matches!(volume.verify(&all, &mut |_| false), Err(VerifyError::Cancelled(_))));
    *lab.appliance.answers.lock().unwrap() = Answers::CannotTell;
    let report = volume.verify(&all, &mut on).unwrap();
    assert_eq!(report.unknown, 4 * MIB);
    assert!(report.unknown_ranges.iter().eq([&(0..4 * MIB)]));
    lab.appliance.away.store(true, Ordering::SeqCst);
    lab.appliance.cut();
    wait(&volume, |s| !s.connected);
    volume.shared().p.close("the test closes it");
    assert!(matches!(volume.verify(&all, &mut on), Err(VerifyError::NotLive { .. })));
    lab.appliance.old.store(true, Ordering::SeqCst);
    lab.appliance.away.store(false, Ordering::SeqCst);
    wait(&volume, |s| s.state == VolumeState::Live && s.seq_durable == s.seq_acked);
    assert!(matches!(volume.verify(&all, &mut on), Err(VerifyError::Old(_))));
}

#[test]
fn sessions_that_break_do_not_disturb_it() {
    let lab = Lab::new(8 * MIB);
    let (_agent, volume) = lab.open();
    load(&volume.device(), Load { span: 8 * MIB, ..Load::small(1) });
    lab.settle(&volume);
    behind_the_back(&lab, 7 * MIB, 0xAB);
    let mut calls = 0;
    let report = volume.verify(&VerifyOptions::default(), &mut |_| {
        calls += 1;
        if calls % 7 == 3 && calls < 60 {
            lab.appliance.cut();
        }
        true
    });
    assert!(report.unwrap().differing_ranges.iter().eq([&(7 * MIB..7 * MIB + 4096)]));
}

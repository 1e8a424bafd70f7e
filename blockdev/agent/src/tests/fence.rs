//! Fences (I13): what a fenced volume takes, what it brings, and when it is let go.

use crate::breaks::Break;
use crate::fence::FencePolicy;
use crate::kit::{Lab, Load, load, wait};
use crate::{Agent, Volume, VolumeState, VolumeStatus};
use afterimage_base::block::{BlockError, Request};
use afterimage_base::buf::AlignedBuf;
use afterimage_base::simple::call;
use afterimage_format::fence::Fence;
use afterimage_format::record::{FLAG_AUTO, Kind};
use afterimage_format::wire::{VERSION, Welcome};
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;
use std::time::Duration;

const CLOSED: u8 = 2;

fn some(seed: u64) -> Load {
    Load { span: 4 << 20, operations: 300, ..Load::small(seed) }
}

fn write(volume: &Volume, fill: u8) -> Result<(), BlockError> {
    let mut queue = volume.device().open_queue().unwrap();
    call(&mut *queue, Request::Write { offset: 8192, data: &[fill; 4096], fua: false }).map(drop)
}

fn read(volume: &Volume) -> Result<u8, BlockError> {
    let mut queue = volume.device().open_queue().unwrap();
    let buf = AlignedBuf::zeroed(4096);
    call(&mut *queue, Request::Read { offset: 8192, buf }).map(|buf| buf.map_or(0, |b| b[0]))
}

/// The appliance says so at the next hello.
fn say(lab: &Lab, epoch: u64, fence: u8) {
    lab.appliance.epoch.store(epoch, Ordering::SeqCst);
    lab.appliance.fence.store(fence, Ordering::SeqCst);
    lab.appliance.cut();
}

fn is_fenced(status: &VolumeStatus) -> bool {
    status.state == VolumeState::Fenced
}

fn points(lab: &Lab) -> Vec<String> {
    let log = lab.appliance.kept().log;
    let points = log.iter().filter(|(r, _)| r.kind == Kind::Point);
    points.map(|(_, name)| String::from_utf8(name.clone()).unwrap()).collect()
}

#[test]
fn i13_a_fenced_volume_takes_no_write_and_brings_all_that_it_has() {
    let lab = Lab::new(4 << 20);
    let (agent, volume) = lab.open();
    lab.settle(&volume);
    // What the appliance does not hear of any more, and then the fence.
    lab.appliance.away.store(true, Ordering::SeqCst);
    lab.appliance.cut();
    load(&volume.device(), some(1));
    write(&volume, 7).unwrap();
    say(&lab, 1, CLOSED);
    lab.appliance.away.store(false, Ordering::SeqCst);
    wait(&volume, is_fenced);
    assert_eq!(write(&volume, 8), Err(BlockError::ReadOnly));
    assert_eq!(read(&volume), Ok(7));
    assert!(volume.device().geometry().read_only, "who connects now sees that");
    wait(&volume, |_| points(&lab).last().is_some_and(|p| p == "fenced-1"));
    lab.compare();
    let status = volume.status();
    assert!(status.reason.as_ref().is_some_and(|r| r.contains("epoch 1")), "{status:?}");
    assert_eq!(status.epoch, 1);
    volume.set_fence_policy(FencePolicy::Refuse);
    assert_eq!(read(&volume), Err(BlockError::Io(libc::EIO)));

    // The next start knows it before it hears from anybody.
    drop((agent, volume));
    lab.appliance.away.store(true, Ordering::SeqCst);
    let (_agent, volume) = lab.open();
    assert_eq!(write(&volume, 9), Err(BlockError::ReadOnly));
    assert!(is_fenced(&volume.status()));

    // An older copy of the vault, which knows nothing of the fence, takes it down for nobody; a higher epoch does.
    for epoch in [0, 1] {
        say(&lab, epoch, 0);
        lab.appliance.away.store(false, Ordering::SeqCst);
        wait(&volume, |s| s.connected);
        assert_eq!(write(&volume, 9), Err(BlockError::ReadOnly), "epoch {epoch}");
    }
    say(&lab, 2, 0);
    wait(&volume, |s| s.state == VolumeState::Live);
    write(&volume, 10).unwrap();
    lab.settle(&volume);
    // Somebody else might have written to the disk meanwhile: it was compared, in a gap.
    assert_eq!(lab.appliance.kept().gaps().len(), 2);
}

#[test]
fn i13_broken_a_volume_that_does_not_heed_its_fence_is_seen() {
    let lab = Lab::new(4 << 20);
    let (_agent, volume) = lab.open();
    lab.settle(&volume);
    volume.shared().p.breaks.set(Break::IgnoreFence);
    say(&lab, 1, CLOSED);
    wait(&volume, is_fenced);
    assert!(write(&volume, 8).is_ok(), "the break was not seen");
}

/// How often the appliance has this point.
fn times(lab: &Lab, name: &str) -> usize {
    points(lab).iter().filter(|p| *p == name).count()
}

#[test]
fn the_point_at_the_end_of_a_fenced_disk_stays_and_nothing_comes_behind_it() {
    let lab = Lab::new(4 << 20);
    let (agent, volume) = lab.open();
    lab.settle(&volume);
    say(&lab, 1, CLOSED);
    wait(&volume, |_| times(&lab, "fenced-1") == 1);
    let log = lab.appliance.kept().log;
    let (point, _) = log.iter().rev().find(|(r, _)| r.kind == Kind::Point).unwrap();
    assert_eq!(point.flags & FLAG_AUTO, 0, "retention takes automatic ones away");
    assert!(agent.stop(Duration::from_secs(60)));
    assert_eq!(points(&lab), ["fenced-1"]);
}

#[test]
fn what_a_fenced_disk_brings_again_ends_with_its_point_again() {
    let lab = Lab::new(4 << 20);
    let (agent, volume) = lab.open();
    lab.settle(&volume);
    say(&lab, 1, CLOSED);
    wait(&volume, |_| times(&lab, "fenced-1") == 1);
    volume.compare();
    wait(&volume, |_| times(&lab, "fenced-1") == 2);
    // What the ring had is lost, and perhaps had not arrived.
    drop((agent, volume));
    std::fs::remove_file(lab.dir.path().join("agent/vol/ring")).unwrap();
    let (_agent, volume) = lab.open();
    wait(&volume, |_| times(&lab, "fenced-1") == 3);
    lab.compare();
    assert_eq!(lab.appliance.kept().gaps().len(), 3);
}

#[test]
fn i13_fences_that_were_not_heard_of_make_everything_compared() {
    let lab = Lab::new(4 << 20);
    let (_agent, volume) = lab.open();
    lab.settle(&volume);
    let gaps = || lab.appliance.kept().gaps().len();
    // One has come and gone.
    say(&lab, 2, 0);
    wait(&volume, |s| s.epoch == 2 && gaps() == 2);
    lab.settle(&volume);
    write(&volume, 7).unwrap();
    // Of a fence that goes up without another in between all is known.
    say(&lab, 3, CLOSED);
    wait(&volume, |_| times(&lab, "fenced-3") == 1);
    assert_eq!(gaps(), 2);
    // It has gone, and another one has come: whoever wrote to the disk in between is found.
    let disk = std::fs::OpenOptions::new().write(true).open(lab.disk()).unwrap();
    disk.write_all_at(&[5; 8192], 1 << 20).unwrap();
    say(&lab, 5, CLOSED);
    wait(&volume, |_| times(&lab, "fenced-5") == 1);
    assert_eq!((gaps(), volume.status().epoch), (3, 5));
    let log = lab.appliance.kept().log;
    assert!(matches!(log.last(), Some((r, _)) if r.kind == Kind::Point), "its point is behind what was compared");
    lab.compare();
    assert_eq!(write(&volume, 8), Err(BlockError::ReadOnly));
    // The same where the first of two was not heard of.
    say(&lab, 6, 0);
    wait(&volume, |s| s.state == VolumeState::Live);
    say(&lab, 9, CLOSED);
    wait(&volume, |_| times(&lab, "fenced-9") == 1);
    assert_eq!(gaps(), 5);
}

#[test]
fn a_fence_that_comes_down_and_cannot_be_noted_comes_down_at_the_next_hello() {
    let lab = Lab::new(4 << 20);
    let (_agent, volume) = lab.open();
    lab.settle(&volume);
    say(&lab, 1, CLOSED);
    wait(&volume, |_| times(&lab, "fenced-1") == 1);
    lab.appliance.away.store(true, Ordering::SeqCst);
    lab.appliance.cut();
    wait(&volume, |s| !s.connected);
    let shared = volume.shared();
    let note = shared.meta_file.clone();
    let obstacle = note.with_file_name("volume.json.new");
    let (ring, durable) = (shared.p.ring.id(), volume.durable());
    let gone = Welcome { version: VERSION, ring, durable, digest: 0, credit: 0, epoch: 2, fence: Fence::Open };
    // It has begun, and waits for this before it compares.
    let held = shared.epoch();
    std::thread::scope(|s| {
        let heeds = s.spawn(|| shared.heed(&gone));
        while !std::fs::read_to_string(&note).unwrap().contains("\"unmarked\": true") {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::fs::create_dir(&obstacle).unwrap();
        drop(held);
        assert!(heeds.join().unwrap().is_err());
    });
    assert_eq!(write(&volume, 8), Err(BlockError::ReadOnly));
    let status = volume.status();
    assert!(status.fenced_since.is_some() && status.epoch == 1, "{status:?}");
    std::fs::remove_dir(&obstacle).unwrap();
    lab.appliance.epoch.store(2, Ordering::SeqCst);
    lab.appliance.fence.store(0, Ordering::SeqCst);
    lab.appliance.away.store(false, Ordering::SeqCst);
    wait(&volume, |s| s.state == VolumeState::Live);
    write(&volume, 9).unwrap();
    lab.settle(&volume);
}

/// The host burns down: agent, journal and disk are gone, and another disk is to take their place. Its volume's id is answered.
fn burn_down(lab: &mut Lab) -> [u8; 16] {
    let (agent, volume) = lab.open();
    load(&volume.device(), some(6));
    lab.settle(&volume);
    let id = volume.id();
    drop((agent, volume));
    std::fs::remove_dir_all(lab.dir.path().join("agent")).unwrap();
    std::fs::File::create(lab.disk()).unwrap().set_len(lab.size).unwrap();
    lab.adopt = Some(id);
    id
}

#[test]
fn i13_a_disk_in_the_place_of_a_lost_one_brings_nothing_before_the_volume_is_fenced() {
    let mut lab = Lab::new(4 << 20);
    let id = burn_down(&mut lab);
    let there = lab.appliance.kept().durable();
    let (agent, volume) = lab.open();
    assert_eq!((volume.id(), write(&volume, 8)), (id, Err(BlockError::ReadOnly)));
    // Nobody has failed over, or a planned failover is not through.
    for (epoch, fence) in [(0, 0), (4, 0), (5, 1)] {
        volume.shared().state().refused = None;
        say(&lab, epoch, fence);
        wait(&volume, |s| s.reason.as_ref().is_some_and(|e| e.contains("not fenced")));
    }
    // Nor does an appliance take it that would take it for the old disk.
    lab.appliance.old.store(true, Ordering::SeqCst);
    wait(&volume, |s| s.reason.as_ref().is_some_and(|e| e.contains("too old")));
    lab.appliance.old.store(false, Ordering::SeqCst);
    assert_eq!((lab.appliance.kept().durable(), write(&volume, 8)), (there, Err(BlockError::ReadOnly)));
    drop((agent, volume));

    // The next start still waits, and another volume's id is not taken.
    lab.adopt = Some([9; 16]);
    let other = Agent::new(lab.config()).add_volume(lab.volume_config()).err().unwrap();
    assert!(other.to_string().contains("cannot adopt"), "{other}");
    lab.adopt = Some(id);
    let (agent, volume) = lab.open();
    assert_eq!(write(&volume, 8), Err(BlockError::ReadOnly));
    say(&lab, 5, CLOSED);
    wait(&volume, |_| points(&lab).last().is_some_and(|p| p == "fenced-5"));
    lab.compare();
    let history = lab.appliance.kept();
    assert!(history.consistent() && history.gaps().len() == 2, "{:?}", history.gaps());
    drop((agent, volume));

    // From now on it is a fenced disk like any other, also where it is not said again.
    lab.adopt = None;
    let (_agent, volume) = lab.open();
    assert_eq!(write(&volume, 8), Err(BlockError::ReadOnly));
    say(&lab, 6, 0);
    wait(&volume, |s| s.state == VolumeState::Live);
    write(&volume, 9).unwrap();
    lab.settle(&volume);
}

#[test]
fn i13_broken_a_disk_that_adopts_a_volume_without_a_fence_is_seen() {
    let mut lab = Lab::new(4 << 20);
    burn_down(&mut lab);
    let there = lab.appliance.kept().durable();
    let (_agent, volume) = lab.open();
    volume.shared().p.breaks.set(Break::AdoptUnfenced);
    say(&lab, 0, 0);
    let until = std::time::Instant::now() + Duration::from_secs(60);
    while lab.appliance.kept().durable() == there {
        assert!(std::time::Instant::now() < until, "the break was not seen");
        std::thread::sleep(Duration::from_millis(5));
    }
}

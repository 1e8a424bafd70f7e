//! Fences (I13): what a fenced volume takes, what it brings, and when it is let go.

use crate::breaks::Break;
use crate::fence::FencePolicy;
use crate::kit::{Lab, Load, load, wait};
use crate::{Volume, VolumeState, VolumeStatus};
use afterimage_base::block::{BlockError, Request};
use afterimage_base::buf::AlignedBuf;
use afterimage_base::simple::call;
use afterimage_format::record::Kind;
use std::sync::atomic::Ordering;

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

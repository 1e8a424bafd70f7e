//! What the agent makes of each reason for which an appliance refuses it.

use crate::api::VolumeStatus;
use crate::kit::{Lab, Load, load, wait};
use crate::{Volume, VolumeState};
use afterimage_format::wire::RefuseCode;
use std::sync::atomic::Ordering;
use std::thread;

fn some(seed: u64) -> Load {
    Load { span: 4 << 20, operations: 300, ..Load::small(seed) }
}

fn refusals(lab: &Lab) -> u64 {
    lab.appliance.refusals.load(Ordering::SeqCst)
}

fn wait_refused(lab: &Lab, volume: &Volume, times: u64) {
    let before = refusals(lab);
    wait(volume, |_| refusals(lab) >= before + times);
}

#[test]
fn what_somebody_has_to_look_at_is_shown_and_passes() {
    use RefuseCode::{Failed, Malformed, Unknown, Version};
    let codes = [Failed, Malformed, Version, RefuseCode::Volume, Unknown];
    thread::scope(|scope| {
        for code in codes {
            scope.spawn(move || {
                let lab = Lab::new(4 << 20);
                let (_agent, volume) = lab.open();
                lab.settle(&volume);
                lab.appliance.refuse(Some(code));
                let status = wait(&volume, |s| s.state == VolumeState::Error);
                assert!(status.reason.is_some_and(|r| r.contains("broken on purpose")), "{code:?}");
                assert!(load(&volume.device(), some(1)).iter().all(|d| d.ok), "{code:?} is no business of the guest");
                lab.appliance.refuse(None);
                lab.settle(&volume);
            });
        }
    });
}

/// Refuses a volume under load for some time, and takes it again: its ring keeps everything meanwhile, so there is no gap. Returns what
/// the volume said of itself meanwhile.
fn refused_without_a_gap(code: RefuseCode) -> VolumeStatus {
    let lab = Lab::new(4 << 20);
    let (_agent, volume) = lab.open();
    lab.settle(&volume);
    let gaps = lab.appliance.kept().gaps().len();
    lab.appliance.refuse(Some(code));
    assert!(load(&volume.device(), some(1)).iter().all(|d| d.ok));
    wait_refused(&lab, &volume, 3);
    let status = volume.status();
    assert_eq!(status.state, VolumeState::Live, "{status:?}");
    lab.appliance.refuse(None);
    lab.settle(&volume);
    assert_eq!(volume.status().reason, None);
    assert_eq!(lab.appliance.kept().gaps().len(), gaps);
    status
}

#[test]
fn an_appliance_without_room_is_no_error_and_is_asked_again_soon() {
    let status = refused_without_a_gap(RefuseCode::Full);
    assert!(status.reason.as_deref().is_some_and(|r| r.contains("no room")), "{status:?}");
}

#[test]
fn who_is_superseded_comes_back_and_goes_on() {
    refused_without_a_gap(RefuseCode::Superseded);
}

#[test]
fn a_history_that_cannot_be_gone_on_with_is_begun_anew_after_the_second_refusal() {
    let lab = Lab::new(4 << 20);
    let (_agent, volume) = lab.open();
    lab.settle(&volume);
    let gaps = lab.appliance.kept().gaps().len();
    lab.appliance.refuse(Some(RefuseCode::Continuity));
    let status = wait(&volume, |s| s.state != VolumeState::Live);
    assert!(status.reason.is_some_and(|r| r.contains("no continuity")));
    assert!(refusals(&lab) >= 2, "the first may be an old session's");
    assert!(load(&volume.device(), some(1)).iter().all(|d| d.ok));
    lab.appliance.refuse(None);
    lab.settle(&volume);
    assert!(lab.appliance.kept().gaps().len() > gaps);
}

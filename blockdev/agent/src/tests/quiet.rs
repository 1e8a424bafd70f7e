//! What the appliance is told of times without writes: never of a time in which writes have no seq (I6).

use crate::breaks::Break;
use crate::kit::{Lab, Load, load, wait};
use crate::session::quiet;
use afterimage_format::record::Kind;
use std::sync::atomic::Ordering;

#[test]
fn i6_nothing_is_said_while_a_write_may_be_missing() {
    let lab = Lab::new(4 << 20);
    let (_agent, volume) = lab.open();
    lab.settle(&volume);
    load(&volume.device(), Load { span: 4 << 20, operations: 20, ..Load::small(3) });
    lab.settle(&volume);
    let last = volume.status().seq_acked;
    let before = volume.shared().p.clock.wall();
    wait(&volume, |_| lab.appliance.quiet.lock().unwrap().is_some_and(|q| q.seq == last && q.time >= before));

    lab.appliance.away.store(true, Ordering::SeqCst);
    lab.appliance.cut();
    wait(&volume, |s| !s.connected);
    let (shared, next) = (volume.shared(), last + 1);
    assert_eq!(quiet(shared, next).map(|q| q.seq), Some(last));
    // A write that has its seq and is not published.
    let place = shared.p.ring.reserve(Kind::Void, 0, 0, 0, 0).unwrap();
    assert_eq!(quiet(shared, next), None);
    place.publish(shared.p.clock.wall());
    let next = next + 1;
    assert!(quiet(shared, next).is_some());
    // From here on writes get none.
    shared.p.close("the ring is full");
    assert_eq!(quiet(shared, next), None);
    shared.p.breaks.set(Break::QuietClosed);
    assert!(quiet(shared, next).is_some(), "broken on purpose: a moment of the gap would be shown");
}

//! The agent's part in a barrier: gates close and open again whatever mgmt does, and markers become durable or are lost.

use super::*;
use crate::kit::{Lab, Load, load, wait};
use std::sync::mpsc::{Receiver, channel};

const OF: Named = Named { epoch: 1, number: 1 };

struct Lectern {
    lab: Lab,
    _agent: Arc<Agent>,
    volume: Arc<Volume>,
    barriers: Barriers,
    answers: Receiver<(Message, Vec<u8>)>,
}

impl Lectern {
    fn new() -> Lectern {
        let lab = Lab::new(4 << 20);
        let (agent, volume) = lab.open();
        wait(&volume, |s| s.state == VolumeState::Live);
        let agent = Arc::new(agent);
        let barriers = Barriers::start(&agent).unwrap();
        let (send, answers) = channel();
        barriers.begin(Box::new(move |kind, body| {
            let _ = send.send((kind, body.to_vec()));
            Ok(())
        }));
        Lectern { lab, _agent: agent, volume, barriers, answers }
    }

    fn prepare(&self, number: u64, hold_us: u32) -> Named {
        let of = Named { number, ..OF };
        self.barriers.take(Message::Prepare, &Prepare { of, hold_us }.encode()).unwrap();
        of
    }

    fn release(&self, of: Named) -> Released {
        self.barriers.take(Message::Release, &of.encode()).unwrap();
        let (kind, body) = self.answer();
        assert_eq!(kind, Message::Released);
        Released::decode(&body).unwrap()
    }

    fn answer(&self) -> (Message, Vec<u8>) {
        self.answers.recv_timeout(Duration::from_secs(60)).unwrap()
    }

    fn held(&self) -> Held {
        let (kind, body) = self.answer();
        assert_eq!(kind, Message::Held);
        Held::decode(&body).unwrap()
    }

    fn next(&self) -> u64 {
        self.volume.shared().p.ring.next()
    }

    fn settled(&self, held: &Held) -> Settled {
        self.barriers.take(Message::Watch, &held.encode()).unwrap();
        let (kind, body) = self.answer();
        assert_eq!(kind, Message::Settled);
        Settled::decode(&body).unwrap()
    }
}

#[test]
fn writes_wait_from_the_marker_until_the_release() {
    let l = Lectern::new();
    let of = l.prepare(1, 10_000_000);
    let held = l.held();
    assert_eq!((held.of, held.markers.len(), held.markers[0].seq), (of, 1, l.next() - 1));
    std::thread::scope(|scope| {
        let busy = scope.spawn(|| load(&l.volume.device(), Load { operations: 20, ..Load::small(1) }));
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(held.markers[0].seq, l.next() - 1, "nothing got a seq");
        let released = l.release(of);
        assert!(released.stayed && released.held_us >= 50_000, "{released:?}");
        busy.join().unwrap();
    });
    assert!(l.release(of).stayed, "asked twice");
    let settled = l.settled(&held);
    assert!(settled.durable && settled.volume == l.volume.id());
    // An old one is not done again.
    l.prepare(1, 1000);
    let of = l.prepare(2, 10_000_000);
    assert_eq!(l.held().of, of);
}

#[test]
fn gates_open_when_the_time_is_over_and_nobody_says_that_they_stayed_closed() {
    let l = Lectern::new();
    let of = l.prepare(1, 1000);
    l.held();
    load(&l.volume.device(), Load { operations: 20, ..Load::small(1) });
    assert!(!l.release(of).stayed);
    assert!(!l.release(Named { number: 99, ..OF }).stayed, "nobody asked for that one");
}

#[test]
fn gates_open_when_the_session_ends_or_another_barrier_comes() {
    let l = Lectern::new();
    let of = l.prepare(1, 10_000_000);
    l.held();
    let newer = l.prepare(2, 10_000_000);
    assert_eq!(l.held().of, newer);
    assert!(!l.release(of).stayed);
    l.barriers.end();
    load(&l.volume.device(), Load { operations: 20, ..Load::small(1) });
    drop(l.volume.shared().p.gate.close());
}

#[test]
fn i6_a_volume_that_is_not_live_has_no_part_in_a_point_and_is_named() {
    let l = Lectern::new();
    l.volume.shared().p.close("a test");
    wait(&l.volume, |s| s.state != VolumeState::Live);
    l.prepare(1, 10_000_000);
    let (kind, body) = l.answer();
    assert!(kind == Message::NotHeld && NotHeld::decode(&body).unwrap().why.contains("volume vol"));
    drop(l.volume.shared().p.gate.close());
}

#[test]
fn i6_a_marker_is_pending_until_the_appliance_has_it_and_lost_when_history_begins_anew() {
    let l = Lectern::new();
    load(&l.volume.device(), Load { operations: 20, ..Load::small(1) });
    l.lab.settle(&l.volume);
    l.lab.appliance.away.store(true, Ordering::SeqCst);
    l.lab.appliance.cut();
    wait(&l.volume, |s| !s.connected);
    let of = l.prepare(1, 10_000_000);
    let held = l.held();
    l.release(of);
    let marker = &held.markers[0];
    assert_eq!(l.volume.marker(&marker.ring, marker.seq), MarkerState::Pending);
    assert_eq!(l.volume.marker(&[9; 16], marker.seq), MarkerState::Lost, "another journal");
    // The store comes back as an older copy of itself: the agent's history is no continuation of it.
    l.lab.appliance.kept.lock().unwrap().go_back(3);
    l.lab.appliance.away.store(false, Ordering::SeqCst);
    assert!(!l.settled(&held).durable);
    wait(&l.volume, |s| s.state == VolumeState::Live && s.seq_durable == s.seq_acked && s.seq_durable > marker.seq);
    assert!(!l.settled(&held).durable, "also when a greater seq is durable");
    let of = l.prepare(2, 10_000_000);
    let held = l.held();
    l.release(of);
    assert!(l.settled(&held).durable);
}

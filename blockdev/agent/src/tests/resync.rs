//! The sync by comparison: what travels, what old, silent and lying appliances get, and each rule of it broken on purpose.

use crate::breaks::Break;
use crate::disk::ops::Op;
use crate::kit::{Answers, Appliance, Dice, Lab, Load, load, loads, wait};
use crate::{Agent, Volume, VolumeState, unix_connector};
use afterimage_base::block::Request;
use afterimage_base::simple::call;
use afterimage_format::record::{FLAG_SYNC, Kind};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

const MIB: u64 = 1 << 20;

fn noise(len: u64, seed: u64) -> Vec<u8> {
    let mut dice = Dice::new(seed);
    (0..len / 8).flat_map(|_| dice.below(1 << 53).to_le_bytes()).collect()
}

fn write(volume: &Volume, offset: u64, data: &[u8]) {
    let mut queue = volume.device().open_queue().unwrap();
    for (i, part) in (0u64..).zip(data.chunks(1 << 20)) {
        call(&mut *queue, Request::Write { offset: offset + i * MIB, data: part, fua: false }).unwrap();
    }
}

fn leave(lab: &Lab, volume: &Volume) {
    lab.appliance.away.store(true, Ordering::SeqCst);
    lab.appliance.cut();
    wait(volume, |s| !s.connected);
}

fn come_back(lab: &Lab) {
    lab.appliance.away.store(false, Ordering::SeqCst);
}

/// Bytes of data that the sync behind the last gap has sent.
fn sent(lab: &Lab) -> u64 {
    let kept = lab.appliance.kept();
    let gap = kept.log.iter().rposition(|(r, _)| r.kind == Kind::Gap).unwrap();
    let copies = kept.log[gap..].iter().filter(|(r, _)| r.flags & FLAG_SYNC != 0 && r.kind == Kind::Write);
    copies.map(|(r, _)| r.len).sum()
}

fn set(lab: &Lab, answers: Answers) {
    *lab.appliance.answers.lock().unwrap() = answers;
}

/// A live volume full of noise, whose appliance goes away; all of it is written again, every hundredth block with something else.
fn one_percent(lab: &Lab, volume: &Volume) -> u64 {
    let mut data = noise(lab.size, 1);
    write(volume, 0, &data);
    lab.settle(volume);
    leave(lab, volume);
    volume.shared().p.close("the test closes it");
    let (blocks, _) = data.as_chunks_mut::<4096>();
    let changed = blocks.iter_mut().step_by(100).map(|b| b[7] ^= 1).count();
    write(volume, 0, &data);
    changed as u64 * 4096
}

#[test]
fn only_blocks_that_differ_travel() {
    let mut lab = Lab::new(12 * MIB);
    lab.ring_bytes = 64 * MIB;
    let (_agent, volume) = lab.open();
    let changed = one_percent(&lab, &volume);
    let status = volume.status();
    assert!(status.gap_since.is_some() && status.gap_reason.as_deref() == Some("the test closes it"), "{status:?}");
    assert_eq!(lab.appliance.asked.load(Ordering::SeqCst), 0, "a fresh volume asks nothing");
    come_back(&lab);
    lab.settle(&volume);
    assert_eq!(sent(&lab), changed);
    let counts = &volume.shared().counts;
    assert_eq!(counts.compared.load(Ordering::SeqCst), lab.size);
    assert_eq!(counts.sent.load(Ordering::SeqCst), changed);
    let status = volume.status();
    assert!(status.gap_since.is_none() && status.gap_reason.is_none() && status.sync.is_none());
}

#[test]
fn an_appliance_that_cannot_tell_or_is_old_gets_everything() {
    for old in [false, true] {
        let mut lab = Lab::new(4 * MIB);
        lab.ring_bytes = 64 * MIB;
        lab.appliance.old.store(old, Ordering::SeqCst);
        let (_agent, volume) = lab.open();
        one_percent(&lab, &volume);
        set(&lab, Answers::CannotTell);
        come_back(&lab);
        lab.settle(&volume);
        assert_eq!(sent(&lab), lab.size);
        assert_eq!(lab.appliance.asked.load(Ordering::SeqCst) > 0, !old);
    }
}

#[test]
fn questions_without_answer_are_asked_again_in_the_next_session() {
    let mut lab = Lab::new(4 * MIB);
    lab.ring_bytes = 64 * MIB;
    let (_agent, volume) = lab.open();
    let changed = one_percent(&lab, &volume);
    set(&lab, Answers::Silence);
    come_back(&lab);
    wait(&volume, |_| lab.appliance.asked.load(Ordering::SeqCst) == lab.size / 4096);
    assert_eq!(volume.status().state, VolumeState::Resync);
    set(&lab, Answers::Right);
    lab.appliance.cut();
    lab.settle(&volume);
    assert_eq!(sent(&lab), changed);
}

#[test]
fn an_appliance_that_breaks_the_rules_is_left_and_nothing_is_believed() {
    for bad in [Answers::Short, Answers::OtherId, Answers::Twice] {
        let mut lab = Lab::new(4 * MIB);
        lab.ring_bytes = 64 * MIB;
        let (_agent, volume) = lab.open();
        one_percent(&lab, &volume);
        set(&lab, bad);
        come_back(&lab);
        let asked = || lab.appliance.asked.load(Ordering::SeqCst);
        wait(&volume, |_| asked() > 0);
        let before = asked();
        // It is asked again in a new session, and again.
        wait(&volume, |s| s.state != VolumeState::Resync || asked() > before + 256);
        set(&lab, Answers::Right);
        lab.settle(&volume);
    }
}

#[test]
fn after_a_lost_ring_the_whole_disk_is_compared_and_hardly_anything_sent() {
    let mut lab = Lab::new(12 * MIB);
    lab.ring_bytes = 64 * MIB;
    let (agent, volume) = lab.open();
    write(&volume, 0, &noise(8 * MIB, 1));
    lab.settle(&volume);
    agent.stop(Duration::from_secs(30));
    drop((agent, volume));
    for file in ["ring", "intent"] {
        std::fs::remove_file(lab.dir.path().join("agent/vol").join(file)).unwrap();
    }
    // A power cut may lose what the appliance has, and what it does not.
    let disk = std::fs::File::options().write(true).open(lab.disk()).unwrap();
    disk.write_all_at(&[9; 5000], 3 * MIB + 100).unwrap();
    disk.write_all_at(&[0; 4096], 5 * MIB).unwrap();
    let (_agent, volume) = lab.open();
    lab.settle(&volume);
    assert_eq!(sent(&lab), 2 * 4096, "two blocks with data, and one of zeroes that costs a record");
}

#[test]
fn a_restored_older_copy_of_the_store_is_compared() {
    let mut lab = Lab::new(8 * MIB);
    lab.ring_bytes = 64 * MIB;
    let (_agent, volume) = lab.open();
    write(&volume, 0, &noise(8 * MIB, 1));
    lab.settle(&volume);
    let old = lab.appliance.kept();
    write(&volume, 4096, &noise(8192, 2));
    lab.settle(&volume);
    *lab.appliance.kept.lock().unwrap() = old;
    lab.appliance.cut();
    wait(&volume, |_| lab.appliance.kept().gaps().len() == 2);
    lab.settle(&volume);
    assert_eq!(sent(&lab), 8192);
}

/// The ring is closed with a region marked while a write that has its seq is held up on its way to the disk.
#[test]
fn a_comparison_without_the_claim_sends_what_is_old() {
    for broken in [false, true] {
        let lab = Lab::new(256 << 10);
        let (_agent, volume) = lab.open();
        write(&volume, 0, &noise(256 << 10, 1));
        lab.settle(&volume);
        if broken {
            volume.shared().p.breaks.set(Break::CompareUnclaimed);
        }
        let (submitted, go) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (seen, held) = (Arc::clone(&submitted), Arc::clone(&go));
        let hook = move |op, _, _| {
            seen.fetch_or(op == Op::Write, Ordering::SeqCst);
            while op == Op::Write && !held.load(Ordering::SeqCst) {
                thread::sleep(Duration::from_millis(1));
            }
            None
        };
        volume.shared().core.disk.faults.set(Some(Box::new(hook)));
        thread::scope(|scope| {
            scope.spawn(|| write(&volume, 0, &vec![0x77; 256 << 10]));
            wait(&volume, |s| submitted.load(Ordering::SeqCst) && s.seq_durable == s.seq_acked);
            volume.shared().p.map.mark(0, lab.size);
            volume.shared().p.close("the test closes it");
            if broken {
                wait(&volume, |s| s.state == VolumeState::Live);
            } else {
                wait(&volume, |s| s.state == VolumeState::Resync);
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
fn a_comparison_with_an_older_seq_leaves_out_what_it_must_send() {
    for broken in [false, true] {
        let lab = Lab::new(MIB);
        let (_agent, volume) = lab.open();
        lab.settle(&volume);
        if broken {
            volume.shared().p.breaks.set(Break::WrongSeq);
        }
        write(&volume, 0, &[5; 8192]);
        lab.settle(&volume);
        leave(&lab, &volume);
        volume.shared().p.close("the test closes it");
        // What was there at the first seq.
        write(&volume, 0, &[0; 8192]);
        come_back(&lab);
        wait(&volume, |s| s.state == VolumeState::Live && s.seq_durable == s.seq_acked);
        assert_eq!(lab.difference().is_some(), broken);
    }
}

/// A live write comes while the sync holds its claim, and has its seq before the sync takes its own.
#[test]
fn a_copy_that_overtakes_a_live_write_is_seen() {
    for broken in [false, true] {
        let lab = Lab::new(256 << 10);
        let (_agent, volume) = lab.open();
        lab.settle(&volume);
        if broken {
            volume.shared().p.breaks.set(Break::OvertakeWrites);
        }
        leave(&lab, &volume);
        volume.shared().p.close("the test closes it");
        write(&volume, 0, &noise(256 << 10, 1));
        let (reading, go) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (seen, held) = (Arc::clone(&reading), Arc::clone(&go));
        let hook = move |op, _, _| {
            seen.fetch_or(op == Op::Read, Ordering::SeqCst);
            while op == Op::Read && !held.load(Ordering::SeqCst) {
                thread::sleep(Duration::from_millis(1));
            }
            None
        };
        volume.shared().core.disk.faults.set(Some(Box::new(hook)));
        come_back(&lab);
        wait(&volume, |_| reading.load(Ordering::SeqCst));
        let next = volume.shared().p.ring.next();
        thread::scope(|scope| {
            scope.spawn(|| write(&volume, 4096, &[0x33; 4096]));
            wait(&volume, |_| volume.shared().p.ring.next() > next);
            go.store(true, Ordering::SeqCst);
        });
        wait(&volume, |s| s.state == VolumeState::Live && s.seq_durable == s.seq_acked);
        assert_eq!(lab.difference().is_some(), broken);
    }
}

/// A live write is refused by the disk while a comparison waits for it: history has it, the disk does not.
#[test]
fn a_comparison_counts_only_if_the_ring_is_still_open() {
    let round = |broken: bool| {
        let lab = Lab::new(256 << 10);
        let (_agent, volume) = lab.open();
        write(&volume, 0, &noise(256 << 10, 1));
        lab.settle(&volume);
        if broken {
            volume.shared().p.breaks.set(Break::ClosedIgnored);
        }
        set(&lab, Answers::Silence);
        volume.shared().p.map.mark(0, lab.size);
        volume.shared().p.close("the test closes it");
        let asked = || lab.appliance.asked.load(Ordering::SeqCst);
        wait(&volume, |s| s.state == VolumeState::Resync && asked() == 64);
        let (submitted, go) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (seen, held) = (Arc::clone(&submitted), Arc::clone(&go));
        let hook = move |op, _, _| {
            seen.fetch_or(op == Op::Write, Ordering::SeqCst);
            while op == Op::Write && !held.load(Ordering::SeqCst) {
                thread::sleep(Duration::from_millis(1));
            }
            (op == Op::Write).then_some(libc::EIO)
        };
        volume.shared().core.disk.faults.set(Some(Box::new(hook)));
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut queue = volume.device().open_queue().unwrap();
                call(&mut *queue, Request::Write { offset: 0, data: &[7; 4096], fua: false }).unwrap_err();
            });
            wait(&volume, |_| submitted.load(Ordering::SeqCst));
            set(&lab, Answers::Right);
            lab.appliance.cut();
            wait(&volume, |_| asked() == 128);
            thread::sleep(Duration::from_millis(200));
            go.store(true, Ordering::SeqCst);
        });
        volume.shared().core.disk.faults.set(None);
        wait(&volume, |s| s.state == VolumeState::Live && s.seq_durable == s.seq_acked);
        lab.difference().is_some()
    };
    assert!(!round(false));
    assert!((0..10).any(|_| round(true)));
}

/// Runs in a process of its own: a resync beside a load, until it is killed.
#[test]
#[ignore = "started by the test that kills it"]
fn child() {
    let Ok(dir) = std::env::var("RESYNC_CHILD_DIR") else { return };
    let seed: u64 = std::env::var("RESYNC_CHILD_SEED").unwrap().parse().unwrap();
    let mut lab = Lab::new(4096);
    (lab.size, lab.ring_bytes) = (8 * MIB, 8 * MIB);
    let mut config = lab.config();
    config.state_dir = Path::new(&dir).join("agent");
    config.connector = unix_connector(Path::new(&dir).join("sock"));
    let mut volume = lab.volume_config();
    volume.path = Path::new(&dir).join("disk");
    let agent = Agent::new(config);
    let volume = agent.add_volume(volume).unwrap();
    println!("ready");
    let device = volume.device();
    thread::scope(|scope| {
        let busy =
            |n| Load { operations: u64::MAX, span: 8 * MIB, longest: 8192, depth: 1, ..Load::small(n + 10 * seed) };
        scope.spawn(move || loads(&device, 2, busy));
        loop {
            // Gaps without end, with much that is the same on both sides.
            thread::sleep(Duration::from_millis(3));
            if volume.status().state == VolumeState::Live {
                volume.shared().p.map.mark(0, 8 * MIB);
                volume.shared().p.close("the test closes it");
            }
        }
    });
}

#[test]
fn a_kill_at_any_moment_of_a_resync_leaves_disk_and_history_convergent() {
    let mut lab = Lab::new(8 * MIB);
    lab.ring_bytes = 8 * MIB;
    let (agent, volume) = lab.open();
    write(&volume, 0, &noise(8 * MIB, 3));
    lab.settle(&volume);
    agent.stop(Duration::from_secs(30));
    drop((agent, volume));
    Appliance::listen(&lab.appliance, &lab.dir.path().join("sock"));
    let asked = || lab.appliance.asked.load(Ordering::SeqCst);
    for seed in 1..=10u64 {
        let before = asked();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "tests::resync::child", "--ignored", "--nocapture"]);
        command.env("RESYNC_CHILD_DIR", lab.dir.path()).env("RESYNC_CHILD_SEED", seed.to_string());
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        while asked() < before + 100 * seed {
            thread::sleep(Duration::from_millis(1));
            assert!(child.try_wait().unwrap().is_none(), "the child ended by itself");
        }
        if seed % 3 == 0 {
            // The appliance goes first.
            lab.appliance.cut();
            thread::sleep(Duration::from_millis(seed));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        lab.appliance.cut();
        let (agent, volume) = lab.open();
        lab.settle(&volume);
        agent.stop(Duration::from_secs(30));
    }
}

/// What was copied before a restart is not looked at again.
#[test]
fn a_restart_inside_a_sync_goes_on_where_it_was() {
    let mut lab = Lab::new(8 * MIB);
    lab.ring_bytes = 64 * MIB;
    let (agent, volume) = lab.open();
    let changed = one_percent(&lab, &volume);
    volume.set_sync_rate(8 * MIB);
    come_back(&lab);
    let half = wait(&volume, |s| s.sync.is_some_and(|s| s.done_bytes > 3 * MIB));
    assert!(half.sync.unwrap().total_bytes == 8 * MIB && half.sync.unwrap().sent_bytes < changed);
    assert!(!agent.stop(Duration::from_millis(1)));
    let left = volume.shared().p.map.dirty_bytes();
    drop((agent, volume));
    assert!(left < 5 * MIB && left > 0, "{left}");
    lab.appliance.asked.store(0, Ordering::SeqCst);
    let (_agent, volume) = lab.open();
    let status = volume.status();
    assert!(status.gap_reason.as_deref() == Some("the test closes it") || status.state == VolumeState::Live);
    lab.settle(&volume);
    assert_eq!(lab.appliance.asked.load(Ordering::SeqCst) * 4096, left);
    assert_eq!(lab.appliance.kept().gaps().len(), 2);
}

/// A ring that is full again and again before the resync can end is said, and forgotten when it has ended.
#[test]
fn a_resync_that_is_cut_off_again_and_again_says_so() {
    let mut lab = Lab::new(4 * MIB);
    lab.ring_bytes = 64 * MIB;
    let (_agent, volume) = lab.open();
    one_percent(&lab, &volume);
    let since = volume.status().gap_since.unwrap();
    set(&lab, Answers::Silence);
    come_back(&lab);
    for cuts in 0..4 {
        let status = wait(&volume, |s| s.sync.is_some_and(|s| s.cuts == cuts));
        assert_eq!(status.reason.unwrap().contains("full 3 times"), cuts == 3);
        assert_eq!(status.gap_since, Some(since), "it is one gap for the user");
        assert_eq!(status.gap_reason.as_deref(), Some("the test closes it"));
        if cuts < 3 {
            volume.shared().p.close("the ring is full");
        }
    }
    set(&lab, Answers::Right);
    lab.appliance.cut();
    lab.settle(&volume);
    assert_eq!(volume.status().reason, None);
    assert!(volume.status().sync.is_none() && volume.status().gap_since.is_none());
}

/// Every way of answering, changing all the time, beside a load, cuts and a ring that is too small.
#[test]
fn whatever_the_appliance_answers_disk_and_history_agree_in_the_end() {
    let mut lab = Lab::new(4 * MIB);
    lab.ring_bytes = 8 * MIB;
    let (_agent, volume) = lab.open();
    let device = volume.device();
    let rounds = AtomicU64::new(0);
    thread::scope(|scope| {
        let busy = scope.spawn(|| {
            loads(&device, 3, |n| Load { span: 4 * MIB, longest: 64 << 10, operations: 2500, ..Load::small(n + 1) })
        });
        let mut dice = Dice::new(4);
        while !busy.is_finished() {
            rounds.fetch_add(1, Ordering::SeqCst);
            let all = [Answers::Right, Answers::Right, Answers::CannotTell, Answers::Silence, Answers::Short];
            set(&lab, all[usize::try_from(dice.below(5)).unwrap()]);
            lab.appliance.stalled.store(dice.below(2) == 0, Ordering::SeqCst);
            thread::sleep(Duration::from_millis(dice.below(40)));
            lab.appliance.stalled.store(false, Ordering::SeqCst);
            if dice.below(6) == 0 {
                lab.appliance.cut();
            }
        }
        assert!(busy.join().unwrap().iter().all(|d| d.ok));
    });
    set(&lab, Answers::Right);
    lab.appliance.cut();
    load(&device, Load::small(9));
    lab.settle(&volume);
}

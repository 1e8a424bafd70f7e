//! What the next process finds: after a stop in order, after SIGKILL at any moment, with damaged files.

use crate::breaks::Break;
use crate::kit::{Done, Lab, Load, load, loads, wait};
use crate::{Agent, AgentError, VolumeState};
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

const CHILD: &str = "tests::restart::child";

fn some(seed: u64) -> Load {
    Load { span: 4 << 20, operations: 500, ..Load::small(seed) }
}

#[test]
fn after_a_stop_in_order_nothing_is_done_again() {
    let lab = Lab::new(4 << 20);
    for seed in 1..4 {
        let (agent, volume) = lab.open();
        load(&volume.device(), some(seed));
        lab.settle(&volume);
        if seed > 1 {
            let report = volume.status().recovered.unwrap();
            assert!(report.clean && report.redone == 0 && !report.whole_disk);
        }
        assert!(agent.stop(Duration::from_secs(30)));
        assert!(volume.device().open_queue().is_err());
    }
    assert_eq!(lab.appliance.kept().gaps().len(), 1);
}

#[test]
fn what_the_appliance_did_not_get_before_a_stop_it_gets_after() {
    let lab = Lab::new(4 << 20);
    let (agent, volume) = lab.open();
    lab.settle(&volume);
    lab.appliance.away.store(true, Ordering::SeqCst);
    lab.appliance.cut();
    load(&volume.device(), some(1));
    assert!(!agent.stop(Duration::from_millis(10)));
    drop((agent, volume));
    lab.appliance.away.store(false, Ordering::SeqCst);
    let (_agent, volume) = lab.open();
    lab.settle(&volume);
    assert_eq!(lab.appliance.kept().gaps().len(), 1);
}

#[test]
fn a_volume_that_was_removed_is_closed_and_can_be_added_again_at_once() {
    let lab = Lab::new(4 << 20);
    let (agent, volume) = lab.open();
    lab.settle(&volume);
    let device = volume.device();
    drop(volume);
    assert!(agent.remove_volume("vol") && !agent.remove_volume("vol"));
    assert!(agent.volumes().is_empty() && device.open_queue().is_err());
    let volume = agent.add_volume(lab.volume_config()).unwrap();
    assert!(volume.status().recovered.unwrap().clean, "as after a stop in order");
    load(&volume.device(), some(2));
    lab.settle(&volume);
    assert_eq!(lab.appliance.kept().gaps().len(), 1);
}

/// Runs in a process of its own: serves a load until it is killed.
#[test]
#[ignore = "started by the tests that kill it"]
fn child() {
    let Ok(dir) = std::env::var("AGENT_CHILD_DIR") else { return };
    let seed: u64 = std::env::var("AGENT_CHILD_SEED").unwrap().parse().unwrap();
    let mut lab = Lab::new(4096);
    lab.size = 4 << 20;
    lab.ring_bytes = 8 << 20;
    let mut config = lab.config();
    config.state_dir = Path::new(&dir).join("agent");
    // The appliance dies with the child: what counts is the ring.
    lab.appliance.away.store(true, Ordering::SeqCst);
    let mut volume = lab.volume_config();
    volume.path = Path::new(&dir).join("disk");
    let agent = Agent::new(config);
    let volume = agent.add_volume(volume).unwrap();
    if std::env::var("AGENT_CHILD_BREAK").is_ok() {
        volume.shared().p.breaks.set(Break::PublishLate);
    }
    println!("ready");
    loop {
        loads(&volume.device(), 3, |n| Load { operations: 1_000_000, longest: 8192, ..some(n + 1 + 10 * seed) });
    }
}

fn kill_a_child(lab: &Lab, seed: u64, broken: bool) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", CHILD, "--ignored", "--nocapture"]);
    command.env("AGENT_CHILD_DIR", lab.dir.path()).env("AGENT_CHILD_SEED", seed.to_string());
    if broken {
        command.env("AGENT_CHILD_BREAK", "1");
    }
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut out = std::io::BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("ready") {
        line.clear();
        assert_ne!(std::io::BufRead::read_line(&mut out, &mut line).unwrap(), 0, "the child ended by itself");
    }
    std::thread::sleep(Duration::from_millis(5 + seed * 7 % 60));
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
}

/// Kill, reopen, compare; sometimes the ring is full by then and the dirty map has to know.
#[test]
fn a_kill_at_any_moment_leaves_disk_and_history_equal() {
    let mut lab = Lab::new(4 << 20);
    lab.ring_bytes = 8 << 20;
    let (agent, volume) = lab.open();
    lab.settle(&volume);
    agent.stop(Duration::from_secs(30));
    drop((agent, volume));
    let mut redone = 0;
    for seed in 1..=12 {
        kill_a_child(&lab, seed, false);
        let (agent, volume) = lab.open();
        let report = volume.status().recovered.unwrap();
        assert!(!report.clean && !report.whole_disk, "{report:?}");
        redone += report.redone;
        lab.settle(&volume);
        agent.stop(Duration::from_secs(30));
    }
    println!("{redone} writes redone");
}

/// The disk has a write that the ring does not know: found by the same comparison.
#[test]
fn i3_published_too_late_a_kill_is_seen() {
    let mut lab = Lab::new(4 << 20);
    lab.ring_bytes = 256 << 20;
    let caught = (1..=40).any(|seed| {
        let (agent, volume) = lab.open();
        lab.settle(&volume);
        agent.stop(Duration::from_secs(30));
        drop((agent, volume));
        kill_a_child(&lab, seed, true);
        let (agent, volume) = lab.open();
        wait(&volume, |s| s.state == VolumeState::Live && s.seq_durable == s.seq_acked);
        let differs = lab.difference().is_some();
        agent.stop(Duration::from_secs(30));
        differs
    });
    assert!(caught);
}

/// What was written lately, if that is known, else the whole disk.
#[test]
fn a_damaged_ring_starts_over_and_says_so() {
    for known in [true, false] {
        let lab = Lab::new(4 << 20);
        let (agent, volume) = lab.open();
        load(&volume.device(), Load { span: 1 << 20, ..some(1) });
        lab.settle(&volume);
        agent.stop(Duration::from_secs(30));
        drop((agent, volume));
        let ring = lab.dir.path().join("agent/vol/ring");
        std::fs::File::options().write(true).open(&ring).unwrap().write_all_at(&[0xff; 64], 0).unwrap();
        if !known {
            std::fs::remove_file(lab.dir.path().join("agent/vol/intent")).unwrap();
        }
        let (_agent, volume) = lab.open();
        let report = volume.status().recovered.unwrap();
        assert!(report.whole_disk != known && report.reason.is_some(), "{report:?}");
        // 16 regions were written to, and some marked ahead.
        assert!(if known { (16..48).contains(&report.intent_regions) } else { report.intent_regions == 0 });
        assert_eq!(report.intent_bytes, report.intent_regions << 16);
        load(&volume.device(), some(2));
        lab.settle(&volume);
        assert_eq!(lab.appliance.kept().gaps().len(), 2);
    }
}

/// A start that finds something lost, makes a part of it anew and then fails: what was lost is not forgotten.
#[test]
fn a_start_that_does_not_come_to_its_end_forgets_nothing() {
    for ring in [true, false] {
        let lab = Lab::new(4 << 20);
        let (agent, volume) = lab.open();
        load(&volume.device(), some(1));
        lab.settle(&volume);
        lab.appliance.away.store(true, Ordering::SeqCst);
        lab.appliance.cut();
        volume.shared().p.close("the test closes it");
        load(&volume.device(), some(2));
        drop((agent, volume));
        let dir = lab.dir.path().join("agent/vol");
        if ring {
            std::fs::remove_file(dir.join("ring")).unwrap();
        }
        std::fs::remove_file(dir.join("dirty")).unwrap();
        std::fs::remove_file(dir.join("intent")).unwrap();
        // No new map can be put here.
        std::fs::create_dir(dir.join("intent")).unwrap();
        std::fs::write(dir.join("intent/x"), "").unwrap();
        for _ in 0..2 {
            let failed = Agent::new(lab.config()).add_volume(lab.volume_config()).map(drop);
            assert!(matches!(failed, Err(AgentError::State { .. })), "{failed:?}");
        }
        std::fs::remove_dir_all(dir.join("intent")).unwrap();
        lab.appliance.away.store(false, Ordering::SeqCst);
        let (agent, volume) = lab.open();
        assert!(volume.status().recovered.unwrap().whole_disk);
        lab.settle(&volume);
        drop((agent, volume));
        let (_agent, volume) = lab.open();
        assert!(!volume.status().recovered.unwrap().whole_disk);
    }
}

#[test]
fn a_lost_map_is_no_loss_when_it_was_empty_and_a_whole_sync_when_not() {
    for gap in [false, true] {
        let lab = Lab::new(4 << 20);
        let (agent, volume) = lab.open();
        load(&volume.device(), some(1));
        lab.settle(&volume);
        if gap {
            lab.appliance.away.store(true, Ordering::SeqCst);
            lab.appliance.cut();
            volume.shared().p.close("the test closes it");
            load(&volume.device(), some(2));
        }
        agent.stop(Duration::from_millis(100));
        drop((agent, volume));
        std::fs::remove_file(lab.dir.path().join("agent/vol/dirty")).unwrap();
        lab.appliance.away.store(false, Ordering::SeqCst);
        let (_agent, volume) = lab.open();
        assert_eq!(volume.status().recovered.unwrap().whole_disk, gap);
        lab.settle(&volume);
    }
}

#[test]
fn the_wrong_disk_and_the_wrong_path_are_refused() {
    let lab = Lab::new(4 << 20);
    let open = |f: &dyn Fn(&mut crate::VolumeConfig)| {
        let mut config = lab.volume_config();
        f(&mut config);
        Agent::new(lab.config()).add_volume(config).map(|_| ())
    };
    open(&|_| {}).unwrap();
    let other = lab.dir.path().join("other");
    std::fs::write(&other, vec![0; 4 << 20]).unwrap();
    let e = open(&|c| c.path.clone_from(&other));
    assert!(matches!(e, Err(AgentError::OtherPath { .. })), "{e:?}");
    std::fs::rename(&other, lab.disk()).unwrap();
    assert!(matches!(open(&|_| {}), Err(AgentError::OtherDisk { .. })));
    for bad in ["", "a/b", "..", ".x", "ä", &"x".repeat(65)] {
        assert!(matches!(open(&|c| c.name = bad.into()), Err(AgentError::Name(_))), "{bad}");
    }
    assert!(matches!(open(&|c| c.ring_bytes = 4096), Err(AgentError::RingSize { .. })));
    let json = lab.dir.path().join("agent/vol/volume.json");
    let text = std::fs::read_to_string(&json).unwrap();
    for bad in [text.replacen("\"version\": 2", "\"version\": 9", 1), String::new(), "{}".into()] {
        std::fs::write(&json, &bad).unwrap();
        assert!(matches!(open(&|_| {}), Err(AgentError::State { .. })), "{bad}");
    }
}

#[test]
fn a_name_and_a_disk_belong_to_one_volume_at_a_time() {
    let lab = Lab::new(4 << 20);
    let (agent, volume) = lab.open();
    assert!(matches!(agent.add_volume(lab.volume_config()), Err(AgentError::Duplicate(_))));
    let mut config = lab.volume_config();
    config.name = "two".into();
    assert!(matches!(agent.add_volume(config), Err(AgentError::Disk(crate::DiskError::InUse(_)))));
    assert_eq!(agent.volumes().len(), 1);
    assert!(Arc::ptr_eq(&agent.volumes()[0], &volume));
    let done: Vec<Done> = load(&volume.device(), some(1));
    assert!(done.iter().all(|d| d.ok));
}

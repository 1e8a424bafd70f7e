use crate::appliance::{Appliance, ApplianceError};
use crate::branch::BranchError;
use crate::config::ApplianceConfig;
use crate::fence::FenceError;
use crate::ingest::progress::Committed;
use crate::room::MinFree;
use crate::testing::*;
use afterimage_base::block::{BlockDevice, Request};
use afterimage_base::buf::AlignedBuf;
use afterimage_base::simple::call;
use afterimage_format::fence::Fence;
use afterimage_format::record::Kind;
use afterimage_format::wire::{Hello, MessageType, Quiet, RefuseCode};
use std::sync::{Arc, Barrier};

fn write(seq: u64, fill: u8) -> Write1 {
    record(Kind::Write, seq, (seq % 20) * 4096, 4096, vec![fill; 4096])
}

fn stream() -> Vec<Write1> {
    (1..=20).map(|seq| write(seq, u8::try_from(seq).unwrap())).collect()
}

fn bench(dir: &std::path::Path) -> (ApplianceConfig, Appliance, Vec<Write1>) {
    let config = config(dir);
    let appliance = Appliance::start(config.clone()).unwrap();
    let records = stream();
    let mut agent = Agent::connect(&config.listen, &hello()).unwrap();
    agent.send(&bytes_of(&records[..10]));
    agent.wait(10).unwrap();
    (config, appliance, records)
}

fn whole(device: &Arc<dyn BlockDevice>) -> Vec<u8> {
    let buf = AlignedBuf::zeroed(usize::try_from(device.geometry().size).unwrap());
    call(&mut *Arc::clone(device).open_queue().unwrap(), Request::Read { offset: 0, buf }).unwrap().unwrap().to_vec()
}

#[test]
fn i13_what_an_old_primary_has_goes_into_a_branch_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let (config, appliance, records) = bench(dir.path());
    let images = images(&records);
    let fenced = appliance.fence("disk", "job", Fence::Closed).unwrap();
    assert_eq!((fenced.epoch, fenced.seq), (1, 10));
    assert_eq!(appliance.fence("disk", "job", Fence::Closed).unwrap(), fenced, "done again it changes nothing");
    let other = appliance.fence("disk", "another", Fence::Closed).unwrap_err();
    assert!(matches!(other, ApplianceError::Fence(_, FenceError::Other(_))), "{other}");
    assert!(appliance.lift_fence("disk", "another").is_err());

    // An agent that cannot be told is refused, in words.
    let refuse = Agent::connect(&config.listen, &Hello { newest: 4, oldest: 4, ..hello() }).err().unwrap();
    assert!(refuse.code == RefuseCode::Fenced && refuse.text.contains("runs elsewhere"), "{refuse:?}");

    // The agent goes on as if nothing had happened, and is told.
    let mut agent = Agent::connect(&config.listen, &hello()).unwrap();
    let w = agent.welcome;
    assert_eq!((w.ring, w.durable, w.epoch, w.fence), (RING, 10, 1, Fence::Closed));
    agent.send(&bytes_of(&records[10..15]));
    agent.wait(15).unwrap();
    assert!(matches!(appliance.drop_branch("disk/tail-1"), Err(ApplianceError::Branch(_, BranchError::InUse))));
    drop((agent, appliance));

    // All of that survives a kill.
    let appliance = Appliance::start(config.clone()).unwrap();
    assert_eq!(appliance.volume("disk").unwrap().progress().seq, 10);
    assert!(read_at(&appliance, 10) == images[10]);
    let mut agent = Agent::connect(&config.listen, &Hello { epoch: 1, ..hello() }).unwrap();
    assert_eq!(agent.welcome.durable, 15);
    agent.send(&bytes_of(&records[15..]));
    agent.wait(20).unwrap();
    assert!(whole(&appliance.open_at("disk/tail-1", 20).unwrap()) == images[20]);
    let differs = appliance.diff_of(("disk", 10), ("disk/tail-1", 20)).unwrap();
    assert!(!differs.is_empty(), "it can be told from the volume");
    assert!(matches!(appliance.open_branch("disk/tail-1"), Err(ApplianceError::Branch(_, BranchError::Tail))));
    let (standing, tail) = appliance.standing("disk").unwrap();
    assert_eq!((standing.epoch, tail.as_deref()), (1, Some("disk/tail-1")));

    // The fence goes, and the agent with it to the volume; the tail stays as it is.
    assert_eq!(appliance.lift_fence("disk", "job").unwrap(), 2);
    assert_eq!(appliance.lift_fence("disk", "job").unwrap(), 2, "done again it changes nothing");
    agent.send(&bytes_of(&[write(21, 99)]));
    assert!(agent.wait(21).is_err(), "the session has ended");
    let agent = Agent::connect(&config.listen, &Hello { epoch: 1, ..hello() }).unwrap();
    let w = agent.welcome;
    assert_eq!((w.durable, w.epoch, w.fence), (10, 2, Fence::Open));
    assert!(whole(&appliance.open_at("disk/tail-1", 20).unwrap()) == images[20]);
    // A second failover has a tail of its own.
    assert_eq!(appliance.fence("disk", "job2", Fence::Closed).unwrap().epoch, 3);
    drop(Agent::connect(&config.listen, &Hello { epoch: 2, ..hello() }).unwrap());
    assert_eq!(appliance.standing("disk").unwrap().1.as_deref(), Some("disk/tail-3"));
}

#[test]
fn a_draining_fence_takes_everything_into_the_volume_and_closes_where_it_stands() {
    let dir = tempfile::tempdir().unwrap();
    let (config, appliance, records) = bench(dir.path());
    assert_eq!(appliance.fence("disk", "job", Fence::Draining).unwrap().epoch, 1);
    let mut agent = Agent::connect(&config.listen, &hello()).unwrap();
    assert_eq!((agent.welcome.fence, agent.welcome.durable), (Fence::Draining, 10));
    agent.send(&bytes_of(&records[10..]));
    agent.wait(20).unwrap();
    let closed = appliance.fence("disk", "job", Fence::Closed).unwrap();
    assert_eq!((closed.epoch, closed.seq), (1, 20));
    // It cannot be opened again but by taking it down.
    assert_eq!(appliance.fence("disk", "job", Fence::Draining).unwrap(), closed);
    let agent = Agent::connect(&config.listen, &Hello { epoch: 1, ..hello() }).unwrap();
    assert_eq!(agent.welcome.fence, Fence::Closed);
}

#[test]
fn i13_sessions_that_race_with_a_fence_bring_nothing_behind_it() {
    let dir = tempfile::tempdir().unwrap();
    let (config, appliance, _) = bench(dir.path());
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|s| {
        s.spawn(|| {
            // An agent that comes again and again, and always has one more.
            let mut next = 11;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let Ok(mut agent) = Agent::connect(&config.listen, &hello()) else { continue };
                next = next.max(agent.durable + 1);
                if agent.welcome.fence == Fence::Closed {
                    break;
                }
                for seq in agent.durable + 1..agent.durable + 40 {
                    agent.send(&bytes_of(&[write(seq, 5)]));
                    if agent.wait(seq).is_err() {
                        break;
                    }
                }
            }
        });
        std::thread::sleep(std::time::Duration::from_millis(100));
        let at = appliance.fence("disk", "job", Fence::Closed).unwrap().seq;
        std::thread::sleep(std::time::Duration::from_millis(200));
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(appliance.volume("disk").unwrap().progress().seq, at);
    });
}

/// A session that did not look at the fence, and the volume that refuses it all the same.
#[test]
fn i13_broken_a_record_behind_the_fence_is_caught() {
    let dir = tempfile::tempdir().unwrap();
    let (_config, appliance, _) = bench(dir.path());
    appliance.fence("disk", "job", Fence::Closed).unwrap();
    let volume = appliance.volume("disk").unwrap();
    let late = Committed { kind: Kind::Void, flags: 0, seq: 11, time: 1, offset: 0, size: None, name: "" };
    let error = volume.commit([late].into_iter(), &[], RING, 1, 0).unwrap_err();
    assert!(error.to_string().contains("I13"), "{error}");
    assert_eq!(volume.progress().seq, 10);
}

#[test]
fn an_agent_that_knows_a_higher_epoch_raises_that_of_an_older_copy() {
    let dir = tempfile::tempdir().unwrap();
    let (config, appliance, _) = bench(dir.path());
    let agent = Agent::connect(&config.listen, &Hello { epoch: 7, ..hello() }).unwrap();
    assert_eq!((agent.welcome.epoch, agent.welcome.fence), (7, Fence::Open));
    assert_eq!(appliance.fence("disk", "job", Fence::Closed).unwrap().epoch, 8);
    assert!(matches!(appliance.fence("nothing", "job", Fence::Closed), Err(ApplianceError::NoVolume(..))));
}

#[test]
fn i13_of_two_who_fence_at_once_one_has_the_fence() {
    let dir = tempfile::tempdir().unwrap();
    let (config, appliance, _) = bench(dir.path());
    for round in 0..10 {
        let start = Barrier::new(3);
        let fence = |owner: &'static str| {
            start.wait();
            appliance.fence("disk", owner, Fence::Closed).map(|_| owner)
        };
        // An agent that knows more raises the epoch meanwhile, which takes nobody's fence away.
        let epoch = 100 * (round + 1);
        let said = std::thread::scope(|s| {
            let both = ["one", "other"].map(|owner| s.spawn(move || fence(owner)));
            start.wait();
            drop(Agent::connect(&config.listen, &Hello { epoch, ..hello() }));
            both.map(|t| t.join().unwrap())
        });
        let owners: Vec<_> = said.iter().flatten().collect();
        assert_eq!(owners.len(), 1, "round {round}: {said:?}");
        let (standing, _) = appliance.standing("disk").unwrap();
        assert_eq!(standing.fence.as_ref().map(|f| f.owner.as_str()), Some(*owners[0]), "round {round}");
        let kept = appliance.shared.vault.read(|m| m.volumes[0].fence.clone());
        assert_eq!((kept, standing.state()), (standing.fence.clone(), Fence::Closed), "round {round}");
        assert!(standing.epoch >= epoch);
        appliance.lift_fence("disk", owners[0]).unwrap();
    }
}

#[test]
fn a_tail_has_the_epoch_that_its_agent_has_raised() {
    let dir = tempfile::tempdir().unwrap();
    let (config, appliance, _) = bench(dir.path());
    assert_eq!(appliance.fence("disk", "job", Fence::Closed).unwrap().epoch, 1);
    let agent = Agent::connect(&config.listen, &Hello { epoch: 7, ..hello() }).unwrap();
    assert_eq!((agent.welcome.epoch, agent.welcome.fence), (7, Fence::Closed));
    assert_eq!(appliance.standing("disk").unwrap().1.as_deref(), Some("disk/tail-7"));
}

#[test]
fn i13_no_tail_begins_while_a_session_of_the_volume_still_brings_something() {
    let dir = tempfile::tempdir().unwrap();
    let (config, appliance, _) = bench(dir.path());
    appliance.fence("disk", "job", Fence::Closed).unwrap();
    // As it is until the last session has ended.
    let volume = appliance.volume("disk").unwrap();
    volume.unseal();
    let refuse = Agent::connect(&config.listen, &hello()).err().unwrap();
    assert_eq!(refuse.code, RefuseCode::Superseded, "{refuse:?}");
    assert_eq!(appliance.standing("disk").unwrap().1, None);
    volume.seal();
    assert_eq!(Agent::connect(&config.listen, &hello()).unwrap().welcome.fence, Fence::Closed);
}

#[test]
fn an_owner_that_no_manifest_could_hold_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (config, appliance, _) = bench(dir.path());
    for owner in [String::new(), "x".repeat(256)] {
        let no = appliance.fence("disk", &owner, Fence::Closed).unwrap_err();
        assert!(matches!(no, ApplianceError::Fence(_, FenceError::Owner(n)) if n == owner.len()), "{no}");
    }
    let longest = "x".repeat(255);
    appliance.fence("disk", &longest, Fence::Closed).unwrap();
    drop(appliance);
    let appliance = Appliance::start(config).unwrap();
    assert_eq!(appliance.standing("disk").unwrap().0.fence.unwrap().owner, longest);
}

#[test]
fn i13_a_vault_without_room_tells_of_the_fence_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let (config, appliance, records) = bench(dir.path());
    appliance.fence("disk", "job", Fence::Closed).unwrap();
    drop(appliance);
    let full = ApplianceConfig { min_free: MinFree::Bytes(u64::MAX), ..config.clone() };
    let appliance = Appliance::start(full.clone()).unwrap();
    let told = |durable: u64| {
        let mut agent = Agent::connect(&config.listen, &hello()).unwrap();
        let w = agent.welcome;
        assert_eq!((w.epoch, w.fence, w.ring, w.durable, w.credit), (1, Fence::Closed, RING, durable, 0));
        let refuse = agent.wait(20).unwrap_err().unwrap();
        assert_eq!(refuse.code, RefuseCode::Full, "{refuse:?}");
    };
    told(10);
    assert_eq!(appliance.standing("disk").unwrap().1, None, "nothing was changed");
    let old = Agent::connect(&config.listen, &Hello { newest: 4, oldest: 4, ..hello() }).err().unwrap();
    assert_eq!(old.code, RefuseCode::Full);
    drop(appliance);
    // What it has is where its tail stands, once that is there.
    let appliance = Appliance::start(config.clone()).unwrap();
    let mut agent = Agent::connect(&config.listen, &hello()).unwrap();
    agent.send(&bytes_of(&records[10..15]));
    agent.wait(15).unwrap();
    drop((agent, appliance));
    let appliance = Appliance::start(full).unwrap();
    told(15);
    // Nobody else is told anything.
    let other = Agent::connect(&config.listen, &Hello { volume: [9; 16], name: "other".into(), ..hello() });
    assert_eq!(other.err().unwrap().code, RefuseCode::Full);
    assert!(appliance.volume("other").is_err());
}

#[test]
fn i13_a_disk_in_the_place_of_a_lost_one_is_let_in_only_behind_a_closed_fence() {
    let dir = tempfile::tempdir().unwrap();
    let (config, appliance, records) = bench(dir.path());
    let adopting = Hello { ring: [9; 16], adopts: true, ..hello() };
    let refused = |hello: &Hello| Agent::connect(&config.listen, hello).err().unwrap().text;
    // The agent that is at work does not notice.
    let mut agent = Agent::connect(&config.listen, &hello()).unwrap();
    assert!(refused(&adopting).contains("only while it is fenced"));
    appliance.fence("disk", "job", Fence::Draining).unwrap();
    let mut draining = Agent::connect(&config.listen, &hello()).unwrap();
    assert!(refused(&adopting).contains("only while it is fenced"));
    draining.send(&bytes_of(&records[10..15]));
    draining.wait(15).unwrap();
    assert!(agent.wait(15).is_err(), "the fence has ended it, not who came too early");
    assert!(refused(&Hello { volume: [0xab; 16], ..adopting.clone() }).contains("no volume abababab"));
    assert_eq!(appliance.volumes().len(), 1);

    assert_eq!(appliance.fence("disk", "job", Fence::Closed).unwrap().seq, 15);
    let mut new = Agent::connect(&config.listen, &adopting).unwrap();
    assert_eq!((new.welcome.durable, new.welcome.fence), (15, Fence::Closed));
    new.send(&bytes_of(&[record(Kind::Gap, 16, 0, 0, Vec::new())]));
    new.wait(16).unwrap();
    assert_eq!(appliance.volume("disk").unwrap().progress().seq, 15, "it is kept apart");
}

#[test]
fn a_time_without_writes_can_be_chosen_once_the_agent_has_said_so() {
    let dir = tempfile::tempdir().unwrap();
    let (config, appliance, records) = bench(dir.path());
    let newest = records[9].record.time;
    let mut agent = Agent::connect(&config.listen, &hello()).unwrap();
    let later = newest + 1_000_000_000;
    assert!(appliance.resolve_time("disk", later).is_err());
    agent.say(MessageType::Quiet, &Quiet { seq: 10, time: later }.encode());
    let until = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while appliance.resolve_time("disk", later).is_err() {
        assert!(std::time::Instant::now() < until);
        std::thread::yield_now();
    }
    assert_eq!(appliance.resolve_time("disk", later).unwrap(), 10);
    assert!(appliance.resolve_time("disk", later + 1).is_err());
    // It is about the write that was the last then: what comes behind it has a time of its own.
    agent.say(MessageType::Quiet, &Quiet { seq: 11, time: later + 5 }.encode());
    agent.send(&bytes_of(&records[10..12]));
    agent.wait(12).unwrap();
    assert!(appliance.resolve_time("disk", later).is_err());
    agent.say(MessageType::Quiet, &[0; 15]);
    assert_eq!(agent.wait(13).unwrap_err().unwrap().code, RefuseCode::Malformed);
}

use super::*;
use crate::config::ApplianceConfig;
use crate::testing::*;
use afterimage_format::failback::{DiskDone, DiskSync, DiskWrite};
use afterimage_format::record::Kind;
use afterimage_format::wire::{FAILBACK_VERSION, Hello};
use std::time::{Duration, Instant};

/// A volume with one write, fenced.
fn bench(dir: &std::path::Path) -> (ApplianceConfig, Appliance) {
    let config = config(dir);
    let appliance = Appliance::start(config.clone()).unwrap();
    let mut agent = Agent::connect(&config.listen, &hello()).unwrap();
    agent.send(&bytes_of(&[record(Kind::Write, 1, 0, 4096, vec![1; 4096])]));
    agent.wait(1).unwrap();
    (config, appliance)
}

fn lent(appliance: &Appliance) -> Lease {
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        match appliance.agent_disk("disk") {
            Ok(lease) => return lease,
            // Its session has begun, and not got so far; or one before it has not ended.
            Err(ApplianceError::Fence(_, FenceError::Away | FenceError::Old)) if Instant::now() < until => {
                std::thread::yield_now()
            }
            Err(e) => panic!("{e}"),
        }
    }
}

fn why(appliance: &Appliance) -> FenceError {
    match appliance.agent_disk("disk") {
        Err(ApplianceError::Fence(_, why)) => why,
        other => panic!("{other:?}"),
    }
}

fn sync(id: u64) -> Vec<u8> {
    DiskSync { id, epoch: 1 }.encode()
}

#[test]
fn the_disk_is_lent_to_one_at_a_time_and_only_while_its_fenced_agent_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let (config, appliance) = bench(dir.path());
    assert!(matches!(appliance.agent_disk("none"), Err(ApplianceError::NoVolume(..))));
    assert!(matches!(why(&appliance), FenceError::Open));
    appliance.fence("disk", "job", Fence::Draining).unwrap();
    assert!(matches!(why(&appliance), FenceError::Open), "it still brings what it has");
    appliance.fence("disk", "job", Fence::Closed).unwrap();
    assert!(matches!(why(&appliance), FenceError::Away));

    let old = Hello { oldest: 1, newest: FAILBACK_VERSION - 1, epoch: 1, ..hello() };
    let agent = Agent::connect(&config.listen, &old).unwrap();
    let until = Instant::now() + Duration::from_secs(60);
    while !matches!(why(&appliance), FenceError::Old) {
        assert!(Instant::now() < until, "{}", why(&appliance));
    }
    drop(agent);
    let agent = Agent::connect(&config.listen, &Hello { epoch: 1, ..hello() }).unwrap();
    let lease = lent(&appliance);
    assert_eq!((lease.epoch(), lease.size()), (1, SIZE));
    assert!(matches!(why(&appliance), FenceError::Lent));
    drop(lease);
    let lease = lent(&appliance);
    // With the session the lease ends, and so it does for who waits.
    drop(agent);
    assert_eq!(lease.receive(), None);
    assert!(lease.send(MessageType::DiskSync, sync(1)).is_err());
    drop(lease);
    assert!(matches!(why(&appliance), FenceError::Away));
    appliance.lift_fence("disk", "job").unwrap();
    assert!(matches!(why(&appliance), FenceError::Open));
}

#[test]
fn answers_reach_who_has_asked_and_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    let (config, appliance) = bench(dir.path());
    appliance.fence("disk", "job", Fence::Closed).unwrap();
    let mut agent = Agent::connect(&config.listen, &Hello { epoch: 1, ..hello() }).unwrap();
    let lease = lent(&appliance);
    assert!(lease.send(MessageType::Ack, vec![0; 16]).is_err(), "that is no request about a disk");
    assert!(lease.send(MessageType::DiskSync, vec![0; 7]).is_err(), "it has no id");
    let write = DiskWrite { id: 70, epoch: 1, offset: 4096, data: &[5; 512] };
    lease.send(MessageType::DiskWrite, write.encode()).unwrap();
    lease.send(MessageType::DiskSync, sync(70)).unwrap();
    let (kind, body) = agent.disk_request().unwrap();
    let came = DiskWrite::decode(&body, SIZE).unwrap();
    assert_eq!((kind, DiskWrite { id: 70, ..came }), (MessageType::DiskWrite, write));
    let second = DiskSync::decode(&agent.disk_request().unwrap().1).unwrap();
    assert_ne!(came.id, second.id, "the borrower's ids are its own business");
    agent.say(MessageType::DiskDone, &DiskDone { id: came.id, errno: 28 }.encode());
    let (kind, body) = lease.receive().unwrap();
    assert_eq!((kind, DiskDone::decode(&body)), (MessageType::DiskDone, Ok(DiskDone { id: 70, errno: 28 })));
    // The second answer comes when its borrower is gone.
    drop(lease);
    let lease = lent(&appliance);
    agent.say(MessageType::DiskDone, &DiskDone { id: second.id, errno: 0 }.encode());
    lease.send(MessageType::DiskSync, sync(9)).unwrap();
    let third = DiskSync::decode(&agent.disk_request().unwrap().1).unwrap();
    agent.say(MessageType::DiskDone, &DiskDone { id: third.id, errno: 0 }.encode());
    assert_eq!(DiskDone::decode(&lease.receive().unwrap().1).unwrap().id, 9);
    // Who closes it ends its own waiting.
    lease.close();
    assert_eq!(lease.receive(), None);
    // An answer to nothing ends the session.
    agent.say(MessageType::DiskDone, &DiskDone { id: third.id, errno: 0 }.encode());
    assert_eq!(agent.disk_request(), None);
}

#[test]
fn so_many_requests_are_under_way_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let (config, appliance) = bench(dir.path());
    appliance.fence("disk", "job", Fence::Closed).unwrap();
    let mut agent = Agent::connect(&config.listen, &Hello { epoch: 1, ..hello() }).unwrap();
    let lease = lent(&appliance);
    let sent = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let (sent, lease) = (&sent, &lease);
        scope.spawn(move || {
            for id in 0..=MAX_REQUESTS as u64 {
                lease.send(MessageType::DiskSync, sync(id)).unwrap();
                sent.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            }
        });
        let ids: Vec<u64> =
            (0..MAX_REQUESTS).map(|_| DiskSync::decode(&agent.disk_request().unwrap().1).unwrap().id).collect();
        std::thread::sleep(Duration::from_millis(50));
        assert!(sent.load(std::sync::atomic::Ordering::SeqCst) <= MAX_REQUESTS);
        // Answered is not enough: somebody has to take the answer.
        agent.say(MessageType::DiskDone, &DiskDone { id: ids[0], errno: 0 }.encode());
        assert_eq!(DiskDone::decode(&lease.receive().unwrap().1).unwrap().id, 0);
        assert!(agent.disk_request().is_some(), "and then there is room for one more");
        // Who waits for room hears of it when nobody takes answers any more.
        let waits = scope.spawn(move || lease.send(MessageType::DiskSync, sync(99)));
        std::thread::sleep(Duration::from_millis(20));
        lease.close();
        assert!(waits.join().unwrap().is_err());
    });
}

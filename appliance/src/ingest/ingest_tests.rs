use crate::appliance::Appliance;
use crate::store::IoOp;
use crate::testing::*;
use afterimage_base::net::Endpoint;
use afterimage_format::record::Kind;
use afterimage_format::wire::RefuseCode;
use proptest::prelude::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

/// A stream of records: writes of few contents (so that many are duplicates) at any alignment, zeroes, markers.
fn stream() -> impl Strategy<Value = Vec<Write1>> {
    let one = (0u8..20, 0u64..SIZE, 1u64..30_000, 0u8..6, any::<bool>());
    proptest::collection::vec(one, 1..60).prop_map(|ops| {
        (1u64..)
            .zip(ops)
            .map(|(seq, (kind, offset, len, fill, aligned))| {
                let offset = if aligned { offset / 4096 * 4096 } else { offset };
                let len = if aligned { len.next_multiple_of(4096) } else { len }.min(SIZE - offset);
                match kind {
                    0 => record(Kind::Point, seq, 0, 2, vec![b'p', b'a' + fill]),
                    1 => record(Kind::Gap, seq, 55, 0, Vec::new()),
                    2 => record(Kind::SyncEnd, seq, 0, 0, Vec::new()),
                    3 => record(Kind::Void, seq, 0, 0, Vec::new()),
                    4..7 => record(Kind::Zero, seq, offset, len, Vec::new()),
                    _ => {
                        // Six contents of a block, one of them zero; what it is depends on the place in the block.
                        let byte = |i: u64| if fill == 0 { 0 } else { fill.wrapping_mul((i % 4096 % 251) as u8 + 1) };
                        let payload: Vec<u8> = (offset..offset + len).map(byte).collect();
                        record(Kind::Write, seq, offset, len, payload)
                    }
                }
            })
            .collect()
    })
}

fn verify(appliance: &Appliance, images: &[Vec<u8>], upto: usize) {
    for (seq, image) in images.iter().enumerate().take(upto + 1) {
        assert!(read_at(appliance, seq as u64) == *image, "image at seq {seq}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Every prefix equals the model's, through reconnects, kills, clean stops, flushes, a dedupe index of any size.
    #[test]
    fn every_prefix_equals_the_model(
        records in stream(),
        cuts in proptest::collection::vec((1usize..20, 0u8..5, 0u64..17), 1..8),
        index in prop_oneof![Just(0usize), Just(1 << 20)],
        memory in prop_oneof![Just(4usize), Just(1 << 16)],
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(dir.path());
        (config.dedupe_bytes, config.memory_runs) = (index, memory);
        let images = images(&records);
        let mut appliance = Appliance::start(config.clone()).unwrap();
        let mut agent = Agent::connect(&config.listen, &hello()).unwrap();
        let (mut done, mut cuts) = (0, cuts.into_iter().cycle());
        while done < records.len() {
            let (count, then, fill) = cuts.next().unwrap();
            let next = records.len().min(done + count);
            // With a ring that is nearly full frames land unreduced.
            agent.fill(fill);
            agent.send(&bytes_of(&records[done..next]));
            prop_assert_eq!(agent.wait(next as u64), Ok(()));
            done = next;
            match then {
                0 => drop(appliance),
                1 => appliance.stop(),
                2 => {
                    agent = Agent::connect(&config.listen, &hello()).unwrap();
                    continue;
                }
                3 => {
                    let volume = appliance.registry.all()[0].clone();
                    volume.flush(&appliance.shared).unwrap();
                    continue;
                }
                _ => continue,
            }
            appliance = Appliance::start(config.clone()).unwrap();
            prop_assert!(appliance.started.damaged_volumes.is_empty());
            agent = Agent::connect(&config.listen, &hello()).unwrap();
            prop_assert_eq!(agent.welcome.durable, done as u64);
            prop_assert_eq!(agent.welcome.ring, RING);
            prop_assert_eq!(agent.welcome.digest, records[done - 1].record.digest());
        }
        verify(&appliance, &images, done);
        let points = records.iter().filter(|r| r.record.kind == Kind::Point).map(|r| r.record.seq);
        let found = appliance.points("disk").unwrap();
        prop_assert!(found.iter().map(|p| p.seq).eq(points));
        let gaps = records.iter().filter(|r| r.record.kind == Kind::Gap).map(|r| r.record.seq);
        prop_assert!(appliance.gaps("disk").unwrap().iter().map(|g| g.from_seq).eq(gaps));
        let report = crate::check::check(&config.dir, Some(&config.key));
        drop(appliance);
        prop_assert!(report.is_err(), "a vault in use is not checked");
        let report = crate::check::check(&config.dir, Some(&config.key)).unwrap();
        prop_assert!(report.damages.is_empty(), "{:?}", report.damages);
    }

    /// The disk fails at any operation, for good or for lack of room: what was acknowledged is there, nothing is half there.
    #[test]
    fn a_failing_disk_loses_nothing_acknowledged(records in stream(), fail_at in 0i64..14, full: bool, size in 1usize..12) {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(dir.path());
        config.segment_size = 32 << 10;
        let left = Arc::new(AtomicI64::new(fail_at));
        let (hook_left, errno) = (Arc::clone(&left), if full { libc::ENOSPC } else { libc::EIO });
        config.io_hook = Some(Arc::new(move |_: IoOp| match hook_left.fetch_sub(1, Ordering::SeqCst) {
            0 => Err(std::io::Error::from_raw_os_error(errno)),
            _ => Ok(()),
        }));
        let images = images(&records);
        let mut appliance = Appliance::start(config.clone()).unwrap();
        let (mut acked, mut refused) = (0, 0);
        while acked < records.len() {
            let mut agent = match Agent::connect(&config.listen, &hello()) {
                Ok(agent) => agent,
                Err(refuse) => {
                    prop_assert_eq!(refuse.code, if full { RefuseCode::Full } else { RefuseCode::Failed });
                    if full {
                        // The manifest found no room; only a final error keeps sessions out for good.
                        continue;
                    }
                    drop(appliance);
                    appliance = Appliance::start(config.clone()).unwrap();
                    continue;
                }
            };
            prop_assert!(agent.welcome.durable >= acked as u64, "acknowledged and lost");
            acked = usize::try_from(agent.welcome.durable).unwrap();
            while acked < records.len() {
                let next = records.len().min(acked + size);
                agent.send(&bytes_of(&records[acked..next]));
                let result = agent.wait(next as u64);
                acked = usize::try_from(agent.durable).unwrap();
                if let Err(refuse) = result {
                    let code = refuse.unwrap().code;
                    prop_assert_eq!(code, if full { RefuseCode::Full } else { RefuseCode::Failed });
                    refused += 1;
                    break;
                }
            }
        }
        prop_assert!(refused <= 1);
        verify(&appliance, &images, acked);
        drop(appliance);
        let appliance = Appliance::start(config.clone()).unwrap();
        verify(&appliance, &images, acked);
    }
}

/// The tail that was not yet synced may have any length and any content after a power cut.
#[test]
fn whatever_a_power_cut_leaves_of_the_unsynced_tail_nothing_is_half_visible() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    let noise = |seed: u64, len: u64| -> Vec<u8> { (0..len).map(|i| xx(seed * 7919 + i).to_le_bytes()[1]).collect() };
    let write = |seq: u64, offset, len| record(Kind::Write, seq, offset, len, noise(seq, len));
    let first: Vec<Write1> = (1..=6).map(|s| write(s, s * 4096, 8192)).collect();
    let second: Vec<Write1> = (7..=9).map(|s| write(s, s * 4096 + 100, 6000)).collect();
    let all: Vec<Write1> = first.iter().chain(&second).cloned().collect();
    let images = images(&all);
    let appliance = Appliance::start(config.clone()).unwrap();
    let mut agent = Agent::connect(&config.listen, &hello()).unwrap();
    agent.send(&bytes_of(&first));
    agent.wait(6).unwrap();
    let segment = config.dir.join("segments/00000001.seg");
    let synced = std::fs::metadata(&segment).unwrap().len();
    agent.send(&bytes_of(&second));
    agent.wait(9).unwrap();
    drop(appliance);
    let whole = std::fs::read(&segment).unwrap();
    let synced = usize::try_from(synced).unwrap();
    let mut tried = [0; 2];
    let mut reopen = |bytes: &[u8], what: &str| {
        let crashed = tempfile::tempdir().unwrap();
        copy_tree(&config.dir, &crashed.path().join("vault"));
        std::fs::write(crashed.path().join("vault/segments/00000001.seg"), bytes).unwrap();
        let appliance = Appliance::start(self::config(crashed.path())).unwrap();
        let durable = usize::try_from(appliance.volumes()[0].durable_seq).unwrap();
        let expected = if bytes == whole { 9 } else { 6 };
        assert_eq!(durable, expected, "{what}");
        tried[usize::from(expected == 9)] += 1;
        verify(&appliance, &images, durable);
        // And the history goes on, in a new segment.
        let mut agent = Agent::connect(&self::config(crashed.path()).listen, &hello()).unwrap();
        agent.send(&bytes_of(&all[durable..]));
        agent.wait(9).unwrap();
        verify(&appliance, &images, 9);
        crashed
    };
    drop(reopen(&whole, "nothing lost"));
    for cut in (synced..whole.len()).step_by(397).chain([synced + 1, whole.len() - 1]) {
        drop(reopen(&whole[..cut], &format!("cut at {cut}")));
    }
    for page in (synced / 512..whole.len() / 512).step_by(3) {
        let mut torn = whole.clone();
        torn[(page * 512).max(synced)..(page + 1) * 512].fill(0);
        drop(reopen(&torn, &format!("sector {page} was never written")));
    }
    assert!(tried[0] > 20 && tried[1] == 1, "{tried:?}");
}

fn xx(v: u64) -> u64 {
    xxhash_rust::xxh3::xxh3_64(&v.to_le_bytes())
}

#[test]
fn a_newer_session_supersedes_the_older_one() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    let _appliance = Appliance::start(config.clone()).unwrap();
    let mut old = Agent::connect(&config.listen, &hello()).unwrap();
    let w = [record(Kind::Write, 1, 0, 4096, vec![3; 4096]), record(Kind::Write, 2, 0, 4096, vec![4; 4096])];
    old.send(&bytes_of(&w[..1]));
    old.wait(1).unwrap();
    let mut new = Agent::connect(&config.listen, &hello()).unwrap();
    assert_eq!(new.welcome.durable, 1);
    assert_eq!(old.wait(2).unwrap_err().unwrap().code, RefuseCode::Superseded);
    new.send(&bytes_of(&w[1..]));
    new.wait(2).unwrap();
}

fn refused(path: &[Endpoint], body: &[u8]) -> RefuseCode {
    let mut agent = Agent::connect(path, &hello()).unwrap();
    agent.send(body);
    agent.wait(u64::MAX).unwrap_err().unwrap().code
}

#[test]
fn what_a_peer_must_not_do_is_refused_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    let appliance = Appliance::start(config.clone()).unwrap();
    let path = &config.listen;
    let one = record(Kind::Write, 1, 0, 4096, vec![3; 4096]);
    let mut bad = bytes_of(std::slice::from_ref(&one));
    bad[100] ^= 1;
    assert_eq!(refused(path, &bad), RefuseCode::Malformed, "payload checksum");
    assert_eq!(refused(path, &bad[..80]), RefuseCode::Malformed, "cut off");
    assert_eq!(refused(path, &[9; 70]), RefuseCode::Malformed, "no record");
    let skip = record(Kind::Write, 3, 0, 4096, vec![3; 4096]);
    assert_eq!(refused(path, &bytes_of(&[skip])), RefuseCode::Continuity);
    let past = record(Kind::Zero, 1, SIZE - 1, 2, Vec::new());
    assert_eq!(refused(path, &bytes_of(&[past])), RefuseCode::Malformed, "past the end");
    // Histories cannot hold it, and an appliance that had taken it would not start any more.
    let mut beyond = record(Kind::Gap, 1, 0, 0, Vec::new());
    beyond.record.seq = afterimage_format::record::MAX_SEQ + 1;
    assert_eq!(refused(path, &bytes_of(&[beyond])), RefuseCode::Malformed, "beyond the greatest seq");
    let mut agent = Agent::connect(path, &hello()).unwrap();
    agent.raw(&[1; 64]);
    assert_eq!(agent.wait(1).unwrap_err().unwrap().code, RefuseCode::Malformed, "garbage");
    let refuse = |h| Agent::connect(path, &h).err().unwrap().code;
    assert_eq!(
        refuse(afterimage_format::wire::Hello { oldest: 1, newest: 1, size: SIZE + 1, ..hello() }),
        RefuseCode::Volume
    );
    assert_eq!(refuse(afterimage_format::wire::Hello { volume: [1; 16], ..hello() }), RefuseCode::Volume);
    assert_eq!(refuse(afterimage_format::wire::Hello { oldest: 9, newest: 12, ..hello() }), RefuseCode::Version);
    assert_eq!(appliance.volumes()[0].durable_seq, 0);
    let mut agent = Agent::connect(path, &hello()).unwrap();
    agent.send(&bytes_of(&[one]));
    agent.wait(1).unwrap();
    // Another ring may go on only with a gap.
    let other = afterimage_format::wire::Hello { ring: [9; 16], ..hello() };
    let mut agent = Agent::connect(path, &other).unwrap();
    agent.send(&bytes_of(&[record(Kind::Void, 2, 0, 0, Vec::new())]));
    assert_eq!(agent.wait(2).unwrap_err().unwrap().code, RefuseCode::Continuity);
    let mut agent = Agent::connect(path, &other).unwrap();
    agent.send(&bytes_of(&[record(Kind::Gap, 10, 5, 0, Vec::new())]));
    agent.wait(10).unwrap();
    assert_eq!(Agent::connect(path, &other).unwrap().welcome.ring, [9; 16]);
}

/// The end of the connection lies right behind the last message: no reason to forget that message.
#[test]
fn what_an_agent_sent_right_before_it_went_away_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    let _appliance = Appliance::start(config.clone()).unwrap();
    for seq in 1..20 {
        let mut agent = Agent::connect(&config.listen, &hello()).unwrap();
        assert_eq!(agent.welcome.durable, seq - 1);
        agent.send(&bytes_of(&[record(Kind::Write, seq, 0, 4096, vec![3; 4096])]));
        agent.shut();
        agent.wait(seq).unwrap();
    }
}

#[test]
fn more_than_the_credit_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.credit = 10_000;
    let _appliance = Appliance::start(config.clone()).unwrap();
    let mut agent = Agent::connect(&config.listen, &hello()).unwrap();
    assert_eq!(agent.credit, 10_000);
    let writes: Vec<Write1> = (1..=3).map(|s| record(Kind::Write, s, 0, 4096, vec![3; 4096])).collect();
    agent.send(&bytes_of(&writes));
    assert_eq!(agent.wait(3).unwrap_err().unwrap().code, RefuseCode::Malformed);
}

fn sized(kind: Kind, seq: u64, size: u64) -> Write1 {
    let mut w = record(kind, seq, 0, size, Vec::new());
    w.record.flags = if kind == Kind::Gap { afterimage_format::record::FLAG_SIZED } else { 0 };
    w
}

/// Bytes of the volume as it was at `seq`, through the device that an export serves.
fn device_at(appliance: &Appliance, seq: u64) -> Vec<u8> {
    let device = appliance.open_at("disk", seq).unwrap();
    let mut queue = Arc::clone(&device).open_queue().unwrap();
    let len = usize::try_from(device.geometry().size).unwrap();
    let buf = afterimage_base::buf::AlignedBuf::zeroed(len);
    let read = afterimage_base::block::Request::Read { offset: 0, buf };
    afterimage_base::simple::call(&mut *queue, read).unwrap().unwrap().to_vec()
}

/// Each seq has the size that the volume had then; what a smaller size dropped reads as zeroes when it grows again; all
/// of it survives a kill, a flush and a clean stop.
#[test]
fn history_knows_the_size_at_every_seq() {
    let (small, large) = (10 * 4096 + 700, 40 * 4096);
    let write = |seq, offset, len: usize, fill| record(Kind::Write, seq, offset, len as u64, vec![fill; len]);
    let records = [
        write(1, 0, 98_304, 1),
        sized(Kind::Resize, 2, small),
        write(3, 4096, 4096, 2),
        sized(Kind::Resize, 4, large),
        write(5, large - 4096, 4096, 3),
        sized(Kind::Gap, 6, small + 1000),
        record(Kind::SyncEnd, 7, 0, 0, Vec::new()),
        sized(Kind::Resize, 8, SIZE),
        sized(Kind::Resize, 9, SIZE),
    ];
    let mut want: Vec<Vec<u8>> = vec![vec![0; usize::try_from(SIZE).unwrap()]];
    for r in &records {
        let mut image = want.last().unwrap().clone();
        if let Some(size) = r.record.new_size() {
            image.resize(usize::try_from(size).unwrap(), 0);
        }
        let at = usize::try_from(r.record.offset).unwrap();
        image[at..at + r.payload.len()].copy_from_slice(&r.payload);
        want.push(image);
    }
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    let mut appliance = Appliance::start(config.clone()).unwrap();
    let mut hello = hello();
    for (i, _) in records.iter().enumerate() {
        let mut agent = Agent::connect(&config.listen, &hello).unwrap();
        agent.send(&bytes_of(&records[i..=i]));
        agent.wait(i as u64 + 1).unwrap();
        drop(agent);
        // The size in the Hello is what the agent's disk has by now, which the records lead to.
        hello.size = records[i].record.new_size().unwrap_or(hello.size);
        if i % 3 == 2 {
            appliance.stop();
        } else {
            drop(appliance);
        }
        appliance = Appliance::start(config.clone()).unwrap();
        for (seq, image) in want.iter().enumerate().take(i + 2).skip(1).filter(|(seq, _)| *seq != 6) {
            assert!(device_at(&appliance, seq as u64) == *image, "seq {seq} after {}", i + 1);
        }
    }
    assert_eq!(appliance.volumes()[0].size, SIZE);
    assert_eq!(appliance.diff("disk", 2, 4).unwrap(), [(4096, 4096)]);
    assert_eq!(appliance.diff("disk", 4, 5).unwrap(), [(large - 4096, 4096)]);
    // An agent that cannot say when a size changed must not have another one.
    hello.newest = 1;
    hello.oldest = 1;
    hello.size = SIZE + 4096;
    let refused = Agent::connect(&config.listen, &hello).err().unwrap();
    assert_eq!(refused.code, RefuseCode::Volume);
    assert!(refused.text.contains("use a newer agent"), "{}", refused.text);
}

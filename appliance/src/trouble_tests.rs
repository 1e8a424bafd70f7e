//! Disks of the vault that refuse, layers that are damaged, clocks that jump: what is hit says so, and the rest goes on.

use crate::Appliance;
use crate::collect::Now;
use crate::history::timeline::Wish;
use crate::store::IoOp;
use crate::testing::*;
use afterimage_base::clock::{Clock, ManualClock};
use afterimage_base::net::Endpoint;
use afterimage_format::manifest::SegmentMeta;
use afterimage_format::record::{FLAG_SIZED, Kind};
use afterimage_format::wire::{Hello, RefuseCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

const OTHER: [u8; 16] = [9; 16];

fn other() -> Hello {
    Hello { volume: OTHER, name: "other".into(), ..hello() }
}

/// Writes of whole blocks, seqs `from..to`, none like another.
fn writes(from: u64, to: u64) -> Vec<Write1> {
    let bytes = |seq: u64| {
        (0..4096u64).map(move |i| {
            seq.wrapping_mul(6_364_136_223_846_793_005).to_le_bytes()[(i % 8) as usize].wrapping_add((i % 57) as u8)
        })
    };
    (from..to).map(|seq| record(Kind::Write, seq, seq % 24 * 4096, 4096, bytes(seq).collect())).collect()
}

fn send(path: &[Endpoint], hello: &Hello, records: &[Write1]) -> Result<(), RefuseCode> {
    let mut agent = Agent::connect(path, hello).map_err(|r| r.code)?;
    agent.send(&bytes_of(records));
    agent.wait(records.last().unwrap().record.seq).map_err(|r| r.unwrap().code)
}

fn failure(appliance: &Appliance, name: &str) -> Option<String> {
    appliance.volumes().into_iter().find(|v| v.name == name).unwrap().failure
}

#[test]
fn an_error_on_a_layer_ends_its_volume_and_no_other() {
    for bad in [IoOp::WriteLayer, IoOp::SyncLayer] {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(dir.path());
        config.memory_runs = 8;
        let (armed, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let (hook_armed, hook_asked) = (Arc::clone(&armed), Arc::clone(&asked));
        config.io_hook = Some(Arc::new(move |op| {
            if op == bad && hook_armed.load(Ordering::SeqCst) && hook_asked.fetch_add(1, Ordering::SeqCst) == 0 {
                return Err(std::io::Error::from_raw_os_error(libc::EIO));
            }
            Ok(())
        }));
        let appliance = Appliance::start(config.clone()).unwrap();
        send(&config.listen, &other(), &writes(1, 4)).unwrap();
        armed.store(true, Ordering::SeqCst);
        send(&config.listen, &hello(), &writes(1, 20)).unwrap();
        while failure(&appliance, "disk").is_none() {
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        assert_eq!(send(&config.listen, &hello(), &writes(20, 21)), Err(RefuseCode::Failed));
        assert!(failure(&appliance, "other").is_none());
        send(&config.listen, &other(), &writes(4, 40)).unwrap();
        // What was acknowledged can be read, and comes back with the next start.
        let images = images(&writes(1, 20));
        assert!(read_at(&appliance, 19) == images[19]);
        drop(appliance);
        let appliance = Appliance::start(config.clone()).unwrap();
        assert!(read_at(&appliance, 19) == images[19]);
        send(&config.listen, &hello(), &writes(20, 30)).unwrap();
    }
}

#[test]
fn an_error_on_the_manifest_ends_the_vault_and_nothing_is_acknowledged_any_more() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.segment_size = 32 << 10;
    let (armed, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let (hook_armed, hook_asked) = (Arc::clone(&armed), Arc::clone(&asked));
    config.io_hook = Some(Arc::new(move |op| {
        let fails = op == IoOp::Manifest && hook_armed.load(Ordering::SeqCst);
        hook_asked.fetch_add(u32::from(fails), Ordering::SeqCst);
        if fails { Err(std::io::Error::from_raw_os_error(libc::EIO)) } else { Ok(()) }
    }));
    let appliance = Appliance::start(config.clone()).unwrap();
    for h in [hello(), other()] {
        send(&config.listen, &h, &writes(1, 3)).unwrap();
    }
    armed.store(true, Ordering::SeqCst);
    let mut acked = 2;
    let refused = loop {
        match send(&config.listen, &hello(), &writes(acked + 1, acked + 2)) {
            Ok(()) => acked += 1,
            Err(code) => break code,
        }
    };
    assert_eq!(refused, RefuseCode::Failed);
    assert_eq!(send(&config.listen, &other(), &writes(3, 4)), Err(RefuseCode::Failed), "the manifest is everybody's");
    for name in ["disk", "other"] {
        assert!(failure(&appliance, name).unwrap().contains("manifest"));
    }
    assert_eq!(asked.load(Ordering::SeqCst), 1, "not tried again");
    drop(appliance);
    armed.store(false, Ordering::SeqCst);
    let appliance = Appliance::start(config.clone()).unwrap();
    let durable = appliance.volumes().iter().find(|v| v.name == "disk").unwrap().durable_seq;
    assert!(durable >= acked, "{durable} of {acked}");
    assert!(read_at(&appliance, acked) == images(&writes(1, acked + 1))[usize::try_from(acked).unwrap()]);
    send(&config.listen, &other(), &writes(3, 9)).unwrap();
}

/// Each of the volume's layers in turn is damaged in its header, cut, or gone.
#[test]
fn a_damaged_layer_stops_its_volume_only_and_what_is_before_it_can_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    let mut appliance = Appliance::start(config.clone()).unwrap();
    for h in [hello(), other()] {
        send(&config.listen, &h, &writes(1, 30)).unwrap();
    }
    appliance.stop();
    appliance = Appliance::start(config.clone()).unwrap();
    for h in [hello(), other()] {
        send(&config.listen, &h, &writes(30, 60)).unwrap();
    }
    appliance.stop();
    let manifest = crate::vault::read_manifest(&config.dir).unwrap().unwrap();
    let layers = manifest.volume(&VOLUME).unwrap().layers.clone();
    assert_eq!(layers.len(), 2);
    let images = images(&writes(1, 60));
    for (which, harm) in [(1, 0), (0, 0), (1, 1), (1, 2), (0, 2)] {
        let path = config.dir.join("layers").join(layers[which].file_name());
        let good = std::fs::read(&path).unwrap();
        match harm {
            0 => std::fs::write(
                &path,
                good.iter().map(|b| b ^ 1).take(4).chain(good[4..].iter().copied()).collect::<Vec<u8>>(),
            ),
            1 => std::fs::write(&path, &good[..good.len() - 1]),
            _ => std::fs::remove_file(&path),
        }
        .unwrap();
        let appliance = Appliance::start(config.clone()).unwrap();
        assert_eq!(appliance.started.damaged_volumes, ["disk"]);
        let upto = layers[which].after_seq;
        let why = failure(&appliance, "disk").unwrap();
        assert!(why.contains(&format!("up to seq {upto} only")) && why.contains("afterimage check"), "{why}");
        if upto > 0 {
            assert!(read_at(&appliance, upto) == images[usize::try_from(upto).unwrap()]);
        }
        let volume = appliance.volume("disk").unwrap();
        let mut places = Vec::new();
        assert!(volume.history.view(59).unwrap().resolve(0, 25, &mut places).is_err(), "nothing is made up");
        assert_eq!(send(&config.listen, &hello(), &writes(60, 61)), Err(RefuseCode::Failed));
        assert!(failure(&appliance, "other").is_none());
        appliance.choose("other", Wish::Seq(59)).unwrap();
        // Nothing is collected while nobody knows what the damaged layer refers to.
        for _ in 0..3 {
            assert_eq!(appliance.collect(u64::MAX).unwrap().removed_segments, 0);
        }
        appliance.stop();
        std::fs::write(&path, &good).unwrap();
    }
    let appliance = Appliance::start(config.clone()).unwrap();
    assert!(failure(&appliance, "disk").is_none() && read_at(&appliance, 59) == images[59]);
    send(&config.listen, &hello(), &writes(60, 70)).unwrap();
}

/// Records that cannot be read at a start may be there: they are not given up for a gap.
#[test]
fn what_cannot_be_read_at_a_start_is_not_lost() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    // Every start begins a segment.
    for (from, to) in [(1, 20), (20, 40), (40, 60)] {
        let appliance = Appliance::start(config.clone()).unwrap();
        for h in [hello(), other()] {
            send(&config.listen, &h, &writes(from, to)).unwrap();
        }
        drop(appliance);
    }
    let images = images(&writes(1, 60));
    let manifest = crate::vault::read_manifest(&config.dir).unwrap().unwrap();
    let full = |s: &&SegmentMeta| s.volume == VOLUME;
    let unread: Vec<_> = manifest.segments.iter().filter(full).map(|s| s.number).collect();
    assert!(unread.len() > 2, "{:?}", manifest.segments);
    for number in [unread[0], unread[1], unread[unread.len() - 1]] {
        let path = config.dir.join("segments").join(crate::store::file_name(number));
        let aside = dir.path().join("aside");
        std::fs::rename(&path, &aside).unwrap();
        // A folder can be opened and not be read.
        std::fs::create_dir(&path).unwrap();
        let appliance = Appliance::start(config.clone()).unwrap();
        let why = failure(&appliance, "disk").unwrap();
        assert!(why.contains("cannot be read"), "{why}");
        assert_eq!(send(&config.listen, &hello(), &writes(60, 61)), Err(RefuseCode::Failed));
        assert!(Agent::connect(&config.listen, &other()).is_ok());
        assert_eq!(appliance.collect(u64::MAX).unwrap().removed_segments, 0);
        if let Ok(newest) = appliance.choose("disk", Wish::Latest) {
            assert!(read_at(&appliance, newest) == images[usize::try_from(newest).unwrap()]);
        }
        drop(appliance);
        std::fs::remove_dir(&path).unwrap();
        std::fs::rename(&aside, &path).unwrap();
    }
    let appliance = Appliance::start(config.clone()).unwrap();
    assert!(failure(&appliance, "disk").is_none());
    assert_eq!(appliance.choose("disk", Wish::Latest).unwrap(), 59);
    assert!(read_at(&appliance, 59) == images[59]);
    send(&config.listen, &hello(), &writes(60, 70)).unwrap();
}

/// Clocks jump by an hour, here and at the agent: the order stays, a time names one seq, and nothing goes early.
#[test]
fn clocks_that_jump_change_no_order_and_drop_nothing() {
    const SECOND: u64 = 1_000_000_000;
    const HOUR: u64 = 3600 * SECOND;
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.window = std::time::Duration::from_secs(600);
    let appliance = Appliance::start(config.clone()).unwrap();
    let start = 1_700_000_000 * SECOND;
    let (here, there) = (ManualClock::at(start), ManualClock::at(start));
    let mut agent = Agent::connect(&config.listen, &hello()).unwrap();
    let (mut labels, mut newest) = (Vec::new(), 0);
    for seq in 1..=60u64 {
        for clock in [&here, &there] {
            clock.advance(10 * SECOND);
        }
        match seq {
            10 => there.jump_to(there.wall() + HOUR),
            20 => there.jump_to(there.wall() - 2 * HOUR),
            30 => here.jump_to(here.wall() + HOUR),
            40 => here.jump_to(here.wall() - 2 * HOUR),
            50 => there.jump_to(here.wall()),
            _ => {}
        }
        let mut w = writes(seq, seq + 1);
        w[0].record.time = there.wall();
        newest = newest.max(there.wall());
        labels.push(newest);
        agent.send(&bytes_of(&w));
        agent.wait(seq).unwrap();
        let collected = appliance.registry.collect(Now::Clock(&here), &AtomicBool::new(false), &|_| true);
        collected.unwrap();
        // All of it is younger than the window, whatever the clocks say.
        assert_eq!(appliance.volumes()[0].first_seq, 0, "at seq {seq}");
    }
    let mut before = 0;
    for label in &labels {
        let seq = appliance.choose("disk", Wish::Time(*label)).unwrap();
        assert_eq!(
            seq,
            labels.iter().filter(|l| *l <= label).count() as u64,
            "the newest with that label or an earlier one"
        );
        assert!(seq >= before);
        before = seq;
    }
    let images = images(&writes(1, 61));
    for seq in 1..=60 {
        assert!(read_at(&appliance, seq) == images[usize::try_from(seq).unwrap()]);
    }
    // Time does pass: an hour and the window later all but those with the newest label may go.
    here.advance(4 * HOUR);
    appliance.registry.collect(Now::Clock(&here), &AtomicBool::new(false), &|_| true).unwrap();
    assert_eq!(appliance.volumes()[0].first_seq, 19);
}

/// A gap that skips seqs hides them: they may have named other writes, in a future that is lost.
#[test]
fn a_seq_that_a_gap_skips_names_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    let mut appliance = Appliance::start(config.clone()).unwrap();
    send(&config.listen, &hello(), &writes(1, 6)).unwrap();
    let mut rest = vec![record(Kind::Gap, 9, 55, 0, Vec::new()), record(Kind::SyncEnd, 10, 0, 0, Vec::new())];
    rest.extend(writes(11, 13));
    send(&config.listen, &hello(), &rest).unwrap();
    for restart in [None, Some(false), Some(true)] {
        if let Some(clean) = restart {
            if clean {
                appliance.stop()
            } else {
                drop(appliance)
            }
            appliance = Appliance::start(config.clone()).unwrap();
        }
        let gaps = appliance.gaps("disk").unwrap();
        assert_eq!((gaps.len(), gaps[0].from_seq, gaps[0].to_seq), (1, 6, Some(10)));
        for seq in 1..=12 {
            let there = appliance.choose("disk", Wish::Seq(seq)).is_ok();
            assert_eq!(there, !(6..10).contains(&seq), "@{seq}");
        }
    }
}

#[test]
fn gaps_and_sizes_that_nothing_kept_needs_are_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    let appliance = Appliance::start(config.clone()).unwrap();
    let sized = |seq, len| {
        let mut w = record(Kind::Gap, seq, 55, len, Vec::new());
        w.record.flags = FLAG_SIZED;
        w
    };
    let end = |seq| record(Kind::SyncEnd, seq, 0, 0, Vec::new());
    let records = [
        sized(1, 8 << 20),
        end(2),
        record(Kind::Point, 3, 0, 1, vec![b'p']),
        sized(4, 4 << 20),
        end(5),
        sized(6, 2 << 20),
        end(7),
        end(8),
    ];
    send(&config.listen, &hello(), &records).unwrap();
    assert_eq!(appliance.gaps("disk").unwrap().len(), 3);
    appliance.collect(u64::MAX).unwrap();
    assert!(appliance.gaps("disk").unwrap().is_empty());
    for (seq, size) in [(3, 8 << 20), (8, 2 << 20)] {
        assert_eq!(appliance.size_at("disk", seq).unwrap(), size);
        assert_eq!(appliance.open_at("disk", seq).unwrap().geometry().size, size);
    }
    appliance.stop();
    let appliance = Appliance::start(config).unwrap();
    assert!(appliance.gaps("disk").unwrap().is_empty());
    assert_eq!((appliance.size_at("disk", 3).unwrap(), appliance.size_at("disk", 8).unwrap()), (8 << 20, 2 << 20));
}

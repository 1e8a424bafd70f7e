//! Retention by policy on a real vault: what stays can be read, what goes cannot be chosen, and kills bring nothing back.

use crate::appliance::Appliance;
use crate::config::ApplianceConfig;
use crate::testing::*;
use crate::{PointChange, Policy, Why};
use afterimage_format::record::{FLAG_AUTO, Kind};
use std::time::Duration;

const MINUTE: u64 = 60_000_000_000;
/// Monday, the 2nd of October 2023.
const START: u64 = 1_696_204_800_000_000_000;

/// A write and a point by turns, ten minutes between two points; every hundredth point is a user's.
fn stream(points: u64) -> Vec<Write1> {
    let one = |seq: u64| {
        let point = seq / 2;
        let mut w = if seq.is_multiple_of(2) {
            let mut w = record(Kind::Point, seq, 0, 0, format!("p{point}").into_bytes());
            w.record.len = w.payload.len() as u64;
            w.record.flags = if point.is_multiple_of(100) { 0 } else { FLAG_AUTO };
            w
        } else {
            let bytes: Vec<u8> = (0..4096).map(|i| ((seq * 131 + i * i) % 251) as u8).collect();
            record(Kind::Write, seq, (seq * 7 % 24) * 4096, 4096, bytes)
        };
        w.record.time = START + seq * 5 * MINUTE;
        w
    };
    (1..=points * 2).map(one).collect()
}

struct Site {
    _dir: tempfile::TempDir,
    config: ApplianceConfig,
    appliance: Option<Appliance>,
    records: Vec<Write1>,
}

impl Site {
    fn new(points: u64, policy: Policy) -> Site {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(dir.path());
        config.memory_runs = 64;
        (config.window, config.retention) = (Duration::from_nanos(policy.window), policy);
        let appliance = Appliance::start(config.clone()).unwrap();
        let records = stream(points);
        let mut agent = Agent::connect(&config.listen, &hello()).unwrap();
        for part in records.chunks(50) {
            agent.send(&bytes_of(part));
            agent.wait(part[part.len() - 1].record.seq).unwrap();
        }
        drop(agent);
        Site { _dir: dir, config, appliance: Some(appliance), records }
    }

    fn appliance(&self) -> &Appliance {
        self.appliance.as_ref().unwrap()
    }

    fn collect(&self) {
        for _ in 0..3 {
            self.appliance().collect(self.records.last().unwrap().record.time).unwrap();
        }
    }

    fn restart(&mut self, clean: bool) {
        let appliance = self.appliance.take().unwrap();
        if clean {
            appliance.stop();
        } else {
            drop(appliance);
        }
        self.appliance = Some(Appliance::start(self.config.clone()).unwrap());
    }

    fn names(&self) -> Vec<String> {
        self.appliance().points("disk").unwrap().into_iter().map(|p| p.name).collect()
    }

    /// That the points are these, and that all of them, and nothing else before the window, can be read.
    fn verify(&self, wanted: &[String]) {
        assert_eq!(self.names(), wanted);
        let images = images(&self.records);
        let first = self.appliance().volumes()[0].first_seq;
        let points: Vec<u64> = self.appliance().points("disk").unwrap().iter().map(|p| p.seq).collect();
        for seq in 1..=self.records.len() as u64 {
            let chosen = self.appliance().check_seq("disk", seq).is_ok();
            assert_eq!(chosen, seq >= first || points.contains(&seq), "seq {seq}");
            if chosen {
                assert!(read_at(self.appliance(), seq) == images[usize::try_from(seq).unwrap()], "image at {seq}");
            }
        }
    }
}

fn policy(hours: u64, [hourly, daily, weekly, monthly]: [u32; 4]) -> Policy {
    Policy { hourly, daily, weekly, monthly, ..Policy::window(hours * 60 * MINUTE) }
}

/// What a preview says stays.
fn stays(appliance: &Appliance, policy: Option<Policy>) -> Vec<String> {
    let kept = appliance.kept("disk", policy).unwrap();
    kept.points.into_iter().filter(|(_, why)| !why.is_empty()).map(|(p, _)| p.name).collect()
}

#[test]
fn points_before_the_window_are_thinned_and_read_as_they_did() {
    let mut site = Site::new(600, policy(6, [4, 3, 0, 0]));
    site.collect();
    let names = site.names();
    // 6 hours of 6 points (the window begins with a point), 4 hours and 3 days before it, of which one is an hour, and 5 of a user.
    assert_eq!(names.iter().filter(|n| n.len() == 4 && n.as_str() >= "p564").count(), 37);
    assert!(names.len() >= 37 + 4 + 2 + 4 && names.len() <= 37 + 4 + 3 + 6, "{names:?}");
    assert!(names.contains(&"p100".to_owned()) && !names.contains(&"p99".to_owned()));
    site.verify(&names);
    for clean in [false, true, false] {
        site.restart(clean);
        site.verify(&names);
        site.collect();
        site.verify(&names);
    }
}

#[test]
fn a_preview_says_what_will_happen_and_a_change_counts_at_once() {
    let mut site = Site::new(300, policy(1000, [0; 4]));
    site.collect();
    assert_eq!(site.names().len(), 300);
    let tight = policy(2, [2, 1, 0, 0]);
    let wanted = stays(site.appliance(), Some(tight));
    let freed = site.appliance().freed("disk", &tight).unwrap();
    assert_eq!(
        (site.names().len(), site.appliance().retention("disk").unwrap().1),
        (300, false),
        "nothing has changed"
    );
    assert!(
        freed.blocks > 200 && freed.blocks < 300 && freed.bytes == freed.blocks * 4096 && freed.stored_bytes > 0,
        "{freed:?}"
    );
    site.appliance().set_retention("disk", Some(tight)).unwrap();
    site.restart(false);
    assert_eq!(site.appliance().retention("disk").unwrap(), (tight, true), "it is durable");
    site.collect();
    site.verify(&wanted);
    // What is gone is gone; what is kept from now on is what the appliance keeps of all.
    site.appliance().set_retention("disk", None).unwrap();
    site.collect();
    site.verify(&wanted);
    assert_eq!(stays(site.appliance(), None), wanted);
}

#[test]
fn pins_removals_and_holds() {
    let mut site = Site::new(200, policy(2, [0; 4]));
    let change = |site: &Site, name: &str, change| site.appliance().change_point("disk", name, change);
    change(&site, "p7", PointChange::Pin).unwrap();
    change(&site, "p8", PointChange::Pin).unwrap();
    site.appliance().set_retention("disk", Some(Policy { hold: true, ..policy(2, [0; 4]) })).unwrap();
    site.collect();
    assert_eq!(site.names().len(), 200, "nothing goes while there is a hold");
    assert!(change(&site, "p100", PointChange::Remove).unwrap_err().to_string().contains("hold"));
    assert!(change(&site, "nope", PointChange::Pin).unwrap_err().to_string().contains("point ls"));
    site.appliance().set_retention("disk", None).unwrap();
    change(&site, "p8", PointChange::Unpin).unwrap();
    change(&site, "p100", PointChange::Remove).unwrap();
    site.restart(false);
    site.collect();
    let names = site.names();
    assert_eq!((&names[0], names.len()), (&"p7".to_owned(), 1 + 13), "{names:?}");
    site.verify(&names);
    site.restart(false);
    site.verify(&names);
    let kept = site.appliance().kept("disk", None).unwrap();
    assert_eq!(kept.points[0].1, [Why::Pin]);
}

#[test]
fn i10_a_flush_at_the_same_time_does_not_undo_a_change_of_a_point() {
    let site = Site::new(40, policy(2, [0; 4]));
    let appliance = site.appliance();
    let volume = appliance.volume("disk").unwrap();
    for round in 0..300 {
        let change = if round % 2 == 0 { PointChange::Pin } else { PointChange::Unpin };
        std::thread::scope(|scope| {
            scope.spawn(|| volume.flush(&appliance.shared).unwrap());
            appliance.change_point("disk", "p7", change).unwrap();
        });
        let find = |m: &afterimage_format::manifest::Manifest| {
            m.volume(&volume.id).unwrap().points.iter().find(|p| p.name == "p7").unwrap().pinned
        };
        assert_eq!(appliance.shared.vault.read(find), change == PointChange::Pin, "round {round}");
    }
}

/// Writes to the manifest, behind a change, what was true before it, as a flush beside it would without the lock.
#[test]
fn i10_broken_a_flush_that_writes_what_was_true_before_loses_a_pin() {
    for broken in [false, true] {
        let mut site = Site::new(200, policy(2, [0; 4]));
        let volume = site.appliance().volume("disk").unwrap();
        volume.flush(&site.appliance().shared).unwrap();
        let before = volume.progress();
        site.appliance().change_point("disk", "p7", PointChange::Pin).unwrap();
        if broken {
            let stale = |m: &mut afterimage_format::manifest::Manifest| {
                m.volumes.iter_mut().filter(|v| v.id == volume.id).for_each(|v| before.store(v));
            };
            site.appliance().shared.vault.edit(stale).unwrap();
        }
        drop(volume);
        site.restart(false);
        site.collect();
        assert_ne!(site.names().contains(&"p7".to_owned()), broken, "the break was not seen, or there is none");
    }
}

#[test]
fn i10_what_points_of_groups_need_is_kept_beyond_the_window_until_it_is_let_go() {
    let mut site = Site::new(60, policy(2, [0; 4]));
    let id = hello().volume;
    let point = |seq: u64| crate::PointMeta {
        note: "g".into(),
        ..crate::PointMeta::new(format!("g/{seq}"), seq, START + seq * 5 * MINUTE, true)
    };
    // None is where a point of the volume is; the last is not there at all.
    let wanted = vec![point(31), point(61), point(9999)];
    assert_eq!(site.appliance().keep_seqs(&id, wanted, &[]).unwrap(), [9999]);
    site.restart(false);
    for clean in [true, false] {
        site.collect();
        let names = site.names();
        assert_eq!((&names[..2], names.len()), (&["g/31".to_owned(), "g/61".to_owned()][..], 2 + 13), "{names:?}");
        site.verify(&names);
        assert!(site.appliance().keep_seqs(&id, vec![point(31)], &[]).unwrap().is_empty(), "it is there already");
        assert_eq!(site.appliance().keep_seqs(&id, vec![point(33)], &[]).unwrap(), [33], "too late");
        site.restart(clean);
    }
    // One goes; a point that is not of a group is not let go by that.
    site.appliance().change_point("disk", "p60", PointChange::Pin).unwrap();
    assert!(site.appliance().keep_seqs(&id, Vec::new(), &[31, 120]).unwrap().is_empty());
    site.restart(false);
    site.collect();
    let names = site.names();
    assert_eq!((&*names[0], &**names.last().unwrap(), names.len()), ("g/61", "p60", 1 + 13), "{names:?}");
    site.verify(&names);
    assert!(site.appliance().keep_seqs(&[1; 16], Vec::new(), &[]).is_err(), "no such volume");
}

use super::*;
use crate::catalogue::points::Ended;
use crate::groups::{NewGroup, PointState};
use afterimage_format::coord::group::{Marker, Named, Settled};
use afterimage_trust::Role;
use afterimage_trust::identity::Identity;
use uuid::Uuid;

const VAULT: Uuid = Uuid::from_bytes([99; 16]);
const MACHINE: Uuid = Uuid::from_bytes([1; 16]);
const VOLUME: [u8; 16] = [11; 16];

struct Site {
    catalogue: Catalogue,
    dir: tempfile::TempDir,
}

fn text(id: [u8; 16]) -> String {
    Uuid::from_bytes(id).to_string()
}

impl Site {
    /// A group of one machine with one volume, and five points, at seqs 10 to 50.
    fn new() -> Site {
        let dir = tempfile::tempdir().unwrap();
        let catalogue = Catalogue::open(&dir.path().join("c.sqlite")).unwrap();
        let new = NewGroup {
            name: "g".into(),
            every_seconds: 1,
            hold_ms: 100,
            partial: false,
            app_every_minutes: 0,
            policy: None,
        };
        catalogue
            .change("test", |change| {
                change.enrol(&Identity { role: Role::Appliance, id: VAULT, vault: VAULT }, "vault", "host")?;
                change.enrol(&Identity { role: Role::Agent, id: MACHINE, vault: VAULT }, "m", "host")?;
                change.create_group(&new)?;
                change.add_to_group("g", &["m".into()])
            })
            .unwrap();
        let site = Site { catalogue, dir };
        (1..=5).for_each(|n| site.make(n));
        site
    }

    fn group(&self) -> i64 {
        self.catalogue.groups().unwrap()[0].id
    }

    fn make(&self, number: u64) {
        let of = Named { epoch: 3, number };
        let marker = Marker { volume: VOLUME, ring: [7; 16], seq: number * 10, time: number, name: "d".into() };
        let ended = Ended {
            group: self.group(),
            name: format!("p{number}"),
            auto: true,
            of,
            time: i64::try_from(number).unwrap(),
            held_us: 1,
            members: vec![(MACHINE.to_string(), "m".into(), Ok(vec![marker]))],
            partial: false,
            app: None,
        };
        self.catalogue.keep_point(&ended, true).unwrap();
        self.catalogue.settle(&[(MACHINE, Settled { of, volume: VOLUME, durable: true })]).unwrap();
    }

    fn ids(&self, names: &[&str]) -> BTreeSet<i64> {
        let all = self.catalogue.live_points(self.group()).unwrap();
        all.iter().filter(|p| names.contains(&&*p.name)).map(|p| p.id).collect()
    }

    fn due(&self) -> Vec<(u64, bool)> {
        self.catalogue.pins_due(&VAULT.to_string(), 100).unwrap().iter().map(|p| (p.seq, p.drop)).collect()
    }

    fn done(&self, refused: &[u64]) {
        let pins = self.catalogue.pins_due(&VAULT.to_string(), 100).unwrap();
        self.catalogue.pins_done(&pins, &refused.iter().map(|seq| (text(VOLUME), *seq)).collect()).unwrap();
    }

    fn state(&self, name: &str) -> PointState {
        self.catalogue.group_points("g", Some(name), 1).unwrap().0.remove(0).state
    }
}

#[test]
fn what_an_appliance_is_to_be_told_stays_until_it_has_it_also_over_a_kill() {
    let mut site = Site::new();
    let want = |site: &Site, names: &[&str]| site.catalogue.want_kept(site.group(), &site.ids(names)).unwrap();
    want(&site, &["p1", "p3"]);
    assert_eq!(site.due(), [(10, false), (30, false)]);
    site.catalogue = Catalogue::open(&site.dir.path().join("c.sqlite")).unwrap();
    assert_eq!(site.due(), [(10, false), (30, false)]);
    let names: Vec<String> =
        site.catalogue.pins_due(&VAULT.to_string(), 100).unwrap().into_iter().map(|p| p.name).collect();
    assert_eq!(names, ["g/p1", "g/p3"]);
    site.done(&[]);
    assert!(site.due().is_empty());
    // Another choice: what is not in it goes, and what was told before it was heard is put right.
    want(&site, &["p3", "p4"]);
    let told = site.catalogue.pins_due(&VAULT.to_string(), 100).unwrap();
    want(&site, &["p1", "p3", "p4"]);
    site.catalogue.pins_done(&told, &BTreeSet::new()).unwrap();
    assert_eq!(site.due(), [(10, false)], "it was let go meanwhile, and is to be kept again");
    site.done(&[]);
    want(&site, &[]);
    assert_eq!(site.due(), [(10, true), (30, true), (40, true)]);
    site.done(&[]);
    assert!(site.due().is_empty());
}

#[test]
fn what_is_gone_is_not_shown_as_a_point_and_nothing_is_kept_for_it() {
    let site = Site::new();
    site.catalogue.want_kept(site.group(), &site.ids(&["p1", "p2"])).unwrap();
    site.done(&[20]);
    assert_eq!(site.catalogue.lost_points().unwrap(), Vec::from_iter(site.ids(&["p2"])));
    site.catalogue.expire(&site.ids(&["p2"])).unwrap();
    let point = site.catalogue.group_points("g", Some("p2"), 1).unwrap().0.remove(0);
    assert!(point.state == PointState::Expired && point.volumes.is_empty());
    assert!(site.due().is_empty() && site.catalogue.lost_points().unwrap().is_empty());
    // The window has left 10 to 40 behind.
    let before: BTreeSet<i64> = site.catalogue.points_before(&text(VOLUME), 45).unwrap().into_iter().collect();
    assert_eq!(before, site.ids(&["p1", "p3", "p4"]));
    site.catalogue.expire(&before).unwrap();
    assert_eq!(site.due(), [(10, true)]);
    assert_eq!((site.state("p5"), site.state("p3")), (PointState::Complete, PointState::Expired));
    site.catalogue.forget_points(i64::MAX).unwrap();
    assert_eq!(site.catalogue.group_points("g", None, 10).unwrap().0.len(), 1, "what can be restored is not forgotten");
}

#[test]
fn people_pin_remove_and_hold_and_a_group_that_goes_lets_go() {
    let site = Site::new();
    let change = |make: &dyn Fn(&Change<'_>) -> Result<(), CatalogueError>| site.catalogue.change("me", make);
    change(&|c| c.pin_group_point("g", "p2", true)).unwrap();
    assert!(site.catalogue.live_points(site.group()).unwrap()[1].pinned);
    assert!(change(&|c| c.pin_group_point("g", "none", true)).is_err());
    site.catalogue.want_kept(site.group(), &site.ids(&["p2", "p3"])).unwrap();
    site.done(&[]);
    change(&|c| c.hold_group("g", true)).unwrap();
    assert!(site.catalogue.groups().unwrap()[0].on_hold);
    assert!(change(&|c| c.remove_group_point("g", "p2")).unwrap_err().to_string().contains("hold"));
    change(&|c| c.hold_group("g", false)).unwrap();
    let group = &site.catalogue.groups().unwrap()[0];
    assert!(!group.on_hold && group.released, "the appliances are to be told");
    site.catalogue.hold_is_over(group.id).unwrap();
    assert!(!site.catalogue.groups().unwrap()[0].released);
    change(&|c| c.remove_group_point("g", "p2")).unwrap();
    assert_eq!(site.due(), [(20, true)]);
    change(&|c| c.remove_group("g")).unwrap();
    assert_eq!(site.due(), [(20, true), (30, true)], "who goes is not forgotten before the appliance has let go");
}

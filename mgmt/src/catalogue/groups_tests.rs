use super::*;
use crate::catalogue::points::Ended;
use crate::groups::{Point, PointState};
use afterimage_format::coord::group::{Marker, Named, Settled};
use afterimage_trust::identity::Identity;
use std::path::Path;
use uuid::Uuid;

struct Site {
    catalogue: Catalogue,
    dir: tempfile::TempDir,
}

const RING: [u8; 16] = [7; 16];

fn machine_id(n: u8) -> Uuid {
    Uuid::from_bytes([n; 16])
}

fn open(dir: &Path) -> Catalogue {
    Catalogue::open(&dir.join("c.sqlite")).unwrap()
}

fn new(name: &str) -> NewGroup {
    NewGroup { name: name.into(), every_seconds: 1, hold_ms: 100, partial: false, app_every_minutes: 0, policy: None }
}

impl Site {
    /// Machines m1 to m3; the first two are in group g.
    fn new() -> Site {
        let dir = tempfile::tempdir().unwrap();
        let catalogue = open(dir.path());
        catalogue
            .change("test", |change| {
                let vault = Uuid::from_bytes([99; 16]);
                change.enrol(&Identity { role: Role::Appliance, id: vault, vault }, "vault", "host")?;
                for n in 1..=3 {
                    let identity = Identity { role: Role::Agent, id: machine_id(n), vault };
                    change.enrol(&identity, &format!("m{n}"), "host")?;
                }
                change.create_group(&new("g"))?;
                change.add_to_group("g", &["m1".into(), "m2".into()])
            })
            .unwrap();
        Site { catalogue, dir }
    }

    fn ended(&self, number: u64, why: Option<&str>, partial: bool) -> Ended {
        let group = self.catalogue.groups().unwrap()[0].id;
        let marker =
            |n: u8| Marker { volume: [n + 10; 16], ring: RING, seq: 40 + number, time: 5, name: format!("d{n}") };
        let second = why.map_or_else(|| Ok(vec![marker(2)]), |why| Err(why.to_owned()));
        Ended {
            group,
            name: format!("p{number}"),
            auto: true,
            of: Named { epoch: 3, number },
            time: signed(number) * 1_000_000_000,
            held_us: 7,
            members: vec![
                (machine_id(1).to_string(), "m1".into(), Ok(vec![marker(1)])),
                (machine_id(2).to_string(), "m2".into(), second),
            ],
            partial,
            app: None,
        }
    }

    fn settle(&self, number: u64, machine: u8, durable: bool) -> Vec<PointState> {
        self.settle_as(machine, number, machine, durable)
    }

    fn settle_as(&self, who: u8, number: u64, machine: u8, durable: bool) -> Vec<PointState> {
        let of = Named { epoch: 3, number };
        let news = [(machine_id(who), Settled { of, volume: [machine + 10; 16], durable })];
        self.catalogue.settle(&news).unwrap().into_iter().map(|(_, _, state)| state).collect()
    }

    fn point(&self, name: &str) -> Point {
        self.catalogue.group_points("g", Some(name), 1).unwrap().0.remove(0)
    }
}

#[test]
fn a_point_is_shown_when_the_last_marker_is_durable_and_never_before() {
    let mut site = Site::new();
    site.catalogue.keep_point(&site.ended(1, None, false), true).unwrap();
    assert!(site.point("p1").state == PointState::Settling && site.point("p1").volumes.is_empty());
    assert!(site.settle(1, 1, true).is_empty());
    // A kill of mgmt here changes nothing, and it knows whom to ask.
    site.catalogue = open(site.dir.path());
    assert!(site.catalogue.pending(&machine_id(1)).unwrap().is_empty());
    let pending = site.catalogue.pending(&machine_id(2)).unwrap();
    assert_eq!((pending.len(), pending[0].of.number, pending[0].markers[0].ring), (1, 1, RING));
    assert!(site.point("p1").volumes.is_empty());
    assert!(site.settle_as(1, 1, 2, true).is_empty(), "a machine speaks for its own volumes only");
    assert_eq!(site.settle(1, 2, true), [PointState::Complete]);
    let point = site.point("p1");
    assert!(point.missing.is_empty() && point.volumes.len() == 2);
    assert_eq!((point.volumes[0].seq, point.volumes[0].appliance.as_deref()), (41, Some("vault")));
    assert!(site.settle(1, 2, false).is_empty(), "what is known stays");
}

#[test]
fn a_lost_marker_makes_a_point_fail_or_partial_by_policy_and_says_who() {
    let site = Site::new();
    site.catalogue.keep_point(&site.ended(1, None, false), true).unwrap();
    assert_eq!(site.settle(1, 2, false), [PointState::Failed]);
    let point = site.point("p1");
    assert!(point.volumes.is_empty() && point.missing[0].machine == "m2" && point.missing[0].why.contains("anew"));
    site.catalogue.keep_point(&site.ended(2, None, true), true).unwrap();
    assert!(site.settle(2, 2, false).is_empty());
    assert_eq!(site.settle(2, 1, true), [PointState::Partial]);
    let point = site.point("p2");
    assert!(point.volumes.len() == 1 && point.missing[0].machine == "m2");
    site.catalogue.keep_point(&site.ended(3, Some("away"), true), true).unwrap();
    assert_eq!(site.settle(3, 1, true), [PointState::Partial]);
}

#[test]
fn failures_of_one_kind_are_one_row_and_show_when_they_began_and_ended() {
    let site = Site::new();
    for n in 1..=5 {
        site.catalogue.keep_point(&site.ended(n, Some("away"), false), false).unwrap();
    }
    site.catalogue.keep_point(&site.ended(6, Some("dirty"), false), false).unwrap();
    let (points, _) = site.catalogue.group_points("g", None, 10).unwrap();
    assert_eq!(points.len(), 2);
    assert_eq!((points[0].tries, points[0].time.0, points[0].until.0), (5, 1_000_000_000, 5_000_000_000));
    assert!(points[0].missing[0].why == "away" && points[1].missing[0].why == "dirty");
    let group = site.catalogue.groups().unwrap()[0].id;
    assert_eq!(site.catalogue.last_try(group).unwrap(), Some(6_000_000_000));
    site.catalogue.note_gap(group, 6_000_000_000, 9_000_000_000, "mgmt").unwrap();
    assert_eq!(site.catalogue.last_try(group).unwrap(), Some(9_000_000_000));
    assert_eq!(site.catalogue.group_points("g", None, 10).unwrap().1.len(), 1);
    site.catalogue.forget_points(i64::MAX).unwrap();
    assert!(site.catalogue.group_points("g", None, 10).unwrap().0.is_empty());
}

#[test]
fn what_people_change_is_checked_and_in_the_audit_log() {
    let site = Site::new();
    let change = |make: &dyn Fn(&Change<'_>) -> Result<(), CatalogueError>| site.catalogue.change("me", make);
    assert!(change(&|c| c.create_group(&new("g"))).is_err(), "there is one");
    assert!(change(&|c| c.create_group(&new("no name"))).is_err());
    assert!(change(&|c| c.create_group(&NewGroup { hold_ms: 0, ..new("h") })).is_err());
    change(&|c| c.create_group(&new("h"))).unwrap();
    let taken = change(&|c| c.add_to_group("h", &["m3".into(), "m1".into()])).unwrap_err();
    assert!(taken.to_string().contains("in group 'g'"), "{taken}");
    assert!(site.catalogue.groups().unwrap()[1].members.is_empty(), "all or nothing");
    let half = change(&|c| c.remove_from_group("g", &["m1".into(), "m3".into()])).unwrap_err();
    assert!(half.to_string().contains("'m3' is not in group 'g'"), "{half}");
    assert_eq!(site.catalogue.groups().unwrap()[0].members.len(), 2, "all or nothing");
    change(&|c| c.remove_from_group("g", &["m1".into()])).unwrap();
    change(&|c| c.add_to_group("h", &["m1".into()])).unwrap();
    assert!(change(&|c| c.remove_from_group("g", &["m1".into()])).is_err());
    change(&|c| c.set_group(&NewGroup { partial: true, ..new("g") })).unwrap();
    assert!(site.catalogue.groups().unwrap()[0].partial);
    change(&|c| c.remove_group("g")).unwrap();
    assert_eq!(site.catalogue.groups().unwrap().len(), 1);
    let audit = site.catalogue.audit(100).unwrap();
    for action in ["create-group", "add-to-group", "remove-from-group", "set-group", "remove-group"] {
        assert!(audit.iter().any(|row| row.action == action), "{action}");
    }
}

#[test]
fn a_guest_is_in_groups_with_its_agent_and_whoever_names_it_hears_so() {
    let site = Site::new();
    let agent = machine_id(3).to_string();
    let id = site.catalogue.change("me", |c| c.create_guest("db", &agent, &[])).unwrap().id;
    let add = |what: &str| site.catalogue.change("me", |c| c.add_to_group("g", &[what.to_owned()]));
    for what in ["db", &id] {
        let no = add(what).unwrap_err();
        assert!(matches!(no, CatalogueError::Refused(_)), "{no:?}");
        assert!(no.to_string().contains("'db' is some of the disks of agent 'm3'"), "{no}");
    }
    let unknown = add("nobody").unwrap_err();
    assert!(matches!(unknown, CatalogueError::NotFound(_)) && unknown.to_string().contains("join first"), "{unknown}");
    add("m3").unwrap();
}

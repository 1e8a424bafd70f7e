//! The point of a group, at which all of its machines begin: `--group GROUP --at POINT`. mgmt knows it; this host has the history.

use crate::failover::args::GroupArgs;
use crate::failover::moments::LATEST_APP;
use crate::problem::Problem;
use crate::remote::Way;
use crate::target;
use afterimage_mgmt::api::client::{ApiError, escape};
use afterimage_mgmt::client::ControlClient;
use afterimage_mgmt::groups::{Point, PointState, Points, Restorable};
use afterimage_mgmt::plan::file::Plan;
use afterimage_mgmt::target::machine::{Bus, Disk, Machine};
use afterimage_mgmt::units::Time;
use afterimage_mgmt::when::When;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;

/// How many points are looked at to find the newest at a time: as many as mgmt tells at once.
const MOST: u32 = 1000;

/// A point of a group, and where it lies in the volumes that are here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GroupPoint {
    /// The group.
    pub group: String,
    /// The point.
    pub point: String,
    /// When its barrier began.
    pub time: Time,
    /// Its volumes that are here, by the names that they have here.
    pub volumes: BTreeMap<String, u64>,
    /// Its machines, and their volumes by the same names.
    pub machines: BTreeMap<String, Vec<String>>,
    /// Volumes of it that are not here, and where they are.
    pub elsewhere: Vec<String>,
    /// Who has no part in it, and why.
    pub missing: Vec<String>,
}

/// The point of the group that was named, if one was.
///
/// # Errors
/// If there is no such point, or mgmt does not tell.
pub fn find(
    args: &GroupArgs,
    at: &When,
    created: Time,
    control: &mut ControlClient,
) -> Result<Option<GroupPoint>, Problem> {
    let Some(group) = &args.group else { return Ok(None) };
    let way = Way::of(&args.mgmt.way())?;
    let of = format!("/v1/groups/{}/points", escape(group));
    let path = match at {
        When::Point(name) if name != LATEST_APP => format!("{of}/{}", escape(name)),
        _ => format!("{of}?limit={MOST}"),
    };
    let points: Points = way.get(&path).map_err(|e| match e {
        ApiError::Refused(_) => e.into(),
        other => Problem::failed(format!(
            "{other}; without mgmt, name a time with --at, or give each volume its place with --place VOLUME=@SEQ"
        )),
    })?;
    let exit = |text| if matches!(at, When::Seq(_)) { Problem::usage(text) } else { Problem::failed(text) };
    let point = choose(&points, at, created).map_err(exit)?;
    let here = control.status()?.volumes;
    let here: BTreeMap<String, String> = here.into_iter().map(|v| (plain(&v.id), v.name)).collect();
    Ok(Some(GroupPoint::of(group, point, &here)))
}

/// An id without its dashes.
fn plain(id: &str) -> String {
    id.chars().filter(|c| *c != '-').map(|c| c.to_ascii_lowercase()).collect()
}

/// The point that is meant. Of one that was not named itself, nobody may be missing.
fn choose<'a>(points: &'a Points, at: &When, created: Time) -> Result<&'a Point, String> {
    let group = &points.group;
    let complete = || points.points.iter().rev().filter(|p| p.state == PointState::Complete);
    let none = |what: &str| format!("group {group} has no {what}: `afterimage group points {group}` shows what it has");
    let until = |time: Time| complete().find(|p| p.time <= time).ok_or_else(|| none("complete point that is so old"));
    match at {
        When::Seq(_) => Err(format!(
            "a write's number means something else in each volume of group {group}: name a point of the group, a time, or latest"
        )),
        When::Latest => complete().next().ok_or_else(|| none("complete point")),
        When::Time(time) => until(*time),
        When::Ago(by) => until(created.before(*by)),
        When::Point(name) if name == LATEST_APP => {
            let app = |p: &&Point| p.app.as_ref().is_some_and(|a| a.consistency == "app");
            complete().find(app).ok_or_else(|| none("app-consistent point"))
        }
        When::Point(name) => {
            let of_name = || points.points.iter().rev().filter(|p| p.name == *name);
            let can_be_had = |p: &&Point| matches!(p.state, PointState::Complete | PointState::Partial);
            of_name().find(can_be_had).ok_or_else(|| match of_name().next().map(|p| p.state) {
                Some(PointState::Settling) => format!("point {name} of group {group} is not durable everywhere yet"),
                Some(PointState::Expired) => format!("point {name} of group {group} is not kept any more"),
                Some(_) => format!("point {name} of group {group} has failed: it is no point"),
                None => none(&format!("point {name}")),
            })
        }
    }
}

impl GroupPoint {
    /// A point, with the names of the volumes that are `here`, by their ids.
    fn of(group: &str, point: &Point, here: &BTreeMap<String, String>) -> GroupPoint {
        let mut found = GroupPoint {
            group: group.to_owned(),
            point: point.name.clone(),
            time: point.time,
            volumes: BTreeMap::new(),
            machines: BTreeMap::new(),
            elsewhere: Vec::new(),
            missing: point.missing.iter().map(|m| format!("{}: {}", m.machine, m.why)).collect(),
        };
        for Restorable { machine, volume, id, seq, appliance, .. } in &point.volumes {
            match here.get(&plain(id)) {
                Some(name) => {
                    found.volumes.insert(name.clone(), *seq);
                    found.machines.entry(machine.clone()).or_default().push(name.clone());
                }
                None => {
                    let appliance = appliance.as_deref().unwrap_or("one that mgmt does not know");
                    found.elsewhere.push(format!("{volume} of {machine}, at appliance {appliance}"));
                }
            }
        }
        found
    }

    /// What is said of it before anything is done.
    #[must_use]
    pub fn text(&self, planned: bool) -> String {
        if planned {
            return format!("group {}, with the machines of its point {}\n", self.group, self.point);
        }
        format!("group {}, as it was at its point {}, {}\n", self.group, self.point, self.time.short())
    }

    /// Where a volume begins.
    ///
    /// # Errors
    /// If it has no part in the point.
    pub fn place(&self, volume: &str) -> Result<When, Problem> {
        let seq = self.volumes.get(volume).copied();
        seq.map(When::Seq).ok_or_else(|| {
            let all: Vec<&str> = self.volumes.keys().map(String::as_str).collect();
            let missing =
                if self.missing.is_empty() { String::new() } else { format!(" ({})", self.missing.join("; ")) };
            Problem::failed(format!(
                "volume {volume} has no part in point {} of group {}, which here is of {}{missing}",
                self.point,
                self.group,
                all.join(", ")
            ))
        })
    }

    /// Its machines, all of them.
    ///
    /// # Errors
    /// If one is missing, or a volume is not here: some are not all.
    pub fn machines(&self, data: &Path) -> Result<Vec<Machine>, Problem> {
        let (point, group) = (&self.point, &self.group);
        let named = "name the machines that are to run here";
        if !self.elsewhere.is_empty() {
            return Err(Problem::failed(format!(
                "point {point} of group {group} is not here as a whole ({}): {named}",
                self.elsewhere.join("; ")
            )));
        }
        if !self.missing.is_empty() {
            return Err(Problem::failed(format!(
                "point {point} of group {group} is not of all its machines ({}): {named}",
                self.missing.join("; ")
            )));
        }
        self.machines.keys().map(|name| machine(data, Some(self), name)).collect()
    }
}

/// The machines that are named, or all of the group.
///
/// # Errors
/// If a description cannot be used, or those of the group are not all here.
pub fn machines(data: &Path, group: Option<&GroupPoint>, what: &[String]) -> Result<Vec<Machine>, Problem> {
    match group {
        Some(group) if what.is_empty() => group.machines(data),
        _ => what.iter().map(|what| machine(data, group, what)).collect(),
    }
}

/// The machines of a recovery plan, in its order.
///
/// # Errors
/// If a description cannot be used.
pub fn machines_of(data: &Path, group: Option<&GroupPoint>, plan: &Plan) -> Result<Vec<Machine>, Problem> {
    plan.machines().map(|what| machine(data, group, what)).collect()
}

/// The machine that `what` names: as everywhere, or, for a machine of the group that nobody has described, a plain one with its volumes.
///
/// # Errors
/// If its description cannot be used.
pub fn machine(data: &Path, group: Option<&GroupPoint>, what: &str) -> Result<Machine, Problem> {
    match group.and_then(|g| g.machines.get(what)) {
        Some(volumes) if !target::is_described(data, what) => {
            let disks = volumes.iter().map(|v| Disk { volume: v.clone(), bus: Bus::default() }).collect();
            let machine = Machine { disks, ..Machine::of_volume(what) };
            machine.check().map_err(|e| Problem::failed(e.to_string()))?;
            Ok(machine)
        }
        _ => target::find(data, what),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use afterimage_mgmt::groups::{GroupApp, Missing};

    fn point(name: &str, state: PointState, time: u64) -> Point {
        Point {
            id: 0,
            name: name.to_owned(),
            state,
            auto: true,
            time: Time(time),
            until: Time(time),
            tries: 1,
            held_us: 0,
            pinned: false,
            app: None,
            missing: Vec::new(),
            volumes: Vec::new(),
        }
    }

    fn points() -> Points {
        let app = GroupApp { consistency: "app".to_owned(), reason: None, machines: Vec::new() };
        let all = vec![
            Point { app: Some(app), ..point("quiet", PointState::Complete, 10) },
            point("twice", PointState::Failed, 20),
            point("some", PointState::Partial, 30),
            point("all", PointState::Complete, 40),
            point("gone", PointState::Expired, 45),
            point("new", PointState::Settling, 50),
        ];
        Points { group: "shop".to_owned(), points: all, gaps: Vec::new() }
    }

    #[test]
    fn a_point_is_chosen_of_which_nobody_is_missing_unless_it_was_named() {
        let all = points();
        let at = |text: &str| choose(&all, &text.parse().unwrap(), Time(60)).map(|p| p.name.clone());
        let time = |t: u64| choose(&all, &When::Time(Time(t)), Time(60)).map(|p| p.name.clone());
        assert_eq!(at("latest").unwrap(), "all");
        assert_eq!(at("latest-app").unwrap(), "quiet");
        assert_eq!(at("some").unwrap(), "some");
        assert_eq!(
            (time(60).unwrap(), time(39).unwrap(), time(10).unwrap()),
            ("all".into(), "quiet".into(), "quiet".into())
        );
        for (text, says) in [
            ("twice", "has failed"),
            ("gone", "not kept"),
            ("new", "not durable"),
            ("never", "no point never"),
            ("@7", "something else in each volume"),
        ] {
            let error = at(text).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
        assert!(time(9).unwrap_err().contains("so old"));
    }

    fn part(machine: &str, volume: &str, id: &str, seq: u64) -> Restorable {
        Restorable {
            machine: machine.to_owned(),
            appliance: Some("vault".to_owned()),
            volume: volume.to_owned(),
            id: id.to_owned(),
            seq,
            time: Time(1),
        }
    }

    #[test]
    fn volumes_are_known_by_their_ids_and_a_part_is_not_all() {
        let dir = tempfile::tempdir().unwrap();
        let volumes =
            vec![part("web", "root", "AB-1", 7), part("web", "data", "ab-2", 8), part("db", "root", "ab-3", 9)];
        let mut here = BTreeMap::from([("ab1", "root"), ("ab2", "data"), ("ab3", "root-2")].map(own));
        let whole = Point { volumes, ..point("p", PointState::Complete, 1) };
        let found = GroupPoint::of("shop", &whole, &here);
        assert_eq!(found.place("root-2").unwrap(), When::Seq(9));
        assert!(found.place("other").unwrap_err().to_string().contains("no part in point p"));
        let machines = found.machines(dir.path()).unwrap();
        let disks = |m: &Machine| m.disks.iter().map(|d| d.volume.clone()).collect::<Vec<_>>();
        assert_eq!(machines.iter().map(|m| m.name.as_str()).collect::<Vec<_>>(), ["db", "web"]);
        assert_eq!(
            (disks(&machines[0]), disks(&machines[1])),
            (vec!["root-2".into()], vec!["root".into(), "data".into()])
        );

        here.remove("ab3");
        let some = GroupPoint::of("shop", &whole, &here);
        assert!(some.machines(dir.path()).unwrap_err().to_string().contains("root of db, at appliance vault"));
        let missing = vec![Missing { machine: "mail".to_owned(), why: "away".to_owned() }];
        let partial = Point { missing, volumes: whole.volumes[..1].to_vec(), ..whole.clone() };
        let error = GroupPoint::of("shop", &partial, &here).machines(dir.path()).unwrap_err().to_string();
        assert!(error.contains("mail: away"), "{error}");
        assert_eq!(machine(dir.path(), Some(&some), "web").unwrap().disks.len(), 2);
    }

    fn own((id, name): (&str, &str)) -> (String, String) {
        (id.to_owned(), name.to_owned())
    }
}

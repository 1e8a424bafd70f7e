//! `afterimage group`: machines that share recovery points.

use crate::problem::Problem;
use crate::remote::Way;
use crate::remote::cli::WayArgs;
use crate::show::{put, put_json, table};
use afterimage_mgmt::api::client::escape;
use afterimage_mgmt::api::groups::{
    GroupChange, GroupMachines, GroupMachinesChange, GroupRequest, NewPoint, PointChange,
};
use afterimage_mgmt::api::types::List;
use afterimage_mgmt::app::AppStep;
use afterimage_mgmt::groups::{Group, GroupView, KeptPoints, Point, PointState, Points};
use afterimage_mgmt::units::{format_duration, parse_duration};
use clap::{Args, Subcommand};
use std::fmt::Write as _;
use std::time::Duration;

/// Arguments of `group`.
#[derive(Debug, Args)]
pub struct GroupArgs {
    /// How to reach mgmt.
    #[command(flatten)]
    pub way: WayArgs,
    /// What to do
    #[command(subcommand)]
    pub command: GroupCommand,
}

/// How a group makes points.
#[derive(Debug, Clone, Args)]
pub struct HowArgs {
    /// Time between points, in whole seconds; 0 makes them on demand only
    #[arg(long, value_parser = parse_duration, value_name = "TIME")]
    pub every: Option<Duration>,
    /// How long a barrier may hold up writes
    #[arg(long, value_parser = parse_duration, value_name = "TIME")]
    pub hold: Option<Duration>,
    /// Whether a point of some machines is wanted when not all can be had
    #[arg(long, value_name = "true|false")]
    pub allow_partial: Option<bool>,
    /// Time between app-consistent points, in whole minutes; 0 makes them on demand only
    #[arg(long, value_parser = parse_duration, value_name = "TIME")]
    pub app_every: Option<Duration>,
    /// The policy that says all that but --hold, and what is kept; none: the group says it itself
    #[arg(long, value_name = "NAME|none")]
    pub policy: Option<String>,
}

/// Subcommands of `group`.
#[derive(Debug, Subcommand)]
pub enum GroupCommand {
    /// Make a group
    Create {
        /// Its name
        name: String,
        /// Machines, by name
        machines: Vec<String>,
        /// How it makes points
        #[command(flatten)]
        how: HowArgs,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Change how a group makes points
    Set {
        /// Its name
        name: String,
        /// How it makes points
        #[command(flatten)]
        how: HowArgs,
        /// Nothing of the group and its machines goes (true), or the policy decides again (false)
        #[arg(long, value_name = "true|false")]
        on_hold: Option<bool>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Add machines to a group, from its next point on
    Add {
        /// The group
        name: String,
        /// Machines, by name
        #[arg(required = true)]
        machines: Vec<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Take machines out of a group, from its next point on; without machines, remove the group and its points
    Remove {
        /// The group
        name: String,
        /// Machines, by name
        machines: Vec<String>,
        /// Remove a whole group without being asked
        #[arg(long)]
        yes: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// List the groups
    Ls {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show a group: machines, newest point, how long writes were held
    Show {
        /// The group
        name: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Make a point of a group now
    Point {
        /// The group
        name: String,
        /// The point's name
        #[arg(long = "name", value_name = "NAME")]
        point: String,
        /// With applications quiet around it, on every machine as its agent's settings say
        #[arg(long)]
        app: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Keep a point, whatever the policy says
    Pin(PointArgs),
    /// Leave a point to the policy again
    Unpin(PointArgs),
    /// Remove a point: what was kept for it alone is let go
    Rm(PointArgs),
    /// Show which points stay, and why; with --policy, which would
    Kept {
        /// The group
        name: String,
        /// By this policy instead of the group's own
        #[arg(long, value_name = "NAME")]
        policy: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// List the points of a group and what was missed; with POINT, where it lies in each volume
    Points {
        /// The group
        name: String,
        /// This point only
        point: Option<String>,
        /// How many, the newest
        #[arg(long, default_value = "50", value_name = "N")]
        limit: u32,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// A point of a group.
#[derive(Debug, Args)]
pub struct PointArgs {
    /// The group
    pub name: String,
    /// The point
    pub point: String,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// What is said of how a group makes points.
fn how(args: &HowArgs) -> Result<GroupChange, Problem> {
    if args.every.is_some_and(|every| every.subsec_nanos() != 0) {
        return Err(Problem::usage("--every is in whole seconds: a point a second is the most"));
    }
    if args.app_every.is_some_and(|every| every.as_secs() % 60 != 0 || every.subsec_nanos() != 0) {
        return Err(Problem::usage("--app-every is in whole minutes"));
    }
    let minutes = |t: Duration| u32::try_from(t.as_secs() / 60).unwrap_or(u32::MAX);
    let hold_ms = args.hold.map(|h| u32::try_from(h.as_millis())).transpose();
    Ok(GroupChange {
        every_seconds: args.every.map(|e| e.as_secs()),
        hold_ms: hold_ms.map_err(|_| Problem::usage("--hold is 10s at most"))?,
        partial: args.allow_partial,
        app_every_minutes: args.app_every.map(minutes),
        policy: args.policy.clone().map(|p| if p == "none" { String::new() } else { p }),
        on_hold: None,
    })
}

fn of(name: &str) -> String {
    format!("/v1/groups/{}", escape(name))
}

fn at(p: &PointArgs) -> String {
    format!("{}/points/{}", of(&p.name), escape(&p.point))
}

fn pin(way: &Way, p: &PointArgs, pinned: bool) -> Result<(), Problem> {
    let points: Points = way.call("PATCH", &at(p), Some(&PointChange { pinned }))?;
    if p.json {
        return put_json(&points);
    }
    put(&format!("point {} of group {} {}\n", p.point, p.name, if pinned { "stays" } else { "is left to the policy" }))
}

/// Runs the command.
///
/// # Errors
/// If mgmt cannot be reached, or refuses.
pub fn run(args: GroupArgs) -> Result<(), Problem> {
    let way = Way::of(&args.way)?;
    let view = |view: GroupView, json: bool| if json { put_json(&view) } else { put(&shown(&view)) };
    match args.command {
        GroupCommand::Create { name, machines, how: h, json } => {
            let new = GroupRequest { name, machines, how: how(&h)? };
            view(way.call("POST", "/v1/groups", Some(&new))?, json)
        }
        GroupCommand::Set { name, how: h, on_hold, json } => {
            let change = GroupChange { on_hold, ..how(&h)? };
            view(way.call("PATCH", &of(&name), Some(&change))?, json)
        }
        GroupCommand::Add { name, machines, json } => {
            view(way.call("POST", &(of(&name) + "/machines"), Some(&GroupMachines { machines }))?, json)
        }
        GroupCommand::Remove { name, machines, yes, json } if machines.is_empty() => {
            if !yes {
                return Err(Problem::usage(format!(
                    "this removes group '{name}' and the list of its points; machines and their history stay. Say --yes, or name \
                     the machines to be taken out"
                )));
            }
            way.delete(&of(&name))?;
            if json {
                put_json(&serde_json::json!({ "removed": name }))
            } else {
                put(&format!("group {name} is removed\n"))
            }
        }
        GroupCommand::Remove { name, machines, json, .. } => {
            let change = GroupMachinesChange { remove: machines, ..GroupMachinesChange::default() };
            view(way.call("PATCH", &(of(&name) + "/machines"), Some(&change))?, json)
        }
        GroupCommand::Ls { json } => {
            let all: List<GroupView> = way.get("/v1/groups")?;
            if json { put_json(&all.items) } else { put(&list(&all.items)) }
        }
        GroupCommand::Show { name, json } => view(way.get(&of(&name))?, json),
        GroupCommand::Pin(p) => pin(&way, &p, true),
        GroupCommand::Unpin(p) => pin(&way, &p, false),
        GroupCommand::Rm(p) => {
            way.delete(&at(&p))?;
            if p.json {
                put_json(&serde_json::json!({ "removed": p.point }))
            } else {
                put(&format!("point {} of group {} is removed\n", p.point, p.name))
            }
        }
        GroupCommand::Kept { name, policy, json } => {
            let policy = policy.map_or_else(String::new, |p| format!("?policy={}", escape(&p)));
            let points: KeptPoints = way.get(&format!("{}/kept{policy}", of(&name)))?;
            if json { put_json(&points) } else { put(&kept(&points)) }
        }
        GroupCommand::Point { name, point, app, json } => {
            let made: Point = way.call("POST", &(of(&name) + "/points"), Some(&NewPoint { name: point, app }))?;
            if json { put_json(&made) } else { put(&places(&made)) }
        }
        GroupCommand::Points { name, point, limit, json } => {
            let path = match &point {
                Some(point) => format!("{}/points/{}", of(&name), escape(point)),
                None => format!("{}/points?limit={limit}", of(&name)),
            };
            let points: Points = way.get(&path)?;
            match (json, points.points.first().filter(|_| point.is_some())) {
                (true, _) => put_json(&points),
                (false, Some(point)) => put(&places(point)),
                (false, None) => put(&history(&points)),
            }
        }
    }
}

const fn word(state: PointState) -> &'static str {
    match state {
        PointState::Settling => "settling",
        PointState::Complete => "complete",
        PointState::Partial => "partial",
        PointState::Failed => "failed",
        PointState::Expired => "expired",
    }
}

fn row(cells: &[&str]) -> Vec<String> {
    cells.iter().map(|&c| c.to_owned()).collect()
}

fn every(group: &Group) -> String {
    let mut text = match group.every_seconds {
        0 => "on demand".to_owned(),
        n => format!("every {}", format_duration(Duration::from_secs(n))),
    };
    if group.app_every_minutes > 0 {
        let every = format_duration(Duration::from_secs(u64::from(group.app_every_minutes) * 60));
        let _ = write!(text, ", app-consistent every {every}");
    }
    if let Some(policy) = &group.policy {
        let _ = write!(text, " (policy {policy})");
    }
    text
}

fn kept(points: &KeptPoints) -> String {
    let mut rows = vec![row(&["TIME", "NAME", "KEPT"])];
    for p in &points.points {
        let why = if p.kept.is_empty() { "goes".to_owned() } else { p.kept.join(" ") };
        rows.push(row(&[&p.time.short(), &p.name, &why]));
    }
    table(&rows)
}

fn list(all: &[GroupView]) -> String {
    let mut rows = vec![row(&["NAME", "POINTS", "PARTIAL", "NEWEST POINT", "LAST BARRIER", "MACHINES"])];
    for v in all {
        let newest = v.last.as_ref().map_or_else(|| "-".to_owned(), |p| p.time.short());
        let last = v.newest.as_ref().map_or("-", |p| word(p.state));
        let machines: Vec<&str> = v.group.members.iter().map(|m| &*m.name).collect();
        let partial = if v.group.partial { "yes" } else { "no" };
        rows.push(row(&[&v.group.name, &every(&v.group), partial, &newest, last, &machines.join(" ")]));
    }
    table(&rows)
}

fn shown(view: &GroupView) -> String {
    let group = &view.group;
    let partial =
        if group.partial { "points of some machines are kept, marked as partial" } else { "all machines or no point" };
    let mut out = format!(
        "group {}: points {}, writes held for {} ms at most, {partial}\n",
        group.name,
        every(group),
        group.hold_ms
    );
    if group.on_hold {
        out.push_str("on hold: nothing of it and its machines goes\n");
    }
    for m in &group.members {
        let _ = writeln!(out, "  {} {}", m.name, if m.connected { "" } else { "(not connected)" }.trim_end());
    }
    if let Some(last) = &view.last {
        let _ = writeln!(out, "newest point: {}, {}, {}", last.name, word(last.state), last.time.short());
    }
    if let Some(newest) = view.newest.as_ref().filter(|p| p.state == PointState::Failed) {
        let _ = writeln!(out, "the last barrier failed: {}", why(newest));
    }
    if view.counted > 0 {
        let (p50, p99, max) = (view.hold_p50_us, view.hold_p99_us, view.hold_max_us);
        let _ =
            writeln!(out, "writes were held: p50 {p50} us, p99 {p99} us, max {max} us over {} points", view.counted);
    }
    out
}

fn why(point: &Point) -> String {
    let each = point.missing.iter().map(|m| format!("{}: {}", m.machine, m.why));
    each.collect::<Vec<_>>().join("; ")
}

fn places(point: &Point) -> String {
    let mut out = format!("point {}: {}, {}\n", point.name, word(point.state), point.time.short());
    let mut rows = vec![row(&["MACHINE", "VOLUME", "AT", "APPLIANCE"])];
    for v in &point.volumes {
        let appliance = v.appliance.as_deref().unwrap_or("-");
        rows.push(row(&[&v.machine, &v.volume, &format!("@{}", v.seq), appliance]));
    }
    if !point.volumes.is_empty() {
        out.push_str(&table(&rows));
    }
    for m in &point.missing {
        let _ = writeln!(out, "missing: {}: {}", m.machine, m.why);
    }
    if let Some(app) = &point.app {
        let _ = writeln!(out, "{}-consistent{}", app.consistency, because(app.reason.as_deref()));
        for m in &app.machines {
            for v in &m.volumes {
                let steps: Vec<String> = v.made.steps.iter().map(step).collect();
                let _ = writeln!(out, "  {} {}: {} ({})", m.machine, v.volume, v.made.consistency, steps.join(", "));
            }
            if let Some(error) = &m.error {
                let _ = writeln!(out, "  {}: {error}", m.machine);
            }
        }
    }
    out
}

fn because(reason: Option<&str>) -> String {
    reason.map_or_else(String::new, |why| format!(": {why}"))
}

fn step(s: &AppStep) -> String {
    format!("{} {} ms{}", s.step, s.ms, if s.ok { "" } else { " FAILED" })
}

/// Points and gaps in the order of time.
fn history(points: &Points) -> String {
    let mut rows = Vec::new();
    for p in &points.points {
        let times = if p.tries > 1 { format!("{} times until {}; ", p.tries, p.until.short()) } else { String::new() };
        let held = format!("{} us", p.held_us);
        let app =
            p.app.as_ref().map_or("", |a| if a.consistency == "app" { "app-consistent " } else { "crash-consistent " });
        let said = format!("{}{app}{times}{}", if p.pinned { "pinned " } else { "" }, why(p));
        rows.push((p.time, row(&[&p.time.short(), word(p.state), &p.name, &held, &said])));
    }
    for g in &points.gaps {
        rows.push((
            g.since,
            row(&[&g.since.short(), "gap", "-", "-", &format!("until {}: {}", g.until.short(), g.why)]),
        ));
    }
    rows.sort_by_key(|(time, _)| *time);
    let head = row(&["TIME", "STATE", "NAME", "HELD", ""]);
    table(&[vec![head], rows.into_iter().map(|(_, r)| r).collect()].concat())
}

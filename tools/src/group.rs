//! `afterimage group`: machines that share recovery points.

use crate::cli::DataArgs;
use crate::problem::Problem;
use crate::show::{put, put_json, table};
use afterimage_mgmt::client::ControlClient;
use afterimage_mgmt::groups::{EVERY, Group, GroupAsk, GroupView, HOLD_MS, NewGroup, Point, PointState, Points};
use afterimage_mgmt::protocol::MgmtAsk;
use afterimage_mgmt::units::{format_duration, parse_duration};
use clap::{Args, Subcommand};
use serde::de::DeserializeOwned;
use std::fmt::Write as _;
use std::time::Duration;

/// Arguments of `group`.
#[derive(Debug, Args)]
pub struct GroupArgs {
    /// The data folder of mgmt.
    #[command(flatten)]
    pub data: DataArgs,
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
}

/// Subcommands of `group`. `--data` goes before them.
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

fn ask<T: DeserializeOwned>(control: &mut ControlClient, order: GroupAsk) -> Result<T, Problem> {
    Ok(control.mgmt(MgmtAsk::Group { order })?)
}

fn how(name: String, how: &HowArgs, before: Option<&Group>) -> Result<NewGroup, Problem> {
    let (every, hold, partial) = before.map_or((EVERY, HOLD_MS, false), |g| (g.every_seconds, g.hold_ms, g.partial));
    let every_seconds = match how.every {
        Some(every) if every.subsec_nanos() != 0 => {
            return Err(Problem::usage("--every is in whole seconds: a point a second is the most"));
        }
        Some(every) => every.as_secs(),
        None => every,
    };
    let hold = how.hold.map_or(u128::from(hold), |h| h.as_millis());
    let hold_ms = u32::try_from(hold).map_err(|_| Problem::usage("--hold is 10s at most"))?;
    Ok(NewGroup { name, every_seconds, hold_ms, partial: how.allow_partial.unwrap_or(partial) })
}

/// Runs the command.
///
/// # Errors
/// If mgmt cannot be reached, or refuses.
pub fn run(args: GroupArgs) -> Result<(), Problem> {
    let mut control = ControlClient::connect(&args.data.folder()?)?;
    let control = &mut control;
    let view = |view: GroupView, json: bool| if json { put_json(&view) } else { put(&shown(&view)) };
    match args.command {
        GroupCommand::Create { name, machines, how: h, json } => {
            let new = how(name, &h, None)?;
            view(ask(control, GroupAsk::Create { new, machines })?, json)
        }
        GroupCommand::Set { name, how: h, json } => {
            let before: GroupView = ask(control, GroupAsk::Show { name: name.clone() })?;
            let new = how(name, &h, Some(&before.group))?;
            view(ask(control, GroupAsk::Set { new })?, json)
        }
        GroupCommand::Add { name, machines, json } => view(ask(control, GroupAsk::Add { name, machines })?, json),
        GroupCommand::Remove { name, machines, yes, json } if machines.is_empty() => {
            if !yes {
                return Err(Problem::usage(format!(
                    "this removes group '{name}' and the list of its points; machines and their history stay. Say --yes, or name \
                     the machines to be taken out"
                )));
            }
            let _: serde_json::Value = ask(control, GroupAsk::Delete { name: name.clone() })?;
            if json {
                put_json(&serde_json::json!({ "removed": name }))
            } else {
                put(&format!("group {name} is removed\n"))
            }
        }
        GroupCommand::Remove { name, machines, json, .. } => {
            view(ask(control, GroupAsk::Remove { name, machines })?, json)
        }
        GroupCommand::Ls { json } => {
            let all: Vec<GroupView> = ask(control, GroupAsk::List)?;
            if json { put_json(&all) } else { put(&list(&all)) }
        }
        GroupCommand::Show { name, json } => view(ask(control, GroupAsk::Show { name })?, json),
        GroupCommand::Point { name, point, json } => {
            let made: Point = ask(control, GroupAsk::Point { name, point })?;
            if json { put_json(&made) } else { put(&places(&made)) }
        }
        GroupCommand::Points { name, point, limit, json } => {
            let one = point.is_some();
            let points: Points = ask(control, GroupAsk::Points { name, point, most: limit })?;
            match (json, points.points.first().filter(|_| one)) {
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
    }
}

fn row(cells: &[&str]) -> Vec<String> {
    cells.iter().map(|&c| c.to_owned()).collect()
}

fn every(group: &Group) -> String {
    match group.every_seconds {
        0 => "on demand".to_owned(),
        n => format!("every {}", format_duration(Duration::from_secs(n))),
    }
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
    out
}

/// Points and gaps in the order of time.
fn history(points: &Points) -> String {
    let mut rows = Vec::new();
    for p in &points.points {
        let times = if p.tries > 1 { format!("{} times until {}; ", p.tries, p.until.short()) } else { String::new() };
        let held = format!("{} us", p.held_us);
        rows.push((p.time, row(&[&p.time.short(), word(p.state), &p.name, &held, &format!("{times}{}", why(p))])));
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

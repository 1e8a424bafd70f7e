//! `afterimage point`: at the process that a data folder belongs to, or by mgmt's API, of any volume that mgmt knows.

use super::{Way, escape};
use crate::cli::{PointCommand, PointWay};
use crate::cmd::retention::{PointArgs, changed};
use crate::problem::Problem;
use crate::show::{self, now, put, put_json};
use afterimage_mgmt::api::groups::{NewPoint, PointChange};
use afterimage_mgmt::api::types::{PointView, VolumePoints};
use afterimage_mgmt::client::ControlClient;
use afterimage_mgmt::protocol::{PointInfo, Role};
use afterimage_mgmt::retention::PointAction;
use std::fmt::Write;
use std::path::PathBuf;

/// Who is asked.
enum To {
    /// The process of this folder, which is not mgmt.
    Here(PathBuf),
    /// mgmt.
    Mgmt(Way),
}

impl To {
    /// As the flags say; without an address or a token it is the data folder, whatever environment and file say of mgmt.
    fn of(args: &PointWay) -> Result<To, Problem> {
        if args.mgmt.is_some() || args.token_file.is_some() {
            return Way::of(&args.way()).map(To::Mgmt);
        }
        let folder = args.data.folder()?;
        let is_mgmt = ControlClient::connect(&folder)?.status()?.role == Role::Mgmt;
        Ok(if is_mgmt { To::Mgmt(Way::Here(folder)) } else { To::Here(folder) })
    }
}

fn known(point: PointView) -> PointInfo {
    let PointView { name, seq, time, auto, pinned, app } = point;
    PointInfo { name, seq, time, auto, pinned, app }
}

fn of(volume: &str) -> String {
    format!("/v1/volumes/{}/points", escape(volume))
}

fn list(points: VolumePoints) -> String {
    let mut out = String::new();
    let _ = match (points.first_time, points.last_time) {
        (Some(first), Some(last)) => {
            writeln!(out, "any write from {} to {} can be chosen", first.short(), last.short())
        }
        _ => writeln!(out, "nothing can be chosen yet: points begin when the initial sync ends"),
    };
    for gap in &points.gaps {
        let end = gap.to_time.map_or_else(|| "goes on".to_owned(), |time| format!("ends {}", time.short()));
        let _ = writeln!(out, "except the gap that begins at @{} ({}) and {end}", gap.from_seq, gap.from_time.short());
    }
    let points: Vec<PointInfo> = points.points.into_iter().map(known).collect();
    out + &show::points_table(&points, now())
}

fn change(args: &PointArgs, action: PointAction) -> Result<(), Problem> {
    let way = match To::of(&args.way)? {
        To::Here(folder) => {
            let point = ControlClient::connect(&folder)?.change_point(&args.volume, &args.name, action)?;
            return changed(args, &point.name, Some(&point), action);
        }
        To::Mgmt(way) => way,
    };
    let path = format!("{}/{}", of(&args.volume), escape(&args.name));
    let body = PointChange { pinned: action == PointAction::Pin };
    if action == PointAction::Remove {
        way.delete(&path)?;
        return changed(args, &args.name, None, action);
    }
    let point: PointView = way.call("PATCH", &path, Some(&body))?;
    changed(args, &args.name, Some(&known(point)), action)
}

/// `afterimage point`.
///
/// # Errors
/// If nobody answers, or what is asked cannot be done.
pub fn run(command: PointCommand) -> Result<(), Problem> {
    match command {
        PointCommand::Ls { way, volume, json } => match To::of(&way)? {
            To::Here(folder) => show::points(&folder, &volume, json),
            To::Mgmt(way) => {
                let points: VolumePoints = way.get(&of(&volume))?;
                if json { put_json(&points) } else { put(&list(points)) }
            }
        },
        PointCommand::Create { way, volume: Some(volume), name, app, json, .. } => match To::of(&way)? {
            To::Here(folder) => show::create_point(&folder, &volume, &name, app, json),
            To::Mgmt(way) => {
                let point: PointView = way.call("POST", &of(&volume), Some(&NewPoint { name, app }))?;
                show::made(&volume, &known(point), json)
            }
        },
        PointCommand::Create { way, volume: None, name, json, .. } => match To::of(&way)? {
            To::Here(folder) => show::create_points(&folder, &name, json),
            To::Mgmt(_) => Err(Problem::usage(
                "--all is for the disks of one agent: give its data folder. Several machines at one instant are a group: \
                 `afterimage group point`",
            )),
        },
        PointCommand::Pin(args) => change(&args, PointAction::Pin),
        PointCommand::Unpin(args) => change(&args, PointAction::Unpin),
        PointCommand::Rm(args) => change(&args, PointAction::Remove),
    }
}

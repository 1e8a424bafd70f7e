//! What is kept of a volume: the appliance's answers in the words of the control socket.

use super::past::failure;
use afterimage_appliance::{Appliance, PointChange, PointMeta, Policy};
use afterimage_mgmt::members::{Done, VolumeRetention, VolumeSeqs};
use afterimage_mgmt::protocol::{Code, Failure, PointInfo};
use afterimage_mgmt::retention::{FreedBytes, PointAction, PointFate, Retention, RetentionChange};
use afterimage_mgmt::units::Time;
use afterimage_mgmt::when::MAX_POINT_NAME;

const SECOND: u64 = 1_000_000_000;

/// `current`, changed.
fn changed(current: Policy, change: &RetentionChange) -> Result<Policy, Failure> {
    let mut policy = current;
    if let Some(seconds) = change.window_seconds {
        let bad = || Failure::new(Code::BadRequest, "a window of so many seconds cannot be kept");
        policy.window = seconds.checked_mul(SECOND).ok_or_else(bad)?;
    }
    for (field, value) in [
        (&mut policy.hourly, change.hourly),
        (&mut policy.daily, change.daily),
        (&mut policy.weekly, change.weekly),
        (&mut policy.monthly, change.monthly),
    ] {
        *field = value.unwrap_or(*field);
    }
    policy.hold = change.hold.unwrap_or(policy.hold);
    Ok(policy)
}

pub(super) fn retention(
    appliance: &Appliance,
    volume: &str,
    change: &RetentionChange,
    dry_run: bool,
) -> Result<Retention, Failure> {
    let of = |e| failure(Some(e));
    let (current, mut own) = appliance.retention(volume).map_err(of)?;
    let wanted = if change.reset { appliance.default_retention() } else { changed(current, change)? };
    let freed = if dry_run {
        let freed = appliance.freed(volume, &wanted).map_err(of)?;
        Some(FreedBytes { blocks: freed.blocks, bytes: freed.bytes, stored_bytes: freed.stored_bytes })
    } else {
        if !change.is_empty() {
            appliance.set_retention(volume, (!change.reset).then_some(wanted)).map_err(of)?;
            own = !change.reset;
        }
        None
    };
    let kept = appliance.kept(volume, Some(wanted)).map_err(of)?;
    let fate = |(p, why): (PointMeta, Vec<afterimage_appliance::Why>)| PointFate {
        name: p.name,
        seq: p.seq,
        time: Time(p.time),
        auto: p.auto,
        kept: why.into_iter().map(|w| w.as_str().to_owned()).collect(),
    };
    Ok(Retention {
        volume: volume.to_owned(),
        window_seconds: wanted.window / SECOND,
        hourly: wanted.hourly,
        daily: wanted.daily,
        weekly: wanted.weekly,
        monthly: wanted.monthly,
        hold: wanted.hold,
        own,
        policies: Vec::new(),
        held_by: None,
        dry_run,
        first_seq: kept.first_seq,
        first_time: Some(Time(kept.first_time)).filter(|t| t.0 > 0),
        points: kept.points.into_iter().map(fate).collect(),
        freed,
    })
}

/// The name of the volume with this id.
fn name_of(appliance: &Appliance, id: &str) -> Option<String> {
    appliance.volumes().into_iter().find(|v| super::uuid(v.id) == id).map(|v| v.name)
}

/// The id of the volume with this name.
pub(super) fn id_of(appliance: &Appliance, name: &str) -> Option<String> {
    appliance.volumes().into_iter().find(|v| v.name == name).map(|v| super::uuid(v.id))
}

/// What would be kept of a volume.
pub(super) fn preview(appliance: &Appliance, id: &str, change: &RetentionChange) -> Result<Retention, Failure> {
    let none = || Failure::new(Code::NotFound, format!("the vault has no volume {id} yet"));
    retention(appliance, &name_of(appliance, id).ok_or_else(none)?, change, true)
}

/// What policies of mgmt say is kept.
pub(super) fn retain(appliance: &Appliance, volumes: &[VolumeRetention]) -> Result<Done, Failure> {
    let mut done = Done::default();
    for v in volumes {
        let Some(name) = name_of(appliance, &v.id) else {
            done.unknown.push(v.id.clone());
            continue;
        };
        let (current, _) = appliance.retention(&name).map_err(|e| failure(Some(e)))?;
        let wanted = changed(current, &v.change)?;
        if wanted != current {
            appliance.set_retention(&name, Some(wanted)).map_err(|e| failure(Some(e)))?;
        }
    }
    Ok(done)
}

/// What points of groups need.
pub(super) fn keep(appliance: &Appliance, volumes: Vec<VolumeSeqs>) -> Result<Done, Failure> {
    let mut done = Done::default();
    for v in volumes {
        let id = uuid::Uuid::try_parse(&v.id).map(uuid::Uuid::into_bytes);
        let Some(id) = id.ok().filter(|_| name_of(appliance, &v.id).is_some()) else {
            done.unknown.push(v.id);
            continue;
        };
        let keep = v.keep.into_iter().map(|k| {
            // The note tells such a point from those that users pin.
            let note = serde_json::json!({ "group-point": k.name }).to_string();
            PointMeta { note, ..PointMeta::new(fitting(&k.name), k.seq, k.time, true) }
        });
        let gone = appliance.keep_seqs(&id, keep.collect(), &v.drop).map_err(|e| failure(Some(e)))?;
        done.gone.extend(gone.into_iter().map(|seq| (v.id.clone(), seq)));
    }
    Ok(done)
}

/// As much of a name as one of a point can have.
fn fitting(name: &str) -> String {
    let end = (0..=MAX_POINT_NAME.min(name.len())).rev().find(|n| name.is_char_boundary(*n)).unwrap_or(0);
    name[..end].to_owned()
}

/// A point as the control socket shows it.
pub(super) fn shown(p: PointMeta) -> PointInfo {
    let app = super::app::shown(&p.note);
    PointInfo { name: p.name, seq: p.seq, time: Time(p.time), auto: p.auto, pinned: p.pinned, app }
}

pub(super) fn change_point(
    appliance: &Appliance,
    volume: &str,
    point: &str,
    action: PointAction,
) -> Result<PointInfo, Failure> {
    let change = match action {
        PointAction::Pin => PointChange::Pin,
        PointAction::Unpin => PointChange::Unpin,
        PointAction::Remove => PointChange::Remove,
    };
    appliance.change_point(volume, point, change).map(shown).map_err(|e| failure(Some(e)))
}

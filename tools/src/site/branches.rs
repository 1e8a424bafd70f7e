//! Branches, as the control socket shows them.

use super::Local;
use super::figures::uuid;
use super::past::failure;
use afterimage_appliance::{Appliance, BranchInfo, ForkKind};
use afterimage_mgmt::protocol::{BranchAsk, BranchKind, BranchList, BranchStatus, Code, Failure, PointInfo};
use afterimage_mgmt::units::Time;
use afterimage_mgmt::when::check_point_name;
use serde::Serialize;

fn status(b: BranchInfo) -> BranchStatus {
    BranchStatus {
        name: b.name,
        id: uuid(b.id),
        kind: match b.fork.kind {
            ForkKind::Branch => BranchKind::Branch,
            ForkKind::Scratch => BranchKind::Export,
            ForkKind::Promoted => BranchKind::Promoted,
            ForkKind::Tail => BranchKind::Tail,
        },
        parent: b.parent,
        fork_seq: b.fork.seq,
        fork_time: Time(b.fork_time),
        created: Time(b.fork.created),
        size: b.size,
        seq: b.seq,
        time: Time(b.time),
        logical_bytes: b.logical_bytes,
        stored_bytes: b.stored_bytes,
        points: b.points as u64,
        open: b.open,
        reason: b.failure,
    }
}

/// Makes a point of a branch.
pub(super) fn point(appliance: &Appliance, name: &str, point: &str) -> Result<PointInfo, Failure> {
    check_point_name(point).map_err(|e| Failure::new(Code::BadRequest, e.to_string()))?;
    let (seq, time) = appliance.point_of_branch(name, point).map_err(|e| failure(Some(e)))?;
    Ok(PointInfo { name: point.to_owned(), seq, time: Time(time), auto: false, pinned: false, app: None })
}

fn json<T: Serialize>(value: T) -> Result<serde_json::Value, Failure> {
    serde_json::to_value(value).map_err(|e| Failure::new(Code::Failed, e.to_string()))
}

impl Local {
    pub(super) fn of_branches(&self, ask: &BranchAsk) -> Result<serde_json::Value, Failure> {
        let appliance = self.appliance()?;
        let found = |b: Result<BranchInfo, _>| b.map(status).map_err(|e| failure(Some(e)));
        match ask {
            BranchAsk::Create { volume, at, name } => {
                let position = self.position(&appliance, volume, at)?;
                json(found(appliance.create_branch(volume, position.seq, name))?)
            }
            BranchAsk::List => {
                let mut branches: Vec<BranchStatus> = appliance.branches().into_iter().map(status).collect();
                branches.sort_by(|a, b| a.name.cmp(&b.name));
                json(BranchList { branches })
            }
            BranchAsk::Show { name } => json(found(appliance.branch(name))?),
            BranchAsk::Point { name, point } => json(self::point(&appliance, name, point)?),
            BranchAsk::Promote { name } => json(found(appliance.promote_branch(name))?),
            BranchAsk::Drop { name } => {
                let was = found(appliance.branch(name))?;
                appliance.drop_branch(name).map_err(|e| failure(Some(e)))?;
                json(was)
            }
        }
    }
}

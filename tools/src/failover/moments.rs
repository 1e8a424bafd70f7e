//! Where the disks of machines begin: what `--at`, `--place` and `--group` mean for each. Several disks need one instant, which the newest
//! write of each is not.

use crate::failover::group::GroupPoint;
use crate::problem::Problem;
use afterimage_mgmt::client::ControlClient;
use afterimage_mgmt::failover::drive::Moments;
use afterimage_mgmt::protocol::PointInfo;
use afterimage_mgmt::target::machine::Machine;
use afterimage_mgmt::units::Time;
use afterimage_mgmt::when::When;

/// The newest app-consistent point, as `--at` names it.
pub const LATEST_APP: &str = "latest-app";

/// What somebody said about it.
#[derive(Debug)]
pub struct Wanted<'a> {
    /// `--at`.
    pub at: &'a When,
    /// `--place VOLUME=@SEQ`.
    pub place: &'a [String],
    /// The point of a group, if one was named: it says where each disk begins, unless that is planned.
    pub group: Option<&'a GroupPoint>,
    /// Each disk begins at the last write that its agent takes.
    pub planned: bool,
    /// When that was said.
    pub created: Time,
}

/// The newest point of a volume at which everything was frozen.
fn latest_app(control: &mut ControlClient, volume: &str) -> Result<PointInfo, Problem> {
    let points = control.points(volume)?.points;
    let consistent = |p: &PointInfo| p.app.as_ref().is_some_and(|a| a.consistency == "app");
    points.into_iter().rev().find(consistent).ok_or_else(|| {
        let text =
            format!("volume {volume} has no app-consistent point: `afterimage point ls {volume}` shows what it has");
        Problem::failed(text)
    })
}

/// Reads `VOLUME=@SEQ`.
fn placed(places: &[String], volume: &str) -> Result<Option<When>, Problem> {
    for place in places {
        let Some((name, at)) = place.rsplit_once('=') else {
            return Err(Problem::usage(format!("'{place}': write VOLUME=@SEQ, as `afterimage group points` tells it")));
        };
        if name == volume {
            return at.parse().map(Some).map_err(|e| Problem::usage(format!("'{place}': {e}")));
        }
    }
    Ok(None)
}

/// Whether these machines have more than one disk together.
#[must_use]
pub fn are_several(machines: &[Machine]) -> bool {
    machines.iter().map(|m| m.disks.len()).sum::<usize>() > 1
}

impl Wanted<'_> {
    /// Where a disk begins. If there are `several`, that is one instant for all.
    ///
    /// # Errors
    /// If what was said does not name one.
    pub fn moment(&self, control: &mut ControlClient, volume: &str, several: bool) -> Result<When, Problem> {
        if let Some(group) = self.group {
            // Of a planned one it only says which machines and volumes there are.
            let place = group.place(volume)?;
            return Ok(if self.planned { When::Latest } else { place });
        }
        if let Some(at) = placed(self.place, volume)? {
            return Ok(at);
        }
        match self.at {
            // Whatever there is when nothing can come any more.
            When::Latest if self.planned || !several => Ok(When::Latest),
            When::Latest | When::Seq(_) if several => Err(Problem::usage(
                "several disks need one instant: name it with --at (a time, such as -10s, or a point that all have), or take the \
                 point of a group with --group GROUP",
            )),
            When::Point(name) if name == LATEST_APP && several => Err(Problem::usage(
                "several disks need one instant: name the app-consistent point, or take that of a group with --group GROUP",
            )),
            When::Point(name) if name == LATEST_APP => Ok(When::Seq(latest_app(control, volume)?.seq)),
            When::Ago(by) if several => Ok(When::Time(self.created.before(*by))),
            other => Ok(other.clone()),
        }
    }

    /// Where each disk of each machine begins, with its time.
    ///
    /// # Errors
    /// If what was said names no moment, or one that cannot be had.
    pub fn moments(&self, control: &mut ControlClient, machines: &[Machine]) -> Result<Vec<Moments>, Problem> {
        let several = are_several(machines);
        let mut all = Vec::new();
        for machine in machines {
            let mut own = Vec::new();
            for disk in &machine.disks {
                let at = self.moment(control, &disk.volume, several)?;
                let position = control.resolve(&disk.volume, &at)?;
                own.push((position.seq, position.time));
            }
            all.push(own);
        }
        Ok(all)
    }
}

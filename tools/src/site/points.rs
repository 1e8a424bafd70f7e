//! Points of all disks of this process at one instant: a machine of several disks comes back as it was at one moment.

use super::{Local, Served, lock, now, whole_seconds};
use afterimage_agent::{Volume, VolumeState, create_points};
use afterimage_mgmt::protocol::{Code, Failure, PointInfo, VolumePoint};
use afterimage_mgmt::schedule::Seen;
use afterimage_mgmt::units::Time;
use std::sync::Arc;
use std::time::Duration;

/// How long writes may wait for the gates of all disks: as with groups.
const HOLD: Duration = Duration::from_millis(100);

impl Local {
    fn all_protected(&self) -> Vec<Arc<Volume>> {
        let of = |served| match served {
            Served::Protected(volume) => Some(volume),
            Served::Plain { .. } => None,
        };
        self.served().into_iter().filter_map(of).collect()
    }

    /// Makes the automatic points that are due. When one of several disks is due, all that are live and have the same interval get a
    /// point of the same name at the same instant.
    pub fn make_due_points(&self) {
        let time = self.clock.elapsed();
        let live: Vec<(Arc<Volume>, Option<Duration>, bool)> = {
            let schedule = lock(&self.schedule);
            let of = |volume: Arc<Volume>| {
                let status = volume.status();
                let consistent = status.state == VolumeState::Live;
                let due = schedule.due(time, Seen { name: &status.name, consistent, seq: status.seq_acked });
                consistent.then(|| (Arc::clone(&volume), schedule.every(&status.name), due))
            };
            self.all_protected().into_iter().filter_map(of).collect()
        };
        let mut intervals: Vec<Duration> = live.iter().filter(|v| v.2).filter_map(|v| v.1).collect();
        intervals.sort_unstable();
        intervals.dedup();
        for every in intervals {
            let all: Vec<Arc<Volume>> = live.iter().filter(|v| v.1 == Some(every)).map(|v| Arc::clone(&v.0)).collect();
            let name = format!("auto-{}", whole_seconds(now()));
            match create_points(&all, &name, true, HOLD) {
                Ok(made) => {
                    let mut schedule = lock(&self.schedule);
                    all.iter().zip(made).for_each(|(volume, (seq, _))| schedule.made(time, volume.name(), seq));
                }
                Err(e) if all.len() == 1 => {
                    tracing::warn!("no automatic point: {e}");
                    lock(&self.schedule).failed(time, all[0].name());
                }
                Err(e) => {
                    tracing::warn!("no automatic point of all disks at one instant, each has one of its own: {e}");
                    let due = live.iter().filter(|v| v.2 && v.1 == Some(every));
                    due.for_each(|(volume, ..)| self.point_of_its_own(volume, &name));
                }
            }
        }
    }

    /// An automatic point of one disk, under a name that is not taken for one of all.
    fn point_of_its_own(&self, volume: &Volume, name: &str) {
        let (time, name) = (self.clock.elapsed(), format!("{name}-{}", volume.name()));
        match volume.create_point(&name, true) {
            Ok((seq, _)) => lock(&self.schedule).made(time, volume.name(), seq),
            Err(e) => {
                tracing::warn!("no automatic point: {e}");
                lock(&self.schedule).failed(time, volume.name());
            }
        }
    }

    /// A user's point of all disks at one instant.
    pub(super) fn points_of_all(&self, point: &str) -> Result<Vec<VolumePoint>, Failure> {
        let all = self.all_protected();
        if all.is_empty() {
            return Err(Failure::new(Code::NotReady, "no disk is protected here"));
        }
        all.iter().try_for_each(|volume| self.new_name(volume.name(), point))?;
        let made = create_points(&all, point, false, HOLD)
            .map_err(|e| Failure::new(Code::NotReady, format!("there is no point '{point}' of any disk: {e}")))?;
        let time = self.clock.elapsed();
        let mut out = Vec::new();
        for (volume, (seq, at)) in all.iter().zip(made) {
            lock(&self.schedule).made(time, volume.name(), seq);
            Self::wait_durable(volume, seq, point, seq)?;
            let point =
                PointInfo { name: point.to_owned(), seq, time: Time(at), auto: false, pinned: false, app: None };
            out.push(VolumePoint { volume: volume.name().to_owned(), point });
        }
        Ok(out)
    }
}

//! A fence: the machine of this volume runs elsewhere, so its disk takes no writes here (I13).
//!
//! The appliance says so in its Welcome, with an epoch that only grows. The agent refuses writes from then on, notes it in `volume.json`,
//! so that its next start refuses them before it serves anything, and goes on with the session: what its journal and its dirty map hold
//! goes to the appliance, which knows where it belongs. When all is there it ends with a point, `fenced-EPOCH`.
//!
//! | the fence here | the Welcome says | and its epoch is | follows |
//! |---|---|---|---|
//! | none | none | any | its epoch is kept, if higher |
//! | none | fenced | not lower | the fence goes up |
//! | up | fenced | not lower | stays, its epoch is kept |
//! | up | none | higher than the fence's | the fence comes down: everything is compared, then writes are taken |
//! | up | none | not higher | stays: that vault is an older copy, which does not know |
//! | any | any | lower than what is known | nothing |

use crate::shared::Shared;
use afterimage_format::fence::Fence;
use afterimage_format::record::{FLAG_AUTO, Kind};
use afterimage_format::wire::{EPOCH_VERSION, Welcome};
use serde::{Deserialize, Serialize};

/// What a fenced volume does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FencePolicy {
    /// It is read-only.
    #[default]
    ReadOnly,
    /// It refuses reads, too: what still runs on it is not to go on with old data.
    Refuse,
}

/// The fence, as volume.json has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FenceNote {
    /// Its epoch.
    pub(crate) epoch: u64,
    /// When the agent heard of it, in nanoseconds since 1970.
    pub(crate) since: u64,
    /// The point at its end is in the ring.
    #[serde(default)]
    pub(crate) marked: bool,
}

/// What is to be done about a Welcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Nothing,
    Keep,
    Up,
    Down,
}

/// See the table.
pub(crate) fn judge(known: u64, note: Option<u64>, epoch: u64, fence: Fence) -> Verdict {
    match (note, fence.is_up()) {
        _ if epoch < known => Verdict::Nothing,
        (None, true) => Verdict::Up,
        (Some(of), false) if epoch > of => Verdict::Down,
        (Some(_), false) => Verdict::Nothing,
        _ if epoch > known => Verdict::Keep,
        _ => Verdict::Nothing,
    }
}

impl Shared {
    /// Heeds what the appliance says of the fence. To be called before its Welcome is judged.
    pub(crate) fn heed(&self, welcome: &Welcome) {
        if welcome.version < EPOCH_VERSION {
            return;
        }
        let mut state = self.state();
        let note = state.meta.fence.map(|f| f.epoch);
        let name = &self.p.name;
        match judge(state.meta.epoch, note, welcome.epoch, welcome.fence) {
            Verdict::Nothing => {}
            Verdict::Keep => {
                state.meta.epoch = welcome.epoch;
                if let Some(fence) = &mut state.meta.fence {
                    fence.epoch = welcome.epoch;
                }
                self.store(&mut state);
            }
            Verdict::Up => {
                // First nothing is let in any more; the note is for the next start.
                self.core.fence(true);
                state.meta.epoch = welcome.epoch;
                let since = self.p.clock.wall();
                state.meta.fence = Some(FenceNote { epoch: welcome.epoch, since, marked: false });
                self.store(&mut state);
                tracing::error!(
                    "volume {name}: FENCED, epoch {}: its machine runs elsewhere after a failover, and its disk takes no writes here. What \
                     the appliance has not goes there now, and is kept",
                    welcome.epoch
                );
                drop(state);
                self.p.bell.ring();
            }
            Verdict::Down => {
                // A start that finds this compares everything: somebody else may have written to the disk meanwhile. The fence itself goes
                // last, so that nobody takes the volume for live before the comparison has begun.
                state.meta.unmarked = true;
                if !self.store(&mut state) {
                    return;
                }
                drop(state);
                tracing::warn!("volume {name}: the fence is gone, epoch {}: writes are taken again", welcome.epoch);
                self.compare("the volume was fenced: the whole disk is compared with the appliance's history");
                let mut state = self.state();
                (state.meta.epoch, state.meta.fence, state.meta.unmarked) = (welcome.epoch, None, false);
                if !self.store(&mut state) {
                    // The file still has the fence, and so has the next start.
                    return;
                }
                drop(state);
                self.core.fence(false);
            }
        }
    }

    /// Ends what a fenced volume brings with a point, once nothing is missing. Called by the keeper while it is live.
    pub(crate) fn mark_fence(&self) {
        let mut state = self.state();
        let Some(fence) = state.meta.fence.filter(|f| !f.marked) else { return };
        if !self.core.ranges.is_empty() {
            return;
        }
        let point = format!("fenced-{}", fence.epoch);
        let Ok(mut place) = self.p.ring.reserve(Kind::Point, FLAG_AUTO, 0, point.len() as u64, point.len()) else {
            return;
        };
        place.payload_mut().copy_from_slice(point.as_bytes());
        let seq = place.publish(self.p.clock.wall());
        self.p.ring.wake_sender();
        state.meta.fence = Some(FenceNote { marked: true, ..fence });
        // Not noted, the point is made again, which is no harm.
        self.store(&mut state);
        tracing::info!("volume {}: all that it has ends with point {point}, @{seq}", self.p.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row() {
        use Fence::{Closed, Draining, Open};
        let cases = [
            ((0, None, 0, Open), Verdict::Nothing),
            ((0, None, 2, Open), Verdict::Keep),
            ((2, None, 3, Draining), Verdict::Up),
            ((2, None, 3, Closed), Verdict::Up),
            ((3, None, 3, Closed), Verdict::Up),
            ((3, Some(3), 3, Closed), Verdict::Nothing),
            ((3, Some(3), 5, Closed), Verdict::Keep),
            ((3, Some(3), 4, Open), Verdict::Down),
            ((3, Some(3), 3, Open), Verdict::Nothing),
            ((3, Some(3), 2, Open), Verdict::Nothing),
            ((3, None, 2, Closed), Verdict::Nothing),
        ];
        for (i, ((known, note, epoch, fence), want)) in cases.into_iter().enumerate() {
            assert_eq!(judge(known, note, epoch, fence), want, "case {i}");
        }
    }
}

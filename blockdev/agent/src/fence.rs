//! A fence: the machine of this volume runs elsewhere, so its disk takes no writes here (I13).
//!
//! The appliance says so in its Welcome, with an epoch that only grows. The agent refuses writes from then on, notes it in `volume.json`,
//! so that its next start refuses them before it serves anything, and goes on with the session: what its journal and its dirty map hold
//! goes to the appliance, which knows where it belongs. When all is there it ends with a point, `fenced-EPOCH`.
//!
//! | the fence here | the Welcome says | and its epoch is | follows |
//! |---|---|---|---|
//! | none | none | what is known, or one more | it is kept |
//! | none | none | higher by 2 or more | a fence came and went unheard: everything is compared |
//! | none | fenced | what is known, or one more | the fence goes up |
//! | none | fenced | higher by 2 or more | the same, and everything is compared |
//! | up | fenced | what is known | stays |
//! | up | fenced | higher | it is another fence: stays with that epoch, everything is compared, and a point is made anew |
//! | up | none | higher than the fence's | the fence comes down: everything is compared, then writes are taken |
//! | up | none | not higher | stays: that vault is an older copy, which does not know |
//! | any | any | lower than what is known | nothing |
//!
//! A disk that adopts a volume ([`VolumeConfig::adopt`](crate::VolumeConfig)) begins with a fence of epoch 0, so the first row that it can come to is the
//! sixth; until the Welcome says that the volume is closed, and the appliance knows of adoption, its sessions end there.
//!
//! Everything is compared because between two fences, or behind one, somebody else may have written to the disk: a failback does.

use crate::breaks::Break;
use crate::session::SessionError;
use crate::shared::Shared;
use afterimage_format::fence::Fence;
use afterimage_format::record::Kind;
use afterimage_format::wire::{ADOPT_VERSION, EPOCH_VERSION, Welcome};
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
    Missed,
    Up,
    Another,
    Down,
}

/// See the table.
pub(crate) fn judge(known: u64, note: Option<u64>, epoch: u64, fence: Fence) -> Verdict {
    // A fence that comes is one more, and one that goes another.
    let missed = epoch >= known.saturating_add(2);
    match (note, fence.is_up()) {
        _ if epoch < known => Verdict::Nothing,
        (None, false) if missed => Verdict::Missed,
        (None, false) if epoch > known => Verdict::Keep,
        (None, true) if missed => Verdict::Another,
        (None, true) => Verdict::Up,
        (Some(_), true) if epoch > known => Verdict::Another,
        (Some(of), false) if epoch > of => Verdict::Down,
        _ => Verdict::Nothing,
    }
}

impl Shared {
    /// Heeds what the appliance says of the fence. To be called before its Welcome is judged.
    ///
    /// # Errors
    /// [`SessionError::Unheeded`]: the next Welcome is to say it again.
    pub(crate) fn heed(&self, welcome: &Welcome) -> Result<(), SessionError> {
        let mut state = self.state();
        // An appliance that does not know of adoption would take what this disk has for the volume's.
        if state.meta.adopting && !self.p.breaks.has(Break::AdoptUnfenced) {
            if welcome.version < ADOPT_VERSION {
                return Err(SessionError::Adopt("the appliance is too old for that: update it"));
            }
            if welcome.fence != Fence::Closed {
                let why = "the volume is not fenced, which a failover does: run that first (afterimage failover run)";
                return Err(SessionError::Adopt(why));
            }
        }
        if welcome.version < EPOCH_VERSION {
            return Ok(());
        }
        let note = state.meta.fence.map(|f| f.epoch);
        let name = &self.p.name;
        match judge(state.meta.epoch, note, welcome.epoch, welcome.fence) {
            Verdict::Nothing => {}
            Verdict::Keep => {
                state.meta.epoch = welcome.epoch;
                self.store(&mut state);
            }
            Verdict::Missed => {
                tracing::warn!("volume {name}: it was fenced meanwhile, and is not any more, epoch {}", welcome.epoch);
                drop(state);
                self.compare_behind(welcome.epoch, None)?;
            }
            verdict @ (Verdict::Up | Verdict::Another) => {
                // First nothing is let in any more; the note is for the next start.
                self.core.fence(true);
                let since = state.meta.fence.map_or_else(|| self.p.clock.wall(), |f| f.since);
                let fence = Some(FenceNote { epoch: welcome.epoch, since, marked: false });
                tracing::error!(
                    "volume {name}: FENCED, epoch {}: its machine runs elsewhere after a failover, and its disk takes no writes here. What \
                     the appliance has not goes there now, and is kept",
                    welcome.epoch
                );
                if verdict == Verdict::Another {
                    // Both at once: the point at its end comes behind the comparison.
                    (state.meta.fence, state.meta.unmarked) = (fence, true);
                    drop(state);
                    self.compare_behind(welcome.epoch, fence)?;
                } else {
                    (state.meta.epoch, state.meta.fence) = (welcome.epoch, fence);
                    self.store(&mut state);
                    drop(state);
                }
                self.p.bell.ring();
            }
            Verdict::Down => {
                drop(state);
                self.compare_behind(welcome.epoch, None)?;
                tracing::warn!("volume {name}: the fence is gone, epoch {}: writes are taken again", welcome.epoch);
                self.core.fence(false);
            }
        }
        Ok(())
    }

    /// Begins to compare the whole disk, to which somebody else may have written, and notes that epoch and this fence are heeded. They are
    /// noted last, so that nobody takes the volume for live before the comparison has begun. A start in between compares everything.
    fn compare_behind(&self, epoch: u64, fence: Option<FenceNote>) -> Result<(), SessionError> {
        let mut state = self.state();
        state.meta.unmarked = true;
        if !self.store(&mut state) {
            return Err(SessionError::Unheeded);
        }
        drop(state);
        self.compare("the volume was fenced: the whole disk is compared with the appliance's history");
        let mut state = self.state();
        let before = state.meta.clone();
        (state.meta.epoch, state.meta.fence, state.meta.unmarked, state.meta.adopting) = (epoch, fence, false, false);
        if !self.store(&mut state) {
            // As the file has it, so that the next Welcome, or the next start, does it all again.
            state.meta = before;
            return Err(SessionError::Unheeded);
        }
        Ok(())
    }

    /// Ends what a fenced volume brings with a point, once nothing is missing. Called by the keeper while it is live.
    pub(crate) fn mark_fence(&self) {
        let mut state = self.state();
        let Some(fence) = state.meta.fence.filter(|f| !f.marked) else { return };
        // What is to be compared is not marked as dirty yet.
        if state.meta.unmarked || !self.core.ranges.is_empty() {
            return;
        }
        let point = format!("fenced-{}", fence.epoch);
        // As if a person had made it: retention does not take it away while the tail is there.
        let Ok(mut place) = self.p.ring.reserve(Kind::Point, 0, 0, point.len() as u64, point.len()) else {
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
            ((0, None, 1, Open), Verdict::Keep),
            ((0, None, 2, Open), Verdict::Missed),
            ((3, None, 7, Open), Verdict::Missed),
            ((2, None, 3, Draining), Verdict::Up),
            ((2, None, 3, Closed), Verdict::Up),
            ((3, None, 3, Closed), Verdict::Up),
            ((0, None, 3, Closed), Verdict::Another),
            ((3, None, 5, Draining), Verdict::Another),
            ((3, Some(3), 3, Closed), Verdict::Nothing),
            ((3, Some(3), 5, Closed), Verdict::Another),
            ((3, Some(3), 5, Draining), Verdict::Another),
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

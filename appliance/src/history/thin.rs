//! Which points stay: a pure decision over points, policy and the beginning of the window.
//!
//! Inside the window every write can be chosen, and every point stays. Of the points before it, those that a user made or pinned
//! stay; of those made by policy the newest of each hour stays for the last `hourly` hours that have any, and likewise days,
//! weeks (from Monday) and months (UTC), each counted back from the window's beginning. Periods without points do not count,
//! so a machine that was off for a month loses nothing by that.
//!
//! # Clocks
//! A point has two times: its label, which is the agent's, and when the appliance first saw it, on a clock that never runs faster
//! than time passes. The decision is taken with each, and what either of them keeps stays. So labels that jump ahead, which would
//! make hours out of minutes, push nothing out early; a clock that was put back, which makes one hour out of many, neither; nor
//! does a backlog that comes at once after an outage. History is kept longer by all that, and never shorter.

use afterimage_base::calendar::Period;
pub use afterimage_format::manifest::RetentionMeta as Policy;
use std::collections::BTreeSet;

/// A point as the decision sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// The seq that the volume is at.
    pub seq: u64,
    /// Its label, nanoseconds since 1970.
    pub time: u64,
    /// When it was first seen, nanoseconds since 1970 on the appliance's own clock.
    pub seen: u64,
    /// Made by policy, not by a user.
    pub auto: bool,
    /// Kept because somebody said so.
    pub pinned: bool,
}

/// Why a point stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Why {
    /// It is in the window.
    Window,
    /// The volume is on hold.
    Hold,
    /// A user made it.
    User,
    /// Somebody pinned it.
    Pin,
    /// It is the newest of an hour,
    Hourly,
    /// of a day,
    Daily,
    /// of a week,
    Weekly,
    /// of a month.
    Monthly,
}

impl Why {
    /// Its word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Why::Window => "window",
            Why::Hold => "hold",
            Why::User => "user",
            Why::Pin => "pin",
            Why::Hourly => "hourly",
            Why::Daily => "daily",
            Why::Weekly => "weekly",
            Why::Monthly => "monthly",
        }
    }
}

/// Why each point stays; nothing for those that go. `window` is the first seq of the window; `points` are in the order of their seqs.
#[must_use]
pub fn thin(policy: &Policy, window: u64, points: &[Candidate]) -> Vec<BTreeSet<Why>> {
    let mut out: Vec<BTreeSet<Why>> = points
        .iter()
        .map(|p| {
            let always =
                [(Why::Window, p.seq >= window), (Why::Hold, policy.hold), (Why::User, !p.auto), (Why::Pin, p.pinned)];
            always.into_iter().filter(|a| a.1).map(|a| a.0).collect()
        })
        .collect();
    let before = points.partition_point(|p| p.seq < window);
    let tiers = [
        (Why::Hourly, Period::Hour, policy.hourly),
        (Why::Daily, Period::Day, policy.daily),
        (Why::Weekly, Period::Week, policy.weekly),
        (Why::Monthly, Period::Month, policy.monthly),
    ];
    let clocks: [fn(&Candidate) -> u64; 2] = [|p| p.time, |p| p.seen];
    for (why, period, most) in tiers {
        for clock in clocks {
            let (mut periods, mut last) = (0, None);
            // From the newest on: the first of each period stays.
            for at in (0..before).rev() {
                let this = period.of(clock(&points[at]));
                // A time that is later than that of a newer point belongs to the newer one's period.
                if last.is_some_and(|last| this >= last) {
                    continue;
                }
                if periods == most {
                    break;
                }
                (periods, last) = (periods + 1, Some(this));
                out[at].insert(why);
            }
        }
    }
    out
}

#[cfg(test)]
#[path = "thin_tests.rs"]
mod tests;

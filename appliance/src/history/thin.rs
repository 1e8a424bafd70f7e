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

const SECOND: u64 = 1_000_000_000;
const DAY: u64 = 86_400;

/// Days from 1970 to the first of January.
const fn year_begins(year: u64) -> u64 {
    const fn leaps(through: u64) -> u64 {
        through / 4 - through / 100 + through / 400
    }
    (year - 1970) * 365 + leaps(year - 1) - leaps(1969)
}

/// Months since January 1970 of a day since 1970, in UTC.
fn month_of(day: u64) -> u64 {
    let mut year = 1970 + day / 366;
    while year_begins(year + 1) <= day {
        year += 1;
    }
    let (mut rest, leap) = (day - year_begins(year), year_begins(year + 1) - year_begins(year) == 366);
    let lengths = [31, if leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    for length in lengths {
        if rest < length {
            break;
        }
        rest -= length;
        month += 1;
    }
    (year - 1970) * 12 + month
}

/// The hour, day, week or month of a time.
fn period(why: Why, time: u64) -> u64 {
    let seconds = time / SECOND;
    match why {
        Why::Hourly => seconds / 3600,
        // The first of January 1970 was a Thursday.
        Why::Weekly => (seconds / DAY + 3) / 7,
        Why::Monthly => month_of(seconds / DAY),
        _ => seconds / DAY,
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
        (Why::Hourly, policy.hourly),
        (Why::Daily, policy.daily),
        (Why::Weekly, policy.weekly),
        (Why::Monthly, policy.monthly),
    ];
    let clocks: [fn(&Candidate) -> u64; 2] = [|p| p.time, |p| p.seen];
    for (why, most) in tiers {
        for clock in clocks {
            let (mut periods, mut last) = (0, None);
            // From the newest on: the first of each period stays.
            for at in (0..before).rev() {
                let this = period(why, clock(&points[at]));
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

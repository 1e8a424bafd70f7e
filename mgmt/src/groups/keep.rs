//! Which points of a group stay: a pure decision.
//!
//! A point whose parts all lie in the windows of their volumes can be restored by itself. Beyond that those stay that a user made or pinned,
//! and of each hour, day, week and month the newest, for as many of them as the policy says, counted back from the beginning of the windows. Where these
//! windows begin the appliances say, so no clock of mgmt lets anything go.
//!
//! The newest of a period that is over is known long before a window leaves it, so it is kept from then on. Of the period that is not over, it is the newest
//! that a window will leave soon.

use afterimage_base::calendar::Period;
use std::collections::{BTreeMap, BTreeSet};

/// What a policy says of points beyond the window.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tiers {
    /// How many hours,
    pub hourly: u32,
    /// days,
    pub daily: u32,
    /// weeks
    pub weekly: u32,
    /// and months.
    pub monthly: u32,
    /// The window, in nanoseconds.
    pub window: u64,
}

/// A point that can be restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Its number.
    pub id: i64,
    /// When its barrier began, nanoseconds since 1970.
    pub time: u64,
    /// Made by the schedule.
    pub auto: bool,
    /// Kept because somebody said so.
    pub pinned: bool,
    /// A part of it lies before the window of its volume.
    pub out: bool,
}

/// In the window.
pub const WINDOW: &str = "window";

/// Why each point stays, by its number; those that go are not in it. Points are in the order in which they were made.
#[must_use]
pub fn choose(tiers: &Tiers, points: &[Candidate], now: u64) -> BTreeMap<i64, BTreeSet<&'static str>> {
    let mut out: BTreeMap<i64, BTreeSet<&'static str>> = BTreeMap::new();
    for p in points {
        for (why, is) in [(WINDOW, !p.out), ("user", !p.auto), ("pin", p.pinned)] {
            if is {
                out.entry(p.id).or_default().insert(why);
            }
        }
    }
    let all = [
        ("hourly", Period::Hour, tiers.hourly),
        ("daily", Period::Day, tiers.daily),
        ("weekly", Period::Week, tiers.weekly),
        ("monthly", Period::Month, tiers.monthly),
    ];
    let soon = now.saturating_sub(tiers.window / 4 * 3);
    for (why, period, most) in all.into_iter().filter(|t| t.2 > 0) {
        let (mut count, mut last) = (0, None);
        for p in points.iter().rev() {
            let this = period.of(p.time);
            // A time that is later than that of a newer point belongs to the newer one's period.
            if last.is_some_and(|last| this >= last) {
                continue;
            }
            if this >= period.of(now) && !p.out && p.time > soon {
                continue;
            }
            if p.out {
                if count == most {
                    break;
                }
                count += 1;
            }
            last = Some(this);
            out.entry(p.id).or_default().insert(why);
        }
    }
    out
}

/// The points of which the appliances have to keep something.
#[must_use]
pub fn to_pin(chosen: &BTreeMap<i64, BTreeSet<&'static str>>) -> BTreeSet<i64> {
    chosen.iter().filter(|(_, why)| why.iter().any(|w| *w != WINDOW)).map(|(id, _)| *id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: u64 = 60_000_000_000;
    const HOUR: u64 = 60 * MINUTE;
    /// Monday, the 2nd of October 2023, 00:00.
    const START: u64 = 1_696_204_800_000_000_000;

    fn tiers(hourly: u32) -> Tiers {
        Tiers { hourly, window: 3 * HOUR, ..Tiers::default() }
    }

    /// One point every ten minutes for so many hours; those before `window` are out.
    fn points(hours: u64, window: u64) -> Vec<Candidate> {
        let one = |n: u64| {
            let time = START + n * 10 * MINUTE;
            Candidate { id: i64::try_from(n).unwrap(), time, auto: true, pinned: false, out: time < window }
        };
        (0..hours * 6).map(one).collect()
    }

    fn pins(tiers: &Tiers, points: &[Candidate], now: u64) -> Vec<i64> {
        to_pin(&choose(tiers, points, now)).into_iter().collect()
    }

    #[test]
    fn the_newest_of_each_hour_is_kept_before_the_window_leaves_it_and_for_as_long_as_said() {
        // Ten hours of points, now at the beginning of the eleventh; the window is three hours long.
        let (now, window) = (START + 10 * HOUR + MINUTE, START + 7 * HOUR + MINUTE);
        let all = points(10, window);
        // The last of hours 6, 5 (out), and of all hours of the window: 7, 8, 9.
        assert_eq!(pins(&tiers(2), &all, now), [35, 41, 47, 53, 59]);
        assert!(pins(&tiers(0), &all, now).is_empty());
        let chosen = choose(&tiers(2), &all, now);
        assert!(chosen[&59].contains(WINDOW) && chosen[&59].contains("hourly") && !chosen[&41].contains(WINDOW));
        assert!(!chosen.contains_key(&40) && chosen.contains_key(&50), "what is in the window stays by itself");
    }

    #[test]
    fn of_the_hour_that_is_not_over_it_is_the_newest_that_the_window_leaves_soon() {
        let short = Tiers { hourly: 1, window: 20 * MINUTE, ..Tiers::default() };
        let now = START + 55 * MINUTE;
        // Points at 0, 10, ..., 50; the window begins at 35, and 15 of its 20 minutes are over for what is before 40.
        let all: Vec<Candidate> = points(1, START + 35 * MINUTE);
        assert_eq!(pins(&short, &all, now), [4], "40 min, still in the window");
        // Later nothing newer came, and the window has passed it: it stays.
        let later: Vec<Candidate> = all.iter().map(|p| Candidate { out: true, ..*p }).collect();
        assert_eq!(pins(&short, &later, START + 90 * MINUTE), [5]);
    }

    #[test]
    fn a_user_s_and_a_pinned_point_stay_and_hours_without_points_count_for_nothing() {
        let mut all = points(2, u64::MAX);
        (all[1].auto, all[2].pinned) = (false, true);
        let now = START + 1000 * HOUR;
        assert_eq!(pins(&tiers(2), &all, now), [1, 2, 5, 11]);
        let daily = Tiers { daily: 7, monthly: 1, ..Tiers::default() };
        assert_eq!(pins(&daily, &points(30, u64::MAX), now), [143, 179]);
    }

    #[test]
    fn a_clock_that_jumps_makes_one_period_and_pushes_out_one() {
        let mut all = points(5, u64::MAX);
        let jumped = Candidate { id: 1000, time: START + 9000 * HOUR, ..all[0] };
        all.push(jumped);
        // Put back again: what follows is older by its time, and belongs to the period of the jump until time has caught up.
        assert_eq!(pins(&tiers(3), &all, START + 5 * HOUR), [23, 29, 1000]);
        all.push(Candidate { id: 1001, time: START + 5 * HOUR, ..all[0] });
        assert_eq!(pins(&tiers(3), &all, START + 6 * HOUR), [23, 29, 1001]);
    }
}

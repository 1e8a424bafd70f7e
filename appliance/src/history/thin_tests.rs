use super::*;
use proptest::prelude::*;

const SECOND: u64 = 1_000_000_000;
const DAY: u64 = 86_400;
const HOUR: u64 = 3600 * SECOND;
/// Monday, the 2nd of October 2023.
const MONDAY: u64 = 1_696_204_800 * SECOND;

fn policy(window_hours: u64, [hourly, daily, weekly, monthly]: [u32; 4]) -> Policy {
    Policy { window: window_hours * HOUR, hourly, daily, weekly, monthly, hold: false }
}

fn at(seq: u64, time: u64) -> Candidate {
    Candidate { seq, time, seen: time, auto: true, pinned: false }
}

fn kept(policy: &Policy, window: u64, points: &[Candidate]) -> Vec<u64> {
    let why = thin(policy, window, points);
    points.iter().zip(why).filter(|(_, w)| !w.is_empty()).map(|(p, _)| p.seq).collect()
}

/// A point every ten minutes for a hundred days.
#[test]
fn a_long_history_keeps_what_the_policy_says() {
    let points: Vec<Candidate> = (0..14_400).map(|i| at(i + 1, MONDAY + i * HOUR / 6)).collect();
    let policy = policy(24, [24, 7, 4, 12]);
    let window = 14_400 - 144 + 1;
    let why = thin(&policy, window, &points);
    let count = |w: Why| why.iter().filter(|set| set.contains(&w)).count();
    assert_eq!([Why::Window, Why::Hourly, Why::Daily, Why::Weekly].map(count), [144, 24, 7, 4]);
    // October to January.
    assert_eq!(count(Why::Monthly), 4);
    let oldest = points.iter().zip(&why).find(|(_, w)| !w.is_empty()).unwrap();
    let end_of_october = MONDAY + (29 * 24 + 23) * HOUR + 50 * 60 * SECOND;
    assert_eq!((oldest.0.time, oldest.1.iter().copied().collect::<Vec<_>>()), (end_of_october, vec![Why::Monthly]));
}

#[test]
fn what_somebody_said_stays() {
    let mut points: Vec<Candidate> = (1..=9).map(|i| at(i, MONDAY)).collect();
    (points[1].auto, points[4].pinned) = (false, true);
    let mut policy = policy(1, [0; 4]);
    assert_eq!(kept(&policy, 8, &points), [2, 5, 8, 9]);
    policy.hold = true;
    assert_eq!(kept(&policy, 8, &points).len(), 9);
}

/// Times that go on by any step.
fn steps() -> impl Strategy<Value = Vec<u64>> {
    let step = prop_oneof![Just(0), 1u64..30 * 60, 1u64..5 * 3600, 1u64..40 * DAY];
    proptest::collection::vec(step, 1..80)
}

fn policies() -> impl Strategy<Value = Policy> {
    proptest::array::uniform4(0u32..6).prop_map(|tiers| policy(1, tiers))
}

fn sums(steps: &[u64]) -> Vec<u64> {
    let mut at = MONDAY;
    let sum = |step: &u64| {
        at += step * SECOND;
        at
    };
    steps.iter().map(sum).collect()
}

proptest! {
    /// By the book: a point stays if it is the newest of its period, and fewer periods than allowed are newer.
    #[test]
    fn it_is_what_the_words_say(steps in steps(), policy in policies(), window in 1u64..80) {
        let points: Vec<Candidate> = sums(&steps).iter().zip(1..).map(|(time, seq)| at(seq, *time)).collect();
        let why = thin(&policy, window, &points);
        let old: Vec<&Candidate> = points.iter().filter(|p| p.seq < window).collect();
        for (p, why) in points.iter().zip(why) {
            for (tier, most) in [
                (Why::Hourly, policy.hourly), (Why::Daily, policy.daily), (Why::Weekly, policy.weekly), (Why::Monthly, policy.monthly),
            ] {
                let period = match tier {
                    Why::Hourly => Period::Hour,
                    Why::Daily => Period::Day,
                    Why::Weekly => Period::Week,
                    _ => Period::Month,
                };
                let own = period.of(p.time);
                let newest = old.iter().all(|q| q.seq <= p.seq || period.of(q.time) != own);
                let newer: BTreeSet<u64> = old.iter().map(|q| period.of(q.time)).filter(|n| *n > own).collect();
                let wanted = p.seq < window && newest && newer.len() < most as usize;
                prop_assert_eq!(why.contains(&tier), wanted, "{:?} of {}", tier, p.seq);
            }
            prop_assert_eq!(why.contains(&Why::Window), p.seq >= window);
        }
    }

    /// Whether it is thinned at every step or once in the end: nothing that is wanted later goes earlier.
    #[test]
    fn thinning_early_loses_nothing_that_counts_later(steps in steps(), policy in policies(), stops in proptest::collection::vec(1u64..90, 0..20)) {
        let all: Vec<Candidate> = sums(&steps).iter().zip(1..).map(|(time, seq)| at(seq, *time)).collect();
        let mut stops = stops;
        stops.sort_unstable();
        let end = stops.last().copied().unwrap_or(1);
        let mut left: Vec<Candidate> = Vec::new();
        let mut next = 0;
        for window in stops {
            // Points come, and the window is never ahead of them.
            while next < all.len() && all[next].seq <= window + 3 {
                left.push(all[next]);
                next += 1;
            }
            let stay = kept(&policy, window, &left);
            left.retain(|p| stay.contains(&p.seq));
        }
        left.extend(&all[next..]);
        prop_assert_eq!(kept(&policy, end, &left), kept(&policy, end, &all));
    }

    /// Whatever the labels do (they never fall, ingest sees to that), what true times keep stays.
    #[test]
    fn clocks_that_jump_lose_nothing_early(true_steps in steps(), labels in steps(), policy in policies(), window in 1u64..80) {
        let (times, labels) = (sums(&true_steps), sums(&labels));
        let count = times.len().min(labels.len());
        let honest: Vec<Candidate> = (0..count).map(|i| at(i as u64 + 1, times[i])).collect();
        let ideal = kept(&policy, window, &honest);
        // The agent's clock lies; or all comes late and at once, with honest labels.
        let lying: Vec<Candidate> = honest.iter().zip(&labels).map(|(p, l)| Candidate { time: *l, ..*p }).collect();
        let late: Vec<Candidate> = honest.iter().map(|p| Candidate { seen: MONDAY, ..*p }).collect();
        for points in [lying, late] {
            let stay = kept(&policy, window, &points);
            for seq in &ideal {
                prop_assert!(stay.contains(seq), "{} goes early", seq);
            }
        }
    }
}

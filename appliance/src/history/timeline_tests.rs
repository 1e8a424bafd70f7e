use super::*;
use proptest::prelude::*;
use std::convert::Infallible;

/// A volume with an initial sync at 1..=9, a gap at 20..30, an open gap from 50 if `open`, window from 15, ten ns a seq.
fn choices(open: bool, kept: &[u64]) -> (Vec<Gap>, Window, Vec<u64>) {
    let gap = |from: u64, to: Option<u64>, initial| Gap {
        from_seq: from,
        from_time: from * 10,
        to_seq: to,
        to_time: to.unwrap_or(0) * 10,
        initial,
    };
    let mut gaps = vec![gap(1, Some(10), true), gap(20, Some(30), false)];
    if open {
        gaps.push(gap(50, None, false));
    }
    (gaps, Window { first_seq: 15, first_time: 150, last_seq: 60, last_time: 600 }, kept.to_vec())
}

fn choose(open: bool, kept: &[u64], wish: Wish) -> Result<u64, WishError> {
    let (gaps, window, kept) = choices(open, kept);
    let all = Choices { window, until: window.last_time, gaps: &gaps, kept: &kept };
    let Ok(chosen) = all.choose(wish, |t| Ok::<_, Infallible>(Some(t / 10).filter(|s| *s > 0)));
    chosen
}

#[test]
fn each_wish_gets_its_seq_or_its_reason() {
    let near = |before, after| Nearest { before, after };
    assert_eq!(choose(false, &[], Wish::Latest), Ok(60));
    assert_eq!(choose(true, &[], Wish::Latest), Ok(49));
    assert_eq!(choose(false, &[], Wish::Seq(15)), Ok(15));
    assert_eq!(choose(false, &[], Wish::Time(345)), Ok(34));
    let first = WishError::BeforeFirst { nearest: near(None, Some(15)) };
    assert_eq!(choose(false, &[], Wish::Seq(5)), Err(first));
    assert_eq!(choose(false, &[], Wish::Time(3)), Err(first));
    let window = WishError::BeforeWindow { first_seq: 15, first_time: 150, nearest: near(Some(12), Some(15)) };
    assert_eq!(choose(false, &[12], Wish::Seq(14)), Err(window));
    assert_eq!(choose(false, &[12], Wish::Seq(12)), Ok(12), "a kept point is beyond the window");
    let gap = WishError::InGap { seq: 25, from_time: 200, to_time: Some(300), nearest: near(Some(19), Some(30)) };
    assert_eq!(choose(false, &[], Wish::Time(251)), Err(gap));
    assert_eq!(
        gap.to_string(),
        "seq 25 lies in a gap of the history, from 1970-01-01T00:00:00Z to 1970-01-01T00:00:00Z; \
         the nearest that can be chosen are @19 and @30"
    );
    let open = WishError::InGap { seq: 55, from_time: 500, to_time: None, nearest: near(Some(49), None) };
    assert_eq!(choose(true, &[], Wish::Seq(55)), Err(open));
    let future = WishError::Future { last_seq: 60, last_time: 600, nearest: near(Some(60), None) };
    assert_eq!(choose(false, &[], Wish::Seq(61)), Err(future));
    assert_eq!(choose(false, &[], Wish::Time(601)), Err(future));
}

#[test]
fn a_time_since_the_last_write_is_one_if_nothing_is_known_to_be_newer() {
    for (open, at, wanted) in [(false, 700, Some(60)), (false, 701, None), (true, 650, None)] {
        let (gaps, window, _) = choices(open, &[]);
        let all = Choices { window, until: 700, gaps: &gaps, kept: &[] };
        let Ok(chosen) = all.choose(Wish::Time(at), |t| Ok::<_, Infallible>(Some((t / 10).min(60))));
        assert_eq!(chosen.ok(), wanted, "{at}");
    }
}

#[test]
fn nothing_can_be_chosen_before_the_first_copy_is_complete() {
    let gaps = [Gap { from_seq: 1, from_time: 10, to_seq: None, to_time: 0, initial: true }];
    let window = Window { first_seq: 1, first_time: 10, last_seq: 7, last_time: 70 };
    let all = Choices { window, until: window.last_time, gaps: &gaps, kept: &[] };
    for wish in [Wish::Latest, Wish::Seq(3), Wish::Time(30)] {
        let Ok(chosen) = all.choose(wish, |t| Ok::<_, Infallible>(Some(t / 10)));
        assert_eq!(chosen, Err(WishError::BeforeFirst { nearest: Nearest::default() }));
    }
}

proptest! {
    #[test]
    fn a_seq_inside_a_gap_is_never_chosen_and_the_nearest_are_the_nearest(
        seq in 0u64..70, open: bool, kept in proptest::collection::vec(1u64..60, 0..4),
    ) {
        let (gaps, window, kept) = choices(open, &kept);
        let all = Choices { window, until: window.last_time, gaps: &gaps, kept: &kept };
        let valid = |s: u64| (1..=60).contains(&s)
            && (s >= 15 || kept.contains(&s))
            && !(1..10).contains(&s) && !(20..30).contains(&s) && !(open && s >= 50);
        prop_assert_eq!(all.is_valid(seq), valid(seq));
        prop_assert_eq!(all.at_or_before(seq), (0..=seq).rev().find(|s| valid(*s)));
        prop_assert_eq!(all.at_or_after(seq), (seq..100).find(|s| valid(*s)));
        prop_assert_eq!(choose(open, &kept, Wish::Seq(seq)).ok(), Some(seq).filter(|s| valid(*s)));
    }
}

#[test]
fn nothing_before_the_initial_sync_is_valid_wherever_its_seqs_begin() {
    let gap = |to_seq| Gap { from_seq: 13, from_time: 5, to_seq, to_time: 6, initial: true };
    let window = Window { first_seq: 0, first_time: 0, last_seq: 30, last_time: 9 };
    for (to, newest, oldest) in [(None, None, None), (Some(20), Some(30), Some(20))] {
        let gaps = [gap(to)];
        let all = Choices { window, until: window.last_time, gaps: &gaps, kept: &[2] };
        assert!((1..13).all(|seq| !all.is_valid(seq)));
        assert_eq!((all.at_or_before(u64::MAX), all.at_or_after(1)), (newest, oldest));
    }
}

use super::*;
use afterimage_mgmt::protocol::{GapInfo, PointInfo, Window};

#[test]
fn a_table_is_as_wide_as_its_cells() {
    let rows = vec![row(["A", "B"]), row(["long cell", "x"]), row(["ä", "y"])];
    assert_eq!(table(&rows), "A          B\nlong cell  x\nä          y\n");
}

#[test]
fn points_say_what_can_be_chosen() {
    let at = |s: u64| Time(s * 1_000_000_000);
    let list = PointList {
        volume: "d".to_owned(),
        window: Some(Window { first_seq: 3, first_time: at(3), last_seq: 90, last_time: at(90) }),
        points: vec![PointInfo { name: "p".to_owned(), seq: 9, time: at(9), auto: true, pinned: false, app: None }],
        gaps: vec![GapInfo { from_seq: 20, from_time: at(20), to_seq: Some(30), to_time: Some(at(30)) }],
    };
    let text = points_text(&list, at(69));
    assert!(text.contains("any write from @3 (1970-01-01T00:00:03.000Z) to @90"), "{text}");
    assert!(text.contains("except the gap that begins at @20") && text.contains("before @30"), "{text}");
    assert!(text.contains("p      @9     1970-01-01T00:00:09.000Z  1m   policy"), "{text}");
    let none = PointList { window: None, points: vec![], gaps: vec![], ..list };
    assert!(points_text(&none, at(0)).starts_with("nothing can be chosen yet"));
}

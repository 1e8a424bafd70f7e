use super::*;
use proptest::prelude::*;

fn claim(id: u64, start: u64, end: u64) -> Claim {
    Claim { id, start, end, dirty: false }
}

/// The same by a stupid list: who was registered before and overlaps.
#[derive(Default)]
struct Model {
    flying: Vec<(Claim, bool)>,
}

proptest! {
    #[test]
    fn it_grants_what_the_list_grants(steps in prop::collection::vec((0u64..40, 1u64..20, 0u8..3), 1..200)) {
        let ranges = Ranges::new();
        let mailbox = Arc::new(Mailbox::new().unwrap());
        let mut model = Model::default();
        for (id, (at, len, what)) in (1u64..).zip(steps) {
            let unit = 1 << (REGION_SHIFT - 1);
            if what != 0 {
                let end = if len == 19 { unit * 1000 } else { (at + len) * unit };
                let c = claim(id, at * unit, end);
                let free = !model.flying.iter().any(|(o, _)| o.overlaps(&c));
                let granted = ranges.lock(c.start, c.end).register(c, &mailbox, usize::try_from(id).unwrap());
                prop_assert_eq!(granted, free);
                model.flying.push((c, free));
            } else if let Some(i) = model.flying.iter().position(|(_, granted)| *granted) {
                let (c, _) = model.flying.remove(i);
                ranges.release(&c);
            }
            let mut mail = Vec::new();
            mailbox.take(&mut mail);
            let mut expected: Vec<Mail> = Vec::new();
            for i in 0..model.flying.len() {
                let c = model.flying[i].0;
                if !model.flying[i].1 && !model.flying[..i].iter().any(|(o, _)| o.overlaps(&c)) {
                    model.flying[i].1 = true;
                    expected.push(Mail::Granted(usize::try_from(c.id).unwrap()));
                }
            }
            mail.sort_by_key(|m| format!("{m:?}"));
            expected.sort_by_key(|m| format!("{m:?}"));
            prop_assert_eq!(mail, expected);
        }
        while let Some(i) = model.flying.iter().position(|(_, granted)| *granted) {
            ranges.release(&model.flying.remove(i).0);
            for f in &mut model.flying {
                f.1 = true;
            }
        }
        prop_assert!(ranges.is_empty());
    }
}

#[test]
fn a_dirty_write_behind_is_seen_and_one_in_front_is_not() {
    let ranges = Ranges::new();
    let mailbox = Arc::new(Mailbox::new().unwrap());
    let (a, mut b) = (claim(1, 0, 100), claim(2, 50, 60));
    b.dirty = true;
    assert!(ranges.lock(0, 100).register(a, &mailbox, 0));
    assert!(!ranges.lock(0, 100).dirty_behind(&a));
    assert!(!ranges.lock(50, 60).register(b, &mailbox, 1));
    assert!(ranges.lock(0, 100).dirty_behind(&a));
    ranges.release(&a);
    let c = claim(3, 0, 100);
    assert!(!ranges.lock(0, 100).register(c, &mailbox, 2));
    assert!(!ranges.lock(0, 100).dirty_behind(&c));
}

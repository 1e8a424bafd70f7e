//! What to do with each slot of a ring that a process left behind: a table, and a pure function over it.
//!
//! A ring's window is one lap of slots from the tail on. Each slot is first judged alone ([`Observed`], by the
//! `survey` module); what happens to it then depends on that and on whether any later slot of the window holds a sound
//! record.

/// A slot, judged alone, for the seq that it should hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Observed {
    /// A whole record, and the real disk has it.
    Done,
    /// A whole record; nobody has said that the real disk has it.
    Undone,
    /// No record: what an unused slot, an earlier lap or a writer killed before it published leaves.
    Absent,
    /// What no writer, killed or not, leaves: the file was damaged.
    Damaged,
}

/// What happens to a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// A finished write: keep it.
    Keep,
    /// Perhaps not on the disk, never acknowledged: keep it, write it to the disk again, mark it done.
    Redo,
    /// A writer died before it published; the write never reached the disk and nobody was told: make it a Void.
    Void,
    /// The head is here.
    End,
    /// The file is damaged: refuse the ring, name the seq.
    Refuse,
}

/// One row: slot, whether a later slot holds a record (`None`: either), action.
pub(crate) type Row = (Observed, Option<bool>, Action);

/// The table. Every input matches exactly one row (a test says so).
pub(crate) const TABLE: [Row; 5] = [
    (Observed::Done, None, Action::Keep),
    (Observed::Undone, None, Action::Redo),
    (Observed::Absent, Some(true), Action::Void),
    (Observed::Absent, Some(false), Action::End),
    (Observed::Damaged, None, Action::Refuse),
];

fn matches(row: &Row, slot: Observed, later: bool) -> bool {
    row.0 == slot && row.1.is_none_or(|l| l == later)
}

fn action(slot: Observed, later: bool) -> Action {
    TABLE.iter().find(|row| matches(row, slot, later)).map_or(Action::Refuse, |row| row.2)
}

/// The actions for the slots from the tail to the head (`End` not included), or the index of the first damaged slot
/// of the whole window: a damaged slot refuses the ring wherever it lies, since it may have been the newest record.
pub(crate) fn plan(window: &[Observed]) -> Result<Vec<Action>, usize> {
    if let Some(damaged) = window.iter().position(|o| *o == Observed::Damaged) {
        return Err(damaged);
    }
    let last = window.iter().rposition(|o| matches!(o, Observed::Done | Observed::Undone));
    let actions = window.iter().enumerate().map(|(i, o)| action(*o, last.is_some_and(|l| l > i)));
    Ok(actions.take_while(|a| *a != Action::End).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Observed; 4] = [Observed::Done, Observed::Undone, Observed::Absent, Observed::Damaged];

    #[test]
    fn every_input_matches_exactly_one_row() {
        for slot in ALL {
            for later in [false, true] {
                assert_eq!(TABLE.iter().filter(|r| matches(r, slot, later)).count(), 1, "{slot:?} {later}");
            }
        }
        let used = |row: &Row| ALL.iter().any(|s| [false, true].iter().any(|l| matches(row, *s, *l)));
        assert!(TABLE.iter().all(used), "no row is idle");
    }

    #[test]
    fn every_window_of_six_slots() {
        for code in 0..4usize.pow(6) {
            let window: Vec<_> = (0..6).map(|i| ALL[code / 4usize.pow(i) % 4]).collect();
            if window.contains(&Observed::Damaged) {
                assert_eq!(window[plan(&window).unwrap_err()], Observed::Damaged);
                continue;
            }
            let actions = plan(&window).unwrap();
            let sound = |o: &Observed| *o != Observed::Absent;
            assert_eq!(actions.len(), window.iter().rposition(sound).map_or(0, |l| l + 1), "{window:?}");
            for (slot, action) in window.iter().zip(&actions) {
                let expected = match slot {
                    Observed::Done => Action::Keep,
                    Observed::Undone => Action::Redo,
                    _ => Action::Void,
                };
                assert_eq!(*action, expected, "{window:?}");
            }
        }
    }
}

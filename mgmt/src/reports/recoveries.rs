//! What an appliance's host says of failovers, tests and plans, and what of it is news.

use crate::catalogue::{NewEvent, RecoveryRow, Severity};
use crate::failover::summary::{Recovery, Stage, What};

/// Of one appliance, in one report.
pub(crate) const MOST: usize = 256;
/// Longest text of each field, in characters.
const MAX_TEXT: usize = 1000;

/// What a member sent, in bounds.
fn bounded(r: &Recovery) -> Recovery {
    let cut = |t: &str| t.chars().filter(|c| !c.is_control()).take(MAX_TEXT).collect::<String>();
    let opt = |t: &Option<String>| t.as_deref().map(cut);
    Recovery {
        id: cut(&r.id),
        subject: cut(&r.subject),
        outcome: opt(&r.outcome),
        trouble: opt(&r.trouble),
        waits_for: opt(&r.waits_for),
        part_of: opt(&r.part_of),
        ..r.clone()
    }
}

/// What there is to tell of one that was as `old`: how much it matters, a word, and the rest of the sentence.
fn news(old: Option<&Recovery>, new: &Recovery) -> Option<(Severity, &'static str, String)> {
    let is_failover = matches!(new.what, What::Failover | What::FailoverPlan);
    let why = new.trouble.as_ref().map_or_else(String::new, |t| format!(": {t}"));
    let was = old.map(|o| o.stage);
    if new.has_ended() {
        let outcome = new.outcome.as_deref().unwrap_or("ended");
        let severity = match outcome {
            "failed" => Severity::Error,
            "rolled-back" => Severity::Warning,
            _ => Severity::Info,
        };
        return (was != Some(Stage::Ended)).then(|| (severity, "recovery-ended", format!("has ended: {outcome}{why}")));
    }
    if new.committed && old.is_none_or(|o| !o.committed) {
        return Some((Severity::Info, "recovery-committed", "was committed".to_owned()));
    }
    if let Some(what) = new.waits_for.as_ref().filter(|w| old.is_none_or(|o| o.waits_for.as_ref() != Some(w))) {
        let until = new.until.map_or_else(String::new, |t| format!(", until {}", t.short()));
        return Some((Severity::Warning, "recovery-waits", format!("waits for a hand{until}: {what}")));
    }
    if was == Some(new.stage) {
        let is_news = new.trouble.is_some() && old.is_none_or(|o| o.trouble != new.trouble);
        return is_news.then(|| (Severity::Warning, "recovery-trouble", format!("has trouble{why}")));
    }
    match new.stage {
        Stage::Starting if old.is_none() => {
            let severity = if is_failover { Severity::Warning } else { Severity::Info };
            Some((severity, "recovery-begun", "has begun".to_owned()))
        }
        Stage::Starting => Some((Severity::Info, "recovery-starting", "starts again".to_owned())),
        Stage::Running => Some((Severity::Info, "recovery-running", "runs".to_owned())),
        Stage::Down => Some((Severity::Warning, "recovery-down", format!("is down{why}"))),
        Stage::Ending => Some((Severity::Info, "recovery-ending", format!("is being removed{why}"))),
        Stage::Ended | Stage::Other => None,
    }
}

/// Which lines of the catalogue change with a report, and what there is to tell.
pub(crate) fn changes(
    (id, name): (&str, &str),
    known: &[RecoveryRow],
    reported: &[Recovery],
    now: i64,
) -> (Vec<RecoveryRow>, Vec<NewEvent>) {
    let (mut rows, mut events) = (Vec::new(), Vec::new());
    for new in reported.iter().take(MOST).map(bounded).filter(|r| !r.id.is_empty()) {
        let old = known.iter().find(|row| row.recovery.id == new.id).map(|row| &row.recovery);
        if old == Some(&new) {
            continue;
        }
        if let Some((severity, kind, text)) = news(old, &new) {
            let text = format!("{} {} ({} at {name}) {text}", new.what.text(), new.subject, new.id);
            events.push(NewEvent::new(severity, kind, &format!("recovery {}", new.id), &text));
        }
        rows.push(RecoveryRow { appliance: id.to_owned(), recovery: new, changed: now });
    }
    (rows, events)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::Catalogue;
    use crate::units::Time;
    use afterimage_trust::Role;
    use afterimage_trust::identity::Identity;
    use uuid::Uuid;

    fn recovery(what: What, stage: Stage) -> Recovery {
        Recovery {
            id: "20260301-1".to_owned(),
            what,
            subject: "web".to_owned(),
            stage,
            outcome: None,
            trouble: None,
            committed: false,
            waits_for: None,
            part_of: None,
            created: Time(1),
            until: None,
        }
    }

    #[test]
    fn each_change_is_told_once_and_survives_what_is_not_seen() {
        let dir = tempfile::tempdir().unwrap();
        let catalogue = Catalogue::open(&dir.path().join("c.sqlite")).unwrap();
        let vault = Uuid::new_v4();
        let who = Identity { role: Role::Appliance, id: vault, vault };
        catalogue
            .change("test", |change| {
                change.enrol(&who, "vault", "h")?;
                change.log("x", "y", "")
            })
            .unwrap();
        let id = vault.to_string();
        let step = |reported: &[Recovery], at: i64| {
            let known = catalogue.recoveries(Some(&id), 1000).unwrap();
            let (rows, events) = changes((&id, "vault"), &known, reported, at);
            catalogue.record(|book| rows.iter().try_for_each(|row| book.recovery(row))).unwrap();
            events.iter().map(|e| format!("{} {}", e.severity, e.kind)).collect::<Vec<_>>()
        };
        let begun = recovery(What::Failover, Stage::Starting);
        assert_eq!(step(std::slice::from_ref(&begun), 1), ["warning recovery-begun"]);
        assert_eq!(step(std::slice::from_ref(&begun), 2), [""; 0]);
        let waits = Recovery { stage: Stage::Running, waits_for: Some("commit".to_owned()), ..begun.clone() };
        assert_eq!(step(std::slice::from_ref(&waits), 3), ["warning recovery-waits"]);
        let committed = Recovery { waits_for: None, committed: true, ..waits.clone() };
        assert_eq!(step(std::slice::from_ref(&committed), 4), ["info recovery-committed"]);
        let down = Recovery { stage: Stage::Down, trouble: Some("it was shut down\n".to_owned()), ..committed.clone() };
        assert_eq!(step(std::slice::from_ref(&down), 5), ["warning recovery-down"]);
        assert_eq!(
            step(&[Recovery { trouble: Some("again".to_owned()), ..down.clone() }], 6),
            ["warning recovery-trouble"]
        );
        // Its report was removed there: what was seen stays.
        assert_eq!(step(&[], 7), [""; 0]);
        let seen = catalogue.recoveries(None, 10).unwrap().remove(0);
        assert_eq!((seen.recovery.stage, seen.changed), (Stage::Down, 6));
        let ended = Recovery { stage: Stage::Ended, outcome: Some("failed".to_owned()), ..down };
        assert_eq!(step(std::slice::from_ref(&ended), 8), ["error recovery-ended"]);
        assert_eq!(step(&[ended], 9), [""; 0]);
        // One of which nothing was seen before its end.
        let passed = Recovery {
            id: "other".to_owned(),
            outcome: Some("passed".to_owned()),
            ..recovery(What::TestPlan, Stage::Ended)
        };
        assert_eq!(step(&[passed], 10), ["info recovery-ended"]);
        assert_eq!(catalogue.recoveries(None, 10).unwrap()[0].recovery.id, "other", "the newest first");
    }
}

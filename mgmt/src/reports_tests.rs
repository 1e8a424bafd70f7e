use super::*;
use crate::catalogue::Catalogue;

fn volume(id: &str, state: State) -> VolumeStatus {
    let json = serde_json::json!({
        "name": format!("v{id}"), "id": id, "path": "/x", "uri": [], "size": 1024, "state": state, "reason": null,
        "connected": true, "seq_acked": 7, "seq_durable": 5, "lag_seconds": 0.25, "lag_bytes": 4096, "ring_bytes": 8,
        "ring_used": 4, "dirty_bytes": 3, "points": 1, "stored_bytes": 9, "logical_bytes": 10, "first_seq": null,
        "first_time": null, "durable_time": null
    });
    serde_json::from_value(json).unwrap()
}

#[test]
fn what_changed_is_told_once_and_what_did_not_never() {
    let dir = tempfile::tempdir().unwrap();
    let catalogue = Catalogue::open(&dir.path().join("c.sqlite")).unwrap();
    let who = Identity { role: Role::Agent, id: Uuid::new_v4(), vault: Uuid::new_v4() };
    let vault = Identity { role: Role::Appliance, id: who.vault, vault: who.vault };
    catalogue
        .change("test", |change| {
            change.enrol(&vault, "vault", "h")?;
            change.enrol(&who, "web", "h")?;
            change.log("x", "y", "")
        })
        .unwrap();
    let agent = who.id.to_string();
    let step = |now_there: &[VolumeStatus], at: i64| {
        let known = catalogue.volumes_of(&agent).unwrap();
        let (rows, events) = changes(&agent, "web", &known, now_there, at);
        catalogue.record(|book| rows.iter().try_for_each(|row| book.volume(row))).unwrap();
        let kinds: Vec<String> = events.iter().map(|e| format!("{} {} {}", e.severity, e.kind, e.object)).collect();
        (rows.len(), kinds)
    };
    let (a, b) = (volume("a", State::InitialSync), volume("b", State::Live));
    let told = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
    assert_eq!(
        step(&[a.clone(), b.clone()], 10),
        (2, told(&["info volume-state volume web/va", "info volume-state volume web/vb"]))
    );
    assert_eq!(step(&[a.clone(), b.clone()], 20), (0, vec![]));
    // Figures that change all the time are no change.
    let busy = VolumeStatus { lag_bytes: 1, seq_acked: 99, ..b.clone() };
    assert_eq!(step(&[a.clone(), busy], 30), (0, vec![]));
    let dirty = VolumeStatus { state: State::Dirty, ..b.clone() };
    assert_eq!(step(&[a.clone(), dirty], 40), (1, told(&["warning volume-state volume web/vb"])));
    assert_eq!(catalogue.volumes_of(&agent).unwrap()[1].since, 40);
    let larger = VolumeStatus { size: 2048, ..a };
    assert_eq!(
        step(std::slice::from_ref(&larger), 50),
        (2, told(&["info volume-size volume web/va", "warning volume-gone volume web/vb"]))
    );
    assert_eq!(step(std::slice::from_ref(&larger), 60), (0, vec![]));
    // One that comes back is news again, also in the state that it had.
    let back = VolumeStatus { state: State::Dirty, ..b };
    assert_eq!(step(&[larger, back], 70), (1, told(&["warning volume-state volume web/vb"])));
}

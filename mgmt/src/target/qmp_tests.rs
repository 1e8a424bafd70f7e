use super::*;
use std::io::{BufRead, BufReader, Write};

const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}}, "capabilities": ["oob"]}}"#;
const LIMIT: Duration = Duration::from_millis(300);

/// A QEMU that says these lines, each after a command; the first one at once.
fn speaking(lines: &'static [&'static str]) -> UnixStream {
    let (ours, theirs) = UnixStream::pair().unwrap();
    thread::spawn(move || {
        let mut commands = BufReader::new(theirs.try_clone().unwrap()).lines();
        for line in lines {
            (&theirs).write_all(format!("{line}\r\n").as_bytes()).unwrap();
            let _ = commands.next();
        }
        // Silent, until the client has gone.
        commands.for_each(drop);
    });
    ours
}

#[test]
fn events_between_answers_are_kept() {
    let mut qmp = Qmp::over(
        speaking(&[
            GREETING,
            r#"{"return": {}, "id": 1}"#,
            "{\"event\": \"RESUME\", \"data\": {}}\n{\"return\": {\"status\": \"running\"}, \"id\": 2}",
            r#"{"error": {"class": "GenericError", "desc": "no screen"}, "id": 3}"#,
            r#"{"return": [{"stats": {"rd_bytes": 512}}, {"stats": {"rd_bytes": 4096}}, {}], "id": 4}"#,
        ]),
        LIMIT,
    )
    .unwrap();
    assert_eq!(qmp.status().unwrap(), "running");
    assert_eq!(qmp.event().unwrap().unwrap().name, "RESUME");
    assert_eq!(qmp.event().unwrap(), None);
    let refused = qmp.screenshot("x").unwrap_err();
    assert!(matches!(&refused, QmpError::Refused { .. }) && refused.to_string().contains("no screen"), "{refused}");
    assert_eq!(qmp.bytes_read().unwrap(), 4608, "a refusal is no end");
}

#[test]
fn whoever_is_no_qemu_is_refused() {
    for greeting in ["{}", "[]", r#"{"QMP": {"version": {"qemu": {"major": "7"}}}}"#, "7"] {
        let lines: &'static [&'static str] = vec![&*greeting.to_owned().leak()].leak();
        assert!(matches!(Qmp::over(speaking(lines), LIMIT), Err(QmpError::Protocol(_))), "{greeting}");
    }
    assert!(matches!(Qmp::over(speaking(&["HTTP/1.1 200"]), LIMIT), Err(QmpError::Closed)));
    assert!(matches!(Qmp::over(speaking(&[]), LIMIT), Err(QmpError::Late { .. })));
}

#[test]
fn wrong_ids_silence_and_ends_are_errors() {
    let begin = |answer: &'static str| {
        let lines: &'static [&'static str] = vec![GREETING, r#"{"return": {}, "id": 1}"#, answer].leak();
        Qmp::over(speaking(lines), LIMIT).unwrap()
    };
    assert!(matches!(begin(r#"{"return": {}, "id": 1}"#).resume(), Err(QmpError::Protocol(_))));
    assert!(matches!(begin(r#"{"id": 2}"#).resume(), Err(QmpError::Protocol(_))));
    assert!(matches!(begin("nonsense").resume(), Err(QmpError::Closed)));
    assert!(matches!(begin(r#"{"event": "X"}"#).resume(), Err(QmpError::Late { .. })));
}

#[test]
fn a_flood_of_events_takes_no_memory() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let flood = thread::spawn(move || {
        let mut lines = BufReader::new(theirs.try_clone().unwrap()).lines();
        theirs.write_all(format!("{GREETING}\n").as_bytes()).unwrap();
        lines.next();
        for n in 0..10 * MAX_EVENTS {
            theirs.write_all(format!("{{\"event\": \"E{n}\"}}\n").as_bytes()).unwrap();
        }
        theirs.write_all(b"{\"return\": {}, \"id\": 1}\n").unwrap();
        lines.for_each(drop);
    });
    let mut qmp = Qmp::over(ours, Duration::from_secs(60)).unwrap();
    assert_eq!(qmp.events.len(), MAX_EVENTS);
    assert_eq!(qmp.event().unwrap().unwrap().name, format!("E{}", 9 * MAX_EVENTS));
    drop(qmp);
    flood.join().unwrap();
}

#[test]
fn the_table_of_ports_is_read() {
    let found = forward("  TCP[HOST_FORWARD]   8       127.0.0.1 39677    192.168.7.15    22     0     0");
    assert_eq!(found, Some(Forward { here: "127.0.0.1:39677".parse().unwrap(), guest: 22 }));
    for other in ["Hub -1 (net0):", "", "  TCP[HOST_FORWARD]  8 127.0.0.1 99999 1.2.3.4 22", "TCP[ESTABLISHED] 9 1.1.1.1 5 1.1.1.1 6"] {
        assert_eq!(forward(other), None, "{other}");
    }
}

use super::*;
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixListener;
use std::thread::{self, JoinHandle};

const LONG: Duration = Duration::from_secs(30);
const SHORT: Duration = Duration::from_millis(200);

/// A server that takes one connection and does with it what it is told.
fn serve(f: impl FnOnce(BufReader<UnixStream>) + Send + 'static) -> (tempfile::TempDir, PathBuf, JoinHandle<()>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let thread = thread::spawn(move || f(BufReader::new(listener.accept().unwrap().0)));
    (dir, path, thread)
}

fn read(from: &mut BufReader<UnixStream>) -> Value {
    let mut line = Vec::new();
    from.read_until(b'\n', &mut line).unwrap();
    let line = line.strip_prefix(&[SENTINEL]).unwrap_or(&line);
    serde_json::from_slice(line).unwrap_or(Value::Null)
}

fn write(to: &mut BufReader<UnixStream>, bytes: &[u8]) {
    to.get_mut().write_all(bytes).unwrap();
}

/// Answers `guest-sync-delimited`.
fn synchronise(with: &mut BufReader<UnixStream>, before: &[u8]) {
    let asked = read(with);
    assert_eq!(asked["execute"], "guest-sync-delimited");
    write(with, before);
    write(with, &[SENTINEL]);
    write(with, format!("{{\"return\": {}}}\n", asked["arguments"]["id"]).as_bytes());
}

#[test]
fn what_an_earlier_client_left_is_dropped() {
    let (_dir, path, server) = serve(|mut s| {
        synchronise(&mut s, b"{\"return\": 3}\n{\"ret\n\xff{\"return\": 12345}\n\xff\xff no json\n{\"x");
        assert_eq!(read(&mut s), json!({"execute": "guest-fsfreeze-freeze"}));
        write(&mut s, b"{\"return\": 2}\r\n");
        assert_eq!(read(&mut s)["arguments"], json!({"a": 1}));
        write(&mut s, b"{\"error\": {\"class\": \"GenericError\", \"desc\": \"it is so\"}}\n");
    });
    let mut agent = GuestAgent::connect(&path, LONG).unwrap();
    assert_eq!(agent.call("guest-fsfreeze-freeze", Value::Null, LONG).unwrap(), json!(2));
    let refused = agent.call("x", json!({"a": 1}), LONG).unwrap_err();
    assert_eq!(refused.to_string(), "x was refused: it is so");
    assert!(matches!(refused, QemuError::Refused { class, .. } if class == "GenericError"));
    server.join().unwrap();
}

#[test]
fn an_answer_that_comes_late_is_not_taken_for_the_next_one() {
    let (_dir, path, server) = serve(|mut s| {
        synchronise(&mut s, b"");
        assert_eq!(read(&mut s)["execute"], "slow");
        synchronise(&mut s, b"{\"return\": \"late\"}\n");
        assert_eq!(read(&mut s)["execute"], "quick");
        write(&mut s, b"{\"return\": \"in time\"}\n");
    });
    let mut agent = GuestAgent::connect(&path, LONG).unwrap();
    assert!(matches!(agent.call("slow", Value::Null, SHORT), Err(QemuError::Time { .. })));
    assert_eq!(agent.call("quick", Value::Null, LONG).unwrap(), json!("in time"));
    server.join().unwrap();
}

#[test]
fn who_does_not_answer_or_talks_nonsense_ends_in_an_error() {
    let (_dir, path, server) = serve(|mut s| {
        read(&mut s);
        // Dribbling does not buy time.
        while s.get_mut().write_all(b"x").is_ok() {
            thread::sleep(Duration::from_millis(20));
        }
    });
    assert!(matches!(GuestAgent::connect(&path, SHORT), Err(QemuError::Time { .. })));
    server.join().unwrap();
    let (_dir, path, server) = serve(|mut s| {
        let junk = vec![b'x'; 1 << 20];
        while s.get_mut().write_all(&junk).is_ok() {}
    });
    assert!(matches!(GuestAgent::connect(&path, LONG), Err(QemuError::Protocol(..))), "memory is bounded");
    server.join().unwrap();
    let (dir, path, server) = serve(drop);
    assert!(GuestAgent::connect(&path, LONG).is_err());
    server.join().unwrap();
    let gone = GuestAgent::connect(&dir.path().join("not there"), LONG).unwrap_err().to_string();
    assert!(gone.contains("not there"), "{gone}");
}

#[test]
fn events_do_not_get_into_answers() {
    let (_dir, path, server) = serve(|mut s| {
        write(&mut s, b"{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n");
        let asked = read(&mut s);
        assert_eq!(asked["execute"], "qmp_capabilities");
        write(&mut s, format!("{{\"event\": \"A\"}}\n{{\"return\": {{}}, \"id\": {}}}\n", asked["id"]).as_bytes());
        let asked = read(&mut s);
        let late = json!({"return": "of another", "id": 77});
        write(&mut s, format!("{late}\n{{\"event\": \"B\"}}\n{{\"return\": 5, \"id\": {}}}\n", asked["id"]).as_bytes());
        write(&mut s, b"{\"event\": \"C\"}\n{\"event\": \"D\", \"data\": 1}\n");
    });
    let mut qmp = Qmp::connect(&path, LONG).unwrap();
    assert_eq!(qmp.call("query-x", json!({}), LONG).unwrap(), json!(5));
    assert_eq!(qmp.wait_for("D", LONG).unwrap()["data"], json!(1));
    assert_eq!(qmp.wait_for("B", LONG).unwrap(), json!({"event": "B"}));
    let rest: Vec<Value> = qmp.events().into_iter().map(|e| e["event"].clone()).collect();
    assert_eq!(rest, [json!("A"), json!("C")]);
    server.join().unwrap();
    let (_dir, path, server) = serve(|mut s| write(&mut s, b"{\"hello\": 1}\n"));
    assert!(matches!(Qmp::connect(&path, LONG), Err(QemuError::Protocol(..))));
    server.join().unwrap();
}

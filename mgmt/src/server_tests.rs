use super::*;
use crate::client::{ClientError, ControlClient};
use crate::protocol::{
    Access, CompareBegun, GapInfo, PointInfo, PointList, Role, SizeChange, State, Status, VolumeStatus, Window,
};
use crate::units::Time;
use crate::when::When;
use std::io::{BufRead, BufReader, Write};
use std::sync::atomic::AtomicUsize;
use std::time::Instant;

/// One volume "d" with points; an opened export greets and echoes.
#[derive(Default)]
struct Toy {
    opened: Arc<AtomicUsize>,
}

struct ToyOpened(Arc<AtomicUsize>);

impl Drop for ToyOpened {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Opened for ToyOpened {
    fn serve_stream(self: Box<Self>, mut stream: UnixStream) {
        stream.write_all(b"GREETING").unwrap();
        let mut bytes = Vec::new();
        drop(stream.read_to_end(&mut bytes));
    }

    fn serve_listener(self: Box<Self>, listener: UnixListener) -> Result<Box<dyn Send>, Failure> {
        thread::spawn(move || listener.accept().map(|(mut s, _)| s.write_all(b"GREETING")));
        Ok(self)
    }
}

fn toy_volume() -> VolumeStatus {
    VolumeStatus {
        name: "d".to_owned(),
        id: "4f0e7cda-0000-4000-8000-000000000000".to_owned(),
        path: "/disk".to_owned(),
        uri: vec!["nbd+unix:///d?socket=/s".to_owned()],
        size: 1 << 20,
        state: State::Live,
        state_since: None,
        reason: None,
        connected: true,
        seq_acked: 9,
        seq_durable: 8,
        lag_seconds: 0.25,
        lag_bytes: 4096,
        ring_bytes: 64 << 20,
        ring_used: 4096,
        dirty_bytes: 0,
        sync: None,
        gap: None,
        gaps: 0,
        points: 1,
        stored_bytes: 1,
        logical_bytes: 2,
        first_seq: Some(3),
        first_time: Some(Time(3)),
        durable_time: Some(Time(8)),
        devices: Vec::new(),
        epoch: 0,
        fence: None,
    }
}

fn known(volume: &str) -> Result<(), Failure> {
    if volume == "d" { Ok(()) } else { Err(Failure::new(Code::NotFound, format!("there is no volume '{volume}'"))) }
}

impl Site for Toy {
    fn status(&self) -> Result<Status, Failure> {
        Ok(Status {
            v: VERSION,
            version: "0".to_owned(),
            pid: 1,
            data: "/data".to_owned(),
            started: Time(0),
            time: Time(1),
            role: Role::All,
            appliance: None,
            listen: Vec::new(),
            window_seconds: 86_400,
            store: None,
            recoveries: Vec::new(),
            clients: 0,
            volumes: vec![toy_volume()],
        })
    }

    fn points(&self, volume: &str) -> Result<PointList, Failure> {
        known(volume)?;
        Ok(PointList {
            volume: volume.to_owned(),
            window: Some(Window { first_seq: 3, first_time: Time(3), last_seq: 8, last_time: Time(8) }),
            points: vec![],
            gaps: vec![GapInfo { from_seq: 1, from_time: Time(1), to_seq: None, to_time: None }],
        })
    }

    fn create_point(&self, volume: &str, name: &str) -> Result<PointInfo, Failure> {
        known(volume)?;
        Ok(PointInfo { name: name.to_owned(), seq: 10, time: Time(10), auto: false, pinned: false, app: None })
    }

    fn resize_volume(&self, volume: &str, size: Option<u64>) -> Result<SizeChange, Failure> {
        known(volume)?;
        Ok(SizeChange {
            volume: volume.to_owned(),
            from: 1 << 20,
            to: size.unwrap_or(2 << 20),
            gap: false,
            devices: Vec::new(),
        })
    }

    fn compare_volume(&self, volume: &str) -> Result<CompareBegun, Failure> {
        known(volume)?;
        Ok(CompareBegun { volume: volume.to_owned(), bytes: 1 << 20 })
    }

    fn resolve(&self, volume: &str, _at: &When) -> Result<Position, Failure> {
        known(volume)?;
        Ok(Position { volume: volume.to_owned(), seq: 8, time: None, size: 1 << 20 })
    }

    fn diff(&self, _: (&str, &When), (volume, _): (&str, &When)) -> Result<(DiffEnd, Vec<(u64, u64)>), Failure> {
        known(volume)?;
        let extents = (0..10_000u64).map(|i| (i * 8192, 4096)).collect();
        Ok((DiffEnd { base: None, volume: volume.to_owned(), from: 3, to: 8 }, extents))
    }

    fn open(&self, volume: &str, at: &When, _access: Access) -> Result<(Position, Box<dyn Opened>), Failure> {
        let position = self.resolve(volume, at)?;
        self.opened.fetch_add(1, Ordering::SeqCst);
        Ok((position, Box::new(ToyOpened(Arc::clone(&self.opened)))))
    }
}

fn start() -> (tempfile::TempDir, ControlServer, Arc<AtomicUsize>) {
    let dir = tempfile::tempdir().unwrap();
    let toy = Toy::default();
    let opened = Arc::clone(&toy.opened);
    let server = ControlServer::start(&dir.path().join("control.sock"), Arc::new(toy)).unwrap();
    (dir, server, opened)
}

fn becomes_zero(count: &AtomicUsize) {
    let start = Instant::now();
    while count.load(Ordering::SeqCst) != 0 {
        assert!(start.elapsed() < Duration::from_secs(60), "what was opened is never closed");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_client_gets_its_answers_one_after_the_other() {
    let (dir, _server, _) = start();
    let mode = std::fs::metadata(dir.path().join("control.sock")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let mut c = ControlClient::connect(dir.path()).unwrap();
    assert_eq!(c.status().unwrap().volumes, vec![toy_volume()]);
    assert_eq!(c.points("d").unwrap().gaps.len(), 1);
    assert_eq!(c.create_point("d", "x").unwrap().seq, 10);
    assert_eq!(c.resize_volume("d", None).unwrap().to, 2 << 20);
    assert_eq!(c.resize_volume("d", Some(5)).unwrap().to, 5);
    assert_eq!(c.compare_volume("d").unwrap().bytes, 1 << 20);
    let Err(ClientError::Refused(failure)) = c.points("e") else { panic!("an unknown volume") };
    assert_eq!((failure.code, &*failure.message), (Code::NotFound, "there is no volume 'e'"));
    let mut got = Vec::new();
    let end = c.diff((None, &When::Seq(3)), ("d", &When::Latest), |o, l| got.push((o, l))).unwrap();
    assert_eq!((end.to, got.len(), got[9999]), (8, 10_000, (9999 * 8192, 4096)));
    assert_eq!(c.resolve("d", &When::Latest).unwrap().seq, 8, "the connection is still good");
}

#[test]
fn a_connection_becomes_nbd_without_losing_a_byte() {
    let (dir, _server, opened) = start();
    let (position, mut stream) =
        ControlClient::connect(dir.path()).unwrap().nbd("d", &When::Latest, Access::Moment).unwrap();
    assert_eq!(position.seq, 8);
    let mut greeting = [0; 8];
    stream.read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting, b"GREETING");
    assert_eq!(opened.load(Ordering::SeqCst), 1);
    drop(stream);
    becomes_zero(&opened);
}

#[test]
fn an_export_lives_as_long_as_its_connection() {
    let (dir, mut server, opened) = start();
    let path = dir.path().join("export.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let client = ControlClient::connect(dir.path()).unwrap();
    let (_, guard) = client.export("d", &When::Seq(5), Access::Scratch, &listener).unwrap();
    drop(listener);
    let mut greeting = String::new();
    UnixStream::connect(&path).unwrap().read_to_string(&mut greeting).unwrap();
    assert_eq!((&*greeting, opened.load(Ordering::SeqCst)), ("GREETING", 1));
    drop(guard);
    becomes_zero(&opened);

    let listener = UnixListener::bind(dir.path().join("second.sock")).unwrap();
    let client = ControlClient::connect(dir.path()).unwrap();
    let (_, guard) = client.export("d", &When::Latest, Access::Branch, &listener).unwrap();
    server.stop();
    assert_eq!(guard.connection().read(&mut [0]).unwrap(), 0, "the command sees that the daemon went away");
    becomes_zero(&opened);
    assert!(matches!(ControlClient::connect(dir.path()), Err(ClientError::NotRunning(_))));
}

#[test]
fn a_watch_goes_on_until_told() {
    let (dir, _server, _) = start();
    let mut seen = 0;
    let client = ControlClient::connect(dir.path()).unwrap();
    client
        .watch(Duration::ZERO, |status| {
            assert_eq!(status.volumes.len(), 1);
            seen += 1;
            seen < 3
        })
        .unwrap();
    assert_eq!(seen, 3);
}

#[test]
fn what_is_not_a_request_gets_a_reason() {
    let (dir, _server, _) = start();
    let stream = UnixStream::connect(dir.path().join("control.sock")).unwrap();
    let mut answers = BufReader::new(stream.try_clone().unwrap()).lines();
    for (line, says) in [
        ("nonsense", "bad-request"),
        ("{}", "no version"),
        (r#"{"v":7,"op":"status"}"#, "speaks version 1"),
        (r#"{"v":1,"op":"explode"}"#, "bad-request"),
        (r#"{"v":1,"op":"resolve","volume":"d","at":"@0"}"#, "begin at 1"),
        (r#"{"v":1,"op":"status"}"#, "\"ok\""),
    ] {
        (&stream).write_all(format!("{line}\n").as_bytes()).unwrap();
        let answer = answers.next().unwrap().unwrap();
        assert!(answer.contains(says), "{line}: {answer}");
    }
    let long = "x".repeat(MAX_REQUEST + 1);
    drop((&stream).write_all(long.as_bytes()));
    assert!(answers.next().unwrap().unwrap().contains("more than"));
}

#[test]
fn connections_beyond_the_limit_are_told_so() {
    let (dir, server, _) = start();
    let path = dir.path().join("control.sock");
    let held: Vec<_> = (0..MAX_CONNECTIONS).map(|_| UnixStream::connect(&path).unwrap()).collect();
    while server.shared.connections().open.len() < MAX_CONNECTIONS {
        thread::yield_now();
    }
    let Err(ClientError::Refused(failure)) = ControlClient::connect(dir.path()).unwrap().status() else {
        panic!("one too many");
    };
    assert_eq!(failure.code, Code::Busy);
    drop(held);
}

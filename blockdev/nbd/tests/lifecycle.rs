//! Starting, stopping, counting, limits on connections, sockets that come from elsewhere.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::large_stack_arrays,
    reason = "in a test a panic is a failure, numbers are small and the stack is large"
)]

mod common;

use afterimage_nbd::client::{self, Client, ClientError, Command, Options};
use afterimage_nbd::{Address, Limits, Listen, Mode, Server, Stop, serve_connection};
use common::raw::*;
use common::slow::SlowDevice;
use common::{Fixture, SIZE, eventually, export};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

/// A fixture with the export `frozen`, whose requests wait for its thaw.
fn frozen() -> (Fixture, Arc<SlowDevice>) {
    let fixture = Fixture::new();
    let device = Arc::new(SlowDevice::new(SIZE, 1));
    device.frozen.store(true, Ordering::Relaxed);
    fixture.exports.insert(export("frozen", Arc::clone(&device) as _));
    (fixture, device)
}

/// Requests in flight are answered, later ones are not, and nothing is left of the server.
#[test]
fn a_stop_ends_what_is_in_flight() {
    let (mut fixture, device) = frozen();
    let mut raw = Raw::entered(fixture.raw(), "frozen");
    let mut idle = Raw::entered(fixture.raw(), "disk");
    let mut shaking = Raw::greeted(fixture.raw());
    (0..10).for_each(|i| raw.send(&request(0, 0, i, 0, 1)));
    raw.send(&request(1, 0, 10, 0, 4)); // its payload never comes
    thread::sleep(Duration::from_millis(100));
    let server = fixture.server.take().unwrap();
    let stopping = thread::spawn(move || server.stop(Duration::from_secs(20)));
    assert!(idle.assert_closed().is_empty() && shaking.assert_closed().is_empty());
    raw.send(b"late");
    raw.send(&request(0, 0, 11, 0, 1));
    device.frozen.store(false, Ordering::Relaxed);
    assert_eq!(raw.assert_closed().len(), 10 * 17);
    stopping.join().unwrap();
    assert!(!fixture.path().exists());
}

/// The grace is for clients too: one that does not read its replies holds nobody up longer.
#[test]
fn a_stop_does_not_wait_for_a_client_that_does_not_read() {
    let mut fixture = Fixture::new();
    let mut raw = Raw::entered(fixture.raw(), "disk");
    raw.send(&request(0, 0, 1, 0, SIZE as u32));
    raw.take(16);
    fixture.server.take().unwrap().stop(Duration::from_millis(50));
    assert!(raw.assert_closed().len() < SIZE);
}

/// A device that goes away answers nothing: the client may reconnect and ask again.
#[test]
fn a_device_that_leaves_takes_its_connections_along() {
    let (fixture, device) = frozen();
    device.leaving.store(true, Ordering::Relaxed);
    let mut raw = Raw::entered(fixture.raw(), "frozen");
    (0..10).for_each(|i| raw.send(&request(1, 0, i, 0, 0)[..28]));
    (0..10).for_each(|i| raw.send(&request(0, 0, 20 + i, 0, 1)));
    (0..10).for_each(|i| assert_eq!(raw.simple(), (22, i)));
    device.frozen.store(false, Ordering::Relaxed);
    assert!(raw.assert_closed().is_empty());
    assert_eq!(fixture.server().stats().cut_off, 0);
    fixture.assert_serves();
}

#[test]
fn no_more_connections_than_allowed() {
    let fixture = Fixture::with(Limits { connections: 2, ..Limits::default() });
    let (one, _two) = (fixture.client("disk", Mode::Simple), fixture.client("disk", Mode::Simple));
    match Client::connect(fixture.unix(), "disk") {
        Err(ClientError::Refused { reason, .. }) => assert!(reason.contains("in use"), "{reason}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(client::list(fixture.unix()).unwrap().len(), 3);
    drop(one);
    eventually("a place is free again", || Client::connect(fixture.unix(), "disk").is_ok());
}

#[test]
fn exports_come_and_go() {
    let fixture = Fixture::new();
    let refused = |name| matches!(Client::connect(fixture.unix(), name), Err(ClientError::Refused { .. }));
    let mut open = fixture.client("", Mode::Extended);
    assert!(fixture.exports.remove("disk").is_some() && fixture.exports.remove("disk").is_none());
    assert!(refused("disk") && refused("") && refused("new") && !refused("ro"));
    open.write(0, b"still here").unwrap();
    fixture.exports.insert(export("new", common::memory(4096)));
    fixture.exports.set_default(Some("new".to_owned()));
    assert_eq!(fixture.client("", Mode::Simple).size(), 4096);
}

#[test]
fn what_is_done_is_counted() {
    let fixture = Fixture::new();
    let mut client = fixture.client("disk", Mode::Extended);
    client.write(0, &[1; 5000]).unwrap();
    client.read(0, &mut [0; 3000]).unwrap();
    client.flush().unwrap();
    client.call(&Command::Read { offset: u64::MAX, len: 1 }).unwrap_err();
    eventually("all is counted", || fixture.server().stats().requests == 4);
    let stats = fixture.server().stats();
    assert_eq!((stats.connections, stats.accepted, stats.errors, stats.cut_off), (1, 1, 1, 0));
    assert_eq!((stats.bytes_written, stats.bytes_read), (5000, 3000));
    drop(client);
    eventually("it is gone", || fixture.server().stats().connections == 0);
}

#[test]
fn a_connection_may_come_from_elsewhere() {
    let fixture = Fixture::new();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (exports, stop) = (Arc::clone(&fixture.exports), Stop::new().unwrap());
    let word = stop.clone();
    let thread = thread::spawn(move || serve_connection(theirs.into(), exports, &Limits::default(), &word));
    let mut client = Client::over(ours.into(), "disk", &Options::default()).unwrap();
    client.write(7, b"seven").unwrap();
    stop.request(Duration::from_secs(1));
    assert!(client.flush().is_err());
    thread.join().unwrap().unwrap();
}

/// Writes on one connection are seen on the others, as CAN_MULTI_CONN promises.
#[test]
fn several_connections_see_one_disk() {
    let fixture = Fixture::new();
    thread::scope(|scope| {
        for i in 0..6u8 {
            let (mut client, mut other) =
                (fixture.client("slow", Mode::Extended), fixture.client("slow", Mode::Simple));
            scope.spawn(move || {
                for round in 0..30u8 {
                    let (offset, mut back) = (u64::from(i) * 4096, [0; 4096]);
                    client.write(offset, &[i ^ round; 4096]).unwrap();
                    client.flush().unwrap();
                    other.read(offset, &mut back).unwrap();
                    assert_eq!(back, [i ^ round; 4096]);
                }
            });
        }
    });
}

#[test]
fn an_address_that_cannot_be_listened_on_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = Fixture::new();
    for (address, why) in [
        (format!("unix:{}", dir.path().join("no/such/dir").display()), "No such file"),
        (fixture.unix().to_string(), "in use by a running server"),
        (fixture.tcp().to_string(), "in use"),
    ] {
        let other = Listen::Unix(dir.path().join("other"));
        let listen = vec![other, address.parse().unwrap()];
        let e = Server::start(listen, Arc::clone(&fixture.exports) as _, Limits::default()).unwrap_err();
        assert!(e.to_string().contains(&address) && e.to_string().contains(why), "{e}");
        assert!(!dir.path().join("other").exists());
    }
    fixture.assert_serves();
}

/// The example server, started as systemd starts it: with a listening socket as file descriptor 3. It ends when its
/// standard input does, and leaves the socket to its maker.
#[test]
fn systemd_passes_a_socket() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let (input, theirs) = UnixStream::pair().unwrap();
    let mut server = std::process::Command::new("sh")
        .args(["-c", r#"LISTEN_PID=$$ LISTEN_FDS=1 exec "$0" 3<&0 0<&2"#])
        .arg(common::serve_example())
        .stdin(OwnedFd::from(listener))
        .stderr(OwnedFd::from(theirs))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let address = Address::Unix(path.clone());
    let mut client = Client::connect(&address, "disk").unwrap();
    client.write(0, b"activated").unwrap();
    drop(client);
    drop(input);
    assert!(server.wait().unwrap().success());
    assert!(path.exists());
}

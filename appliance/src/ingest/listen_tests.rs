use super::*;
use crate::appliance::Appliance;
use crate::config::ApplianceConfig;
use crate::testing::*;
use afterimage_format::record::Kind;
use afterimage_format::wire::{HEADER_LEN, Header, MessageType, Refuse, RefuseCode};
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::time::Instant;

fn over_tcp(dir: &Path) -> ApplianceConfig {
    let mut config = config(dir);
    config.listen = vec![Endpoint::Tcp("127.0.0.1".into(), 0)];
    config
}

fn address(appliance: &Appliance) -> SocketAddr {
    appliance.addresses()[0].resolve().unwrap()[0]
}

fn dial(appliance: &Appliance) -> TcpStream {
    let stream = TcpStream::connect(address(appliance)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream
}

fn refusal(stream: &mut TcpStream) -> Refuse {
    let mut header = [0; HEADER_LEN];
    stream.read_exact(&mut header).unwrap();
    let header = Header::decode(&header).unwrap();
    assert_eq!(header.kind, MessageType::Refuse);
    let mut body = vec![0; header.body_len];
    stream.read_exact(&mut body).unwrap();
    Refuse::decode(&body).unwrap()
}

fn write(seq: u64) -> Vec<u8> {
    bytes_of(&[record(Kind::Write, seq, 0, 4096, vec![3; 4096])])
}

#[test]
fn all_addresses_of_all_kinds_are_served() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.listen.push(Endpoint::Tcp("localhost".into(), 0));
    let mut appliance = Appliance::start(config).unwrap();
    let passed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    appliance.listen_at(passed.into()).unwrap();
    assert!(appliance.addresses().len() >= 3);
    for (seq, endpoint) in (1..).zip(appliance.addresses()) {
        let mut agent = Agent::connect(std::slice::from_ref(endpoint), &hello()).unwrap();
        agent.send(&write(seq));
        agent.wait(seq).unwrap();
        assert!(appliance.volumes()[0].connected);
    }
}

/// A shutdown of the reading direction does not stop what TCP has received and receives: the older session must end all
/// the same, in the middle of a flood.
#[test]
fn the_newest_of_several_sessions_wins_against_a_flood() {
    let dir = tempfile::tempdir().unwrap();
    let config = over_tcp(dir.path());
    let appliance = Appliance::start(config).unwrap();
    let at = appliance.addresses();
    let mut flood = Agent::connect(at, &hello()).unwrap();
    let flooding = std::thread::spawn(move || {
        for seq in 1.. {
            flood.send(&write(seq));
            if let Err(end) = flood.wait(seq) {
                return (seq, end);
            }
        }
        unreachable!()
    });
    while appliance.volumes()[0].durable_seq < 10 {
        std::thread::sleep(Duration::from_millis(1));
    }
    let mut durable = 0;
    for _ in 0..5 {
        let newer = Agent::connect(at, &hello()).unwrap();
        assert!(newer.welcome.durable >= durable, "durable went back");
        durable = newer.welcome.durable;
    }
    let (sent, end) = flooding.join().unwrap();
    assert!(end.is_none_or(|refuse| refuse.code == RefuseCode::Superseded));
    assert!(appliance.volumes()[0].durable_seq <= sent);
    // What was durable once is sent again by an agent that did not hear of it: it changes nothing.
    let mut last = Agent::connect(at, &hello()).unwrap();
    let seq = last.welcome.durable + 1;
    last.send(&write(seq));
    last.wait(seq).unwrap();
}

#[test]
fn one_address_cannot_take_all_places() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = over_tcp(dir.path());
    config.per_address = 3;
    let socket = dir.path().join("own.sock");
    config.listen.push(Endpoint::Unix(socket.clone()));
    let appliance = Appliance::start(config).unwrap();
    let mut silent: Vec<TcpStream> = (0..3).map(|_| dial(&appliance)).collect();
    // Only once the three are in is the fourth too many.
    while appliance.doors.lock().guests.len() < 3 {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(dial(&appliance).read(&mut [0; 16]).unwrap(), 0, "the fourth is turned away");
    // Others are not: here the owner's socket.
    drop(Agent::connect(&[Endpoint::Unix(socket)], &hello()).unwrap());
    drop(silent.pop());
    while appliance.doors.lock().guests.values().filter(|g| g.from.is_some()).count() > 2 {
        std::thread::sleep(Duration::from_millis(1));
    }
    drop(Agent::connect(&appliance.addresses()[..1], &hello()).unwrap());
}

#[test]
fn hosts_are_told_apart_by_address_or_by_their_network() {
    let of = |text: &str| origin(text.parse().unwrap());
    assert_eq!(of("::ffff:192.0.2.7"), of("192.0.2.7"));
    assert_eq!(of("2001:db8:1:2:3::4"), of("2001:db8:1:2:ffff::1"));
    assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
    assert_ne!(of("192.0.2.7"), of("192.0.2.8"));
}

#[test]
fn peers_of_other_protocols_are_told_so_and_leave_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let appliance = Appliance::start(over_tcp(dir.path())).unwrap();
    let tls_hello: Vec<u8> = [&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3][..], &[0x5a; 506]].concat();
    for speech in [
        &b"GET / HTTP/1.1\r\nHost: backup\r\n\r\n"[..],
        &tls_hello,
        &[0; 64],
        &[0xff; 64],
        b"NBDMAGICIHAVEOPT................",
    ] {
        let mut stream = dial(&appliance);
        stream.write_all(speech).unwrap();
        assert_eq!(refusal(&mut stream).code, RefuseCode::Malformed);
    }
    assert!(appliance.volumes().is_empty());
}

/// A peer that sends one byte now and then is not silent, and still has only so long for its Hello.
#[test]
fn a_dribbling_peer_loses_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let appliance = Appliance::start(over_tcp(dir.path())).unwrap();
    let mut stream = dial(&appliance);
    let hello = Header::of(MessageType::Hello, &[0; 4000]).encode();
    let start = Instant::now();
    for byte in hello.iter().chain(std::iter::repeat(&0)) {
        if stream.write_all(&[*byte]).is_err() {
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(120), "it was let go on");
        std::thread::sleep(Duration::from_millis(50));
    }
    // A peer that is slow, but not so slow, is served.
    let body = crate::testing::hello().encode();
    let mut stream = dial(&appliance);
    for byte in Header::of(MessageType::Hello, &body).encode().iter().chain(&body) {
        stream.write_all(&[*byte]).unwrap();
    }
    let mut header = [0; HEADER_LEN];
    stream.read_exact(&mut header).unwrap();
    assert_eq!(Header::decode(&header).unwrap().kind, MessageType::Welcome);
}

//! STARTTLS: who gets in, who does not, and what a client hears that says the wrong thing at the wrong time.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "in a test a panic is a failure, and numbers are small"
)]

mod common;

use afterimage_nbd::client::{Client, Options};
use afterimage_nbd::{Address, Limits, Mode, Tls};
use afterimage_trust::nbd::{NbdClientTls, NbdServerTls};
use common::raw::*;
use common::{Fixture, Random, SIZE};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use rustls::{ClientConnection, StreamOwned};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

const TLS_REQD: u32 = 0x8000_0005;
/// A TLS record with a fatal alert begins so.
const ALERT: u8 = 21;

struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Authority {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.distinguished_name.push(DnType::CommonName, "a CA");
        let pem = params.self_signed(&key).unwrap().pem();
        Authority { pem, issuer: Issuer::new(params, key) }
    }

    /// Files of a server or client in a folder of `dir`; `ca` is what it believes.
    fn certify(&self, dir: &Path, name: &str, change: impl FnOnce(&mut CertificateParams)) -> PathBuf {
        let (dir, key) = (dir.join(name), KeyPair::generate().unwrap());
        std::fs::create_dir_all(&dir).unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        for kind in ["client", "server"] {
            std::fs::write(dir.join(format!("{kind}-cert.pem")), &certificate).unwrap();
            std::fs::write(dir.join(format!("{kind}-key.pem")), key.serialize_pem()).unwrap();
        }
        std::fs::write(dir.join("ca-cert.pem"), &self.pem).unwrap();
        dir
    }
}

fn names(params: &mut CertificateParams, uri: Option<&str>, hosts: &[&str]) {
    let hosts = hosts.iter().map(|h| SanType::IpAddress(h.parse().unwrap()));
    params.subject_alt_names = hosts.chain(uri.map(|u| SanType::URI(u.try_into().unwrap()))).collect();
}

const NBD: &str = "afterimage://nbd/67e55044-10b1-426f-9247-bb680e5fe0c8";

/// A server with TLS and the CA behind it.
struct Secured {
    fixture: Fixture,
    authority: Authority,
    dir: tempfile::TempDir,
}

impl Secured {
    fn new(required: bool, handshake_time: Duration) -> Secured {
        let (dir, authority) = (tempfile::tempdir().unwrap(), Authority::new());
        let server = authority.certify(dir.path(), "server", |p| {
            names(p, Some(NBD), &["127.0.0.1"]);
            p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        });
        let tls = Arc::new(NbdServerTls::load(&server, None).unwrap());
        let tls = if required { Tls::Require(tls) } else { Tls::Allow(tls) };
        let fixture = Fixture::with(Limits { tls, handshake_time, ..Limits::default() });
        Secured { fixture, authority, dir }
    }

    fn required() -> Secured {
        Secured::new(true, Duration::from_secs(30))
    }

    fn tcp(&self) -> TcpStream {
        let Address::Tcp(address) = self.fixture.tcp() else { panic!("a TCP address") };
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(30))).unwrap();
        stream
    }

    fn client(&self, change: impl FnOnce(&mut CertificateParams)) -> NbdClientTls {
        NbdClientTls::load(&self.authority.certify(self.dir.path(), "client", change)).unwrap()
    }

    fn good(&self) -> NbdClientTls {
        self.client(|p| names(p, Some(NBD), &[]))
    }

    fn connect(&self, tls: &NbdClientTls, mode: Mode) -> Client {
        let options = Options { mode, allocation: true };
        Client::connect_tls(self.fixture.tcp(), "127.0.0.1", tls, "disk", &options).unwrap()
    }

    /// Begins TLS on a connection that has said so.
    fn wrap(&self, stream: TcpStream) -> Raw<StreamOwned<ClientConnection, TcpStream>> {
        Raw(StreamOwned::new(self.good().begin("127.0.0.1").unwrap(), stream))
    }

    fn upgraded(&self) -> Raw<StreamOwned<ClientConnection, TcpStream>> {
        let mut raw = Raw::greeted(self.tcp());
        assert_eq!(raw.ask(STARTTLS, &[]), ACK);
        self.wrap(raw.0)
    }

    /// That it is as good as before for who may be here.
    fn assert_serves(&self) {
        self.fixture.assert_serves();
        let mut client = self.connect(&self.good(), Mode::Structured);
        client.read(0, &mut [0; 512]).unwrap();
    }
}

#[test]
fn over_tcp_nothing_is_said_without_tls_where_it_is_required() {
    let server = Secured::required();
    let mut raw = Raw::greeted(server.tcp());
    for (number, data) in [
        (LIST, vec![]),
        (INFO, info("disk")),
        (INFO, info("nope")),
        (GO, info("disk")),
        (STRUCTURED, vec![]),
        (EXTENDED, vec![]),
        (LIST_META, meta("disk", &[])),
        (SET_META, meta("disk", &["base:allocation"])),
        (77, vec![1, 2, 3]),
    ] {
        let replies = raw.converse(number, &data);
        assert_eq!(replies.iter().map(|r| r.0).collect::<Vec<_>>(), [TLS_REQD], "option {number}");
    }
    assert_eq!(raw.ask(STARTTLS, &[0]), 0x8000_0003, "it takes no data");
    assert_eq!(raw.ask(ABORT, &[]), ACK);
    // The old way in has no way to say no.
    let mut old = Raw::greeted(server.tcp());
    old.send(&option(EXPORT_NAME, b"disk"));
    assert!(old.assert_closed().is_empty());
    // Who reaches the unix socket is the owner.
    let mut own = Raw::greeted(server.fixture.raw());
    assert_eq!(own.ask(GO, &info("disk")), ACK);
    server.assert_serves();
}

#[test]
fn every_mode_works_under_tls() {
    let server = Secured::required();
    let tls = server.good();
    for (seed, mode) in [Mode::Simple, Mode::Structured, Mode::Extended].into_iter().enumerate() {
        let mut client = server.connect(&tls, mode);
        assert_eq!(client.info().mode, mode);
        let mut random = Random::new(seed as u64);
        let mut disk = vec![0; SIZE];
        client.write_zeroes(0, SIZE as u64).unwrap();
        for _ in 0..60 {
            let longest = if random.below(8) == 0 { 4 << 20 } else { 70_000 };
            let (len, at) = (1 + random.below(longest) as usize, random.below(SIZE as u64) as usize);
            let len = len.min(SIZE - at);
            if random.below(3) == 0 {
                let mut back = vec![0; len];
                client.read(at as u64, &mut back).unwrap();
                assert!(back == disk[at..at + len], "{mode:?}: {len} bytes at {at}");
            } else {
                disk[at..at + len].copy_from_slice(&random.bytes(len));
                client.write(at as u64, &disk[at..at + len]).unwrap();
            }
        }
        client.flush().unwrap();
        let mut back = vec![0; SIZE];
        client.read(0, &mut back).unwrap();
        assert!(back == disk, "{mode:?}: the whole disk");
        assert_eq!(client.block_status(0, SIZE as u64).is_ok(), mode != Mode::Simple);
    }
}

/// Many requests in one TLS record, and one request in many.
#[test]
fn requests_need_not_fit_records() {
    let server = Secured::required();
    let mut raw = server.upgraded();
    assert_eq!(raw.ask(STARTTLS, &[]), 0x8000_0003, "it has begun already");
    assert_eq!(raw.ask(GO, &info("disk")), ACK);
    let many: Vec<u8> = (0..200).flat_map(|i| request(0, 0, i, i * 512, 4)).collect();
    raw.send(&many);
    for _ in 0..200 {
        assert_eq!(raw.simple().0, 0);
        assert_eq!(raw.take(4), [0; 4]);
    }
    for byte in [&request(1, 0, 7, 0, 3)[..], b"abc", &request(0, 0, 8, 0, 3)].concat() {
        raw.send(&[byte]);
    }
    assert_eq!([raw.simple(), raw.simple()], [(0, 7), (0, 8)]);
    assert_eq!(raw.take(3), b"abc");
    raw.send(&request(2, 0, 9, 0, 0));
    assert!(raw.assert_closed().is_empty());
}

/// Somebody in between may have said what came before TLS.
#[test]
fn what_was_agreed_on_before_tls_is_forgotten() {
    let server = Secured::new(false, Duration::from_secs(30));
    let mut raw = Raw::greeted(server.tcp());
    assert_eq!(raw.ask(STRUCTURED, &[]), ACK);
    assert_eq!(raw.ask(SET_META, &meta("disk", &["base:allocation"])), ACK);
    assert_eq!(raw.ask(STARTTLS, &[]), ACK);
    let mut raw = server.wrap(raw.0);
    assert_eq!(
        raw.ask(SET_META, &meta("disk", &["base:allocation"])),
        INVALID,
        "structured replies were not agreed on"
    );
    assert_eq!(raw.ask(GO, &info("disk")), ACK);
    raw.send(&request(0, 0, 5, 0, 4));
    assert_eq!(raw.simple(), (0, 5));
    // Where it is allowed only, plain clients come in, too.
    Raw::entered(server.fixture.raw(), "disk");
    let mut plain = Raw::greeted(server.tcp());
    assert_eq!(plain.ask(GO, &info("disk")), ACK);
}

#[test]
fn who_has_not_the_right_certificate_is_refused() {
    let server = Secured::required();
    let stranger = Authority::new();
    let strange = stranger.certify(server.dir.path(), "stranger", |p| names(p, Some(NBD), &[]));
    std::fs::write(strange.join("ca-cert.pem"), &server.authority.pem).unwrap();
    let agent = "afterimage://agent/67e55044-10b1-426f-9247-bb680e5fe0c8?vault=67e55044-10b1-426f-9247-bb680e5fe0c9";
    let refused = [
        ("of another CA", NbdClientTls::load(&strange).unwrap()),
        ("of an agent", server.client(|p| names(p, Some(agent), &[]))),
        ("expired", server.client(|p| p.not_after = rcgen::date_time_ymd(2020, 1, 1))),
        ("from the future", server.client(|p| p.not_before = rcgen::date_time_ymd(2150, 1, 1))),
        (
            "of a server",
            server.client(|p| {
                names(p, Some(NBD), &[]);
                p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            }),
        ),
    ];
    for (what, tls) in refused {
        let heard = Client::connect_tls(server.fixture.tcp(), "127.0.0.1", &tls, "disk", &Options::default());
        assert!(heard.is_err(), "a certificate {what} gets in");
    }
    // One of a CA that the user brought, which names nobody of ours, is for NBD by that.
    let own = server.client(|p| names(p, None, &[]));
    server.connect(&own, Mode::Structured).read(0, &mut [0; 512]).unwrap();
    // None at all.
    let mut raw = Raw::greeted(server.tcp());
    assert_eq!(raw.ask(STARTTLS, &[]), ACK);
    let state = NbdClientTls::without_certificate(&server.dir.path().join("client")).unwrap();
    let mut stream = StreamOwned::new(state.begin("127.0.0.1").unwrap(), raw.0);
    let asked = stream.write_all(&option(LIST, &[])).and_then(|()| stream.read_exact(&mut [0; 1]));
    assert!(asked.is_err(), "somebody without a certificate hears something");
    server.assert_serves();
}

#[test]
fn a_server_for_another_name_is_not_believed() {
    let server = Secured::required();
    let tls = server.good();
    let heard = Client::connect_tls(server.fixture.tcp(), "127.0.0.2", &tls, "disk", &Options::default());
    assert!(heard.unwrap_err().to_string().contains("certificate"));
    let plain = Fixture::new();
    let heard = Client::connect_tls(plain.tcp(), "127.0.0.1", &tls, "disk", &Options::default());
    assert!(heard.is_err(), "there is no way back to plain text");
}

/// A ClientHello that offers TLS 1.2 and nothing newer.
fn old_hello() -> Vec<u8> {
    let ciphers = [0x00, 0x04, 0xc0, 0x2b, 0xc0, 0x2f];
    let groups = [0x00, 0x0a, 0x00, 0x04, 0x00, 0x02, 0x00, 0x17];
    let signatures = [0x00, 0x0d, 0x00, 0x06, 0x00, 0x04, 0x04, 0x03, 0x08, 0x04];
    let extensions = [&groups[..], &signatures].concat();
    let length = (extensions.len() as u16).to_be_bytes();
    let body = [&[3, 3][..], &[7; 32], &[0], &ciphers, &[1, 0], &length, &extensions].concat();
    let hello = [&[1, 0], &(body.len() as u16).to_be_bytes()[..], &body].concat();
    [&[22, 3, 1], &(hello.len() as u16).to_be_bytes()[..], &hello].concat()
}

#[test]
fn what_is_no_tls_1_3_is_refused() {
    let server = Secured::required();
    let mut random = Random::new(99);
    let early = [option(GO, &info("disk")), request(0, 0, 1, 0, 512)].concat();
    for (what, bytes, alert) in [
        ("TLS 1.2", old_hello(), Some(70)),
        ("garbage", random.bytes(5000), None),
        ("plain text", early.clone(), None),
        ("nothing", vec![], None),
    ] {
        let mut raw = Raw::greeted(server.tcp());
        assert_eq!(raw.ask(STARTTLS, &[]), ACK);
        raw.send(&bytes);
        raw.0.shutdown(std::net::Shutdown::Write).unwrap();
        let heard = raw.assert_closed();
        assert!(heard.is_empty() || heard[0] == ALERT, "{what}: {heard:?}");
        if let Some(alert) = alert {
            assert_eq!(heard.last(), Some(&alert), "{what}: {heard:?}");
        }
    }
    // Said in the same breath as STARTTLS, it is not done either: it would be taken for what came through TLS.
    let mut raw = Raw::greeted(server.tcp());
    raw.send(&[option(STARTTLS, &[]), early].concat());
    let reply = raw.take(20);
    assert_eq!((&reply[8..12], &reply[12..16]), (&STARTTLS.to_be_bytes()[..], &ACK.to_be_bytes()[..]));
    let heard = raw.assert_closed();
    assert!(heard.is_empty() || heard[0] == ALERT, "{heard:?}");
    server.assert_serves();
}

#[test]
fn who_is_silent_in_the_handshake_of_tls_is_cut_off() {
    let server = Secured::new(true, Duration::from_millis(300));
    for bytes in [&[][..], &old_hello()[..20]] {
        let mut raw = Raw::greeted(server.tcp());
        assert_eq!(raw.ask(STARTTLS, &[]), ACK);
        raw.send(bytes);
        assert!(raw.assert_closed().is_empty());
    }
    common::eventually("both count as cut off", || server.fixture.server().stats().cut_off == 2);
}

/// What waits for it in TLS is dropped with it.
#[test]
fn a_client_that_does_not_read_and_goes_leaves_nothing_behind() {
    let server = Secured::required();
    let mut raw = server.upgraded();
    assert_eq!(raw.ask(GO, &info("disk")), ACK);
    for i in 0..16 {
        raw.send(&request(0, 0, i, 0, SIZE as u32));
    }
    raw.0.flush().unwrap();
    server.assert_serves();
    drop(raw);
    common::eventually("its connection ends", || server.fixture.server().stats().connections == 0);
}

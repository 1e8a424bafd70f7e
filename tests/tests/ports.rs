//! What every port of every role answers to whoever has no business there: nothing but a refusal.

#![allow(clippy::unwrap_used, reason = "in a test a panic is a failure")]

use afterimage_tests::lab::DISK;
use afterimage_tests::mgmt::{Mgmt, hear, joined, openssl, pem_files, say};
use afterimage_tests::pair::{Pair, Role};
use afterimage_tests::tool::tool;
use std::path::Path;

const MIB: u64 = 1 << 20;
const DATA: &str = "afterimage-data/1";
const PROBE: &str = "afterimage-probe/1";
const COORDINATION: &str = "afterimage-coordination/1";

/// Ports where a process listens on TCP, as the kernel says.
fn listening(process: u32) -> Vec<u16> {
    let folder = std::fs::read_dir(format!("/proc/{process}/fd")).unwrap();
    let open: Vec<String> = folder
        .filter_map(|e| std::fs::read_link(e.ok()?.path()).ok())
        .filter_map(|l| Some(l.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
        .collect();
    let mut ports = Vec::new();
    for table in ["tcp", "tcp6"] {
        for line in std::fs::read_to_string(format!("/proc/net/{table}")).unwrap_or_default().lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            if fields[3] == "0A" && open.iter().any(|inode| inode == fields[9]) {
                ports.push(u16::from_str_radix(fields[1].rsplit(':').next().unwrap(), 16).unwrap());
            }
        }
    }
    ports.sort_unstable();
    ports
}

fn garbage() -> Vec<Vec<u8>> {
    let mut all: Vec<Vec<u8>> = vec![b"\n\n".to_vec(), b"\x16\x03\x01\xff\xff".repeat(9), vec![0xff; 3000]];
    all.extend((0..8_u8).map(|n| (0..200_u8).map(|i| i.wrapping_mul(37).wrapping_add(n.wrapping_mul(91))).collect()));
    all
}

fn is_alert(answer: &[u8]) -> bool {
    answer.is_empty() || (answer[0] == 0x15 && answer.len() <= 7)
}

fn start(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.len().min(20)]
}

/// What an API answers: its first line up to the status, its head, its body.
type Heard = (String, String, String);

/// Asks an API over HTTPS with a token, and with a certificate, which means nothing there.
fn curl(port: u16, path: &str, token: &str, ca: &Path, [certificate, key]: &[String; 2]) -> Heard {
    let url = format!("https://localhost:{port}{path}");
    let authorization = format!("Authorization: Bearer {token}");
    let options = ["-s", "-i", "--cert", certificate, "--key", key, "-H", &authorization, "--cacert"];
    let done = tool("curl").args(options).arg(ca).arg(url).run().stdout;
    let (head, body) = done.split_once("\r\n\r\n").unwrap();
    (head[..12].to_owned(), head.to_ascii_lowercase(), body.to_owned())
}

#[test]
fn every_port_of_every_role_answers_with_a_refusal() {
    let tls = |pair: &mut Pair, mgmt: &Mgmt| {
        let folder = pair.path("nbd-tls").display().to_string();
        mgmt.cli(&["certify", "disks", "--host", "localhost", "--to", &folder]).run();
        ["--nbd-tls-dir", &folder].iter().for_each(|word| pair.add_option(word));
    };
    let (mut pair, mgmt) = joined(8 * MIB, tls);
    // All there is to be scanned: a port that nobody knows of is a finding.
    let of = |p: &mut Pair, role| listening(p.process(role).id());
    assert_eq!(of(&mut pair, Role::Agent), [pair.nbd]);
    assert_eq!(of(&mut pair, Role::Appliance), [pair.wire]);
    let mut own = vec![mgmt.port, mgmt.api];
    own.sort_unstable();
    assert_eq!(listening(mgmt.process.as_ref().unwrap().id()), own);

    for port in [pair.wire, mgmt.port, mgmt.api] {
        for bytes in &garbage() {
            let answer = say(port, bytes, true);
            assert!(is_alert(&answer), "port {port} answers {answer:?} to {:?}", start(bytes));
        }
        assert!(openssl(port, DATA, &["-tls1_2"], None).contains("alert protocol version"), "port {port}");
    }

    // A member of another vault of the same mgmt.
    let (second, neighbour) = (pair.path("second-vault"), pair.path("neighbour"));
    mgmt.enrol(&second, "appliance", "second", &[]);
    mgmt.enrol(&neighbour, "agent", "neighbour", &["--appliance", "second"]);
    let files = pem_files(&neighbour);
    for protocol in [DATA, PROBE] {
        let heard = openssl(pair.wire, protocol, &[], Some(&files));
        assert!(
            heard.contains("alert access denied") || heard.contains("alert bad certificate"),
            "{protocol}: {heard}"
        );
    }

    // A member of another mgmt, which speaks the very protocol.
    let other = Pair::plan(MIB, "64MiB");
    let strange = Mgmt::start(&other.path("."));
    strange.enrol(&other.data(Role::Appliance), "appliance", "strange-vault", &[]);
    strange.enrol(&other.data(Role::Agent), "agent", "stranger", &[]);
    for role in [Role::Agent, Role::Appliance] {
        let theirs = pem_files(&other.data(role));
        for (port, protocol) in [(mgmt.port, COORDINATION), (pair.wire, DATA), (pair.wire, PROBE)] {
            let heard = openssl(port, protocol, &[], Some(&theirs));
            assert!(heard.contains("alert unknown ca"), "{protocol} of {role:?}: {heard}");
        }
    }
    hear(|| mgmt.log(), &["coordination port", "'stranger'", "another CA"]);
    hear(|| mgmt.log(), &["coordination port", "'strange-vault'", "another CA"]);
    let heard = openssl(mgmt.port, COORDINATION, &[], None);
    assert!(heard.contains("alert certificate required"), "{heard}");

    // At the API a certificate is nothing: it hears what strangers hear, wherever it looks.
    let ca = pair.path("ca.pem");
    std::fs::write(&ca, mgmt.cli(&["ca"]).run().stdout).unwrap();
    let ask = |path: &str, token: &str| curl(mgmt.api, path, token, &ca, &files);
    let token = mgmt.api_token("me", "viewer");
    let good = ask("/v1/status", &token);
    assert!(good.0 == "HTTP/1.1 200" && good.2.contains("\"caller\":\"me (viewer"), "{good:?}");
    assert!(good.1.contains("content-type: application/json"), "{good:?}");
    let missing = ask("/v1/machines/nobody", &token);
    assert!(missing.0 == "HTTP/1.1 404" && missing.1.contains("content-type: application/problem+json"), "{missing:?}");
    let refused = ask("/", "");
    assert!(refused.0 == "HTTP/1.1 401" && refused.1.contains("content-type: application/problem+json"), "{refused:?}");
    let body: serde_json::Value = serde_json::from_str(&refused.2).unwrap();
    assert_eq!((&body["type"], &body["status"]), (&"urn:afterimage:unauthorized".into(), &401.into()));
    // A token of another mgmt, of its admin, counts at that mgmt; here it is like any other text.
    let theirs = strange.api_token("their-admin", "admin");
    std::fs::write(other.path("ca.pem"), strange.cli(&["ca"]).run().stdout).unwrap();
    assert_eq!(curl(strange.api, "/v1/api-tokens", &theirs, &other.path("ca.pem"), &files).0, "HTTP/1.1 200");
    let made_up = format!("aia1.{}", "0".repeat(64));
    for path in ["/v1/status", "/metrics", "/v1/openapi.json", "/v1/api-tokens", "/.git/config", "/v1/machines/web"] {
        for token in ["", "x", &made_up, &theirs] {
            let heard = ask(path, token);
            assert_eq!((heard.0, heard.2), (refused.0.clone(), refused.2.clone()), "{path} with {token:?}");
        }
    }
    hear(|| mgmt.log(), &["API", "was refused", "was not made here"]);
    nbd_says_no_more_than_that_it_wants_tls(&pair);
}

/// The port of the protected host. A server of NBD speaks first, with 18 bytes that are always the same; whoever does not begin TLS hears
/// no name and no size, and gets nowhere.
fn nbd_says_no_more_than_that_it_wants_tls(pair: &Pair) {
    const GREETING: &[u8] = b"NBDMAGICIHAVEOPT\0\x03";
    const TLS_REQUIRED: u32 = (1 << 31) + 5;
    for bytes in &garbage() {
        let answer = say(pair.nbd, bytes, true);
        assert_eq!(answer, GREETING, "to {:?}", start(bytes));
    }
    let option = |kind: u32, data: &[u8]| {
        let len = u32::try_from(data.len()).unwrap();
        [b"IHAVEOPT", &kind.to_be_bytes()[..], &len.to_be_bytes(), data].concat()
    };
    let name = [&u32::try_from(DISK.len()).unwrap().to_be_bytes(), DISK.as_bytes(), &[0, 0]].concat();
    // LIST, INFO and GO of a disk that there is, and the old way in, behind which are requests.
    let (list, info, go, enter) = (option(3, &[]), option(6, &name), option(7, &name), option(1, DISK.as_bytes()));
    let answer = say(pair.nbd, &[&3_u32.to_be_bytes(), &list[..], &info, &go, &enter, &[0; 28]].concat(), false);
    let mut rest = answer.strip_prefix(GREETING).unwrap();
    for kind in [3_u32, 6, 7] {
        let number = |at: usize| u32::from_be_bytes(rest[at..at + 4].try_into().unwrap());
        assert_eq!((number(8), number(12)), (kind, TLS_REQUIRED), "{answer:?}");
        rest = &rest[20 + usize::try_from(number(16)).unwrap()..];
    }
    assert!(rest.is_empty(), "the old way in leads nowhere: {rest:?}");
    assert!(!answer.windows(DISK.len()).any(|w| w == DISK.as_bytes()), "{answer:?}");
}

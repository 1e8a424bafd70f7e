//! mgmt, an appliance and an agent with certificates: who joins, who is let in, and what everybody else hears: a refusal.

#![allow(clippy::unwrap_used, reason = "in a test a panic is a failure")]

use afterimage_tests::binary::path_of;
use afterimage_tests::data;
use afterimage_tests::lab::DISK;
use afterimage_tests::pair::{Pair, Role};
use afterimage_tests::process::Process;
use afterimage_tests::tool::{Finished, Tool, tool};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;

struct Mgmt {
    process: Option<Process>,
    data: PathBuf,
    log: PathBuf,
    port: u16,
    api: u16,
}

fn afterimage(data: &Path) -> Tool {
    tool(path_of("afterimage")).env("AFTERIMAGE_DATA", data).env("NO_COLOR", "1")
}

impl Mgmt {
    fn start(dir: &Path) -> Mgmt {
        std::fs::create_dir_all(dir).unwrap();
        let mut mgmt = Mgmt {
            process: None,
            data: dir.join("mgmt"),
            log: dir.join("mgmt.log"),
            port: data::free_port(),
            api: data::free_port(),
        };
        mgmt.run(&[]);
        mgmt
    }

    fn run(&mut self, options: &[&str]) {
        let listen = format!("127.0.0.1:{}", self.port);
        let api = format!("127.0.0.1:{}", self.api);
        let command = afterimage(&self.data).args(["mgmt", "--listen", &listen, "--api", &api]).args(options);
        let mut process = Process::start(command.into_command(), &self.log);
        process.wait_until("mgmt", || afterimage(&self.data).args(["mgmt", "ls"]).run_any().status.success());
        self.process = Some(process);
    }

    fn kill(&mut self) {
        self.process.take().unwrap().kill();
    }

    fn cli(&self, words: &[&str]) -> Tool {
        afterimage(&self.data).arg("mgmt").args(words)
    }

    fn token(&self, role: &str, name: &str, more: &[&str]) -> String {
        let words = ["token", "create", "--role", role, "--name", name];
        self.cli(&words).args(more).run().stdout.trim().to_owned()
    }

    fn join(&self, data: &Path, role: &str, token: &str) -> Finished {
        let address = format!("127.0.0.1:{}", self.port);
        afterimage(data).env("AFTERIMAGE_TOKEN", token).args([role, "join", &address]).run_any()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

/// Writes the parts of a credentials file as `openssl` takes them.
fn pem_files(data: &Path) -> [String; 2] {
    let text = std::fs::read_to_string(data.join("trust/credentials")).unwrap();
    let all: serde_json::Value = serde_json::from_str(&text).unwrap();
    ["certificate", "key"].map(|part| {
        let path = data.join(format!("{part}.pem"));
        std::fs::write(&path, all[part].as_str().unwrap()).unwrap();
        path.display().to_string()
    })
}

/// What a client of OpenSSL hears, and whether TLS was accepted by both sides.
fn openssl(port: u16, more: &[&str], identity: Option<&[String; 2]>) -> String {
    let mut command = tool("timeout").args(["20", "openssl", "s_client", "-connect", &format!("127.0.0.1:{port}")]);
    command = command.args(["-alpn", "afterimage-data/1", "-ign_eof"]).args(more);
    if let Some([certificate, key]) = identity {
        command = command.args(["-cert", certificate, "-key", key]);
    }
    let done = command.run_any();
    format!("{}{}", done.stdout, done.stderr)
}

/// Waits until the log says it.
fn hear(read: impl Fn() -> String, words: &[&str]) {
    let until = Instant::now() + Duration::from_secs(60);
    while !read().lines().any(|line| words.iter().all(|w| line.contains(w))) {
        assert!(Instant::now() < until, "nothing in the log of {words:?}:\n{}", read());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Sends bytes and returns the answer, all of it.
fn say(port: u16, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream.write_all(bytes).unwrap();
    let mut answer = Vec::new();
    // It may be cut off at once.
    let _ = stream.read_to_end(&mut answer);
    answer
}

fn write(pair: &Pair, pattern: u8) {
    tool("qemu-io").args(["-f", "raw", "-c", &format!("write -P {pattern} 0 1M"), "-c", "flush", &pair.uri()]).run();
}

/// A pair that has joined, and its mgmt.
fn joined() -> (Pair, Mgmt) {
    let mut pair = Pair::plan(8 * MIB, "64MiB");
    let mgmt = Mgmt::start(&pair.path("."));
    for (role, name) in [(Role::Appliance, "vault"), (Role::Agent, "web")] {
        let word = if role == Role::Agent { "agent" } else { "appliance" };
        let done = mgmt.join(&pair.data(role), word, &mgmt.token(word, name, &[]));
        assert!(done.status.success(), "{}", done.describe());
        pair.start(role);
    }
    pair.wait_live();
    (pair, mgmt)
}

#[test]
fn who_has_joined_is_protected_and_nobody_else_gets_in() {
    let (mut pair, mut mgmt) = joined();
    write(&pair, 7);
    pair.wait_durable();
    pair.assert_history_is_the_disk();
    let appliance_log = |p: &Pair| p.log(Role::Appliance);

    // Plain text, garbage, silence of a kind: an alert of TLS at most, never a word of the protocol.
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0u8; 100], b"AIWIRE\0\0\x01\0\0\0"] {
        for port in [pair.wire, mgmt.port, mgmt.api] {
            let answer = say(port, bytes);
            assert!(answer.is_empty() || (answer[0] == 0x15 && answer.len() <= 7), "port {port}: {answer:?}");
        }
    }
    hear(|| appliance_log(&pair), &["refused", "does not speak TLS"]);
    hear(|| mgmt.log(), &["does not speak TLS"]);
    // No TLS before 1.3, nobody without a certificate.
    let heard = openssl(pair.wire, &["-tls1_2"], None);
    assert!(heard.contains("alert protocol version"), "{heard}");
    let heard = openssl(pair.wire, &[], None);
    assert!(heard.contains("alert certificate required"), "{heard}");
    hear(|| appliance_log(&pair), &["refused", "1.3 is asked for"]);
    hear(|| appliance_log(&pair), &["refused", "shows no certificate"]);

    // A member of another mgmt.
    let other = Pair::plan(MIB, "64MiB");
    let strange = Mgmt::start(&other.path("."));
    for (role, word) in [(Role::Appliance, "appliance"), (Role::Agent, "agent")] {
        let done = strange.join(&other.data(role), word, &strange.token(word, "stranger", &[]));
        assert!(done.status.success(), "{}", done.describe());
    }
    let heard = openssl(pair.wire, &[], Some(&pem_files(&other.data(Role::Agent))));
    assert!(heard.contains("alert unknown ca"), "{heard}");
    hear(|| appliance_log(&pair), &["refused", "'stranger'", "another CA"]);
    // Its token says whose it is: this mgmt does not hear the secret.
    let token = strange.token("agent", "x", &[]);
    let done = mgmt.join(&other.path("nobody"), "agent", &token);
    assert!(done.stderr.contains("does not have the CA that the token names"), "{}", done.describe());

    // A member of another vault of the same mgmt, and an appliance in the place of an agent.
    let second = pair.path("second-vault");
    assert!(mgmt.join(&second, "appliance", &mgmt.token("appliance", "second", &[])).status.success());
    let neighbour = pair.path("neighbour");
    let token = mgmt.token("agent", "neighbour", &["--appliance", "second"]);
    assert!(mgmt.join(&neighbour, "agent", &token).status.success());
    let again = mgmt.join(&pair.path("replayed"), "agent", &token);
    assert!(again.status.code() == Some(1) && again.stderr.contains("used already"), "{}", again.describe());
    hear(|| mgmt.log(), &["may not join", "used already"]);
    for (data, why) in [(&neighbour, "another vault"), (&second, "it is for appliance")] {
        let heard = openssl(pair.wire, &[], Some(&pem_files(data)));
        assert!(heard.contains("alert access denied") || heard.contains("alert bad certificate"), "{heard}");
        hear(|| appliance_log(&pair), &["refused", why]);
    }

    // mgmt forgets nothing in a kill; and while it is away nothing stops.
    mgmt.kill();
    write(&pair, 8);
    pair.wait_durable();
    mgmt.run(&["--certificate-life", "10s"]);
    let listed = mgmt.cli(&["ls"]).run().stdout;
    assert!(["vault", "web", "neighbour"].iter().all(|name| listed.contains(name)), "{listed}");
    let audit = mgmt.cli(&["audit"]).run().stdout;
    assert!(audit.contains("join") && audit.contains("agent web") && audit.contains("uid"), "{audit}");

    // An expired certificate.
    let late = pair.path("late");
    assert!(mgmt.join(&late, "agent", &mgmt.token("agent", "late", &["--appliance", "vault"])).status.success());
    let files = pem_files(&late);
    std::thread::sleep(Duration::from_secs(12));
    let heard = openssl(pair.wire, &[], Some(&files));
    assert!(heard.contains("alert certificate expired"), "{heard}");
    hear(|| appliance_log(&pair), &["refused", "'late'", "expired"]);

    // No way back to plain text.
    assert!(pair.stop(Role::Agent).success(), "{}", pair.logs());
    let config = pair.path("agent.toml");
    let refused = pair.cli(Role::Agent, "agent --insecure --config").arg(&config).run_failing(2);
    assert!(refused.stderr.contains("has joined mgmt"), "{}", refused.describe());
}

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

/// What every port of every role answers to a stranger, to a member of another vault, and to garbage: nothing but a refusal.
#[test]
fn every_port_of_every_role_answers_with_a_refusal() {
    let (mut pair, mgmt) = joined();
    // All there is to be scanned: a port that nobody knows of is a finding. The protected host has none beside NBD on loopback,
    // which serves who reaches it; with TLS required it refuses as the other test of NBD shows.
    let of = |p: &mut Pair, role| listening(p.process(role).id());
    assert_eq!(of(&mut pair, Role::Agent), [pair.nbd]);
    assert_eq!(of(&mut pair, Role::Appliance), [pair.wire]);
    let mut own = vec![mgmt.port, mgmt.api];
    own.sort_unstable();
    assert_eq!(listening(mgmt.process.as_ref().unwrap().id()), own);

    let alert = |answer: &[u8]| answer.is_empty() || (answer[0] == 0x15 && answer.len() <= 7);
    let mut garbage: Vec<Vec<u8>> = vec![b"\n\n".to_vec(), b"\x16\x03\x01\xff\xff".repeat(9), vec![0xff; 3000]];
    garbage
        .extend((0..8_u8).map(|n| (0..200_u8).map(|i| i.wrapping_mul(37).wrapping_add(n.wrapping_mul(91))).collect()));
    for port in [pair.wire, mgmt.port, mgmt.api] {
        for bytes in &garbage {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
            let _ = stream.write_all(bytes).and_then(|()| stream.shutdown(std::net::Shutdown::Write));
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer);
            assert!(alert(&answer), "port {port} answers {answer:?} to {:?}", &bytes[..bytes.len().min(20)]);
        }
        assert!(openssl(port, &["-tls1_2"], None).contains("alert protocol version"), "port {port}");
    }

    // A member of another vault of the same mgmt.
    let second = pair.path("second-vault");
    assert!(mgmt.join(&second, "appliance", &mgmt.token("appliance", "second", &[])).status.success());
    let neighbour = pair.path("neighbour");
    let token = mgmt.token("agent", "neighbour", &["--appliance", "second"]);
    assert!(mgmt.join(&neighbour, "agent", &token).status.success());
    let files = pem_files(&neighbour);
    for protocol in ["afterimage-data/1", "afterimage-probe/1"] {
        let heard = openssl(pair.wire, &["-alpn", protocol], Some(&files));
        assert!(
            heard.contains("alert access denied") || heard.contains("alert bad certificate"),
            "{protocol}: {heard}"
        );
    }
    // At the API a certificate is nothing: it hears what strangers hear, wherever it looks.
    let ca = pair.path("ca.pem");
    std::fs::write(&ca, mgmt.cli(&["ca"]).run().stdout).unwrap();
    let curl = |path: &str, token: &str| {
        let url = format!("https://localhost:{}{path}", mgmt.api);
        let head = format!("Authorization: Bearer {token}");
        let [certificate, key] = &files;
        let options = ["-s", "-i", "--cert", certificate, "--key", key, "-H", &head, "--cacert"];
        let done = tool("curl").args(options).arg(&ca).arg(url).run().stdout;
        let head_end = done.find("\r\n\r\n").unwrap();
        (done[..12].to_owned(), done[head_end..].to_owned())
    };
    let token = mgmt.cli(&["api-token", "create", "--name", "me"]).run().stdout;
    let good = curl("/v1/status", token.trim());
    assert!(good.0 == "HTTP/1.1 200" && good.1.contains("\"caller\":\"me (viewer"), "{good:?}");
    let refused = curl("/", "");
    assert_eq!(refused.0, "HTTP/1.1 401");
    let other = format!("aia1.{}", "0".repeat(64));
    for path in ["/v1/status", "/metrics", "/v1/openapi.json", "/v1/api-tokens", "/.git/config", "/v1/machines/web"] {
        for token in ["", "x", &other] {
            assert_eq!(curl(path, token), refused, "{path} with {token:?}");
        }
    }
    hear(|| mgmt.log(), &["API", "was refused", "was not made here"]);
}

/// Everything that mgmt can be asked goes over its API, from any host with a token, as far as the token's role allows.
#[test]
fn commands_go_over_the_api_from_any_host_as_their_token_says() {
    let dir = tempfile::tempdir().unwrap();
    let mgmt = Mgmt::start(dir.path());
    let token = |role: &str| mgmt.cli(&["api-token", "create", "--name", role, "--role", role]).run().stdout;
    let (admin, operator, viewer) = (token("admin"), token("operator"), token("viewer"));
    // Elsewhere there is no data folder of mgmt.
    let elsewhere = dir.path().join("elsewhere");
    let address = format!("127.0.0.1:{}", mgmt.api);
    let ask = |token: &str, words: &[&str]| {
        let tool = afterimage(&elsewhere).env("AFTERIMAGE_API_TOKEN", token.trim());
        tool.args(words).args(["--mgmt", &address])
    };
    let join = ask(&admin, &["mgmt", "token", "create", "--role", "appliance", "--name", "vault"]).run().stdout;
    assert!(mgmt.join(&dir.path().join("vault"), "appliance", join.trim()).status.success());
    ask(&operator, &["group", "create", "shop", "--every", "0s"]).run();
    assert!(ask(&viewer, &["group", "ls"]).run().stdout.contains("shop"));
    assert!(ask(&viewer, &["mgmt", "ls"]).run().stdout.contains("vault"));
    for (token, words) in [
        (&operator, &["mgmt", "token", "create"][..]),
        (&operator, &["mgmt", "audit"]),
        (&operator, &["mgmt", "revoke", "vault"]),
        (&viewer, &["group", "set", "shop", "--every", "1s"]),
        (&viewer, &["group", "point", "shop", "--name", "x"]),
        (&viewer, &["policy", "create", "x"]),
    ] {
        let refused = ask(token, words).run_failing(1);
        assert!(refused.stderr.contains("this takes a"), "{}", refused.describe());
    }
    let audit = ask(&admin, &["mgmt", "audit"]).run().stdout;
    assert!(audit.contains("operator (operator, API token") && audit.contains("create-group"), "{audit}");
    assert!(ask(&admin, &["mgmt", "revoke", "vault"]).run().stdout.contains("1 certificates revoked"));
    // On mgmt's own host its user needs no token, and the audit log says who he was.
    mgmt.cli(&["audit"]).run();
    let here = afterimage(&mgmt.data).args(["group", "remove", "shop", "--yes"]).run();
    assert!(here.stdout.contains("removed"), "{}", here.describe());
    let lost = afterimage(&elsewhere).args(["group", "ls"]).run_failing(2);
    assert!(lost.stderr.contains("where is mgmt?"), "{}", lost.describe());
}

#[test]
fn a_revoked_machine_is_cut_off_at_once_and_its_guest_goes_on() {
    let (mut pair, mgmt) = joined();
    hear(|| mgmt.log(), &["agent", "'web'", "session begins"]);
    hear(|| mgmt.log(), &["appliance", "'vault'", "session begins"]);
    let said = mgmt.cli(&["revoke", "web"]).run().stdout;
    assert!(said.contains("1 certificates revoked") && said.contains("appliance vault refuses it now"), "{said}");
    hear(|| pair.log(Role::Appliance), &["'web'", "cut off"]);
    pair.wait_volume(Role::Agent, "disconnected", |v| v["connected"] == false);
    write(&pair, 9);
    // A restart changes nothing: the appliance has kept the list.
    assert!(pair.stop(Role::Appliance).success(), "{}", pair.logs());
    pair.start(Role::Appliance);
    hear(|| pair.log(Role::Appliance), &["refused", "'web'", "was revoked"]);
    // The machine comes back in its own place, with its own volumes.
    assert!(pair.stop(Role::Agent).code().is_some());
    let token = mgmt.token("agent", "web", &["--replace"]);
    let address = format!("127.0.0.1:{}", mgmt.port);
    let file = pair.path("token");
    std::fs::write(&file, token).unwrap();
    afterimage(&pair.data(Role::Agent)).args(["agent", "join", &address, "--again", "--token-file"]).arg(&file).run();
    pair.start(Role::Agent);
    pair.wait_live();
    pair.wait_durable();
    pair.assert_history_is_the_disk();
    assert!(pair.log(Role::Appliance).contains(&format!("volume {DISK}: belongs to machine 'web'")));
}

#[test]
fn certificates_are_renewed_while_all_goes_on() {
    let mut pair = Pair::plan(8 * MIB, "64MiB");
    let mut mgmt = Mgmt::start(&pair.path("."));
    mgmt.kill();
    mgmt.run(&["--certificate-life", "20s"]);
    for (role, word) in [(Role::Appliance, "appliance"), (Role::Agent, "agent")] {
        assert!(mgmt.join(&pair.data(role), word, &mgmt.token(word, word, &[])).status.success());
        pair.start(role);
    }
    pair.wait_live();
    for role in [Role::Agent, Role::Appliance] {
        hear(|| pair.log(role), &["certificate was renewed"]);
    }
    // Past the end of the first ones, with a new connection.
    std::thread::sleep(Duration::from_secs(20));
    pair.kill(Role::Appliance);
    pair.start(Role::Appliance);
    write(&pair, 5);
    pair.wait_durable();
    pair.assert_history_is_the_disk();
}

#[test]
fn nbd_over_tcp_is_for_those_with_a_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let (mgmt, strange) = (Mgmt::start(&dir.path().join("own")), Mgmt::start(&dir.path().join("strange")));
    let folder = |name: &str| dir.path().join(name).display().to_string();
    let (server, client, stranger) = (folder("server"), folder("client"), folder("stranger"));
    mgmt.cli(&["certify", "disks", "--host", "localhost", "--host", "127.0.0.1", "--to", &server]).run();
    mgmt.cli(&["certify", "me", "--to", &client]).run();
    strange.cli(&["certify", "you", "--to", &stranger]).run();
    std::fs::copy(format!("{server}/ca-cert.pem"), format!("{stranger}/ca-cert.pem")).unwrap();
    let image = dir.path().join("d.raw");
    data::sparse(&image, 16 * MIB);
    let port = data::free_port();
    let listen = format!("tcp:127.0.0.1:{port}");
    let options = ["--listen", &listen, "--nbd-tls-dir", &server];
    let daemon = afterimage_tests::daemon::daemon(dir.path()).volume(DISK, &image).options(options).start();
    let secure = |with: &str| format!("nbds://127.0.0.1:{port}/{DISK}?tls-certificates={with}");

    let told = tool("nbdinfo").arg(secure(&client)).run();
    assert!(told.stdout.contains("with TLS") && told.stdout.contains("export-size: 16777216"), "{}", told.describe());
    let credentials = format!("tls-creds-x509,id=t,endpoint=client,dir={client}");
    let place = format!("driver=nbd,host=127.0.0.1,port={port},export={DISK},tls-creds=t");
    let writes = ["-c", "write -P 5 0 8M", "-c", "flush", "-c", "read -P 5 0 8M", "-c", "read -P 0 8M 8M"];
    let wrote = tool("qemu-io").args(["--object", &credentials, "--image-opts", &place]).args(writes).run();
    assert!(!wrote.stdout.contains("failed"), "{}", wrote.describe());
    let copy = dir.path().join("copy.raw");
    tool("nbdcopy").arg(secure(&client)).arg(&copy).run();
    assert!(std::fs::read(&copy).unwrap() == std::fs::read(&image).unwrap(), "nbdcopy has what the disk has");
    let raw = format!("driver=raw,file.driver=file,file.filename={}", copy.display());
    tool("qemu-img").args(["compare", "--object", &credentials, "--image-opts", &place, &raw]).run();
    let uri: afterimage_nbd::client::Uri = secure(&client).parse().unwrap();
    let mut own = uri.connect().unwrap();
    let read = own.call(&afterimage_nbd::client::Command::Read { offset: 0, len: 4096 }).unwrap();
    assert!(read.data.iter().all(|b| *b == 5));

    // Plain text hears that TLS is needed; a certificate of somebody else ends the conversation.
    let plain = tool("nbdinfo").arg(format!("nbd://127.0.0.1:{port}/{DISK}")).run_any();
    assert!(!plain.status.success() && !plain.stdout.contains("export-size"), "{}", plain.describe());
    for name in [DISK, "no-such-export"] {
        let plain: afterimage_nbd::client::Uri = format!("nbd://127.0.0.1:{port}/{name}").parse().unwrap();
        let heard = plain.connect().unwrap_err().to_string();
        assert!(heard.contains("STARTTLS"), "who has no certificate does not hear what there is: {heard}");
    }
    assert!(!tool("nbdinfo").arg(secure(&stranger)).run_any().status.success());
    hear(|| daemon.log(), &["NBD", "refused", "'you'", "another CA"]);
}

//! mgmt, an appliance and an agent with certificates: who joins, who is let in, and what everybody else hears: a refusal.

#![allow(clippy::unwrap_used, reason = "in a test a panic is a failure")]

use afterimage_tests::daemon::number;
use afterimage_tests::data;
use afterimage_tests::lab::DISK;
use afterimage_tests::mgmt::{Mgmt, afterimage, hear, openssl, pem_files, say};
use afterimage_tests::pair::{Pair, Role};
use afterimage_tests::process::{Process, wait_until};
use afterimage_tests::tool::tool;
use std::path::Path;
use std::time::Duration;

const MIB: u64 = 1 << 20;
const DATA: &str = "afterimage-data/1";

fn write(pair: &Pair, pattern: u8) {
    tool("qemu-io").args(["-f", "raw", "-c", &format!("write -P {pattern} 0 1M"), "-c", "flush", &pair.uri()]).run();
}

/// A pair that has joined, and its mgmt.
fn joined() -> (Pair, Mgmt) {
    afterimage_tests::mgmt::joined(8 * MIB, |_, _| {})
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
            let answer = say(port, bytes, false);
            assert!(answer.is_empty() || (answer[0] == 0x15 && answer.len() <= 7), "port {port}: {answer:?}");
        }
    }
    hear(|| appliance_log(&pair), &["refused", "does not speak TLS"]);
    hear(|| mgmt.log(), &["does not speak TLS"]);
    // No TLS before 1.3, nobody without a certificate.
    let heard = openssl(pair.wire, DATA, &["-tls1_2"], None);
    assert!(heard.contains("alert protocol version"), "{heard}");
    let heard = openssl(pair.wire, DATA, &[], None);
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
    let heard = openssl(pair.wire, DATA, &[], Some(&pem_files(&other.data(Role::Agent))));
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
        let heard = openssl(pair.wire, DATA, &[], Some(&pem_files(data)));
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
    let heard = openssl(pair.wire, DATA, &[], Some(&files));
    assert!(heard.contains("alert certificate expired"), "{heard}");
    hear(|| appliance_log(&pair), &["refused", "'late'", "expired"]);

    // No way back to plain text.
    assert!(pair.stop(Role::Agent).success(), "{}", pair.logs());
    let config = pair.path("agent.toml");
    let refused = pair.cli(Role::Agent, "agent --insecure --config").arg(&config).run_failing(2);
    assert!(refused.stderr.contains("has joined mgmt"), "{}", refused.describe());
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

/// A second machine of the same vault comes by a copy of another one's folder, and even has its disk: what it writes there is served as ever, and
/// nothing of it gets into the history of the machine whose volume it is.
#[test]
fn a_machine_with_a_copy_of_anothers_folder_does_not_touch_its_history() {
    let (mut pair, mgmt) = joined();
    write(&pair, 7);
    pair.wait_durable();
    assert!(pair.stop(Role::Agent).success(), "{}", pair.logs());
    let durable = |pair: &Pair| number(&pair.try_volume(Role::Appliance).unwrap(), "seq_durable");
    let (before, kept) = (durable(&pair), pair.path("kept.raw"));
    std::fs::copy(&pair.image, &kept).unwrap();

    let copy = pair.path("copycat");
    mgmt.enrol(&copy, "agent", "copycat", &[]);
    tool("cp").arg("-a").arg(pair.data(Role::Agent).join("agent")).arg(&copy).run();
    let text = std::fs::read_to_string(pair.path("agent.toml")).unwrap();
    let own = text.replace(&pair.data(Role::Agent).display().to_string(), &copy.display().to_string());
    assert_ne!(own, text);
    std::fs::write(pair.path("copycat.toml"), own).unwrap();
    let command = afterimage(&copy).args(["agent", "--config"]).arg(pair.path("copycat.toml"));
    let mut thief = Process::start(command.into_command(), &pair.path("copycat.log"));
    let reason = || {
        let status = afterimage(&copy).args(["status", "--json"]).run_any();
        let status: serde_json::Value = serde_json::from_str(&status.stdout).unwrap_or_default();
        status["volumes"][0]["reason"].as_str().unwrap_or_default().to_owned()
    };
    thief.wait_until("the reason", || reason().contains("belongs to another machine"));
    hear(|| pair.log(Role::Appliance), &["belongs to another machine than 'copycat'"]);
    let refusals = || pair.log(Role::Appliance).matches("belongs to another machine than 'copycat'").count();
    let heard = refusals();
    write(&pair, 9);
    // It has tried again, with what was written, and nothing came of it.
    wait_until("another refusal", || refusals() > heard + 1);
    assert_eq!(durable(&pair), before);
    let restored = pair.path("restored.raw");
    pair.restore(&format!("@{before}"), &restored);
    data::assert_same(&kept, &restored);
    thief.terminate();

    // The owner is back: it sees that somebody has written to its disk, and its history goes on.
    pair.start(Role::Agent);
    pair.wait_live();
    pair.assert_history_is_the_disk();
    pair.restore(&format!("@{before}"), &restored);
    data::assert_same(&kept, &restored);
    assert!(durable(&pair) > before);
    let owners = pair.log(Role::Appliance).matches(&format!("volume {DISK}: belongs to machine '")).count();
    assert_eq!(owners, 1, "{}", pair.log(Role::Appliance));
}

/// Whoever follows the events hears each of them once and in order, also when mgmt is away for a while.
#[test]
fn events_are_followed_over_a_mgmt_that_was_away() {
    let dir = tempfile::tempdir().unwrap();
    let mut mgmt = Mgmt::start(dir.path());
    let token = mgmt.api_token("follower", "viewer");
    let address = format!("127.0.0.1:{}", mgmt.api);
    let follow = ["event", "ls", "--follow", "--json", "--limit", "1"];
    let ways = [
        ("here.log", afterimage(&mgmt.data).args(follow)),
        (
            "api.log",
            afterimage(&dir.path().join("x"))
                .env("AFTERIMAGE_API_TOKEN", token)
                .args(follow)
                .args(["--mgmt", &address]),
        ),
    ];
    let followers = ways.map(|(log, tool)| {
        let log = dir.path().join(log);
        (Process::start(tool.into_command(), &log), log)
    });
    let read = |log: &Path| std::fs::read_to_string(log).unwrap();
    let mgmt_data = mgmt.data.clone();
    let policy = |name: &str| afterimage(&mgmt_data).args(["policy", "create", name]);
    let everybody_hears = |words: &[&str]| followers.iter().for_each(|(_, log)| hear(|| read(log), words));
    // The newest at once, and then what comes.
    everybody_hears(&["\"id\""]);
    policy("first").run();
    everybody_hears(&["policy first"]);
    mgmt.kill();
    everybody_hears(&["waiting for it"]);
    mgmt.run(&[]);
    policy("second").run();
    everybody_hears(&["policy second"]);
    for (_, log) in &followers {
        let text = read(log);
        let events = text.lines().filter(|line| line.starts_with('{'));
        let events: Vec<serde_json::Value> = events.map(|line| serde_json::from_str(line).unwrap()).collect();
        let ids: Vec<i64> = events.iter().map(|e| e["id"].as_i64().unwrap()).collect();
        let first = ids[0];
        assert_eq!(ids, (first..first + ids.len() as i64).collect::<Vec<_>>(), "one after the other: {text}");
        for name in ["policy first", "policy second"] {
            assert_eq!(events.iter().filter(|e| e["object"] == name).count(), 1, "{name}: {text}");
        }
    }
}

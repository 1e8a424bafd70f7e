//! Agent and appliance as two processes, from the example files: every command at the data folder of either, each told
//! clearly where it has to ask the other.

use afterimage_tests::daemon::number;
use afterimage_tests::data;
use afterimage_tests::lab::DISK;
use afterimage_tests::pair::{Pair, Role};
use afterimage_tests::tool::tool;

const MIB: u64 = 1 << 20;

#[test]
fn the_examples_start_and_each_role_answers_what_it_knows() {
    let mut pair = Pair::new(32 * MIB);
    tool("qemu-io").args(["-f", "raw", "-c", "write -P 1 0 4M", "-c", "flush", &pair.uri()]).run();
    let made = pair.cli(Role::Agent, "point create").args([DISK, "--name", "first", "--json"]).run().stdout;
    let made: serde_json::Value = serde_json::from_str(&made).unwrap();
    tool("qemu-io").args(["-f", "raw", "-c", "write -P 2 0 4M", "-c", "flush", &pair.uri()]).run();
    pair.wait_durable();

    let points = pair.cli(Role::Appliance, "point ls").args([DISK, "--json"]).run().stdout;
    let points: serde_json::Value = serde_json::from_str(&points).unwrap();
    let first = points["points"].as_array().unwrap().iter().find(|p| p["name"] == "first").unwrap();
    assert_eq!((&first["seq"], &first["time"]), (&made["seq"], &made["time"]));
    let restored = pair.path("first.raw");
    pair.restore("first", &restored);
    let check = ["-r", "-f", "raw", "-c", "read -P 1 0 4M", "-c", "read -P 0 4M 28M"];
    let read = tool("qemu-io").args(check).arg(&restored).run();
    assert!(!read.stdout.contains("verification failed"), "{}", read.describe());
    pair.assert_history_is_the_disk();
    let diff = pair.cli(Role::Appliance, "diff").args([DISK, "--from", "first"]).run();
    assert!(diff.stdout.contains("4 MiB in 1 extents"), "{}", diff.describe());

    // Nobody writes: a moment since then is the newest image.
    std::thread::sleep(std::time::Duration::from_secs(6));
    let idle = pair.path("idle.raw");
    pair.restore("-2s", &idle);
    data::assert_same(&pair.image, &idle);

    // What each shows.
    let (agent, appliance) = (pair.try_volume(Role::Agent).unwrap(), pair.try_volume(Role::Appliance).unwrap());
    assert_eq!((&agent["id"], &agent["connected"]), (&appliance["id"], &appliance["connected"]));
    assert_eq!((&agent["state"], &appliance["state"]), (&"live".into(), &"live".into()));
    assert!(number(&agent, "ring_bytes") == 64 * MIB && number(&appliance, "stored_bytes") > 0);
    let metrics = pair.cli(Role::Agent, "status --format prometheus").run().stdout;
    assert!(metrics.contains(&format!("afterimage_volume_state{{volume=\"{DISK}\",state=\"live\"}} 1")), "{metrics}");
    pair.cli(Role::Appliance, "wait").args([DISK, "--for", "durable"]).run();

    // What the other has to be asked.
    let appliance_address = format!("tcp:127.0.0.1:{}", pair.wire);
    for command in
        ["point ls disk", "restore disk --to /nowhere/x", "diff disk --from @1", "export disk --listen unix:/nowhere/x"]
    {
        let refused = pair.cli(Role::Agent, command).run_failing(1);
        assert!(
            refused.stderr.contains(&appliance_address) && refused.stderr.contains("--data"),
            "{}",
            refused.describe()
        );
    }
    let refused = pair.cli(Role::Appliance, "point create").args([DISK, "--name", "x"]).run_failing(1);
    assert!(refused.stderr.contains("agent"), "{}", refused.describe());
    // The appliance knows nothing of the agent's disks, and yet nothing is restored onto one.
    let onto = pair.cli(Role::Appliance, "restore").args([DISK, "--yes", "--to"]).arg(&pair.image).run_failing(1);
    assert!(onto.stderr.contains("in use by another process"), "{}", onto.describe());

    assert!(pair.stop(Role::Agent).success(), "{}", pair.logs());
    let gone = pair.wait_volume(Role::Appliance, "offline", |v| v["state"] == "offline");
    assert_eq!(gone["connected"], false);
    assert!(pair.stop(Role::Appliance).success(), "{}", pair.logs());
    for role in [Role::Agent, Role::Appliance] {
        let checked = pair.cli(role, "check").run();
        println!("{}", checked.stdout);
    }
}

#[test]
fn bad_configurations_say_what_and_where() {
    let pair = Pair::plan(MIB, "64MiB");
    let config = pair.path("agent.toml");
    let good = std::fs::read_to_string(&config).unwrap();
    let run = |text: &str| {
        std::fs::write(&config, text).unwrap();
        pair.cli(Role::Agent, "agent --config").arg(&config).run_failing(2).stderr
    };
    let said = run(&format!("rnig = \"1MiB\"\n{good}"));
    assert!(said.contains("agent.toml") && said.contains("unknown field `rnig`"), "{said}");
    let said = run(&good.replace("appliance = \"tcp:127.0.0.1", "appliance = \"tcp:192.0.2.7"));
    assert!(said.contains("not encrypted") && said.contains("insecure"), "{said}");
    let said = pair.cli(Role::Agent, "agent").run_failing(2).stderr;
    assert!(said.contains("does not know its appliance"), "{said}");
    let said = pair.cli(Role::Appliance, "appliance --listen tcp:0.0.0.0").run_failing(2).stderr;
    assert!(said.contains("tcp:0.0.0.0:9443") && said.contains("not encrypted"), "{said}");
    // A port that is taken.
    let port = data::free_port();
    let _taken = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    let said = pair.cli(Role::Appliance, &format!("appliance --listen tcp:127.0.0.1:{port}")).run_failing(1).stderr;
    assert!(said.contains(&port.to_string()) && said.contains("cannot listen there"), "{said}");
}

/// The same data folder, divided: what `up` has made goes on as two processes.
#[test]
fn a_folder_of_up_can_be_divided() {
    let mut pair = Pair::plan(16 * MIB, "64MiB");
    let whole = afterimage_tests::daemon::daemon(&pair.path("whole"));
    std::fs::create_dir(pair.path("whole")).unwrap();
    let mut up = whole.volume(DISK, &pair.image).start();
    up.wait_live(DISK);
    tool("qemu-io").args(["-f", "raw", "-c", "write -P 1 0 4M", "-c", "flush", &up.uri(DISK)]).run();
    let seq = up.wait_durable(DISK);
    assert!(up.stop().success(), "{}", up.log());
    for (role, part) in [(Role::Agent, "agent"), (Role::Appliance, "vault")] {
        std::fs::create_dir(pair.data(role)).unwrap();
        std::fs::copy(up.data().join("VERSION"), pair.data(role).join("VERSION")).unwrap();
        std::fs::rename(up.data().join(part), pair.data(role).join(part)).unwrap();
    }
    pair.start(Role::Appliance);
    pair.start(Role::Agent);
    pair.wait_live();
    assert!(pair.wait_durable() >= seq);
    assert_eq!(number(&pair.try_volume(Role::Agent).unwrap(), "gaps"), 0, "no new copy of the disk: {}", pair.logs());
    pair.assert_history_is_the_disk();
}

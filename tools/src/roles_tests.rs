use super::*;
use crate::cli::{Cli, Command};
use afterimage_agent::CacheMode;
use clap::Parser;

const FILE: &str = r#"
    appliance = "tcp:127.0.0.1"
    ring = "64MiB"
    [[volume]]
    path = "/images/web.raw"
    [[volume]]
    name = "db"
    path = "/dev/vg0/db"
    ring = "256MiB"
    cache = "none"
"#;

fn agent_of(words: &[&str]) -> Result<AgentSettings, Problem> {
    let dir = tempfile::tempdir().unwrap();
    let file = toml::from_str(FILE).unwrap();
    match Cli::try_parse_from([&["afterimage", "agent"], words].concat()).unwrap().command {
        Command::Agent(args) => agent_settings(file, args, dir.path()),
        _ => unreachable!(),
    }
}

fn appliance_of(text: &str, words: &[&str]) -> Result<ApplianceSettings, Problem> {
    let dir = tempfile::tempdir().unwrap();
    let file = toml::from_str(text).unwrap();
    match Cli::try_parse_from([&["afterimage", "appliance"], words].concat()).unwrap().command {
        Command::Appliance(args) => appliance_settings(file, args, dir.path()),
        _ => unreachable!(),
    }
}

#[test]
fn flags_override_the_file() {
    let plain = agent_of(&[]).unwrap();
    let shapes: Vec<(&str, u64, CacheMode)> = plain.disks.iter().map(|d| (&*d.name, d.ring >> 20, d.cache)).collect();
    assert_eq!(shapes, [("web", 64, CacheMode::Writeback), ("db", 256, CacheMode::None)]);
    assert_eq!(plain.point_every, Some(POINT_EVERY));
    let flags =
        ["--appliance", "unix:/x", "--ring", "1m@1MiB/s", "--cache", "writeback", "--point-every", "0", "x=/x.img"];
    let other = agent_of(&flags).unwrap();
    assert_eq!(other.reach, Reach::At { endpoint: Endpoint::Unix("/x".into()), local_only: true });
    assert_eq!(other.point_every, None);
    assert_eq!(other.disks.len(), 3);
    assert!(other.disks.iter().all(|d| d.ring == 60 << 20 && d.cache == CacheMode::Writeback));
    let twice = agent_of(&["db=/other"]).unwrap_err();
    assert!(twice.exit == 2 && twice.text.contains("'db'"), "{twice}");
}

#[test]
fn plain_text_stays_on_this_machine_unless_allowed() {
    let refused = agent_of(&["--appliance", "tcp:192.0.2.7"]).unwrap_err();
    assert!(refused.exit == 2 && refused.text.contains("tcp:192.0.2.7:9443") && refused.text.contains("insecure"));
    let allowed = agent_of(&["--appliance", "tcp:192.0.2.7", "--insecure"]).unwrap();
    assert!(matches!(allowed.reach, Reach::At { local_only: false, .. }));
    assert!(matches!(agent_of(&[]).unwrap().reach, Reach::At { local_only: true, .. }));
    for text in ["listen = [\"tcp:0.0.0.0\"]", "listen = [\"tcp:127.0.0.1\", \"tcp:[::]\"]"] {
        assert!(appliance_of(text, &[]).unwrap_err().text.contains("not encrypted"), "{text}");
        appliance_of(text, &["--insecure"]).unwrap();
        appliance_of(&format!("insecure = true\n{text}"), &[]).unwrap();
        appliance_of(text, &["--listen", "tcp:[::1]:0"]).unwrap();
    }
}

#[test]
fn an_appliance_has_one_key_and_at_least_one_thread() {
    let both = "key_file = \"/k\"\npassphrase_file = \"/p\"";
    assert!(appliance_of(both, &[]).unwrap_err().text.contains("one key"));
    appliance_of(both.lines().next().unwrap(), &[]).unwrap();
    assert_eq!(appliance_of("threads = 0", &[]).unwrap_err().exit, 2);
    let settings = appliance_of("threads = 3\nwindow = \"2d\"\nframe_memory = \"1MiB\"", &["--threads", "5"]).unwrap();
    assert_eq!((settings.threads, settings.window.as_secs()), (Some(5), 2 * 86_400));
    assert_eq!(settings.memory, [None, Some(1 << 20), None, None]);
}

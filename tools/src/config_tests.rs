use super::*;

fn parse<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.toml");
    std::fs::write(&path, text).unwrap();
    load(&path).map_err(|p| {
        assert!(p.text.contains("x.toml: "), "{p}");
        p.text
    })
}

#[test]
fn a_whole_file_is_understood() {
    let text = r#"
        appliance = "tcp:backup.example.org"
        insecure = true
        listen = ["tcp:127.0.0.1:10809"]
        point_every = "1m"
        [[volume]]
        name = "web"
        path = "/images/web.raw"
        ring = "10m@20MiB/s"
        cache = "none"
        [[volume]]
        path = "/dev/vg0/db"
    "#;
    let file: AgentFile = parse(text).unwrap();
    assert_eq!(file.appliance, Some(Endpoint::Tcp("backup.example.org".into(), 9443)));
    assert_eq!(file.volumes[0].ring, Some(RingSize((600 * 20) << 20)));
    assert_eq!(file.volumes[0].cache, Some(Cache::None));
    assert_eq!(file.volumes[1].name, None);
    assert_eq!(parse::<ApplianceFile>("").unwrap(), ApplianceFile::default());
}

#[test]
fn what_is_not_understood_is_named_with_its_key() {
    for (text, names) in [
        ("aplliance = \"unix:/x\"", &["unknown field", "aplliance", "`appliance`"][..]),
        ("[[volume]]\npath = \"/x\"\nrign = \"1MiB\"", &["unknown field", "rign", "line 3"]),
        ("[[volume]]\nname = \"x\"", &["missing field", "path"]),
        ("ring = \"big\"", &["ring", "'big' is not a size"]),
        ("ring = \"10@20MiB\"", &["ring", "'10' is not a duration"]),
        ("appliance = \"backup:9443\"", &["appliance", "is not an address"]),
        ("listen = [\"here\"]", &["listen", "is not an address"]),
        ("cache = \"maybe\"", &["cache", "`writeback` or `none`"]),
        ("insecure = 1", &["insecure", "expected a boolean"]),
        ("insecure = true\ninsecure = false", &["insecure", "duplicate"]),
        ("data = ", &["line 1"]),
    ] {
        let said = parse::<AgentFile>(text).unwrap_err();
        for name in names {
            assert!(said.contains(name), "{text}: {name:?} is not in\n{said}");
        }
    }
    let said = parse::<ApplianceFile>("ring = \"1MiB\"").unwrap_err();
    assert!(said.contains("unknown field `ring`"), "{said}");
}

/// What is commented out in the examples is right, too.
#[test]
fn the_examples_name_every_key() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let whole = |name: &str| {
        let text = std::fs::read_to_string(folder.join(name)).unwrap();
        let bare = |line: &str| {
            line.strip_prefix('#')
                .filter(|l| l.starts_with(|c: char| c.is_ascii_lowercase() || c == '['))
                .map(str::to_owned)
        };
        text.lines().map(|line| bare(line).unwrap_or_else(|| line.to_owned()) + "\n").collect::<String>()
    };
    let agent: AgentFile = parse(&whole("agent.toml")).unwrap();
    assert!(agent.data.is_some() && agent.appliance.is_some() && agent.insecure.is_some() && !agent.listen.is_empty());
    assert!(agent.ring.is_some() && agent.cache.is_some() && agent.point_every.is_some() && agent.sync_rate.is_some());
    assert!(agent.on_foreign_write.is_some() && agent.on_fence.is_some());
    let app = agent.volumes.iter().find_map(|v| v.app.clone()).unwrap();
    assert!(app.every.is_some() && app.guest_agent.is_some() && !app.mounts.is_empty() && !app.pre.is_empty());
    assert!(app.thaw_limit.is_some() && app.settings("web").is_ok());
    assert!(agent.volumes.iter().any(|v| v.name.is_some() && v.ring.is_some() && v.cache.is_some()));
    assert!(agent.volumes.iter().any(|v| v.adopt.is_some()));
    // A passphrase stands instead of a key file, so only one of them is there at a time.
    let text = whole("appliance.toml");
    let appliance: ApplianceFile = parse(&text).unwrap();
    assert!(appliance.key_file.is_some() && appliance.passphrase_file.is_some());
    assert!(appliance.data.is_some() && !appliance.listen.is_empty() && appliance.insecure.is_some());
    assert!(appliance.connections_per_address.is_some() && appliance.window.is_some() && appliance.threads.is_some());
    assert!(appliance.ahead_memory.is_some() && appliance.order_rate.is_some());
    assert!(appliance.min_free.is_some() && appliance.hourly.is_some() && appliance.monthly.is_some());
    assert!(appliance.dedupe_memory.is_some() && appliance.frame_memory.is_some() && appliance.layer_memory.is_some());
}

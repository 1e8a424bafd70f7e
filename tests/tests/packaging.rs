//! The Debian package: built twice it is the same, holds what it should, systemd understands its units and finds them
//! hardened; installed in a real root, upgraded, removed and purged it leaves nothing.

#![allow(clippy::unwrap_used, reason = "in a test a panic is a failure")]

use afterimage_tests::binary::{path_of, repository};
use afterimage_tests::tool::tool;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What `systemd-analyze security` may find at most, in tenths: 0 is nothing exposed, 100 everything.
const EXPOSURE: [(&str, u32); 3] =
    [("afterimage-agent.service", 42), ("afterimage-appliance.service", 20), ("afterimage-mgmt.service", 20)];

fn build(out: &Path) -> PathBuf {
    let build = tool(repository().join("packaging/build-deb.sh")).arg("--binary").arg(path_of("afterimage"));
    PathBuf::from(build.arg("--out").arg(out).run().stdout.trim_end())
}

#[test]
fn the_package_is_reproducible_and_whole() {
    let dir = tempfile::tempdir().unwrap();
    let package = build(&dir.path().join("first"));
    std::thread::sleep(Duration::from_millis(1100));
    let again = build(&dir.path().join("second"));
    assert!(std::fs::read(&package).unwrap() == std::fs::read(&again).unwrap(), "two builds differ");

    let listed = tool("dpkg-deb").arg("-c").arg(&package).run().stdout;
    assert!(listed.lines().all(|l| l.contains(" root/root ")), "{listed}");
    for path in ["usr/bin/afterimage", "etc/afterimage/agent.toml", "lib/systemd/system/afterimage-agent.service"] {
        assert!(listed.contains(&format!(" ./{path}\n")), "{path} is missing:\n{listed}");
    }
    let control = tool("dpkg-deb").arg("-I").arg(&package).arg("control").run().stdout;
    assert!(control.contains("\nDepends: libc6 (>= 2."), "{control}");
    let conffiles = tool("dpkg-deb").arg("-I").arg(&package).arg("conffiles").run().stdout;
    assert_eq!(conffiles, "/etc/afterimage/agent.toml\n/etc/afterimage/appliance.toml\n/etc/afterimage/mgmt.toml\n");

    // Unpacked, it runs, and takes its own configuration: the agent has no disk yet, and says what it serves.
    let root = dir.path().join("root");
    tool("dpkg-deb").arg("-x").arg(&package).arg(&root).run();
    let program = root.join("usr/bin/afterimage");
    assert!(tool(&program).arg("--version").run().stdout.starts_with("afterimage "));
    let config = std::fs::read_to_string(root.join("etc/afterimage/agent.toml")).unwrap();
    assert!(!config.lines().any(|l| l.starts_with("[[volume]]")), "{config}");
    let scripts = ["postinst", "prerm", "postrm"].map(|name| repository().join("packaging/debian").join(name));
    tool("sh").arg("-n").arg(&scripts[0]).run();
    scripts.iter().for_each(|script| drop(tool("sh").arg("-n").arg(script).run()));
}

#[test]
fn systemd_understands_the_units() {
    // `systemd-analyze` (scripts/setup-debian.sh) looks whether the program is there, so the units name the one that is.
    let dir = tempfile::tempdir().unwrap();
    let program = path_of("afterimage").display().to_string();
    let units = EXPOSURE.map(|(name, _)| {
        let text = std::fs::read_to_string(repository().join("packaging/systemd").join(name)).unwrap();
        std::fs::write(dir.path().join(name), text.replace("/usr/bin/afterimage", &program)).unwrap();
        dir.path().join(name)
    });
    let verified = tool("systemd-analyze").args(["verify", "--man=no", "--recursive-errors=no"]).args(&units).run();
    let ours = |l: &&str| l.contains("afterimage");
    let complaints: Vec<&str> = verified.stderr.lines().filter(ours).collect();
    assert!(complaints.is_empty(), "{}", verified.describe());
    for ((name, most), unit) in EXPOSURE.iter().zip(&units) {
        let threshold = format!("--threshold={most}");
        let rated =
            tool("systemd-analyze").args(["security", "--offline=yes", "--no-pager", &threshold]).arg(unit).run();
        println!("{name}: {}", rated.stdout.lines().last().unwrap_or_default());
    }
}

/// The whole way of the package in a Debian of its own (13, or what `AFTERIMAGE_DEBIAN` names), in an overlay on a kept folder.
#[test]
fn the_package_lives_and_goes_in_a_debian_of_its_own() {
    let release = std::env::var("AFTERIMAGE_DEBIAN").unwrap_or_else(|_| "trixie".into());
    if !nix::unistd::geteuid().is_root() {
        println!("not checked: a root of one's own needs root");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let package = build(dir.path());
    let made = tool(repository().join("scripts/debian-root.sh")).arg(&release).deadline(Duration::from_secs(900)).run();
    let script = include_str!("../guest/package.sh");
    let inside = dir.path().join("package.sh");
    std::fs::write(&inside, script).unwrap();
    let done = tool("unshare")
        .args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-e"])
        .arg(&inside)
        .args([made.stdout.trim_end(), &dir.path().display().to_string(), &package.display().to_string()])
        .args(EXPOSURE.map(|(unit, most)| format!("{unit}={most}")))
        .deadline(Duration::from_secs(300))
        .run();
    println!("{release}:\n{}", done.stdout);
}

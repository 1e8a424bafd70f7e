//! Finds our own programs. A test of another package does not get them from cargo, so they are built here once per test
//! run, with the profile and into the target folder that the test itself came from: what is tested is always what the
//! sources say.

use crate::tool::{Tool, tool};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The checkout.
#[must_use]
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// One of the programs of `tools/`: `afterimage`, `afterimage-load`.
///
/// # Panics
/// If it cannot be built.
#[track_caller]
pub fn ours(name: &str) -> Tool {
    tool(path_of(name))
}

/// Where one of the programs of `tools/` lies. `AFTERIMAGE_BIN_DIR` names a folder with other builds of them.
///
/// # Panics
/// If it cannot be built.
#[track_caller]
pub fn path_of(name: &str) -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let path = FOLDER.get_or_init(folder).join(name);
    assert!(path.exists(), "{} is not there", path.display());
    path
}

/// Where cargo put the running test: its target folder, and the folder and the name of the profile.
fn place() -> (PathBuf, PathBuf, String) {
    // target/PROFILE/deps/test-HASH, or target/PROFILE/program
    let me = std::env::current_exe().expect("the path of the running program");
    let folder = me.ancestors().skip(1).find(|f| !f.ends_with("deps")).expect("a folder above the program").to_owned();
    let target = folder.parent().expect("a target folder").to_owned();
    let profile = match folder.file_name().and_then(|n| n.to_str()) {
        Some("debug") | None => "dev",
        Some(name) => name,
    };
    let profile = profile.to_owned();
    (target, folder, profile)
}

/// Cargo's target folder, and the profile of the running test.
pub(crate) fn target_and_profile() -> (PathBuf, String) {
    let (target, _, profile) = place();
    (target, profile)
}

fn folder() -> PathBuf {
    if let Some(folder) = std::env::var_os("AFTERIMAGE_BIN_DIR") {
        return folder.into();
    }
    let (target, folder, profile) = place();
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let hour = std::time::Duration::from_secs(3600);
    // Of the whole workspace: with the features of one package only, what both need would be built once more.
    tool(cargo)
        .args(["build", "--quiet", "--workspace", "--bins", "--profile", &profile, "--manifest-path"])
        .arg(repository().join("Cargo.toml"))
        .arg("--target-dir")
        .arg(target)
        .deadline(hour)
        .run();
    folder
}

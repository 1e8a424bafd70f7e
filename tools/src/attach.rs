//! `afterimage attach` and `detach`: the running process is asked, since it serves the devices.

use crate::problem::Problem;
use crate::show;
use afterimage_mgmt::attach::AttachOptions;
use afterimage_mgmt::client::ControlClient;
use std::fmt::Write as _;
use std::path::Path;

/// Makes a block device and prints its path.
///
/// # Errors
/// What is missing, or in the way.
pub fn attach(data: &Path, volume: &str, options: AttachOptions, json: bool) -> Result<(), Problem> {
    let attached = ControlClient::connect(data)?.attach(volume, options)?;
    if json {
        return show::put(&format!("{}\n", serde_json::to_string(&attached)?));
    }
    show::put(&format!("{}\n", attached.device))
}

/// Takes block devices away and prints their paths.
///
/// # Errors
/// If there is none, or somebody uses it.
pub fn detach(data: &Path, what: &str, json: bool) -> Result<(), Problem> {
    let detached = ControlClient::connect(data)?.detach(what)?;
    if json {
        return show::put(&format!("{}\n", serde_json::to_string(&detached)?));
    }
    let mut text = String::new();
    for device in &detached.devices {
        let _ = writeln!(text, "{device}");
    }
    show::put(&text)
}

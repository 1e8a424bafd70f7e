//! How points of a volume are made app-consistent, as the configuration file says: `[volume.app]` of agent.toml, and the file of
//! `up --app-file`, with a table for each volume.

use crate::config::{Span, load};
use crate::problem::Problem;
use afterimage_agent::app::{Otherwise, Recipe};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Longest time for which something may be frozen: whoever writes waits so long.
const MAX_HOLD: Duration = Duration::from_secs(300);

/// What follows when a step fails.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnFailure {
    /// The point is crash-consistent, and says so.
    #[default]
    Crash,
    /// There is no point.
    Fail,
}

/// The table of a volume.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AppTable {
    /// Time between automatic app-consistent points; 0 makes none.
    pub every: Option<Span>,
    /// Socket of the QEMU guest agent of the machine that uses the disk.
    pub guest_agent: Option<PathBuf>,
    /// Folders of file systems of this host to freeze.
    pub mounts: Vec<PathBuf>,
    /// Freeze what is mounted from the volume's own block devices.
    pub mounted: bool,
    /// Program and arguments to run before.
    pub pre: Vec<String>,
    /// The same behind.
    pub post: Vec<String>,
    /// How long a script may take,
    pub script_limit: Option<Span>,
    /// freezing,
    pub freeze_limit: Option<Span>,
    /// being frozen,
    pub hold_limit: Option<Span>,
    /// and thawing.
    pub thaw_limit: Option<Span>,
    /// What follows when a step fails.
    pub on_failure: OnFailure,
}

/// How points of a volume are made app-consistent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppSettings {
    /// The steps.
    pub recipe: Recipe,
    /// Freeze what is mounted from the volume's own block devices, too.
    pub mounted: bool,
    /// Time between automatic points.
    pub every: Option<Duration>,
}

impl AppTable {
    /// Checks what the table says of `volume`.
    ///
    /// # Errors
    /// If nothing would be done, or a time is too long.
    pub fn settings(self, volume: &str) -> Result<AppSettings, Problem> {
        let default = Recipe::default();
        let limit = |given: Option<Span>, default: Duration| given.map_or(default, |s| s.0);
        let nothing = self.guest_agent.is_none() && self.mounts.is_empty() && !self.mounted && self.pre.is_empty();
        if nothing {
            return Err(Problem::usage(format!(
                "app-consistent points of volume {volume}: there is nothing to do before the point: give guest_agent, mounts, mounted \
                 or pre"
            )));
        }
        let hold_limit = limit(self.hold_limit, default.hold_limit);
        if hold_limit.is_zero() || hold_limit > MAX_HOLD {
            return Err(Problem::usage(format!("volume {volume}: hold_limit is more than 0 and at most 5m")));
        }
        let otherwise = match self.on_failure {
            OnFailure::Crash => Otherwise::Crash,
            OnFailure::Fail => Otherwise::Fail,
        };
        let recipe = Recipe {
            pre: self.pre,
            post: self.post,
            mounts: self.mounts,
            guest_agent: self.guest_agent,
            script_limit: limit(self.script_limit, default.script_limit),
            freeze_limit: limit(self.freeze_limit, default.freeze_limit),
            hold_limit,
            thaw_limit: limit(self.thaw_limit, default.thaw_limit),
            otherwise,
        };
        Ok(AppSettings { recipe, mounted: self.mounted, every: self.every.map(|s| s.0).filter(|d| !d.is_zero()) })
    }
}

/// Reads a file with a table for each volume.
///
/// # Errors
/// If it cannot be read, something in it is not understood, or it names a volume that is not there.
pub fn read(path: Option<&Path>, volumes: &[&str]) -> Result<BTreeMap<String, AppSettings>, Problem> {
    let Some(path) = path else { return Ok(BTreeMap::new()) };
    let tables: BTreeMap<String, AppTable> = load(path)?;
    let each = tables.into_iter().map(|(name, table)| {
        if !volumes.contains(&name.as_str()) {
            let text = format!("{}: there is no volume {name}: there are {}", path.display(), volumes.join(", "));
            return Err(Problem::usage(text));
        }
        let settings = table.settings(&name)?;
        Ok((name, settings))
    });
    each.collect()
}

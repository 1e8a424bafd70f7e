//! The configuration files of `afterimage agent` and `afterimage appliance`: TOML, every key optional where a flag can give
//! it, every key that is not known an error. examples/agent.toml and examples/appliance.toml document them.

use crate::app::AppTable;
use crate::cli::{Cache, NbdTls, OnFence, OnForeignWrite, parse_min_free};
use crate::problem::Problem;
use afterimage_appliance::MinFree;
use afterimage_base::net::Endpoint;
use afterimage_mgmt::units::{UnitError, parse_duration, parse_size};
use afterimage_nbd::Address;
use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

/// A size as people write it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub u64);

/// A time span as people write it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span(pub Duration);

/// The size of a ring in bytes: as such, or as the time that it holds out at a rate of writing (`10m@20MiB`, per second).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingSize(pub u64);

/// How much of a disk has to be free: a size, a percentage, or `auto`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Free(pub MinFree);

impl FromStr for Free {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        parse_min_free(text).map(Free)
    }
}

impl FromStr for Size {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        parse_size(text).map(Size)
    }
}

impl FromStr for Span {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        parse_duration(text).map(Span)
    }
}

impl FromStr for RingSize {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let Some((time, rate)) = text.split_once('@') else { return parse_size(text).map(RingSize) };
        let (time, rate) = (parse_duration(time.trim())?, parse_size(rate.trim().trim_end_matches("/s"))?);
        let bytes = u128::from(rate) * time.as_millis() / 1000;
        u64::try_from(bytes).map(RingSize).map_err(|_| UnitError::Size(text.to_owned()))
    }
}

macro_rules! from_text {
    ($($t:ty),*) => { $(impl<'de> Deserialize<'de> for $t {
        fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
            String::deserialize(d)?.parse().map_err(D::Error::custom)
        }
    })* };
}

from_text!(Size, Span, RingSize, Free);

fn endpoint<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Endpoint>, D::Error> {
    String::deserialize(d)?.parse().map(Some).map_err(D::Error::custom)
}

fn endpoints<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<Endpoint>, D::Error> {
    Vec::<String>::deserialize(d)?.iter().map(|t| t.parse().map_err(D::Error::custom)).collect()
}

fn addresses<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<Address>, D::Error> {
    Vec::<String>::deserialize(d)?.iter().map(|t| t.parse().map_err(D::Error::custom)).collect()
}

/// `agent.toml`.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentFile {
    /// The data folder.
    pub data: Option<PathBuf>,
    /// The address of the appliance.
    #[serde(default, deserialize_with = "endpoint")]
    pub appliance: Option<Endpoint>,
    /// Whether plain text may leave this machine.
    pub insecure: Option<bool>,
    /// Where the disks are served.
    #[serde(default, deserialize_with = "addresses")]
    pub listen: Vec<Address>,
    /// Size of new rings.
    pub ring: Option<RingSize>,
    /// How the disks are used.
    pub cache: Option<Cache>,
    /// Bytes of a disk that a sync may deal with in a second; 0 for automatic.
    pub sync_rate: Option<Size>,
    /// Time between automatic points.
    pub point_every: Option<Span>,
    /// When somebody else wrote to a disk while the agent was not running.
    pub on_foreign_write: Option<OnForeignWrite>,
    /// What a disk does whose machine runs elsewhere.
    pub on_fence: Option<OnFence>,
    /// Whether NBD clients over TCP speak TLS.
    pub nbd_tls: Option<NbdTls>,
    /// Folder with the certificates for it.
    pub nbd_tls_dir: Option<PathBuf>,
    /// Whether mgmt may have the agent protect more disks.
    pub take_disks: Option<bool>,
    /// The disks.
    #[serde(default, rename = "volume")]
    pub volumes: Vec<VolumeTable>,
}

/// A `[[volume]]` of `agent.toml`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeTable {
    /// Its name; from the path if not given.
    pub name: Option<String>,
    /// The raw image or block device.
    pub path: PathBuf,
    /// Size of its ring.
    pub ring: Option<RingSize>,
    /// How it is used.
    pub cache: Option<Cache>,
    /// Id of the volume whose lost disk it takes the place of.
    pub adopt: Option<uuid::Uuid>,
    /// How its points are made app-consistent.
    pub app: Option<AppTable>,
}

/// `appliance.toml`.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApplianceFile {
    /// The data folder.
    pub data: Option<PathBuf>,
    /// Where agents connect.
    #[serde(default, deserialize_with = "endpoints")]
    pub listen: Vec<Endpoint>,
    /// Whether agents of other machines may connect in plain text.
    pub insecure: Option<bool>,
    /// Connections from one address at most.
    pub connections_per_address: Option<usize>,
    /// How far back any write can be chosen.
    pub window: Option<Span>,
    /// Before the window: for so many hours the newest automatic point is kept,
    pub hourly: Option<u32>,
    /// days,
    pub daily: Option<u32>,
    /// weeks,
    pub weekly: Option<u32>,
    /// and months.
    pub monthly: Option<u32>,
    /// How much of the vault's disk has to be free for ingest.
    pub min_free: Option<Free>,
    /// File with the vault key.
    pub key_file: Option<PathBuf>,
    /// File whose first line is the passphrase.
    pub passphrase_file: Option<PathBuf>,
    /// Threads that hash, compress and seal.
    pub threads: Option<usize>,
    /// Memory of the dedupe index.
    pub dedupe_memory: Option<Size>,
    /// Memory for decompressed frames.
    pub frame_memory: Option<Size>,
    /// Memory for pages of layers.
    pub layer_memory: Option<Size>,
    /// Memory for what is read ahead.
    pub ahead_memory: Option<Size>,
    /// Bytes of blocks that are brought into disk order in a second; 0 for not at all.
    pub order_rate: Option<Size>,
    /// Time between two looks at what the window has left behind.
    pub collect_every: Option<Span>,
}

/// `mgmt.toml`.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MgmtFile {
    /// The data folder.
    pub data: Option<PathBuf>,
    /// Where agents and appliances connect.
    #[serde(default)]
    pub listen: Vec<String>,
    /// How long new certificates last.
    pub certificate_life: Option<Span>,
    /// Where the HTTPS API is; `none` for nowhere.
    #[serde(default)]
    pub api: Vec<String>,
    /// Names and addresses under which it is reached.
    #[serde(default)]
    pub api_names: Vec<String>,
}

/// Reads a configuration file.
///
/// # Errors
/// If it cannot be read, or something in it is not understood: with file, line and key.
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<T, Problem> {
    let text = std::fs::read_to_string(path).map_err(|e| Problem::file(path, &e))?;
    toml::from_str(&text).map_err(|e| Problem::usage(format!("{}: {}", path.display(), e.to_string().trim_end())))
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;

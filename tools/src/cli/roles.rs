//! Arguments of what runs: `up`, agent, appliance, mgmt, and joining.

use super::DataArgs;
use crate::cmd::retention::TierArgs;
use crate::config::RingSize;
use crate::mgmt::parse_mgmt;
use crate::remote::cli::{ApiTokenCommand, ApplianceListArgs, WayArgs};
use afterimage_agent::{CacheMode, FencePolicy, ForeignWrite};
use afterimage_appliance::MinFree;
use afterimage_base::net::Endpoint;
use afterimage_mgmt::units::{parse_duration, parse_size};
use afterimage_nbd::Address;
use clap::{Args, Subcommand, ValueEnum};
use serde::Deserialize;
use std::path::PathBuf;
use std::time::Duration;

/// Where the vault key comes from.
#[derive(Debug, Clone, Args)]
pub struct KeyArgs {
    /// File with the vault key, made at the first start [default: DATA/vault/key]
    #[arg(long, value_name = "FILE", conflicts_with = "passphrase_file")]
    pub key_file: Option<PathBuf>,
    /// File whose first line is the passphrase of the vault, instead of a key file
    #[arg(long, value_name = "FILE")]
    pub passphrase_file: Option<PathBuf>,
}

/// How the disks are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cache {
    /// Through the page cache
    Writeback,
    /// Past the page cache (O_DIRECT)
    None,
}

impl From<Cache> for CacheMode {
    fn from(cache: Cache) -> CacheMode {
        match cache {
            Cache::Writeback => CacheMode::Writeback,
            Cache::None => CacheMode::None,
        }
    }
}

/// TLS of the NBD server.
#[derive(Debug, Clone, Default, Args)]
pub struct NbdTlsArgs {
    /// Whether NBD clients over TCP speak TLS, with a certificate of theirs [default: require with --nbd-tls-dir, else off]
    #[arg(long, value_enum, value_name = "RULE")]
    pub nbd_tls: Option<NbdTls>,
    /// Folder with ca-cert.pem, server-cert.pem and server-key.pem (see `mgmt certify`)
    #[arg(long, value_name = "DIR")]
    pub nbd_tls_dir: Option<PathBuf>,
}

/// Whether NBD clients speak TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NbdTls {
    /// Nothing is said over TCP without it
    Require,
    /// Who asks for it gets it
    Allow,
    /// There is none
    Off,
}

/// Arguments of `up`.
#[derive(Debug, Args)]
pub struct UpArgs {
    /// The data folder.
    #[command(flatten)]
    pub data: DataArgs,
    /// Where to serve: unix:DIR puts the socket DIR/nbd.sock there, tcp:ADDR:PORT; may be given several times
    /// [default: unix:DATA]
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Vec<Address>,
    /// How far back any write can be chosen
    #[arg(long, default_value = "24h", value_parser = parse_duration, value_name = "TIME")]
    pub window: Duration,
    /// Size of each new volume's ring, or how long it holds out at a rate of writing (10m@20MiB/s)
    #[arg(long, default_value = "128MiB", value_name = "SIZE")]
    pub ring: RingSize,
    /// How the disks are used
    #[arg(long, value_enum, default_value = "writeback")]
    pub cache: Cache,
    /// Bytes of a disk that a sync may deal with in a second; 0 gives way to the guest by itself
    #[arg(long, default_value = "0", value_parser = parse_size, value_name = "SIZE")]
    pub sync_rate: u64,
    /// Time between automatic points; 0 makes none
    #[arg(long, default_value = "5m", value_parser = parse_duration, value_name = "TIME")]
    pub point_every: Duration,
    /// Serve the disks without protection, for comparisons
    #[arg(long)]
    pub no_protect: bool,
    /// When somebody else wrote to a disk while this was not running
    #[arg(long, value_enum, default_value = "compare", value_name = "RULE")]
    pub on_foreign_write: OnForeignWrite,
    /// What a disk does whose machine runs elsewhere after a failover
    #[arg(long, value_enum, default_value = "read-only", value_name = "RULE")]
    pub on_fence: OnFence,
    /// Take the size that a disk has now, if it is another one than it was
    #[arg(long)]
    pub resize: bool,
    /// Pause ingest when the vault's disk has less free: a size, a percentage, or auto (2%, at most 1 GiB)
    #[arg(long, default_value = "auto", value_parser = parse_min_free, value_name = "SIZE|PERCENT")]
    pub min_free: MinFree,
    /// File that says how points are made app-consistent, with a table for each volume
    #[arg(long, value_name = "FILE", conflicts_with = "no_protect")]
    pub app_file: Option<PathBuf>,
    /// Points before the window.
    #[command(flatten)]
    pub tiers: TierArgs,
    /// The key.
    #[command(flatten)]
    pub key: KeyArgs,
    /// TLS of NBD.
    #[command(flatten)]
    pub tls: NbdTlsArgs,
    /// Raw images or block devices; NAME is the volume's name [default: the file's name without its ending]
    #[arg(value_name = "[NAME=]PATH")]
    pub disks: Vec<String>,
}

/// Arguments of `mgmt`.
#[derive(Debug, Args)]
#[command(subcommand_negates_reqs = true)]
pub struct MgmtArgs {
    /// What to ask of a running mgmt; without it, run one
    #[command(subcommand)]
    pub command: Option<MgmtCommand>,
    /// Configuration file (examples/mgmt.toml); flags override it
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The data folder, and how the subcommands reach a running mgmt.
    #[command(flatten)]
    pub way: WayArgs,
    /// Where agents and appliances connect: HOST[:PORT]; may be given several times [default: 0.0.0.0:20004]
    #[arg(long, value_parser = parse_mgmt, value_name = "ADDRESS")]
    pub listen: Vec<Endpoint>,
    /// How long new certificates last; they are renewed when a third of it is over [default: 365d]
    #[arg(long, value_parser = parse_duration, value_name = "TIME")]
    pub certificate_life: Option<Duration>,
    /// Where the HTTPS API is: HOST[:PORT], or none; may be given several times [default: 0.0.0.0:20005]
    #[arg(long, value_name = "ADDRESS")]
    pub api: Vec<String>,
    /// A host name or address under which the API is reached, for its certificate; may be given several times
    /// [default: this host's name, localhost, and the addresses of --api]
    #[arg(long = "api-name", value_name = "NAME")]
    pub api_names: Vec<String>,
}

/// Subcommands of `mgmt`.
#[derive(Debug, Subcommand)]
pub enum MgmtCommand {
    /// Tokens, with which hosts join
    #[command(subcommand)]
    Token(TokenCommand),
    /// Tokens, with which people and programs use the API
    #[command(subcommand)]
    ApiToken(ApiTokenCommand),
    /// Print the certificate of mgmt's CA, for programs that use the API
    Ca {
        /// Print its SHA-256 instead, for --ca-pin
        #[arg(long)]
        pin: bool,
    },
    /// Print the description of the API (OpenAPI); nothing has to run
    Openapi,
    /// Show machines, appliances, certificates for NBD, and tokens
    Ls {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Let the certificates of a machine, an appliance or an NBD client count no more
    Revoke {
        /// A name, an id, or the serial number of a certificate
        #[arg(value_name = "NAME")]
        what: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show who changed what, and when
    Audit {
        /// How many lines, the newest
        #[arg(long, default_value = "100", value_name = "N")]
        limit: u32,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Make a key and a certificate for NBD with TLS, as the files that QEMU and libnbd use
    Certify {
        /// A name for it
        name: String,
        /// For a server: a name or address at which clients reach it; may be given several times. Without: for a client
        #[arg(long, value_name = "HOST")]
        host: Vec<String>,
        /// The folder for the files
        #[arg(long, value_name = "DIR")]
        to: PathBuf,
    },
}

/// Subcommands of `mgmt token`.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token for one host
    Create(TokenArgs),
}

/// What a host can join as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum JoinRole {
    /// It protects disks
    Agent,
    /// It keeps history
    Appliance,
}

impl JoinRole {
    /// The word for it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            JoinRole::Agent => "agent",
            JoinRole::Appliance => "appliance",
        }
    }
}

/// Arguments of `mgmt token create`.
#[derive(Debug, Args)]
pub struct TokenArgs {
    /// What the host joins as
    #[arg(long, value_enum, default_value = "agent")]
    pub role: JoinRole,
    /// How long the token can be used
    #[arg(long, default_value = "15m", value_parser = parse_duration, value_name = "TIME")]
    pub ttl: Duration,
    /// The name that the machine or appliance gets [default: the host's name]
    #[arg(long)]
    pub name: Option<String>,
    /// For an agent: its appliance [default: the only one]
    #[arg(long, value_name = "NAME")]
    pub appliance: Option<String>,
    /// The host takes the place of the one with this name, whose certificates are revoked then
    #[arg(long, requires = "name")]
    pub replace: bool,
    /// The id that the member had, to go on with its volumes where mgmt was lost
    #[arg(long, requires = "name", value_name = "UUID")]
    pub id: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Subcommands of `agent`.
#[derive(Debug, Subcommand)]
pub enum AgentCommand {
    /// Get a certificate from mgmt, with a token
    Join(JoinArgs),
}

/// Subcommands of `appliance`.
#[derive(Debug, Subcommand)]
pub enum ApplianceCommand {
    /// Show the appliances that mgmt knows
    Ls(ApplianceListArgs),
    /// Get a certificate from mgmt, with a token
    Join(JoinArgs),
}

/// Arguments of `join`.
#[derive(Debug, Args)]
pub struct JoinArgs {
    /// Where mgmt is: HOST[:PORT], port 20004 if left out
    #[arg(value_parser = parse_mgmt, value_name = "ADDRESS")]
    pub mgmt: Endpoint,
    /// The token. Others on this host may see it here: --token-file is better
    #[arg(long, value_name = "TOKEN", conflicts_with = "token_file")]
    pub token: Option<String>,
    /// File with the token; - for standard input [default: $AFTERIMAGE_TOKEN]
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Join anew where this folder has joined already
    #[arg(long)]
    pub again: bool,
    /// The data folder.
    #[command(flatten)]
    pub data: DataArgs,
}

/// A disk that takes the place of one that was lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adopt {
    /// Its name.
    pub name: String,
    /// Id of the volume.
    pub id: uuid::Uuid,
}

impl std::str::FromStr for Adopt {
    type Err = String;

    fn from_str(text: &str) -> Result<Adopt, String> {
        let (name, id) = text.split_once('=').ok_or("write NAME=ID")?;
        let id = uuid::Uuid::try_parse(id).map_err(|e| format!("{id} is no id of a volume: {e}"))?;
        Ok(Adopt { name: name.to_owned(), id })
    }
}

/// Arguments of `agent`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct AgentArgs {
    /// Something else than to run
    #[command(subcommand)]
    pub command: Option<AgentCommand>,
    /// Configuration file (examples/agent.toml); flags override it
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The data folder.
    #[command(flatten)]
    pub data: DataArgs,
    /// Where the appliance is: unix:PATH or tcp:HOST[:PORT]
    #[arg(long, value_name = "ADDRESS")]
    pub appliance: Option<Endpoint>,
    /// Let the stream leave this machine as plain text
    #[arg(long)]
    pub insecure: bool,
    /// When somebody else wrote to a disk while the agent was not running [default: compare]
    #[arg(long, value_enum, value_name = "RULE")]
    pub on_foreign_write: Option<OnForeignWrite>,
    /// What a disk does whose machine runs elsewhere after a failover [default: read-only]
    #[arg(long, value_enum, value_name = "RULE")]
    pub on_fence: Option<OnFence>,
    /// Take the size that a disk has now, if it is another one than it was
    #[arg(long)]
    pub resize: bool,
    /// The disk NAME takes the place of one that was lost, that of the volume with this id; it is read-only until a failback (`failover
    /// failback --return`) has brought it what the machine has become
    #[arg(long, value_name = "NAME=ID")]
    pub adopt: Vec<Adopt>,
    /// Let mgmt have it protect more disks of this host, whichever its operators name
    #[arg(long)]
    pub take_disks: bool,
    /// Where to serve: unix:DIR puts the socket DIR/nbd.sock there, tcp:ADDR:PORT; may be given several times
    /// [default: unix:DATA]
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Vec<Address>,
    /// Size of each new volume's ring, or how long it holds out at a rate of writing (10m@20MiB/s) [default: 128MiB]
    #[arg(long, value_name = "SIZE")]
    pub ring: Option<RingSize>,
    /// How the disks are used [default: writeback]
    #[arg(long, value_enum)]
    pub cache: Option<Cache>,
    /// Bytes of a disk that a sync may deal with in a second; 0 gives way to the guest by itself [default: 0]
    #[arg(long, value_parser = parse_size, value_name = "SIZE")]
    pub sync_rate: Option<u64>,
    /// Time between automatic points; 0 makes none [default: 5m]
    #[arg(long, value_parser = parse_duration, value_name = "TIME")]
    pub point_every: Option<Duration>,
    /// TLS of NBD.
    #[command(flatten)]
    pub tls: NbdTlsArgs,
    /// Raw images or block devices, besides those of the file
    #[arg(value_name = "[NAME=]PATH")]
    pub disks: Vec<String>,
}

/// Arguments of `appliance`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct ApplianceArgs {
    /// Something else than to run
    #[command(subcommand)]
    pub command: Option<ApplianceCommand>,
    /// Configuration file (examples/appliance.toml); flags override it
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The data folder.
    #[command(flatten)]
    pub data: DataArgs,
    /// Where agents connect: unix:PATH or tcp:HOST[:PORT], port 9443 if left out; may be given several times
    /// [default: unix:DATA/appliance.sock]
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Vec<Endpoint>,
    /// Let agents of other machines connect in plain text, whoever they are
    #[arg(long)]
    pub insecure: bool,
    /// How far back any write can be chosen [default: 24h]
    #[arg(long, value_parser = parse_duration, value_name = "TIME")]
    pub window: Option<Duration>,
    /// Pause ingest when the vault's disk has less free: a size, a percentage, or auto (2%, at most 1 GiB) [default: auto]
    #[arg(long, value_parser = parse_min_free, value_name = "SIZE|PERCENT")]
    pub min_free: Option<MinFree>,
    /// Threads that hash, compress and seal [default: one per processor]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Points before the window.
    #[command(flatten)]
    pub tiers: TierArgs,
    /// The key.
    #[command(flatten)]
    pub key: KeyArgs,
}

/// What a disk does whose machine runs elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnFence {
    /// Refuse writes
    ReadOnly,
    /// Refuse reads, too
    Refuse,
}

impl From<OnFence> for FencePolicy {
    fn from(rule: OnFence) -> FencePolicy {
        match rule {
            OnFence::ReadOnly => FencePolicy::ReadOnly,
            OnFence::Refuse => FencePolicy::Refuse,
        }
    }
}

/// What follows when somebody else has written to a disk while the agent was not running.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnForeignWrite {
    /// Do not start
    Refuse,
    /// Begin a gap and compare the whole disk
    Compare,
    /// Leave it out of the history
    Ignore,
}

impl From<OnForeignWrite> for ForeignWrite {
    fn from(rule: OnForeignWrite) -> ForeignWrite {
        match rule {
            OnForeignWrite::Refuse => ForeignWrite::Refuse,
            OnForeignWrite::Compare => ForeignWrite::Compare,
            OnForeignWrite::Ignore => ForeignWrite::Ignore,
        }
    }
}

/// Reads the value of `--min-free`: a size or a percentage.
pub(crate) fn parse_min_free(text: &str) -> Result<MinFree, String> {
    if text == "auto" {
        return Ok(MinFree::Auto);
    }
    match text.strip_suffix('%') {
        Some(_) => text.parse(),
        None => parse_size(text).map(MinFree::Bytes).map_err(|e| e.to_string()),
    }
}

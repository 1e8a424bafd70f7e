//! The command line.

use crate::cmd::retention::{PointArgs, RetentionArgs, TierArgs};
use crate::config::RingSize;
use crate::data;
use crate::failover::args::FailoverCommand;
use crate::mgmt::parse_mgmt;
use crate::problem::Problem;
use crate::remote::cli::{ApiTokenCommand, ApplianceListArgs, EventCommand, JobCommand, MachineCommand, PolicyCommand};
use crate::restore::Format;
use crate::show::Goal;
use crate::target::args::TargetCommand;
use crate::verify::parse_range;
use afterimage_agent::{CacheMode, ForeignWrite};
use afterimage_appliance::MinFree;
use afterimage_base::net::Endpoint;
use afterimage_mgmt::units::{parse_duration, parse_size};
use afterimage_mgmt::when::When;
use afterimage_nbd::Address;
use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Deserialize;
use std::path::PathBuf;
use std::time::Duration;

/// The `afterimage` command.
#[derive(Debug, Parser)]
#[command(
    name = "afterimage",
    version,
    about = "Continuous data protection: bring a disk back as it was after any write",
    after_help = "A moment (WHEN) is latest, @SEQ, a point's name, an RFC 3339 time, or -10m.\n\
                  Exit codes: 0 done, 1 it failed, 2 bad usage."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Protect disks and serve them over NBD; without a PATH, only their history
    Up(UpArgs),
    /// Protect disks and serve them over NBD; the appliance is another process, here or elsewhere
    Agent(AgentArgs),
    /// Keep the history of disks for agents, and show it
    Appliance(ApplianceArgs),
    /// Coordinate agents and appliances: who they are, and what they may
    Mgmt(MgmtArgs),
    /// Machines, as mgmt knows them
    #[command(subcommand)]
    Machine(MachineCommand),
    /// Policies: what is kept, and how often points are made
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// What happened
    #[command(subcommand)]
    Event(EventCommand),
    /// What takes a while, and how it goes
    #[command(subcommand)]
    Job(JobCommand),
    /// Groups of machines that share recovery points
    Group(crate::group::GroupArgs),
    /// Show what each volume is doing
    Status(StatusArgs),
    /// Recovery points
    #[command(subcommand)]
    Point(PointCommand),
    /// Second futures of a volume: make, serve, compare, promote and drop them
    Branch(crate::branch::BranchArgs),
    /// Serve a volume as it was over NBD, until interrupted
    Export(ExportArgs),
    /// Make a block device of this machine of a volume, or of a volume as it was
    Attach(AttachArgs),
    /// Take a block device away again
    Detach(DetachArgs),
    /// Write a volume as it was to a file, a block device or a pipe
    Restore(RestoreArgs),
    /// List what changed between two moments
    Diff(DiffArgs),
    /// Wait until a volume is live or durable
    Wait(WaitArgs),
    /// Change a volume's size, or have its disk compared
    #[command(subcommand)]
    Volume(VolumeCommand),
    /// Compare a volume's disk with its newest history, while the guest goes on
    Verify(VerifyArgs),
    /// Verify a data folder that is not in use: every checksum, seal and reference
    Check(CheckArgs),
    /// Look into the files of a data folder, read-only
    Dump(DumpArgs),
    /// Machines: what they look like, and whether this host can run them
    #[command(subcommand)]
    Target(TargetCommand),
    /// Start machines from their history
    #[command(subcommand)]
    Failover(FailoverCommand),
    /// Hold a freeze for the agent, which starts this itself
    #[command(hide = true)]
    FreezeGuard,
    /// Show the main job on a disk of its own: protect, spoil, bring back
    Demo(DemoArgs),
}

/// The data folder.
#[derive(Debug, Clone, Args)]
pub struct DataArgs {
    /// Data folder [default: $AFTERIMAGE_DATA, $XDG_DATA_HOME/afterimage or ~/.local/share/afterimage]
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
}

impl DataArgs {
    /// The folder, named or by default.
    ///
    /// # Errors
    /// If no variable says where folders are.
    pub fn folder(&self) -> Result<PathBuf, Problem> {
        self.data.clone().map_or_else(data::default_path, Ok)
    }
}

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
    /// The data folder.
    #[command(flatten)]
    pub data: DataArgs,
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

/// Subcommands of `mgmt`. `--data` goes before them.
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
    /// Take the size that a disk has now, if it is another one than it was
    #[arg(long)]
    pub resize: bool,
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

/// What `status` prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum StatusFormat {
    /// For people
    Table,
    /// For programs
    Json,
    /// Metrics in the text format of Prometheus
    Prometheus,
}

/// Arguments of `status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// The data folder.
    #[command(flatten)]
    pub data: DataArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Print this: a table, JSON, or the text format of Prometheus
    #[arg(long, value_enum, default_value = "table", conflicts_with = "json")]
    pub format: StatusFormat,
    /// Go on until interrupted
    #[arg(long)]
    pub watch: bool,
    /// Time between two lines of --watch
    #[arg(long, default_value = "1s", value_parser = parse_duration, value_name = "TIME")]
    pub interval: Duration,
}

/// Subcommands of `point`.
#[derive(Debug, Subcommand)]
pub enum PointCommand {
    /// List the recovery points, and the window within which any write can be chosen
    Ls {
        /// The data folder.
        #[command(flatten)]
        data: DataArgs,
        /// The volume
        volume: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Keep a point, whatever the policy says
    Pin(PointArgs),
    /// Let the policy decide about a point again
    Unpin(PointArgs),
    /// Remove a point
    Rm(PointArgs),
    /// Make a recovery point now
    Create {
        /// The data folder.
        #[command(flatten)]
        data: DataArgs,
        /// The volume
        volume: String,
        /// The point's name
        #[arg(long)]
        name: String,
        /// App-consistent: scripts, freeze and thaw as the configuration says
        #[arg(long)]
        app: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Subcommands of `volume`.
#[derive(Debug, Subcommand)]
pub enum VolumeCommand {
    /// Take the size that the disk has now, while it is served; or a smaller one, before the disk is made smaller
    Resize {
        /// The data folder.
        #[command(flatten)]
        data: DataArgs,
        /// The volume
        volume: String,
        /// The new size [default: that of the disk]
        #[arg(long, value_parser = parse_size, value_name = "SIZE")]
        size: Option<u64>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show or change what is kept: the window, and points before it
    Retention(RetentionArgs),
    /// Compare the whole disk with the appliance's copy, in a gap, and copy what differs
    Compare {
        /// The data folder.
        #[command(flatten)]
        data: DataArgs,
        /// The volume
        volume: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
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

/// Arguments of `export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// The data folder.
    #[command(flatten)]
    pub data: DataArgs,
    /// The volume
    pub volume: String,
    /// The moment
    #[arg(long, default_value = "latest", value_name = "WHEN", allow_hyphen_values = true)]
    pub at: When,
    /// Take writes, which are forgotten when the export ends
    #[arg(long)]
    pub writable: bool,
    /// The socket to serve at
    #[arg(long, value_name = "unix:PATH")]
    pub listen: Address,
}

/// Arguments of `attach`.
#[derive(Debug, Args)]
pub struct AttachArgs {
    /// The data folder.
    #[command(flatten)]
    pub data: DataArgs,
    /// The volume
    pub volume: String,
    /// The moment [default: the disk itself]
    #[arg(long, value_name = "WHEN", allow_hyphen_values = true)]
    pub at: Option<When>,
    /// Take writes at a moment, which are forgotten when it is detached
    #[arg(long, requires = "at")]
    pub writable: bool,
    /// Through the kernel's ublk driver, /dev/ublkbN [default: if there is one]
    #[arg(long, conflicts_with = "nbd")]
    pub ublk: bool,
    /// Through the kernel's NBD client, /dev/nbdN [default: if there is no ublk]
    #[arg(long)]
    pub nbd: bool,
    /// Queues, each with a thread
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub queues: Option<u16>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `detach`.
#[derive(Debug, Args)]
pub struct DetachArgs {
    /// The data folder.
    #[command(flatten)]
    pub data: DataArgs,
    /// A block device, or a volume: then all its block devices
    #[arg(value_name = "DEVICE|VOLUME")]
    pub what: String,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `restore`.
#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// The data folder.
    #[command(flatten)]
    pub data: DataArgs,
    /// The volume
    pub volume: String,
    /// The moment
    #[arg(long, default_value = "latest", value_name = "WHEN", allow_hyphen_values = true)]
    pub at: When,
    /// File or block device to write; - for standard output
    #[arg(long, value_name = "PATH", allow_hyphen_values = true)]
    pub to: PathBuf,
    /// Format of the image
    #[arg(long, value_enum, default_value = "raw")]
    pub format: Format,
    /// Overwrite what is there
    #[arg(long)]
    pub yes: bool,
}

/// Arguments of `diff`.
#[derive(Debug, Args)]
pub struct DiffArgs {
    /// The data folder.
    #[command(flatten)]
    pub data: DataArgs,
    /// The volume
    pub volume: String,
    /// The volume that the earlier moment is of, if it is another one
    #[arg(long, value_name = "VOLUME")]
    pub base: Option<String>,
    /// The earlier moment
    #[arg(long, value_name = "WHEN", allow_hyphen_values = true)]
    pub from: When,
    /// The later moment
    #[arg(long, default_value = "latest", value_name = "WHEN", allow_hyphen_values = true)]
    pub to: When,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `wait`.
#[derive(Debug, Args)]
pub struct WaitArgs {
    /// The data folder.
    #[command(flatten)]
    pub data: DataArgs,
    /// The volume
    pub volume: String,
    /// What to wait for
    #[arg(long = "for", value_enum, default_value = "live")]
    pub goal: Goal,
    /// Give up after this time
    #[arg(long, value_parser = parse_duration, value_name = "TIME")]
    pub timeout: Option<Duration>,
}

/// Arguments of `verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// The data folder.
    #[command(flatten)]
    pub data: DataArgs,
    /// The volume
    pub volume: String,
    /// Only this part of the disk, such as 1GiB+64MiB
    #[arg(long, value_parser = parse_range, value_name = "OFFSET+LENGTH")]
    pub range: Option<(u64, u64)>,
    /// Copy what differs from the disk to the appliance: a gap in the history begins
    #[arg(long)]
    pub repair: bool,
    /// Bytes of the disk a second; 0 gives way to the guest by itself
    #[arg(long, default_value = "0", value_parser = parse_size, value_name = "SIZE")]
    pub rate: u64,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The data folder.
    #[command(flatten)]
    pub data: DataArgs,
    /// The key.
    #[command(flatten)]
    pub key: KeyArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// What to look into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DumpWhat {
    /// The ring of a volume: its records
    Ring,
    /// The segments of the vault and their frames
    Segments,
    /// The layers of the vault
    Layers,
    /// The manifest
    Manifest,
}

/// Arguments of `dump`.
#[derive(Debug, Args)]
pub struct DumpArgs {
    /// The data folder.
    #[command(flatten)]
    pub data: DataArgs,
    /// What to look into
    #[arg(value_enum)]
    pub what: DumpWhat,
    /// Only this volume's ring or layers, or the segment with this number and its frames
    pub which: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Keep the demonstration's folder and say where it is
    #[arg(long)]
    pub keep: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn moments_with_a_dash_are_values() {
        let cli = Cli::try_parse_from(["afterimage", "restore", "d", "--at", "-10m", "--to", "-"]).unwrap();
        let Command::Restore(args) = cli.command else { panic!("restore") };
        assert_eq!((args.at, args.to), (When::Ago(Duration::from_secs(600)), PathBuf::from("-")));
        for bad in [
            &["up", "--ring", "x"][..],
            &["restore", "d"],
            &["export", "d", "--listen", "/x"],
            &["point", "ls"],
            &["dump", "x"],
        ] {
            assert!(Cli::try_parse_from([&["afterimage"], bad].concat()).is_err(), "{bad:?}");
        }
    }
}

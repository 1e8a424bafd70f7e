//! Arguments of what asks a running process, and of what looks into its files.

use super::{DataArgs, KeyArgs};
use crate::cmd::retention::{PointArgs, RetentionArgs};
use crate::mgmt::parse_api;
use crate::remote::cli::WayArgs;
use crate::restore::Format;
use crate::show::Goal;
use crate::verify::parse_range;
use afterimage_base::net::Endpoint;
use afterimage_mgmt::units::{parse_duration, parse_size};
use afterimage_mgmt::when::When;
use afterimage_nbd::Address;
use clap::{Args, Subcommand, ValueEnum};
use std::path::PathBuf;
use std::time::Duration;

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

/// Where points are: at the process of a data folder, or at mgmt, which knows who has to be asked.
#[derive(Debug, Clone, Args)]
pub struct PointWay {
    /// The data folder.
    #[command(flatten)]
    pub data: DataArgs,
    /// Where mgmt's API is: HOST[:PORT]; a volume is then its name, MACHINE/NAME, or its id
    #[arg(long, value_parser = parse_api, value_name = "ADDRESS", conflicts_with = "data")]
    pub mgmt: Option<Endpoint>,
    /// File with mgmt's token, mode 0600 [default, with --mgmt: $AFTERIMAGE_API_TOKEN, or `token_file` in mgmt.toml]
    #[arg(long, value_name = "FILE", conflicts_with = "data")]
    pub token_file: Option<PathBuf>,
    /// SHA-256 of mgmt's CA [default: the token's, or `ca_pin` in mgmt.toml]
    #[arg(long, value_name = "SHA256", conflicts_with = "data")]
    pub ca_pin: Option<String>,
}

impl PointWay {
    /// The way to mgmt.
    #[must_use]
    pub fn way(&self) -> WayArgs {
        let (mgmt, token_file, ca_pin) = (self.mgmt.clone(), self.token_file.clone(), self.ca_pin.clone());
        WayArgs { mgmt, token_file, ca_pin, data: None }
    }
}

/// Subcommands of `point`.
#[derive(Debug, Subcommand)]
pub enum PointCommand {
    /// List the recovery points, and the window within which any write can be chosen
    Ls {
        /// Who is asked.
        #[command(flatten)]
        way: PointWay,
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
        /// Who is asked.
        #[command(flatten)]
        way: PointWay,
        /// The volume
        #[arg(required_unless_present = "all")]
        volume: Option<String>,
        /// Points of all disks at one instant
        #[arg(long, conflicts_with_all = ["volume", "app"])]
        all: bool,
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

/// Arguments of `mount`.
#[derive(Debug, Args)]
pub struct MountArgs {
    /// The data folder.
    #[command(flatten)]
    pub data: DataArgs,
    /// The volume
    pub volume: String,
    /// The moment, mounted read-only [default: the disk itself]
    #[arg(long, value_name = "WHEN", allow_hyphen_values = true)]
    pub at: Option<When>,
    /// Take writes at a moment, which are forgotten at `umount`
    #[arg(long, requires = "at")]
    pub writable: bool,
    /// The partition [default: the only one that has a file system]
    #[arg(long, value_name = "N")]
    pub partition: Option<u32>,
    /// More options for mount(8)
    #[arg(short, long, value_name = "OPTIONS")]
    pub options: Option<String>,
    /// The folder to mount it on
    pub dir: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `umount`.
#[derive(Debug, Args)]
pub struct UmountArgs {
    /// The data folder.
    #[command(flatten)]
    pub data: DataArgs,
    /// Where it is mounted
    pub dir: PathBuf,
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

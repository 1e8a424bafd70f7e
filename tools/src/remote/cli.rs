//! The command line of what mgmt is asked over its API.

use crate::mgmt::parse_api;
use afterimage_base::net::Endpoint;
use afterimage_mgmt::api::types::NetworkMap;
use afterimage_mgmt::catalogue::ApiRole;
use afterimage_mgmt::members::DiskWish;
use afterimage_mgmt::units::parse_duration;
use clap::{Args, Subcommand, ValueEnum};
use std::path::PathBuf;
use std::time::Duration;

/// How to reach mgmt.
#[derive(Debug, Clone, Default, Args)]
pub struct WayArgs {
    /// Where mgmt's API is: HOST[:PORT], port 20005 if left out [default: $AFTERIMAGE_MGMT, or `address` in mgmt.toml]
    #[arg(long, global = true, value_parser = parse_api, value_name = "ADDRESS", conflicts_with = "data")]
    pub mgmt: Option<Endpoint>,
    /// File with the token, mode 0600; - for standard input [default: $AFTERIMAGE_API_TOKEN, or `token_file` in mgmt.toml]
    #[arg(long, global = true, value_name = "FILE", conflicts_with = "data")]
    pub token_file: Option<PathBuf>,
    /// SHA-256 of mgmt's CA [default: the token's, or `ca_pin` in mgmt.toml]
    #[arg(long, global = true, value_name = "SHA256")]
    pub ca_pin: Option<String>,
    /// Data folder of mgmt, on its own host: no token is needed [default without an address or a token: $AFTERIMAGE_DATA,
    /// $XDG_DATA_HOME/afterimage or ~/.local/share/afterimage]
    #[arg(long, global = true, value_name = "DIR")]
    pub data: Option<PathBuf>,
}

/// How to reach mgmt, and what to print.
#[derive(Debug, Clone, Args)]
pub struct RemoteArgs {
    /// The way.
    #[command(flatten)]
    pub way: WayArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Roles of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RoleWord {
    /// Look at everything
    Viewer,
    /// Protect machines, make policies
    Operator,
    /// Say who may do what
    Admin,
}

impl From<RoleWord> for ApiRole {
    fn from(word: RoleWord) -> ApiRole {
        match word {
            RoleWord::Viewer => ApiRole::Viewer,
            RoleWord::Operator => ApiRole::Operator,
            RoleWord::Admin => ApiRole::Admin,
        }
    }
}

/// Subcommands of `mgmt api-token`.
#[derive(Debug, Subcommand)]
pub enum ApiTokenCommand {
    /// Make a token
    Create {
        /// Whose it is: the audit log names it
        #[arg(long)]
        name: String,
        /// What its owner may do
        #[arg(long, value_enum, default_value = "viewer")]
        role: RoleWord,
        /// How long it lasts
        #[arg(long, default_value = "90d", value_parser = parse_duration, value_name = "TIME")]
        ttl: Duration,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show the tokens, without their secrets
    Ls {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Let a token count no more, from now on
    Revoke {
        /// Its number
        id: i64,
    },
}

/// Subcommands of `machine`.
#[derive(Debug, Subcommand)]
pub enum MachineCommand {
    /// List the machines
    Ls(RemoteArgs),
    /// Show a machine and its volumes
    Show {
        /// Its name or id
        machine: String,
        /// mgmt.
        #[command(flatten)]
        remote: RemoteArgs,
    },
    /// Look whether a machine can be protected
    Check {
        /// Its name or id
        machine: String,
        /// A disk on its host that is not served yet; may be given several times
        #[arg(long, value_name = "PATH")]
        disk: Vec<String>,
        /// mgmt.
        #[command(flatten)]
        remote: RemoteArgs,
    },
    /// Look whether a machine is ready, and protect it
    Protect(Box<ProtectArgs>),
    /// Take a machine out of its policy; its disks stay served, and what was kept is kept
    Unprotect {
        /// Its name or id
        machine: String,
        /// mgmt.
        #[command(flatten)]
        remote: RemoteArgs,
    },
    /// Name one of several machines whose disks one agent serves
    Create {
        /// Its name
        name: String,
        /// The machine whose agent serves its disks
        #[arg(long, value_name = "MACHINE")]
        agent: String,
        /// One of its volumes; may be given several times
        #[arg(long, value_name = "VOLUME")]
        volume: Vec<String>,
        /// mgmt.
        #[command(flatten)]
        remote: RemoteArgs,
    },
    /// Say that a volume which the machine's agent does not serve any more is no part of it; its history stays
    DropVolume {
        /// Its name or id
        machine: String,
        /// The volume
        volume: String,
        /// mgmt.
        #[command(flatten)]
        remote: RemoteArgs,
    },
    /// Forget a machine that was named so; its volumes are those of the agent's host again
    Rm {
        /// Its name or id
        machine: String,
        /// mgmt.
        #[command(flatten)]
        remote: RemoteArgs,
    },
}

/// Reads `[NAME=]PATH`.
fn parse_wish(text: &str) -> Result<DiskWish, String> {
    let disk = crate::up::parse_disk(text).map_err(|e| e.text)?;
    Ok(DiskWish { path: disk.path.display().to_string(), name: Some(disk.name) })
}

/// Reads `SOURCE=TARGET`.
fn parse_network(text: &str) -> Result<NetworkMap, String> {
    match text.split_once('=') {
        Some((source, target)) if !source.is_empty() && !target.is_empty() => {
            Ok(NetworkMap { source: source.to_owned(), target: target.to_owned() })
        }
        _ => Err(format!("'{text}': write SOURCE=TARGET, such as eth0=dr-lan")),
    }
}

/// Arguments of `machine protect`.
#[derive(Debug, Args)]
pub struct ProtectArgs {
    /// Its name or id
    pub machine: String,
    /// The policy [default: `default`, which is made if there is none]
    #[arg(long, value_name = "NAME")]
    pub policy: Option<String>,
    /// A disk on its host that is to be protected, too; may be given several times
    #[arg(long, value_parser = parse_wish, value_name = "[NAME=]PATH")]
    pub disk: Vec<DiskWish>,
    /// Where the appliance keeps the history [default: vault]
    #[arg(long, value_name = "NAME")]
    pub store: Option<String>,
    /// Where a failover would run [default: the appliance's host]
    #[arg(long, value_name = "HOST")]
    pub failover_host: Option<String>,
    /// As what it would run [default: MACHINE-failover]
    #[arg(long, value_name = "NAME")]
    pub failover_name: Option<String>,
    /// A network of the machine and the one that it becomes; may be given several times [default: the same name]
    #[arg(long, value_parser = parse_network, value_name = "SOURCE=TARGET")]
    pub network: Vec<NetworkMap>,
    /// Only say what was found and what would be made
    #[arg(long)]
    pub dry_run: bool,
    /// Go on although something speaks against it
    #[arg(long)]
    pub force: bool,
    /// mgmt.
    #[command(flatten)]
    pub remote: RemoteArgs,
}

/// What a policy says.
#[derive(Debug, Clone, Args)]
pub struct PolicyArgs {
    /// How far back any write can be chosen [24h]
    #[arg(long, value_parser = parse_duration, value_name = "TIME")]
    pub window: Option<Duration>,
    /// Hourly points that are kept beyond the window [0]
    #[arg(long, value_name = "N")]
    pub hourly: Option<u32>,
    /// Daily ones [0]
    #[arg(long, value_name = "N")]
    pub daily: Option<u32>,
    /// Weekly ones [0]
    #[arg(long, value_name = "N")]
    pub weekly: Option<u32>,
    /// Monthly ones [0]
    #[arg(long, value_name = "N")]
    pub monthly: Option<u32>,
    /// Time between points that are consistent for a crash; 0 makes none [60s]
    #[arg(long, value_parser = parse_duration, value_name = "TIME")]
    pub crash_every: Option<Duration>,
    /// Time between points that are consistent for applications; 0 makes none [0]
    #[arg(long, value_parser = parse_duration, value_name = "TIME")]
    pub app_every: Option<Duration>,
    /// Keep a group's point without members that failed, marked as partial [false]
    #[arg(long, value_name = "true|false", num_args = 0..=1, default_missing_value = "true")]
    pub allow_partial: Option<bool>,
}

/// Subcommands of `policy`.
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// List the policies
    Ls(RemoteArgs),
    /// Show a policy
    Show {
        /// Its name
        policy: String,
        /// mgmt.
        #[command(flatten)]
        remote: RemoteArgs,
    },
    /// Make a policy
    Create {
        /// Its name
        policy: String,
        /// What it says.
        #[command(flatten)]
        settings: PolicyArgs,
        /// mgmt.
        #[command(flatten)]
        remote: RemoteArgs,
    },
    /// Change a policy: what is not named stays
    Set {
        /// Its name
        policy: String,
        /// What it says.
        #[command(flatten)]
        settings: PolicyArgs,
        /// mgmt.
        #[command(flatten)]
        remote: RemoteArgs,
    },
    /// Show what a volume's appliance would keep by a policy, and give back; for groups: `group kept --policy`
    Preview {
        /// Its name
        policy: String,
        /// The volume: its id, its name or MACHINE/NAME
        volume: String,
        /// mgmt.
        #[command(flatten)]
        remote: RemoteArgs,
    },
    /// Remove a policy that protects nothing
    Rm {
        /// Its name
        policy: String,
        /// mgmt.
        #[command(flatten)]
        remote: RemoteArgs,
    },
}

/// Subcommands of `event`.
#[derive(Debug, Subcommand)]
pub enum EventCommand {
    /// List the newest events
    Ls {
        /// Go on until interrupted
        #[arg(long)]
        follow: bool,
        /// Only those after the one with this number
        #[arg(long, value_name = "ID")]
        after: Option<i64>,
        /// At most so many at first
        #[arg(long, default_value = "50", value_name = "N")]
        limit: u32,
        /// mgmt.
        #[command(flatten)]
        remote: RemoteArgs,
    },
}

/// Subcommands of `job`.
#[derive(Debug, Subcommand)]
pub enum JobCommand {
    /// List the newest jobs
    Ls {
        /// At most so many
        #[arg(long, default_value = "50", value_name = "N")]
        limit: u32,
        /// mgmt.
        #[command(flatten)]
        remote: RemoteArgs,
    },
}

/// Arguments of `appliance ls`.
#[derive(Debug, Args)]
pub struct ApplianceListArgs {
    /// mgmt.
    #[command(flatten)]
    pub remote: RemoteArgs,
}

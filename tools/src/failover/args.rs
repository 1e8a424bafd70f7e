//! The command line of `afterimage failover`.

use crate::cli::DataArgs;
use crate::mgmt::parse_api;
use crate::remote::cli::WayArgs;
use afterimage_base::net::Endpoint;
use afterimage_mgmt::failover::check::Check;
use afterimage_mgmt::units::{parse_duration, parse_size};
use afterimage_mgmt::when::When;
use clap::{Args, Subcommand};
use std::path::PathBuf;
use std::time::Duration;

/// Subcommands of `failover`.
#[derive(Debug, Subcommand)]
pub enum FailoverCommand {
    /// Start a machine from a moment of its volumes, look at it, and remove it without a trace
    Test(TestArgs),
    /// Run a machine here from now on: its old primary takes no writes any more
    Run(RunArgs),
    /// Keep a failover: it cannot be rolled back any more
    Commit(DecideArgs),
    /// End a failover: the machine here is killed, and the old primary takes writes again
    Rollback(DecideArgs),
    /// Start the machine of a failover again that has ended by itself
    Again(DecideArgs),
    /// Bring what a machine has written here back to a disk; only blocks that differ are written
    Failback(BackArgs),
    /// Let the old primary of a volume take writes again, behind a committed failover that has ended
    Unfence(UnfenceArgs),
    /// Show what a recovery plan would do, and whether this host has all that it needs
    Plan(PlanArgs),
    /// The manual action that a plan waits for is done
    Continue(JobArgs),
    /// List failovers, tests and plans, those that have ended too
    Ls(ListArgs),
    /// Show how a failover or a test goes, or went
    Show(JobArgs),
    /// Stop a test, or the machine of a committed failover, whose branches stay
    Stop(JobArgs),
    /// Remove what killed test failovers left, and the reports of those that have ended
    Cleanup(CleanupArgs),
    /// Does a job; started by `test` and `run`
    #[command(hide = true)]
    Keep(JobArgs),
}

/// Arguments of `failover test`.
#[derive(Debug, Args)]
pub struct TestArgs {
    /// The data folder.
    #[command(flatten)]
    pub data: DataArgs,
    /// Machines (`afterimage target ls`), files of some, or volumes; several begin at one moment
    #[arg(value_name = "MACHINE|FILE|VOLUME", required_unless_present_any = ["plan", "asks_mgmt"])]
    pub what: Vec<String>,
    /// Carry out this recovery plan instead: a file
    #[arg(long, value_name = "FILE", conflicts_with_all = ["what", "check", "check_limit"])]
    pub plan: Option<PathBuf>,
    /// The point of a group.
    #[command(flatten)]
    pub group: GroupArgs,
    /// The moment; for several disks one instant: a time, or the name of a point that all have
    #[arg(long, default_value = "latest", allow_hyphen_values = true, value_name = "WHEN")]
    pub at: When,
    /// What to look at: boot, serial:TEXT, agent, tcp:PORT, script:/PATH, screenshot; may be given several times, in order
    /// [default: boot]
    #[arg(long, value_name = "CHECK")]
    pub check: Vec<Check>,
    /// How long each check may take
    #[arg(long, default_value = "5m", value_parser = parse_duration, value_name = "TIME")]
    pub check_limit: Duration,
    /// How long the machine stays after the checks
    #[arg(long, default_value = "0", value_parser = parse_duration, value_name = "TIME")]
    pub ttl: Duration,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `failover run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The data folder.
    #[command(flatten)]
    pub data: DataArgs,
    /// Machines (`afterimage target ls`), files of some, or volumes; several begin at one moment
    #[arg(value_name = "MACHINE|FILE|VOLUME", required_unless_present_any = ["plan", "asks_mgmt"])]
    pub what: Vec<String>,
    /// Carry out this recovery plan instead: a file
    #[arg(long, value_name = "FILE", conflicts_with_all = ["what", "check", "check_limit", "commit_after"])]
    pub plan: Option<PathBuf>,
    /// The point of a group.
    #[command(flatten)]
    pub group: GroupArgs,
    /// The moment: latest, latest-app (the newest app-consistent point), a time, @SEQ or a point
    #[arg(long, default_value = "latest", allow_hyphen_values = true, value_name = "WHEN")]
    pub at: When,
    /// The moment of one volume, as the point of a group has it; may be given several times
    #[arg(long, value_name = "VOLUME=@SEQ", conflicts_with = "asks_mgmt")]
    pub place: Vec<String>,
    /// The old primary is there: have it take no writes, wait until all that it has is here, and lose nothing; with --group, of all its
    /// machines
    #[arg(long, conflicts_with_all = ["at", "place"])]
    pub planned: bool,
    /// How long that may take
    #[arg(long, default_value = "10m", value_parser = parse_duration, value_name = "TIME")]
    pub drain_limit: Duration,
    /// Name of the branches [default: failover-ID]
    #[arg(long, value_name = "NAME")]
    pub branch: Option<String>,
    /// What to look at: boot, serial:TEXT, agent, tcp:PORT, script:/PATH, screenshot; may be given several times, in order
    /// [default: boot]
    #[arg(long, value_name = "CHECK")]
    pub check: Vec<Check>,
    /// How long each check may take
    #[arg(long, default_value = "5m", value_parser = parse_duration, value_name = "TIME")]
    pub check_limit: Duration,
    /// Commit by itself so long after the checks have passed
    #[arg(long, value_parser = parse_duration, value_name = "TIME")]
    pub commit_after: Option<Duration>,
    /// Only show what would happen
    #[arg(long)]
    pub dry_run: bool,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// The group whose point is meant, and how to reach mgmt, which knows it.
#[derive(Debug, Clone, Default, Args)]
pub struct GroupArgs {
    /// The machines of this group (or those that are named), all at one of its points: --at names it, or a time, latest, latest-app
    #[arg(long, value_name = "GROUP", id = "asks_mgmt")]
    pub group: Option<String>,
    /// The way to mgmt.
    #[command(flatten)]
    pub mgmt: MgmtArgs,
}

/// How to reach mgmt, for what it knows alone.
#[derive(Debug, Clone, Default, Args)]
pub struct MgmtArgs {
    /// Where mgmt's API is: HOST[:PORT] [default: $AFTERIMAGE_MGMT, or `address` in mgmt.toml]
    #[arg(long, value_parser = parse_api, value_name = "ADDRESS", requires = "asks_mgmt")]
    pub mgmt: Option<Endpoint>,
    /// File with mgmt's token, mode 0600 [default: $AFTERIMAGE_API_TOKEN, or `token_file` in mgmt.toml]
    #[arg(long, value_name = "FILE", requires = "asks_mgmt")]
    pub token_file: Option<PathBuf>,
    /// SHA-256 of mgmt's CA [default: the token's, or `ca_pin` in mgmt.toml]
    #[arg(long, value_name = "SHA256", requires = "asks_mgmt")]
    pub ca_pin: Option<String>,
    /// Data folder of mgmt, where mgmt runs on this host: no token is needed
    #[arg(long, value_name = "DIR", requires = "asks_mgmt", conflicts_with_all = ["mgmt", "token_file", "ca_pin"])]
    pub mgmt_data: Option<PathBuf>,
}

impl MgmtArgs {
    /// The same, as the commands say it that only ask mgmt.
    #[must_use]
    pub fn way(&self) -> WayArgs {
        WayArgs {
            mgmt: self.mgmt.clone(),
            token_file: self.token_file.clone(),
            ca_pin: self.ca_pin.clone(),
            data: self.mgmt_data.clone(),
        }
    }
}

/// Arguments of `failover plan`.
#[derive(Debug, Args)]
pub struct PlanArgs {
    /// The data folder.
    #[command(flatten)]
    pub data: DataArgs,
    /// The plan
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `failover failback`.
#[derive(Debug, Args)]
pub struct BackArgs {
    /// The data folder.
    #[command(flatten)]
    pub data: DataArgs,
    /// The failover
    #[arg(value_name = "ID")]
    pub id: String,
    /// The disk: a file, which is made if need be, or a block device of this host [default, with --return: the old primary's disk, where its
    /// agent is]
    #[arg(long, value_name = "PATH", required_unless_present = "returns")]
    pub to: Option<PathBuf>,
    /// Which disk of the machine, if it has several
    #[arg(long, value_name = "VOLUME")]
    pub volume: Option<String>,
    /// It is the disk of the old primary, which goes on with it
    #[arg(long = "return")]
    pub returns: bool,
    /// Take the machine down for the last of it, and end
    #[arg(long)]
    pub cut_over: bool,
    /// Bytes a second that may be written; 0 for as many as go
    #[arg(long, default_value = "0", value_parser = parse_size, value_name = "SIZE")]
    pub rate: u64,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `failover commit`, `rollback` and `again`.
#[derive(Debug, Args)]
pub struct DecideArgs {
    /// The data folder.
    #[command(flatten)]
    pub data: DataArgs,
    /// The job, or the first of those that were asked for together
    #[arg(value_name = "ID")]
    pub id: String,
    /// Roll-back: what was written stays on its branches
    #[arg(long)]
    pub keep_branch: bool,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `failover unfence`.
#[derive(Debug, Args)]
pub struct UnfenceArgs {
    /// The data folder.
    #[command(flatten)]
    pub data: DataArgs,
    /// The volume
    #[arg(value_name = "VOLUME")]
    pub volume: String,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `failover ls`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// The data folder.
    #[command(flatten)]
    pub data: DataArgs,
    /// Those of all appliances, as mgmt knows them
    #[arg(long, id = "asks_mgmt", conflicts_with = "data")]
    pub all: bool,
    /// The way to mgmt.
    #[command(flatten)]
    pub mgmt: MgmtArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of commands about one job.
#[derive(Debug, Args)]
pub struct JobArgs {
    /// The data folder.
    #[command(flatten)]
    pub data: DataArgs,
    /// The job
    #[arg(value_name = "ID")]
    pub id: String,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `failover cleanup`.
#[derive(Debug, Args)]
pub struct CleanupArgs {
    /// The data folder.
    #[command(flatten)]
    pub data: DataArgs,
    /// Only these jobs [default: all that have ended]
    #[arg(value_name = "ID")]
    pub ids: Vec<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

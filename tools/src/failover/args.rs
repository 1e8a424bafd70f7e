//! The command line of `afterimage failover`.

use crate::cli::DataArgs;
use afterimage_mgmt::failover::check::Check;
use afterimage_mgmt::units::parse_duration;
use afterimage_mgmt::when::When;
use clap::{Args, Subcommand};
use std::time::Duration;

/// Subcommands of `failover`.
#[derive(Debug, Subcommand)]
pub enum FailoverCommand {
    /// Start a machine from a moment of its volumes, look at it, and remove it without a trace
    Test(TestArgs),
    /// List test failovers, those that have ended too
    Ls(ListArgs),
    /// Show how a test failover went
    Show(JobArgs),
    /// Stop a test failover; nothing is left of it but its report
    Stop(JobArgs),
    /// Remove what killed test failovers left, and the reports of those that have ended
    Cleanup(CleanupArgs),
    /// Does a job; started by `test`
    #[command(hide = true)]
    Keep(JobArgs),
}

/// Arguments of `failover test`.
#[derive(Debug, Args)]
pub struct TestArgs {
    /// The data folder.
    #[command(flatten)]
    pub data: DataArgs,
    /// A machine (`afterimage target ls`), the file of one, or a volume
    #[arg(value_name = "MACHINE|FILE|VOLUME")]
    pub what: String,
    /// The moment; for a machine with several disks one instant: a time, or the name of a point that all have
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

/// Arguments of `failover ls`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// The data folder.
    #[command(flatten)]
    pub data: DataArgs,
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

//! The command line.

mod past;
mod roles;

pub use past::*;
pub use roles::*;

use crate::data;
use crate::failover::args::FailoverCommand;
use crate::problem::Problem;
use crate::remote::cli::{EventCommand, JobCommand, MachineCommand, PolicyCommand};
use crate::target::args::TargetCommand;
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

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
    /// Mount a volume's file system, or that of the volume as it was
    Mount(MountArgs),
    /// Unmount what `mount` has mounted, and take its block device away
    Umount(UmountArgs),
    /// Write a volume as it was to a file, a block device or a pipe
    Restore(RestoreArgs),
    /// Files of a volume as they were: list, copy, print, compare; no root, and nothing is started
    Files(crate::files::args::FilesArgs),
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
    /// Read file systems, in the guest that `files` starts
    #[command(hide = true)]
    FilesGuest {
        /// How many disks it has
        disks: usize,
    },
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

#[cfg(test)]
mod tests {
    use super::*;
    use afterimage_mgmt::when::When;
    use clap::CommandFactory;
    use std::time::Duration;

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

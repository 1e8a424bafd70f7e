//! The command line of `afterimage target`.

use crate::cli::DataArgs;
use clap::{Args, Subcommand, ValueEnum};
use std::path::PathBuf;

/// Subcommands of `target`.
#[derive(Debug, Subcommand)]
pub enum TargetCommand {
    /// Take the description of a machine into the data folder
    Add(AddArgs),
    /// List the machines that are described
    Ls(ListArgs),
    /// Remove the description of a machine
    Rm(RemoveArgs),
    /// Print a machine: as its description, as a command of QEMU, or as a domain of libvirt
    Describe(DescribeArgs),
    /// See whether this host can run a machine
    Check(CheckArgs),
    /// Show the kernel of the guest with which `afterimage files` reads, or take another one
    Kernel(KernelArgs),
}

/// Arguments of `target kernel`.
#[derive(Debug, Args)]
pub struct KernelArgs {
    /// The data folder.
    #[command(flatten)]
    pub data: DataArgs,
    /// Take the one of this package, or of this folder with boot/vmlinuz-VERSION and lib/modules/VERSION
    #[arg(value_name = "PACKAGE.deb|FOLDER")]
    pub from: Option<PathBuf>,
    /// Take Debian's, which apt-get downloads; it is not installed
    #[arg(long, conflicts_with = "from")]
    pub download: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `target add`.
#[derive(Debug, Args)]
pub struct AddArgs {
    /// The data folder.
    #[command(flatten)]
    pub data: DataArgs,
    /// The description (docs/recovery.md); one of the same name is replaced
    pub file: PathBuf,
}

/// Arguments of `target ls`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// The data folder.
    #[command(flatten)]
    pub data: DataArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `target rm`.
#[derive(Debug, Args)]
pub struct RemoveArgs {
    /// The data folder.
    #[command(flatten)]
    pub data: DataArgs,
    /// The machine
    pub name: String,
}

/// What `target describe` prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// The description
    Toml,
    /// A command for a shell
    Qemu,
    /// XML for virsh define
    Libvirt,
    /// The description, for programs
    Json,
}

/// Arguments of `target describe`.
#[derive(Debug, Args)]
pub struct DescribeArgs {
    /// The data folder.
    #[command(flatten)]
    pub data: DataArgs,
    /// A machine, the file of one, or a volume, of which a plain machine is made
    #[arg(value_name = "MACHINE|FILE|VOLUME")]
    pub what: String,
    /// In which form
    #[arg(long = "as", value_enum, default_value = "toml", value_name = "FORM")]
    pub form: Form,
    /// With the networks of a test
    #[arg(long)]
    pub test: bool,
    /// Folder in which the disks' sockets are to be
    #[arg(long, default_value = ".", value_name = "DIR")]
    pub sockets: PathBuf,
}

/// Arguments of `target check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The data folder.
    #[command(flatten)]
    pub data: DataArgs,
    /// A machine, the file of one, or a volume
    #[arg(value_name = "MACHINE|FILE|VOLUME")]
    pub what: String,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

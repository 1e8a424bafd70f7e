//! The command line of `afterimage files`.

use super::wire::Name;
use crate::cli::DataArgs;
use afterimage_mgmt::when::When;
use clap::{Args, Subcommand};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// Arguments of `files`.
#[derive(Debug, Args)]
pub struct FilesArgs {
    /// The data folder.
    #[command(flatten)]
    pub data: DataArgs,
    /// The volume, or a branch
    pub volume: String,
    /// The moment
    #[arg(long, default_value = "latest", value_name = "WHEN", allow_hyphen_values = true)]
    pub at: When,
    /// The partition [default: the only one with files; the whole disk, if it has none]
    #[arg(long, value_name = "N")]
    pub partition: Option<u32>,
    /// Do not replay the journal of the file system: what was written last may be missing or torn
    #[arg(long)]
    pub no_replay: bool,
    /// What to do
    #[command(subcommand)]
    pub command: FilesCommand,
}

/// Subcommands of `files`.
#[derive(Debug, Subcommand)]
pub enum FilesCommand {
    /// List the partitions of the disk
    Partitions {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// List a folder
    Ls {
        /// The folder, or a file
        #[arg(default_value = "/")]
        path: OsString,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Copy files to this host
    Cp(CopyArgs),
    /// Print a file
    Cat {
        /// The file
        path: OsString,
    },
    /// List what differs in a folder between the moment and a later one
    Diff {
        /// The folder, or a file
        #[arg(default_value = "/")]
        path: OsString,
        /// The later moment
        #[arg(long, default_value = "latest", value_name = "WHEN", allow_hyphen_values = true)]
        to: When,
        /// Compare the data of all files, also of those whose size and times say that nothing was changed
        #[arg(long)]
        content: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Arguments of `files VOLUME cp`.
#[derive(Debug, Args)]
pub struct CopyArgs {
    /// Folders, too, with all that they hold
    #[arg(short, long)]
    pub recursive: bool,
    /// Replace files that are there
    #[arg(short, long)]
    pub force: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// What to copy, from the volume
    #[arg(required = true, value_name = "SOURCE")]
    pub sources: Vec<OsString>,
    /// Where to, on this host
    #[arg(value_name = "TARGET")]
    pub target: PathBuf,
}

/// A path as the guest takes it.
#[must_use]
pub fn name_of(path: &OsStr) -> Name {
    Name(path.as_bytes().to_vec())
}

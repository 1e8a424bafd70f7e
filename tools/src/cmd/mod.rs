//! Subcommands with their arguments, one file each.

pub mod retention;

//! Branches: second futures of a volume, forked at a seq.
//!
//! A branch is a volume of the vault with a parent and a fork in the manifest
//! ([`ForkMeta`](afterimage_format::manifest::ForkMeta)). Seqs up to the fork are the parent's; its own begin behind it, in layers and
//! segments of its own, written through the stages that agents' records go through. What its layers do not know is looked up
//! in the parent at the fork ([`Base`]), which stays readable as long as the branch is there (I10): so making one costs one
//! replacement of the manifest, whatever the size of the disk and the length of its history.
//!
//! | module | what |
//! |---|---|
//! | `live` | writing: from requests to durable records |
//! | `device` | a branch as a block device |
//! | `manage` | making, listing, promoting and dropping |
//!
//! | what | how it ends, whenever it is killed |
//! |---|---|
//! | create | one edit of the manifest: the branch is there or not |
//! | write | a prefix of what was written, which holds all that was flushed |
//! | promote | a layer, then one edit: before it, a layer that nothing names; behind it, a volume that stands by itself |
//! | drop | one edit; layers go at once or at the next start, segments with collection |
//!
//! *Which branches may begin where.* A branch is made by an edit of the manifest that looks there whether the seq is in the
//! parent's window, or one of its kept points; and rounds of collection move the window by an edit that looks there which
//! branches there are. So either the window moves first, and the branch is refused, or the branch is there first, and what it
//! needs is kept.
//!
//! A writable export of a moment is a branch of kind *scratch*: dropped with the export, or by the next start.

mod device;
mod live;
mod manage;

pub use manage::{BranchError, BranchInfo};

pub(crate) use live::Runner;

#[cfg(test)]
#[path = "branch_tests.rs"]
mod tests;

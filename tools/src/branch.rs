//! `afterimage branch`: second futures of a volume.

use crate::cli::DataArgs;
use crate::problem::Problem;
use crate::show::{put, put_json, table};
use crate::{export, show};
use afterimage_mgmt::client::ControlClient;
use afterimage_mgmt::protocol::{Access, BranchAsk, BranchKind, BranchList, BranchStatus, PointInfo};
use afterimage_mgmt::units::format_size;
use afterimage_mgmt::when::When;
use afterimage_nbd::Address;
use clap::{Args, Subcommand};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Arguments of `branch`.
#[derive(Debug, Args)]
pub struct BranchArgs {
    /// The data folder [default: $AFTERIMAGE_DATA, or ~/.local/share/afterimage]
    #[arg(long, global = true, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// What to do
    #[command(subcommand)]
    pub command: BranchCommand,
}

/// Subcommands of `branch`. A branch is named VOLUME/NAME.
#[derive(Debug, Subcommand)]
pub enum BranchCommand {
    /// Begin a branch of a volume (or of a branch): a disk of its own that begins as that was
    Create {
        /// The volume, or a branch
        volume: String,
        /// Where it begins
        #[arg(long, default_value = "latest", value_name = "WHEN", allow_hyphen_values = true)]
        at: When,
        /// Its name, which becomes VOLUME/NAME
        #[arg(long)]
        name: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// List the branches
    Ls {
        /// Only those of this volume
        volume: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show a branch
    Show {
        /// VOLUME/NAME
        branch: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Serve a branch over NBD, to be read and written, until interrupted
    Export {
        /// VOLUME/NAME
        branch: String,
        /// The socket to serve at
        #[arg(long, value_name = "unix:PATH")]
        listen: Address,
    },
    /// Make a recovery point of a branch now
    Point {
        /// VOLUME/NAME
        branch: String,
        /// The point's name
        #[arg(long)]
        name: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// List what differs between a branch and where it began, or another moment
    Diff {
        /// VOLUME/NAME
        branch: String,
        /// The volume or branch to compare with [default: itself]
        #[arg(long, value_name = "VOLUME")]
        base: Option<String>,
        /// The moment to compare with [default: where the branch begins; of another volume, latest]
        #[arg(long, value_name = "WHEN", allow_hyphen_values = true)]
        from: Option<When>,
        /// The moment of the branch
        #[arg(long, default_value = "latest", value_name = "WHEN", allow_hyphen_values = true)]
        to: When,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Make a volume of a branch that needs its parent no more; it keeps its name and may be in use
    Promote {
        /// VOLUME/NAME
        branch: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Drop a branch that nobody uses, with all that was written to it
    Drop {
        /// VOLUME/NAME
        branch: String,
        /// Yes, drop it
        #[arg(long)]
        yes: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

fn kind(b: &BranchStatus) -> &'static str {
    match (b.kind, b.open) {
        (BranchKind::Branch, true) => "branch, in use",
        (BranchKind::Branch, false) => "branch",
        (BranchKind::Export, _) => "writable export",
        (BranchKind::Promoted, true) => "promoted, in use",
        (BranchKind::Promoted, false) => "promoted",
        (BranchKind::Tail, _) => "of an old primary",
        (BranchKind::Other, _) => "unknown",
    }
}

fn list_text(list: &BranchList) -> String {
    if list.branches.is_empty() {
        return "no branches\n".to_owned();
    }
    let head = ["BRANCH", "FROM", "AT", "TIME", "NOW", "WRITTEN", "STORED", "WHAT"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for b in &list.branches {
        rows.push(vec![
            b.name.clone(),
            b.parent.clone(),
            format!("@{}", b.fork_seq),
            b.fork_time.short(),
            format!("@{}", b.seq),
            format_size(b.logical_bytes),
            format_size(b.stored_bytes),
            kind(b).to_owned(),
        ]);
    }
    table(&rows)
}

fn text(b: &BranchStatus) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "{} ({}, {})", b.name, format_size(b.size), kind(b));
    let _ = writeln!(out, "  begins behind @{} of {} ({})", b.fork_seq, b.parent, b.fork_time.short());
    let _ = writeln!(out, "  made {}", b.created.short());
    let written = format_size(b.logical_bytes);
    let _ = writeln!(
        out,
        "  durable to @{} ({}); {written} written, {} stored",
        b.seq,
        b.time.short(),
        format_size(b.stored_bytes)
    );
    let _ = writeln!(out, "  {} recovery points", b.points);
    if let Some(reason) = &b.reason {
        let _ = writeln!(out, "  {reason}");
    }
    out
}

fn ask(data: &Path, ask: BranchAsk) -> Result<BranchStatus, Problem> {
    Ok(ControlClient::connect(data)?.branch(ask)?)
}

fn told(branch: &BranchStatus, json: bool, text: &str) -> Result<(), Problem> {
    if json { put_json(branch) } else { put(text) }
}

/// `afterimage branch`.
///
/// # Errors
/// What the appliance says, or that nothing runs on the data folder.
pub fn run(args: BranchArgs) -> Result<(), Problem> {
    let data = DataArgs { data: args.data }.folder()?;
    match args.command {
        BranchCommand::Create { volume, at, name, json } => {
            let made = ask(&data, BranchAsk::Create { volume, at, name })?;
            let text = format!(
                "{} begins behind @{} of {} ({})\nserve it with: afterimage branch export {} --listen unix:PATH\n",
                made.name,
                made.fork_seq,
                made.parent,
                made.fork_time.short(),
                made.name
            );
            told(&made, json, &text)
        }
        BranchCommand::Ls { volume, json } => ls(&data, volume.as_deref(), json),
        BranchCommand::Show { branch: name, json } => {
            let branch = ask(&data, BranchAsk::Show { name })?;
            told(&branch, json, &text(&branch))
        }
        BranchCommand::Export { branch, listen } => {
            let Address::Unix(listen) = listen else {
                return Err(Problem::usage("a branch is served at a unix socket: write --listen unix:PATH"));
            };
            let options = export::Options { volume: branch, at: When::Latest, access: Access::Branch, listen };
            export::export(&data, &options)
        }
        BranchCommand::Point { branch, name, json } => {
            let asked = BranchAsk::Point { name: branch.clone(), point: name };
            let point: PointInfo = ControlClient::connect(&data)?.branch(asked)?;
            if json {
                return put_json(&point);
            }
            put(&format!("point '{}' of {branch} stands at @{} ({})\n", point.name, point.seq, point.time.short()))
        }
        BranchCommand::Diff { branch, base, from, to, json } => {
            let from = match (from, &base) {
                (Some(from), _) => from,
                (None, Some(_)) => When::Latest,
                (None, None) => When::Seq(ask(&data, BranchAsk::Show { name: branch.clone() })?.fork_seq),
            };
            show::diff(&data, (base.as_deref(), &from), (&branch, &to), json)
        }
        BranchCommand::Promote { branch: name, json } => {
            let promoted = ask(&data, BranchAsk::Promote { name })?;
            told(&promoted, json, &format!("{} is a volume that stands by itself\n", promoted.name))
        }
        BranchCommand::Drop { branch: name, yes, json } => drop_branch(&data, name, yes, json),
    }
}

fn ls(data: &Path, volume: Option<&str>, json: bool) -> Result<(), Problem> {
    let mut list: BranchList = ControlClient::connect(data)?.branch(BranchAsk::List)?;
    if let Some(volume) = volume {
        let of_volume = |b: &BranchStatus| b.parent == volume || b.name.rsplit_once('/').is_some_and(|n| n.0 == volume);
        list.branches.retain(of_volume);
    }
    if json { put_json(&list) } else { put(&list_text(&list)) }
}

fn drop_branch(data: &Path, name: String, yes: bool, json: bool) -> Result<(), Problem> {
    if !yes {
        let branch = ask(data, BranchAsk::Show { name })?;
        let (written, name) = (format_size(branch.logical_bytes), branch.name);
        return Err(Problem::usage(format!("{written} written to {name} would be gone: add --yes to drop it")));
    }
    let was = ask(data, BranchAsk::Drop { name })?;
    told(&was, json, &format!("{} is dropped; its room is given back by and by\n", was.name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use afterimage_mgmt::units::Time;

    #[test]
    fn a_list_says_where_each_begins() {
        let b = BranchStatus {
            name: "web/trial".into(),
            id: String::new(),
            kind: BranchKind::Branch,
            parent: "web".into(),
            fork_seq: 41,
            fork_time: Time(0),
            created: Time(0),
            size: 1 << 30,
            seq: 99,
            time: Time(0),
            logical_bytes: 3 << 20,
            stored_bytes: 1 << 20,
            points: 2,
            open: true,
            reason: Some("no more".into()),
        };
        let all = text(&b);
        assert!(all.contains("behind @41 of web") && all.contains("no more") && all.contains("in use"), "{all}");
        let list = list_text(&BranchList { branches: vec![b] });
        assert!(list.contains("web/trial") && list.contains("@41") && list.contains("3 MiB"), "{list}");
        assert_eq!(list_text(&BranchList { branches: Vec::new() }), "no branches\n");
    }
}

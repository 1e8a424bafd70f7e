//! `afterimage volume retention`, and `point pin`, `unpin` and `rm`: what of a volume's history is kept.

use crate::cli::{DataArgs, PointWay};
use crate::problem::Problem;
use crate::show::{now, put, put_json, table};
use afterimage_mgmt::client::ControlClient;
use afterimage_mgmt::protocol::PointInfo;
use afterimage_mgmt::retention::{PointAction, Retention, RetentionChange};
use afterimage_mgmt::units::{format_duration, format_size, parse_duration};
use clap::Args;
use std::fmt::Write;
use std::time::Duration;

/// Points that are kept beyond the window, as `up` and `appliance` take them for all volumes of which nobody has said more.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct TierArgs {
    /// Before the window, keep the newest automatic point of each hour, for so many hours that have one [default: 0]
    #[arg(long, value_name = "N")]
    pub hourly: Option<u32>,
    /// The same for days [default: 0]
    #[arg(long, value_name = "N")]
    pub daily: Option<u32>,
    /// The same for weeks [default: 0]
    #[arg(long, value_name = "N")]
    pub weekly: Option<u32>,
    /// The same for months [default: 0]
    #[arg(long, value_name = "N")]
    pub monthly: Option<u32>,
}

/// Arguments of `volume retention`.
#[derive(Debug, Args)]
pub struct RetentionArgs {
    /// The data folder.
    #[command(flatten)]
    pub data: DataArgs,
    /// The volume
    pub volume: String,
    /// How far back any write can be chosen
    #[arg(long, value_parser = parse_duration, value_name = "TIME")]
    pub window: Option<Duration>,
    /// Before that, keep the newest automatic point of each hour, for so many hours that have one
    #[arg(long, value_name = "N")]
    pub hourly: Option<u32>,
    /// The same for days
    #[arg(long, value_name = "N")]
    pub daily: Option<u32>,
    /// The same for weeks
    #[arg(long, value_name = "N")]
    pub weekly: Option<u32>,
    /// The same for months
    #[arg(long, value_name = "N")]
    pub monthly: Option<u32>,
    /// Nothing goes: the window stands still, and no point is dropped or removed
    #[arg(long, conflicts_with = "release")]
    pub hold: bool,
    /// End a hold
    #[arg(long)]
    pub release: bool,
    /// Back to what the appliance keeps of all volumes of which nobody has said more
    #[arg(long, conflicts_with_all = ["window", "hourly", "daily", "weekly", "monthly", "hold", "release"])]
    pub default: bool,
    /// Change nothing: show what would be kept, and what would be given back
    #[arg(long)]
    pub dry_run: bool,
    /// Change what a policy or a hold of mgmt says, too, for when mgmt is lost for good: one that comes back says it again
    #[arg(long)]
    pub force: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `point pin`, `point unpin` and `point rm`.
#[derive(Debug, Args)]
pub struct PointArgs {
    /// Who is asked.
    #[command(flatten)]
    pub way: PointWay,
    /// The volume
    pub volume: String,
    /// The point's name; of several, the newest
    pub name: String,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

impl RetentionArgs {
    fn change(&self) -> RetentionChange {
        RetentionChange {
            window_seconds: self.window.map(|w| w.as_secs()),
            hourly: self.hourly,
            daily: self.daily,
            weekly: self.weekly,
            monthly: self.monthly,
            hold: if self.hold { Some(true) } else { self.release.then_some(false) },
            reset: self.default,
            force: self.force,
        }
    }
}

pub(crate) fn text(r: &Retention) -> String {
    let mut out =
        format!("{}: any write of the last {}", r.volume, format_duration(Duration::from_secs(r.window_seconds)));
    for (count, tier) in [(r.hourly, "hourly"), (r.daily, "daily"), (r.weekly, "weekly"), (r.monthly, "monthly")] {
        if count > 0 {
            let _ = write!(out, ", {count} {tier}");
        }
    }
    out.push_str(&match (r.policies.is_empty(), r.own) {
        (false, _) => format!(" (by policy {} of mgmt)\n", r.policies.join(" and ")),
        (true, true) => "\n".to_owned(),
        (true, false) => " (as the appliance keeps of all)\n".to_owned(),
    });
    if r.hold {
        let with = r.held_by.as_ref().map_or_else(String::new, |group| format!(", with group {group}"));
        let _ = writeln!(out, "on hold{with}: nothing goes");
    }
    if let Some(time) = r.first_time {
        let _ = writeln!(out, "the window begins at @{} ({})", r.first_seq, time.short());
    }
    if let Some(freed) = r.freed {
        let _ = writeln!(
            out,
            "{} would be given back, of {} of writes, as collection gets to it",
            format_size(freed.stored_bytes),
            format_size(freed.bytes)
        );
    }
    if r.dry_run {
        out.push_str("nothing was changed\n");
    }
    if r.points.is_empty() {
        return out;
    }
    let mut rows = vec![["POINT", "WRITE", "TIME", "AGE", "KEPT AS"].map(str::to_owned).to_vec()];
    for p in &r.points {
        let kept = if p.kept.is_empty() { "goes".to_owned() } else { p.kept.join(", ") };
        let age = format_duration(p.time.age(now()));
        rows.push(vec![p.name.clone(), format!("@{}", p.seq), p.time.short(), age, kept]);
    }
    out.push('\n');
    out.push_str(&table(&rows));
    out
}

/// `afterimage volume retention`.
///
/// # Errors
/// If no process answers, or there is no such volume.
pub fn retention(args: RetentionArgs) -> Result<(), Problem> {
    let change = args.change();
    let mut control = ControlClient::connect(&args.data.folder()?)?;
    let told = control.retention(&args.volume, change, args.dry_run)?;
    if args.json { put_json(&told) } else { put(&text(&told)) }
}

/// Says what became of a point.
///
/// # Errors
/// If that cannot be printed.
pub fn changed(args: &PointArgs, name: &str, point: Option<&PointInfo>, action: PointAction) -> Result<(), Problem> {
    if args.json {
        return point.map_or_else(|| put_json(&serde_json::json!({ "removed": name })), put_json);
    }
    let done = match action {
        PointAction::Pin => "stays until it is unpinned or removed",
        PointAction::Unpin => "goes when the policy says so",
        PointAction::Remove => "is removed",
    };
    let at = point.map_or_else(String::new, |point| format!(" at @{}", point.seq));
    put(&format!("point '{name}' of {}{at} {done}\n", args.volume))
}

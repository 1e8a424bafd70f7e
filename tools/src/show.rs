//! What the commands print: tables for people, JSON for programs.

use crate::cli::StatusFormat;
use crate::problem::Problem;
use crate::remote::Way;
use afterimage_mgmt::app::AppPoint;
use afterimage_mgmt::attach::Attached;
use afterimage_mgmt::client::ControlClient;
use afterimage_mgmt::metrics;
use afterimage_mgmt::protocol::{PointInfo, PointList, Role, State, Status, SyncInfo, VolumePoint, VolumeStatus};
use afterimage_mgmt::units::{Time, format_duration, format_size};
use afterimage_mgmt::when::When;
use serde::Serialize;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

/// Writes to standard output. A reader that went away (`| head`) ends the command without noise.
///
/// # Errors
/// Other errors of standard output.
pub fn put(text: &str) -> Result<(), Problem> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        other => other.map_err(Problem::from),
    }
}

/// Prints a value as JSON.
///
/// # Errors
/// Those of standard output.
pub fn put_json<T: Serialize>(value: &T) -> Result<(), Problem> {
    put(&(serde_json::to_string_pretty(value)? + "\n"))
}

/// A table with its columns as wide as needed.
#[must_use]
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| rows.iter().filter_map(|r| r.get(c)).map(|t| t.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (text, width) in row.iter().zip(&widths) {
            let _ = write!(line, "{text:<width$}  ");
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

fn seconds(s: f64) -> String {
    if s <= 0.0 { "0s".to_owned() } else { format_duration(Duration::try_from_secs_f64(s).unwrap_or_default()) }
}

/// The lag of a volume in one phrase.
#[must_use]
pub fn lag(v: &VolumeStatus) -> String {
    if v.seq_acked <= v.seq_durable && v.lag_bytes == 0 {
        "none".to_owned()
    } else {
        format!("{}, {}", seconds(v.lag_seconds), format_size(v.lag_bytes))
    }
}

fn status_text(status: &Status) -> String {
    let mut rows = vec![row([
        "VOLUME", "SIZE", "STATE", "ACKED", "DURABLE", "LAG", "RING", "TO COPY", "POINTS", "STORED", "WRITTEN",
    ])];
    for v in &status.volumes {
        let ring = format!("{} of {}", format_size(v.ring_used), format_size(v.ring_bytes));
        rows.push(vec![
            v.name.clone(),
            format_size(v.size),
            v.state.to_string(),
            format!("@{}", v.seq_acked),
            format!("@{}", v.seq_durable),
            lag(v),
            ring,
            format_size(v.dirty_bytes),
            v.points.to_string(),
            format_size(v.stored_bytes),
            format_size(v.logical_bytes),
        ]);
    }
    let mut out = table(&rows);
    for v in &status.volumes {
        if let Some(reason) = &v.reason {
            let _ = writeln!(out, "{}: {reason}", v.name);
        }
        if let Some(gap) = &v.gap {
            let why = gap.reason.as_deref().unwrap_or("the reason is not known any more");
            let _ = writeln!(out, "{}: a gap in the history since {}: {why}", v.name, gap.since.short());
        }
        if let Some(fence) = &v.fence {
            let kept = fence.tail.as_ref().map_or_else(String::new, |tail| {
                format!("; what its old primary had beyond @{} is kept as {tail}", fence.seq)
            });
            let owner = fence.owner.as_deref().unwrap_or_default();
            let _ = writeln!(out, "{}: fenced by failover {owner}, epoch {}{kept}", v.name, fence.epoch);
        }
        for d in &v.devices {
            let _ = writeln!(out, "{}: attached as {}{}", v.name, d.device, device_notes(d));
        }
        if let Some(s) = &v.sync {
            let _ = writeln!(out, "{}: {}", v.name, sync(s));
        }
        if !v.connected && !matches!(v.state, State::Unprotected | State::Offline) {
            let _ = writeln!(out, "{}: not connected to the appliance", v.name);
        }
    }
    out
}

/// What there is to say of a block device, behind its name.
#[must_use]
pub fn device_notes(d: &Attached) -> String {
    let mut notes = Vec::new();
    if let Some(seq) = d.seq {
        notes.push(format!("as it was after write @{seq}, {}", if d.writable { "writable" } else { "read-only" }));
    }
    notes.extend(d.trouble.iter().map(|why| format!("NOT SERVED: {why}")));
    if !d.lacks.is_empty() {
        notes.push(format!("this kernel lacks {}", d.lacks.join("; ")));
    }
    if notes.is_empty() { String::new() } else { format!(" ({})", notes.join("; ")) }
}

/// How far a sync is, in one phrase.
fn sync(s: &SyncInfo) -> String {
    let left = s.total_bytes.saturating_sub(s.done_bytes).checked_div(s.bytes_per_second);
    let left = left.map_or_else(String::new, |t| format!(", {} left", format_duration(Duration::from_secs(t.max(1)))));
    format!(
        "{} of {} done at {}/s{left}; {} compared, {} sent",
        format_size(s.done_bytes),
        format_size(s.total_bytes),
        format_size(s.bytes_per_second),
        format_size(s.compared_bytes),
        format_size(s.sent_bytes)
    )
}

/// `afterimage status`.
///
/// # Errors
/// If no process answers.
pub fn status(data: &Path, format: StatusFormat, watch: Option<Duration>) -> Result<(), Problem> {
    let mut control = ControlClient::connect(data)?;
    let Some(interval) = watch else {
        let status = control.status()?;
        return match format {
            StatusFormat::Table => put(&status_text(&status)),
            StatusFormat::Json => put_json(&status),
            StatusFormat::Prometheus if status.role == Role::Mgmt => {
                put(&Way::Here(data.to_owned()).get::<String>("/metrics")?)
            }
            StatusFormat::Prometheus => put(&metrics::text(&status)),
        };
    };
    let mut failed = None;
    let clear = format == StatusFormat::Table && io::stdout().is_terminal();
    control.watch(interval, |status| {
        let text = match (format, serde_json::to_string(&status)) {
            (StatusFormat::Json, Ok(line)) => line + "\n",
            (StatusFormat::Prometheus, _) => metrics::text(&status) + "\n",
            _ => format!(
                "{}{}  {}\n{}",
                if clear { "\x1b[H\x1b[2J" } else { "" },
                status.time.short(),
                status.data,
                status_text(&status)
            ),
        };
        failed = put(&text).err();
        failed.is_none()
    })?;
    failed.map_or(Ok(()), Err)
}

fn points_text(list: &PointList, now: Time) -> String {
    let mut out = String::new();
    match list.window {
        Some(w) => {
            let _ = writeln!(
                out,
                "any write from @{} ({}) to @{} ({}) can be chosen",
                w.first_seq,
                w.first_time.short(),
                w.last_seq,
                w.last_time.short()
            );
        }
        None => out.push_str("nothing can be chosen yet: points begin when the initial sync ends\n"),
    }
    for g in &list.gaps {
        let end = match (g.to_seq, g.to_time) {
            (Some(seq), Some(time)) => format!("before @{seq} ({})", time.short()),
            (Some(seq), None) => format!("before @{seq}"),
            _ => "and goes on".to_owned(),
        };
        let _ = writeln!(out, "except the gap that begins at @{} ({}) and ends {end}", g.from_seq, g.from_time.short());
    }
    out + &points_table(&list.points, now)
}

/// Points as people read them, behind an empty line; nothing if there are none.
#[must_use]
pub fn points_table(points: &[PointInfo], now: Time) -> String {
    if points.is_empty() {
        return String::new();
    }
    let mut rows = vec![row(["POINT", "WRITE", "TIME", "AGE", "MADE BY", "CONSISTENT"])];
    for p in points {
        let app = p.app.as_ref().map_or("crash", |a| a.consistency.as_str());
        let made = match (p.auto, p.pinned) {
            (true, false) => "policy",
            (true, true) => "policy, pinned",
            (false, false) => "user",
            (false, true) => "user, pinned",
        };
        rows.push(vec![
            p.name.clone(),
            format!("@{}", p.seq),
            p.time.short(),
            format_duration(p.time.age(now)),
            made.to_owned(),
            app.to_owned(),
        ]);
    }
    format!("\n{}", table(&rows))
}

/// `afterimage point ls`.
///
/// # Errors
/// If no process answers or there is no such volume.
pub fn points(data: &Path, volume: &str, json: bool) -> Result<(), Problem> {
    let list = ControlClient::connect(data)?.points(volume)?;
    if json { put_json(&list) } else { put(&points_text(&list, now())) }
}

/// The wall clock.
#[must_use]
pub fn now() -> Time {
    use afterimage_base::clock::Clock;
    Time(afterimage_base::clock::SystemClock::new().wall())
}

/// What a point is, in words.
fn consistency(app: &AppPoint) -> String {
    match &app.reason {
        None => "app-consistent".to_owned(),
        Some(why) => format!("crash-consistent only: {why}"),
    }
}

/// `afterimage point create`.
///
/// # Errors
/// If the point was not made.
pub fn create_point(data: &Path, volume: &str, name: &str, app: bool, json: bool) -> Result<(), Problem> {
    let mut control = ControlClient::connect(data)?;
    let point = if app { control.create_app_point(volume, name)? } else { control.create_point(volume, name)? };
    made(volume, &point, json)
}

/// Says that a point was made.
///
/// # Errors
/// If that cannot be printed.
pub fn made(volume: &str, point: &PointInfo, json: bool) -> Result<(), Problem> {
    if json {
        return put_json(point);
    }
    let how = match &point.app {
        None => String::new(),
        Some(app) => format!(", {}", consistency(app)),
    };
    put(&format!("point '{}' of {volume} stands at @{} ({}){how}\n", point.name, point.seq, point.time.short()))
}

/// `afterimage point create --all`.
///
/// # Errors
/// If no process answers, or a volume cannot have a point now.
pub fn create_points(data: &Path, name: &str, json: bool) -> Result<(), Problem> {
    let points = ControlClient::connect(data)?.create_points(name)?;
    if json {
        return put_json(&points);
    }
    let line = |p: &VolumePoint| format!("{} at @{}", p.volume, p.point.seq);
    put(&format!(
        "point '{name}' stands at one instant of {}\n",
        points.iter().map(line).collect::<Vec<_>>().join(", ")
    ))
}

#[derive(Serialize)]
struct DiffJson {
    #[serde(skip_serializing_if = "Option::is_none")]
    base: Option<String>,
    volume: String,
    from: u64,
    to: u64,
    changed_bytes: u64,
    extents: Vec<ExtentJson>,
}

#[derive(Serialize)]
struct ExtentJson {
    offset: u64,
    length: u64,
}

/// `afterimage diff`.
///
/// # Errors
/// If a moment cannot be chosen.
pub fn diff(data: &Path, from: (Option<&str>, &When), to: (&str, &When), json: bool) -> Result<(), Problem> {
    let mut extents = Vec::new();
    let end =
        ControlClient::connect(data)?.diff(from, to, |offset, length| extents.push(ExtentJson { offset, length }))?;
    let changed_bytes = extents.iter().map(|e| e.length).sum();
    if json {
        return put_json(&DiffJson {
            base: end.base,
            volume: end.volume,
            from: end.from,
            to: end.to,
            changed_bytes,
            extents,
        });
    }
    let mut out = String::new();
    for e in &extents {
        let _ = writeln!(out, "{:>16} +{}", e.offset, e.length);
    }
    let _ = writeln!(
        out,
        "{}@{} and {}@{}: {} in {} extents",
        end.base.as_deref().map_or_else(|| format!("{} between ", end.volume), |b| format!("{b} ")),
        end.from,
        end.base.as_ref().map_or_else(String::new, |_| format!("{} ", end.volume)),
        end.to,
        format_size(changed_bytes),
        extents.len()
    );
    put(&out)
}

/// What `afterimage wait` waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Goal {
    /// Any write can be chosen from now on: the initial sync or resync has ended.
    Live,
    /// All that was acknowledged when the command began is durable at the appliance.
    Durable,
}

/// `afterimage wait`.
///
/// # Errors
/// If there is no such volume, it fails for good, or the time is over.
pub fn wait(data: &Path, volume: &str, goal: Goal, most: Option<Duration>) -> Result<(), Problem> {
    let control = ControlClient::connect(data)?;
    let start = std::time::Instant::now();
    let (mut first, mut result) = (None, Ok(()));
    control.watch(Duration::from_millis(100), |status| {
        let Some(v) = status.volumes.iter().find(|v| v.name == volume) else {
            result = Err(Problem::failed(format!("there is no volume '{volume}'")));
            return false;
        };
        let target = *first.get_or_insert(v.seq_acked);
        let reached = match goal {
            Goal::Live => v.state == State::Live,
            Goal::Durable => v.state == State::Live && v.seq_durable >= target,
        };
        if v.state == State::Error {
            let reason = v.reason.as_deref().unwrap_or("see the log");
            result = Err(Problem::failed(format!("volume {volume} failed: {reason}")));
        } else if !reached && most.is_some_and(|most| start.elapsed() >= most) {
            let text = format!("volume {volume} is {} with {} to go", v.state, lag(v));
            result = Err(Problem::failed(format!("not reached in time: {text}")));
        }
        !reached && result.is_ok()
    })?;
    result
}

/// Changes the size of a volume.
///
/// # Errors
/// What the daemon says.
pub fn resize_volume(data: &Path, volume: &str, size: Option<u64>, json: bool) -> Result<(), Problem> {
    let done = ControlClient::connect(data)?.resize_volume(volume, size)?;
    if json {
        return put_json(&done);
    }
    if done.from == done.to {
        return put(&format!("{volume} has {} ({} bytes) already\n", format_size(done.to), done.to));
    }
    let gap = if done.gap { "; the history has a gap until the new part of the disk is copied" } else { "" };
    let mut text = format!(
        "{volume}: {} ({} bytes) before, {} ({} bytes) from now on{gap}\n",
        format_size(done.from),
        done.from,
        format_size(done.to),
        done.to
    );
    for d in &done.devices {
        let _ = match &d.trouble {
            None => writeln!(text, "{} has the new size", d.device),
            Some(why) => writeln!(text, "{} has its old size still: {why}", d.device),
        };
    }
    text.push_str("NBD clients that are connected see it when they connect again\n");
    put(&text)
}

/// Has the disk of a volume compared with the appliance's copy.
///
/// # Errors
/// What the daemon says.
pub fn compare_volume(data: &Path, volume: &str, json: bool) -> Result<(), Problem> {
    let begun = ControlClient::connect(data)?.compare_volume(volume)?;
    if json {
        return put_json(&begun);
    }
    put(&format!(
        "{volume}: {} are compared with the history, which has a gap until that is done: `afterimage wait {volume}`\n",
        format_size(begun.bytes)
    ))
}

#[cfg(test)]
#[path = "show_tests.rs"]
mod tests;

//! What `up`, `agent` and `appliance` do once their settings are known: start, say so, run until a signal, stop in order.

use crate::daemon::{Daemon, Disk, Settings};
use crate::data::DataDir;
use crate::problem::Problem;
use crate::{notify, screen, show};
use afterimage_agent::RecoveryReport;
use afterimage_mgmt::protocol::{Role, State, Status};
use afterimage_mgmt::units::{format_duration, format_size};
use crossbeam::channel::{Receiver, RecvTimeoutError, bounded, select};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

/// How often status and schedule are looked at.
const TICK: Duration = Duration::from_secs(1);

/// What recovery did, in words; `None` for a new volume.
fn recovery(report: Option<&RecoveryReport>) -> Option<String> {
    let r = report?;
    if r.foreign {
        return Some("somebody else wrote to the disk while the agent was not running".to_owned());
    }
    if r.whole_disk {
        let why = r.reason.as_deref().unwrap_or("unknown");
        return Some(format!("the journal could not be used ({why}): the whole disk is compared with its history"));
    }
    if r.intent_regions != 0 {
        let (why, mib) = (r.reason.as_deref().unwrap_or("unknown"), r.intent_bytes.div_ceil(1 << 20));
        return Some(format!("the journal was lost ({why}): the {mib} MiB written to last are compared with history"));
    }
    if r.clean {
        return Some("stopped in order last time".to_owned());
    }
    Some(format!(
        "was killed last time; nothing is lost: {} unfinished writes were written to the disk again, {} had not begun",
        r.redone, r.voided
    ))
}

/// A word on a ring that has another size than was asked for.
fn kept_ring(there: u64, asked: u64) -> Option<String> {
    // A volume without a journal has no ring; a new ring is rounded up to whole pages.
    (there != 0 && there != asked.next_multiple_of(4096)).then(|| {
        format!(
            "warning: its ring keeps its size of {}; the {} asked for are for new volumes",
            format_size(there),
            format_size(asked)
        )
    })
}

fn heading(status: &Status) -> String {
    let (version, data) = (&status.version, &status.data);
    let window = format_duration(Duration::from_secs(status.window_seconds));
    match status.role {
        Role::Agent => {
            let appliance = status.appliance.as_deref().unwrap_or_default();
            format!("afterimage {version} agent, data in {data}, appliance at {appliance}\n")
        }
        Role::Appliance => {
            let listen = status.listen.join(", ");
            format!(
                "afterimage {version} appliance, data in {data}, any write of the last {window} can be chosen\n\
                 agents connect to {listen}\n"
            )
        }
        _ => format!("afterimage {version}, data in {data}, any write of the last {window} can be chosen\n"),
    }
}

fn greeting(daemon: &Daemon, status: &Status, rings: &BTreeMap<String, u64>) -> String {
    let mut out = heading(status);
    for v in status.volumes.iter().filter(|v| rings.contains_key(&v.name)) {
        let _ = writeln!(out, "{}: {} at {}", v.name, format_size(v.size), v.path);
        if let Some(text) = recovery(daemon.recovered(&v.name).as_ref()) {
            let _ = writeln!(out, "  {text}");
        }
        if let Some(text) = rings.get(&v.name).and_then(|asked| kept_ring(v.ring_bytes, *asked)) {
            let _ = writeln!(out, "  {text}");
        }
        for uri in &v.uri {
            let _ = writeln!(out, "  {uri}");
        }
        for d in &v.devices {
            let _ = writeln!(out, "  {}{}", d.device, show::device_notes(d));
        }
    }
    let others: Vec<&str> = status.volumes.iter().filter(|v| !rings.contains_key(&v.name)).map(|v| &*v.name).collect();
    if !others.is_empty() {
        let what = if status.role == Role::Appliance { "history of" } else { "history without a disk" };
        let _ = writeln!(out, "{what}: {}", others.join(", "));
    }
    out
}

fn line(status: &Status) -> String {
    let each = status.volumes.iter().filter(|v| v.state != State::Offline).map(|v| {
        let more = match v.state {
            State::InitialSync | State::Resync => format!(" {} to copy", format_size(v.dirty_bytes)),
            _ => format!(" @{} lag {}", v.seq_durable, show::lag(v)),
        };
        format!("{}: {}{more}", v.name, v.state)
    });
    each.collect::<Vec<_>>().join("  |  ")
}

/// Says what changed since the last tick, where there is no live line to see it.
fn log_changes(status: &Status, before: &mut BTreeMap<String, State>) {
    for v in &status.volumes {
        let old = before.insert(v.name.clone(), v.state);
        if old.is_some_and(|old| old != v.state)
            || (old.is_none() && v.state != State::Live && v.state != State::Offline)
        {
            let reason = v.reason.as_deref().map_or_else(String::new, |r| format!(": {r}"));
            tracing::info!("volume {} is {}{reason}", v.name, v.state);
        }
    }
}

/// A connection is a descriptor, and the usual soft limit is for programs that use `select`.
fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(soft, hard)| if soft < hard { setrlimit(Resource::RLIMIT_NOFILE, hard, hard) } else { Ok(()) });
    if let Err(e) = raised {
        tracing::debug!("the limit of open files stays as it is: {e}");
    }
}

/// Runs the roles until a signal.
///
/// # Errors
/// If something is in the way of the start.
pub fn run(data: DataDir, settings: Settings, signals: &Receiver<Signal>) -> Result<(), Problem> {
    raise_descriptor_limit();
    let disks: &[Disk] = settings.agent.as_ref().map_or(&[], |a| &a.disks);
    let rings: BTreeMap<String, u64> = disks.iter().map(|d| (d.name.clone(), d.ring)).collect();
    let daemon = Daemon::start(data, settings)?;
    show::put(&greeting(&daemon, &daemon.status()?, &rings))?;
    notify::notify("READY=1");
    let mut before = BTreeMap::new();
    let signal = loop {
        match signals.recv_timeout(TICK) {
            Ok(signal) => break signal,
            Err(RecvTimeoutError::Disconnected) => return Err(Problem::failed("the signal thread has ended")),
            Err(RecvTimeoutError::Timeout) => {}
        }
        daemon.tick();
        let status = daemon.status()?;
        log_changes(&status, &mut before);
        if screen::is_live() {
            screen::live(Some(line(&status)));
        }
    };
    screen::live(None);
    notify::notify("STOPPING=1");
    tracing::info!("{signal}: stopping; a second signal stops at once");
    let (send, stopped) = bounded(1);
    std::thread::Builder::new().name("stop".to_owned()).spawn(move || send.send(daemon.stop()))?;
    select! {
        recv(stopped) -> complete => {
            if complete != Ok(true) {
                tracing::warn!("the appliance does not have everything yet; the rest waits in the journal for the next start");
            }
            Ok(())
        }
        recv(signals) -> _ => Err(Problem::failed("stopped at once; the next start recovers what was under way")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_of_another_size_is_told() {
        assert_eq!(kept_ring(0, 1 << 20), None);
        assert_eq!(kept_ring(8192, 4097), None);
        let text = kept_ring(16 << 20, 128 << 20).unwrap();
        assert!(text.contains("16 MiB") && text.contains("128 MiB"), "{text}");
    }

    #[test]
    fn recovery_is_told_in_words() {
        assert_eq!(recovery(None), None);
        let r = RecoveryReport { clean: false, redone: 3, voided: 1, ..RecoveryReport::default() };
        assert!(recovery(Some(&r)).unwrap().contains("3 unfinished writes"));
        assert!(recovery(Some(&RecoveryReport { clean: true, ..r })).unwrap().contains("in order"));
    }
}

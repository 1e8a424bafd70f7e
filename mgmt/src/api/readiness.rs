//! Whether a machine can be protected: what its agent finds of its host becomes numbered findings.
//!
//! The agent is asked twice: for its clock, at once, and for all else, which takes a second or two since it measures the way to its
//! appliance. [`judge`] is a function of the answers alone.

use super::types::{Finding, Level};
use super::view::Whole;
use crate::members::{Clock, MemberAsk, Readiness, Way};
use crate::office::Office;
use crate::units::{Time, format_size};
use std::time::{Duration, Instant};

/// How long the agent may take.
const LIMIT: Duration = Duration::from_secs(30);
const CLOCK_LIMIT: Duration = Duration::from_secs(5);
/// From this difference of the clocks on, times of points mislead.
const CLOCK_WARNS: Duration = Duration::from_secs(2);
/// From this one on certificates and retention go wrong.
const CLOCK_FAILS: Duration = Duration::from_secs(600);
/// Oldest kernel with an io_uring that has all the agent uses.
const KERNEL: (u32, u32) = (5, 11);
/// Less is not enough for an initial sync of an ordinary disk within a day.
const SLOW: u64 = 10 << 20;

/// The clock of an agent against mgmt's, and how far off the measurement may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClockSeen {
    /// By how much the agent's is ahead, in milliseconds.
    pub ahead_ms: i64,
    /// The measurement may be off by so much either way.
    pub uncertain_ms: i64,
}

#[derive(Default)]
struct List(Vec<Finding>);

impl List {
    fn add(&mut self, check: &str, level: Level, text: impl Into<String>, remedy: &str) {
        let number = u32::try_from(self.0.len() + 1).unwrap_or(u32::MAX);
        let remedy = (level != Level::Ok).then(|| remedy.to_owned());
        self.0.push(Finding { number, check: check.to_owned(), level, text: text.into(), remedy });
    }
}

/// Whether nothing speaks against it.
#[must_use]
pub fn is_ready(findings: &[Finding]) -> bool {
    findings.iter().all(|f| f.level != Level::Error)
}

/// Asks the agent of a machine. The second part is what it said.
pub fn look(office: &Office, machine: &Whole, disks: &[String]) -> (Vec<Finding>, Option<Readiness>) {
    let name = format!("agent {}", machine.machine.agent);
    let unknown = |e: &dyn std::fmt::Display| {
        let mut list = List::default();
        list.add("agent", Level::Error, e.to_string(), "start the agent, or see what keeps it from mgmt in its log");
        (list.0, None)
    };
    if machine.machine.revoked.is_some() {
        return unknown(&"the certificates of the agent were revoked");
    }
    let began = (Instant::now(), Time::now());
    let clock: Clock = match office.ask(&machine.agent, &name, &MemberAsk::Clock, CLOCK_LIMIT) {
        Ok(clock) => clock,
        Err(e) => return unknown(&e),
    };
    let clock = clock_seen(clock.time_ns, began.1.0, began.0.elapsed());
    let ask = MemberAsk::Readiness { disks: disks.to_vec() };
    match office.ask::<Readiness>(&machine.agent, &name, &ask, LIMIT) {
        Ok(found) => (judge(&found, clock, machine.machine.volumes), Some(found)),
        Err(e) => unknown(&e),
    }
}

fn clock_seen(theirs: u64, asked_at: u64, took: Duration) -> ClockSeen {
    let half = took.as_nanos() / 2;
    let ahead = i128::from(theirs) - i128::from(asked_at) - i128::try_from(half).unwrap_or(0);
    let ms = |ns: i128| i64::try_from(ns / 1_000_000).unwrap_or(i64::MAX);
    ClockSeen { ahead_ms: ms(ahead), uncertain_ms: ms(i128::try_from(half).unwrap_or(0)) + 1 }
}

/// What the answers mean. `served` is how many volumes the machine has already.
#[must_use]
pub fn judge(found: &Readiness, clock: ClockSeen, served: u64) -> Vec<Finding> {
    let mut list = List::default();
    list.add("agent", Level::Ok, "it is connected and answers", "");
    kernel(&mut list, found);
    space(&mut list, found);
    ports(&mut list, found);
    clocks(&mut list, clock);
    disks(&mut list, found, served);
    way(&mut list, found.appliance.as_ref());
    if found.networks.is_empty() {
        list.add("network", Level::Warning, "it has no network interface", "name the networks with --network");
    } else {
        let names: Vec<&str> = found.networks.iter().map(|n| n.name.as_str()).collect();
        list.add("network", Level::Ok, format!("its interfaces are {}", names.join(", ")), "");
    }
    list.0
}

fn kernel(list: &mut List, found: &Readiness) {
    let mut numbers = found.kernel.split(['.', '-']).map_while(|p| p.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let text = format!(
        "Linux {}, {}, {}, {}",
        found.kernel,
        if found.io_uring { "io_uring" } else { "no io_uring" },
        if found.ublk { "ublk" } else { "no ublk" },
        if found.nbd { "NBD client" } else { "no NBD client" }
    );
    if version < KERNEL {
        list.add("kernel", Level::Error, text, "5.11 or newer is needed");
    } else if !found.io_uring {
        list.add("kernel", Level::Error, text, "allow io_uring: sysctl kernel.io_uring_disabled=0");
    } else if !found.ublk && !found.nbd {
        list.add(
            "kernel",
            Level::Warning,
            text,
            "guests of QEMU need neither; for block devices of this host load ublk_drv or nbd",
        );
    } else {
        list.add("kernel", Level::Ok, text, "");
    }
}

fn space(list: &mut List, found: &Readiness) {
    let new = u64::try_from(found.disks.iter().filter(|d| d.volume.is_none()).count()).unwrap_or(u64::MAX);
    let need = found.ring.saturating_mul(new);
    let text = format!("{} free for rings, {} new ones take {}", format_size(found.free), new, format_size(need));
    if found.free < need {
        list.add(
            "space",
            Level::Error,
            text,
            "make room where the agent keeps its data, or give it smaller rings (--ring)",
        );
    } else if found.free < need.saturating_mul(2).max(64 << 20) {
        list.add("space", Level::Warning, text, "there should be as much again");
    } else {
        list.add("space", Level::Ok, text, "");
    }
}

fn ports(list: &mut List, found: &Readiness) {
    let listen = format!("disks are served at {}", found.listen.join(", "));
    if found.listen.is_empty() {
        list.add("ports", Level::Warning, "disks are served nowhere", "name an address with --listen");
    } else {
        list.add("ports", Level::Ok, listen, "");
    }
    match &found.appliance {
        None => list.add("ports", Level::Error, "it has no appliance elsewhere", "give the agent --appliance ADDRESS"),
        Some(Way { connect_ms: Some(ms), address, .. }) => {
            list.add("ports", Level::Ok, format!("the appliance at {address} answers in {ms} ms"), "");
        }
        Some(way) => {
            let why = way.error.as_deref().unwrap_or("no answer");
            let text = format!("the appliance at {} does not answer: {why}", way.address);
            list.add(
                "ports",
                Level::Error,
                text,
                "the agent's host has to reach this port, outbound: see to firewalls and routes",
            );
        }
    }
}

fn clocks(list: &mut List, clock: ClockSeen) {
    let off = clock.ahead_ms.unsigned_abs().saturating_sub(clock.uncertain_ms.unsigned_abs());
    let off = Duration::from_millis(off);
    let way = if clock.ahead_ms < 0 { "behind" } else { "ahead of" };
    let text = format!(
        "its clock is {:.1} s {way} that of mgmt (known to {:.1} s)",
        Duration::from_millis(clock.ahead_ms.unsigned_abs()).as_secs_f64(),
        Duration::from_millis(clock.uncertain_ms.unsigned_abs()).as_secs_f64()
    );
    let level = match off {
        off if off >= CLOCK_FAILS => Level::Error,
        off if off >= CLOCK_WARNS => Level::Warning,
        _ => Level::Ok,
    };
    list.add("clock", level, text, "let both hosts follow the same time servers (chrony, systemd-timesyncd)");
}

fn disks(list: &mut List, found: &Readiness, served: u64) {
    if served == 0 && found.disks.is_empty() {
        let remedy = "name its disks (--disk), or add [[volume]] to its agent.toml";
        return list.add("disk", Level::Error, "its agent serves no disk", remedy);
    }
    if served > 0 {
        list.add("disk", Level::Ok, format!("{served} disks are served already"), "");
    }
    for disk in &found.disks {
        let size = format_size(disk.size);
        match (&disk.error, &disk.volume) {
            (Some(e), _) => {
                list.add("disk", Level::Error, format!("{}: {e}", disk.path), "name a disk that can be protected")
            }
            (None, Some(v)) => list.add("disk", Level::Ok, format!("{} is volume {v} already", disk.path), ""),
            (None, None) if disk.used_by.is_empty() => {
                list.add("disk", Level::Ok, format!("{}, {size}, is not in use", disk.path), "");
            }
            (None, None) => {
                let text = format!("{}, {size}, is in use by {}", disk.path, disk.used_by.join(", "));
                let remedy = "stop who uses it; writes that do not come through the agent are lost to the history";
                list.add("disk", Level::Error, text, remedy);
            }
        }
    }
}

fn way(list: &mut List, way: Option<&Way>) {
    let Some(way) = way.filter(|w| w.connect_ms.is_some()) else { return };
    match way.bytes_per_second {
        Some(rate) if rate >= SLOW => {
            list.add("throughput", Level::Ok, format!("{} a second to the appliance", format_size(rate)), "");
        }
        Some(rate) => {
            let text = format!("{} a second to the appliance", format_size(rate));
            let remedy = "writing faster than that for longer than the ring lasts makes a gap: make the ring larger, or the way faster";
            list.add("throughput", Level::Warning, text, remedy);
        }
        None => {
            let why = way.error.as_deref().unwrap_or("the appliance is older");
            let text = format!("the throughput to the appliance could not be measured: {why}");
            list.add("throughput", Level::Warning, text, "update the appliance, or watch the lag of the initial sync");
        }
    }
}

#[cfg(test)]
#[path = "readiness_tests.rs"]
mod tests;

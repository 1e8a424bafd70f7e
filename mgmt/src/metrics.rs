//! The status as metrics, in the text exposition format of Prometheus.
//!
//! One family after the other, each with its help and type; `volume` is the label that all of a volume have. docs/metrics.md
//! names the families, which are stable as the fields of `--json` are. Each role prints its own (`status --format prometheus`, for the
//! textfile collector of the node exporter); mgmt serves those of all its members at `/metrics`, with the labels `machine` or
//! `appliance`, so that nothing has to dial in to a protected host.

mod groups;
mod office;

pub use groups::Tally;
pub use office::{families as office_families, of_office};

use crate::failover::summary::{Recovery, Stage, What};
use crate::protocol::{Role, State, Status, StoreStatus, VolumeStatus};
use std::fmt::Write as _;

const STATES: [State; 8] = [
    State::InitialSync,
    State::Live,
    State::Dirty,
    State::Resync,
    State::Fenced,
    State::Error,
    State::Unprotected,
    State::Offline,
];

/// A value and its labels beside the volume.
type Sample = (String, f64);

/// How a family's samples come from a volume.
type Of = fn(&VolumeStatus) -> Vec<Sample>;

#[expect(clippy::cast_precision_loss, reason = "a metric is a float; counts past 2^53 lose what nobody reads")]
fn one(value: u64) -> Vec<Sample> {
    vec![(String::new(), value as f64)]
}

#[expect(clippy::cast_precision_loss, reason = "a ratio of large numbers")]
fn ratio(of: u64, to: u64) -> Vec<Sample> {
    if to == 0 { Vec::new() } else { vec![(String::new(), of as f64 / to as f64)] }
}

fn labelled(label: &str, text: &str, value: f64) -> Sample {
    (format!(",{label}=\"{}\"", escaped(text)), value)
}

#[expect(clippy::cast_precision_loss, reason = "seconds since 1970 as a float are good to a microsecond")]
fn seconds(t: Option<crate::units::Time>) -> Vec<Sample> {
    t.map(|t| (String::new(), t.0 as f64 / 1e9)).into_iter().collect()
}

const FAMILIES: &[(&str, &str, &str, Of)] = &[
    ("state", "gauge", "1 for the state that the volume is in, 0 for the others", |v| {
        STATES.iter().map(|s| labelled("state", s.as_str(), f64::from(u8::from(*s == v.state)))).collect()
    }),
    ("state_since_seconds", "gauge", "When the volume came into its state, in seconds since 1970", |v| {
        seconds(v.state_since)
    }),
    ("connected", "gauge", "Whether agent and appliance are connected for the volume", |v| one(v.connected.into())),
    ("epoch", "counter", "How often the volume was fenced and let go, in all", |v| one(v.epoch)),
    ("size_bytes", "gauge", "Size of the volume", |v| one(v.size)),
    ("acked_seq", "counter", "Seq of the newest write", |v| one(v.seq_acked)),
    ("durable_seq", "counter", "Seq up to which everything is durable at the appliance", |v| one(v.seq_durable)),
    ("lag_seconds", "gauge", "Age of the oldest write that the appliance lacks", |v| {
        vec![(String::new(), v.lag_seconds)]
    }),
    ("lag_bytes", "gauge", "Bytes that the appliance lacks", |v| one(v.lag_bytes)),
    ("ring_bytes", "gauge", "Size of the ring", |v| one(v.ring_bytes)),
    ("ring_used_bytes", "gauge", "Bytes of the ring in use", |v| one(v.ring_used)),
    ("dirty_bytes", "gauge", "Bytes in regions that are marked as dirty", |v| one(v.dirty_bytes)),
    ("sync_done_bytes", "gauge", "Bytes of the running sync that are done", |v| {
        one(v.sync.as_ref().map_or(0, |s| s.done_bytes))
    }),
    ("sync_total_bytes", "gauge", "Bytes of the running sync in all, 0 if none is running", |v| {
        one(v.sync.as_ref().map_or(0, |s| s.total_bytes))
    }),
    ("gaps_total", "counter", "Gaps that have begun since the agent started", |v| one(v.gaps)),
    ("reason_info", "gauge", "1, with the reason for not being live as a label", |v| {
        v.reason.iter().map(|r| labelled("reason", r, 1.0)).collect()
    }),
    ("points", "gauge", "Recovery points that can be chosen", |v| one(v.points)),
    ("stored_bytes", "gauge", "Bytes that the history takes in the store", |v| one(v.stored_bytes)),
    ("logical_bytes_total", "counter", "Bytes of the writes in the history, before any reduction", |v| {
        one(v.logical_bytes)
    }),
    ("reduce_ratio", "gauge", "Bytes of the writes in the history for each byte that it takes in the store", |v| {
        ratio(v.logical_bytes, v.stored_bytes)
    }),
    ("durable_time_seconds", "gauge", "Time of the newest durable write, in seconds since 1970", |v| {
        seconds(v.durable_time)
    }),
    ("window_start_seconds", "gauge", "Time of the first write that can be chosen, in seconds since 1970", |v| {
        seconds(v.first_time)
    }),
];

/// Name, type, help and value of what the store says of itself.
fn of_store(s: &StoreStatus) -> Vec<(&'static str, &'static str, &'static str, u64)> {
    let mut out = vec![
        ("ingested_bytes_total", "counter", "Bytes that agents' streams have become", s.ingested_bytes),
        ("rewritten_bytes_total", "counter", "Bytes that were there and were written again", s.rewritten_bytes),
        ("served_bytes_total", "counter", "Bytes of blocks that were read", s.served_bytes),
        ("reads_total", "counter", "Reads from segments", s.reads),
        ("read_bytes_total", "counter", "Bytes of those reads", s.read_bytes),
        ("decoded_frames_total", "counter", "Frames that were decoded for them", s.frames),
    ];
    let waiting = |n| ("unordered_bytes", "gauge", "Bytes that wait to be brought into disk order", n);
    out.extend(s.unordered_bytes.map(waiting));
    out
}

/// Name, type and help of what a host says of failovers, tests and plans.
const RECOVERIES: [(&str, &str, &str); 3] = [
    ("recoveries", "gauge", "Failovers, tests and plans by kind and stage; of those that have ended, the last"),
    ("recovery_waits", "gauge", "Those that wait for people: to commit, or to do something by hand"),
    ("recovery_failed", "gauge", "Those that failed"),
];

/// Who reports failovers, tests and plans, and which.
struct Host<'a> {
    /// The appliance, if it is not said by itself.
    of: Option<&'a str>,
    all: &'a [Recovery],
}

/// Those families, of each host that has any.
fn recoveries(out: &mut String, hosts: &[Host<'_>]) {
    for (name, kind, help) in RECOVERIES {
        head(out, name, kind, help);
        for Host { of, all } in hosts.iter().filter(|host| !host.all.is_empty()) {
            let first = of.map_or_else(String::new, |name| format!("appliance=\"{}\",", escaped(name)));
            for what in What::ALL {
                let mut sample = |labels: &str, is: &dyn Fn(&Recovery) -> bool| {
                    let count = all.iter().filter(|r| r.what == what && is(r)).count();
                    let _ = writeln!(out, "afterimage_{name}{{{first}what=\"{what}\"{labels}}} {count}");
                };
                match name {
                    "recovery_waits" => sample("", &|r| r.waits_for.is_some()),
                    "recovery_failed" => sample("", &|r| r.outcome.as_deref() == Some("failed")),
                    _ => Stage::ALL.into_iter().for_each(|stage| {
                        sample(&format!(",stage=\"{}\"", stage.as_str()), &|r| r.stage == stage);
                    }),
                }
            }
        }
    }
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Who reports volumes, and which.
struct Group<'a> {
    /// A label and its value, before that of the volume.
    of: Option<(&'a str, &'a str)>,
    volumes: &'a [VolumeStatus],
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(out, "# HELP afterimage_{name} {help}\n# TYPE afterimage_{name} {kind}");
}

/// All families of volumes, in full.
fn volumes(out: &mut String, groups: &[Group<'_>]) {
    for (name, kind, help, of) in FAMILIES {
        head(out, &format!("volume_{name}"), kind, help);
        for group in groups {
            let first = group.of.map_or_else(String::new, |(l, value)| format!("{l}=\"{}\",", escaped(value)));
            for v in group.volumes {
                for (labels, value) in of(v) {
                    let volume = escaped(&v.name);
                    let _ = writeln!(out, "afterimage_volume_{name}{{{first}volume=\"{volume}\"{labels}}} {value}");
                }
            }
        }
    }
}

/// The names of all families that any role can print.
#[must_use]
pub fn families() -> Vec<String> {
    let own = ["info", "clients"].map(str::to_owned);
    let store = of_store(&StoreStatus { unordered_bytes: Some(0), ..StoreStatus::default() });
    let store = store.into_iter().map(|(name, ..)| format!("store_{name}"));
    let volume = FAMILIES.iter().map(|(name, ..)| format!("volume_{name}"));
    let recovery = RECOVERIES.iter().map(|(name, ..)| (*name).to_owned());
    let all = own.into_iter().chain(store).chain(volume).chain(recovery).chain(office_families());
    all.map(|name| format!("afterimage_{name}")).collect()
}

/// The whole text of a role.
#[must_use]
pub fn text(status: &Status) -> String {
    let mut out = String::new();
    let version = escaped(&status.version);
    head(&mut out, "info", "gauge", "1, with what runs as labels");
    let role = serde_json::to_value(status.role).ok().and_then(|r| r.as_str().map(str::to_owned)).unwrap_or_default();
    let _ = writeln!(out, "afterimage_info{{version=\"{version}\",role=\"{role}\"}} 1");
    head(&mut out, "clients", "gauge", "NBD connections; with mgmt, agents and appliances that are connected");
    let _ = writeln!(out, "afterimage_clients {}", status.clients);
    if let Some(store) = &status.store {
        for (name, kind, help, value) in of_store(store) {
            head(&mut out, &format!("store_{name}"), kind, help);
            let _ = writeln!(out, "afterimage_store_{name} {value}");
        }
    }
    if matches!(status.role, Role::All | Role::Appliance) {
        recoveries(&mut out, &[Host { of: None, all: &status.recoveries }]);
    }
    volumes(&mut out, &[Group { of: None, volumes: &status.volumes }]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// The dashboard and the alert rules name metrics that are there, and none beside.
    #[test]
    fn what_is_shown_and_watched_is_exported() {
        let known = families();
        for file in ["grafana/afterimage.json", "prometheus/afterimage.rules.yml"] {
            let path = format!("{}/../packaging/{file}", env!("CARGO_MANIFEST_DIR"));
            let text = std::fs::read_to_string(&path).unwrap();
            let word =
                |rest: &str| rest.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next().unwrap().to_owned();
            let named: std::collections::BTreeSet<String> =
                text.match_indices("afterimage_").map(|(at, _)| word(&text[at..])).collect();
            assert!(named.len() > 5, "{path} names metrics");
            for name in named {
                assert!(known.contains(&name), "{path} names {name}, which nobody exports");
            }
        }
        // And what is exported is described.
        let docs = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md")).unwrap();
        for name in known {
            let short = ["afterimage_volume_", "afterimage_store_", "afterimage_"];
            let short = short.iter().find_map(|p| name.strip_prefix(p)).unwrap();
            assert!(docs.contains(&format!("`{short}`")), "docs/metrics.md says nothing of {name}");
        }
    }

    #[test]
    fn every_sample_has_a_family_and_labels_are_escaped() {
        let volume = json!({
            "name": "web", "id": "x", "path": "/x", "uri": [], "size": 1024, "state": "dirty", "reason": "a \"b\"\\c\nd",
            "state_since": "2026-03-01T14:30:00Z", "connected": true, "seq_acked": 7, "seq_durable": 5, "lag_seconds": 0.25,
            "lag_bytes": 4096, "ring_bytes": 8, "ring_used": 4, "dirty_bytes": 3, "gaps": 2, "points": 1, "stored_bytes": 9,
            "logical_bytes": 10, "first_seq": null, "first_time": null, "durable_time": null
        });
        let status = json!({
            "v": 1, "version": "0.1.0", "pid": 1, "data": "/d", "started": "2026-03-01T14:30:00Z",
            "time": "2026-03-01T14:30:00Z", "window_seconds": 1, "clients": 3, "store": { "rewritten_bytes": 12 }, "volumes": [volume],
            "recoveries": [{
                "id": "1", "what": "failover", "subject": "web", "stage": "running", "outcome": null, "trouble": null, "committed": false,
                "waits_for": "commit", "part_of": null, "created": "2026-03-01T14:30:00Z", "until": null
            }]
        });
        let text = text(&serde_json::from_value(status).unwrap());
        for line in [
            "afterimage_info{version=\"0.1.0\",role=\"all\"} 1",
            "afterimage_clients 3",
            "afterimage_store_rewritten_bytes_total 12",
            "afterimage_recoveries{what=\"failover\",stage=\"running\"} 1",
            "afterimage_recoveries{what=\"test\",stage=\"running\"} 0",
            "afterimage_recovery_waits{what=\"failover\"} 1",
            "afterimage_recovery_failed{what=\"failover\"} 0",
            "afterimage_volume_state{volume=\"web\",state=\"dirty\"} 1",
            "afterimage_volume_state{volume=\"web\",state=\"live\"} 0",
            "afterimage_volume_state_since_seconds{volume=\"web\"} 1772375400",
            "afterimage_volume_lag_seconds{volume=\"web\"} 0.25",
            "afterimage_volume_gaps_total{volume=\"web\"} 2",
            "afterimage_volume_reason_info{volume=\"web\",reason=\"a \\\"b\\\"\\\\c\\nd\"} 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("durable_time_seconds{"), "what is not known is left out");
        let mut family = String::new();
        for line in text.lines() {
            match line.strip_prefix("# TYPE ") {
                Some(rest) => family = rest.split(' ').next().unwrap().to_owned(),
                None if line.starts_with('#') => {}
                None => assert!(
                    line.starts_with(&format!("{family}{{")) || line.starts_with(&format!("{family} ")),
                    "{line}"
                ),
            }
        }
    }
}

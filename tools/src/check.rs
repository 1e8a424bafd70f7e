//! `afterimage check`: every checksum, every seal, every reference of a data folder that nobody uses.

use crate::cli::KeyArgs;
use crate::data::DataDir;
use crate::problem::Problem;
use crate::ring_file::RingFile;
use crate::show::{put, put_json};
use crate::up::key_source;
use afterimage_appliance::check::{Damage, Report, check};
use afterimage_mgmt::units::format_size;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Hits printed for one damage; the rest is counted.
const SHOWN_HITS: usize = 8;

struct RingReport {
    volume: String,
    records: u64,
    problem: Option<(PathBuf, String)>,
}

/// Checks and reports.
///
/// # Errors
/// If the folder is in use, cannot be read, or is damaged.
pub fn run(data: &Path, key: &KeyArgs, as_json: bool) -> Result<(), Problem> {
    let data = DataDir::open(data)?;
    let key = key_source(key, data.path())?;
    let vault = data.path().join("vault");
    // An agent's folder has no vault.
    let alone = !vault.exists() && data.path().join("agent").is_dir();
    let report = if alone {
        Report::default()
    } else {
        check(&vault, Some(&key)).map_err(|e| Problem::failed(e.to_string()))?
    };
    let rings = check_rings(data.path())?;
    let damaged = report.damages.len() + rings.iter().filter(|r| r.problem.is_some()).count();
    if as_json {
        put_json(&value(&report, &rings))?;
    } else {
        put(&text(&report, &rings))?;
    }
    match damaged {
        0 => Ok(()),
        n => Err(Problem::failed(format!("{n} damages were found in {}", data.path().display()))),
    }
}

/// Checks what each ring holds: header, records, payloads.
fn check_rings(data: &Path) -> Result<Vec<RingReport>, Problem> {
    let agent = data.join("agent");
    let mut reports = Vec::new();
    for name in crate::ring_file::volumes(&agent)? {
        let path = agent.join(&name).join("ring");
        let checked = RingFile::open(&path).and_then(|ring| {
            let records = ring.records();
            records.iter().try_for_each(|r| ring.check_payload(r)).map(|()| records.len() as u64)
        });
        reports.push(match checked {
            Ok(records) => RingReport { volume: name, records, problem: None },
            Err(what) => RingReport { volume: name, records: 0, problem: Some((path, what)) },
        });
    }
    Ok(reports)
}

fn damage_value(d: &Damage) -> Value {
    let hits = d.hits.iter().map(|h| {
        json!({ "volume": h.volume, "offset": h.offset, "length": h.len, "first_seq": h.seqs.0, "last_seq": h.seqs.1 })
    });
    json!({ "file": d.file.display().to_string(), "offset": d.offset, "what": d.what, "hits": hits.collect::<Vec<_>>(),
        "stream_of": d.stream_of })
}

fn value(r: &Report, rings: &[RingReport]) -> Value {
    let mut damages: Vec<Value> = r.damages.iter().map(damage_value).collect();
    for ring in rings {
        if let Some((file, what)) = &ring.problem {
            let hits = json!([{ "volume": ring.volume }]);
            damages.push(json!({ "file": file.display().to_string(), "offset": 0, "what": what, "hits": hits }));
        }
    }
    json!({
        "sound": damages.is_empty(),
        "segments": r.segments,
        "frames": r.frames,
        "blocks": r.blocks,
        "layers": r.layers,
        "references": r.references,
        "bytes": r.bytes,
        "rings": rings.len(),
        "ring_records": rings.iter().map(|r| r.records).sum::<u64>(),
        "damages": damages,
    })
}

fn text(r: &Report, rings: &[RingReport]) -> String {
    let mut out = format!(
        "{} segments with {} frames and {} blocks, {} layers, {} references, {} rings with {} records; {} read\n",
        r.segments,
        r.frames,
        r.blocks,
        r.layers,
        r.references,
        rings.len(),
        rings.iter().map(|r| r.records).sum::<u64>(),
        format_size(r.bytes)
    );
    for d in &r.damages {
        let _ = writeln!(out, "DAMAGED {} at byte {}: {}", d.file.display(), d.offset, d.what);
        for h in d.hits.iter().take(SHOWN_HITS) {
            let _ = writeln!(
                out,
                "  hits volume {}, bytes {} to {}, in images from @{} to @{}",
                h.volume,
                h.offset,
                h.offset + h.len,
                h.seqs.0,
                h.seqs.1
            );
        }
        if let (true, Some(volume)) = (d.hits.is_empty(), &d.stream_of) {
            let known =
                if r.with_key { "no block of it is hit" } else { "which blocks are hit can be told with the key" };
            let _ = writeln!(out, "  in the stream of volume {volume}; {known}");
        }
        if d.hits.len() > SHOWN_HITS {
            let _ = writeln!(out, "  and {} ranges more (all of them with --json)", d.hits.len() - SHOWN_HITS);
        }
    }
    for ring in rings {
        if let Some((file, what)) = &ring.problem {
            let _ = writeln!(
                out,
                "DAMAGED {}: {what}\n  volume {} will be compared with its history at the next start",
                file.display(),
                ring.volume
            );
        }
    }
    if r.damages.is_empty() && rings.iter().all(|r| r.problem.is_none()) {
        out.push_str("everything is sound\n");
    }
    out
}

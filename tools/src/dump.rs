//! `afterimage dump`: a read-only look into ring, segments, layers and manifest, also while a process uses them.
//!
//! Needs no key: what is shown lies outside the seals.

use crate::cli::DumpWhat;
use crate::problem::Problem;
use crate::ring_file::RingFile;
use crate::show::{put, put_json, table};
use afterimage_format::layer::LayerMeta;
use afterimage_format::manifest::{Manifest, SegmentMeta, VolumeMeta};
use afterimage_format::record::{self, Record};
use afterimage_format::ring::{DONE, END_MASK};
use afterimage_format::segment::{FRAME_HEADER_LEN, FrameHeader, HEADER_LEN, SegmentHeader};
use afterimage_mgmt::units::{Time, format_size};
use serde_json::{Value, json};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Prints what was asked for.
///
/// # Errors
/// If a file is missing or is not what it should be.
pub fn run(data: &Path, what: DumpWhat, which: Option<&str>, as_json: bool) -> Result<(), Problem> {
    crate::data::check_version(data)?;
    let value = match what {
        DumpWhat::Ring => ring(data, which)?,
        DumpWhat::Manifest => manifest_value(&manifest(data)?),
        DumpWhat::Layers => layers(&manifest(data)?, which)?,
        DumpWhat::Segments => segments(data, &manifest(data)?, which)?,
    };
    if as_json { put_json(&value) } else { put(&text(&value, 0)) }
}

fn id(bytes: [u8; 16]) -> String {
    uuid::Uuid::from_bytes(bytes).to_string()
}

fn manifest(data: &Path) -> Result<Manifest, Problem> {
    let path = data.join("vault/MANIFEST");
    let bytes = std::fs::read(&path).map_err(|e| Problem::file(&path, &e))?;
    Manifest::decode(&bytes).map_err(|e| Problem::failed(format!("{}: {e}", path.display())))
}

fn manifest_value(m: &Manifest) -> Value {
    let volumes: Vec<Value> = m
        .volumes
        .iter()
        .map(|v| {
            json!({
                "name": v.name,
                "id": id(v.id),
                "size": v.size,
                "ring": id(v.ring),
                "durable_seq": v.durable_seq,
                "durable_time": Time(v.durable_time),
                "logical_bytes": v.logical_bytes,
                "first_seq": v.first_seq,
                "first_time": Time(v.first_time),
                "layered_to": v.layered_to,
                "layers": v.layers.len(),
                "points": v.points.iter().map(|p| json!({
                    "name": p.name, "seq": p.seq, "time": Time(p.time), "auto": p.auto,
                })).collect::<Vec<_>>(),
                "gaps": v.gaps.iter().map(|g| json!({
                    "from_seq": g.from_seq, "from_time": Time(g.from_time), "to_seq": g.to_seq, "initial": g.initial,
                })).collect::<Vec<_>>(),
            })
        })
        .collect();
    json!({ "vault": id(m.vault), "segments": m.segments.len(), "volumes": volumes })
}

fn layer_value(volume: &VolumeMeta, l: &LayerMeta) -> Value {
    json!({
        "volume": volume.name,
        "file": l.file_name(),
        "first_seq": l.after_seq + 1,
        "last_seq": l.last_seq,
        "collapsed_to": l.collapsed_to,
        "tokens": l.tokens,
        "records": l.records,
        "first_block": l.first_block,
        "end_block": l.end_block,
        "bytes": l.file_len,
    })
}

fn layers(m: &Manifest, which: Option<&str>) -> Result<Value, Problem> {
    let wanted: Vec<&VolumeMeta> = m.volumes.iter().filter(|v| which.is_none_or(|w| v.name == w)).collect();
    if let (Some(which), true) = (which, wanted.is_empty()) {
        return Err(Problem::failed(format!("there is no volume '{which}' in the vault")));
    }
    Ok(wanted.iter().flat_map(|v| v.layers.iter().map(|l| layer_value(v, l))).collect())
}

fn segment_value(data: &Path, m: &Manifest, s: &SegmentMeta) -> Value {
    let volume = m.volume(&s.volume).map_or("", |v| &v.name);
    let path = data.join("vault/segments").join(afterimage_appliance::store::file_name(s.number));
    let size = std::fs::metadata(&path).map(|f| f.len()).ok();
    json!({
        "number": s.number,
        "volume": volume,
        "state": format!("{:?}", s.state).to_lowercase(),
        "length": s.length,
        "file_bytes": size,
        "last_seq": s.last_seq,
    })
}

fn segments(data: &Path, m: &Manifest, which: Option<&str>) -> Result<Value, Problem> {
    let Some(which) = which else {
        return Ok(m.segments.iter().map(|s| segment_value(data, m, s)).collect());
    };
    let number = which.parse::<u32>().ok();
    let found = m.segments.iter().find(|s| Some(s.number) == number);
    let segment = found.ok_or_else(|| Problem::failed(format!("the manifest names no segment '{which}'")))?;
    let mut value = segment_value(data, m, segment);
    value["frames"] = frames(data, segment)?;
    Ok(value)
}

fn frames(data: &Path, s: &SegmentMeta) -> Result<Value, Problem> {
    let path = data.join("vault/segments").join(afterimage_appliance::store::file_name(s.number));
    let file = File::open(&path).map_err(|e| Problem::file(&path, &e))?;
    let problem = |e: &dyn std::fmt::Display| Problem::failed(format!("{}: {e}", path.display()));
    let mut head = [0; HEADER_LEN];
    file.read_exact_at(&mut head, 0).map_err(|e| problem(&e))?;
    SegmentHeader::decode(&head).map_err(|e| problem(&e))?;
    let (mut at, mut out) = (HEADER_LEN as u64, Vec::new());
    let mut bytes = [0; FRAME_HEADER_LEN];
    while file.read_exact_at(&mut bytes, at).is_ok() {
        // Behind the last frame there is a footer, or nothing.
        let Ok(f) = FrameHeader::decode(&bytes) else { break };
        let mut body = vec![0; f.sealed_len as usize];
        let whole = file.read_exact_at(&mut body, at + FRAME_HEADER_LEN as u64).is_ok();
        out.push(json!({
            "offset": at,
            "kind": format!("{:?}", f.kind).to_lowercase(),
            "codec": format!("{:?}", f.codec).to_lowercase(),
            "blocks": f.blocks,
            "counter": f.counter,
            "sealed": f.sealed_len,
            "plain": f.plain_len,
            "sound": whole && f.checksum_of(&body) == f.checksum,
        }));
        at += f.frame_len();
    }
    Ok(Value::Array(out))
}

fn ring(data: &Path, which: Option<&str>) -> Result<Value, Problem> {
    let agent = data.join("agent");
    let Some(name) = which else {
        return crate::ring_file::volumes(&agent)?.iter().map(|n| ring(data, Some(n))).collect();
    };
    let path = agent.join(name).join("ring");
    let ring = RingFile::open(&path).map_err(|e| Problem::failed(format!("{}: {e}", path.display())))?;
    let records: Vec<Value> = ring.records().iter().map(record_value).collect();
    Ok(json!({
        "volume": name,
        "id": id(ring.header.volume),
        "ring": id(ring.header.ring),
        "slots": ring.header.slots,
        "pages": ring.header.pages,
        "clean": ring.clean,
        "closed_since": (ring.closed != 0).then_some(Time(ring.closed)),
        "first_seq": ring.tail.seq,
        "freed_seq": ring.tail.freed_seq,
        "records": records,
    }))
}

fn record_value(r: &Record) -> Value {
    json!({
        "seq": r.seq,
        "kind": format!("{:?}", r.kind).to_lowercase(),
        "sync": r.flags & record::FLAG_SYNC != 0,
        "offset": r.offset,
        "len": r.len,
        "time": Time(r.time),
        "done": r.place & !END_MASK == DONE,
    })
}

/// Names in the order in which people want to read them; others follow.
const ORDER: [&str; 14] = [
    "number",
    "volume",
    "name",
    "seq",
    "offset",
    "file",
    "kind",
    "id",
    "vault",
    "size",
    "state",
    "time",
    "first_seq",
    "last_seq",
];

fn in_order(fields: &serde_json::Map<String, Value>) -> Vec<(&String, &Value)> {
    let mut all: Vec<_> = fields.iter().collect();
    // Lists last: what stands behind them would be overlooked.
    all.sort_by_key(|(name, v)| (v.is_array(), ORDER.iter().position(|o| o == name).unwrap_or(ORDER.len())));
    all
}

/// JSON for people: fields as lines, lists of flat objects as tables.
fn text(value: &Value, depth: usize) -> String {
    let indent = "  ".repeat(depth);
    match value {
        Value::Object(fields) => {
            let mut out = String::new();
            for (name, v) in in_order(fields) {
                match v {
                    Value::Array(list) if list.is_empty() => out.push_str(&format!("{indent}{name}: none\n")),
                    Value::Array(_) | Value::Object(_) => {
                        out.push_str(&format!("{indent}{name}:\n{}", text(v, depth + 1)));
                    }
                    _ => out.push_str(&format!("{indent}{name}: {}\n", cell(name, v))),
                }
            }
            out
        }
        Value::Array(list) if list.iter().all(is_flat) => flat_table(list, &indent),
        Value::Array(list) => list.iter().map(|v| text(v, depth)).collect::<Vec<_>>().join("\n"),
        v => format!("{indent}{}\n", cell("", v)),
    }
}

fn is_flat(value: &Value) -> bool {
    value.as_object().is_some_and(|o| o.values().all(|v| !v.is_array() && !v.is_object()))
}

fn cell(name: &str, value: &Value) -> String {
    match value {
        Value::String(s) => s.clone(),
        Value::Null => "-".to_owned(),
        Value::Number(n) if matches!(name, "size" | "logical_bytes" | "bytes" | "length" | "file_bytes") => {
            n.as_u64().map_or_else(|| n.to_string(), format_size)
        }
        v => v.to_string(),
    }
}

fn flat_table(list: &[Value], indent: &str) -> String {
    let Some(first) = list.first().and_then(Value::as_object) else { return format!("{indent}none\n") };
    let mut rows = vec![in_order(first).iter().map(|(name, _)| name.to_uppercase()).collect::<Vec<_>>()];
    for fields in list.iter().filter_map(Value::as_object) {
        rows.push(in_order(fields).iter().map(|(name, v)| cell(name, v)).collect());
    }
    table(&rows).lines().map(|l| format!("{indent}{l}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_becomes_lines_and_tables() {
        let value = json!({"name": "d", "size": 4096, "gaps": [], "points": [{"name": "p", "seq": 1}]});
        let out = text(&value, 0);
        assert!(out.contains("name: d\n") && out.contains("size: 4 KiB\n") && out.contains("gaps: none\n"), "{out}");
        assert!(out.contains("  NAME  SEQ\n  p     1\n"), "{out}");
    }
}

//! fio with its NBD engine as the client, and what it says.

use crate::site::{NEAR, on};
use serde_json::Value;

/// Figures of one run.
#[derive(Debug, Clone, Copy)]
pub struct Figures {
    /// Requests per second.
    pub iops: f64,
    /// Megabytes (1,000,000 bytes) per second.
    pub megabytes: f64,
    /// Time from sending to answer in microseconds: median, 99 %, 99.9 %.
    pub latency: [f64; 3],
    /// Requests in all.
    pub requests: f64,
}

/// Runs fio with these options on each of the exports.
///
/// # Panics
/// If it fails.
#[must_use]
pub fn run(uris: &[String], pinned: bool, options: &[String]) -> Figures {
    let mut fio = on(pinned.then_some(NEAR), "fio").args(["--ioengine=nbd", "--thread", "--output-format=json"]);
    // Compressible to about a half, as data of real disks is.
    fio = fio.args(["--group_reporting", "--buffer_compress_percentage=50", "--refill_buffers"]);
    // Options in front of the first job are for all.
    fio = fio.args(options);
    for (n, uri) in uris.iter().enumerate() {
        fio = fio.arg(format!("--name=job{n}")).arg(format!("--uri={uri}"));
    }
    let report = fio.run().stdout;
    // fio may warn before it reports.
    let start = report.find('{').unwrap_or_else(|| panic!("no report from fio: {report}"));
    let report: Value =
        serde_json::from_str(&report[start..]).unwrap_or_else(|e| panic!("fio's report: {e}: {report}"));
    let job = &report["jobs"][0];
    assert_eq!(job["error"], 0, "fio saw an error: {job}");
    let kind = if job["write"]["total_ios"].as_u64().unwrap_or(0) > 0 { "write" } else { "read" };
    figures(&job[kind])
}

fn figures(of: &Value) -> Figures {
    let number = |value: &Value| value.as_f64().unwrap_or_else(|| panic!("fio's report lacks a number: {of}"));
    let percentile = |name: &str| number(&of["clat_ns"]["percentile"][name]) / 1000.0;
    Figures {
        iops: number(&of["iops"]),
        megabytes: number(&of["bw_bytes"]) / 1e6,
        latency: [percentile("50.000000"), percentile("99.000000"), percentile("99.900000")],
        requests: number(&of["total_ios"]).max(1.0),
    }
}

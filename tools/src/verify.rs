//! `afterimage verify`: disk and newest history compared, while the guest goes on.

use crate::problem::Problem;
use crate::progress::{Progress, rate};
use crate::show::{put, put_json};
use afterimage_agent::{VerifyError, VerifyOptions as Asked, Volume};
use afterimage_mgmt::client::ControlClient;
use afterimage_mgmt::protocol::{Code, Failure};
use afterimage_mgmt::units::{format_size, parse_size};
use afterimage_mgmt::verify::{VerifyOptions, VerifyProgress, VerifyRange, VerifyReport};
use std::fmt::Write as _;
use std::ops::Range;
use std::path::Path;
use std::time::{Duration, Instant};

/// Ranges that are printed; `--json` has more.
const SHOWN: usize = 100;

/// Reads `OFFSET+LENGTH`.
///
/// # Errors
/// What is wrong with it.
pub fn parse_range(text: &str) -> Result<(u64, u64), String> {
    let (offset, length) = text
        .split_once('+')
        .ok_or_else(|| format!("'{text}' is not a range: write OFFSET+LENGTH, such as 1GiB+64MiB"))?;
    let size = |t: &str| parse_size(t.trim()).map_err(|e| e.to_string());
    let (offset, length) = (size(offset)?, size(length)?);
    if length == 0 {
        return Err(format!("the range '{text}' is empty"));
    }
    Ok((offset, length))
}

/// The daemon's side.
///
/// # Errors
/// If the volume cannot be verified now.
pub fn serve(
    volume: &Volume,
    options: &VerifyOptions,
    each: &mut dyn FnMut(VerifyProgress) -> bool,
) -> Result<VerifyReport, Failure> {
    let range = options.range.map(|(offset, length)| offset..offset.saturating_add(length));
    let asked = Asked { range, repair: options.repair, rate: options.rate };
    let start = Instant::now();
    let found =
        volume.verify(&asked, &mut |p| each(VerifyProgress { done: p.done, total: p.total, differing: p.differing }));
    let found = found.map_err(|e| {
        let code = match &e {
            VerifyError::NotLive { .. } | VerifyError::Old(_) | VerifyError::Away(_) => Code::NotReady,
            VerifyError::Range { .. } => Code::BadRequest,
            _ => Code::Failed,
        };
        Failure::new(code, e.to_string())
    })?;
    let ranges = |r: Vec<Range<u64>>| -> Vec<VerifyRange> {
        r.into_iter().map(|r| VerifyRange { offset: r.start, length: r.end - r.start }).collect()
    };
    Ok(VerifyReport {
        volume: volume.name().to_owned(),
        equal: found.equal == found.total,
        seq: found.seq,
        total_bytes: found.total,
        equal_bytes: found.equal,
        differing_bytes: found.differing,
        unknown_bytes: found.unknown,
        differing: ranges(found.differing_ranges),
        unknown: ranges(found.unknown_ranges),
        repairing: found.repairing,
        seconds: start.elapsed().as_secs_f64(),
    })
}

fn list(out: &mut String, what: &str, ranges: &[VerifyRange], bytes: u64) {
    for r in ranges.iter().take(SHOWN) {
        let _ = writeln!(out, "{what} {:>16} +{}", r.offset, r.length);
    }
    if ranges.len() > SHOWN {
        let _ = writeln!(out, "{what} ... {} in all (more ranges with --json)", format_size(bytes));
    }
}

fn text(r: &VerifyReport) -> String {
    let mut out = String::new();
    list(&mut out, "DIFFERS", &r.differing, r.differing_bytes);
    list(&mut out, "NOT COMPARED", &r.unknown, r.unknown_bytes);
    let time = Duration::try_from_secs_f64(r.seconds).unwrap_or_default();
    let _ = writeln!(
        out,
        "{}: {} of {} equal to the history up to @{}, in {:.1} s, {}/s",
        r.volume,
        format_size(r.equal_bytes),
        format_size(r.total_bytes),
        r.seq,
        r.seconds,
        format_size(rate(r.total_bytes, time))
    );
    if r.repairing {
        out.push_str(
            "a gap begins here: what differs is copied from the disk to the appliance; no point is made until that is done\n",
        );
    }
    out
}

/// The command.
///
/// # Errors
/// If not all is equal, or could not be compared.
pub fn run(data: &Path, volume: &str, options: &VerifyOptions, json: bool) -> Result<(), Problem> {
    let mut control = ControlClient::connect(data)?;
    let mut bar: Option<(Progress, u64)> = None;
    let report = control.verify(volume, options.clone(), |p| {
        let (bar, done) = bar.get_or_insert_with(|| (Progress::new(p.total), 0));
        bar.add(p.done.saturating_sub(*done));
        *done = p.done;
    });
    drop(bar);
    let report = report?;
    if json {
        put_json(&report)?;
    } else {
        put(&text(&report))?;
    }
    match (report.equal, report.differing_bytes) {
        (true, _) => Ok(()),
        (false, 0) => Err(Problem::failed(format!(
            "{} of volume {volume} could not be compared: `afterimage check` on the stopped data folder says what is damaged",
            format_size(report.unknown_bytes)
        ))),
        (false, bytes) => {
            let todo = if report.repairing { "being copied now" } else { "--repair copies it to the appliance" };
            Err(Problem::failed(format!(
                "{} of volume {volume} differ between disk and history: {todo}",
                format_size(bytes)
            )))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_an_offset_and_a_length() {
        assert_eq!(parse_range("1MiB+4KiB"), Ok((1 << 20, 4096)));
        assert_eq!(parse_range("0+1"), Ok((0, 1)));
        for bad in ["", "5", "5+0", "+", "x+1", "1-2"] {
            assert!(parse_range(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_text_names_what_differs() {
        let range = |offset| VerifyRange { offset, length: 4096 };
        let report = VerifyReport {
            volume: "d".into(),
            equal: false,
            seq: 7,
            total_bytes: 1 << 20,
            equal_bytes: (1 << 20) - 8192,
            differing_bytes: 4096,
            unknown_bytes: 4096,
            differing: vec![range(8192)],
            unknown: vec![range(4096)],
            repairing: true,
            seconds: 0.5,
        };
        let text = text(&report);
        assert!(text.contains("DIFFERS             8192 +4096") && text.contains("NOT COMPARED"), "{text}");
        assert!(text.contains("@7") && text.contains("a gap begins"), "{text}");
    }
}

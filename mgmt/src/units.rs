//! Sizes, durations and times as people write them.

use jiff::{SignedDuration, Timestamp, Unit};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use thiserror::Error;

/// Why a size, duration or time was not understood.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum UnitError {
    /// Not a size.
    #[error("'{0}' is not a size: write a number of bytes, or one with KiB, MiB, GiB or TiB, such as 64MiB")]
    Size(String),
    /// Not a duration.
    #[error("'{0}' is not a duration: write numbers with s, m, h, d or w, such as 90s, 1h30m or 2d")]
    Duration(String),
    /// Not a time.
    #[error("'{0}' is not a time: write it as RFC 3339 with its zone, such as 2026-03-01T14:30:00Z")]
    Time(String),
}

const SIZE_UNITS: [(&str, u64); 5] = [("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40)];

/// Reads a size in bytes: `4096`, `64MiB`, `1.5GiB`. `K`, `M`, `G` and `T` are short for the binary units.
///
/// # Errors
/// [`UnitError::Size`] if it is none, or larger than 2^63.
pub fn parse_size(text: &str) -> Result<u64, UnitError> {
    let bad = || UnitError::Size(text.to_owned());
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = (&text[..split], text[split..].trim());
    let unit = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        "t" | "tib" => 40,
        _ => return Err(bad()),
    };
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || part.len() > 9 || part.contains('.') || (unit == 0 && number.contains('.')) {
        return Err(bad());
    }
    let whole: u64 = whole.parse().map_err(|_| bad())?;
    let mut bytes = u128::from(whole) << unit;
    if !part.is_empty() {
        let digits: u64 = part.parse().map_err(|_| bad())?;
        let scale = 10u128.pow(u32::try_from(part.len()).map_err(|_| bad())?);
        bytes += (u128::from(digits) << unit) / scale;
    }
    u64::try_from(bytes).ok().filter(|b| *b < 1 << 63).ok_or_else(bad)
}

/// A size for people: exact if it is a whole number of a unit, else with one decimal.
#[must_use]
pub fn format_size(bytes: u64) -> String {
    let (name, unit) = SIZE_UNITS.iter().rev().find(|(_, u)| bytes >= *u).unwrap_or(&SIZE_UNITS[0]);
    let (whole, rest) = (bytes / unit, bytes % unit);
    if rest == 0 {
        return format!("{whole} {name}");
    }
    let tenths = u128::from(rest) * 10 / u128::from(*unit);
    format!("{whole}.{tenths} {name}")
}

/// Reads a duration: `90s`, `1h30m`, `2d`. A bare `0` is allowed.
///
/// # Errors
/// [`UnitError::Duration`] if it is none.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    let bad = || UnitError::Duration(text.to_owned());
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
        let number: u64 = rest[..digits].parse().map_err(|_| bad())?;
        rest = &rest[digits..];
        let letters = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
        let part = match &rest[..letters] {
            "ms" => Duration::from_millis(number),
            unit => {
                let seconds = match unit {
                    "s" => 1,
                    "m" | "min" => 60,
                    "h" => 3600,
                    "d" => 86_400,
                    "w" => 604_800,
                    _ => return Err(bad()),
                };
                Duration::from_secs(number.checked_mul(seconds).ok_or_else(bad)?)
            }
        };
        total = total.checked_add(part).ok_or_else(bad)?;
        rest = &rest[letters..];
    }
    if text.is_empty() || total > Duration::from_secs(86_400 * 36_500) { Err(bad()) } else { Ok(total) }
}

/// A duration as [`parse_duration`] reads it, whole seconds (or milliseconds below one second).
#[must_use]
pub fn format_duration(duration: Duration) -> String {
    let mut seconds = duration.as_secs();
    if seconds == 0 {
        return format!("{}ms", duration.subsec_millis());
    }
    let mut out = String::new();
    for (unit, letter) in [(86_400, 'd'), (3600, 'h'), (60, 'm'), (1, 's')] {
        if seconds >= unit {
            out.push_str(&format!("{}{letter}", seconds / unit));
            seconds %= unit;
        }
    }
    out
}

/// A moment: nanoseconds since 1970, written as RFC 3339 in UTC with all its digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time(pub u64);

impl Time {
    /// This moment.
    #[must_use]
    pub fn now() -> Time {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Time(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
    }

    fn timestamp(self) -> Timestamp {
        Timestamp::from_nanosecond(i128::from(self.0)).unwrap_or(Timestamp::MAX)
    }

    /// The same, cut to milliseconds: for tables that people read.
    #[must_use]
    pub fn short(self) -> String {
        let millis = self
            .timestamp()
            .round(jiff::TimestampRound::new().smallest(Unit::Millisecond).mode(jiff::RoundMode::Trunc));
        format!("{:.3}", millis.unwrap_or(self.timestamp()))
    }

    /// This long earlier, not before 1970.
    #[must_use]
    pub fn before(self, by: Duration) -> Time {
        Time(self.0.saturating_sub(u64::try_from(by.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// This long later.
    #[must_use]
    pub fn after(self, by: Duration) -> Time {
        Time(self.0.saturating_add(u64::try_from(by.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// How long `self` is behind `now`; zero if it is ahead.
    #[must_use]
    pub fn age(self, now: Time) -> Duration {
        Duration::from_nanos(now.0.saturating_sub(self.0))
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.timestamp().fmt(f)
    }
}

impl FromStr for Time {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Time, UnitError> {
        let bad = || UnitError::Time(text.to_owned());
        let t: Timestamp = text.parse().map_err(|_| bad())?;
        let since: SignedDuration = t.duration_since(Timestamp::UNIX_EPOCH);
        u64::try_from(since.as_nanos()).map(Time).map_err(|_| bad())
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Time, D::Error> {
        String::deserialize(d)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("512B", 512),
            ("64MiB", 64 << 20),
            ("64M", 64 << 20),
            ("64 mib", 64 << 20),
            ("1.5GiB", 3 << 29),
            ("2T", 2 << 40),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "x", "-1", "1.5", "1.5.5M", "64MB", "99999999999999999999", "9000000T", ".5M", "1e3"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
        for (bytes, text) in [(0, "0 B"), (1, "1 B"), (4096, "4 KiB"), (1536, "1.5 KiB"), (5 << 40, "5 TiB")] {
            assert_eq!(format_size(bytes), text);
        }
    }

    #[test]
    fn durations() {
        for (text, seconds) in [("0", 0), ("90s", 90), ("1h30m", 5400), ("2d", 172_800), ("1w", 604_800), ("5min", 300)]
        {
            assert_eq!(parse_duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        for text in ["", "5", "m", "5y", "-5m", "1h30", "99999999999999999999s", "99999999999999w", "1.5h"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
        for text in ["1s", "1m30s", "2d", "1d1h1m1s", "250ms"] {
            assert_eq!(format_duration(parse_duration(text).unwrap()), text);
        }
    }

    #[test]
    fn times_keep_every_nanosecond() {
        let t = Time(1_772_375_400_123_456_789);
        assert_eq!(t.to_string(), "2026-03-01T14:30:00.123456789Z");
        assert_eq!(t.to_string().parse(), Ok(t));
        assert_eq!(t.short(), "2026-03-01T14:30:00.123Z");
        assert_eq!("2026-03-01T15:30:00.123456789+01:00".parse(), Ok(t));
        for bad in ["2026-03-01", "2026-03-01T14:30:00", "1960-01-01T00:00:00Z", "yesterday"] {
            assert!(bad.parse::<Time>().is_err(), "{bad}");
        }
    }
}

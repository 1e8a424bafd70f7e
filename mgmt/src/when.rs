//! WHEN: how a user names a moment of a volume, and the seq that it means.
//!
//! | text | means |
//! |---|---|
//! | `latest` | the newest write that is durable at the appliance and part of a valid image |
//! | `@SEQ` | exactly after that write |
//! | `-10m`, `-1h30m`, `-2d` | the newest write that is at least that old |
//! | `2026-03-01T14:30:00Z` | the newest write with that time or an earlier one |
//! | anything else | the recovery point of that name; of several with one name the newest |
//!
//! So that every text means one thing only, a point cannot be given a name that reads as one of the others.

use crate::protocol::{Code, Failure};
use crate::units::{Time, UnitError, format_duration, parse_duration};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;
use thiserror::Error;

/// Longest name of a point in bytes: what a marker record carries.
pub const MAX_POINT_NAME: usize = afterimage_format::record::MAX_NAME;

/// A moment as a user named it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum When {
    /// The newest moment.
    Latest,
    /// After the write with this seq.
    Seq(u64),
    /// At this time.
    Time(Time),
    /// This long ago.
    Ago(Duration),
    /// At the recovery point of this name.
    Point(String),
}

/// Why a text names no moment, or cannot name a point.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum WhenError {
    /// `@` without a seq behind it.
    #[error("'{0}' names no write: write @ and its number, such as @1024 (numbers begin at 1)")]
    Seq(String),
    /// A duration or time that is none.
    #[error(transparent)]
    Unit(#[from] UnitError),
    /// Not a name.
    #[error("'{0}' cannot be a point's name: use 1 to {MAX_POINT_NAME} bytes without control characters")]
    Name(String),
    /// A name that would be read as something else.
    #[error("'{0}' cannot be a point's name: it would be read as a time or a write's number; put a letter in front")]
    Taken(String),
}

impl FromStr for When {
    type Err = WhenError;

    fn from_str(text: &str) -> Result<When, WhenError> {
        if text == "latest" {
            return Ok(When::Latest);
        }
        if let Some(seq) = text.strip_prefix('@') {
            let digits = !seq.is_empty() && seq.bytes().all(|b| b.is_ascii_digit());
            let seq = digits.then(|| seq.parse().ok()).flatten().filter(|s| *s > 0);
            return seq.map(When::Seq).ok_or_else(|| WhenError::Seq(text.to_owned()));
        }
        if let Some(ago) = text.strip_prefix('-') {
            return Ok(When::Ago(parse_duration(ago)?));
        }
        if looks_like_a_date(text) {
            return Ok(When::Time(text.parse()?));
        }
        if text.is_empty() || text.len() > MAX_POINT_NAME || text.chars().any(char::is_control) {
            return Err(WhenError::Name(text.to_owned()));
        }
        Ok(When::Point(text.to_owned()))
    }
}

/// Four digits and a dash: nobody means a name by that.
fn looks_like_a_date(text: &str) -> bool {
    let b = text.as_bytes();
    b.len() >= 5 && b[..4].iter().all(u8::is_ascii_digit) && b[4] == b'-'
}

/// Checks that `name` can be given to a point.
///
/// # Errors
/// [`WhenError::Name`] or [`WhenError::Taken`].
pub fn check_point_name(name: &str) -> Result<(), WhenError> {
    match name.parse() {
        Ok(When::Point(_)) => Ok(()),
        Err(WhenError::Name(n)) => Err(WhenError::Name(n)),
        _ => Err(WhenError::Taken(name.to_owned())),
    }
}

impl fmt::Display for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            When::Latest => f.write_str("latest"),
            When::Seq(seq) => write!(f, "@{seq}"),
            When::Time(t) => t.fmt(f),
            When::Ago(d) => {
                write!(f, "-{}", format_duration(*d))?;
                match d.subsec_millis() {
                    // Below a second they are there already.
                    ms if ms > 0 && d.as_secs() > 0 => write!(f, "{ms}ms"),
                    _ => Ok(()),
                }
            }
            When::Point(name) => f.write_str(name),
        }
    }
}

impl Serialize for When {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for When {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<When, D::Error> {
        String::deserialize(d)?.parse().map_err(de::Error::custom)
    }
}

/// What resolving asks of a volume's history.
pub trait Timeline {
    /// The newest seq that ends a valid image.
    ///
    /// # Errors
    /// [`Code::NotReady`] while there is none.
    fn newest(&self) -> Result<u64, Failure>;

    /// The newest seq with this time or an earlier one that ends a valid image.
    ///
    /// # Errors
    /// [`Code::OutsideWindow`] if the time is before the window, [`Code::Gap`] if it lies in a gap.
    fn at_time(&self, time: Time) -> Result<u64, Failure>;

    /// The seq of the newest point of that name.
    ///
    /// # Errors
    /// Whatever stands in the way of looking.
    fn point(&self, name: &str) -> Result<Option<u64>, Failure>;

    /// Whether the volume as it was after this write can be opened.
    ///
    /// # Errors
    /// [`Code::OutsideWindow`] or [`Code::Gap`], with what can be chosen instead.
    fn check(&self, seq: u64) -> Result<(), Failure>;
}

impl When {
    /// The seq that this moment means on `timeline`, checked to be open to the user. `now` is the wall clock.
    ///
    /// # Errors
    /// [`Code::NotFound`] for a point that is not there, and what [`Timeline`] says.
    pub fn resolve(&self, timeline: &dyn Timeline, now: Time) -> Result<u64, Failure> {
        let seq = match self {
            When::Latest => timeline.newest()?,
            When::Seq(seq) => *seq,
            When::Time(time) => timeline.at_time(*time)?,
            When::Ago(ago) => timeline.at_time(now.before(*ago))?,
            When::Point(name) => timeline.point(name)?.ok_or_else(|| {
                Failure::new(
                    Code::NotFound,
                    format!("there is no recovery point '{name}': `afterimage point ls` shows those that are there"),
                )
            })?,
        };
        timeline.check(seq)?;
        Ok(seq)
    }
}

#[cfg(test)]
#[path = "when_tests.rs"]
mod tests;

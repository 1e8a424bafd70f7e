//! What is looked at in a running guest.
//!
//! | text | passes when |
//! |---|---|
//! | `boot` | the guest has booted: the text `console.booted` of its description was on its serial port; or else its guest agent answers; or else, if the description names neither, it has read 1 MiB of its disks |
//! | `serial:TEXT` | the text was on its serial port |
//! | `agent` | QEMU's guest agent in it answers |
//! | `tcp:PORT` | the guest takes a connection at this port |
//! | `script:PATH` | the program ends with status 0; what it prints goes to the job's log |
//! | `screenshot` | the screen could be written to `screen.png` in the job's folder |

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use thiserror::Error;

/// Longest text that is waited for.
const MAX_TEXT: usize = 1024;

/// A check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Check {
    /// The guest has booted.
    Boot,
    /// This was on its serial port.
    Serial(String),
    /// Its agent answers.
    Agent,
    /// It listens at this port.
    Tcp(u16),
    /// This program says so.
    Script(PathBuf),
    /// The screen is kept.
    Screenshot,
}

/// Text that is no check.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("'{0}' is no check: write boot, serial:TEXT, agent, tcp:PORT, script:/PATH or screenshot")]
pub struct BadCheck(String);

impl FromStr for Check {
    type Err = BadCheck;

    fn from_str(text: &str) -> Result<Check, BadCheck> {
        let bad = || BadCheck(text.to_owned());
        match text.split_once(':') {
            None => match text {
                "boot" => Ok(Check::Boot),
                "agent" => Ok(Check::Agent),
                "screenshot" => Ok(Check::Screenshot),
                _ => Err(bad()),
            },
            Some(("serial", t)) if (1..=MAX_TEXT).contains(&t.len()) && !t.contains('\n') => {
                Ok(Check::Serial(t.to_owned()))
            }
            Some(("tcp", port)) => port.parse().ok().filter(|p| *p > 0).map(Check::Tcp).ok_or_else(bad),
            // The job's process has a folder of its own.
            Some(("script", path)) if path.starts_with('/') => Ok(Check::Script(path.into())),
            Some(_) => Err(bad()),
        }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Check::Boot => f.write_str("boot"),
            Check::Serial(text) => write!(f, "serial:{text}"),
            Check::Agent => f.write_str("agent"),
            Check::Tcp(port) => write!(f, "tcp:{port}"),
            Check::Script(path) => write!(f, "script:{}", path.display()),
            Check::Screenshot => f.write_str("screenshot"),
        }
    }
}

impl Serialize for Check {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Check {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_are_read_as_they_are_written() {
        for text in ["boot", "agent", "screenshot", "serial:a: b", "tcp:22", "script:/bin/true"] {
            assert_eq!(text.parse::<Check>().unwrap().to_string(), text);
        }
        for bad in ["", "Boot", "serial:", "serial:a\nb", "tcp:0", "tcp:65536", "tcp:x", "script:true", "boot:", "x:y"]
        {
            assert!(bad.parse::<Check>().is_err(), "{bad}");
        }
    }
}

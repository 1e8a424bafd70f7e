//! Where a server listens and a client connects.

use std::fmt;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::str::FromStr;
use thiserror::Error;

/// An address in the form `unix:PATH` or `tcp:ADDR:PORT`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// A unix socket.
    Unix(PathBuf),
    /// A TCP address. Port 0 lets the system choose when listening.
    Tcp(SocketAddr),
}

/// What to listen on.
#[derive(Debug)]
pub enum Listen {
    /// A unix socket to be made at this path, mode 0600. A stale one left by a killed process is replaced.
    Unix(PathBuf),
    /// A TCP address.
    Tcp(SocketAddr),
    /// A listening socket that somebody else made, for instance systemd.
    Fd(OwnedFd),
}

/// Text that is no address.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0:?} is not an address; write unix:PATH or tcp:ADDR:PORT, for instance tcp:127.0.0.1:10809")]
pub struct BadAddress(String);

impl FromStr for Address {
    type Err = BadAddress;

    fn from_str(s: &str) -> Result<Self, BadAddress> {
        let bad = || BadAddress(s.to_owned());
        match s.split_once(':') {
            Some(("unix", path)) if !path.is_empty() => Ok(Self::Unix(path.into())),
            Some(("tcp", address)) => address.parse().map(Self::Tcp).map_err(|_| bad()),
            _ => Err(bad()),
        }
    }
}

impl FromStr for Listen {
    type Err = BadAddress;

    fn from_str(s: &str) -> Result<Self, BadAddress> {
        s.parse::<Address>().map(Self::from)
    }
}

impl From<Address> for Listen {
    fn from(address: Address) -> Self {
        match address {
            Address::Unix(path) => Self::Unix(path),
            Address::Tcp(address) => Self::Tcp(address),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp:{address}"),
        }
    }
}

impl Address {
    /// The NBD URI of an export at this address, as QEMU, nbdinfo and fio take it.
    #[must_use]
    pub fn uri(&self, export: &str) -> String {
        let name = escape(export.as_bytes(), b"");
        match self {
            Self::Unix(path) => {
                use std::os::unix::ffi::OsStrExt;
                let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
                format!("nbd+unix:///{name}?socket={}", escape(path.as_os_str().as_bytes(), b"/"))
            }
            Self::Tcp(address) => format!("nbd://{address}/{name}"),
        }
    }
}

/// Percent-encodes all but the unreserved characters of RFC 3986 and those in `also`.
fn escape(bytes: &[u8], also: &[u8]) -> String {
    use std::fmt::Write;
    let mut out = String::new();
    for b in bytes {
        if b.is_ascii_alphanumeric() || b"-._~".contains(b) || also.contains(b) {
            out.push(char::from(*b));
        } else {
            let _ = write!(out, "%{b:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_go_both_ways_and_make_uris() {
        for text in ["unix:/run/a b.sock", "tcp:127.0.0.1:10809", "tcp:[::1]:1"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        for bad in ["", "unix:", "tcp:", "tcp:127.0.0.1", "udp:1.2.3.4:5", "/run/x"] {
            assert!(bad.parse::<Address>().unwrap_err().to_string().contains("unix:PATH"));
        }
        let unix: Address = "unix:/run/a b.sock".parse().unwrap();
        assert_eq!(unix.uri("disk/1"), "nbd+unix:///disk%2F1?socket=/run/a%20b.sock");
        assert_eq!("tcp:[::1]:5".parse::<Address>().unwrap().uri(""), "nbd://[::1]:5/");
    }
}

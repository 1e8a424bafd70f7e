//! NBD URIs: a server and an export in one text, as users name them.

use super::{Client, ClientError, Options};
use crate::Address;
use afterimage_trust::nbd::NbdClientTls;
use std::fmt;
use std::net::ToSocketAddrs;
use std::path::PathBuf;
use std::str::FromStr;
use thiserror::Error;

/// The port of NBD URIs that name none.
const DEFAULT_PORT: u16 = 10809;

/// An export of a server: `nbd://HOST[:PORT]/NAME` or `nbd+unix:///NAME?socket=PATH`, percent-encoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uri {
    place: Place,
    export: String,
    /// The folder with certificates, for TLS.
    tls: Option<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Unix(PathBuf),
    /// Host and port; the name is looked up at every connect.
    Tcp(String),
}

/// Text that is no NBD URI.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "'{0}' is no NBD address: write nbd://HOST[:PORT]/NAME, nbds://HOST[:PORT]/NAME?tls-certificates=DIR or nbd+unix:///NAME?socket=PATH"
)]
pub struct BadUri(String);

fn unescape(text: &str) -> Option<String> {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        if b == b'%' {
            let digit = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
            out.push(digit(bytes.next()?)? << 4 | digit(bytes.next()?)?);
        } else {
            out.push(b);
        }
    }
    String::from_utf8(out).ok()
}

impl FromStr for Uri {
    type Err = BadUri;

    fn from_str(uri: &str) -> Result<Self, BadUri> {
        let bad = || BadUri(uri.to_owned());
        if let Some(rest) = uri.strip_prefix("nbd+unix:///") {
            let (name, socket) = rest.split_once("?socket=").ok_or_else(bad)?;
            let place = Place::Unix(unescape(socket).ok_or_else(bad)?.into());
            return Ok(Self { place, export: unescape(name).ok_or_else(bad)?, tls: None });
        }
        let (rest, tls) = match uri.strip_prefix("nbds://") {
            Some(rest) => {
                let (rest, folder) = rest.split_once("?tls-certificates=").ok_or_else(bad)?;
                (rest, Some(PathBuf::from(unescape(folder).ok_or_else(bad)?)))
            }
            None => (uri.strip_prefix("nbd://").ok_or_else(bad)?, None),
        };
        let (host, name) = rest.split_once('/').unwrap_or((rest, ""));
        let with_port = host.rsplit_once(':').is_some_and(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()));
        let host = if with_port { host.to_owned() } else { format!("{host}:{DEFAULT_PORT}") };
        Ok(Self { place: Place::Tcp(host), export: unescape(name).ok_or_else(bad)?, tls })
    }
}

impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place: &dyn fmt::Display = match &self.place {
            Place::Unix(path) => &path.display(),
            Place::Tcp(host) => host,
        };
        write!(f, "export {:?} at {place}", self.export)
    }
}

impl Uri {
    /// Connects as [`Client::connect`] does, to the first address of the host that answers.
    ///
    /// # Errors
    /// If the server cannot be reached or has no such export.
    pub fn connect(&self) -> Result<Client, ClientError> {
        let host = match &self.place {
            Place::Unix(path) => return Client::connect(&Address::Unix(path.clone()), &self.export),
            Place::Tcp(host) => host,
        };
        let tls = self.tls.as_deref().map(NbdClientTls::load).transpose();
        let tls = tls.map_err(|e| ClientError::Protocol(e.to_string()))?;
        let name = host.rsplit_once(':').map_or(&**host, |(name, _)| name.trim_matches(['[', ']']));
        let mut last = None;
        for address in host.to_socket_addrs()? {
            let address = Address::Tcp(address);
            let connected = match &tls {
                Some(tls) => Client::connect_tls(&address, name, tls, &self.export, &Options::default()),
                None => Client::connect(&address, &self.export),
            };
            match connected {
                Err(ClientError::Io(e)) => last = Some(e),
                done => return done,
            }
        }
        Err(last.unwrap_or_else(|| std::io::Error::other(format!("{host} has no address"))).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_are_read_as_they_are_written() {
        let a: Uri = "nbd+unix:///my%20disk?socket=/run/a%2fb.sock".parse().unwrap();
        assert_eq!(a, Uri { place: Place::Unix("/run/a/b.sock".into()), export: "my disk".to_owned(), tls: None });
        let a: Uri = "nbd://[::1]:7/x".parse().unwrap();
        assert_eq!(a, Uri { place: Place::Tcp("[::1]:7".to_owned()), export: "x".to_owned(), tls: None });
        let a: Uri = "nbds://h:7/x?tls-certificates=/etc/a%20b".parse().unwrap();
        let tls = Some("/etc/a b".into());
        assert_eq!(a, Uri { place: Place::Tcp("h:7".to_owned()), export: "x".to_owned(), tls });
        let a: Uri = "nbd://host".parse().unwrap();
        assert_eq!(a, Uri { place: Place::Tcp("host:10809".to_owned()), export: String::new(), tls: None });
        let own = Address::Unix("/run/a b/ü.sock".into());
        let want = Uri { place: Place::Unix("/run/a b/ü.sock".into()), export: "disk/1%".to_owned(), tls: None };
        assert_eq!(own.uri("disk/1%").parse(), Ok(want));
        for bad in
            ["", "http://x", "nbds://h/x", "nbd+unix:///x", "nbd+unix:///x%2?socket=/a", "nbd+unix:///%+1?socket=/a"]
        {
            assert!(bad.parse::<Uri>().is_err(), "{bad}");
        }
    }
}

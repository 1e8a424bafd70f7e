//! What a certificate says of its owner.
//!
//! It stands in the subject alternative name, as a URI:
//!
//! ```text
//! afterimage://mgmt/ID              afterimage://appliance/ID          ID is the vault's id, too
//! afterimage://agent/ID?vault=ID    a machine, and the vault that it may write to
//! afterimage://nbd/ID               a client of disks and exports over NBD
//! ```
//!
//! A certificate has one such URI, or it is not one of ours.

use std::fmt;
use std::str::FromStr;
use uuid::Uuid;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// What somebody is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Role {
    /// It protects the disks of a machine.
    Agent = 1,
    /// It keeps history.
    Appliance = 2,
    /// It coordinates.
    Mgmt = 3,
    /// It uses disks over NBD.
    Nbd = 4,
}

impl Role {
    const ALL: [Role; 4] = [Role::Agent, Role::Appliance, Role::Mgmt, Role::Nbd];

    /// Its word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Role::Agent => "agent",
            Role::Appliance => "appliance",
            Role::Mgmt => "mgmt",
            Role::Nbd => "nbd",
        }
    }

    /// The role with this number.
    #[must_use]
    pub fn of(number: u8) -> Option<Role> {
        Role::ALL.into_iter().find(|r| *r as u8 == number)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Role, String> {
        Role::ALL.into_iter().find(|r| r.as_str() == text).ok_or_else(|| format!("'{text}' is no role"))
    }
}

/// Who somebody is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity {
    /// What it is.
    pub role: Role,
    /// Which one: a machine's id, an appliance's.
    pub id: Uuid,
    /// The vault that it has to do with; nil for those that have to do with none.
    pub vault: Uuid,
}

impl Identity {
    /// The URI in a certificate.
    #[must_use]
    pub fn uri(&self) -> String {
        match self.role {
            Role::Agent => format!("afterimage://agent/{}?vault={}", self.id, self.vault),
            role => format!("afterimage://{role}/{}", self.id),
        }
    }

    /// Reads the URI; `None` if it is none of ours.
    #[must_use]
    pub fn parse(uri: &str) -> Option<Identity> {
        let (role, rest) = uri.strip_prefix("afterimage://")?.split_once('/')?;
        let role: Role = role.parse().ok()?;
        // One way to write each identity: what is compared as text elsewhere is the same.
        let id = |text: &str| Uuid::try_parse(text).ok().filter(|u| !u.is_nil() && u.to_string() == text);
        match (role, rest.split_once("?vault=")) {
            (Role::Agent, Some((own, vault))) => Some(Identity { role, id: id(own)?, vault: id(vault)? }),
            (Role::Appliance, None) => id(rest).map(|id| Identity { role, id, vault: id }),
            (Role::Mgmt | Role::Nbd, None) => id(rest).map(|id| Identity { role, id, vault: Uuid::nil() }),
            _ => None,
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.role, self.id)
    }
}

/// What there is to say of a certificate. It has been parsed, and nothing more: whether to believe it is for [`crate::verify`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claims {
    /// Whom it names; `None` if it is none of ours.
    pub identity: Option<Identity>,
    /// The name of the subject, for people.
    pub name: String,
    /// Serial number, without leading zeros.
    pub serial: Vec<u8>,
    /// Valid from, seconds since 1970.
    pub not_before: i64,
    /// Valid until, seconds since 1970.
    pub not_after: i64,
    /// Whether it is made to sign others.
    pub authority: bool,
}

impl Claims {
    /// Reads a certificate; `None` if it is none.
    #[must_use]
    pub fn of(der: &[u8]) -> Option<Claims> {
        let (rest, cert) = X509Certificate::from_der(der).ok()?;
        if !rest.is_empty() {
            return None;
        }
        let name = cert.subject().iter_common_name().next().and_then(|n| n.as_str().ok()).unwrap_or_default();
        let names = cert.subject_alternative_name().ok()?;
        let uris: Vec<&str> = names.map_or_else(Vec::new, |n| {
            n.value
                .general_names
                .iter()
                .filter_map(|g| if let GeneralName::URI(u) = g { Some(*u) } else { None })
                .collect()
        });
        let identity = match uris.as_slice() {
            [one] => Identity::parse(one),
            _ => None,
        };
        let serial = cert.raw_serial();
        let zeros = serial.iter().take_while(|b| **b == 0).count();
        Some(Claims {
            identity,
            name: name.chars().filter(|c| !c.is_control()).take(100).collect(),
            serial: serial[zeros..].to_vec(),
            not_before: cert.validity().not_before.timestamp(),
            not_after: cert.validity().not_after.timestamp(),
            authority: cert.is_ca(),
        })
    }

    /// The serial number as people see it.
    #[must_use]
    pub fn serial_text(&self) -> String {
        hex(&self.serial)
    }
}

impl fmt::Display for Claims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.identity {
            Some(identity) => write!(f, "'{}' ({identity}, certificate {})", self.name, self.serial_text()),
            None => write!(f, "'{}' (certificate {} of somebody else)", self.name, self.serial_text()),
        }
    }
}

/// Bytes as hexadecimal digits.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, b| {
        let _ = write!(out, "{b:02x}");
        out
    })
}

/// Hexadecimal digits as bytes; `None` if they are none.
#[must_use]
pub fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_are_read_as_they_are_written_and_no_other_way() {
        let (a, b) = (Uuid::from_u128(7), Uuid::from_u128(9));
        for (role, vault) in
            [(Role::Agent, b), (Role::Appliance, a), (Role::Mgmt, Uuid::nil()), (Role::Nbd, Uuid::nil())]
        {
            let identity = Identity { role, id: a, vault };
            assert_eq!(Identity::parse(&identity.uri()), Some(identity));
        }
        let good = format!("afterimage://agent/{a}?vault={b}");
        for bad in [
            "afterimage://agent/x?vault=y".to_owned(),
            good.replace("agent", "root"),
            good.replace("afterimage", "http"),
            format!("{good}&vault={a}"),
            format!("afterimage://agent/{a}"),
            format!("afterimage://mgmt/{a}?vault={b}"),
            format!("afterimage://mgmt/{}", a.simple()),
            format!("afterimage://mgmt/{}", Uuid::nil()),
        ] {
            assert_eq!(Identity::parse(&bad), None, "{bad}");
        }
        assert!(Claims::of(b"no certificate").is_none());
        assert_eq!(unhex(&hex(&[0, 255, 16])), Some(vec![0, 255, 16]));
        assert!(unhex("0").is_none() && unhex("zz").is_none());
    }
}

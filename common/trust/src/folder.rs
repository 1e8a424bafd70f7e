//! The folder `trust/` in a data folder: who this host is, and what was revoked.
//!
//! | file | |
//! |---|---|
//! | `credentials` | JSON, mode 0600: identity, key, certificate, the CA's certificate, where mgmt is. One file, replaced as a whole, so that key and certificate always fit |
//! | `revoked` | JSON: the newest list of revoked certificates |

use crate::csr::pem;
use crate::identity::{Claims, Identity, hex, unhex};
use crate::{Role, TrustError};
use afterimage_base::crashsafe;
use afterimage_format::coord::Revocations;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

const VERSION: u32 = 1;

/// What a host has of its own.
#[derive(Clone)]
pub struct Credentials {
    /// Who it is.
    pub identity: Identity,
    /// Its name, for people.
    pub name: String,
    /// Where mgmt is, as `tcp:HOST:PORT`.
    pub mgmt: String,
    /// The CA's certificate, DER.
    pub authority: Vec<u8>,
    /// Its own, DER.
    pub certificate: Vec<u8>,
    /// Its key, PKCS #8, DER.
    pub key: Zeroizing<Vec<u8>>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Credentials({})", self.identity)
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CredentialsFile {
    v: u32,
    name: String,
    mgmt: String,
    authority: String,
    certificate: String,
    key: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RevokedFile {
    v: u32,
    number: u64,
    serials: Vec<String>,
}

/// The folder of a data folder.
#[must_use]
pub fn of(data: &Path) -> PathBuf {
    data.join("trust")
}

fn file(path: &Path) -> impl FnOnce(io::Error) -> TrustError {
    move |e| TrustError::File(path.display().to_string(), e)
}

fn content(path: &Path, why: impl ToString) -> TrustError {
    TrustError::Content(path.display().to_string(), why.to_string())
}

fn read(path: &Path) -> Result<Option<Zeroizing<String>>, TrustError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(Zeroizing::new(text))),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(file(path)(e)),
    }
}

/// Who this host is; `None` if it has not joined.
///
/// # Errors
/// If the file is there and cannot be used.
pub fn load(dir: &Path) -> Result<Option<Credentials>, TrustError> {
    let path = dir.join("credentials");
    let Some(text) = read(&path)? else { return Ok(None) };
    let found: CredentialsFile = serde_json::from_str(&text).map_err(|e| content(&path, e))?;
    if found.v != VERSION {
        return Err(content(&path, format!("version {}", found.v)));
    }
    let certificate =
        |text: &str| CertificateDer::from_pem_slice(text.as_bytes()).map(|c| c.to_vec()).map_err(|e| content(&path, e));
    let own = certificate(&found.certificate)?;
    let identity = Claims::of(&own).and_then(|c| c.identity).ok_or_else(|| content(&path, "it names nobody"))?;
    let key_text = Zeroizing::new(found.key);
    let key = PrivateKeyDer::from_pem_slice(key_text.as_bytes()).map_err(|e| content(&path, e))?;
    Ok(Some(Credentials {
        identity,
        name: found.name,
        mgmt: found.mgmt,
        authority: certificate(&found.authority)?,
        certificate: own,
        key: Zeroizing::new(key.secret_der().to_vec()),
    }))
}

/// Keeps them, durably and whole.
///
/// # Errors
/// If the file cannot be written.
pub fn store(dir: &Path, credentials: &Credentials) -> Result<(), TrustError> {
    let path = dir.join("credentials");
    let out = CredentialsFile {
        v: VERSION,
        name: credentials.name.clone(),
        mgmt: credentials.mgmt.clone(),
        authority: pem("CERTIFICATE", &credentials.authority),
        certificate: pem("CERTIFICATE", &credentials.certificate),
        key: pem("PRIVATE KEY", &credentials.key),
    };
    let text = serde_json::to_string_pretty(&out).map(Zeroizing::new).map_err(|e| content(&path, e))?;
    drop(Zeroizing::new(out.key));
    crashsafe::create_folders(dir).and_then(|()| crashsafe::replace(&path, text.as_bytes())).map_err(file(&path))
}

/// The newest list of revocations that came; an empty one if none did.
///
/// # Errors
/// If the file is there and cannot be used.
pub fn load_revoked(dir: &Path) -> Result<Revocations, TrustError> {
    let path = dir.join("revoked");
    let Some(text) = read(&path)? else { return Ok(Revocations::default()) };
    let found: RevokedFile = serde_json::from_str(&text).map_err(|e| content(&path, e))?;
    if found.v != VERSION {
        return Err(content(&path, format!("version {}", found.v)));
    }
    let serials: Option<Vec<Vec<u8>>> = found.serials.iter().map(|s| unhex(s)).collect();
    let serials = serials.ok_or_else(|| content(&path, "a serial number is none"))?;
    Ok(Revocations { number: found.number, serials })
}

/// Keeps a list, durably.
///
/// # Errors
/// If the file cannot be written.
pub fn store_revoked(dir: &Path, list: &Revocations) -> Result<(), TrustError> {
    let path = dir.join("revoked");
    let out = RevokedFile { v: VERSION, number: list.number, serials: list.serials.iter().map(|s| hex(s)).collect() };
    let text = serde_json::to_string(&out).map_err(|e| content(&path, e))?;
    crashsafe::create_folders(dir).and_then(|()| crashsafe::replace(&path, text.as_bytes())).map_err(file(&path))
}

/// Refuses a role's folder that belongs to another role.
///
/// # Errors
/// [`TrustError::Refused`] with what it is.
pub fn expect_role(credentials: &Credentials, role: Role) -> Result<(), TrustError> {
    if credentials.identity.role == role {
        return Ok(());
    }
    Err(TrustError::Refused(format!(
        "this data folder has joined as {}, not as {role}: use another folder",
        credentials.identity.role
    )))
}

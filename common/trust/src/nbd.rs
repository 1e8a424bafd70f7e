//! TLS of NBD: the files that QEMU, libnbd and nbdkit use (`ca-cert.pem`, `server-cert.pem`, `server-key.pem`, `client-cert.pem`,
//! `client-key.pem` in one folder), whoever made them.
//!
//! `afterimage mgmt certify` makes them from mgmt's CA. A certificate of that CA says what it is for, so one of an agent or
//! appliance does not open a disk; one of a CA that the user brought says nothing of the kind, and that CA is believed.

use crate::csr::crypto;
use crate::identity::Role;
use crate::trust::server_config;
use crate::verify::{Anchor, Expect, Guard};
use crate::{Trust, TrustError, provider};
use rustls::client::WantsClientCert;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ClientConnection, ConfigBuilder, RootCertStore, ServerConnection};
use std::path::Path;
use std::sync::Arc;

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TrustError> {
    let bad = |e: rustls::pki_types::pem::Error| TrustError::Content(path.display().to_string(), e.to_string());
    let found: Vec<_> = CertificateDer::pem_file_iter(path).map_err(bad)?.collect::<Result<_, _>>().map_err(bad)?;
    if found.is_empty() {
        return Err(TrustError::Content(path.display().to_string(), "no certificate is in it".to_owned()));
    }
    Ok(found)
}

fn key(path: &Path) -> Result<PrivateKeyDer<'static>, TrustError> {
    PrivateKeyDer::from_pem_file(path).map_err(|e| TrustError::Content(path.display().to_string(), e.to_string()))
}

/// TLS of an NBD server.
pub struct NbdServerTls {
    key: Arc<CertifiedKey>,
    authority: Vec<u8>,
    trust: Option<Arc<Trust>>,
}

impl std::fmt::Debug for NbdServerTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NbdServerTls")
    }
}

impl NbdServerTls {
    /// From a folder. `trust` knows what was revoked.
    ///
    /// # Errors
    /// If a file is not there or does not fit.
    pub fn load(dir: &Path, trust: Option<Arc<Trust>>) -> Result<NbdServerTls, TrustError> {
        let authority = certificates(&dir.join("ca-cert.pem"))?.swap_remove(0).to_vec();
        let chain = certificates(&dir.join("server-cert.pem"))?;
        let key = CertifiedKey::from_der(chain, key(&dir.join("server-key.pem"))?, &provider()).map_err(crypto)?;
        Ok(NbdServerTls { key: Arc::new(key), authority, trust })
    }

    /// One connection, and who judges its client.
    ///
    /// # Errors
    /// If the library refuses.
    pub fn begin(&self) -> Result<(ServerConnection, Arc<Guard>), TrustError> {
        let expect = Expect { roles: vec![Role::Nbd], vault: None, foreign: true };
        let revoked = self.trust.as_ref().map_or_else(Arc::default, |t| t.revoked_serials());
        let guard = Guard::new(Anchor::Known(self.authority.clone()), expect, revoked);
        let config = server_config(Some(Arc::clone(&guard)), Arc::clone(&self.key), &[])?;
        Ok((ServerConnection::new(config).map_err(crypto)?, guard))
    }
}

fn believing(dir: &Path) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, TrustError> {
    let mut roots = RootCertStore::empty();
    for authority in certificates(&dir.join("ca-cert.pem"))? {
        roots.add(authority).map_err(crypto)?;
    }
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(crypto)?;
    Ok(builder.with_root_certificates(roots))
}

/// TLS of an NBD client.
#[derive(Clone)]
pub struct NbdClientTls(Arc<ClientConfig>);

impl std::fmt::Debug for NbdClientTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NbdClientTls")
    }
}

impl NbdClientTls {
    /// From a folder.
    ///
    /// # Errors
    /// If a file is not there or does not fit.
    pub fn load(dir: &Path) -> Result<NbdClientTls, TrustError> {
        let chain = certificates(&dir.join("client-cert.pem"))?;
        let key = key(&dir.join("client-key.pem"))?;
        Ok(Self::with(believing(dir)?.with_client_auth_cert(chain, key).map_err(crypto)?))
    }

    /// Without a certificate, as for servers that believe everybody.
    ///
    /// # Errors
    /// If the CA's is not there or does not fit.
    pub fn without_certificate(dir: &Path) -> Result<NbdClientTls, TrustError> {
        Ok(Self::with(believing(dir)?.with_no_client_auth()))
    }

    fn with(mut config: ClientConfig) -> NbdClientTls {
        config.resumption = rustls::client::Resumption::disabled();
        NbdClientTls(Arc::new(config))
    }

    /// One connection to the server of this name or address, which its certificate must have.
    ///
    /// # Errors
    /// If the name is none.
    pub fn begin(&self, host: &str) -> Result<ClientConnection, TrustError> {
        let name = ServerName::try_from(host.to_owned()).map_err(crypto)?;
        ClientConnection::new(Arc::clone(&self.0), name).map_err(crypto)
    }
}

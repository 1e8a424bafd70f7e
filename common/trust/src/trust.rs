//! Credentials in use.

use crate::csr::crypto;
use crate::folder::{self, Credentials};
use crate::identity::{Claims, Identity, Role};
use crate::verify::{Anchor, Expect, Guard};
use crate::{TrustError, provider};
use afterimage_format::coord::Revocations;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, ServerConfig};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

/// What is heard of a new list of revocations.
type Listener = Box<dyn Fn() + Send + Sync>;

struct Now {
    credentials: Arc<Credentials>,
    key: Arc<CertifiedKey>,
}

struct Revoked {
    number: u64,
    serials: Arc<BTreeSet<Vec<u8>>>,
}

/// The credentials of this process, shared by all of its connections.
pub struct Trust {
    dir: PathBuf,
    now: RwLock<Now>,
    revoked: RwLock<Revoked>,
    listeners: RwLock<Vec<Listener>>,
}

impl std::fmt::Debug for Trust {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Trust({})", self.identity())
    }
}

/// A key with its certificate, for TLS.
///
/// # Errors
/// If they do not fit.
pub fn certified(certificates: Vec<Vec<u8>>, key: &[u8]) -> Result<CertifiedKey, TrustError> {
    let chain = certificates.into_iter().map(CertificateDer::from).collect();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.to_vec()));
    CertifiedKey::from_der(chain, key, &provider()).map_err(crypto)
}

fn prepare(credentials: Credentials) -> Result<Now, TrustError> {
    let key = certified(vec![credentials.certificate.clone()], &credentials.key)?;
    Ok(Now { credentials: Arc::new(credentials), key: Arc::new(key) })
}

/// TLS settings of a client.
///
/// # Errors
/// If the library refuses them.
pub fn client_config(
    guard: Arc<Guard>,
    key: Option<Arc<CertifiedKey>>,
    alpn: &[&[u8]],
) -> Result<Arc<ClientConfig>, TrustError> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(crypto)?
        .dangerous()
        .with_custom_certificate_verifier(guard);
    let mut config = match key {
        Some(key) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key))),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|a| a.to_vec()).collect();
    config.enable_sni = false;
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

/// TLS settings of a server. Without a guard it asks for no certificate.
///
/// # Errors
/// If the library refuses them.
pub fn server_config(
    guard: Option<Arc<Guard>>,
    key: Arc<CertifiedKey>,
    alpn: &[&[u8]],
) -> Result<Arc<ServerConfig>, TrustError> {
    let builder = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(crypto)?;
    let builder = match guard {
        Some(guard) => builder.with_client_cert_verifier(guard),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
    config.alpn_protocols = alpn.iter().map(|a| a.to_vec()).collect();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

impl Trust {
    /// What a data folder has; `None` if it has not joined.
    ///
    /// # Errors
    /// If something is there and cannot be used.
    pub fn load(data: &Path) -> Result<Option<Arc<Trust>>, TrustError> {
        let dir = folder::of(data);
        let Some(credentials) = folder::load(&dir)? else { return Ok(None) };
        let list = folder::load_revoked(&dir)?;
        let revoked = Revoked { number: list.number, serials: Arc::new(list.serials.into_iter().collect()) };
        Ok(Some(Arc::new(Trust {
            dir,
            now: RwLock::new(prepare(credentials)?),
            revoked: RwLock::new(revoked),
            listeners: RwLock::default(),
        })))
    }

    /// The credentials as they are now.
    #[must_use]
    pub fn credentials(&self) -> Arc<Credentials> {
        Arc::clone(&self.now.read().unwrap_or_else(PoisonError::into_inner).credentials)
    }

    /// Who this is.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.credentials().identity
    }

    /// The certificate in use.
    #[must_use]
    pub fn claims(&self) -> Option<Claims> {
        Claims::of(&self.credentials().certificate)
    }

    fn key(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.now.read().unwrap_or_else(PoisonError::into_inner).key)
    }

    /// Somebody to judge one connection.
    #[must_use]
    pub fn guard(&self, expect: Expect) -> Arc<Guard> {
        Guard::new(Anchor::Known(self.credentials().authority.clone()), expect, self.revoked_serials())
    }

    /// Settings for one connection that this host makes, and who judges the peer.
    ///
    /// # Errors
    /// If the library refuses them.
    pub fn client(&self, expect: Expect, alpn: &[u8]) -> Result<(Arc<ClientConfig>, Arc<Guard>), TrustError> {
        let guard = self.guard(expect);
        Ok((client_config(Arc::clone(&guard), Some(self.key()), &[alpn])?, guard))
    }

    /// Settings for one connection that this host accepts, and who judges the peer.
    ///
    /// # Errors
    /// If the library refuses them.
    pub fn server(&self, expect: Expect, alpn: &[&[u8]]) -> Result<(Arc<ServerConfig>, Arc<Guard>), TrustError> {
        let guard = self.guard(expect);
        Ok((server_config(Some(Arc::clone(&guard)), self.key(), alpn)?, guard))
    }

    /// Uses a new certificate with its key from the next connection on, once it is durable.
    ///
    /// # Errors
    /// If it does not fit, names somebody else, or cannot be kept.
    pub fn renew(&self, certificate: Vec<u8>, key: zeroize::Zeroizing<Vec<u8>>) -> Result<(), TrustError> {
        let old = self.credentials();
        let claims = Claims::of(&certificate).ok_or_else(|| crypto("mgmt sent what is no certificate"))?;
        if claims.identity != Some(old.identity) {
            return Err(TrustError::Refused(format!(
                "mgmt sent a certificate for {claims}, and this is {}",
                old.identity
            )));
        }
        let new = prepare(Credentials { certificate, key, ..(*old).clone() })?;
        folder::store(&self.dir, &new.credentials)?;
        *self.now.write().unwrap_or_else(PoisonError::into_inner) = new;
        Ok(())
    }

    /// The number of the list of revocations in use.
    #[must_use]
    pub fn revoked_number(&self) -> u64 {
        self.revoked.read().unwrap_or_else(PoisonError::into_inner).number
    }

    pub(crate) fn revoked_serials(&self) -> Arc<BTreeSet<Vec<u8>>> {
        Arc::clone(&self.revoked.read().unwrap_or_else(PoisonError::into_inner).serials)
    }

    /// Whether a certificate was revoked.
    #[must_use]
    pub fn is_revoked(&self, serial: &[u8]) -> bool {
        self.revoked_serials().contains(serial)
    }

    /// Uses a new list, once it is durable. An older one than that in use is left alone.
    ///
    /// # Errors
    /// If it cannot be kept; it is used all the same.
    pub fn revoke(&self, list: Revocations) -> Result<(), TrustError> {
        if list.number <= self.revoked_number() {
            return Ok(());
        }
        let kept = folder::store_revoked(&self.dir, &list);
        let new = Revoked { number: list.number, serials: Arc::new(list.serials.into_iter().collect()) };
        *self.revoked.write().unwrap_or_else(PoisonError::into_inner) = new;
        for listener in self.listeners.read().unwrap_or_else(PoisonError::into_inner).iter() {
            listener();
        }
        kept
    }

    /// Calls this after each new list.
    pub fn on_revoked(&self, listener: Listener) {
        self.listeners.write().unwrap_or_else(PoisonError::into_inner).push(listener);
    }

    /// Whom an agent's or an appliance's data connection is for: the other side of the same vault.
    #[must_use]
    pub fn data_peer(&self) -> Expect {
        let own = self.identity();
        let role = if own.role == Role::Agent { Role::Appliance } else { Role::Agent };
        Expect::role(role, Some(own.vault))
    }
}

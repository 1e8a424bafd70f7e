//! The certificate that the API shows: mgmt's own, with the names under which clients look for it, such as curl and Prometheus.

use super::Office;
use crate::authority::Subject;
use afterimage_trust::{TrustError, csr, trust};
use rustls::ServerConfig;
use rustls::sign::CertifiedKey;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

/// What the API needs of TLS.
#[derive(Debug, Default)]
pub(super) struct Web {
    hosts: Vec<String>,
    key: Option<(Arc<CertifiedKey>, Instant)>,
}

impl Office {
    /// Says under which host names and addresses the API is reached.
    pub fn set_api_hosts(&self, hosts: Vec<String>) {
        *self.web.lock().unwrap_or_else(PoisonError::into_inner) = Web { hosts, key: None };
    }

    /// TLS settings for one connection. The certificate lives in memory only, and is made anew in time.
    ///
    /// # Errors
    /// If a host is neither a name nor an address, or the system has no random numbers.
    pub fn api_config(&self) -> Result<Arc<ServerConfig>, TrustError> {
        let mut web = self.web.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = web.key.as_ref().filter(|(_, made)| made.elapsed() < self.life / 3).map(|(key, _)| Arc::clone(key));
        let key = match fresh {
            Some(key) => key,
            None => {
                let fresh = csr::fresh()?;
                let subject = Subject { identity: &self.identity, name: "mgmt", hosts: &web.hosts, life: self.life };
                let certificate = self.authority.issue(&fresh.request, &subject)?;
                let chain = vec![certificate, self.authority.certificate().to_vec()];
                let key = Arc::new(trust::certified(chain, &fresh.key)?);
                web.key = Some((Arc::clone(&key), Instant::now()));
                key
            }
        };
        trust::server_config(None, key, &[b"http/1.1"])
    }
}

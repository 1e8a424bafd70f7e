//! Who a peer is, and the encryption between hosts.
//!
//! mgmt has a certificate authority of its own. A certificate says what its owner is ([`identity`]); owners keep it with its
//! key in one file ([`folder`]). [`Trust`] is that file in use: it makes the TLS settings of each connection, holds what was
//! revoked, and takes a new certificate over while connections go on. [`stream`] is a TLS connection for two threads. What is
//! said to mgmt is in [`join`] and [`session`].
//!
//! TLS is 1.3 only, from rustls on the ring provider. There are no tickets and there is no resumption: every connection shows
//! its certificate, so a revoked one does not live on.

pub mod csr;
pub mod folder;
pub mod identity;
pub mod join;
pub mod messages;
pub mod nbd;
pub mod probe;
pub mod session;
pub mod stream;
pub mod token;
pub mod verify;

pub mod trust;

pub use identity::{Identity, Role};
pub use trust::Trust;

use rustls::crypto::CryptoProvider;
use std::sync::{Arc, LazyLock};
use thiserror::Error;

/// The protocol of the data port.
pub const ALPN_DATA: &[u8] = b"afterimage-data/1";
/// The protocol of a measurement at the same port: see [`probe`].
pub const ALPN_PROBE: &[u8] = b"afterimage-probe/1";

/// Why credentials cannot be used or had.
#[derive(Debug, Error)]
pub enum TrustError {
    /// A file.
    #[error("{0}: {1}")]
    File(String, std::io::Error),
    /// A file with something else in it.
    #[error("{0} is damaged or of another version ({1}): join again with a new token, or put a copy of it back")]
    Content(String, String),
    /// A key or certificate.
    #[error("{0}")]
    Crypto(String),
    /// The peer.
    #[error("{0}")]
    Refused(String),
    /// The connection.
    #[error("{0}")]
    Connection(#[from] std::io::Error),
}

/// The one provider of cryptography. The smaller AES comes first: both are out of reach, and it costs less.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
        use rustls::crypto::ring::{cipher_suite as suite, default_provider};
        let suites = vec![
            suite::TLS13_AES_128_GCM_SHA256,
            suite::TLS13_AES_256_GCM_SHA384,
            suite::TLS13_CHACHA20_POLY1305_SHA256,
        ];
        Arc::new(CryptoProvider { cipher_suites: suites, ..default_provider() })
    });
    Arc::clone(&PROVIDER)
}

//! Keys and requests for certificates. A key is made where it is used and never leaves that host.

use crate::TrustError;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use zeroize::Zeroizing;

/// A private key and the request for its certificate.
pub struct Fresh {
    /// The key, PKCS #8, DER.
    pub key: Zeroizing<Vec<u8>>,
    /// The request, PKCS #10, DER.
    pub request: Vec<u8>,
}

impl std::fmt::Debug for Fresh {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Fresh")
    }
}

pub(crate) fn crypto(e: impl std::fmt::Display) -> TrustError {
    TrustError::Crypto(e.to_string())
}

/// A new key (ECDSA on P-256, which every TLS library knows).
///
/// # Errors
/// If the system has no random numbers.
pub fn fresh() -> Result<Fresh, TrustError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(crypto)?;
    // Who it is for is not the request's to say: mgmt knows.
    let request = CertificateParams::default().serialize_request(&key).map_err(crypto)?;
    Ok(Fresh { key: Zeroizing::new(key.serialize_der()), request: request.der().to_vec() })
}

/// A DER block as PEM.
#[must_use]
pub fn pem(label: &str, der: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(der.len() * 4 / 3 + 80);
    text.push_str(&format!("-----BEGIN {label}-----\n"));
    for line in der.chunks(48) {
        for group in line.chunks(3) {
            let word = group.iter().enumerate().fold(0u32, |w, (i, b)| w | u32::from(*b) << (16 - 8 * i));
            for i in 0..4 {
                let digit = DIGITS[(word >> (18 - 6 * i) & 63) as usize];
                text.push(if i <= group.len() { char::from(digit) } else { '=' });
            }
        }
        text.push('\n');
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::pki_types::PrivateKeyDer;
    use rustls::pki_types::pem::PemObject;

    #[test]
    fn what_is_written_as_pem_is_read_again() {
        for len in 0..100u8 {
            let der: Vec<u8> = (0..len).collect();
            let text = pem("CERTIFICATE", &der);
            let back = rustls::pki_types::CertificateDer::from_pem_slice(text.as_bytes());
            assert_eq!(back.map(|c| c.to_vec()).ok(), Some(der), "{text}");
        }
        let key = fresh().unwrap().key;
        let text = pem("PRIVATE KEY", &key);
        assert_eq!(PrivateKeyDer::from_pem_slice(text.as_bytes()).unwrap().secret_der(), &key[..]);
    }
}

//! Tokens of the API: `aia1.SECRET.PIN`, both 64 hexadecimal digits.
//!
//! The secret is 256 random bits, of which mgmt keeps the SHA-256. The pin is the SHA-256 of mgmt's CA certificate, so that a client
//! needs nothing else to know whom it speaks to; it is not sent. `Authorization: Bearer aia1.SECRET`, with or without the pin.

use afterimage_trust::identity::{hex, unhex};
use afterimage_trust::token::Token;
use std::fmt;
use std::str::FromStr;
use thiserror::Error;
use zeroize::Zeroize;

const PREFIX: &str = "aia1";

/// A token. No part of it is shown by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey {
    /// What mgmt knows the hash of.
    secret: [u8; 32],
    /// SHA-256 of mgmt's CA certificate (DER), if the text had it.
    pub pin: Option<[u8; 32]>,
}

/// Text that is no token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error(
    "this is no token of the API: it has the form aia1.SECRET.PIN, as `afterimage mgmt api-token create` printed it"
)]
pub struct BadKey;

impl ApiKey {
    /// A new one for the CA with this certificate.
    ///
    /// # Errors
    /// If the system has no random numbers.
    pub fn new(authority: &[u8]) -> Result<ApiKey, afterimage_trust::TrustError> {
        let token = Token::new(authority)?;
        Ok(ApiKey { secret: token.secret, pin: Some(token.pin) })
    }

    /// The hash under which mgmt keeps it.
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        Token::hash(&self.secret)
    }

    /// What is said to mgmt.
    #[must_use]
    pub fn bearer(&self) -> String {
        format!("{PREFIX}.{}", hex(&self.secret))
    }

    /// The text for the user.
    #[must_use]
    pub fn text(&self) -> String {
        self.pin.map_or_else(|| self.bearer(), |pin| format!("{}.{}", self.bearer(), hex(&pin)))
    }
}

impl FromStr for ApiKey {
    type Err = BadKey;

    fn from_str(text: &str) -> Result<ApiKey, BadKey> {
        let bytes = |t: &str| unhex(t).and_then(|b| <[u8; 32]>::try_from(b).ok()).ok_or(BadKey);
        let parts: Vec<&str> = text.trim().split('.').collect();
        match parts.as_slice() {
            [PREFIX, secret] => Ok(ApiKey { secret: bytes(secret)?, pin: None }),
            [PREFIX, secret, pin] => Ok(ApiKey { secret: bytes(secret)?, pin: Some(bytes(pin)?) }),
            _ => Err(BadKey),
        }
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey")
    }
}

impl Drop for ApiKey {
    fn drop(&mut self) {
        self.secret.zeroize();
    }
}

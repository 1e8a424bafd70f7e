//! Tokens, with which a host joins: `aij1.SECRET.PIN`, both 64 hexadecimal digits.
//!
//! The secret is 256 random bits; mgmt keeps only its SHA-256. The pin is the SHA-256 of mgmt's CA certificate, by which the
//! joining host knows whom it tells the secret to.

use crate::identity::{hex, unhex};
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom, SystemRandom};
use std::fmt;
use std::str::FromStr;
use thiserror::Error;
use zeroize::Zeroize;

const PREFIX: &str = "aij1";

/// A token. It is a secret: no part of it is shown by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// What mgmt knows the hash of.
    pub secret: [u8; 32],
    /// SHA-256 of mgmt's CA certificate (DER).
    pub pin: [u8; 32],
}

/// Text that is no token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("this is no token: it has the form aij1.SECRET.PIN, as `afterimage mgmt token create` printed it")]
pub struct BadToken;

/// SHA-256.
#[must_use]
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest(&SHA256, bytes).as_ref());
    out
}

impl Token {
    /// A new one for the CA with this certificate.
    ///
    /// # Errors
    /// If the system has no random numbers.
    pub fn new(authority: &[u8]) -> Result<Token, crate::TrustError> {
        let mut secret = [0; 32];
        SystemRandom::new()
            .fill(&mut secret)
            .map_err(|_| crate::TrustError::Crypto("the system gives no random numbers".into()))?;
        Ok(Token { secret, pin: sha256(authority) })
    }

    /// The hash under which mgmt keeps a secret.
    #[must_use]
    pub fn hash(secret: &[u8; 32]) -> [u8; 32] {
        sha256(secret)
    }

    /// The text for the user.
    #[must_use]
    pub fn text(&self) -> String {
        format!("{PREFIX}.{}.{}", hex(&self.secret), hex(&self.pin))
    }
}

impl FromStr for Token {
    type Err = BadToken;

    fn from_str(text: &str) -> Result<Token, BadToken> {
        let mut parts = text.trim().split('.');
        let (Some(PREFIX), Some(secret), Some(pin), None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(BadToken);
        };
        let bytes = |t: &str| unhex(t).and_then(|b| <[u8; 32]>::try_from(b).ok()).ok_or(BadToken);
        Ok(Token { secret: bytes(secret)?, pin: bytes(pin)? })
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        self.secret.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_as_it_was_printed_and_never_shown() {
        let token = Token::new(b"authority").unwrap();
        assert_eq!(format!(" {}\n", token.text()).parse(), Ok(token.clone()));
        assert_eq!(format!("{token:?}"), "Token");
        assert_ne!(token.secret, Token::new(b"authority").unwrap().secret);
        for bad in
            ["", "aij1", &token.text()[1..], &token.text().replace("aij1", "aij2"), &format!("{}.", token.text())]
        {
            assert_eq!(bad.parse::<Token>(), Err(BadToken), "{bad}");
        }
    }
}

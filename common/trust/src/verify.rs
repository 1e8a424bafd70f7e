//! Whether to believe a peer's certificate.
//!
//! A [`Guard`] judges one connection. The peer's certificate must be signed by the one CA that we know, be valid now, not be
//! revoked, be made for this use, and name somebody whom this door is for. What it found, and why it said no, it keeps: the log
//! names both.

use crate::identity::{Claims, Identity, Role};
use crate::token::sha256;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use uuid::Uuid;
use webpki::{EndEntityCert, KeyUsage};

/// The CA that a certificate must come from.
#[derive(Debug, Clone)]
pub enum Anchor {
    /// This one (DER).
    Known(Vec<u8>),
    /// The one that the peer shows, if it has this SHA-256.
    Pinned([u8; 32]),
}

/// Whom a door is for.
#[derive(Debug, Clone)]
pub struct Expect {
    /// What it may be.
    pub roles: Vec<Role>,
    /// The vault that it must have to do with, if that matters here.
    pub vault: Option<Uuid>,
    /// Whether certificates that name nobody of ours pass: those of a CA that the user brought.
    pub foreign: bool,
}

impl Expect {
    /// One role.
    #[must_use]
    pub fn role(role: Role, vault: Option<Uuid>) -> Expect {
        Expect { roles: vec![role], vault, foreign: false }
    }

    fn admits(&self, claims: &Claims) -> Result<(), String> {
        let Some(identity) = &claims.identity else {
            return if self.foreign { Ok(()) } else { Err("it names nobody".to_owned()) };
        };
        if !self.roles.contains(&identity.role) {
            let wanted: Vec<&str> = self.roles.iter().map(|r| r.as_str()).collect();
            return Err(format!("it is for {}, and {} is asked for here", identity.role, wanted.join(" or ")));
        }
        match self.vault {
            Some(vault) if vault != identity.vault => Err(format!("it is for another vault ({})", identity.vault)),
            _ => Ok(()),
        }
    }
}

/// What a guard found.
#[derive(Debug, Clone, Default)]
pub struct Verdict {
    /// Whom the certificate claims to be of, believed or not.
    pub claims: Option<Claims>,
    /// Who it is, if it was believed.
    pub peer: Option<Identity>,
    /// Why it was not.
    pub refused: Option<String>,
    /// The CA that the peer showed and that was believed, DER.
    pub authority: Option<Vec<u8>>,
}

/// See the module.
#[derive(Debug)]
pub struct Guard {
    anchor: Anchor,
    expect: Expect,
    revoked: Arc<BTreeSet<Vec<u8>>>,
    algorithms: WebPkiSupportedAlgorithms,
    verdict: Mutex<Verdict>,
}

impl Guard {
    /// For one connection.
    #[must_use]
    pub fn new(anchor: Anchor, expect: Expect, revoked: Arc<BTreeSet<Vec<u8>>>) -> Arc<Guard> {
        let algorithms = crate::provider().signature_verification_algorithms;
        Arc::new(Guard { anchor, expect, revoked, algorithms, verdict: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Verdict> {
        self.verdict.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it found.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        self.lock().clone()
    }

    fn judge(
        &self,
        own: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
        usage: KeyUsage,
    ) -> Result<(), Error> {
        let no = |e: CertificateError, why: String| {
            self.lock().refused = Some(why);
            Err(Error::InvalidCertificate(e))
        };
        let Some(claims) = Claims::of(own) else {
            return no(CertificateError::BadEncoding, "its certificate cannot be read".to_owned());
        };
        self.lock().claims = Some(claims.clone());
        let authority = match &self.anchor {
            Anchor::Known(der) => der.clone(),
            Anchor::Pinned(pin) => match others.iter().find(|c| sha256(c) == *pin) {
                Some(der) => der.to_vec(),
                None => {
                    let why =
                        "it does not have the CA that the token names: it is another mgmt, or somebody in between";
                    return no(CertificateError::UnknownIssuer, why.to_owned());
                }
            },
        };
        if let Err(e) = self.chain(own, &authority, now, usage) {
            let (error, why) = reason(&e, &claims, now);
            return no(error, why);
        }
        if self.revoked.contains(&claims.serial) {
            return no(CertificateError::Revoked, "its certificate was revoked".to_owned());
        }
        if let Err(why) = self.expect.admits(&claims) {
            return no(CertificateError::ApplicationVerificationFailure, why);
        }
        let mut verdict = self.lock();
        verdict.peer = claims.identity;
        verdict.authority = Some(authority);
        Ok(())
    }

    fn chain(
        &self,
        own: &CertificateDer<'_>,
        authority: &[u8],
        now: UnixTime,
        usage: KeyUsage,
    ) -> Result<(), webpki::Error> {
        let authority = CertificateDer::from(authority);
        let anchor = webpki::anchor_from_trusted_cert(&authority)?;
        let end = EndEntityCert::try_from(own)?;
        // No intermediates: the CA signs everybody itself.
        end.verify_for_usage(self.algorithms.all, &[anchor], &[], now, usage, None, None).map(drop)
    }
}

fn reason(e: &webpki::Error, claims: &Claims, now: UnixTime) -> (CertificateError, String) {
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    match e {
        webpki::Error::CertExpired { .. } => {
            let hours = (now - claims.not_after) / 3600;
            (CertificateError::Expired, format!("its certificate expired {hours} h ago by this host's clock"))
        }
        webpki::Error::CertNotValidYet { .. } => {
            let hours = (claims.not_before - now) / 3600;
            let why = format!("its certificate is valid in {hours} h by this host's clock: is the clock right?");
            (CertificateError::NotValidYet, why)
        }
        webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey => {
            (CertificateError::UnknownIssuer, "its certificate is of another CA".to_owned())
        }
        e => (CertificateError::ApplicationVerificationFailure, format!("its certificate does not fit: {e}")),
    }
}

/// What both traits of rustls ask for in the same words.
macro_rules! tls13_only {
    () => {
        fn verify_tls12_signature(
            &self,
            _message: &[u8],
            _cert: &CertificateDer<'_>,
            _dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Err(Error::General("TLS 1.2 is not spoken".to_owned()))
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls13_signature(message, cert, dss, &self.algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.algorithms.supported_schemes()
        }
    };
}

impl ServerCertVerifier for Guard {
    fn verify_server_cert(
        &self,
        own: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        // Not by its host name: by what it is.
        self.judge(own, others, now, KeyUsage::server_auth()).map(|()| ServerCertVerified::assertion())
    }

    tls13_only!();
}

impl ClientCertVerifier for Guard {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        own: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.judge(own, others, now, KeyUsage::client_auth()).map(|()| ClientCertVerified::assertion())
    }

    tls13_only!();
}

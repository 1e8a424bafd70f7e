//! The certificate authority of mgmt: one key, which signs everybody's certificate itself.
//!
//! `authority.pem` (mode 0600) holds the key and the CA's own certificate in one file. Whoever has it can be anybody.

use afterimage_base::crashsafe;
use afterimage_trust::identity::{Claims, Identity, Role};
use afterimage_trust::token::sha256;
use afterimage_trust::{TrustError, csr};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, SerialNumber,
};
use ring::rand::{SecureRandom, SystemRandom};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer};
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;
use time::OffsetDateTime;
use zeroize::Zeroizing;

const DAY: Duration = Duration::from_secs(86_400);
/// The CA itself. Nobody has to outlive it.
const AUTHORITY_LIFE: Duration = Duration::from_secs(30 * 365 * 86_400);
/// Certificates, if nothing else is said. They are renewed when a third of it is over.
pub const LIFE: Duration = Duration::from_secs(365 * 86_400);

/// See the module.
pub struct Authority {
    certificate: Vec<u8>,
    issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Authority")
    }
}

/// What a certificate is to say.
#[derive(Debug)]
pub struct Subject<'a> {
    /// Whose it is.
    pub identity: &'a Identity,
    /// The name, for people.
    pub name: &'a str,
    /// Host names and addresses, for clients that look at those (NBD).
    pub hosts: &'a [String],
    /// How long it counts.
    pub life: Duration,
}

fn crypto(e: impl std::fmt::Display) -> TrustError {
    TrustError::Crypto(e.to_string())
}

fn validity(params: &mut CertificateParams, life: Duration) {
    let now = OffsetDateTime::now_utc();
    // Hosts whose clock is behind take it all the same.
    params.not_before = now - DAY.min(life / 10);
    params.not_after = now + life;
}

impl Authority {
    /// A new one.
    ///
    /// # Errors
    /// If the system has no random numbers.
    pub fn create(path: &Path) -> Result<Authority, TrustError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(crypto)?;
        let mut params = CertificateParams::default();
        let mark = afterimage_trust::identity::hex(&sha256(key.public_key_raw())[..4]);
        params.distinguished_name.push(DnType::CommonName, format!("Afterimage CA {mark}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.serial_number = Some(serial()?);
        validity(&mut params, AUTHORITY_LIFE);
        let certificate = params.self_signed(&key).map_err(crypto)?.der().to_vec();
        let key_pem = Zeroizing::new(csr::pem("PRIVATE KEY", &Zeroizing::new(key.serialize_der())));
        let text = Zeroizing::new(format!("{}{}", &*key_pem, csr::pem("CERTIFICATE", &certificate)));
        crashsafe::replace(path, text.as_bytes()).map_err(|e| TrustError::File(path.display().to_string(), e))?;
        Self::new(certificate, key)
    }

    fn new(certificate: Vec<u8>, key: KeyPair) -> Result<Authority, TrustError> {
        let issuer = Issuer::from_ca_cert_der(&CertificateDer::from(certificate.as_slice()), key).map_err(crypto)?;
        Ok(Authority { certificate, issuer })
    }

    /// The one in the file.
    ///
    /// # Errors
    /// If it cannot be read, or others can read it.
    pub fn load(path: &Path) -> Result<Authority, TrustError> {
        use std::os::unix::fs::PermissionsExt;
        let name = || path.display().to_string();
        let bad = |e: String| TrustError::Content(name(), e);
        let meta = std::fs::metadata(path).map_err(|e| TrustError::File(name(), e))?;
        if meta.permissions().mode() & 0o077 != 0 {
            return Err(TrustError::Refused(format!(
                "{} can be read by others than its owner: if they may have it, the CA is lost (docs/security.md); else chmod 600",
                name()
            )));
        }
        let text = Zeroizing::new(std::fs::read_to_string(path).map_err(|e| TrustError::File(name(), e))?);
        let certificate = CertificateDer::from_pem_slice(text.as_bytes()).map_err(|e| bad(e.to_string()))?;
        let key = KeyPair::from_pem(&text).map_err(|e| bad(e.to_string()))?;
        Self::new(certificate.to_vec(), key)
    }

    /// Its certificate, DER.
    #[must_use]
    pub fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    /// Its mark, by which tokens and the catalogue name it.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        afterimage_trust::identity::hex(&sha256(&self.certificate))
    }

    /// A certificate for the key of a request, of which nothing else is looked at.
    ///
    /// # Errors
    /// If the request is none, or not signed by its own key.
    pub fn issue(&self, request: &[u8], subject: &Subject<'_>) -> Result<Vec<u8>, TrustError> {
        let der = CertificateSigningRequestDer::from(request);
        let mut request = CertificateSigningRequestParams::from_der(&der)
            .map_err(|e| TrustError::Refused(format!("the request for a certificate is none: {e}")))?;
        if request.public_key.algorithm() != &PKCS_ECDSA_P256_SHA256 {
            return Err(TrustError::Refused("the key of the request is of another kind than ECDSA on P-256".into()));
        }
        request.params = params(subject)?;
        let certificate = request.signed_by(&self.issuer).map_err(crypto)?.der().to_vec();
        // What nobody could read later must not be issued.
        match Claims::of(&certificate) {
            Some(claims) if claims.identity.as_ref() == Some(subject.identity) => Ok(certificate),
            _ => Err(TrustError::Crypto("the certificate made does not say what it should".into())),
        }
    }
}

fn serial() -> Result<SerialNumber, TrustError> {
    let mut bytes = [0; 16];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| TrustError::Crypto("the system gives no random numbers".into()))?;
    // Positive, and no zero in front.
    bytes[0] = bytes[0] & 0x3f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

fn params(subject: &Subject<'_>) -> Result<CertificateParams, TrustError> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, subject.name);
    let uri = subject.identity.uri().try_into().map_err(crypto)?;
    params.subject_alt_names = vec![SanType::URI(uri)];
    for host in subject.hosts {
        params.subject_alt_names.push(match host.parse::<IpAddr>() {
            Ok(ip) => SanType::IpAddress(ip),
            Err(_) => SanType::DnsName(
                host.as_str()
                    .try_into()
                    .map_err(|_| TrustError::Refused(format!("'{host}' is neither a host name nor an address")))?,
            ),
        });
    }
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = match subject.identity.role {
        Role::Agent | Role::Appliance => {
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth]
        }
        Role::Mgmt => vec![ExtendedKeyUsagePurpose::ServerAuth],
        Role::Nbd if subject.hosts.is_empty() => vec![ExtendedKeyUsagePurpose::ClientAuth],
        Role::Nbd => vec![ExtendedKeyUsagePurpose::ServerAuth],
    };
    params.serial_number = Some(serial()?);
    params.use_authority_key_identifier_extension = true;
    validity(&mut params, subject.life);
    Ok(params)
}

//! What only mgmt is asked: tokens, members, the audit log.

use crate::units::Time;
use serde::{Deserialize, Serialize};

/// What a client asks of mgmt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "kebab-case", rename_all_fields = "kebab-case")]
pub enum MgmtAsk {
    /// Makes a token and answers [`TokenMade`].
    CreateToken {
        /// `agent` or `appliance`.
        role: String,
        /// The member's name; that of its host without it.
        #[serde(default)]
        name: Option<String>,
        /// The member's id, to go on as one that was lost.
        #[serde(default)]
        id: Option<String>,
        /// For a machine: the name of its appliance.
        #[serde(default)]
        appliance: Option<String>,
        /// Takes the place of the member of this name.
        #[serde(default)]
        replace: bool,
        /// How long it lasts.
        ttl_seconds: u64,
    },
    /// What [`crate::groups::Groups`] does.
    Group {
        /// That.
        #[serde(flatten)]
        order: crate::groups::GroupAsk,
    },
    /// [`Members`].
    Members,
    /// The newest lines of the audit log.
    Audit {
        /// How many.
        most: u32,
    },
    /// Revokes a member or a certificate and answers [`RevokeDone`] once all who are connected have the list, or time is up.
    Revoke {
        /// Name or id of a member, or a serial number.
        what: String,
    },
    /// Makes a token of the API and answers [`ApiTokenMade`](crate::api::types::ApiTokenMade).
    CreateApiToken {
        /// What is asked for.
        new: crate::api::types::NewApiToken,
    },
    /// All tokens of the API: a list of [`ApiToken`](crate::api::types::ApiToken).
    ApiTokens,
    /// Lets a token of the API count no more.
    RevokeApiToken {
        /// Its number.
        id: i64,
    },
    /// The CA's certificate: [`Ca`].
    Ca,
    /// mgmt's metrics, and those of its members, as one text.
    Metrics,
    /// Certifies a key for NBD and answers [`Certified`].
    Certify {
        /// PKCS #10, DER, as hexadecimal digits.
        request: String,
        /// Its name.
        name: String,
        /// For a server: the names and addresses at which clients reach it. For a client: none.
        #[serde(default)]
        hosts: Vec<String>,
    },
}

/// mgmt's CA.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ca {
    /// Its certificate, PEM: for curl and Prometheus.
    pub certificate: String,
    /// SHA-256 of it (DER), by which our own commands know it.
    pub pin: String,
}

/// A token that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenMade {
    /// The token itself. It is not kept.
    pub token: String,
    /// What one can join as with it.
    pub role: String,
    /// When it ends.
    pub expires: Time,
}

/// Who has joined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Members {
    /// Machines and appliances.
    pub members: Vec<crate::catalogue::Member>,
    /// Ids of those that are connected now.
    pub connected: Vec<String>,
    /// Certificates that have not expired.
    pub certificates: Vec<crate::catalogue::CertificateRow>,
    /// Tokens that can be used.
    pub tokens: Vec<crate::catalogue::TokenRow>,
}

/// What a revocation did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevokeDone {
    /// Who was revoked.
    pub name: String,
    /// How many certificates that were valid.
    pub certificates: usize,
    /// Appliances that refuse them now.
    pub reached: Vec<String>,
    /// Appliances that will when they are connected again.
    pub waiting: Vec<String>,
}

/// A certificate for NBD.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certified {
    /// PEM.
    pub certificate: String,
    /// The CA's, PEM.
    pub authority: String,
}

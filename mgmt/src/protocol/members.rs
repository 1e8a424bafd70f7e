//! What only mgmt is asked: its API over the control socket, and the shapes of tokens, members and certificates.

use crate::units::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A request of mgmt's API, from who may use its control socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiCall {
    /// `GET`, `POST`, `PATCH` or `DELETE`.
    pub method: String,
    /// The path, with its query.
    pub path: String,
    /// The body.
    #[serde(default)]
    pub body: Option<serde_json::Value>,
}

/// The answer to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiReply {
    /// The HTTP status.
    pub status: u16,
    /// The body; a text as a string, none as null.
    pub body: serde_json::Value,
}

/// A token to be made, with which one host joins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenRequest {
    /// `agent` or `appliance`.
    pub role: String,
    /// The member's name; that of its host without it.
    #[serde(default)]
    pub name: Option<String>,
    /// The member's id, to go on as one that was lost.
    #[serde(default)]
    pub id: Option<String>,
    /// For a machine: the name of its appliance.
    #[serde(default)]
    pub appliance: Option<String>,
    /// Takes the place of the member of this name.
    #[serde(default)]
    pub replace: bool,
    /// How long it lasts.
    pub ttl_seconds: u64,
}

/// A key to be certified for NBD.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CertifyRequest {
    /// PKCS #10, DER, as hexadecimal digits.
    pub request: String,
    /// Its name.
    pub name: String,
    /// For a server: the names and addresses at which clients reach it. For a client: none.
    #[serde(default)]
    pub hosts: Vec<String>,
}

/// mgmt's CA.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Ca {
    /// Its certificate, PEM: for curl and Prometheus.
    pub certificate: String,
    /// SHA-256 of it (DER), by which our own commands know it.
    pub pin: String,
}

/// A token that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TokenMade {
    /// The token itself. It is not kept.
    pub token: String,
    /// What one can join as with it.
    pub role: String,
    /// When it ends.
    pub expires: Time,
}

/// Who has joined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Certified {
    /// PEM.
    pub certificate: String,
    /// The CA's, PEM.
    pub authority: String,
}

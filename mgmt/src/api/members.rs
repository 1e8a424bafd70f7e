//! Routes: who has joined and who may join, mgmt's CA, and certificates for NBD.

use super::problem::{Kind, Problem};
use super::routes::{Call, Gives, Method, Reply, Route, reply, schema};
use crate::catalogue::{ApiRole, CatalogueError, NewToken};
use crate::office::Office;
use crate::protocol::{Ca, Certified, CertifyRequest, Members, RevokeDone, TokenMade, TokenRequest};
use crate::units::Time;
use afterimage_trust::csr::pem;
use afterimage_trust::identity::{Role, unhex};
use afterimage_trust::token::Token;
use std::thread;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// Longest life of a token.
const MAX_TTL: u64 = 30 * 86_400;
/// How long a revocation waits for those who are connected.
const REACH: Duration = Duration::from_secs(5);

pub(super) const ROUTES: &[Route] = &[
    Route {
        method: Method::Get,
        path: "/v1/members",
        id: "members",
        role: ApiRole::Viewer,
        about: "Machines and appliances that have joined, certificates for NBD, and (for an admin) tokens that can be used",
        query: &[],
        takes: None,
        gives: Gives::Json(200, schema::<Members>),
        run: |call| reply(&members(call)?),
    },
    Route {
        method: Method::Delete,
        path: "/v1/members/{member}",
        id: "revoke",
        role: ApiRole::Admin,
        about: "Revokes a machine, an appliance or a certificate (name, id or serial number), and answers once those who are \
                connected have heard of it",
        query: &[],
        takes: None,
        gives: Gives::Json(200, schema::<RevokeDone>),
        run: |call| reply(&revoke(call.office, &call.who, call.part(0))?),
    },
    Route {
        method: Method::Post,
        path: "/v1/join-tokens",
        id: "create-join-token",
        role: ApiRole::Admin,
        about: "Makes a token with which one host joins, once; it is shown once",
        query: &[],
        takes: Some(schema::<TokenRequest>),
        gives: Gives::Json(201, schema::<TokenMade>),
        run: |call| reply(&create_token(call, &call.json()?)?),
    },
    Route {
        method: Method::Get,
        path: "/v1/ca",
        id: "ca",
        role: ApiRole::Viewer,
        about: "The certificate of mgmt's CA",
        query: &[],
        takes: None,
        gives: Gives::Json(200, schema::<Ca>),
        run: |call| {
            let authority = &call.office.authority;
            reply(&Ca { certificate: pem("CERTIFICATE", authority.certificate()), pin: authority.fingerprint() })
        },
    },
    Route {
        method: Method::Post,
        path: "/v1/certificates",
        id: "certify",
        role: ApiRole::Admin,
        about: "Certifies a key for NBD",
        query: &[],
        takes: Some(schema::<CertifyRequest>),
        gives: Gives::Json(201, schema::<Certified>),
        run: certify,
    },
];

fn new_token(ask: &TokenRequest) -> Result<NewToken, Problem> {
    let bad = |text: String| Problem::new(Kind::BadRequest, text);
    if !(1..=MAX_TTL).contains(&ask.ttl_seconds) {
        return Err(bad(format!("a token lasts from a second to {} days", MAX_TTL / 86_400)));
    }
    let id = |t: &String| Uuid::try_parse(t).map_err(|_| bad(format!("'{t}' is no id (UUID)")));
    Ok(NewToken {
        role: ask.role.parse().map_err(bad)?,
        name: ask.name.clone(),
        id: ask.id.as_ref().map(id).transpose()?,
        appliance: ask.appliance.clone(),
        replace: ask.replace,
        ttl: i64::try_from(ask.ttl_seconds).unwrap_or(i64::MAX),
    })
}

fn create_token(call: &Call<'_>, ask: &TokenRequest) -> Result<TokenMade, Problem> {
    let new = new_token(ask)?;
    let failed = |e: afterimage_trust::TrustError| Problem::new(Kind::Failed, e.to_string());
    let token = Token::new(call.office.authority.certificate()).map_err(failed)?;
    let row = call.office.catalogue.create_token(&call.who, &Token::hash(&token.secret), &new)?;
    let expires = Time(u64::try_from(row.expires).unwrap_or(0).saturating_mul(1_000_000_000));
    Ok(TokenMade { token: token.text(), role: row.role, expires })
}

fn members(call: &Call<'_>) -> Result<Members, CatalogueError> {
    let catalogue = &call.office.catalogue;
    Ok(Members {
        members: catalogue.members()?,
        connected: call.office.connected().into_iter().map(|(identity, ..)| identity.id.to_string()).collect(),
        certificates: catalogue.certificates()?,
        tokens: if call.role == ApiRole::Admin { catalogue.tokens()? } else { Vec::new() },
    })
}

fn revoke(office: &Office, who: &str, what: &str) -> Result<RevokeDone, CatalogueError> {
    let (name, certificates, list) = office.revoke(who, what)?;
    let until = Instant::now() + REACH;
    let appliances: Vec<String> = office
        .catalogue
        .members()?
        .into_iter()
        .filter(|m| m.role == Role::Appliance.as_str() && m.revoked.is_none())
        .map(|m| m.name)
        .collect();
    loop {
        let connected = office.connected();
        let of = |name: &String| connected.iter().find(|(i, n, _)| i.role == Role::Appliance && n == name);
        let has = |name: &String| of(name).is_some_and(|(.., applied)| *applied >= list.number);
        let pending = appliances.iter().any(|name| of(name).is_some() && !has(name));
        if !pending || Instant::now() >= until {
            let (reached, waiting) = appliances.iter().cloned().partition(|name| has(name));
            return Ok(RevokeDone { name, certificates, reached, waiting });
        }
        thread::sleep(Duration::from_millis(10));
    }
}

fn certify(call: &Call<'_>) -> Result<Reply, Problem> {
    let ask: CertifyRequest = call.json()?;
    let bad = || Problem::new(Kind::BadRequest, "the request is not hexadecimal");
    let request = unhex(&ask.request).ok_or_else(bad)?;
    let certificate = call.office.certify(&call.who, &request, &ask.name, &ask.hosts)?;
    let authority = pem("CERTIFICATE", call.office.authority.certificate());
    reply(&Certified { certificate: pem("CERTIFICATE", &certificate), authority })
}

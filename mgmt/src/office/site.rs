//! What the control socket of mgmt can do.

use super::Office;
use crate::catalogue::{CatalogueError, NewToken};
use crate::groups::Groups;
use crate::protocol::{
    Access, Ca, Certified, Code, CompareBegun, DiffEnd, Failure, Members, MgmtAsk, PointInfo, PointList, Position,
    RevokeDone, Role, SizeChange, Status, TokenMade, VERSION,
};
use crate::server::{Opened, Site};
use crate::units::Time;
use crate::when::When;
use afterimage_trust::csr::pem;
use afterimage_trust::identity::{Role as TrustRole, unhex};
use afterimage_trust::token::Token;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use uuid::Uuid;

/// Longest life of a token.
const MAX_TTL: u64 = 30 * 86_400;
/// How long a revocation waits for those who are connected.
const REACH: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Debug)]
pub struct Desk {
    office: Arc<Office>,
    data: PathBuf,
    listen: Vec<String>,
    started: Time,
    groups: Arc<Groups>,
}

fn now() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Time(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

impl From<CatalogueError> for Failure {
    fn from(e: CatalogueError) -> Failure {
        let code = match &e {
            CatalogueError::NotFound(_) => Code::NotFound,
            CatalogueError::Conflict(_) => Code::Conflict,
            CatalogueError::Refused(_) => Code::BadRequest,
            _ => Code::Failed,
        };
        Failure::new(code, e.to_string())
    }
}

fn failed(e: impl std::fmt::Display) -> Failure {
    Failure::new(Code::Failed, e.to_string())
}

fn not_here<T>() -> Result<T, Failure> {
    Err(Failure::new(
        Code::OtherRole,
        "this is mgmt, which has no volumes: run the command with --data of the agent or of the appliance",
    ))
}

impl Desk {
    /// Of an office that listens at `listen`.
    #[must_use]
    pub fn new(office: Arc<Office>, groups: Arc<Groups>, data: PathBuf, listen: Vec<String>) -> Desk {
        Desk { office, data, listen, started: now(), groups }
    }

    fn create_token(&self, who: &str, ask: NewToken) -> Result<TokenMade, Failure> {
        let token = Token::new(self.office.authority.certificate()).map_err(failed)?;
        let row = self.office.catalogue.create_token(who, &Token::hash(&token.secret), &ask)?;
        let expires = Time(u64::try_from(row.expires).unwrap_or(0).saturating_mul(1_000_000_000));
        Ok(TokenMade { token: token.text(), role: row.role, expires })
    }

    fn members(&self) -> Result<Members, Failure> {
        let catalogue = &self.office.catalogue;
        Ok(Members {
            members: catalogue.members()?,
            connected: self.office.connected().into_iter().map(|(identity, ..)| identity.id.to_string()).collect(),
            certificates: catalogue.certificates()?,
            tokens: catalogue.tokens()?,
        })
    }

    fn revoke(&self, who: &str, what: &str) -> Result<RevokeDone, Failure> {
        let (name, certificates, list) = self.office.revoke(who, what)?;
        let until = Instant::now() + REACH;
        let appliances: Vec<String> = self
            .office
            .catalogue
            .members()?
            .into_iter()
            .filter(|m| m.role == TrustRole::Appliance.as_str() && m.revoked.is_none())
            .map(|m| m.name)
            .collect();
        loop {
            let connected = self.office.connected();
            let of = |name: &String| connected.iter().find(|(i, n, _)| i.role == TrustRole::Appliance && n == name);
            let has = |name: &String| of(name).is_some_and(|(.., applied)| *applied >= list.number);
            let pending = appliances.iter().any(|name| of(name).is_some() && !has(name));
            if !pending || Instant::now() >= until {
                let (reached, waiting) = appliances.iter().cloned().partition(|name| has(name));
                return Ok(RevokeDone { name, certificates, reached, waiting });
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn certify(&self, who: &str, request: &str, name: &str, hosts: &[String]) -> Result<Certified, Failure> {
        let request = unhex(request).ok_or_else(|| Failure::new(Code::BadRequest, "the request is not hexadecimal"))?;
        let certificate = self.office.certify(who, &request, name, hosts)?;
        Ok(Certified {
            certificate: pem("CERTIFICATE", &certificate),
            authority: pem("CERTIFICATE", self.office.authority.certificate()),
        })
    }
}

fn new_token(ask: &MgmtAsk) -> Result<NewToken, Failure> {
    let MgmtAsk::CreateToken { role, name, id, appliance, replace, ttl_seconds } = ask else {
        return Err(Failure::new(Code::BadRequest, "no token is asked for"));
    };
    let bad = |text: String| Failure::new(Code::BadRequest, text);
    if !(1..=MAX_TTL).contains(ttl_seconds) {
        return Err(bad(format!("a token lasts from a second to {} days", MAX_TTL / 86_400)));
    }
    let id = id.as_ref().map(|t| Uuid::try_parse(t).map_err(|_| bad(format!("'{t}' is no id (UUID)")))).transpose()?;
    Ok(NewToken {
        role: role.parse().map_err(bad)?,
        name: name.clone(),
        id,
        appliance: appliance.clone(),
        replace: *replace,
        ttl: i64::try_from(*ttl_seconds).unwrap_or(i64::MAX),
    })
}

impl Site for Desk {
    fn mgmt(&self, who: &str, ask: &MgmtAsk) -> Result<serde_json::Value, Failure> {
        match ask {
            MgmtAsk::CreateToken { .. } => serde_json::to_value(self.create_token(who, new_token(ask)?)?),
            MgmtAsk::Group { order } => return self.groups.answer(who, order),
            MgmtAsk::Members => serde_json::to_value(self.members()?),
            MgmtAsk::Audit { most } => serde_json::to_value(self.office.catalogue.audit((*most).min(10_000))?),
            MgmtAsk::Revoke { what } => serde_json::to_value(self.revoke(who, what)?),
            MgmtAsk::CreateApiToken { new } => serde_json::to_value(self.office.create_api_token(who, new)?),
            MgmtAsk::ApiTokens => serde_json::to_value(self.office.api_tokens()?),
            MgmtAsk::RevokeApiToken { id } => {
                self.office.catalogue.revoke_api_token(who, *id)?;
                Ok(serde_json::Value::Null)
            }
            MgmtAsk::Ca => serde_json::to_value(Ca {
                certificate: pem("CERTIFICATE", self.office.authority.certificate()),
                pin: self.office.authority.fingerprint(),
            }),
            MgmtAsk::Metrics => serde_json::to_value(crate::metrics::of_office(&self.office).map_err(failed)?),
            MgmtAsk::Certify { request, name, hosts } => serde_json::to_value(self.certify(who, request, name, hosts)?),
        }
        .map_err(failed)
    }

    fn status(&self) -> Result<Status, Failure> {
        Ok(Status {
            v: VERSION,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            data: self.data.display().to_string(),
            started: self.started,
            time: now(),
            role: Role::Mgmt,
            appliance: None,
            listen: self.listen.clone(),
            window_seconds: 0,
            clients: u64::try_from(self.office.connected().len()).unwrap_or(u64::MAX),
            store: None,
            volumes: Vec::new(),
        })
    }

    fn points(&self, _volume: &str) -> Result<PointList, Failure> {
        not_here()
    }

    fn create_point(&self, _volume: &str, _name: &str) -> Result<PointInfo, Failure> {
        not_here()
    }

    fn resize_volume(&self, _volume: &str, _size: Option<u64>) -> Result<SizeChange, Failure> {
        not_here()
    }

    fn compare_volume(&self, _volume: &str) -> Result<CompareBegun, Failure> {
        not_here()
    }

    fn resolve(&self, _volume: &str, _at: &When) -> Result<Position, Failure> {
        not_here()
    }

    fn diff(&self, _from: (&str, &When), _to: (&str, &When)) -> Result<(DiffEnd, Vec<(u64, u64)>), Failure> {
        not_here()
    }

    fn open(&self, _volume: &str, _at: &When, _access: Access) -> Result<(Position, Box<dyn Opened>), Failure> {
        not_here()
    }
}

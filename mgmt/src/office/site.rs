//! What the control socket of mgmt can do: the API, and the status that every role has.

use super::Office;
use crate::catalogue::CatalogueError;
use crate::protocol::{
    Access, ApiCall, ApiReply, Code, CompareBegun, DiffEnd, Failure, PointInfo, PointList, Position, Role, SizeChange,
    Status, VERSION,
};
use crate::site::{Opened, Site};
use crate::units::Time;
use crate::when::When;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// See the module.
#[derive(Debug)]
pub struct Desk {
    office: Arc<Office>,
    data: PathBuf,
    listen: Vec<String>,
    started: Time,
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

fn not_here<T>() -> Result<T, Failure> {
    Err(Failure::new(
        Code::OtherRole,
        "this is mgmt, which has no volumes: run the command with --data of the agent or of the appliance",
    ))
}

impl Desk {
    /// Of an office that listens at `listen`.
    #[must_use]
    pub fn new(office: Arc<Office>, data: PathBuf, listen: Vec<String>) -> Desk {
        Desk { office, data, listen, started: now() }
    }
}

impl Site for Desk {
    fn mgmt(&self, who: &str, call: &ApiCall) -> Result<ApiReply, Failure> {
        Ok(crate::api::local::answer(&self.office, who, call))
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
            recoveries: Vec::new(),
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

//! What this process tells mgmt over its session, and what it answers when asked.

use crate::daemon::{Reach, Trusted};
use crate::readiness;
use crate::site::Local;
use afterimage_base::net::Endpoint;
use afterimage_mgmt::members::{Clock, DisksTaken, MemberAsk};
use afterimage_mgmt::office::Answered;
use afterimage_mgmt::protocol::{Code, Failure};
use afterimage_mgmt::site::Site;
use afterimage_mgmt::units::Time;
use afterimage_trust::session::Duties;
use serde::Serialize;
use serde_json::Value;
use std::sync::{Arc, OnceLock, Weak};

/// Where an agent's appliance is, and who the agent is if that is known.
#[derive(Debug, Clone)]
pub struct Appliance {
    /// Its address.
    pub endpoint: Endpoint,
    /// The agent's credentials, or why there are none.
    pub trust: Result<Trusted, String>,
}

/// See the module. The site comes later than the session and goes earlier.
#[derive(Default)]
pub struct Duty {
    site: OnceLock<Weak<Local>>,
    appliance: OnceLock<Appliance>,
}

impl Duty {
    /// Says where the appliance is.
    pub fn reaches(&self, reach: &Reach) {
        let to = match reach {
            Reach::Nowhere | Reach::Here => return,
            Reach::At { endpoint, .. } => {
                Appliance { endpoint: endpoint.clone(), trust: Err("the stream is plain text".to_owned()) }
            }
            Reach::Secure { endpoint, trust } => Appliance { endpoint: endpoint.clone(), trust: trust.clone() },
        };
        // It is said once.
        drop(self.appliance.set(to));
    }

    /// From now on there is something to report.
    pub fn begins(&self, site: &Arc<Local>) {
        drop(self.site.set(Arc::downgrade(site)));
    }

    fn site(&self) -> Result<Arc<Local>, Failure> {
        let site = self.site.get().and_then(Weak::upgrade);
        site.ok_or_else(|| Failure::new(Code::NotReady, "it is starting or stopping: try again"))
    }

    fn asked(&self, ask: &[u8]) -> Result<Value, Failure> {
        fn value<T: Serialize>(answer: T) -> Result<Value, Failure> {
            serde_json::to_value(answer).map_err(|e| Failure::new(Code::Failed, e.to_string()))
        }
        let ask = serde_json::from_slice::<MemberAsk>(ask).map_err(|e| {
            Failure::new(Code::Version, format!("the question was not understood ({e}): update this side"))
        })?;
        match ask {
            MemberAsk::Clock => value(Clock { time_ns: Time::now().0 }),
            MemberAsk::Readiness { disks } => value(readiness::look(&*self.site()?, self.appliance.get(), &disks)),
            MemberAsk::Points { volume } => value(self.site()?.points(&volume)?),
            MemberAsk::CreatePoint { volume, name, app: false } => value(self.site()?.create_point(&volume, &name)?),
            MemberAsk::CreatePoint { volume, name, app: true } => value(self.site()?.create_app_point(&volume, &name)?),
            MemberAsk::ChangePoint { volume, name, action } => {
                value(self.site()?.change_point(&volume, &name, action)?)
            }
            MemberAsk::Quiet { point } => value(self.site()?.quiet(&point)?),
            MemberAsk::Freeze { id } => value(self.site()?.freeze(&id)?),
            MemberAsk::Thaw { id } => value(self.site()?.thaw(&id)?),
            MemberAsk::Schedule { volumes } => value(self.site()?.set_schedules(&volumes)),
            MemberAsk::Retain { volumes, all } => value(self.site()?.retain(&volumes, all.as_deref())?),
            MemberAsk::Kept { id, change } => value(self.site()?.preview(&id, &change)?),
            MemberAsk::Keep { volumes } => value(self.site()?.keep(volumes)?),
            MemberAsk::Protect { disks } => value(DisksTaken { volumes: self.site()?.take_disks(&disks)? }),
        }
    }
}

impl Duties for Duty {
    fn report(&self) -> Option<Vec<u8>> {
        let status = self.site().ok()?.status().ok()?;
        serde_json::to_vec(&status).ok()
    }

    fn answer(&self, ask: &[u8]) -> Vec<u8> {
        let answer = match self.asked(ask) {
            Ok(value) => Answered::Ok(value),
            Err(failure) => Answered::Error(failure),
        };
        serde_json::to_vec(&answer).unwrap_or_default()
    }
}

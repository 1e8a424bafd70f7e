//! What mgmt says: how often points are made, and what points of groups need.

use super::{Local, Served, kept, lock, uuid};
use afterimage_mgmt::members::{Done, VolumeSchedule, VolumeSeqs};
use afterimage_mgmt::protocol::Failure;
use std::collections::BTreeMap;
use std::time::Duration;

impl Local {
    /// How often points are made of volumes, until mgmt says something else or this process ends.
    pub fn set_schedules(&self, volumes: &[VolumeSchedule]) -> Done {
        let mut done = Done::default();
        let (mut crash, mut app) = (BTreeMap::new(), BTreeMap::new());
        let served = self.served();
        for v in volumes {
            let named = served.iter().find_map(|s| match s {
                Served::Protected(volume) if uuid(volume.id()) == v.id => Some(volume.name().to_owned()),
                _ => None,
            });
            let Some(name) = named else {
                done.unknown.push(v.id.clone());
                continue;
            };
            let of = |seconds: u64| Some(Duration::from_secs(seconds)).filter(|d| !d.is_zero());
            crash.insert(name.clone(), of(v.crash_seconds.into()));
            app.insert(name, of(u64::from(v.app_minutes) * 60));
        }
        tracing::info!("points by policy: crash-consistent {crash:?}, app-consistent {app:?}");
        lock(&self.schedule).set_policy(crash);
        self.apps.set_policy(&app);
        done
    }

    /// What points of groups need.
    ///
    /// # Errors
    /// If this is no appliance, or its manifest cannot be written.
    pub fn keep(&self, volumes: Vec<VolumeSeqs>) -> Result<Done, Failure> {
        kept::keep(&*self.appliance()?, volumes)
    }
}

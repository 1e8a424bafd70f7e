//! The agent: its volumes, opened one by one and stopped together.

use crate::api::{AgentConfig, AgentError, IntentConfig, VolumeConfig};
use crate::volume::Volume;
use afterimage_base::world::sync::{LongGuard, LongMutex};
use afterimage_base::world::{self, thread};
use std::sync::Arc;
use std::time::Duration;

struct Volumes {
    open: Vec<Arc<Volume>>,
    stopping: bool,
}

/// See the module.
pub struct Agent {
    config: AgentConfig,
    intent: IntentConfig,
    /// Held while a volume is opened, which may wait for the lock of a disk.
    volumes: LongMutex<Volumes>,
}

impl Agent {
    /// An agent without volumes.
    #[must_use]
    pub fn new(config: AgentConfig) -> Agent {
        Agent {
            config,
            intent: IntentConfig::default(),
            volumes: LongMutex::new(Volumes { open: Vec::new(), stopping: false }),
        }
    }

    /// The same, with another way to keep write-intent maps, for volumes added from now on.
    #[must_use]
    pub fn with_intent(self, intent: IntentConfig) -> Agent {
        Agent { intent, ..self }
    }

    fn lock(&self) -> LongGuard<'_, Volumes> {
        self.volumes.lock()
    }

    /// Opens a volume: makes it, or recovers what the last process left. When this returns it can be served.
    ///
    /// # Errors
    /// [`AgentError`] says what is in the way; nothing is changed then.
    pub fn add_volume(&self, volume: VolumeConfig) -> Result<Arc<Volume>, AgentError> {
        let mut volumes = self.lock();
        if volumes.stopping {
            return Err(AgentError::Stopping);
        }
        if volumes.open.iter().any(|v| v.name() == volume.name) {
            return Err(AgentError::Duplicate(volume.name));
        }
        let opened = Arc::new(Volume::start(&self.config, &volume, &self.intent)?);
        volumes.open.push(Arc::clone(&opened));
        Ok(opened)
    }

    /// Closes a volume again, at once, and gives back its disk: for one that was just added and cannot be served after all. Its
    /// journal stays, and it can be added again. False if there is none of this name.
    pub fn remove_volume(&self, name: &str) -> bool {
        let mut volumes = self.lock();
        let Some(at) = volumes.open.iter().position(|v| v.name() == name) else { return false };
        volumes.open.remove(at).stop(world::now());
        true
    }

    /// The volumes, in the order in which they were added.
    #[must_use]
    pub fn volumes(&self) -> Vec<Arc<Volume>> {
        self.lock().open.clone()
    }

    /// Stops all volumes at once and in order: writes are refused, each that is not fenced gets a last point `shutdown`, the
    /// appliance gets up to `within` to take everything, the journals are marked as clean and the threads ended. Front
    /// ends should have finished before. True if the appliance has everything of every volume.
    pub fn stop(&self, within: Duration) -> bool {
        let open = {
            let mut volumes = self.lock();
            volumes.stopping = true;
            volumes.open.clone()
        };
        let until = world::now() + within;
        thread::scope(|scope| {
            let stops: Vec<_> = open.iter().map(|v| scope.spawn("stop", move || v.stop(until))).collect();
            let ended: Vec<bool> = stops.into_iter().map(|s| s.is_ok_and(|s| s.join().unwrap_or(false))).collect();
            ended.into_iter().all(|complete| complete)
        })
    }
}

//! The block devices of this process's volumes.

use super::past::failure;
use super::{Local, Served, uuid};
use crate::attached::{Attachments, Shown, Source};
use afterimage_mgmt::attach::{AttachOptions, Attached, Detached};
use afterimage_mgmt::protocol::{Code, DeviceResize, Failure};

impl Local {
    /// Attaches again what the last process had attached. To be called once, when everything is there.
    pub fn attach_again(&self) {
        self.attachments.get_or_init(|| Attachments::restore(&self.data, self));
    }

    /// Ends the serving of block devices, for good. True if somebody waits for the next process to go on.
    #[must_use]
    pub fn leave_devices(&self) -> bool {
        self.attachments.get().is_some_and(Attachments::leave)
    }

    pub(super) fn devices_of(&self, volume: &str) -> Vec<Attached> {
        self.attachments.get().map_or_else(Vec::new, |a| a.of(volume))
    }

    fn attachments(&self) -> Result<&Attachments, Failure> {
        let none = || Failure::new(Code::NotReady, "this process is starting: try again");
        self.attachments.get().ok_or_else(none)
    }

    pub(super) fn attach_device(&self, volume: &str, options: &AttachOptions) -> Result<Attached, Failure> {
        self.attachments()?.attach(volume, options, self)
    }

    pub(super) fn detach_device(&self, what: &str) -> Result<Detached, Failure> {
        self.attachments()?.detach(what)
    }

    pub(super) fn devices_resized(&self, volume: &str) -> Vec<DeviceResize> {
        self.attachments.get().map_or_else(Vec::new, |a| a.resized(volume))
    }

    fn disk(&self, volume: &str) -> Result<Shown, Failure> {
        if let Some(Served::Plain { name, path, device }) = self.served().into_iter().find(|s| s.name() == volume) {
            let id = format!("{name} {}", path.display());
            return Ok(Shown { device, id, seq: None });
        }
        if let Ok(appliance) = self.appliance()
            && let Ok(branch) = appliance.branch(volume)
        {
            let device = appliance.open_branch(volume).map_err(|e| failure(Some(e)))?;
            return Ok(Shown { device, id: uuid(branch.id), seq: None });
        }
        let volume = self.protected(volume)?;
        Ok(Shown { device: volume.device(), id: uuid(volume.id()), seq: None })
    }
}

impl Source for Local {
    fn shown(&self, volume: &str, options: &AttachOptions) -> Result<Shown, Failure> {
        let Some(at) = &options.at else { return self.disk(volume) };
        let appliance = self.appliance()?;
        let position = self.position(&appliance, volume, at)?;
        let device = if options.writable {
            appliance.open_scratch(volume, position.seq)
        } else {
            appliance.open_at(volume, position.seq)
        };
        let device = device.map_err(|e| failure(Some(e)))?;
        let id = appliance.volumes().iter().find(|v| v.name == volume).map_or_else(String::new, |v| uuid(v.id));
        Ok(Shown { device, id, seq: Some(position.seq) })
    }
}

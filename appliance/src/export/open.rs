//! Opening a volume at a seq, by name.

use super::parallel::Parallel;
use super::{PointDevice, ScratchDevice, blocks_of};
use crate::appliance::{Appliance, ApplianceError};
use crate::history::{HistoryError, View, diff};
use crate::ingest::volume::Volume;
use afterimage_base::block::BlockDevice;
use afterimage_base::simple::SimpleDevice;
use afterimage_format::BLOCK_SHIFT;
use std::sync::Arc;

/// A changed range in bytes: offset and length.
type Changed = (u64, u64);

impl Appliance {
    fn view_of(&self, volume: &str, seq: u64) -> Result<(Arc<Volume>, Arc<View>), ApplianceError> {
        // The check comes first and the view right behind it: what a merge drops in between is gone from both.
        self.check_seq(volume, seq)?;
        let volume = self.volume(volume)?;
        let view = volume.history.view(seq).map_err(|e| of_volume(&volume, e))?;
        self.check_seq(&volume.name, seq)?;
        Ok((volume, view))
    }

    fn point_device(&self, volume: &str, seq: u64) -> Result<PointDevice, ApplianceError> {
        let (volume, view) = self.view_of(volume, seq)?;
        let size = volume.progress().size_at(seq);
        let source = Arc::clone(&self.shared.store);
        Ok(PointDevice::new(&volume.name, view, source, size))
    }

    fn parallel(&self, device: Arc<dyn SimpleDevice>) -> Arc<dyn BlockDevice> {
        Arc::new(Parallel::new(device, Arc::clone(&self.reads), Arc::clone(&self.ahead)))
    }

    /// The volume as it was at `seq`, read-only. What it shows stays in the store while it is open (I10).
    ///
    /// # Errors
    /// [`ApplianceError::When`] if the seq cannot be chosen, with what can; or a layer is damaged.
    pub fn open_at(&self, volume: &str, seq: u64) -> Result<Arc<dyn BlockDevice>, ApplianceError> {
        Ok(self.parallel(Arc::new(self.point_device(volume, seq)?)))
    }

    /// The same with an overlay that takes writes and is gone when the device is dropped.
    ///
    /// # Errors
    /// As [`Appliance::open_at`], or the overlay cannot be made.
    pub fn open_scratch(&self, volume: &str, seq: u64) -> Result<Arc<dyn BlockDevice>, ApplianceError> {
        let base = self.point_device(volume, seq)?;
        let made = ScratchDevice::new(base, self.shared.vault.dir());
        let device = made.map_err(|e| ApplianceError::System("a file for what is written to the export", e))?;
        Ok(self.parallel(Arc::new(device)))
    }

    /// Ranges of the volume in bytes (offset, length) that differ between two seqs, in order. Where it has bytes at one
    /// of them only, they are compared with zeroes.
    ///
    /// # Errors
    /// As [`Appliance::open_at`].
    pub fn diff(&self, volume: &str, from: u64, to: u64) -> Result<Vec<Changed>, ApplianceError> {
        let (_, a) = self.view_of(volume, from)?;
        let (volume, b) = self.view_of(volume, to)?;
        let progress = volume.progress();
        let size = progress.size_at(from).max(progress.size_at(to));
        let mut out = Vec::new();
        let collected = diff::changed(&a, &b, blocks_of(size), |start, end| {
            let (start, end) = (start << BLOCK_SHIFT, (end << BLOCK_SHIFT).min(size));
            out.push((start, end - start));
            true
        });
        collected.map_err(|e| of_volume(&volume, e))?;
        Ok(out)
    }
}

fn of_volume(volume: &Volume, e: HistoryError) -> ApplianceError {
    ApplianceError::History(volume.name.clone(), Box::new(e))
}

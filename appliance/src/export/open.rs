//! Opening a volume at a seq, by name.

use super::parallel::Parallel;
use super::{PointDevice, blocks_of};
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

    pub(crate) fn parallel(&self, device: Arc<dyn SimpleDevice>) -> Arc<dyn BlockDevice> {
        Arc::new(Parallel::new(device, Arc::clone(&self.reads), Arc::clone(&self.ahead)))
    }

    /// The volume as it was at `seq`, read-only. What it shows stays in the store while it is open (I10).
    ///
    /// # Errors
    /// [`ApplianceError::When`] if the seq cannot be chosen, with what can; or a layer is damaged.
    pub fn open_at(&self, volume: &str, seq: u64) -> Result<Arc<dyn BlockDevice>, ApplianceError> {
        Ok(self.parallel(Arc::new(self.point_device(volume, seq)?)))
    }

    /// Ranges of the volume in bytes (offset, length) that differ between two seqs, in order. Where it has bytes at one
    /// of them only, they are compared with zeroes.
    ///
    /// # Errors
    /// As [`Appliance::open_at`].
    pub fn diff(&self, volume: &str, from: u64, to: u64) -> Result<Vec<Changed>, ApplianceError> {
        self.diff_of((volume, from), (volume, to))
    }

    /// The same of two volumes: a branch and what it began on, or two branches. What they have in common is not looked at.
    ///
    /// # Errors
    /// As [`Appliance::open_at`].
    pub fn diff_of(&self, from: (&str, u64), to: (&str, u64)) -> Result<Vec<Changed>, ApplianceError> {
        let (of, a) = self.view_of(from.0, from.1)?;
        let (volume, b) = self.view_of(to.0, to.1)?;
        let common = self.common((&of, from.1), (&volume, to.1));
        let size = of.progress().size_at(from.1).max(volume.progress().size_at(to.1));
        let mut out = Vec::new();
        let collected = diff::changed(&a, &b, (common, blocks_of(size)), |start, end| {
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

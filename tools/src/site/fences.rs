//! Fences, as the control socket shows them.

use super::Local;
use super::past::failure;
use afterimage_appliance::{Appliance, Fence, Standing};
use afterimage_mgmt::protocol::{Failure, FenceAsk, FenceState, FenceStatus};
use afterimage_mgmt::units::Time;

const fn shown(state: Fence) -> FenceState {
    match state {
        Fence::Open => FenceState::Open,
        Fence::Draining => FenceState::Draining,
        Fence::Closed => FenceState::Closed,
    }
}

fn status(appliance: &Appliance, volume: &str) -> Result<FenceStatus, Failure> {
    let (standing, tail) = appliance.standing(volume).map_err(|e| failure(Some(e)))?;
    let seq = appliance.volumes().iter().find(|v| v.name == volume).map_or(0, |v| v.durable_seq);
    Ok(of(volume, &standing, tail, seq))
}

/// A fence in the words of the control socket.
pub(super) fn of(volume: &str, standing: &Standing, tail: Option<String>, seq: u64) -> FenceStatus {
    FenceStatus {
        volume: volume.to_owned(),
        epoch: standing.epoch,
        state: shown(standing.state()),
        owner: standing.fence.as_ref().map(|f| f.owner.clone()),
        since: standing.fence.as_ref().map(|f| Time(f.since)),
        tail,
        seq,
    }
}

impl Local {
    pub(super) fn of_fences(&self, ask: &FenceAsk) -> Result<FenceStatus, Failure> {
        let appliance = self.appliance()?;
        let failed = |e| failure(Some(e));
        match ask {
            FenceAsk::Up { volume, owner, drain } => {
                let state = if *drain { Fence::Draining } else { Fence::Closed };
                appliance.fence(volume, owner, state).map_err(failed)?;
                status(&appliance, volume)
            }
            FenceAsk::Down { volume, owner } => {
                appliance.lift_fence(volume, owner).map_err(failed)?;
                status(&appliance, volume)
            }
            FenceAsk::Show { volume } => status(&appliance, volume),
        }
    }
}

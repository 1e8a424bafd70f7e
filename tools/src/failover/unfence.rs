//! `failover unfence`: the old primary of a volume takes writes again, behind a failover that was committed and has ended.
//!
//! A commit leaves the fence for as long as nobody says otherwise. It comes down here only if no job is left that could run the
//! machine (I13).

use crate::failover::args::UnfenceArgs;
use crate::failover::forks::Exports;
use crate::failover::run::agreed;
use crate::failover::{failed, folder};
use crate::problem::Problem;
use crate::show;
use afterimage_mgmt::client::ControlClient;
use afterimage_mgmt::failover::source::DiskSource;
use afterimage_mgmt::failover::store::{Jobs, StoreError};
use afterimage_mgmt::protocol::FenceAsk;

/// Runs the command.
///
/// # Errors
/// If the volume has no fence, or that of a failover that has not ended.
pub fn unfence(a: &UnfenceArgs) -> Result<(), Problem> {
    let (data, volume) = (folder(&a.data)?, &a.volume);
    let fence = ControlClient::connect(&data)?.fence(FenceAsk::Show { volume: volume.clone() })?;
    let Some(owner) = fence.owner else {
        return Err(Problem::failed(format!("volume {volume} is not fenced")));
    };
    match Jobs::of(&data).load(&owner) {
        Ok(job) if !job.has_ended() => {
            let end = if job.committed.is_some() { "stop" } else { "rollback" };
            return Err(Problem::failed(format!(
                "volume {volume} is fenced by failover {owner}, which has not ended: `afterimage failover {end} {owner}` ends it"
            )));
        }
        // A report is removed only of a job that has ended.
        Ok(_) | Err(StoreError::NotFound(_)) => {}
        Err(e) => return Err(failed(e)),
    }
    if !a.json {
        show::put(&format!(
            "volume {volume}: its old primary takes writes again, as its disk is; what was written here stays on the branches of \
             failover {owner}\n"
        ))?;
    }
    agreed(a.yes)?;
    Exports::of(&data).lift(volume, &owner).map_err(Problem::failed)?;
    let now = ControlClient::connect(&data)?.fence(FenceAsk::Show { volume: volume.clone() })?;
    if a.json { show::put_json(&now) } else { Ok(()) }
}

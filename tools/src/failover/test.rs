//! `failover test`: machines started beside production, looked at, and removed. Each is a job of its own; those that were asked for together begin
//! at one instant and have one name (`set`).

use crate::failover::args::TestArgs;
use crate::failover::moments::Wanted;
use crate::failover::{failed, folder, follow, group, keep, look_after, new_id, now, plan, report};
use crate::problem::Problem;
use crate::{show, signals};
use afterimage_mgmt::client::ControlClient;
use afterimage_mgmt::failover::check::Check;
use afterimage_mgmt::failover::job::{Job, Phase, Plan};
use afterimage_mgmt::failover::store::Jobs;
use std::time::Duration;

/// Runs the command.
///
/// # Errors
/// If a machine cannot be started, or a check failed.
pub fn test(a: &TestArgs) -> Result<(), Problem> {
    if let Some(file) = &a.plan {
        return plan::test(a, file);
    }
    let created = now();
    let signals = signals::watch()?;
    let data = folder(&a.data)?;
    let mut control = ControlClient::connect(&data)?;
    let group = group::find(&a.group, &a.at, created, &mut control)?;
    let machines = group::machines(&data, group.as_ref(), &a.what)?;
    let wanted = Wanted { at: &a.at, place: &[], group: group.as_ref(), planned: false, created };
    let moments = wanted.moments(&mut control, &machines)?;
    drop(control);
    if let (Some(group), false) = (&group, a.json) {
        show::put(&group.text(false))?;
    }
    let jobs = Jobs::of(&data);
    look_after(&data, &jobs)?;
    let checks = if a.check.is_empty() { vec![Check::Boot] } else { a.check.clone() };
    let millis = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
    let (set, several) = (new_id(created)?, machines.len() > 1);
    let mut ids = Vec::new();
    for (n, (machine, moments)) in machines.into_iter().zip(moments).enumerate() {
        let mut job = Job::new(Plan {
            id: if n == 0 { set.clone() } else { format!("{set}-{n}") },
            created,
            machine,
            moments,
            checks: checks.clone(),
            check_limit_ms: millis(a.check_limit),
            ttl_ms: millis(a.ttl),
            failover: None,
        });
        job.set = several.then(|| set.clone());
        let claim = jobs.create(&job).map_err(failed)?;
        keep::start(&data, &claim, &job)?;
        ids.push(job.id);
    }
    let mut asked = false;
    let mut shown = Vec::new();
    for id in &ids {
        let job = follow(&data, &jobs, id, &mut |job| {
            if signals.try_recv().is_ok() {
                if asked {
                    return Err(Problem::failed(format!("test failover {set} is being removed")));
                }
                asked = true;
                // One that ends forgets what it was asked.
                let mut open = ids.iter().filter(|id| jobs.load(id).is_ok_and(|job| !job.is_ending()));
                open.try_for_each(|id| jobs.ask_to_stop(id)).map_err(failed)?;
            }
            Ok(job.phase == Phase::Holding && !asked)
        })?;
        shown.push((job, jobs.folder_of(id).map_err(failed)?));
    }
    report::show_all(&shown, a.json)?;
    shown.iter().try_for_each(|(job, _)| report::verdict(job))
}

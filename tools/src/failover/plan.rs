//! Recovery plans: `failover plan`, which says what one would do, `failover test --plan` and `failover run --plan`, which have one carried
//! out ([`crate::failover::conduct`]) and look on, and `failover continue`.

use crate::failover::args::{JobArgs, PlanArgs, TestArgs};
use crate::failover::conduct::{CONTINUE, STOP, sweep_plan};
use crate::failover::group::GroupPoint;
use crate::failover::moments::Wanted;
use crate::failover::{failed, folder, group, keep, look_after, new_id, now, plan_report};
use crate::problem::Problem;
use crate::show::{put, put_json};
use crate::{screen, signals};
use afterimage_mgmt::client::ControlClient;
use afterimage_mgmt::failover::store::{Jobs, StoreError};
use afterimage_mgmt::plan::file::{MAX_FILE, Plan, Task, dry_run};
use afterimage_mgmt::plan::record::{Kind, Prepared, Record, VERSION};
use afterimage_mgmt::plan::run::{Phase, Run};
use afterimage_mgmt::target::machine::Machine;
use afterimage_mgmt::units::Time;
use crossbeam::channel::Receiver;
use nix::sys::signal::Signal;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

/// Between two looks at a run.
const PACE: Duration = Duration::from_millis(50);
/// Between two looks whether its process lives.
const ALIVE: Duration = Duration::from_millis(250);

/// Reads a plan.
///
/// # Errors
/// What is wrong with it.
pub fn read(path: &Path) -> Result<Plan, Problem> {
    let mut text = String::new();
    let file = File::open(path).map_err(|e| Problem::file(path, &e))?;
    file.take(MAX_FILE + 1).read_to_string(&mut text).map_err(|e| Problem::file(path, &e))?;
    if text.len() as u64 > MAX_FILE {
        return Err(Problem::failed(format!("{} is no plan: it is too long", path.display())));
    }
    Plan::parse(&text).map_err(|e| Problem::failed(format!("{}: {e}", path.display())))
}

/// What of the plan this host does not have.
fn missing(data: &Path, group: Option<&GroupPoint>, plan: &Plan) -> Result<Vec<String>, Problem> {
    let mut control = ControlClient::connect(data)?;
    let volumes: Vec<String> = control.status()?.volumes.into_iter().map(|v| v.name).collect();
    let mut found = Vec::new();
    for name in plan.machines() {
        match group::machine(data, group, name) {
            Ok(Machine { disks, .. }) => {
                let gone = disks.iter().filter(|d| !volumes.contains(&d.volume));
                found.extend(gone.map(|d| format!("machine {name}: there is no volume {}", d.volume)));
            }
            Err(e) => found.push(format!("machine {name}: {e}")),
        }
    }
    for task in plan.steps.iter().flat_map(|s| s.before.iter().chain(&s.after)) {
        let Task::Script(path) = task else { continue };
        match path.metadata() {
            Ok(meta) if meta.is_file() && meta.permissions().mode() & 0o111 != 0 => {}
            Ok(_) => found.push(format!("script {} is no program", path.display())),
            Err(e) => found.push(format!("script {}: {e}", path.display())),
        }
    }
    Ok(found)
}

/// Prints what the plan would do.
///
/// # Errors
/// If the plan is wrong, or this host lacks something of it.
pub fn plan(a: &PlanArgs) -> Result<(), Problem> {
    let plan = read(&a.file)?;
    if a.json {
        put_json(&plan)?
    } else {
        put(&dry_run(&plan))?
    }
    is_possible(&folder(&a.data)?, None, &plan)
}

/// Whether this host has all that the plan needs.
///
/// # Errors
/// What it lacks.
pub fn is_possible(data: &Path, group: Option<&GroupPoint>, plan: &Plan) -> Result<(), Problem> {
    let missing = missing(data, group, plan)?;
    match missing.len() {
        0 => Ok(()),
        _ => Err(Problem::failed(format!("plan {} cannot be carried out here: {}", plan.name, missing.join("; ")))),
    }
}

/// `failover test --plan`.
///
/// # Errors
/// If it does not pass.
pub fn test(a: &TestArgs, file: &Path) -> Result<(), Problem> {
    let created = now();
    let signals = signals::watch()?;
    let data = folder(&a.data)?;
    let plan = read(file)?;
    let mut control = ControlClient::connect(&data)?;
    let group = group::find(&a.group, &a.at, created, &mut control)?;
    is_possible(&data, group.as_ref(), &plan)?;
    let machines = group::machines_of(&data, group.as_ref(), &plan)?;
    let wanted = Wanted { at: &a.at, place: &[], group: group.as_ref(), planned: false, created };
    let moments = wanted.moments(&mut control, &machines)?;
    drop(control);
    let machines = prepared(&plan, machines, moments.into_iter().flatten());
    let run = Run::new(new_id(created)?, plan, Some(a.ttl));
    let record = Record { version: VERSION, created, kind: Kind::Test, machines, lives: 0, run };
    begin(&data, &record, &signals, a.json)
}

/// Has a plan carried out, and looks on.
///
/// # Errors
/// If it does not pass.
pub fn begin(data: &Path, record: &Record, signals: &Receiver<Signal>, json: bool) -> Result<(), Problem> {
    let jobs = Jobs::of(data);
    look_after(data, &jobs)?;
    let id = record.run.id.clone();
    let claim = jobs.create_plan(record).map_err(failed)?;
    keep::start_plan(data, &claim, &id)?;
    drop(claim);
    let mut asked = false;
    let record = follow(data, &jobs, &id, &mut |record| {
        if signals.try_recv().is_ok() {
            // A test is stopped, as one without a plan is; a failover goes on.
            if asked || record.kind != Kind::Test {
                return Err(Problem::failed(format!(
                    "{id} goes on: `afterimage failover show {id}` tells how far it is"
                )));
            }
            asked = true;
            jobs.ask_plan(&id, STOP, "").map_err(failed)?;
        }
        Ok(record.run.phase == Phase::Holding && !asked)
    })?;
    plan_report::show(&record, &jobs.folder_of(&id).map_err(failed)?, json)?;
    plan_report::verdict(&record)
}

/// Looks on until the run has ended, or `enough` says so.
fn follow(
    data: &Path,
    jobs: &Jobs,
    id: &str,
    enough: &mut dyn FnMut(&Record) -> Result<bool, Problem>,
) -> Result<Record, Problem> {
    let (mut looked, mut told) = (Instant::now(), None);
    loop {
        let record = jobs.load_plan(id).map_err(failed)?;
        let done = record.run.has_ended() || enough(&record)?;
        if done {
            screen::live(None);
            return Ok(record);
        }
        let waits = record.run.waits_for().map(|(_, text)| text.to_owned());
        if let Some(text) = waits.as_ref().filter(|_| told != waits) {
            screen::live(None);
            eprintln!("by hand: {text}; when it is done: `afterimage failover continue {id}`");
        }
        told = waits;
        if screen::is_live() {
            screen::live(Some(plan_report::progress(&record)));
        }
        if looked.elapsed() > ALIVE {
            looked = Instant::now();
            if let Err(e) = sweep_plan(data, jobs, id) {
                screen::live(None);
                return Err(e);
            }
        }
        thread::sleep(PACE);
    }
}

/// A run of this name, if it is one.
///
/// # Errors
/// If its file is damaged.
pub fn find(jobs: &Jobs, id: &str) -> Result<Option<Record>, Problem> {
    match jobs.load_plan(id) {
        Ok(record) => Ok(Some(record)),
        Err(StoreError::NotFound(_)) => Ok(None),
        Err(e) => Err(failed(e)),
    }
}

/// `failover continue`: the manual action that a plan waits for is done.
///
/// # Errors
/// If it waits for none.
pub fn go_on(a: &JobArgs) -> Result<(), Problem> {
    let data = folder(&a.data)?;
    let jobs = Jobs::of(&data);
    let id = &a.id;
    let record = jobs.load_plan(id).map_err(failed)?;
    let Some(token) = record.run.token() else {
        return Err(Problem::failed(format!(
            "{id} waits for nobody: `afterimage failover show {id}` tells how far it is"
        )));
    };
    jobs.ask_plan(id, CONTINUE, &token).map_err(failed)?;
    let record = follow(&data, &jobs, id, &mut |record| Ok(record.run.token().as_ref() != Some(&token)))?;
    plan_report::show(&record, &jobs.folder_of(id).map_err(failed)?, a.json)
}

/// Stops a run that has not ended: all is taken back.
///
/// # Errors
/// If it cannot be asked to, or is at its end and its machines are failovers.
pub fn stop(data: &Path, jobs: &Jobs, id: &str, json: bool) -> Result<(), Problem> {
    let record = jobs.load_plan(id).map_err(failed)?;
    let run = &record.run;
    if !run.has_ended() {
        jobs.ask_plan(id, STOP, "").map_err(failed)?;
    } else if run.parts().flat_map(|(at, _)| run.names(at)).any(|name| jobs.load(&name).is_ok_and(|j| !j.has_ended())) {
        return Err(Problem::usage(format!(
            "plan {} is at its end, and its machines are failovers now: `afterimage failover rollback {id}` takes them back; of \
             those that are committed, `afterimage failover ls` shows the IDs for `afterimage failover stop`",
            run.plan.name
        )));
    }
    let record = follow(data, jobs, id, &mut |_| Ok(false))?;
    plan_report::show(&record, &jobs.folder_of(id).map_err(failed)?, json)
}

/// The machines of a plan, each with its part of the moments, which are in the order of the plan.
pub fn prepared(
    plan: &Plan,
    machines: Vec<Machine>,
    mut moments: impl Iterator<Item = (u64, Option<Time>)>,
) -> BTreeMap<String, Prepared> {
    let names = plan.machines().map(str::to_owned);
    names
        .zip(machines)
        .map(|(name, machine)| {
            let moments = moments.by_ref().take(machine.disks.len()).collect();
            (name, Prepared { machine, moments })
        })
        .collect()
}

//! `failover failback`: the way back of a machine that runs here after a failover, onto a disk: the old one where its agent is, or, at a
//! path of this host, the old one, another one, or a file.
//!
//! Three phases, each of which can be stopped and goes on where it was; what is done is in `back-VOLUME.json` in the job's folder:
//!
//! | phase | the machine | what |
//! |---|---|---|
//! | `copy` | runs | the whole disk is compared with one moment of the branch; blocks that differ are written |
//! | `catch-up` | runs | the same for what was written since, by the branch's history, until little is left |
//! | `cut-over` | is down | the same for the last of it; with `--return` the fence is taken down and the old primary goes on |
//!
//! Comparing first costs reads and saves writes: the old disk has most of it. The moment of the copy stays the same when it is
//! stopped and goes on, so that the first catch-up knows all that was written since.
//!
//! The old disk is written only when its agent has brought everything that the volume had not received (its tail is whole): from then
//! on, what is on it is kept elsewhere (I13).

mod agent;
mod disk;

use crate::failover::args::BackArgs;
use crate::failover::back::agent::AgentDisk;
use crate::failover::back::disk::{Disk, LocalDisk, Pace};
use crate::failover::run::agreed;
use crate::failover::{failed, folder, follow, report};
use crate::image::Image;
use crate::problem::Problem;
use crate::progress::Progress;
use crate::{restore, show, signals};
use afterimage_base::crashsafe;
use afterimage_mgmt::client::ControlClient;
use afterimage_mgmt::failover::job::{Fork, Job, Phase};
use afterimage_mgmt::failover::runner::{BACK, HALT};
use afterimage_mgmt::failover::store::Jobs;
use afterimage_mgmt::protocol::{FenceAsk, FenceState};
use afterimage_mgmt::units::format_size;
use afterimage_mgmt::when::When;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const VERSION: u32 = 1;
/// Longest such file.
const MAX_FILE: u64 = 64 << 10;
/// How much is done between two notes of how far it is.
const NOTE: u64 = 64 << 20;
/// A catch-up that had no more than this to write is enough,
const LITTLE: u64 = 1 << 20;
/// and so many rounds are, if the machine writes faster than that.
const ROUNDS: u32 = 8;
/// How long the machine may take to be down.
const DOWN: Duration = Duration::from_secs(60);

/// A phase of the way back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// The whole disk is compared.
    Copy,
    /// What was written since is.
    CatchUp,
    /// The machine is down for the last of it.
    CutOver,
    /// The disk is what the branch is.
    Done,
}

/// How far the way back of a disk is: `back-VOLUME.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Back {
    version: u32,
    /// The volume whose branch it is.
    volume: String,
    /// Where it is copied to; none: to the disk of the volume's agent, through its session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    to: Option<PathBuf>,
    /// The phase.
    phase: Way,
    /// The moment of the branch that is, or is being, copied.
    seq: u64,
    /// A later moment that a catch-up was bringing: the disk may have some of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    target: Option<u64>,
    /// Bytes of the disk that are copied.
    at: u64,
    /// Bytes that were compared, in all phases.
    compared_bytes: u64,
    /// Bytes of blocks that differed, and were written.
    moved_bytes: u64,
    /// Size of the disk.
    size: u64,
    /// It is the old primary's, which goes on with it once all of its disks are done.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    returns: bool,
}

impl Back {
    fn load(path: &Path) -> Result<Option<Back>, Problem> {
        let file = match File::open(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(|e| Problem::file(path, &e))?,
        };
        let mut bytes = Vec::new();
        file.take(MAX_FILE).read_to_end(&mut bytes).map_err(|e| Problem::file(path, &e))?;
        let back: Back = serde_json::from_slice(&bytes).map_err(|e| {
            let text = format!("{}: {e}: remove it, and the copy begins anew", path.display());
            Problem::failed(text)
        })?;
        if back.version != VERSION {
            let text = format!("{} has version {}, this program knows {VERSION}", path.display(), back.version);
            return Err(Problem::failed(text));
        }
        Ok(Some(back))
    }

    /// The moments that a catch-up brings, one after the other, while `newest` is the newest. One that was not brought whole comes
    /// first: what was written of it is known only by its difference from the moment before, and may be otherwise again in a later one.
    fn moments(&self, newest: u64) -> Vec<u64> {
        let mut all: Vec<u64> = self.target.into_iter().collect();
        if newest > self.target.unwrap_or(self.seq) {
            all.push(newest);
        }
        all
    }

    /// The disk, for people.
    fn disk(&self) -> String {
        match &self.to {
            Some(path) => path.display().to_string(),
            None => format!("the disk of volume {} at its agent", self.volume),
        }
    }

    fn save(&self, path: &Path) -> Result<(), Problem> {
        let bytes = serde_json::to_vec_pretty(self).map_err(failed)?;
        crashsafe::replace(path, &bytes).map_err(|e| Problem::file(path, &e))
    }
}

/// What of `0..size` is not in `ranges`, which are in order.
fn rest(ranges: &[(u64, u64)], size: u64) -> Vec<(u64, u64)> {
    let (mut at, mut out) = (0, Vec::new());
    for (start, len) in ranges {
        if *start > at {
            out.push((at, *start));
        }
        at = at.max(start + len);
    }
    if at < size {
        out.push((at, size));
    }
    out
}

/// Somebody wants the copy to stop.
fn stopped(id: &str) -> Problem {
    Problem::failed(format!("stopped; the same command goes on where it was: failover {id} runs as before"))
}

/// The way back of one disk, at work.
struct Work<'a> {
    data: &'a Path,
    id: &'a str,
    branch: String,
    note: PathBuf,
    back: Back,
    disk: Disk,
    stop: &'a dyn Fn() -> bool,
}

impl Work<'_> {
    /// Makes these ranges of the disk what the branch was at `seq`. `keeps`: the note tells how far it is.
    fn bring(&mut self, seq: u64, ranges: &[(u64, u64)], keeps: bool) -> Result<u64, Problem> {
        let (_, mut image) = Image::open(self.data, &self.branch, &When::Seq(seq))?;
        let mut progress = Progress::new(ranges.iter().map(|r| r.1).sum());
        let (mut moved, mut noted) = (0, self.back.at);
        let (disk, back, note, stop) = (&mut self.disk, &mut self.back, &self.note, self.stop);
        let size = back.size;
        let done = image.read_ranges(ranges.iter().copied(), |offset, data| {
            let inside = usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX).min(data.len());
            let wrote = disk.bring(offset, &data[..inside])?;
            moved += wrote;
            back.moved_bytes += wrote;
            back.compared_bytes += inside as u64;
            progress.add(inside as u64);
            if stop() {
                return Err(stopped(self.id));
            }
            if keeps && offset + data.len() as u64 >= noted + NOTE {
                noted = offset + data.len() as u64;
                back.moved_bytes += disk.sync()?;
                back.at = noted;
                back.save(note)?;
            }
            Ok(())
        });
        done.map(|()| moved)
    }

    /// Zeroes of the branch, where the disk has something.
    fn clear(&mut self, ranges: &[(u64, u64)]) -> Result<(), Problem> {
        let zeroes = vec![0; 256 << 10];
        for (start, end) in ranges {
            let mut at = *start;
            while at < *end {
                let (from, to) = self.disk.data_from(at, *end);
                at = from;
                while at < to {
                    let len = usize::try_from(to - at).unwrap_or(usize::MAX).min(zeroes.len());
                    self.back.moved_bytes += self.disk.bring(at, &zeroes[..len])?;
                    self.back.compared_bytes += len as u64;
                    at += len as u64;
                    if (self.stop)() {
                        return Err(stopped(self.id));
                    }
                }
            }
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), Problem> {
        self.back.moved_bytes += self.disk.sync()?;
        Ok(())
    }

    fn copy(&mut self) -> Result<(), Problem> {
        let (_, mut image) = Image::open(self.data, &self.branch, &When::Seq(self.back.seq))?;
        let data = image.data_ranges()?;
        drop(image);
        self.clear(&rest(&data, self.back.size))?;
        let from = self.back.at;
        let left = data.iter().filter(|r| r.0 + r.1 > from).map(|r| (r.0.max(from), r.0 + r.1 - r.0.max(from)));
        self.bring(self.back.seq, &left.collect::<Vec<_>>(), true)?;
        self.sync()?;
        (self.back.phase, self.back.at) = (Way::CatchUp, self.back.size);
        self.back.save(&self.note)
    }

    /// What was written since; answers how many bytes that were.
    fn catch_up(&mut self) -> Result<u64, Problem> {
        let mut control = ControlClient::connect(self.data)?;
        let newest = control.resolve(&self.branch, &When::Latest)?.seq;
        let mut bytes = 0;
        for seq in self.back.moments(newest) {
            let mut ranges = Vec::new();
            let from = When::Seq(self.back.seq);
            control.diff((None, &from), (&self.branch, &When::Seq(seq)), |at, len| ranges.push((at, len)))?;
            // Noted before the first block of it is written.
            self.back.target = Some(seq);
            self.back.save(&self.note)?;
            let brought = self.bring(seq, &ranges, false).and_then(|_| self.sync());
            if brought.is_ok() {
                (self.back.seq, self.back.target) = (seq, None);
            }
            // Also what was moved until it was stopped.
            self.back.save(&self.note)?;
            brought?;
            bytes += ranges.iter().map(|r| r.1).sum::<u64>();
        }
        Ok(bytes)
    }
}

/// The disk of the job that is meant.
fn disk_of<'a>(job: &'a Job, a: &BackArgs) -> Result<&'a Fork, Problem> {
    match (&a.volume, job.disks.as_slice()) {
        (None, [one]) => Ok(one),
        (None, _) => {
            Err(Problem::usage(format!("machine {} has several disks: say which with --volume", job.machine.name)))
        }
        (Some(name), all) => all
            .iter()
            .find(|d| d.volume == *name)
            .ok_or_else(|| Problem::usage(format!("machine {} has no disk {name}", job.machine.name))),
    }
}

/// Whether the old disk may be written: all that is on it is kept.
fn may_return(control: &mut ControlClient, volume: &str) -> Result<(), Problem> {
    let fence = control.fence(FenceAsk::Show { volume: volume.to_owned() })?;
    if fence.state != FenceState::Closed {
        return Err(Problem::failed(format!("volume {volume} is not fenced: its disk may be in use")));
    }
    let end = format!("fenced-{}", fence.epoch);
    // A planned failover has everything in the volume itself.
    for name in [Some(volume), fence.tail.as_deref()].into_iter().flatten() {
        if control.points(name)?.points.iter().any(|p| p.name == end) {
            return Ok(());
        }
    }
    Err(Problem::failed(format!(
        "the agent of volume {volume} has not brought yet what it had beyond @{}: start it and wait until `afterimage point ls` \
         shows {end} on its tail; until then its disk stays as it is",
        fence.seq
    )))
}

fn wait_down(data: &Path, jobs: &Jobs, id: &str) -> Result<Job, Problem> {
    let start = Instant::now();
    follow(data, jobs, id, &mut |job| {
        if job.phase == Phase::Down || start.elapsed() < DOWN {
            return Ok(job.phase == Phase::Down);
        }
        Err(Problem::failed(format!("the machine of failover {id} does not go down: look into its runner.log")))
    })
}

fn told(back: &Back, job: &Job, missing: &[String]) -> String {
    let id = &job.id;
    let stop = format!("`afterimage failover stop {id}`");
    let end = if job.committed.is_some() { stop } else { format!("`afterimage failover commit {id}` and then {stop}") };
    let counts = format!("{} compared, {} written", format_size(back.compared_bytes), format_size(back.moved_bytes));
    let to = back.disk();
    match back.phase {
        Way::Done if !missing.is_empty() => format!(
            "{to} is what the branch is ({counts}); the machine stays down, and the old primary goes on when its other disks are there, \
             too: the same command with --volume for {}\n",
            missing.join(", ")
        ),
        Way::Done if back.returns => {
            format!("{to} is the machine's disk again ({counts}); the old primary takes writes\n")
        }
        Way::Done => format!(
            "{to} is what the branch is ({counts}); the machine is down. For it to run from there: {end}, which leaves branches and \
             fences as they are\n"
        ),
        _ => format!(
            "{to} is behind by what the machine writes now ({counts}); the same command with --cut-over ends it, with the machine \
             down for the last of it\n"
        ),
    }
}

/// `failover failback`.
///
/// # Errors
/// If something is in the way; what is done is kept, and the same command goes on.
pub fn failback(a: &BackArgs) -> Result<(), Problem> {
    let signals = signals::watch()?;
    let data = folder(&a.data)?;
    let jobs = Jobs::of(&data);
    let job = jobs.load(&a.id).map_err(failed)?;
    if !job.is_failover() || !matches!(job.phase, Phase::Holding | Phase::Down) {
        let text =
            format!("job {} is no failover whose machine runs, or is down: it is {}", a.id, report::phase(job.phase));
        return Err(Problem::failed(text));
    }
    let fork = disk_of(&job, a)?;
    let mut control = ControlClient::connect(&data)?;
    if a.returns {
        // Before the machine is down for it: all of its disks have to follow.
        let all = if a.cut_over { job.disks.as_slice() } else { std::slice::from_ref(fork) };
        all.iter().try_for_each(|disk| may_return(&mut control, &disk.volume))?;
    } else if let Some(path) = a.to.as_ref().filter(|path| restore::is_locked(path)) {
        let text = format!("{} is in use: if it is the disk of the old primary, say --return", path.display());
        return Err(Problem::failed(text));
    }
    let note = note_of(&jobs, &a.id, &fork.volume)?;
    let branch = format!("{}/{}", fork.volume, fork.name);
    let now = control.resolve(&branch, &When::Latest)?;
    let fresh = Back {
        version: VERSION,
        volume: fork.volume.clone(),
        to: a.to.clone(),
        phase: Way::Copy,
        seq: now.seq,
        target: None,
        at: 0,
        compared_bytes: 0,
        moved_bytes: 0,
        size: now.size,
        returns: false,
    };
    let known = Back::load(&note)?.filter(|b| b.to == a.to && b.size == now.size);
    if known.is_none() && a.to.as_ref().is_none_or(|path| path.exists()) {
        if !a.json {
            show::put(&format!("{} becomes what {branch} is: what it has else is lost\n", fresh.disk()))?;
        }
        agreed(a.yes)?;
    }
    let back = known.unwrap_or(fresh);
    back.save(&note)?;
    let pace = Pace::new(a.rate);
    let disk = match &a.to {
        Some(path) => Disk::Here(LocalDisk::open(path, back.size, pace)?),
        None => Disk::Agent(AgentDisk::open(&data, &back.volume, back.size, pace)?),
    };
    let stop = || signals.try_recv().is_ok();
    let mut work = Work { data: &data, id: &a.id, branch, note, back, disk, stop: &stop };
    if work.back.phase == Way::Copy {
        work.copy()?;
    }
    // One that was cut over may be behind again: the machine can have run meanwhile.
    (work.back.phase, work.back.returns) = (Way::CatchUp, false);
    for _ in 0..ROUNDS {
        if work.catch_up()? <= LITTLE {
            break;
        }
    }
    let missing = if a.cut_over { cut_over(&mut work, &jobs, a)? } else { Vec::new() };
    if a.json {
        return show::put_json(&work.back);
    }
    show::put(&told(&work.back, &jobs.load(&a.id).map_err(failed)?, &missing))
}

/// Where it is noted how far the way back of a volume's disk is.
fn note_of(jobs: &Jobs, id: &str, volume: &str) -> Result<PathBuf, Problem> {
    Ok(jobs.folder_of(id).map_err(failed)?.join(format!("back-{volume}.json")))
}

/// The volumes of a machine that is down whose old disks are not yet what their branches are.
fn not_returned(data: &Path, jobs: &Jobs, id: &str) -> Result<Vec<String>, Problem> {
    let mut control = ControlClient::connect(data)?;
    let mut missing = Vec::new();
    for disk in jobs.load(id).map_err(failed)?.disks {
        let back = Back::load(&note_of(jobs, id, &disk.volume)?)?.filter(|b| b.phase == Way::Done && b.returns);
        // The machine may have run since that disk was cut over.
        let newest = control.resolve(&format!("{}/{}", disk.volume, disk.name), &When::Latest)?.seq;
        if back.is_none_or(|b| b.seq != newest) {
            missing.push(disk.volume);
        }
    }
    Ok(missing)
}

/// Takes the machine down and brings the last of it. Once all disks of the old primary are there, it goes on; answers those that
/// are missing for that.
fn cut_over(work: &mut Work<'_>, jobs: &Jobs, a: &BackArgs) -> Result<Vec<String>, Problem> {
    let id = &a.id;
    work.back.phase = Way::CutOver;
    work.back.save(&work.note)?;
    if jobs.load(id).map_err(failed)?.phase != Phase::Down {
        jobs.ask(id, HALT).map_err(failed)?;
        wait_down(work.data, jobs, id)?;
    }
    // Nothing writes to the branch any more.
    while work.catch_up()? > 0 {}
    (work.back.phase, work.back.returns) = (Way::Done, a.returns);
    work.back.save(&work.note)?;
    let missing = if a.returns { not_returned(work.data, jobs, id)? } else { Vec::new() };
    if a.returns && missing.is_empty() {
        jobs.ask(id, BACK).map_err(failed)?;
        jobs.ask_to_stop(id).map_err(failed)?;
        follow(work.data, jobs, id, &mut |_| Ok(false))?;
    }
    Ok(missing)
}

#[cfg(test)]
#[path = "back_tests.rs"]
mod tests;

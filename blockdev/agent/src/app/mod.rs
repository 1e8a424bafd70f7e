//! App-consistent points: quiet first, then the point, then on.
//!
//! | module | what |
//! |---|---|
//! | [`sequence`] | the order of the steps, and what follows when one fails |
//! | `script` | the user's scripts |
//! | `freeze` | file systems of this host, and of a virtual machine through its guest agent |
//! | [`guard`] | the process that holds a freeze, so that a thaw follows whatever happens |
//! | [`mounts`] | what is mounted from a block device |
//!
//! What was begun and not ended stands in a file (`leftover`) from before the first step to behind the last, and the next start of
//! the agent [ends](end_leftover) it: it thaws, and runs the post script.

#![allow(clippy::disallowed_methods, reason = "scripts, mounted file systems and guests are of the real world only")]

mod freeze;
pub mod guard;
pub mod mounts;
mod pipe;
mod script;
pub mod sequence;

use afterimage_base::{crashsafe, world};
use freeze::{Frozen, Targets, Thawed};
use guard::Guard;
use sequence::{Sequence, Shape, Step};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use sequence::{Otherwise, Verdict};

/// Characters of what a step says that are kept in the point.
const SAID: usize = 600;

/// How a volume's points are made app-consistent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipe {
    /// Program and arguments that are run before, without a shell; empty for none.
    pub pre: Vec<String>,
    /// The same behind: also when something has failed.
    pub post: Vec<String>,
    /// Folders of file systems of this host to freeze.
    pub mounts: Vec<PathBuf>,
    /// Socket of a guest agent, which freezes its machine's file systems.
    pub guest_agent: Option<PathBuf>,
    /// How long a script may take,
    pub script_limit: Duration,
    /// freezing,
    pub freeze_limit: Duration,
    /// being frozen,
    pub hold_limit: Duration,
    /// and thawing, before that counts as failed (it is tried until it is done).
    pub thaw_limit: Duration,
    /// What follows when a step fails.
    pub otherwise: Otherwise,
}

impl Default for Recipe {
    fn default() -> Self {
        Self {
            pre: Vec::new(),
            post: Vec::new(),
            mounts: Vec::new(),
            guest_agent: None,
            script_limit: Duration::from_secs(60),
            freeze_limit: Duration::from_secs(20),
            hold_limit: Duration::from_secs(10),
            thaw_limit: Duration::from_secs(10),
            otherwise: Otherwise::Crash,
        }
    }
}

/// Of which point this is about.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// The volume.
    pub volume: &'a str,
    /// The point.
    pub point: &'a str,
    /// Where it is written down what was begun.
    pub leftover: &'a Path,
    /// The command that runs [`guard::run`].
    pub guard: &'a [OsString],
    /// Files and folders that must stay writable while something is frozen.
    pub never: &'a [PathBuf],
}

/// How a step went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepResult {
    /// `pre`, `freeze`, `marker`, `thaw` or `post`.
    pub step: String,
    /// Whether it did what it should.
    pub ok: bool,
    /// Milliseconds.
    pub ms: u64,
    /// Why not, or what was done; the end of what a script printed.
    pub said: String,
}

/// How a point was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    /// `app`, `crash` or `failed`.
    pub consistency: String,
    /// Why it is not `app`; null if it is.
    pub reason: Option<String>,
    /// Milliseconds for which something was frozen.
    pub frozen_ms: u64,
    /// The steps, in order.
    pub steps: Vec<StepResult>,
}

impl Made {
    /// What the point is.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        match self.consistency.as_str() {
            "app" => Verdict::App,
            "crash" => Verdict::Crash,
            _ => Verdict::Failed,
        }
    }
}

/// What was begun.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Leftover {
    volume: String,
    point: String,
    targets: Targets,
    post: Vec<String>,
    script_ms: u64,
}

/// The end of a text, if it is long.
fn shortened(text: &str) -> String {
    let over = text.chars().count().saturating_sub(SAID);
    text.chars().skip(over).map(|c| if c.is_control() && c != '\n' { ' ' } else { c }).collect()
}

/// File systems that must not be frozen, because the agent would wait for itself.
fn own(recipe: &Recipe, never: &[PathBuf]) -> Option<String> {
    let device = |path: &PathBuf| std::fs::metadata(path).ok().map(|m| m.dev());
    recipe.mounts.iter().find_map(|mount| {
        let on = device(mount)?;
        let hit = never.iter().find(|p| device(p) == Some(on))?;
        Some(format!("{} is not frozen: {} lies on it, which the agent writes to", mount.display(), hit.display()))
    })
}

struct Run<'a> {
    recipe: &'a Recipe,
    context: Context<'a>,
    guard: Option<Guard>,
    made: Made,
}

/// What others may have to come to before the steps go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// Something is about to be frozen.
    Freeze,
    /// It is: the point is made now.
    Marker,
}

/// Goes through all steps; `marker` makes the point. Returns how it went.
pub fn make(recipe: &Recipe, context: Context<'_>, marker: &mut dyn FnMut() -> Result<(), String>) -> Made {
    make_in_step(recipe, context, &mut |moment| if moment == Moment::Marker { marker() } else { Ok(()) })
}

/// The same in step with others: `moment` may wait for them, and ends what it refuses.
pub fn make_in_step(
    recipe: &Recipe,
    context: Context<'_>,
    moment: &mut dyn FnMut(Moment) -> Result<(), String>,
) -> Made {
    let freeze = !recipe.mounts.is_empty() || recipe.guest_agent.is_some();
    let shape =
        Shape { pre: !recipe.pre.is_empty(), freeze, post: !recipe.post.is_empty(), otherwise: recipe.otherwise };
    let mut sequence = Sequence::new(shape);
    let made = Made { consistency: String::new(), reason: None, frozen_ms: 0, steps: Vec::new() };
    let mut run = Run { recipe, context, guard: None, made };
    if shape.pre && shape.post {
        run.write_down(Targets::default());
    }
    let mut frozen = None;
    while sequence.step() != Step::End {
        let step = sequence.step();
        let agreed = if step == Step::Freeze { moment(Moment::Freeze) } else { Ok(()) };
        let begun = world::now();
        if step == Step::Freeze && agreed.is_ok() {
            frozen = Some(begun);
        }
        let (ok, said) = match step {
            Step::Pre => run.script(&recipe.pre, "pre", ""),
            Step::Freeze => agreed.map_or_else(|e| (false, e), |()| run.freeze()),
            Step::Marker => match moment(Moment::Marker) {
                Ok(()) => (true, String::new()),
                Err(e) => (false, e),
            },
            Step::Thaw => run.thaw(sequence.broken() == Some(Step::Freeze)),
            Step::Post | Step::End => run.script(&recipe.post, "post", sequence.verdict().as_str()),
        };
        if step == Step::Thaw {
            run.made.frozen_ms = frozen.map_or(0, |begun| millis(world::since(begun)));
        }
        if !ok {
            tracing::warn!("volume {}: point '{}': {}: {said}", context.volume, context.point, step.as_str());
            if step != Step::Post && run.made.reason.is_none() {
                run.made.reason = Some(format!("{}: {}", step.as_str(), shortened(&said)));
            }
        }
        let ms = millis(world::since(begun));
        run.made.steps.push(StepResult { step: step.as_str().to_owned(), ok, ms, said: shortened(&said) });
        sequence.done(ok);
    }
    run.made.consistency = sequence.verdict().as_str().to_owned();
    run.made
}

fn millis(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

impl Run<'_> {
    fn targets(&self) -> Targets {
        Targets { mounts: self.recipe.mounts.clone(), guest_agent: self.recipe.guest_agent.clone() }
    }

    /// Before anything is begun that has to be ended.
    fn write_down(&self, targets: Targets) {
        let leftover = Leftover {
            volume: self.context.volume.to_owned(),
            point: self.context.point.to_owned(),
            targets,
            post: self.recipe.post.clone(),
            script_ms: millis(self.recipe.script_limit),
        };
        let path = self.context.leftover;
        let written = serde_json::to_vec(&leftover).map_err(std::io::Error::other);
        if let Err(e) = written.and_then(|bytes| crashsafe::replace(path, &bytes)) {
            // The guard is there all the same; only the death of both at once would leave something frozen.
            tracing::warn!("{}: cannot be written: {e}", path.display());
        }
    }

    fn script(&self, command: &[String], step: &str, result: &str) -> (bool, String) {
        let ran = run_script(command, self.context.volume, self.context.point, step, result, self.recipe.script_limit);
        if step == "post" {
            forget_post(self.context.leftover);
        }
        let said = match &ran.trouble {
            Some(trouble) if ran.output.is_empty() => trouble.clone(),
            Some(trouble) => format!("{trouble}: {}", ran.output),
            None => ran.output,
        };
        (ran.trouble.is_none(), said)
    }

    fn freeze(&mut self) -> (bool, String) {
        if let Some(why) = own(self.recipe, self.context.never) {
            return (false, why);
        }
        self.write_down(self.targets());
        let (limit, hold) = (self.recipe.freeze_limit, self.recipe.hold_limit);
        let (guard, result) = Guard::freeze(self.context.guard, &self.targets(), limit, hold);
        self.guard = guard;
        match result {
            Ok(1) => (true, "1 file system".to_owned()),
            Ok(count) => (true, format!("{count} file systems")),
            Err(why) => (false, why),
        }
    }

    /// Thaws. After a freeze that has failed it does not matter whether there was anything left to thaw.
    fn thaw(&mut self, after_failure: bool) -> (bool, String) {
        let path = self.context.leftover.to_path_buf();
        let Some(guard) = self.guard.take() else {
            forget_targets(&path);
            return (true, String::new());
        };
        match guard.thaw(self.recipe.thaw_limit, move || forget_targets(&path)) {
            Ok(Thawed::Before) if !after_failure => {
                (false, "it had thawed before: it was not frozen all the time".to_owned())
            }
            Ok(_) => (true, String::new()),
            Err(why) => (false, format!("{why}; it is tried until it is done")),
        }
    }
}

fn run_script(command: &[String], volume: &str, point: &str, step: &str, result: &str, limit: Duration) -> script::Ran {
    let variables = [
        ("AFTERIMAGE_VOLUME", volume),
        ("AFTERIMAGE_POINT", point),
        ("AFTERIMAGE_STEP", step),
        ("AFTERIMAGE_RESULT", result),
    ];
    script::run(command, &variables, limit)
}

fn load(path: &Path) -> Option<Leftover> {
    let bytes = std::fs::read(path).ok()?;
    serde_json::from_slice(&bytes).map_err(|e| tracing::warn!("{}: {e}: it is left alone", path.display())).ok()
}

/// Takes something off the list; the file goes with the last of it.
fn cross_off(path: &Path, change: impl FnOnce(&mut Leftover)) {
    let Some(mut leftover) = load(path) else { return };
    change(&mut leftover);
    let done = if leftover.targets.is_empty() && leftover.post.is_empty() {
        std::fs::remove_file(path)
    } else {
        serde_json::to_vec(&leftover).map_err(std::io::Error::other).and_then(|bytes| crashsafe::replace(path, &bytes))
    };
    if let Err(e) = done {
        tracing::warn!("{}: {e}: the next start thaws and runs the post script once more", path.display());
    }
}

fn forget_targets(path: &Path) {
    cross_off(path, |l| l.targets = Targets::default());
}

fn forget_post(path: &Path) {
    cross_off(path, |l| l.post = Vec::new());
}

/// Ends what an agent that was killed has begun: thaws, however long that takes, and runs the post script. To be called in a thread of its own.
pub fn end_leftover(path: &Path) {
    let Some(leftover) = load(path) else { return };
    tracing::warn!(
        "volume {}: point '{}' was not brought to its end last time: what it froze is thawed",
        leftover.volume,
        leftover.point
    );
    guard::thaw_all(&mut Frozen::left(&leftover.targets));
    forget_targets(path);
    if !leftover.post.is_empty() {
        let limit = Duration::from_millis(leftover.script_ms);
        let ran = run_script(&leftover.post, &leftover.volume, &leftover.point, "post", "failed", limit);
        if let Some(trouble) = ran.trouble {
            tracing::warn!("volume {}: the post script: {trouble}: {}", leftover.volume, ran.output);
        }
    }
    forget_post(path);
}

#[cfg(test)]
#[path = "app_tests.rs"]
mod tests;

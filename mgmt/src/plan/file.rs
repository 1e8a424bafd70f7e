//! A plan as people write it.
//!
//! ```toml
//! version = 1
//! name = "shop"
//!
//! [[step]]
//! name = "databases"
//! machines = ["db1", "db2"]          # at the same time
//! checks = ["boot", "tcp:5432"]      # a machine counts as started when it passed these
//! limit = "10m"                      # for each of its machines; also what each script may take
//! manual-limit = "4h"                # what people may take for a manual action
//! retries = 1
//! on-failure = "roll-back"           # or "stop", "continue"
//! before = [{ script = "/etc/afterimage/announce" }]
//! after = [{ wait = "30s" }, { manual = "Point the DNS at the new address" }]
//! ```

use crate::failover::check::Check;
use crate::target::machine::Machine;
use crate::units::{format_duration, parse_duration};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;
use thiserror::Error;

/// The version of the file.
pub const VERSION: u32 = 1;
/// Most bytes of a file.
pub const MAX_FILE: u64 = 256 << 10;
/// Most steps, and most machines or tasks in one.
pub const MOST: usize = 100;
/// Most machines of a plan: so many are begun and looked after by one process.
pub const MOST_MACHINES: usize = 200;
/// Most times that something is tried again.
const MOST_RETRIES: u32 = 10;
/// Longest text of a manual action.
const MAX_TEXT: usize = 1000;

/// Why a plan cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PlanError {
    /// It is no TOML of this shape.
    #[error("{0}")]
    Shape(String),
    /// Of another version.
    #[error(
        "the plan is of version {0}, this program reads version {VERSION}: use the program that it was written for"
    )]
    Version(u32),
    /// Something in it cannot be.
    #[error("plan {plan}: {what}")]
    Wrong {
        /// Its name.
        plan: String,
        /// What.
        what: String,
    },
}

/// A span of time, written as `1h30m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span(pub Duration);

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&format_duration(self.0))
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let span = parse_duration(&String::deserialize(d)?).map_err(de::Error::custom)?;
        // Whole seconds are written back as they were read.
        if span.subsec_nanos() == 0 { Ok(Span(span)) } else { Err(de::Error::custom("write whole seconds")) }
    }
}

/// What is done before or after the machines of a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub enum Task {
    /// A program of this host: status 0 means that it went well.
    Script(PathBuf),
    /// Time that has to pass.
    Wait(Span),
    /// Something that people do, and then say so: `afterimage failover continue`.
    Manual(String),
}

impl std::fmt::Display for Task {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Task::Script(path) => write!(f, "script {}", path.display()),
            Task::Wait(span) => write!(f, "wait {}", format_duration(span.0)),
            Task::Manual(text) => write!(f, "by hand: {text}"),
        }
    }
}

/// What follows when a machine or a task failed, also when tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnFailure {
    /// What was started is taken back, in the opposite order.
    #[default]
    RollBack,
    /// The plan ends, and what was started stays.
    Stop,
    /// It goes on with the next, and says in the end that it did not go well.
    Continue,
}

const fn ten_minutes() -> Span {
    Span(Duration::from_secs(600))
}

const fn a_day() -> Span {
    Span(Duration::from_secs(86_400))
}

fn boot() -> Vec<Check> {
    vec![Check::Boot]
}

/// A step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Step {
    /// Its name.
    pub name: String,
    /// What comes first, one after the other.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub before: Vec<Task>,
    /// Machines that are started at the same time.
    #[serde(default)]
    pub machines: Vec<String>,
    /// What each has to pass.
    #[serde(default = "boot")]
    pub checks: Vec<Check>,
    /// What comes behind them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<Task>,
    /// How long a machine or a script may take.
    #[serde(default = "ten_minutes")]
    pub limit: Span,
    /// How long people may take for a manual action.
    #[serde(default = "a_day")]
    pub manual_limit: Span,
    /// How often what failed is tried again.
    #[serde(default)]
    pub retries: u32,
    /// What follows then.
    #[serde(default)]
    pub on_failure: OnFailure,
}

/// A plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Plan {
    /// [`VERSION`].
    pub version: u32,
    /// Its name.
    pub name: String,
    /// Its steps, in order.
    #[serde(rename = "step")]
    pub steps: Vec<Step>,
}

/// Only the version: a later one may have keys that are not known here.
#[derive(Deserialize)]
struct OnlyVersion {
    version: u32,
}

impl Plan {
    /// Reads and checks a plan.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Plan, PlanError> {
        let shape = |e: toml::de::Error| PlanError::Shape(e.to_string().trim_end().to_owned());
        let OnlyVersion { version } = toml::from_str(text).map_err(shape)?;
        if version != VERSION {
            return Err(PlanError::Version(version));
        }
        let plan: Plan = toml::from_str(text).map_err(shape)?;
        plan.check().map_err(|what| PlanError::Wrong { plan: plan.name.clone(), what })?;
        Ok(plan)
    }

    /// All its machines, in order.
    pub fn machines(&self) -> impl Iterator<Item = &str> {
        self.steps.iter().flat_map(|s| s.machines.iter().map(String::as_str))
    }

    fn check(&self) -> Result<(), String> {
        is_name(&self.name)?;
        if self.steps.is_empty() || self.steps.len() > MOST {
            return Err(format!("it has {} steps, and can have 1 to {MOST}", self.steps.len()));
        }
        if self.machines().count() > MOST_MACHINES {
            return Err(format!("it has {} machines, and can have up to {MOST_MACHINES}", self.machines().count()));
        }
        let (mut steps, mut machines) = (BTreeSet::new(), BTreeSet::new());
        for step in &self.steps {
            let of = |what: String| format!("step '{}': {what}", step.name);
            step.check().map_err(of)?;
            if !steps.insert(&step.name) {
                return Err(format!("two steps are named '{}'", step.name));
            }
            if let Some(twice) = step.machines.iter().find(|m| !machines.insert(m.as_str())) {
                return Err(of(format!("machine {twice} has been started before")));
            }
        }
        Ok(())
    }
}

fn is_name(name: &str) -> Result<(), String> {
    let wrong = |_| format!("'{name}' is no name: write letters, digits, dots, dashes and underscores");
    Machine::of_volume(name).check().map_err(wrong)
}

impl Step {
    fn check(&self) -> Result<(), String> {
        if self.name.is_empty() || self.name.len() > 100 || self.name.chars().any(char::is_control) {
            return Err("a name has 1 to 100 letters, on one line".to_owned());
        }
        let tasks = || self.before.iter().chain(&self.after);
        if self.machines.is_empty() && tasks().next().is_none() {
            return Err("it does nothing: give it machines, or something before or after".to_owned());
        }
        if self.machines.len() > MOST || tasks().count() > MOST || self.checks.len() > MOST {
            return Err(format!("it has more than {MOST} machines, checks or tasks"));
        }
        if self.checks.is_empty() {
            return Err(
                "checks is empty: name what a machine has to pass, or leave it out, which means boot".to_owned()
            );
        }
        if self.retries > MOST_RETRIES {
            return Err(format!("retries is {}, and can be up to {MOST_RETRIES}", self.retries));
        }
        for (name, limit) in [("limit", self.limit), ("manual-limit", self.manual_limit)] {
            if limit.0.is_zero() {
                return Err(format!("{name} is 0: nothing could be done within it"));
            }
        }
        self.machines.iter().try_for_each(|m| is_name(m))?;
        tasks().try_for_each(|task| match task {
            Task::Script(path) if !path.is_absolute() => Err(format!("script {} is no absolute path", path.display())),
            Task::Manual(text) if text.is_empty() || text.len() > MAX_TEXT || text.chars().any(char::is_control) => {
                Err(format!("a manual action is a text of 1 to {MAX_TEXT} letters, on one line"))
            }
            _ => Ok(()),
        })
    }
}

/// What the plan will do, in order, for people who look before they leap.
#[must_use]
pub fn dry_run(plan: &Plan) -> String {
    let mut out = format!("plan {}: {} machines in {} steps\n", plan.name, plan.machines().count(), plan.steps.len());
    for (n, step) in plan.steps.iter().enumerate() {
        let failure = match step.on_failure {
            OnFailure::RollBack => "all is taken back",
            OnFailure::Stop => "the plan ends, what was started stays",
            OnFailure::Continue => "it goes on",
        };
        let again = match step.retries {
            0 => String::new(),
            n => format!(" also when tried again ({n})"),
        };
        let _ = writeln!(out, "{}. {} (if something fails{again}: {failure})", n + 1, step.name);
        let of = |task: &Task| match task {
            Task::Script(_) => format!(", within {}", format_duration(step.limit.0)),
            Task::Manual(_) => format!(", within {}", format_duration(step.manual_limit.0)),
            Task::Wait(_) => String::new(),
        };
        for task in &step.before {
            let _ = writeln!(out, "   {task}{}", of(task));
        }
        if !step.machines.is_empty() {
            let checks: Vec<String> = step.checks.iter().map(ToString::to_string).collect();
            let (machines, limit) = (step.machines.join(", "), format_duration(step.limit.0));
            let together = if step.machines.len() > 1 { " at the same time" } else { "" };
            let _ = writeln!(out, "   start {machines}{together}, to pass {} within {limit}", checks.join(", "));
        }
        for task in &step.after {
            let _ = writeln!(out, "   {task}{}", of(task));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
version = 1
name = "shop"
[[step]]
name = "databases"
machines = ["db1", "db2"]
checks = ["boot", "tcp:5432"]
limit = "5m"
retries = 1
before = [{ script = "/bin/true" }]
after = [{ wait = "30s" }, { manual = "Look at the lights" }]
[[step]]
name = "front"
machines = ["web"]
on-failure = "continue"
"#;

    #[test]
    fn a_plan_is_read_and_said_back() {
        let plan = Plan::parse(GOOD).unwrap();
        assert_eq!(plan.machines().collect::<Vec<_>>(), ["db1", "db2", "web"]);
        let text = dry_run(&plan);
        for says in [
            "3 machines in 2 steps",
            "1. databases (if something fails also when tried again (1): all is taken back)",
            "   script /bin/true, within 5m",
            "   start db1, db2 at the same time, to pass boot, tcp:5432 within 5m",
            "   by hand: Look at the lights, within 1d",
            "2. front (if something fails: it goes on)",
        ] {
            assert!(text.contains(says), "{text}");
        }
        let again: Plan = serde_json::from_str(&serde_json::to_string(&plan).unwrap()).unwrap();
        assert_eq!(again, plan);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (from, to, says) in [
            ("version = 1", "version = 2", "version 2"),
            ("name = \"shop\"", "name = \"a/b\"", "a/b"),
            ("retries = 1", "retries = 11", "retries is 11"),
            ("retries = 1", "retry = 1", "retry"),
            ("limit = \"5m\"", "limit = \"0\"", "limit is 0"),
            ("limit = \"5m\"", "limit = \"5\"", "duration"),
            ("limit = \"5m\"", "limit = \"5ms\"", "whole seconds"),
            ("machines = [\"web\"]", "machines = [\"db1\"]", "step 'front': machine db1 has been started before"),
            ("machines = [\"web\"]", "", "step 'front': it does nothing"),
            ("name = \"front\"", "name = \"databases\"", "two steps are named 'databases'"),
            ("/bin/true", "true", "no absolute path"),
            ("Look at the lights", "a\\nb", "on one line"),
            ("tcp:5432", "udp:1", "udp:1"),
            ("wait = \"30s\"", "sleep = \"30s\"", "sleep"),
            ("\"continue\"", "\"hope\"", "hope"),
            ("[\"boot\", \"tcp:5432\"]", "[]", "checks is empty"),
        ] {
            let text = GOOD.replacen(from, to, 1);
            assert_ne!(text, GOOD);
            let error = Plan::parse(&text).unwrap_err().to_string();
            assert!(error.contains(says), "{from} -> {to}: {error}");
        }
        assert!(Plan::parse("version = 1\nname = \"x\"\nstep = []").is_err());
    }
}

//! A script of a recovery plan, while it runs.

use afterimage_mgmt::plan::record::Record;
use afterimage_mgmt::plan::run::At;
use afterimage_mgmt::target::process::prepare;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::fs::File;
use std::io;
use std::path::Path;
use std::process::Child;

/// A script that runs; killed when this is dropped.
pub(super) struct Script {
    /// Where it stands in the plan.
    pub(super) at: At,
    child: Child,
}

impl Script {
    /// In a session of its own, so that it ends together with all that it has started; it dies with this thread. It is told what it runs
    /// for: what a test does must not touch production.
    pub(super) fn start(at: At, path: &Path, record: &Record) -> io::Result<Script> {
        let log = File::options().create(true).append(true).open("script.log")?;
        let run = &record.run;
        let step = run.plan.steps.get(at.0).map_or("", |s| s.name.as_str());
        let purpose = if record.is_test() { "test" } else { "failover" };
        let words = [
            "env".to_owned(),
            format!("AFTERIMAGE_JOB={}", run.id),
            format!("AFTERIMAGE_PLAN={}", run.plan.name),
            format!("AFTERIMAGE_STEP={step}"),
            format!("AFTERIMAGE_PURPOSE={purpose}"),
            path.to_string_lossy().into_owned(),
        ];
        Ok(Script { at, child: prepare("setsid", &words, Path::new("."), &log)?.open()? })
    }

    /// How it ended, if it has.
    pub(super) fn result(&mut self) -> Option<Result<(), String>> {
        match self.child.try_wait() {
            Ok(None) => None,
            Ok(Some(status)) if status.success() => Some(Ok(())),
            Ok(Some(status)) => Some(Err(format!("{status}; what it printed is in script.log"))),
            Err(e) => Some(Err(e.to_string())),
        }
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        if let (Ok(pid), Ok(None)) = (i32::try_from(self.child.id()), self.child.try_wait()) {
            // It may not have a session yet, or have ended meanwhile.
            let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
            drop(self.child.kill());
        }
        drop(self.child.wait());
    }
}

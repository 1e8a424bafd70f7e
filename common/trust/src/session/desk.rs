//! What a member tells mgmt of itself, and what it answers when asked.
//!
//! An answer may take seconds (a readiness check measures the way to the appliance), and a report may wait for locks, so each has a thread, and
//! the session's own thread only carries. Questions beyond [`MOST`] at once are answered with nothing: mgmt tries again or gives up.

use super::REPORT_EVERY;
use crate::messages::send;
use crate::stream::TlsWriter;
use afterimage_format::coord::{Asked, Kind, MAX_BODY};
use std::io;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;

/// Questions that are worked on at once.
const MOST: usize = 4;

/// What a role does for the session: both are JSON, of which this crate knows nothing.
pub trait Duties: Send + Sync {
    /// How the member is; `None` while it is starting or stopping. Called every few seconds, in a thread of its
    /// own.
    fn report(&self) -> Option<Vec<u8>>;
    /// The answer to a question of mgmt. Called in a thread of its own.
    fn answer(&self, ask: &[u8]) -> Vec<u8>;
}

/// A report, with a number that grows: the later one knows more, whichever thread made it.
type Report = (u64, Option<Vec<u8>>);
/// An answer, and a report that knows of it.
type Work = (Report, Asked);

pub(super) struct Desk {
    duties: Arc<dyn Duties>,
    made: Arc<Mutex<u64>>,
    /// The number of the last one that was sent.
    sent: u64,
    reported: Option<Instant>,
    reports: (SyncSender<Report>, Receiver<Report>),
    /// Who makes the next one.
    reporter: Option<JoinHandle<()>>,
    at_work: usize,
    answers: (SyncSender<Work>, Receiver<Work>),
}

/// Makes a report. One at a time, so that the numbers are in the order of what is known.
fn report(duties: &dyn Duties, made: &Mutex<u64>) -> Report {
    let mut number = made.lock().unwrap_or_else(PoisonError::into_inner);
    *number += 1;
    (*number, duties.report())
}

impl Desk {
    pub(super) fn new(duties: Arc<dyn Duties>) -> Desk {
        // As many as there are threads: none of them waits for the session, also not for one that has ended.
        let (reports, answers) = (sync_channel(1), sync_channel(MOST));
        let made = Arc::default();
        Desk { duties, made, sent: 0, reported: None, reports, reporter: None, at_work: 0, answers }
    }

    /// Sends what there is to say now. Before an answer goes a report: what the answer made is in it.
    pub(super) fn send_due(&mut self, writer: &mut TlsWriter) -> io::Result<()> {
        if let Ok(report) = self.reports.1.try_recv() {
            self.send_report(writer, report)?;
        }
        let waits = self.reporter.as_ref().is_some_and(|thread| !thread.is_finished());
        if !waits && self.reported.is_none_or(|at| at.elapsed() >= REPORT_EVERY) {
            self.reported = Some(Instant::now());
            let (duties, made, done) = (Arc::clone(&self.duties), Arc::clone(&self.made), self.reports.0.clone());
            // It may wait for locks, and the session must not: a barrier would wait with it. One that comes when another has not been
            // sent is let go.
            let work = move || drop(done.try_send(report(&*duties, &made)));
            match thread::Builder::new().name("mgmt-report".to_owned()).spawn(work) {
                Ok(thread) => self.reporter = Some(thread),
                Err(e) => tracing::error!("no thread for a report to mgmt: {e}"),
            }
        }
        let answers: Vec<Work> = self.answers.1.try_iter().collect();
        for (report, answer) in answers {
            self.at_work = self.at_work.saturating_sub(1);
            self.send_report(writer, report)?;
            send(writer, Kind::Answer, &answer.encode())?;
        }
        Ok(())
    }

    /// Sends a report, unless a later one went before.
    fn send_report(&mut self, writer: &mut TlsWriter, (number, report): Report) -> io::Result<()> {
        if number < self.sent {
            return Ok(());
        }
        self.sent = number;
        match report {
            Some(report) if report.len() <= MAX_BODY => send(writer, Kind::Report, &report),
            Some(report) => {
                tracing::warn!("a report of {} bytes is too long for mgmt and was left out", report.len());
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Begins to work on a question.
    pub(super) fn take(&mut self, ask: &Asked) {
        if self.at_work >= MOST {
            return tracing::warn!("mgmt asks too much at once: a question was left out");
        }
        let (duties, made, done) = (Arc::clone(&self.duties), Arc::clone(&self.made), self.answers.0.clone());
        let (number, json) = (ask.number, ask.json.clone());
        let work = move || {
            let mut answer = Asked { number, json: duties.answer(&json) };
            if answer.json.len() > MAX_BODY - 8 {
                answer.json.clear();
            }
            // The session may have ended.
            let _ = done.try_send((report(&*duties, &made), answer));
        };
        match thread::Builder::new().name("mgmt-answer".to_owned()).spawn(work) {
            Ok(_) => self.at_work += 1,
            Err(e) => tracing::error!("no thread for a question of mgmt: {e}"),
        }
    }
}

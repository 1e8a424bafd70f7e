//! What a member tells mgmt of itself, and what it answers when asked.
//!
//! An answer may take seconds (a readiness check measures the way to the appliance), so each question has a thread, and the
//! session's own thread only carries. Questions beyond [`MOST`] at once are answered with nothing: mgmt tries again or gives up.

use super::REPORT_EVERY;
use crate::messages::send;
use crate::stream::TlsWriter;
use afterimage_format::coord::{Asked, Kind, MAX_BODY};
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Instant;

/// Questions that are worked on at once.
const MOST: usize = 4;

/// What a role does for the session: both are JSON, of which this crate knows nothing.
pub trait Duties: Send + Sync {
    /// How the member is; `None` while it is starting or stopping. Called every few seconds by the session's thread; it must not
    /// wait for anything.
    fn report(&self) -> Option<Vec<u8>>;
    /// The answer to a question of mgmt. Called in a thread of its own.
    fn answer(&self, ask: &[u8]) -> Vec<u8>;
}

pub(super) struct Desk {
    duties: Arc<dyn Duties>,
    reported: Option<Instant>,
    at_work: usize,
    done: SyncSender<Asked>,
    answers: Receiver<Asked>,
}

impl Desk {
    pub(super) fn new(duties: Arc<dyn Duties>) -> Desk {
        // As many as there are threads: none of them waits for the session, also not for one that has ended.
        let (done, answers) = sync_channel(MOST);
        Desk { duties, reported: None, at_work: 0, done, answers }
    }

    /// Sends what there is to say now. Before an answer goes a report: what the answer made is in it.
    pub(super) fn send_due(&mut self, writer: &mut TlsWriter) -> io::Result<()> {
        let answers: Vec<Asked> = self.answers.try_iter().collect();
        if !answers.is_empty() || self.reported.is_none_or(|at| at.elapsed() >= REPORT_EVERY) {
            self.reported = Some(Instant::now());
            match self.duties.report() {
                Some(report) if report.len() <= MAX_BODY => send(writer, Kind::Report, &report)?,
                Some(report) => {
                    tracing::warn!("a report of {} bytes is too long for mgmt and was left out", report.len());
                }
                None => {}
            }
        }
        for answer in answers {
            self.at_work = self.at_work.saturating_sub(1);
            send(writer, Kind::Answer, &answer.encode())?;
        }
        Ok(())
    }

    /// Begins to work on a question.
    pub(super) fn take(&mut self, ask: &Asked) {
        if self.at_work >= MOST {
            return tracing::warn!("mgmt asks too much at once: a question was left out");
        }
        let (duties, done) = (Arc::clone(&self.duties), self.done.clone());
        let (number, json) = (ask.number, ask.json.clone());
        let work = move || {
            let mut answer = Asked { number, json: duties.answer(&json) };
            if answer.json.len() > MAX_BODY - 8 {
                answer.json.clear();
            }
            // The session may have ended.
            let _ = done.try_send(answer);
        };
        match thread::Builder::new().name("mgmt-answer".to_owned()).spawn(work) {
            Ok(_) => self.at_work += 1,
            Err(e) => tracing::error!("no thread for a question of mgmt: {e}"),
        }
    }
}

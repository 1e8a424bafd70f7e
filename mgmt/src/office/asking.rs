//! What mgmt asks members over their sessions, and what they say of themselves.

use super::Office;
use crate::catalogue::{CatalogueError, NewEvent, Severity};
use crate::failover::summary::Recovery;
use crate::members::MemberAsk;
use crate::protocol::{Failure, Status, VolumeStatus};
use crate::reports::recoveries;
use afterimage_format::coord::{Asked, REPORTS};
use afterimage_trust::identity::{Identity, Role};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;
use thiserror::Error;
use uuid::Uuid;

/// Questions to one member that wait for an answer.
const MOST_WAITING: usize = 16;
/// Failovers of an appliance that are compared with what it reports: some times as many as it reports.
const MOST_RECOVERIES: u32 = 2000;

/// Why a question brought no answer.
#[derive(Debug, Error)]
pub enum AskError {
    /// Nobody to ask.
    #[error("{0} is not connected to mgmt: is it running, and does it reach this host?")]
    Away(String),
    /// It cannot be asked.
    #[error("the program of {0} is older than this mgmt and cannot be asked: update it")]
    Older(String),
    /// Too many questions at once.
    #[error("{0} has too many questions to answer already: try again")]
    Busy(String),
    /// It took too long, or left.
    #[error("{0} did not answer in time")]
    Silent(String),
    /// It answered what was not understood.
    #[error("{0} gave an answer that was not understood: {1}")]
    Answer(String, String),
    /// It said no.
    #[error("{0}: {1}")]
    Refused(String, Failure),
}

/// An answer, as it travels.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answered<T> {
    /// It.
    Ok(T),
    /// Why there is none.
    Error(Failure),
}

impl Office {
    /// Asks a member, and waits for the answer.
    ///
    /// # Errors
    /// As [`AskError`] says.
    pub fn ask<T: DeserializeOwned>(
        &self,
        member: &Uuid,
        name: &str,
        ask: &MemberAsk,
        limit: Duration,
    ) -> Result<T, AskError> {
        let named = || name.to_owned();
        let json = serde_json::to_vec(ask).map_err(|e| AskError::Answer(named(), e.to_string()))?;
        let number = self.questions.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = sync_channel(1);
        {
            let mut guests = self.guests();
            // The newest session, if an older one has not ended yet.
            let guest = guests.values_mut().rev().find(|g| g.identity.id == *member);
            let guest = guest.ok_or_else(|| AskError::Away(named()))?;
            if guest.version < REPORTS {
                return Err(AskError::Older(named()));
            }
            if guest.waiting.len() >= MOST_WAITING {
                return Err(AskError::Busy(named()));
            }
            guest.asks.push(Asked { number, json });
            guest.waiting.insert(number, answer);
            guest.bell.ring();
        }
        let got = answered.recv_timeout(limit);
        for guest in self.guests().values_mut() {
            guest.waiting.remove(&number);
        }
        let json = got.map_err(|e| match e {
            RecvTimeoutError::Timeout => AskError::Silent(named()),
            RecvTimeoutError::Disconnected => AskError::Away(named()),
        })?;
        match serde_json::from_slice(&json) {
            Ok(Answered::Ok(answer)) => Ok(answer),
            Ok(Answered::Error(failure)) => Err(AskError::Refused(named(), failure)),
            Err(e) => Err(AskError::Answer(named(), e.to_string())),
        }
    }

    /// What is to be sent to a session.
    pub(super) fn questions_for(&self, number: u64) -> Vec<Asked> {
        self.guests().get_mut(&number).map(|guest| std::mem::take(&mut guest.asks)).unwrap_or_default()
    }

    /// An answer has come. One that nobody waits for any more is dropped.
    pub(super) fn answered(&self, number: u64, answer: Asked) {
        let waits = self.guests().get_mut(&number).and_then(|guest| guest.waiting.remove(&answer.number));
        if let Some(waits) = waits {
            // Whoever asked may have given up.
            let _ = waits.try_send(answer.json);
        }
    }

    /// A session has begun.
    pub(super) fn arrived(&self, identity: &Identity, name: &str, address: &str) {
        let text = format!("{} {name} is connected, from {address}", identity.role);
        self.note(&[NewEvent::new(Severity::Info, "connected", &object(identity, name), &text)]);
    }

    /// A session has ended. If the member has another one, that is no news.
    pub(super) fn left(&self, identity: &Identity, name: &str) {
        if self.guests().values().any(|g| g.identity == *identity) {
            return;
        }
        self.reports.forget(&identity.id);
        let text = format!("{} {name} is not connected any more; protection goes on without mgmt", identity.role);
        self.note(&[NewEvent::new(Severity::Warning, "away", &object(identity, name), &text)]);
    }

    /// A member says how it is. What has to be written down of it is left to the clerk.
    pub(super) fn reported(&self, identity: &Identity, name: &str, json: &[u8]) {
        let status: Status = match serde_json::from_slice(json) {
            Ok(status) => status,
            Err(e) => return tracing::warn!("{} '{name}': its report was not understood: {e}", identity.role),
        };
        if self.reports.keep(identity, name, status.clone()) {
            self.clerk.report(*identity, name, status);
        }
    }

    /// Keeps of a report what is news to the catalogue.
    pub(super) fn write_down(&self, identity: &Identity, name: &str, status: &Status) {
        let written = match identity.role {
            Role::Agent => self.note_volumes(&identity.id.to_string(), name, &status.volumes),
            Role::Appliance => self.note_recoveries(&identity.id.to_string(), name, &status.recoveries),
            Role::Mgmt | Role::Nbd => Ok(()),
        };
        if let Err(e) = written {
            tracing::error!("what {} '{name}' reported could not be kept: {e}", identity.role);
        }
    }

    fn note_volumes(&self, agent: &str, name: &str, there: &[VolumeStatus]) -> Result<(), CatalogueError> {
        let known = self.catalogue.volumes_of(agent)?;
        let (rows, events) = crate::reports::changes(agent, name, &known, there, crate::catalogue::now());
        if rows.is_empty() && events.is_empty() {
            return Ok(());
        }
        self.catalogue.record(|book| {
            rows.iter().try_for_each(|row| book.volume(row))?;
            events.iter().try_for_each(|event| book.event(event))
        })
    }

    fn note_recoveries(&self, appliance: &str, name: &str, there: &[Recovery]) -> Result<(), CatalogueError> {
        let known = self.catalogue.recoveries(Some(appliance), MOST_RECOVERIES)?;
        let (rows, events) = recoveries::changes((appliance, name), &known, there, crate::catalogue::now());
        if rows.is_empty() {
            return Ok(());
        }
        self.catalogue.record(|book| {
            rows.iter().try_for_each(|row| book.recovery(row))?;
            events.iter().try_for_each(|event| book.event(event))
        })
    }

    /// Writes events. What cannot be written is in the log.
    pub(crate) fn note(&self, events: &[NewEvent]) {
        if let Err(e) = self.catalogue.record(|book| events.iter().try_for_each(|event| book.event(event))) {
            tracing::error!("an event could not be kept: {e}");
        }
    }
}

fn object(identity: &Identity, name: &str) -> String {
    let kind = if identity.role == Role::Agent { "machine" } else { identity.role.as_str() };
    format!("{kind} {name}")
}

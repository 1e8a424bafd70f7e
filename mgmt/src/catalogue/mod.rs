//! What mgmt knows: one SQLite file.
//!
//! Every change is one transaction that also says, in the audit log, who did what and when: [`Catalogue::change`] is the only
//! way to change what somebody wants, and a change without an entry is not committed. What is seen rather than wanted (events, the
//! volumes that agents report, how a job goes) is written by [`Catalogue::record`], whose [`Book`] reaches these tables alone; points of groups in [`points`]. The file is in WAL mode and synchronous, so what was answered
//! survives a kill and a power cut.

mod book;
pub mod groups;
pub(crate) mod keeping;
mod keys;
mod objects;
pub mod points;
mod recoveries;
mod rows;
mod schema;

pub use book::{Book, EventRow, JobRow, NewEvent, Severity, VolumeRow};
pub use keys::{ApiRole, ApiTokenRow};
pub use objects::{GuestRow, PolicyRow, PolicySettings, ProtectionRow};
pub use recoveries::RecoveryRow;
pub use rows::{AuditRow, CertificateRow, Member, NewToken, Redeemed, TokenRow};

use afterimage_trust::Role;
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use thiserror::Error;

/// Why the catalogue did not do what was asked.
#[derive(Debug, Error)]
pub enum CatalogueError {
    /// The database.
    #[error("the catalogue: {0}")]
    Database(#[from] rusqlite::Error),
    /// Its file.
    #[error("{0}: {1}")]
    File(String, std::io::Error),
    /// Written by a newer program.
    #[error("the catalogue has version {found}, this program knows up to {known}: use the program that wrote it")]
    Newer {
        /// Its version.
        found: i64,
        /// Ours.
        known: usize,
    },
    /// It is not there.
    #[error("{0}")]
    NotFound(String),
    /// It contradicts what is there.
    #[error("{0}")]
    Conflict(String),
    /// It is not allowed.
    #[error("{0}")]
    Refused(String),
    /// A change that says nothing in the audit log.
    #[error("a change without an entry in the audit log was not made")]
    Silent,
}

/// Seconds since 1970.
#[must_use]
pub fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// See the module.
#[derive(Debug)]
pub struct Catalogue {
    db: Mutex<Connection>,
    /// The newest event, for those who wait for one.
    news: tokio::sync::watch::Sender<i64>,
}

/// A change under way.
pub struct Change<'a> {
    tx: Transaction<'a>,
    who: &'a str,
    said: std::cell::Cell<bool>,
    /// When, in seconds since 1970.
    pub time: i64,
}

impl std::fmt::Debug for Change<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Change by {}", self.who)
    }
}

impl Change<'_> {
    /// Says in the audit log what was done.
    ///
    /// # Errors
    /// Those of the database.
    pub fn log(&self, action: &str, object: &str, detail: &str) -> Result<(), CatalogueError> {
        self.tx.execute(
            "INSERT INTO audit (time, who, action, object, detail) VALUES (?1, ?2, ?3, ?4, ?5)",
            (self.time, self.who, action, object, detail),
        )?;
        book::insert_event(&self.tx, self.time, &NewEvent::change(self.who, action, object, detail))?;
        self.said.set(true);
        tracing::info!("{action} {object}: by {}{}{detail}", self.who, if detail.is_empty() { "" } else { "; " });
        Ok(())
    }
}

impl Catalogue {
    /// Opens the file or makes it, and brings it to the newest version.
    ///
    /// # Errors
    /// If it is damaged, of a newer version, or cannot be written.
    pub fn open(path: &Path) -> Result<Catalogue, CatalogueError> {
        // SQLite gives its other files the mode of this one.
        let made = std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path);
        made.map_err(|e| CatalogueError::File(path.display().to_string(), e))?;
        let mut db = Connection::open(path)?;
        db.busy_timeout(Duration::from_secs(10))?;
        db.pragma_update(None, "journal_mode", "WAL")?;
        db.pragma_update(None, "synchronous", "FULL")?;
        db.pragma_update(None, "foreign_keys", "ON")?;
        schema::migrate(&mut db)?;
        let news = tokio::sync::watch::Sender::new(book::newest_event(&db)?);
        Ok(Catalogue { db: Mutex::new(db), news })
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        self.db.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes one change, whole or not at all.
    ///
    /// # Errors
    /// What the change says, or the database; nothing is changed then. [`CatalogueError::Silent`] if nothing was logged.
    pub fn change<T>(
        &self,
        who: &str,
        make: impl FnOnce(&Change<'_>) -> Result<T, CatalogueError>,
    ) -> Result<T, CatalogueError> {
        let mut db = self.lock();
        let tx = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let change = Change { tx, who, said: std::cell::Cell::new(false), time: now() };
        let out = make(&change)?;
        if !change.said.get() {
            return Err(CatalogueError::Silent);
        }
        let newest = book::newest_event(&change.tx)?;
        change.tx.commit()?;
        self.news.send_replace(newest);
        Ok(out)
    }

    /// Writes down what was seen, whole or not at all.
    ///
    /// # Errors
    /// What `write` says, or the database; nothing is written then.
    pub fn record<T>(&self, write: impl FnOnce(&Book<'_>) -> Result<T, CatalogueError>) -> Result<T, CatalogueError> {
        let mut db = self.lock();
        let tx = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let book = Book::new(tx);
        let out = write(&book)?;
        let newest = book.close()?;
        self.news.send_replace(newest);
        Ok(out)
    }

    /// Tells of new events: the value is the number of the newest.
    #[must_use]
    pub fn news(&self) -> tokio::sync::watch::Receiver<i64> {
        self.news.subscribe()
    }

    /// A setting; `None` if it was never made.
    ///
    /// # Errors
    /// Those of the database.
    pub fn setting(&self, key: &str) -> Result<Option<String>, CatalogueError> {
        let db = self.lock();
        Ok(db.query_row("SELECT value FROM settings WHERE key = ?1", [key], |row| row.get(0)).optional()?)
    }

    /// Whether anybody has ever joined.
    ///
    /// # Errors
    /// Those of the database.
    pub fn is_empty(&self) -> Result<bool, CatalogueError> {
        let db = self.lock();
        Ok(db.query_row("SELECT NOT EXISTS (SELECT 1 FROM appliances UNION SELECT 1 FROM machines)", [], |row| {
            row.get(0)
        })?)
    }
}

/// The table of a role's members.
fn table(role: Role) -> Result<&'static str, CatalogueError> {
    match role {
        Role::Agent => Ok("machines"),
        Role::Appliance => Ok("appliances"),
        role => Err(CatalogueError::Refused(format!("nobody joins as {role}"))),
    }
}

#[cfg(test)]
#[path = "../catalogue_tests.rs"]
mod tests;

//! The coordination port (20004): who joins, who has joined.
//!
//! TLS 1.3 only. The two protocols are told apart by ALPN in the first message, before anything is answered: to join, no
//! certificate is asked for and one message is taken; for a session the certificate comes first. Nobody else hears more than a
//! refusal.

mod asking;
mod clerk;
mod port;
mod session;
mod site;
mod web;

pub use asking::{Answered, AskError};
pub use port::Port;
pub use site::Desk;

use crate::authority::{Authority, LIFE, Subject};
use crate::catalogue::{Catalogue, CatalogueError};
use crate::groups::Hub;
use crate::reports::Reports;
use afterimage_base::world::sync::Event;
use afterimage_format::coord::{Asked, Join, Revocations};
use afterimage_trust::identity::{Claims, Identity, Role};
use afterimage_trust::token::Token;
use afterimage_trust::{TrustError, csr, trust};
use rustls::sign::CertifiedKey;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};
use thiserror::Error;
use uuid::Uuid;

/// Why mgmt does not start.
#[derive(Debug, Error)]
pub enum OfficeError {
    /// The catalogue.
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
    /// The CA.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The folder.
    #[error("{0}: {1}")]
    File(String, std::io::Error),
}

/// Somebody connected.
#[derive(Debug)]
struct Guest {
    identity: Identity,
    name: String,
    /// The list of revocations that it uses.
    applied: u64,
    /// Rings when there is something to send.
    bell: Arc<Event>,
    /// The version that its session speaks.
    version: u16,
    /// Questions that are not sent yet.
    asks: Vec<Asked>,
    /// Who waits for which answer.
    waiting: BTreeMap<u64, SyncSender<Vec<u8>>>,
}

/// What all conversations share.
#[derive(Debug)]
pub struct Office {
    /// What mgmt knows.
    pub catalogue: Catalogue,
    /// The CA.
    pub authority: Authority,
    life: Duration,
    identity: Identity,
    own: Mutex<Option<(Arc<CertifiedKey>, Instant)>>,
    /// The same for the API, and the names under which it is reached.
    web: Mutex<web::Web>,
    /// What can be done with groups, while it runs.
    groups: OnceLock<Weak<crate::groups::Groups>>,
    /// How members are, as they say.
    pub reports: Reports,
    questions: AtomicU64,
    clerk: clerk::Clerk,
    /// What sessions tell of revocations, so that they need not ask the catalogue.
    revocations: Mutex<Arc<Revocations>>,
    /// Held while they are read anew.
    refreshing: Mutex<()>,
    guests: Mutex<BTreeMap<u64, Guest>>,
    /// Where barriers and sessions meet.
    pub hub: Hub,
    /// What is counted of groups.
    pub tally: crate::metrics::Tally,
}

/// A number for this life, greater than those of all before: also when a copy of the catalogue was put back.
fn begin_epoch(catalogue: &Catalogue) -> Result<u64, CatalogueError> {
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let clock = u64::try_from(clock.as_millis()).unwrap_or(0);
    let before: u64 = catalogue.setting("epoch")?.and_then(|t| t.parse().ok()).unwrap_or(0);
    let epoch = clock.max(before + 1);
    catalogue.set_epoch(epoch)?;
    Ok(epoch)
}

impl Office {
    /// Opens the folder `mgmt/` of a data folder, or makes it. `life` is that of new certificates.
    ///
    /// # Errors
    /// If the CA or the catalogue cannot be used, or do not belong together.
    pub fn open(data: &Path, life: Option<Duration>) -> Result<Office, OfficeError> {
        let dir = data.join("mgmt");
        let at = |e| OfficeError::File(dir.display().to_string(), e);
        afterimage_base::crashsafe::create_folders(&dir).map_err(at)?;
        let catalogue = Catalogue::open(&dir.join("catalogue.sqlite"))?;
        let path = dir.join("authority.pem");
        let known = catalogue.setting("authority")?;
        if !path.exists() && known.is_some() && !catalogue.is_empty()? {
            return Err(OfficeError::Trust(TrustError::Refused(format!(
                "{} is gone, and hosts have joined with it: put a copy of it back. If there is none, move {} away and let all \
                 hosts join again (docs/security.md)",
                path.display(),
                dir.display()
            ))));
        }
        let made = !path.exists();
        let authority = if made { Authority::create(&path)? } else { Authority::load(&path)? };
        let mark = authority.fingerprint();
        if known.as_ref() != Some(&mark) {
            if known.is_some() && !catalogue.is_empty()? {
                return Err(OfficeError::Trust(TrustError::Refused(format!(
                    "{} is another CA than the one of the catalogue beside it: both must be of one copy",
                    path.display()
                ))));
            }
            catalogue.change("mgmt", |change| {
                change.set("authority", &mark)?;
                change.log("create-authority", "CA", &mark)
            })?;
        }
        let id = match catalogue.setting("id")?.and_then(|t| Uuid::try_parse(&t).ok()) {
            Some(id) => id,
            None => {
                let id = Uuid::new_v4();
                catalogue.change("mgmt", |change| {
                    change.set("id", &id.to_string())?;
                    change.log("create", "mgmt", &id.to_string())
                })?;
                id
            }
        };
        let identity = Identity { role: Role::Mgmt, id, vault: Uuid::nil() };
        let hub = Hub::new(begin_epoch(&catalogue)?);
        let (own, guests) = (Mutex::default(), Mutex::default());
        let cut_off = catalogue.record(|book| book.jobs_were_cut_off())?;
        if cut_off > 0 {
            tracing::warn!("{cut_off} jobs had not ended when mgmt did last time");
        }
        let (web, reports, questions) = (Mutex::default(), Reports::default(), AtomicU64::new(0));
        let revocations = Mutex::new(Arc::new(catalogue.revocations()?));
        Ok(Office {
            catalogue,
            authority,
            life: life.unwrap_or(LIFE),
            identity,
            own,
            web,
            groups: OnceLock::new(),
            reports,
            questions,
            clerk: clerk::Clerk::default(),
            revocations,
            refreshing: Mutex::default(),
            guests,
            hub,
            tally: crate::metrics::Tally::default(),
        })
    }

    /// Says who does what is asked of groups.
    pub fn set_groups(&self, groups: &Arc<crate::groups::Groups>) {
        // There is one.
        drop(self.groups.set(Arc::downgrade(groups)));
    }

    /// What can be done with groups; `None` while mgmt starts or stops.
    #[must_use]
    pub fn groups(&self) -> Option<Arc<crate::groups::Groups>> {
        self.groups.get().and_then(Weak::upgrade)
    }

    fn guests(&self) -> MutexGuard<'_, BTreeMap<u64, Guest>> {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The key and certificate that this port shows. They live in memory only, and are made anew in time.
    fn own(&self) -> Result<Arc<CertifiedKey>, TrustError> {
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((key, made)) = &*own
            && made.elapsed() < self.life / 3
        {
            return Ok(Arc::clone(key));
        }
        let fresh = csr::fresh()?;
        let subject = Subject { identity: &self.identity, name: "mgmt", hosts: &[], life: self.life };
        let certificate = self.authority.issue(&fresh.request, &subject)?;
        // The CA's goes with it: who joins knows its hash only.
        let key = trust::certified(vec![certificate, self.authority.certificate().to_vec()], &fresh.key)?;
        let key = Arc::new(key);
        *own = Some((Arc::clone(&key), Instant::now()));
        Ok(key)
    }

    fn revoked(&self) -> Result<Arc<BTreeSet<Vec<u8>>>, CatalogueError> {
        Ok(Arc::new(self.catalogue.revocations()?.serials.into_iter().collect()))
    }

    fn join(&self, from: &str, ask: &Join) -> Result<crate::catalogue::Redeemed, CatalogueError> {
        let role = Role::of(ask.role).ok_or_else(|| CatalogueError::Refused("nobody joins as that".into()))?;
        let host: String = ask.host.chars().filter(|c| !c.is_control()).take(64).collect();
        let who = format!("{from} with a token");
        let redeemed = self.catalogue.change(&who, |change| {
            change.redeem(&Token::hash(&ask.secret), role, &host, |identity, name| {
                self.authority.issue(&ask.request, &Subject { identity, name, hosts: &[], life: self.life })
            })
        })?;
        // A host that took the place of another has revoked that one's certificates.
        self.ring();
        Ok(redeemed)
    }

    fn renew(&self, identity: &Identity, name: &str, request: &[u8]) -> Result<Vec<u8>, CatalogueError> {
        let who = format!("{identity} '{name}'");
        self.catalogue.change(&who, |change| {
            let subject = Subject { identity, name, hosts: &[], life: self.life };
            let refused = |e: TrustError| CatalogueError::Refused(e.to_string());
            let certificate = self.authority.issue(request, &subject).map_err(refused)?;
            let claims = Claims::of(&certificate).ok_or_else(|| CatalogueError::Refused("no certificate".into()))?;
            change.issued(&claims, identity)?;
            change.log("renew", &format!("{} {name}", identity.role), &claims.serial_text())?;
            Ok(certificate)
        })
    }

    /// Who a certificate belongs to, by the catalogue. One that the catalogue does not know, but the CA signed, is of a time
    /// that a restored copy has lost: it is put back.
    fn admit(&self, from: &str, claims: &Claims) -> Result<(Identity, String), CatalogueError> {
        let identity = claims.identity.ok_or_else(|| CatalogueError::Refused("the certificate names nobody".into()))?;
        match self.catalogue.member(identity.role, &identity.id)? {
            Some(member) if member.revoked.is_some() => {
                Err(CatalogueError::Refused(format!("{} '{}' was revoked", identity.role, member.name)))
            }
            Some(member) => Ok((identity, member.name)),
            None => {
                let who = format!("{from} with certificate {}", claims.serial_text());
                self.catalogue.change(&who, |change| {
                    change.enrol(&identity, &claims.name, from)?;
                    change.issued(claims, &identity)?;
                    change.log("found-again", &format!("{} {}", identity.role, claims.name), "not in the catalogue")
                })?;
                Ok((identity, claims.name.clone()))
            }
        }
    }

    /// A certificate for a key that somebody with access to the control socket made.
    ///
    /// # Errors
    /// If the request does not fit.
    pub fn certify(&self, who: &str, request: &[u8], name: &str, hosts: &[String]) -> Result<Vec<u8>, CatalogueError> {
        let identity = Identity { role: Role::Nbd, id: Uuid::new_v4(), vault: Uuid::nil() };
        let what = if hosts.is_empty() { "NBD client" } else { "NBD server" };
        self.catalogue.change(who, |change| {
            let subject = Subject { identity: &identity, name, hosts, life: self.life };
            let refused = |e: TrustError| CatalogueError::Refused(e.to_string());
            let certificate = self.authority.issue(request, &subject).map_err(refused)?;
            let claims = Claims::of(&certificate).ok_or_else(|| CatalogueError::Refused("no certificate".into()))?;
            change.issued(&claims, &identity)?;
            change.log("certify", &format!("{what} {name}"), &claims.serial_text())?;
            Ok(certificate)
        })
    }

    /// Revokes, and has everybody who is connected told. Returns the name, the number of certificates and of the list.
    ///
    /// # Errors
    /// As [`crate::catalogue::Change::revoke`].
    pub fn revoke(&self, who: &str, what: &str) -> Result<(String, usize, Revocations), CatalogueError> {
        let (name, count) = self.catalogue.change(who, |change| change.revoke(what))?;
        let list = self.catalogue.revocations()?;
        self.ring();
        Ok((name, count, list))
    }

    /// The list of revocations as it was read last.
    fn revocations(&self) -> Arc<Revocations> {
        Arc::clone(&self.revocations.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads it again. One at a time, so that nobody puts an older one back.
    fn refresh(&self) {
        let _turn = self.refreshing.lock().unwrap_or_else(PoisonError::into_inner);
        match self.catalogue.revocations() {
            Ok(list) => *self.revocations.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(list),
            Err(e) => tracing::error!("revocations cannot be read, and will be again: {e}"),
        }
    }

    /// Has all sessions hear of what is new.
    fn ring(&self) {
        self.refresh();
        for guest in self.guests().values() {
            guest.bell.ring();
        }
    }

    /// The newest session of a member; `None` if it is away or too old to be asked.
    #[must_use]
    pub fn session_of(&self, member: &Uuid) -> Option<u64> {
        let guests = self.guests();
        let its = guests.iter().rev().find(|(_, g)| g.identity.id == *member);
        its.filter(|(_, g)| g.version >= afterimage_format::coord::REPORTS).map(|(number, _)| *number)
    }

    /// Who is connected, and which list of revocations each uses.
    #[must_use]
    pub fn connected(&self) -> Vec<(Identity, String, u64)> {
        self.guests().values().map(|g| (g.identity, g.name.clone(), g.applied)).collect()
    }
}

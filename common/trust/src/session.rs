//! The session with mgmt that agents and appliances keep: they dial out, and nobody dials in to them.
//!
//! Over it a certificate is renewed long before it expires, and the list of revoked ones comes. While mgmt is away nothing waits
//! for it: the connection is tried again after half a second, doubled up to half a minute, half of it by chance.

mod desk;

pub use desk::Duties;

use crate::csr;
use crate::identity::{Claims, Role};
use crate::messages::{Inbox, send};
use crate::stream::{Tls, TlsWriter, deadline};
use crate::verify::Expect;
use crate::{Trust, TrustError};
use afterimage_base::net::Endpoint;
use afterimage_base::world;
use afterimage_format::coord::{self, Asked, Hello, Kind, Refuse, Revocations, Welcome};
use desk::Desk;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use zeroize::Zeroizing;

const BACKOFF_FIRST: Duration = Duration::from_millis(500);
const BACKOFF_LAST: Duration = Duration::from_secs(30);
/// A session that lasted so long was none of those that fail at once.
const GOOD_SESSION: Duration = Duration::from_secs(5);
const HANDSHAKE: Duration = Duration::from_secs(10);
const SEND_LIMIT: Duration = Duration::from_secs(10);
/// How often a session looks at the clock and whether it should stop.
const TICK: Duration = Duration::from_millis(200);
/// How often a member says how it is.
const REPORT_EVERY: Duration = Duration::from_secs(2);
/// After a renewal that failed.
const RENEW_AGAIN: Duration = Duration::from_secs(60);
/// From so little time left on, the log says every day that a certificate will expire.
const WARN_BEFORE: i64 = 60 * 86_400;

/// Sends a message of groups.
pub type Outbox = Box<dyn FnMut(Kind, &[u8]) -> io::Result<()> + Send>;

/// Who takes part in what mgmt coordinates, over the session. Called by the session's thread, so nothing here may block.
pub trait Attendant: Send + Sync {
    /// A session has begun whose mgmt knows of groups.
    fn begin(&self, out: Outbox);

    /// A message of groups has come.
    ///
    /// # Errors
    /// If it makes no sense; the session ends.
    fn take(&self, kind: Kind, body: &[u8]) -> io::Result<()>;

    /// Whether writes wait for the next message. The session puts off everything else then.
    fn is_busy(&self) -> bool;

    /// The session has ended.
    fn end(&self);
}

/// How the session stands.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// Whether mgmt is connected.
    pub connected: bool,
    /// Why not, as of the last try.
    pub trouble: Option<String>,
}

struct Shared {
    trust: Arc<Trust>,
    duties: Option<Arc<dyn Duties>>,
    stop: AtomicBool,
    state: Mutex<State>,
    attendant: Option<Arc<dyn Attendant>>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Waits; false if it should stop.
    fn rest(&self, time: Duration) -> bool {
        let until = Instant::now() + time;
        while !self.stopping() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            thread::sleep(left.min(TICK));
        }
        false
    }
}

/// A running session, which comes back by itself. Dropping it ends it.
pub struct Session {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Session({:?})", self.shared.trust)
    }
}

impl Session {
    /// Keeps a session with the mgmt that `trust` names.
    ///
    /// # Errors
    /// If its address is none, or the system refuses a thread.
    pub fn start(trust: Arc<Trust>) -> Result<Session, TrustError> {
        Self::with_duties(trust, None, None)
    }

    /// The same, of a member that reports and can be asked, and of one that takes part in groups.
    ///
    /// # Errors
    /// As [`Session::start`].
    pub fn with_duties(
        trust: Arc<Trust>,
        duties: Option<Arc<dyn Duties>>,
        attendant: Option<Arc<dyn Attendant>>,
    ) -> Result<Session, TrustError> {
        let address = trust.credentials().mgmt.clone();
        let mgmt: Endpoint = address.parse().map_err(|e| TrustError::Refused(format!("mgmt: {e}")))?;
        let shared =
            Arc::new(Shared { trust, duties, stop: AtomicBool::new(false), state: Mutex::default(), attendant });
        let of_thread = Arc::clone(&shared);
        let thread = thread::Builder::new().name("mgmt".to_owned()).spawn(move || keep(&of_thread, &mgmt))?;
        Ok(Session { shared, thread: Some(thread) })
    }

    /// How it stands.
    #[must_use]
    pub fn state(&self) -> State {
        self.shared.state().clone()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn keep(shared: &Shared, mgmt: &Endpoint) {
    let mut backoff = BACKOFF_FIRST;
    let mut warned: Option<Instant> = None;
    while !shared.stopping() {
        if warned.is_none_or(|at| at.elapsed() > Duration::from_secs(86_400)) && warn_of_expiry(&shared.trust) {
            warned = Some(Instant::now());
        }
        let began = Instant::now();
        let result = attend(shared, mgmt);
        let was = std::mem::take(&mut *shared.state());
        let why = match result {
            Ok(()) => "it ended the session".to_owned(),
            Err(e) => e.to_string(),
        };
        if shared.stopping() {
            return;
        }
        if was.connected || was.trouble.as_ref() != Some(&why) {
            tracing::warn!("mgmt at {mgmt}: {why}; protection goes on without it");
        }
        shared.state().trouble = Some(why);
        if was.connected && began.elapsed() > GOOD_SESSION {
            backoff = BACKOFF_FIRST;
        }
        if !shared.rest(jitter(backoff)) {
            return;
        }
        backoff = (backoff * 2).min(BACKOFF_LAST);
    }
}

/// Half of it, and the other half by chance.
fn jitter(time: Duration) -> Duration {
    // Without chance the hosts come back together: bad manners, no harm.
    let chance = world::random_array::<2>().map_or(0, u16::from_le_bytes);
    time / 2 + (time / 2) * u32::from(chance) / u32::from(u16::MAX)
}

fn seconds() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

fn warn_of_expiry(trust: &Trust) -> bool {
    let Some(claims) = trust.claims() else { return false };
    let left = claims.not_after - seconds();
    if left > WARN_BEFORE || left > (claims.not_after - claims.not_before) / 2 {
        return false;
    }
    tracing::warn!(
        "this host's certificate expires in {} days and could not be renewed: mgmt has to be reached before, or the connection to \
         the other side ends with it",
        left / 86_400
    );
    true
}

/// Whether a certificate should be renewed: a third of its time is over.
fn is_due(claims: &Claims) -> bool {
    claims.not_after - seconds() < (claims.not_after - claims.not_before) / 3 * 2
}

fn attend(shared: &Shared, mgmt: &Endpoint) -> io::Result<()> {
    let (config, guard) =
        shared.trust.client(Expect::role(Role::Mgmt, None), coord::ALPN_SESSION).map_err(io::Error::other)?;
    let stream = Arc::new(mgmt.connect(false)?);
    stream.set_read_timeout(Some(TICK))?;
    stream.set_write_timeout(Some(SEND_LIMIT))?;
    let until = deadline(HANDSHAKE);
    let (reader, mut writer) = Tls::client(stream, config, &guard, until)?.split();
    let mut inbox = Inbox::new(reader, coord::MAX_BODY);
    let hello = Hello {
        oldest: coord::OLDEST_VERSION,
        newest: coord::VERSION,
        revocations: shared.trust.revoked_number(),
        program: env!("CARGO_PKG_VERSION").to_owned(),
    };
    send(&mut writer, Kind::Hello, &hello.encode())?;
    let welcome = match inbox.wait(until)? {
        (Kind::Welcome, body) => Welcome::decode(&body).map_err(bad)?,
        (Kind::Refuse, body) => return Err(refused(&body)),
        _ => return Err(bad("its first message is no Welcome")),
    };
    if !(coord::OLDEST_VERSION..=coord::VERSION).contains(&welcome.version) {
        return Err(bad("it chose a version that was not offered"));
    }
    tracing::info!("mgmt at {mgmt}: connected");
    *shared.state() = State { connected: true, trouble: None };
    let duties = shared.duties.clone().filter(|_| welcome.version >= coord::REPORTS);
    let attendant = shared.attendant.as_deref().filter(|_| welcome.version >= coord::GROUPS_SINCE);
    if let Some(attendant) = attendant {
        let mut out = writer.clone();
        attendant.begin(Box::new(move |kind, body| send(&mut out, kind, body)));
    }
    let result = Talk {
        shared,
        attendant,
        desk: duties.map(Desk::new),
        inbox,
        writer: writer.clone(),
        every: Duration::from_millis(welcome.keep_alive_ms.into()),
        asked: None,
        tried: None,
    }
    .run();
    world::urgent(false);
    if let Some(attendant) = attendant {
        attendant.end();
    }
    writer.goodbye();
    writer.close();
    result
}

fn bad(e: impl ToString) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, e.to_string())
}

fn refused(body: &[u8]) -> io::Error {
    bad(Refuse::decode(body).map_or_else(|e| e.to_string(), |r| r.text))
}

struct Talk<'a> {
    shared: &'a Shared,
    /// Reports and answers, if both sides know of them.
    desk: Option<Desk>,
    attendant: Option<&'a dyn Attendant>,
    inbox: Inbox,
    writer: TlsWriter,
    /// Keep-alive.
    every: Duration,
    /// The key for which a certificate was asked.
    asked: Option<Zeroizing<Vec<u8>>>,
    tried: Option<Instant>,
}

impl Talk<'_> {
    fn run(&mut self) -> io::Result<()> {
        let (mut heard, mut pinged) = (Instant::now(), Instant::now());
        loop {
            if self.shared.stopping() {
                return send(&mut self.writer, Kind::Bye, &[]);
            }
            if !self.attendant.is_some_and(Attendant::is_busy) {
                self.renew_if_due()?;
                if let Some(desk) = &mut self.desk {
                    desk.send_due(&mut self.writer)?;
                }
                if pinged.elapsed() >= self.every {
                    pinged = Instant::now();
                    send(&mut self.writer, Kind::Ping, &[0; 8])?;
                }
            }
            // Also for the report above, the next time: it is short, and gates may be closed on the word that comes behind it.
            world::urgent(self.attendant.is_some());
            match self.inbox.poll()? {
                Some((Kind::Bye, _)) => return Ok(()),
                Some((kind, body)) => {
                    heard = Instant::now();
                    world::urgent(self.attendant.is_some() && kind.is_of_groups());
                    self.take(kind, &body)?;
                }
                None if heard.elapsed() > self.every * 3 => return Err(bad("it was silent too long")),
                None => {}
            }
        }
    }

    fn renew_if_due(&mut self) -> io::Result<()> {
        if self.tried.is_some_and(|at| at.elapsed() < RENEW_AGAIN)
            || !self.shared.trust.claims().is_some_and(|c| is_due(&c))
        {
            return Ok(());
        }
        self.tried = Some(Instant::now());
        let fresh = csr::fresh().map_err(io::Error::other)?;
        self.asked = Some(fresh.key);
        send(&mut self.writer, Kind::Renew, &fresh.request)
    }

    fn take(&mut self, kind: Kind, body: &[u8]) -> io::Result<()> {
        match kind {
            Kind::Ping => send(&mut self.writer, Kind::Pong, body),
            Kind::Pong => Ok(()),
            Kind::Renewed => {
                let key = self.asked.take().ok_or_else(|| bad("it sent a certificate that was not asked for"))?;
                self.shared.trust.renew(body.to_vec(), key).map_err(io::Error::other)?;
                self.tried = None;
                tracing::info!("this host's certificate was renewed");
                Ok(())
            }
            Kind::Revocations => {
                let list = Revocations::decode(body).map_err(bad)?;
                let (number, count) = (list.number, list.serials.len());
                self.shared.trust.revoke(list).map_err(io::Error::other)?;
                tracing::info!("{count} certificates are revoked now (list {number})");
                send(&mut self.writer, Kind::Applied, &self.shared.trust.revoked_number().to_le_bytes())
            }
            Kind::Ask if self.desk.is_some() => {
                let ask = Asked::decode(body).map_err(bad)?;
                self.desk.iter_mut().for_each(|desk| desk.take(&ask));
                Ok(())
            }
            Kind::Refuse => Err(refused(body)),
            Kind::Prepare | Kind::Release | Kind::Watch => match self.attendant {
                Some(attendant) => attendant.take(kind, body),
                None => Err(bad("it sent a message of groups, and this host has no part in them")),
            },
            _ => Err(bad("it sent a message that is not its to send")),
        }
    }
}

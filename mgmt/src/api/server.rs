//! The port of the API.
//!
//! A connection has TLS 1.3 with mgmt's certificate, a limit for its handshake, for each request's head and body, and for its whole
//! life; their number is limited, in all and from one address. Who is asking is looked at before what is asked for: without a
//! token that counts, every path answers the same 401.

use super::key::ApiKey;
use super::problem::{Kind, Problem};
use super::routes::{Call, Gives, Reply, Route, find, query};
use super::{events, routes};
use crate::catalogue::{ApiTokenRow, now};
use crate::office::Office;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

/// Where the API is if nothing else is said.
pub const DEFAULT_API_PORT: u16 = 20005;
/// Connections at once.
const MOST: usize = 512;
/// Of those, from one address.
const MOST_PER_ADDRESS: usize = 64;
/// From the first byte of a connection to the end of the handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// For the head of a request, the wait for it included.
const HEAD: Duration = Duration::from_secs(30);
/// For its body.
const BODY: Duration = Duration::from_secs(20);
/// Of a connection that is kept open.
const LIFE: Duration = Duration::from_secs(600);
/// Longest body.
const MAX_BODY: usize = 64 << 10;
/// Largest head of a request.
const MAX_HEAD: usize = 16 << 10;
/// Requests that are worked on at once.
const WORKERS: usize = 32;
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long requests under way may hold up the end.
const GRACE: Duration = Duration::from_secs(2);

type Answer = Response<Full<Bytes>>;

/// The listening port. Dropping it ends all conversations.
pub struct Api {
    addresses: Vec<SocketAddr>,
    runtime: Option<Runtime>,
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Api({:?})", self.addresses)
    }
}

impl Api {
    /// Listens at these addresses.
    ///
    /// # Errors
    /// If one of them cannot be listened at, with its name.
    pub fn open(office: &Arc<Office>, listen: &[SocketAddr]) -> io::Result<Api> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .max_blocking_threads(WORKERS)
            .thread_name("mgmt-api")
            .enable_io()
            .enable_time()
            .build()?;
        let (mut addresses, crowd) = (Vec::new(), Arc::new(Crowd::default()));
        for address in listen {
            let named = |e: io::Error| io::Error::new(e.kind(), format!("cannot listen on {address}: {e}"));
            let listener = std::net::TcpListener::bind(address).map_err(named)?;
            listener.set_nonblocking(true)?;
            addresses.push(listener.local_addr()?);
            let _here = runtime.enter();
            let listener = TcpListener::from_std(listener)?;
            runtime.spawn(accept(listener, Arc::clone(office), Arc::clone(&crowd)));
        }
        Ok(Api { addresses, runtime: Some(runtime) })
    }

    /// Where it listens, with the ports that the system chose.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(GRACE);
        }
    }
}

/// Who is connected.
#[derive(Default)]
struct Crowd(Mutex<BTreeMap<IpAddr, usize>>);

/// A place in the crowd, given back when dropped.
struct Place {
    crowd: Arc<Crowd>,
    of: IpAddr,
}

impl Crowd {
    fn enter(self: &Arc<Self>, of: IpAddr) -> Option<Place> {
        let mut there = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (all, own) = (there.values().sum::<usize>(), there.entry(of).or_default());
        if all >= MOST || *own >= MOST_PER_ADDRESS {
            return None;
        }
        *own += 1;
        Some(Place { crowd: Arc::clone(self), of })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut there = self.crowd.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = there.get_mut(&self.of) {
            *own -= 1;
            if *own == 0 {
                there.remove(&self.of);
            }
        }
    }
}

async fn accept(listener: TcpListener, office: Arc<Office>, crowd: Arc<Crowd>) {
    loop {
        match listener.accept().await {
            Ok((stream, from)) => match crowd.enter(from.ip()) {
                Some(place) => drop(tokio::spawn(attend(stream, from, Arc::clone(&office), place))),
                None => tracing::warn!("API: {from} was turned away: there are too many connections"),
            },
            Err(e) => {
                tracing::warn!("API: a connection could not be accepted: {e}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn attend(stream: TcpStream, from: SocketAddr, office: Arc<Office>, place: Place) {
    let config = match office.api_config() {
        Ok(config) => config,
        Err(e) => return tracing::error!("API: no certificate: {e}"),
    };
    let tls = match timeout(HANDSHAKE, TlsAcceptor::from(config).accept(stream)).await {
        Ok(Ok(tls)) => tls,
        Ok(Err(e)) => return tracing::warn!("API: {from} was refused: {e}"),
        Err(_) => return tracing::warn!("API: {from} was refused: the TLS handshake took too long"),
    };
    let service = service_fn(move |request| {
        let office = Arc::clone(&office);
        async move { Ok::<_, Infallible>(answer(office, from, request).await) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(MAX_HEAD);
    match timeout(LIFE, http.serve_connection(TokioIo::new(tls), service)).await {
        // Clients that leave without a word are none of our business.
        Ok(Ok(())) | Err(_) => {}
        Ok(Err(e)) => tracing::debug!("API: {from}: {e}"),
    }
    drop(place);
}

async fn answer(office: Arc<Office>, from: SocketAddr, request: Request<Incoming>) -> Answer {
    match handle(office, from, request).await {
        Ok((status, media, body)) => respond(status, media, body),
        Err(problem) => {
            let body = serde_json::to_vec(&problem.body()).unwrap_or_default();
            let mut answer = respond(problem.status(), "application/problem+json", body);
            if problem.kind == Kind::Unauthorized {
                answer.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            answer
        }
    }
}

fn respond(status: u16, media: &'static str, body: Vec<u8>) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(body)));
    *answer.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    if status != 204 {
        answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media));
    }
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

/// Work that reads the catalogue.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Problem> + Send + 'static) -> Result<T, Problem> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| Problem::new(Kind::Failed, "mgmt could not do it: its log says more"))?
}

async fn handle(
    office: Arc<Office>,
    from: SocketAddr,
    request: Request<Incoming>,
) -> Result<(u16, &'static str, Vec<u8>), Problem> {
    let (head, body) = request.into_parts();
    let said = head.headers.get(AUTHORIZATION).cloned();
    let at = Arc::clone(&office);
    let token = blocking(move || authorized(&at, said.as_ref(), from)).await?;
    let (route, path) = find(head.method.as_str(), head.uri.path())?;
    if token.role < route.role {
        let text = format!("token '{}' is for a {}, and this takes a {}", token.name, token.role, route.role);
        return Err(Problem::new(Kind::Forbidden, text));
    }
    let query = query(route, head.uri.query().unwrap_or_default())?;
    let body = match timeout(BODY, Limited::new(body, MAX_BODY).collect()).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(_)) => return Err(Problem::new(Kind::TooLong, format!("a body has at most {MAX_BODY} bytes"))),
        Err(_) => return Err(Problem::new(Kind::BadRequest, "the body took too long")),
    };
    if route.takes.is_none() && !body.is_empty() {
        return Err(Problem::new(Kind::BadRequest, "this takes no body"));
    }
    let request = Taken { office, token, path, query, body, from };
    if route.id == "events" {
        wait(&request).await?;
    }
    let reply = blocking(move || (route.run)(&request.call())).await?;
    Ok(written(route, reply))
}

fn written(route: &Route, reply: Reply) -> (u16, &'static str, Vec<u8>) {
    match (reply, route.gives) {
        (Reply::Json(value), Gives::Json(status, _)) => {
            (status, "application/json", serde_json::to_vec(&value).unwrap_or_default())
        }
        (Reply::Text(text), Gives::Text(media)) => (200, media, text.into_bytes()),
        (Reply::Nothing, _) => (204, "", Vec::new()),
        (Reply::Json(value), _) => (200, "application/json", serde_json::to_vec(&value).unwrap_or_default()),
        (Reply::Text(text), _) => (200, "text/plain", text.into_bytes()),
    }
}

/// A request that has passed the door.
struct Taken {
    office: Arc<Office>,
    token: ApiTokenRow,
    path: Vec<String>,
    query: Vec<(String, String)>,
    body: Bytes,
    from: SocketAddr,
}

impl Taken {
    fn call(&self) -> routes::Call<'_> {
        Call {
            office: &self.office,
            who: format!(
                "{} ({}, API token {}) at {}",
                self.token.name,
                self.token.role,
                self.token.id,
                self.from.ip()
            ),
            role: self.token.role,
            path: self.path.clone(),
            query: self.query.clone(),
            body: &self.body,
        }
    }
}

/// For who asks for events and wants to wait: until there is one. No thread waits with him.
async fn wait(request: &Taken) -> Result<(), Problem> {
    let call = request.call();
    let seconds = call.number::<u64>("wait")?.unwrap_or(0).min(events::MAX_WAIT);
    let (after, mut news) = (events::after(&call)?, request.office.catalogue.news());
    if seconds > 0 {
        // Time that is up, or a mgmt that ends, means: no event.
        let _ = timeout(Duration::from_secs(seconds), news.wait_for(|newest| *newest > after)).await;
    }
    Ok(())
}

/// Whose token it is, if it counts. The log says why it does not; who asks hears only that.
fn authorized(office: &Office, said: Option<&HeaderValue>, from: SocketAddr) -> Result<ApiTokenRow, Problem> {
    let refuse = |why: &str| {
        tracing::warn!("API: {from} was refused: {why}");
        Err(Problem::new(
            Kind::Unauthorized,
            "a request needs a token that counts: `afterimage mgmt api-token create` makes one",
        ))
    };
    let Some(said) = said else { return refuse("it shows no token") };
    let bearer = said.to_str().ok().and_then(|t| t.split_once(' ')).filter(|(s, _)| s.eq_ignore_ascii_case("bearer"));
    let Some(Ok(key)) = bearer.map(|(_, token)| token.trim().parse::<ApiKey>()) else {
        return refuse("what it shows is no token");
    };
    match office.catalogue.api_token(&key.hash())? {
        None => refuse("its token was not made here"),
        Some(row) if row.revoked.is_some() => refuse(&format!("API token {} '{}' was revoked", row.id, row.name)),
        Some(row) if row.expires <= now() => refuse(&format!("API token {} '{}' has expired", row.id, row.name)),
        Some(row) => Ok(row),
    }
}

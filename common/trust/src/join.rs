//! Joining: a token becomes a certificate.

use crate::folder::{self, Credentials};
use crate::identity::{Claims, Role};
use crate::messages::{Inbox, send};
use crate::stream::{Tls, deadline};
use crate::token::Token;
use crate::trust::client_config;
use crate::verify::{Anchor, Expect, Guard};
use crate::{TrustError, csr};
use afterimage_base::net::Endpoint;
use afterimage_format::coord::{self, Join, Joined, Kind, Refuse};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// How long the whole conversation may take.
const LIMIT: Duration = Duration::from_secs(20);
const TICK: Duration = Duration::from_millis(500);

/// What to join as.
#[derive(Debug)]
pub struct Wish<'a> {
    /// Where mgmt is.
    pub mgmt: &'a Endpoint,
    /// The token.
    pub token: &'a Token,
    /// Agent or appliance.
    pub role: Role,
    /// The name of this host.
    pub host: &'a str,
}

/// Makes a key, has mgmt certify it, and keeps both in `data`.
///
/// # Errors
/// What mgmt said against it, or what was in the way. Nothing is changed then.
pub fn join(data: &Path, wish: &Wish<'_>) -> Result<Credentials, TrustError> {
    let fresh = csr::fresh()?;
    let guard = Guard::new(Anchor::Pinned(wish.token.pin), Expect::role(Role::Mgmt, None), Arc::default());
    let config = client_config(Arc::clone(&guard), None, &[coord::ALPN_JOIN])?;
    let at = |e: std::io::Error| TrustError::Refused(format!("{}: {e}", wish.mgmt));
    let stream = wish.mgmt.connect(false).map_err(at)?;
    stream.set_read_timeout(Some(TICK)).and_then(|()| stream.set_write_timeout(Some(LIMIT))).map_err(at)?;
    let until = deadline(LIMIT);
    let (reader, mut writer) = Tls::client(Arc::new(stream), config, &guard, until).map_err(at)?.split();
    let ask =
        Join { secret: wish.token.secret, role: wish.role as u8, request: fresh.request, host: wish.host.to_owned() };
    send(&mut writer, Kind::Join, &ask.encode()).map_err(at)?;
    let (kind, body) = Inbox::new(reader, coord::MAX_FIRST_BODY).wait(until).map_err(at)?;
    writer.goodbye();
    let bad = |e: String| TrustError::Refused(format!("{}: {e}", wish.mgmt));
    let joined = match kind {
        Kind::Joined => Joined::decode(&body).map_err(|e| bad(e.to_string()))?,
        Kind::Refuse => return Err(bad(Refuse::decode(&body).map_err(|e| bad(e.to_string()))?.text)),
        _ => return Err(bad("its answer is not one to a token".to_owned())),
    };
    let identity = Claims::of(&joined.certificate).and_then(|c| c.identity).filter(|i| i.role == wish.role);
    let credentials = Credentials {
        identity: identity.ok_or_else(|| bad("its certificate is for somebody else".to_owned()))?,
        name: joined.name,
        mgmt: wish.mgmt.to_string(),
        authority: guard.verdict().authority.unwrap_or_default(),
        certificate: joined.certificate,
        key: fresh.key,
    };
    // A certificate that does not fit the key would be found out at the first connection only.
    crate::trust::certified(vec![credentials.certificate.clone()], &credentials.key)?;
    folder::store(&folder::of(data), &credentials)?;
    Ok(credentials)
}

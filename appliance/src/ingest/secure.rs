//! Connections of other machines: TLS first, and who they are.

use super::listen::Incoming;
use super::session::{Connection, HELLO_LIMIT, Machine};
use afterimage_base::net::Stream;
use afterimage_trust::stream::{Tls, deadline, who};
use afterimage_trust::{ALPN_DATA, ALPN_PROBE, Trust, probe};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Turns a plain connection into one that says who it is.
pub type Greet = Box<dyn FnOnce(Connection) -> Result<Connection, String> + Send>;

/// For a connection over `stream`, whose end `interrupted` tells.
pub(super) fn greet(stream: Arc<Stream>, interrupted: Arc<AtomicBool>, trust: Arc<Trust>) -> Greet {
    Box::new(move |plain| {
        let (config, guard) = trust.server(trust.data_peer(), &[ALPN_DATA, ALPN_PROBE]).map_err(|e| e.to_string())?;
        let result = Tls::server(stream, config, &guard, deadline(HELLO_LIMIT));
        let verdict = guard.verdict();
        let peer = who(&plain.peer, &verdict);
        let tls = result.map_err(|e| format!("{peer}: refused: {e}"))?;
        if tls.protocol().as_deref() == Some(ALPN_PROBE) {
            // No session, and nothing of the store: it ends here, in the session's thread and place.
            return Err(match probe::sink(tls) {
                Ok(bytes) => format!("{peer}: measured the way here with {bytes} bytes"),
                Err(e) => format!("{peer}: a measurement of the way here ended: {e}"),
            });
        }
        if tls.protocol().as_deref() != Some(ALPN_DATA) {
            return Err(format!("{peer}: refused: it is here for another protocol"));
        }
        let (Some(identity), Some(claims)) = (verdict.peer, verdict.claims) else {
            return Err(format!("{peer}: refused: it named nobody"));
        };
        let (reader, writer) = tls.split();
        let waiting = reader.waiting();
        let machine = Machine { id: identity.id.into_bytes(), name: claims.name, serial: claims.serial };
        Ok(Connection {
            peer,
            reader: Box::new(Incoming { stream: reader, interrupted }),
            writer: Box::new(writer),
            readable: Box::new(move |limit| waiting.wait(limit)),
            machine: Some(machine),
            greet: None,
            ..plain
        })
    })
}

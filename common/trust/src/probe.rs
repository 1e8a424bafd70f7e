//! How fast bytes get from an agent to its appliance: asked before a disk is protected.
//!
//! It shares the data port and is told apart by ALPN; the certificates are judged as for a stream. The agent sends pieces, each
//! with its length in 4 bytes (little-endian, 1 to [`MAX_PIECE`]), for at most [`MOST_TIME`] or [`MOST_BYTES`], then a
//! length of 0; the appliance throws them away and answers with the number of bytes, 8 bytes, little-endian. It ends what goes beyond.

use crate::stream::{Tls, TlsReader, TlsWriter, deadline};
use crate::{ALPN_PROBE, Trust};
use afterimage_base::net::Endpoint;
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Longest piece.
pub const MAX_PIECE: usize = 256 << 10;
/// After so many bytes it is enough.
pub const MOST_BYTES: u64 = 256 << 20;
/// After this time it is enough.
pub const MOST_TIME: Duration = Duration::from_millis(1500);
/// How long the whole may take where the way is slow: what was sent has to arrive.
const LIMIT: Duration = Duration::from_secs(15);
const TICK: Duration = Duration::from_millis(200);
/// The first bytes show how slow a start TCP makes rather than how fast the way is.
const PIECE: usize = 64 << 10;

fn bad(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.to_owned())
}

/// Reads exactly so many bytes; false at an end before the first.
fn fill(reader: &mut TlsReader, into: &mut [u8], until: Instant) -> io::Result<bool> {
    let mut have = 0;
    while have < into.len() {
        match reader.read(&mut into[have..]) {
            Ok(0) if have == 0 => return Ok(false),
            Ok(0) => return Err(bad("it left in the middle of a piece")),
            Ok(n) => have += n,
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
                ) => {}
            Err(e) => return Err(e),
        }
        if have < into.len() && Instant::now() >= until {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "it took too long"));
        }
    }
    Ok(true)
}

/// The appliance's end. Returns how many bytes came.
///
/// # Errors
/// What is not as it should be, and errors of the connection.
pub fn sink(tls: Tls) -> io::Result<u64> {
    let (mut reader, mut writer) = tls.split();
    let (until, mut total, mut piece) = (Instant::now() + LIMIT, 0_u64, vec![0; MAX_PIECE]);
    loop {
        let mut len = [0; 4];
        if !fill(&mut reader, &mut len, until)? {
            return Err(bad("it left before the end of the measurement"));
        }
        let len = u32::from_le_bytes(len) as usize;
        if len == 0 {
            break;
        }
        if len > MAX_PIECE || total > MOST_BYTES {
            return Err(bad("it sends more than a measurement takes"));
        }
        if !fill(&mut reader, &mut piece[..len], until)? {
            return Err(bad("it left in the middle of a piece"));
        }
        total += len as u64;
    }
    writer.write_all(&total.to_le_bytes())?;
    writer.goodbye();
    Ok(total)
}

/// A connection for a measurement.
#[derive(Debug)]
pub struct Link {
    reader: TlsReader,
    writer: TlsWriter,
    probes: bool,
}

impl Link {
    /// Connects to the appliance, which is judged as for a stream.
    ///
    /// # Errors
    /// If it does not answer, or is not the appliance of this agent's vault.
    pub fn open(trust: &Arc<Trust>, endpoint: &Endpoint) -> io::Result<Link> {
        let (config, guard) = trust.client(trust.data_peer(), ALPN_PROBE).map_err(io::Error::other)?;
        let stream = endpoint.connect(false)?;
        stream.set_read_timeout(Some(TICK))?;
        stream.set_write_timeout(Some(LIMIT))?;
        let tls = Tls::client(Arc::new(stream), config, &guard, deadline(LIMIT))?;
        let probes = tls.protocol().as_deref() == Some(ALPN_PROBE);
        let (reader, writer) = tls.split();
        Ok(Link { reader, writer, probes })
    }

    /// Bytes a second that got there.
    ///
    /// # Errors
    /// If the appliance is older, or the connection fails.
    pub fn measure(mut self) -> io::Result<u64> {
        if !self.probes {
            return Err(bad("the appliance is of a version that cannot be measured against"));
        }
        let mut piece = Vec::from(u32::try_from(PIECE).unwrap_or(0).to_le_bytes());
        piece.resize(4 + PIECE, 0xA5);
        let (began, mut total) = (Instant::now(), 0_u64);
        while began.elapsed() < MOST_TIME && total < MOST_BYTES {
            self.writer.write_all(&piece)?;
            total += PIECE as u64;
        }
        self.writer.write_all(&[0; 4])?;
        let mut answer = [0; 8];
        if !fill(&mut self.reader, &mut answer, Instant::now() + LIMIT)? || u64::from_le_bytes(answer) != total {
            return Err(bad("the appliance did not take what was sent"));
        }
        let nanos = began.elapsed().as_nanos().max(1);
        self.writer.goodbye();
        Ok(u64::try_from(u128::from(total) * 1_000_000_000 / nanos).unwrap_or(u64::MAX))
    }
}

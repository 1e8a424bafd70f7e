//! The client's side of the handshake.

use super::stream::Stream;
use super::{ClientError, ExportInfo, Options};
use crate::limits::MAX_STRING;
use crate::options;
use crate::proto::{
    ALLOCATION, FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES, INIT_MAGIC, Mode, OPTION_MAGIC, OPTION_REPLY_MAGIC, Reader, info,
    opt, rep,
};
use std::io::{Read, Write};

/// Replies to one option, beyond which a server is not believed: the exports of the largest server imaginable.
const MAX_REPLIES: usize = 1 << 16;

/// Longest data of an option reply: two strings and the little around them.
const MAX_REPLY: u32 = 64 + 2 * 4096;

/// A reply to an option: its type and data.
type Reply = (u32, Vec<u8>);

fn broken(why: impl Into<String>) -> ClientError {
    ClientError::Protocol(why.into())
}

/// Exchanges greetings.
pub(super) fn greet(stream: &mut Stream) -> Result<(), ClientError> {
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting)?;
    let mut r = Reader(&greeting);
    let (Some(INIT_MAGIC), Some(OPTION_MAGIC), Some(flags)) = (r.u64(), r.u64(), r.u16()) else {
        return Err(broken("the peer does not greet like a (newstyle) NBD server"));
    };
    if flags & FLAG_FIXED_NEWSTYLE == 0 {
        return Err(broken("the server does not speak fixed newstyle"));
    }
    let answer = u32::from(flags & (FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES));
    Ok(stream.write_all(&answer.to_be_bytes())?)
}

/// Sends one option and collects the replies up to the final one, which comes last.
fn ask(stream: &mut Stream, option: u32, data: &[u8]) -> Result<Vec<Reply>, ClientError> {
    let mut out = Vec::with_capacity(16 + data.len());
    out.extend(OPTION_MAGIC.to_be_bytes());
    out.extend(option.to_be_bytes());
    out.extend(u32::try_from(data.len()).map_err(|_| broken("option too long"))?.to_be_bytes());
    out.extend_from_slice(data);
    stream.write_all(&out)?;
    let mut replies = Vec::new();
    loop {
        let mut header = [0; 20];
        stream.read_exact(&mut header)?;
        let mut r = Reader(&header);
        let (Some(OPTION_REPLY_MAGIC), Some(of), Some(kind), Some(len)) = (r.u64(), r.u32(), r.u32(), r.u32()) else {
            return Err(broken("an option reply does not begin with the magic number"));
        };
        if of != option || len > MAX_REPLY || replies.len() >= MAX_REPLIES {
            return Err(broken(format!("unfit reply to option {option}: to {of}, {len} bytes")));
        }
        let mut data = vec![0; len as usize];
        stream.read_exact(&mut data)?;
        replies.push((kind, data));
        if kind == rep::ACK || kind & rep::ERROR != 0 {
            return Ok(replies);
        }
    }
}

/// Whether the last reply is an ACK.
fn accepted(replies: &[Reply]) -> bool {
    replies.last().is_some_and(|(kind, _)| *kind == rep::ACK)
}

fn refused(export: &str, replies: &[Reply]) -> ClientError {
    let (kind, data) = replies.last().map_or((0, &[][..]), |(kind, data)| (*kind, data));
    let words = String::from_utf8_lossy(&data[..data.len().min(MAX_STRING)]);
    let name = match kind {
        rep::ERR_UNKNOWN => "no such export",
        rep::ERR_SHUTDOWN => "shutting down",
        rep::ERR_POLICY => "not allowed",
        rep::ERR_UNSUP => "not supported",
        _ => "refused",
    };
    let reason = if words.is_empty() { name.to_owned() } else { format!("{name}: {words}") };
    ClientError::Refused { export: export.to_owned(), reason }
}

fn named(export: &str) -> Result<Vec<u8>, ClientError> {
    let len = u32::try_from(export.len()).ok().filter(|l| *l as usize <= MAX_STRING);
    let mut data = len.ok_or_else(|| broken("the export name is too long"))?.to_be_bytes().to_vec();
    data.extend(export.as_bytes());
    Ok(data)
}

/// Negotiates what `options` wish and the server has, and enters the export.
pub(super) fn enter(stream: &mut Stream, export: &str, options: &Options) -> Result<ExportInfo, ClientError> {
    let mut mode = Mode::Simple;
    for (wish, option) in [(Mode::Extended, opt::EXTENDED_HEADERS), (Mode::Structured, opt::STRUCTURED_REPLY)] {
        if mode == Mode::Simple && options.mode >= wish && accepted(&ask(stream, option, &[])?) {
            mode = wish;
        }
    }
    let mut info = ExportInfo { mode, ..ExportInfo::default() };
    if mode != Mode::Simple && options.allocation {
        info.allocation = select_allocation(stream, export)?;
    }
    let mut data = named(export)?;
    data.extend([0, 1]);
    data.extend(info::BLOCK_SIZE.to_be_bytes());
    let replies = ask(stream, opt::GO, &data)?;
    if !accepted(&replies) {
        return Err(refused(export, &replies));
    }
    let mut described = false;
    for (_, data) in replies.iter().filter(|(kind, _)| *kind == rep::INFO) {
        described |= describe(&mut info, data);
    }
    if described { Ok(info) } else { Err(broken("the server does not say how large the export is")) }
}

/// The id of `base:allocation`, if the server has it.
fn select_allocation(stream: &mut Stream, export: &str) -> Result<Option<u32>, ClientError> {
    let mut data = named(export)?;
    data.extend(1u32.to_be_bytes());
    data.extend(named(ALLOCATION)?);
    let replies = ask(stream, opt::SET_META_CONTEXT, &data)?;
    let context = replies.iter().find(|(kind, _)| *kind == rep::META_CONTEXT);
    Ok(context.filter(|_| accepted(&replies)).and_then(|(_, data)| Reader(data).u32()))
}

/// Takes one item of information over; whether it was the size and flags.
fn describe(export: &mut ExportInfo, data: &[u8]) -> bool {
    let mut r = Reader(data);
    match r.u16() {
        Some(info::EXPORT) => {
            let (Some(size), Some(flags)) = (r.u64(), r.u16()) else { return false };
            (export.size, export.flags) = (size, flags);
            return true;
        }
        Some(info::BLOCK_SIZE) => {
            let (Some(_), Some(preferred), Some(max)) = (r.u32(), r.u32(), r.u32()) else { return false };
            (export.preferred_block, export.max_request) = (preferred, max.max(1));
        }
        _ => {}
    }
    false
}

/// Has the server begin TLS.
pub(super) fn starttls(stream: &mut Stream) -> Result<(), ClientError> {
    let replies = ask(stream, opt::STARTTLS, &[])?;
    if accepted(&replies) { Ok(()) } else { Err(refused("(TLS)", &replies)) }
}

/// Names and descriptions of the server's exports.
pub(super) fn list(stream: &mut Stream) -> Result<Vec<(String, String)>, ClientError> {
    let replies = ask(stream, opt::LIST, &[])?;
    if !accepted(&replies) {
        return Err(refused("(list)", &replies));
    }
    let mut exports = Vec::new();
    for (_, data) in replies.iter().filter(|(kind, _)| *kind == rep::SERVER) {
        let mut r = Reader(data);
        let name = r.string().ok_or_else(|| broken("malformed list of exports"))?;
        exports.push((name.to_owned(), String::from_utf8_lossy(r.0).into_owned()));
    }
    let mut bye = Vec::new();
    options::option(&mut bye, opt::ABORT);
    stream.write_all(&bye)?;
    Ok(exports)
}

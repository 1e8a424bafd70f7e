//! The door: what a request asks for, or why it is refused. Nothing behind this sees a bad length, a bad range
//! or an unknown flag.

use crate::proto::{ALLOCATION_ID, Header, Mode, Reader, cmd, command_flag, errno, transmission};
use afterimage_base::block::Geometry;

/// What was agreed on in the handshake.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms {
    pub(crate) geometry: Geometry,
    pub(crate) mode: Mode,
    /// Whether the client selected `base:allocation`.
    pub(crate) allocation: bool,
    /// Longest read or write.
    pub(crate) max_io: u32,
}

/// A request that may go on.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Command<'a> {
    Read { offset: u64, len: u32 },
    Write { offset: u64, data: &'a [u8], fua: bool },
    Flush,
    Trim { offset: u64, len: u64, fua: bool },
    WriteZeroes { offset: u64, len: u64, fua: bool, no_hole: bool, fast: bool },
    Cache { offset: u64, len: u64 },
    Status { offset: u64, len: u64, one: bool },
    Disconnect,
}

/// An error number with words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refusal(pub(crate) u32, pub(crate) &'static str);

const PAST_END: &str = "the request reaches past the end of the export";

impl Terms {
    /// The transmission flags to advertise.
    pub(crate) fn flags(&self) -> u16 {
        let g = &self.geometry;
        let when = |on: bool, flag: u16| if on { flag } else { 0 };
        transmission::HAS_FLAGS
            | transmission::SEND_FLUSH
            | transmission::SEND_FUA
            | transmission::SEND_CACHE
            | when(g.read_only, transmission::READ_ONLY)
            | when(g.rotational, transmission::ROTATIONAL)
            | when(g.multi_queue, transmission::CAN_MULTI_CONN)
            | when(self.mode != Mode::Simple, transmission::SEND_DF)
            | when(g.trim && !g.read_only, transmission::SEND_TRIM)
            | when(!g.read_only, transmission::SEND_WRITE_ZEROES)
            | when(g.fast_zero && !g.read_only, transmission::SEND_FAST_ZERO)
            | when(self.mode == Mode::Extended && self.allocation, transmission::BLOCK_STATUS_PAYLOAD)
    }

    /// Checks a request whose payload has arrived whole.
    pub(crate) fn check<'a>(&self, h: &Header, payload: &'a [u8]) -> Result<Command<'a>, Refusal> {
        if h.command == cmd::DISC {
            // There is no reply to it that could refuse it.
            return Ok(Command::Disconnect);
        }
        self.check_flags(h)?;
        let (offset, len, fua) = (h.offset, h.len, h.flags & command_flag::FUA != 0);
        match h.command {
            cmd::READ => {
                self.in_range(offset, len, errno::EINVAL)?;
                // It tells clients that smaller requests will do; those of simple replies do not know it.
                let too_long = if self.mode == Mode::Simple { errno::EINVAL } else { errno::EOVERFLOW };
                Ok(Command::Read { offset, len: self.short(len, too_long)? })
            }
            cmd::WRITE => {
                self.writable()?;
                self.short(len, errno::EINVAL)?;
                self.in_range(offset, len, errno::ENOSPC)?;
                Ok(Command::Write { offset, data: payload, fua })
            }
            cmd::FLUSH => match (offset, len) {
                (0, 0) => Ok(Command::Flush),
                _ => Err(Refusal(errno::EINVAL, "a flush has no offset and no length")),
            },
            cmd::TRIM => {
                self.writable()?;
                if !self.geometry.trim {
                    return Err(Refusal(errno::EINVAL, "the export does not take trims"));
                }
                self.in_range(offset, len, errno::EINVAL)?;
                Ok(Command::Trim { offset, len, fua })
            }
            cmd::CACHE => {
                self.in_range(offset, len, errno::EINVAL)?;
                Ok(Command::Cache { offset, len })
            }
            cmd::WRITE_ZEROES => self.check_zeroes(h, fua),
            cmd::BLOCK_STATUS => self.check_status(h, payload),
            _ => Err(Refusal(errno::EINVAL, "unknown command")),
        }
    }

    fn check_zeroes(&self, h: &Header, fua: bool) -> Result<Command<'static>, Refusal> {
        self.writable()?;
        let fast = h.flags & command_flag::FAST_ZERO != 0;
        if fast && !self.geometry.fast_zero {
            return Err(Refusal(errno::EINVAL, "the export does not take FAST_ZERO"));
        }
        self.in_range(h.offset, h.len, errno::ENOSPC)?;
        let no_hole = h.flags & command_flag::NO_HOLE != 0;
        Ok(Command::WriteZeroes { offset: h.offset, len: h.len, fua, no_hole, fast })
    }

    fn check_status(&self, h: &Header, payload: &[u8]) -> Result<Command<'static>, Refusal> {
        if !self.allocation {
            return Err(Refusal(errno::EINVAL, "no meta context was selected in the handshake"));
        }
        let mut len = h.len;
        if h.flags & command_flag::PAYLOAD_LEN != 0 {
            // The length the client means, then the ids of the contexts it wants: ours, once.
            let mut r = Reader(payload);
            len = match (r.u64(), r.u32(), r.0) {
                (Some(len), Some(ALLOCATION_ID), []) => len,
                _ => return Err(Refusal(errno::EINVAL, "the payload must select context 1 once")),
            };
        }
        self.in_range(h.offset, len, errno::EINVAL)?;
        Ok(Command::Status { offset: h.offset, len, one: h.flags & command_flag::REQ_ONE != 0 })
    }

    /// FUA is allowed everywhere; every other flag on its command alone.
    fn check_flags(&self, h: &Header) -> Result<(), Refusal> {
        let extended = self.mode == Mode::Extended;
        let own = match h.command {
            cmd::READ if self.mode != Mode::Simple => command_flag::DF,
            cmd::WRITE if extended => command_flag::PAYLOAD_LEN,
            cmd::WRITE_ZEROES => command_flag::NO_HOLE | command_flag::FAST_ZERO,
            cmd::BLOCK_STATUS if extended => command_flag::REQ_ONE | command_flag::PAYLOAD_LEN,
            cmd::BLOCK_STATUS => command_flag::REQ_ONE,
            _ => 0,
        };
        if h.flags & !(own | command_flag::FUA) != 0 {
            return Err(Refusal(errno::EINVAL, "a flag that the command does not have"));
        }
        Ok(())
    }

    fn writable(&self) -> Result<(), Refusal> {
        if self.geometry.read_only {
            return Err(Refusal(errno::EPERM, "the export is read-only"));
        }
        Ok(())
    }

    fn short(&self, len: u64, too_long: u32) -> Result<u32, Refusal> {
        match u32::try_from(len) {
            Ok(len) if len <= self.max_io => Ok(len),
            _ => Err(Refusal(too_long, "longer than the largest request of the export")),
        }
    }

    fn in_range(&self, offset: u64, len: u64, past_end: u32) -> Result<(), Refusal> {
        if len == 0 {
            return Err(Refusal(errno::EINVAL, "the request covers no bytes"));
        }
        self.geometry.check(offset, len).map_err(|_| Refusal(past_end, PAST_END))
    }
}

#[cfg(test)]
#[path = "command_tests.rs"]
mod tests;

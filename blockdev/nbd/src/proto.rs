//! The numbers and layouts of the protocol, as in the NBD project's `doc/proto.md` and its branch
//! `extension-ext-header`. All integers are big-endian.

use afterimage_base::block::BlockError;

/// First eight bytes of a server: `NBDMAGIC`.
pub(crate) const INIT_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// Before the handshake flags and before every option: `IHAVEOPT`.
pub(crate) const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Before every reply to an option.
pub(crate) const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
pub(crate) const REQUEST_MAGIC: u32 = 0x2560_9513;
pub(crate) const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
pub(crate) const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
pub(crate) const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;
pub(crate) const EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;

/// Handshake flags and the client's answer to them: fixed newstyle, no 124 zero bytes after `EXPORT_NAME`.
pub(crate) const FLAG_FIXED_NEWSTYLE: u16 = 1 << 0;
pub(crate) const FLAG_NO_ZEROES: u16 = 1 << 1;

/// Options.
pub(crate) mod opt {
    pub(crate) const EXPORT_NAME: u32 = 1;
    pub(crate) const ABORT: u32 = 2;
    pub(crate) const LIST: u32 = 3;
    pub(crate) const STARTTLS: u32 = 5;
    pub(crate) const INFO: u32 = 6;
    pub(crate) const GO: u32 = 7;
    pub(crate) const STRUCTURED_REPLY: u32 = 8;
    pub(crate) const LIST_META_CONTEXT: u32 = 9;
    pub(crate) const SET_META_CONTEXT: u32 = 10;
    pub(crate) const EXTENDED_HEADERS: u32 = 11;
}

/// Replies to options. Errors have the top bit.
pub(crate) mod rep {
    pub(crate) const ACK: u32 = 1;
    pub(crate) const SERVER: u32 = 2;
    pub(crate) const INFO: u32 = 3;
    pub(crate) const META_CONTEXT: u32 = 4;
    pub(crate) const ERROR: u32 = 1 << 31;
    pub(crate) const ERR_UNSUP: u32 = ERROR + 1;
    pub(crate) const ERR_POLICY: u32 = ERROR + 2;
    pub(crate) const ERR_INVALID: u32 = ERROR + 3;
    pub(crate) const ERR_TLS_REQD: u32 = ERROR + 5;
    pub(crate) const ERR_UNKNOWN: u32 = ERROR + 6;
    pub(crate) const ERR_SHUTDOWN: u32 = ERROR + 7;
    pub(crate) const ERR_TOO_BIG: u32 = ERROR + 9;
    pub(crate) const ERR_EXT_HEADER_REQD: u32 = ERROR + 10;
}

/// Kinds of information in a reply to INFO and GO.
pub(crate) mod info {
    pub(crate) const EXPORT: u16 = 0;
    pub(crate) const NAME: u16 = 1;
    pub(crate) const DESCRIPTION: u16 = 2;
    pub(crate) const BLOCK_SIZE: u16 = 3;
}

/// Transmission flags: what an export can do.
pub mod transmission {
    /// Always set.
    pub const HAS_FLAGS: u16 = 1 << 0;
    /// Writes are refused.
    pub const READ_ONLY: u16 = 1 << 1;
    /// FLUSH is understood.
    pub const SEND_FLUSH: u16 = 1 << 2;
    /// The FUA flag is understood.
    pub const SEND_FUA: u16 = 1 << 3;
    /// The disk turns.
    pub const ROTATIONAL: u16 = 1 << 4;
    /// TRIM is understood.
    pub const SEND_TRIM: u16 = 1 << 5;
    /// WRITE_ZEROES is understood.
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    /// The DF flag is understood.
    pub const SEND_DF: u16 = 1 << 7;
    /// A flush on one connection covers writes completed on all.
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    /// CACHE is understood.
    pub const SEND_CACHE: u16 = 1 << 10;
    /// The FAST_ZERO flag is understood.
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
    /// BLOCK_STATUS takes a payload that selects contexts.
    pub const BLOCK_STATUS_PAYLOAD: u16 = 1 << 12;
}

/// Commands.
pub(crate) mod cmd {
    pub(crate) const READ: u16 = 0;
    pub(crate) const WRITE: u16 = 1;
    pub(crate) const DISC: u16 = 2;
    pub(crate) const FLUSH: u16 = 3;
    pub(crate) const TRIM: u16 = 4;
    pub(crate) const CACHE: u16 = 5;
    pub(crate) const WRITE_ZEROES: u16 = 6;
    pub(crate) const BLOCK_STATUS: u16 = 7;
}

/// Flags of commands.
pub mod command_flag {
    /// Durable before the reply.
    pub const FUA: u16 = 1 << 0;
    /// WRITE_ZEROES leaves no hole.
    pub const NO_HOLE: u16 = 1 << 1;
    /// READ is answered in one piece.
    pub const DF: u16 = 1 << 2;
    /// BLOCK_STATUS is answered with one extent.
    pub const REQ_ONE: u16 = 1 << 3;
    /// WRITE_ZEROES fails at once if it would be as slow as writing.
    pub const FAST_ZERO: u16 = 1 << 4;
    /// Extended headers only: the length is that of a payload.
    pub const PAYLOAD_LEN: u16 = 1 << 5;
}

/// Types of structured reply chunks. Errors have the top bit.
pub(crate) mod chunk {
    pub(crate) const DONE: u16 = 1 << 0;
    pub(crate) const NONE: u16 = 0;
    pub(crate) const OFFSET_DATA: u16 = 1;
    pub(crate) const OFFSET_HOLE: u16 = 2;
    pub(crate) const BLOCK_STATUS: u16 = 5;
    pub(crate) const BLOCK_STATUS_EXT: u16 = 6;
    pub(crate) const ERROR_BIT: u16 = 1 << 15;
    pub(crate) const ERROR: u16 = ERROR_BIT + 1;
}

/// The only meta context of this server, and the id it has after selection.
pub(crate) const ALLOCATION: &str = "base:allocation";
pub(crate) const ALLOCATION_ID: u32 = 1;
pub(crate) const STATE_HOLE: u32 = 1 << 0;
pub(crate) const STATE_ZERO: u32 = 1 << 1;

/// Error numbers of replies.
pub mod errno {
    /// Writing to a read-only export.
    pub const EPERM: u32 = 1;
    /// The disk failed.
    pub const EIO: u32 = 5;
    /// The request is malformed or out of range.
    pub const EINVAL: u32 = 22;
    /// No space, or a write past the end.
    pub const ENOSPC: u32 = 28;
    /// Too long for what it asks.
    pub const EOVERFLOW: u32 = 75;
    /// FAST_ZERO cannot be fast.
    pub const ENOTSUP: u32 = 95;
    /// The server is going away.
    pub const ESHUTDOWN: u32 = 108;
}

/// The error number that stands for a device's error.
pub(crate) const fn errno_of(e: &BlockError) -> u32 {
    match e {
        BlockError::Invalid(_) => errno::EINVAL,
        BlockError::Unsupported => errno::ENOTSUP,
        BlockError::ReadOnly => errno::EPERM,
        BlockError::NoSpace => errno::ENOSPC,
        BlockError::Shutdown => errno::ESHUTDOWN,
        BlockError::Io(_) => errno::EIO,
    }
}

/// How the two sides frame requests and replies after the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// 28-byte requests, simple replies.
    Simple,
    /// 28-byte requests, structured replies where there is a payload or an error.
    Structured,
    /// 32-byte requests and replies, 64-bit lengths.
    Extended,
}

impl Mode {
    /// Length of a request header, in bytes.
    pub(crate) const fn header_len(self) -> usize {
        match self {
            Mode::Simple | Mode::Structured => 28,
            Mode::Extended => 32,
        }
    }
}

/// The header of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) flags: u16,
    pub(crate) command: u16,
    pub(crate) cookie: u64,
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

impl Header {
    /// Reads a header; `None` if the magic number is wrong, so that nothing behind it can be trusted.
    /// `bytes` must hold [`Mode::header_len`] bytes, or it is no header either.
    pub(crate) fn parse(mode: Mode, bytes: &[u8]) -> Option<Header> {
        let mut r = Reader(bytes);
        let magic = if mode == Mode::Extended { EXTENDED_REQUEST_MAGIC } else { REQUEST_MAGIC };
        if r.u32()? != magic {
            return None;
        }
        let (flags, command, cookie, offset) = (r.u16()?, r.u16()?, r.u64()?, r.u64()?);
        let len = if mode == Mode::Extended { r.u64()? } else { r.u32()?.into() };
        Some(Header { flags, command, cookie, offset, len })
    }

    /// Appends the header to `out`. A length that compact headers cannot hold is the caller's mistake and is cut.
    pub(crate) fn encode(&self, mode: Mode, out: &mut Vec<u8>) {
        let magic = if mode == Mode::Extended { EXTENDED_REQUEST_MAGIC } else { REQUEST_MAGIC };
        out.extend(magic.to_be_bytes());
        out.extend(self.flags.to_be_bytes());
        out.extend(self.command.to_be_bytes());
        out.extend(self.cookie.to_be_bytes());
        out.extend(self.offset.to_be_bytes());
        match mode {
            Mode::Extended => out.extend(self.len.to_be_bytes()),
            Mode::Simple | Mode::Structured => out.extend(u32::try_from(self.len).unwrap_or(u32::MAX).to_be_bytes()),
        }
    }

    /// Bytes that follow the header. Those of a write do so in every mode: the document wants a flag for it with extended
    /// headers, which QEMU's client (8.2 and later) leaves out.
    pub(crate) const fn payload_len(&self, mode: Mode) -> u64 {
        let flagged = matches!(mode, Mode::Extended) && self.flags & command_flag::PAYLOAD_LEN != 0;
        if flagged || self.command == cmd::WRITE { self.len } else { 0 }
    }
}

/// Takes big-endian integers and strings off the front of a slice; `None` when it is too short.
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*head)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// A string preceded by its 32-bit length.
    pub(crate) fn string(&mut self) -> Option<&'a str> {
        let len = usize::try_from(self.u32()?).ok()?;
        if len > crate::limits::MAX_STRING {
            return None;
        }
        std::str::from_utf8(self.take(len)?).ok()
    }
}

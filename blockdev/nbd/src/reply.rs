//! Encoding of replies. Each function appends headers (and small payloads) to `out`; the bytes of a read follow
//! separately, so that they are never copied.

use crate::limits::MAX_STRING;
use crate::proto::{
    ALLOCATION_ID, EXTENDED_REPLY_MAGIC, Mode, SIMPLE_REPLY_MAGIC, STATE_HOLE, STATE_ZERO, STRUCTURED_REPLY_MAGIC,
    chunk,
};
use afterimage_base::block::Extent;

/// What of a request its reply repeats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Id {
    pub(crate) cookie: u64,
    pub(crate) offset: u64,
}

fn simple(out: &mut Vec<u8>, id: Id, errno: u32) {
    out.extend(SIMPLE_REPLY_MAGIC.to_be_bytes());
    out.extend(errno.to_be_bytes());
    out.extend(id.cookie.to_be_bytes());
}

/// The header of the one and last chunk of a structured or extended reply.
fn chunk_header(out: &mut Vec<u8>, mode: Mode, id: Id, kind: u16, payload: u32) {
    let extended = mode == Mode::Extended;
    let magic = if extended { EXTENDED_REPLY_MAGIC } else { STRUCTURED_REPLY_MAGIC };
    out.extend(magic.to_be_bytes());
    out.extend(chunk::DONE.to_be_bytes());
    out.extend(kind.to_be_bytes());
    out.extend(id.cookie.to_be_bytes());
    if extended {
        out.extend(id.offset.to_be_bytes());
        out.extend(u64::from(payload).to_be_bytes());
    } else {
        out.extend(payload.to_be_bytes());
    }
}

/// Success without data. A simple reply where it is allowed: it is the shortest.
pub(crate) fn done(out: &mut Vec<u8>, mode: Mode, id: Id) {
    match mode {
        Mode::Simple | Mode::Structured => simple(out, id, 0),
        Mode::Extended => chunk_header(out, mode, id, chunk::NONE, 0),
    }
}

/// A failure, with words where the mode has room for them.
pub(crate) fn error(out: &mut Vec<u8>, mode: Mode, id: Id, errno: u32, message: &str) {
    if mode == Mode::Simple {
        return simple(out, id, errno);
    }
    let message = clip(message);
    let len = u16::try_from(message.len()).unwrap_or(0);
    chunk_header(out, mode, id, chunk::ERROR, 6 + u32::from(len));
    out.extend(errno.to_be_bytes());
    out.extend(len.to_be_bytes());
    out.extend(&message.as_bytes()[..len.into()]);
}

/// The longest prefix that the protocol allows as a string.
fn clip(message: &str) -> &str {
    let mut end = message.len().min(MAX_STRING);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    &message[..end]
}

/// Success of a read; `len` bytes must follow.
pub(crate) fn data(out: &mut Vec<u8>, mode: Mode, id: Id, len: u32) {
    if mode == Mode::Simple {
        return simple(out, id, 0);
    }
    chunk_header(out, mode, id, chunk::OFFSET_DATA, len.saturating_add(8));
    out.extend(id.offset.to_be_bytes());
}

/// Success of a block status request. `extents` are as [`normalise`] makes them; `mode` is not simple.
pub(crate) fn extents(out: &mut Vec<u8>, mode: Mode, id: Id, extents: &[Extent]) {
    let count = u32::try_from(extents.len()).unwrap_or(0);
    if mode == Mode::Extended {
        chunk_header(out, mode, id, chunk::BLOCK_STATUS_EXT, 8 + 16 * count);
        out.extend(ALLOCATION_ID.to_be_bytes());
        out.extend(count.to_be_bytes());
    } else {
        chunk_header(out, mode, id, chunk::BLOCK_STATUS, 4 + 8 * count);
        out.extend(ALLOCATION_ID.to_be_bytes());
    }
    for e in extents {
        let state = if e.zero { STATE_ZERO } else { 0 } | if e.hole { STATE_HOLE } else { 0 };
        if mode == Mode::Extended {
            out.extend(e.len.to_be_bytes());
            out.extend(u64::from(state).to_be_bytes());
        } else {
            // A compact request covers less than 4 GiB, and so do the extents cut to it.
            out.extend(u32::try_from(e.len).unwrap_or(u32::MAX).to_be_bytes());
            out.extend(state.to_be_bytes());
        }
    }
}

/// Makes of a device's answer what the protocol allows: at least one extent, none empty, together not longer than
/// asked for, neighbours different, at most `max`.
pub(crate) fn normalise(answer: &[Extent], len: u64, max: usize) -> Vec<Extent> {
    let mut out: Vec<Extent> = Vec::new();
    let mut left = len;
    for e in answer {
        let e = Extent { len: e.len.min(left), ..*e };
        if e.len == 0 {
            continue;
        }
        let full = out.len() == max;
        match out.last_mut() {
            Some(last) if (last.zero, last.hole) == (e.zero, e.hole) => last.len += e.len,
            _ if full => break,
            _ => out.push(e),
        }
        left -= e.len;
    }
    if out.is_empty() {
        out.push(Extent { len, zero: false, hole: false });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Whatever a device says, the answer has the form that the protocol demands and says nothing else about any
        /// byte than the device did.
        #[test]
        fn an_answer_is_well_formed_and_true(
            lens in prop::collection::vec((0u64..5000, any::<bool>(), any::<bool>()), 0..20),
            len in 1u64..20_000,
            max in 1usize..10,
        ) {
            let answer: Vec<Extent> = lens.iter().map(|&(len, zero, hole)| Extent { len, zero, hole }).collect();
            let out = normalise(&answer, len, max);
            prop_assert!(!out.is_empty() && out.len() <= max && out.iter().all(|e| e.len > 0));
            prop_assert!(out.iter().map(|e| e.len).sum::<u64>() <= len);
            prop_assert!(out.windows(2).all(|w| (w[0].zero, w[0].hole) != (w[1].zero, w[1].hole)));
            let bytes = |extents: &[Extent]| -> Vec<(bool, bool)> {
                extents.iter().flat_map(|e| std::iter::repeat_n((e.zero, e.hole), usize::try_from(e.len).unwrap())).collect()
            };
            let (said, told) = (bytes(&answer), bytes(&out));
            let nothing = said.is_empty() && told.iter().all(|s| *s == (false, false));
            prop_assert!(nothing || said.starts_with(&told));
        }
    }

    #[test]
    fn an_error_message_is_cut_at_a_character() {
        let mut out = Vec::new();
        error(&mut out, Mode::Structured, Id { cookie: 1, offset: 2 }, 5, &"ü".repeat(5000));
        assert_eq!(out.len(), 20 + 6 + 4096);
        assert!(std::str::from_utf8(&out[26..]).is_ok());
        error(&mut out, Mode::Extended, Id { cookie: 1, offset: 2 }, 5, &format!("x{}", "ü".repeat(5000)));
        assert_eq!(out.len(), (20 + 6 + 4096) + (32 + 6 + 4095));
    }
}

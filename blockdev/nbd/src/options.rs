//! Parsing of option data and encoding of option replies. Pure; the conversation is in [`crate::handshake`].

use crate::limits::MAX_STRING;
use crate::proto::{ALLOCATION, OPTION_MAGIC, OPTION_REPLY_MAGIC, Reader, rep};

/// Data of INFO and GO.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct InfoRequest<'a> {
    pub(crate) name: &'a str,
    pub(crate) wants: Vec<u16>,
}

impl<'a> InfoRequest<'a> {
    /// `None` if the data is malformed.
    pub(crate) fn parse(data: &'a [u8]) -> Option<Self> {
        let mut r = Reader(data);
        let name = r.string()?;
        let count = r.u16()?;
        let wants = (0..count).map(|_| r.u16()).collect::<Option<Vec<u16>>>()?;
        r.0.is_empty().then_some(Self { name, wants })
    }
}

/// Data of the two meta context options.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct MetaRequest<'a> {
    pub(crate) name: &'a str,
    pub(crate) queries: Vec<&'a str>,
}

impl<'a> MetaRequest<'a> {
    /// `None` if the data is malformed.
    pub(crate) fn parse(data: &'a [u8]) -> Option<Self> {
        let mut r = Reader(data);
        let name = r.string()?;
        let count = r.u32()?;
        // The count is not trusted: collecting ends with the data.
        let queries = (0..count).map(|_| r.string()).collect::<Option<Vec<&str>>>()?;
        r.0.is_empty().then_some(Self { name, queries })
    }

    /// Whether `base:allocation` is among what SET asks for.
    pub(crate) fn selects(&self) -> bool {
        self.queries.contains(&ALLOCATION)
    }

    /// Whether it is among what LIST asks for: by name, by wildcard, or because everything is asked for.
    pub(crate) fn lists(&self) -> bool {
        self.queries.is_empty() || self.selects() || self.queries.contains(&"base:")
    }
}

/// Appends a reply to option `option`.
pub(crate) fn reply(out: &mut Vec<u8>, option: u32, kind: u32, data: &[&[u8]]) {
    let len: usize = data.iter().map(|d| d.len()).sum();
    out.extend(OPTION_REPLY_MAGIC.to_be_bytes());
    out.extend(option.to_be_bytes());
    out.extend(kind.to_be_bytes());
    out.extend(u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes());
    data.iter().for_each(|d| out.extend_from_slice(d));
}

/// Appends one item of information.
pub(crate) fn info_reply(out: &mut Vec<u8>, option: u32, kind: u16, data: &[u8]) {
    reply(out, option, rep::INFO, &[&kind.to_be_bytes(), data]);
}

/// Data of `NBD_INFO_EXPORT`, and of the reply to EXPORT_NAME.
pub(crate) fn export_info(size: u64, flags: u16) -> [u8; 10] {
    let mut data = [0; 10];
    data[..8].copy_from_slice(&size.to_be_bytes());
    data[8..].copy_from_slice(&flags.to_be_bytes());
    data
}

/// Data of `NBD_INFO_BLOCK_SIZE`: smallest, preferred and largest request.
pub(crate) fn block_sizes(preferred: u32, max: u32) -> [u8; 12] {
    // The document wants a power of two of at least 512 and at most the largest request.
    let preferred = preferred.clamp(512, 1 << 25).next_power_of_two();
    let mut data = [0; 12];
    data[..4].copy_from_slice(&1u32.to_be_bytes());
    data[4..8].copy_from_slice(&preferred.to_be_bytes());
    data[8..].copy_from_slice(&max.max(preferred).to_be_bytes());
    data
}

/// Appends one export of a LIST.
pub(crate) fn server_reply(out: &mut Vec<u8>, option: u32, name: &str, description: &str) {
    if name.len() <= MAX_STRING && description.len() <= MAX_STRING {
        let len = u32::try_from(name.len()).unwrap_or(0);
        reply(out, option, rep::SERVER, &[&len.to_be_bytes(), name.as_bytes(), description.as_bytes()]);
    }
}

/// Appends an option without data, as a client sends it.
pub(crate) fn option(out: &mut Vec<u8>, option: u32) {
    out.extend(OPTION_MAGIC.to_be_bytes());
    out.extend(option.to_be_bytes());
    out.extend(0u32.to_be_bytes());
}

//! The bytes that the driver `ublk_drv` and its server exchange, as `linux/ublk_cmd.h` and the driver of Linux 6.12 have them.
//!
//! | struct of the kernel | bytes | here |
//! |---|---|---|
//! | `ublksrv_ctrl_cmd` | 32, in a 128-byte SQE to `/dev/ublk-control` | [`control_command`] |
//! | `ublksrv_ctrl_dev_info` | 64 | [`Info`] |
//! | `ublk_params` (its first two parts) | 60 | [`Params`] |
//! | `ublksrv_io_cmd` | 16, in an SQE to `/dev/ublkcN` | [`io_command`] |
//! | `ublksrv_io_desc` | 24, in memory that the driver writes | [`Descriptor`] |
//!
//! Numbers are in the processor's byte order. Commands have two spellings: bare numbers (kernels 6.0 to 6.3, and later as an
//! option) and numbers with an ioctl's direction, letter and size around them.

/// Where commands about devices go.
pub(crate) const CONTROL: &str = "/dev/ublk-control";

/// Commands about devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Control {
    Info,
    Add,
    Delete,
    Start,
    Stop,
    SetParams,
    StartRecovery,
    EndRecovery,
    Features,
    UpdateSize,
}

const READ: u32 = 2 << 30;
const READ_WRITE: u32 = 3 << 30;

const fn encoded(direction: u32, size: u32, number: u32) -> u32 {
    direction | size << 16 | (b'u' as u32) << 8 | number
}

impl Control {
    /// The command as `cmd_op` of an SQE.
    pub(crate) const fn op(self, encode: bool) -> u32 {
        let (direction, number) = match self {
            Control::Info => (READ, 0x02),
            Control::Add => (READ_WRITE, 0x04),
            Control::Delete => (READ_WRITE, 0x05),
            Control::Start => (READ_WRITE, 0x06),
            Control::Stop => (READ_WRITE, 0x07),
            Control::SetParams => (READ_WRITE, 0x08),
            Control::StartRecovery => (READ_WRITE, 0x10),
            Control::EndRecovery => (READ_WRITE, 0x11),
            Control::Features => (READ, 0x13),
            Control::UpdateSize => (READ_WRITE, 0x15),
        };
        if encode { encoded(direction, CONTROL_LEN, number) } else { number }
    }
}

const CONTROL_LEN: u32 = 32;
/// The part of a 128-byte SQE that is the command's.
pub(crate) const SQE_COMMAND: usize = 80;

/// A command about device `id` with a buffer and a number, as the command part of an SQE.
pub(crate) fn control_command(id: u32, buffer: u64, len: u16, data: u64) -> [u8; SQE_COMMAND] {
    let mut out = [0; SQE_COMMAND];
    out[0..4].copy_from_slice(&id.to_ne_bytes());
    // Not about one queue.
    out[4..6].copy_from_slice(&u16::MAX.to_ne_bytes());
    out[6..8].copy_from_slice(&len.to_ne_bytes());
    out[8..16].copy_from_slice(&buffer.to_ne_bytes());
    out[16..24].copy_from_slice(&data.to_ne_bytes());
    out
}

/// Features, as bits of [`Info::flags`].
pub(crate) mod feature {
    pub(crate) const USER_RECOVERY: u64 = 1 << 3;
    pub(crate) const USER_RECOVERY_REISSUE: u64 = 1 << 4;
    pub(crate) const ENCODE: u64 = 1 << 6;
    pub(crate) const USER_COPY: u64 = 1 << 7;
    pub(crate) const UPDATE_SIZE: u64 = 1 << 10;
}

/// States of a device in [`Info::state`].
pub(crate) mod state {
    pub(crate) const LIVE: u16 = 1;
    pub(crate) const QUIESCED: u16 = 2;
}

/// What the driver knows of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Info {
    pub(crate) queues: u16,
    pub(crate) depth: u16,
    pub(crate) state: u16,
    pub(crate) max_io: u32,
    pub(crate) id: u32,
    pub(crate) pid: i32,
    pub(crate) flags: u64,
    /// The server's own word, which the driver keeps and does not read.
    pub(crate) mark: u64,
}

pub(crate) const INFO_LEN: usize = 64;

impl Info {
    pub(crate) fn encode(&self) -> [u8; INFO_LEN] {
        let mut out = [0; INFO_LEN];
        out[0..2].copy_from_slice(&self.queues.to_ne_bytes());
        out[2..4].copy_from_slice(&self.depth.to_ne_bytes());
        out[4..6].copy_from_slice(&self.state.to_ne_bytes());
        out[8..12].copy_from_slice(&self.max_io.to_ne_bytes());
        out[12..16].copy_from_slice(&self.id.to_ne_bytes());
        out[16..20].copy_from_slice(&self.pid.to_ne_bytes());
        out[24..32].copy_from_slice(&self.flags.to_ne_bytes());
        out[32..40].copy_from_slice(&self.mark.to_ne_bytes());
        out
    }

    pub(crate) fn decode(bytes: &[u8; INFO_LEN]) -> Info {
        Info {
            queues: u16::from_ne_bytes(at(bytes, 0)),
            depth: u16::from_ne_bytes(at(bytes, 2)),
            state: u16::from_ne_bytes(at(bytes, 4)),
            max_io: u32::from_ne_bytes(at(bytes, 8)),
            id: u32::from_ne_bytes(at(bytes, 12)),
            pid: i32::from_ne_bytes(at(bytes, 16)),
            flags: u64::from_ne_bytes(at(bytes, 24)),
            mark: u64::from_ne_bytes(at(bytes, 32)),
        }
    }
}

fn at<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[offset..offset + N]);
    out
}

/// Attributes in [`Params::attributes`].
pub(crate) mod attribute {
    pub(crate) const READ_ONLY: u32 = 1;
    pub(crate) const ROTATIONAL: u32 = 1 << 1;
    pub(crate) const VOLATILE_CACHE: u32 = 1 << 2;
    pub(crate) const FUA: u32 = 1 << 3;
}

/// What a device is. Sectors are of 512 bytes, shifts are powers of two in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Params {
    pub(crate) attributes: u32,
    pub(crate) logical_shift: u8,
    pub(crate) physical_shift: u8,
    pub(crate) io_opt_shift: u8,
    pub(crate) io_min_shift: u8,
    pub(crate) max_sectors: u32,
    pub(crate) sectors: u64,
    pub(crate) discard_granularity: u32,
    /// 0: no discard.
    pub(crate) max_discard_sectors: u32,
    pub(crate) max_write_zeroes_sectors: u32,
}

pub(crate) const PARAMS_LEN: usize = 60;
const TYPE_BASIC: u32 = 1;
const TYPE_DISCARD: u32 = 1 << 1;

impl Params {
    #[expect(clippy::cast_possible_truncation, reason = "a length of 60")]
    pub(crate) fn encode(&self) -> [u8; PARAMS_LEN] {
        let mut out = [0; PARAMS_LEN];
        let discard = self.max_discard_sectors != 0 || self.max_write_zeroes_sectors != 0;
        let types = TYPE_BASIC | if discard { TYPE_DISCARD } else { 0 };
        out[0..4].copy_from_slice(&(PARAMS_LEN as u32).to_ne_bytes());
        out[4..8].copy_from_slice(&types.to_ne_bytes());
        out[8..12].copy_from_slice(&self.attributes.to_ne_bytes());
        out[12] = self.logical_shift;
        out[13] = self.physical_shift;
        out[14] = self.io_opt_shift;
        out[15] = self.io_min_shift;
        out[16..20].copy_from_slice(&self.max_sectors.to_ne_bytes());
        out[24..32].copy_from_slice(&self.sectors.to_ne_bytes());
        if discard {
            out[44..48].copy_from_slice(&self.discard_granularity.to_ne_bytes());
            out[48..52].copy_from_slice(&self.max_discard_sectors.to_ne_bytes());
            out[52..56].copy_from_slice(&self.max_write_zeroes_sectors.to_ne_bytes());
            // Discards of one range only: what the driver supports.
            out[56..58].copy_from_slice(&1u16.to_ne_bytes());
        }
        out
    }
}

/// Commands about a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Io {
    /// Gives the driver a place for a request.
    Fetch,
    /// Answers a request, and gives its place back.
    CommitAndFetch,
}

impl Io {
    pub(crate) const fn op(self, encode: bool) -> u32 {
        let number = match self {
            Io::Fetch => 0x20,
            Io::CommitAndFetch => 0x21,
        };
        if encode { encoded(READ_WRITE, 16, number) } else { number }
    }
}

/// A command about the request `tag`: its result, and the memory for the next one (0 with user copy).
pub(crate) fn io_command(queue: u16, tag: u16, result: i32, address: u64) -> [u8; 16] {
    let mut out = [0; 16];
    out[0..2].copy_from_slice(&queue.to_ne_bytes());
    out[2..4].copy_from_slice(&tag.to_ne_bytes());
    out[4..8].copy_from_slice(&result.to_ne_bytes());
    out[8..16].copy_from_slice(&address.to_ne_bytes());
    out
}

/// Operations in [`Descriptor::operation`].
pub(crate) mod operation {
    pub(crate) const READ: u8 = 0;
    pub(crate) const WRITE: u8 = 1;
    pub(crate) const FLUSH: u8 = 2;
    pub(crate) const DISCARD: u8 = 3;
    pub(crate) const WRITE_ZEROES: u8 = 5;
}

const FLAG_FUA: u32 = 1 << 13;
const FLAG_NO_UNMAP: u32 = 1 << 15;
pub(crate) const SECTOR: u64 = 512;

/// A request, as the driver describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Descriptor {
    pub(crate) operation: u8,
    pub(crate) fua: bool,
    pub(crate) no_unmap: bool,
    pub(crate) sectors: u32,
    pub(crate) start: u64,
}

pub(crate) const DESCRIPTOR_LEN: usize = 24;

impl Descriptor {
    pub(crate) fn decode(bytes: &[u8; DESCRIPTOR_LEN]) -> Descriptor {
        let word = u32::from_ne_bytes(at(bytes, 0));
        Descriptor {
            operation: word.to_le_bytes()[0],
            fua: word & FLAG_FUA != 0,
            no_unmap: word & FLAG_NO_UNMAP != 0,
            sectors: u32::from_ne_bytes(at(bytes, 4)),
            start: u64::from_ne_bytes(at(bytes, 8)),
        }
    }

    /// First byte and length of its range, in bytes; `None` if no disk can be so long.
    pub(crate) fn range(&self) -> Option<(u64, u64)> {
        let len = u64::from(self.sectors) * SECTOR;
        let offset = self.start.checked_mul(SECTOR)?;
        offset.checked_add(len).map(|_| (offset, len))
    }
}

/// Most requests of a queue at one time.
pub(crate) const MAX_DEPTH: u16 = 4096;
const PAGE: usize = 4096;

/// Where the descriptors of a queue are in the device's memory, and how many bytes they take.
pub(crate) fn descriptors_of(queue: u16, depth: u16) -> (u64, usize) {
    let most = (usize::from(MAX_DEPTH) * DESCRIPTOR_LEN).next_multiple_of(PAGE);
    (u64::from(queue) * most as u64, (usize::from(depth) * DESCRIPTOR_LEN).next_multiple_of(PAGE))
}

/// Longest request: what has room between two tags in [`payload_at`].
pub(crate) const MAX_IO: u32 = 1 << PAYLOAD_BITS;
const PAYLOAD_BASE: u64 = 0x8000_0000;
const PAYLOAD_BITS: u32 = 25;
const TAG_BITS: u32 = 16;

/// Where `/dev/ublkcN` shows the bytes of a request (user copy).
pub(crate) fn payload_at(queue: u16, tag: u16) -> u64 {
    PAYLOAD_BASE + (u64::from(queue) << (PAYLOAD_BITS + TAG_BITS)) + (u64::from(tag) << PAYLOAD_BITS)
}

#[cfg(test)]
#[path = "abi_tests.rs"]
mod tests;

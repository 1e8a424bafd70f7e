//! Whether the agent of a volume may take writes: part of the manifest and of the wire protocol.
//!
//! A volume has an *epoch*, which only grows: each fence and each end of one makes it one more. An agent keeps the highest that it was told.

use crate::codec::DecodeError;

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(u8)]
pub enum Fence {
    /// It may.
    #[default]
    Open = 0,
    /// It may not, and brings what it has: nothing of that is beyond what counts.
    Draining = 1,
    /// It may not, and what it brings is kept apart from the volume's history.
    Closed = 2,
}

impl Fence {
    /// Reads it.
    ///
    /// # Errors
    /// [`DecodeError`] if the byte means nothing.
    pub const fn of_byte(what: &'static str, byte: u8) -> Result<Fence, DecodeError> {
        match byte {
            0 => Ok(Fence::Open),
            1 => Ok(Fence::Draining),
            2 => Ok(Fence::Closed),
            _ => Err(DecodeError::Field { what, field: "fence", value: byte as u64 }),
        }
    }

    /// Whether the agent may not take writes.
    #[must_use]
    pub const fn is_up(self) -> bool {
        !matches!(self, Fence::Open)
    }
}

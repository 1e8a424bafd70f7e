//! Layers: immutable sorted files of versions.

use crate::codec::{DecodeError, Reader, Writer};

/// What the manifest says of a layer file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerMeta {
    /// Its number.
    pub number: u64,
}

impl LayerMeta {
    /// Appends its bytes to a manifest.
    pub fn encode(&self, b: &mut Vec<u8>) {
        b.put_varint(self.number);
    }

    /// Reads it from a manifest.
    ///
    /// # Errors
    /// [`DecodeError`] if it is short.
    pub fn decode(r: &mut Reader<'_>) -> Result<LayerMeta, DecodeError> {
        Ok(LayerMeta { number: r.varint()? })
    }
}

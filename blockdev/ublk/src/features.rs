//! What a kernel is taken not to have, so that what is done without can be tried on any.

use crate::abi::feature;

/// Features of the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Features(u64);

impl Features {
    /// None of them.
    pub const NONE: Features = Features(0);

    /// One by its name: `recovery`, `reissue`, `encode` (the newer spelling of commands), `user-copy` or `resize`.
    #[must_use]
    pub fn named(name: &str) -> Option<Features> {
        let bits = match name {
            // Reissue is a kind of recovery.
            "recovery" => feature::USER_RECOVERY | feature::USER_RECOVERY_REISSUE,
            "reissue" => feature::USER_RECOVERY_REISSUE,
            "encode" => feature::ENCODE,
            "user-copy" => feature::USER_COPY,
            "resize" => feature::UPDATE_SIZE,
            _ => return None,
        };
        Some(Features(bits))
    }

    /// Both.
    #[must_use]
    pub const fn and(self, other: Features) -> Features {
        Features(self.0 | other.0)
    }

    pub(crate) const fn has(self, bit: u64) -> bool {
        self.0 & bit != 0
    }

    /// These bits without those.
    pub(crate) const fn less(self, bits: u64) -> u64 {
        bits & !self.0
    }
}

//! A small real vault.

/// Makes it.
///
/// # Errors
/// Never yet.
pub fn make() -> std::io::Result<()> { Ok(()) }

//! What makes a thread fit to serve a block device of its own machine.

const PR_SET_IO_FLUSHER: libc::c_int = 57;

/// Tells the kernel that this thread cleans memory by serving writes: what it allocates must not wait for such writes, and
/// its own writes must not be held back until others are cleaned. Else a machine short of memory could stand still.
///
/// # Errors
/// Without the right to do so (`CAP_SYS_RESOURCE`); nothing changes then.
pub fn serves_writeback() -> std::io::Result<()> {
    // SAFETY: the call changes flags of the calling thread and uses no memory.
    let r = unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) };
    if r == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

//! Leaving a strand and going on with another one, by hand: a seed does that some hundred thousand times, and swapcontext(3) asks
//! the kernel twice for each.

use std::arch::naked_asm;
use std::cell::Cell;
use std::ptr::null_mut;

/// Registers that a call leaves as they are, and the address to go on at: what lies on a stack that was left.
const FRAME: usize = 7;

/// A strand that was left: its stack pointer.
pub(super) struct Left(Cell<*mut usize>);

impl Left {
    pub(super) const fn running() -> Left {
        Left(Cell::new(null_mut()))
    }

    /// As if `entry` had been left before its first instruction.
    ///
    /// # Safety
    /// There are `len` bytes at `bottom`, a multiple of 16 as the address is, which are nobody else's from now on.
    pub(super) unsafe fn begin(bottom: *mut u8, len: usize, entry: extern "C" fn() -> !) -> Left {
        let words: *mut usize = bottom.cast();
        // A function begins with its stack pointer 8 below a multiple of 16, and there the address to return to: none, where a
        // backtrace ends.
        let frame: [usize; FRAME + 1] = [0, 0, 0, 0, 0, 0, entry as usize, 0];
        // SAFETY: so many words are there.
        let top = unsafe { words.add(len / size_of::<usize>() - frame.len()) };
        // SAFETY: as above, and nobody else's.
        unsafe { top.cast::<[usize; FRAME + 1]>().write(frame) };
        Left(Cell::new(top))
    }

    /// # Safety
    /// As for `Place::switch_from`.
    pub(super) unsafe fn switch_from(&self, me: &Left) {
        // SAFETY: `self` was left by this function or made by `begin`, so that a frame lies where it points to.
        unsafe { switch(me.0.as_ptr(), self.0.get()) }
    }
}

/// Leaves the caller's stack, noted in `save`, for the one at `to`.
#[unsafe(naked)]
unsafe extern "sysv64" fn switch(save: *mut *mut usize, to: *mut usize) {
    naked_asm!(
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "mov [rdi], rsp",
        "mov rsp, rsi",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "ret",
    )
}

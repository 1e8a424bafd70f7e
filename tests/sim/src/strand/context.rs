//! Leaving a strand and going on with another one, as the C library does it on any processor.

use std::cell::UnsafeCell;
use std::mem::MaybeUninit;

/// A strand that was left.
pub(super) struct Left(Box<UnsafeCell<MaybeUninit<libc::ucontext_t>>>);

impl Left {
    pub(super) fn running() -> Left {
        Left(Box::new(UnsafeCell::new(MaybeUninit::zeroed())))
    }

    fn at(&self) -> *mut libc::ucontext_t {
        self.0.get().cast()
    }

    /// As if `entry` had been left before its first instruction.
    ///
    /// # Safety
    /// There are `len` bytes at `bottom`, which are nobody else's from now on.
    pub(super) unsafe fn begin(bottom: *mut u8, len: usize, entry: extern "C" fn() -> !) -> Left {
        let left = Left::running();
        let context = left.at();
        // SAFETY: there is room for a context, and it is ours.
        let got = unsafe { libc::getcontext(context) };
        assert_eq!(got, 0, "no context");
        // SAFETY: it has just been made, and nobody else knows of it.
        let inner = unsafe { &mut *context };
        inner.uc_stack.ss_sp = bottom.cast();
        inner.uc_stack.ss_size = len;
        inner.uc_link = std::ptr::null_mut();
        // SAFETY: what does not return can be called as if it did.
        let entry = unsafe { std::mem::transmute::<extern "C" fn() -> !, extern "C" fn()>(entry) };
        // SAFETY: the context stays where it is, and the caller gives the stack.
        unsafe { libc::makecontext(context, entry, 0) };
        left
    }

    /// # Safety
    /// As for `Place::switch_from`.
    pub(super) unsafe fn switch_from(&self, me: &Left) {
        // SAFETY: the caller says so.
        let done = unsafe { libc::swapcontext(me.at(), self.at()) };
        assert_eq!(done, 0, "no way to another strand");
    }
}

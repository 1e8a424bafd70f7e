//! An allocator that counts, and ends the process when an input takes more than its target may.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Counts what is in use. To be the global allocator of a program that runs targets.
#[derive(Debug, Default)]
pub struct Counting;

static USED: AtomicUsize = AtomicUsize::new(0);
static LIMIT: AtomicUsize = AtomicUsize::new(usize::MAX);

fn take(bytes: usize) {
    let used = USED.fetch_add(bytes, Ordering::Relaxed) + bytes;
    let limit = LIMIT.load(Ordering::Relaxed);
    if used > limit {
        // The message may allocate. An allocator must not unwind.
        LIMIT.store(usize::MAX, Ordering::Relaxed);
        eprintln!("an allocation of {bytes} bytes exceeds the target's memory limit ({used} in use, {limit} allowed)");
        eprintln!("{}", std::backtrace::Backtrace::force_capture());
        eprintln!("FAILED: {}", crate::watch::current());
        std::process::abort();
    }
}

// SAFETY: every call is handed on to the system's allocator with the very arguments; only numbers are counted beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        take(layout.size());
        // SAFETY: the caller's own promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        take(layout.size());
        // SAFETY: the caller's own promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        USED.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's own promise.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new: usize) -> *mut u8 {
        take(new);
        USED.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's own promise.
        unsafe { System.realloc(ptr, layout, new) }
    }
}

/// Lifts the limit: what follows is a report.
pub fn unlimited() {
    LIMIT.store(usize::MAX, Ordering::Relaxed);
}

/// Runs `work`, in which no more than `bytes` may be taken beyond what is in use now. Without [`Counting`] nothing is limited.
pub fn limited<T>(bytes: usize, work: impl FnOnce() -> T) -> T {
    LIMIT.store(USED.load(Ordering::Relaxed).saturating_add(bytes), Ordering::Relaxed);
    let out = work();
    unlimited();
    out
}

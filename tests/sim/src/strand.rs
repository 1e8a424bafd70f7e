//! Strands: what a simulated thread is made of. Each has a stack of its own, and all run on one thread of the system, so that to go
//! on with another one costs no more than a call.

#[cfg_attr(not(target_arch = "x86_64"), path = "strand/context.rs")]
mod switch;

use switch::Left;

/// Bytes of a stack. Only what is touched takes memory.
const STACK: usize = 2 << 20;
/// Bytes below a stack that nobody may touch.
const GUARD: usize = 64 << 10;

/// A stack. It is never given back: what stands on it may belong to a thread that will not run again.
#[derive(Debug)]
pub struct Stack(*mut u8);

// SAFETY: the address of memory that lives as long as the process.
unsafe impl Send for Stack {}

impl Stack {
    /// A new one.
    #[must_use]
    pub fn new() -> Stack {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_STACK;
        // SAFETY: a new private mapping touches nothing that is there.
        let base = unsafe {
            libc::mmap(std::ptr::null_mut(), GUARD + STACK, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)
        };
        assert!(base != libc::MAP_FAILED, "no memory for a stack");
        // SAFETY: the first pages of what was just mapped.
        let guarded = unsafe { libc::mprotect(base, GUARD, libc::PROT_NONE) };
        assert_eq!(guarded, 0, "no guard below a stack");
        Stack(base.cast())
    }

    /// Its lowest byte that may be touched.
    fn bottom(&self) -> *mut u8 {
        // SAFETY: the guard is the beginning of the same mapping.
        unsafe { self.0.add(GUARD) }
    }
}

impl Default for Stack {
    fn default() -> Self {
        Self::new()
    }
}

/// Where a strand stands while another one runs.
pub struct Strand {
    left: Box<Left>,
    /// What it runs on; none for the first, which runs on the system's.
    stack: Option<Stack>,
}

// SAFETY: all strands run on one thread of the system.
unsafe impl Send for Strand {}
// SAFETY: as above; only the strand that runs touches one.
unsafe impl Sync for Strand {}

impl Strand {
    /// The one that runs already.
    #[must_use]
    pub fn running() -> Strand {
        Strand { left: Box::new(Left::running()), stack: None }
    }

    /// One that begins with `entry`, which must not return.
    #[must_use]
    pub fn new(stack: Stack, entry: extern "C" fn() -> !) -> Strand {
        // SAFETY: the stack is nobody else's, and lives as long as the process.
        let left = unsafe { Left::begin(stack.bottom(), STACK, entry) };
        Strand { left: Box::new(left), stack: Some(stack) }
    }

    /// Where it can be gone on with, from `me` on or to it. Valid as long as the strand is, wherever that is moved.
    #[must_use]
    pub fn place(&self) -> Place {
        Place(&raw const *self.left)
    }

    /// Its stack, for another strand. It must not be switched to any more.
    pub fn end(&mut self) -> Option<Stack> {
        self.stack.take()
    }
}

/// Where a strand is kept.
#[derive(Debug, Clone, Copy)]
pub struct Place(*const Left);

impl Place {
    /// Goes on with the strand at `self`; returns when somebody goes on with `me`.
    ///
    /// # Safety
    /// `me` is the place of the strand that runs, `self` that of another one which was begun or left by this, both strands are
    /// still there, and everything is called on one thread of the system.
    pub unsafe fn switch_from(self, me: Place) {
        // SAFETY: the caller says that it is there.
        let me = unsafe { &*me.0 };
        // SAFETY: as above.
        let other = unsafe { &*self.0 };
        // SAFETY: as the caller says.
        unsafe { other.switch_from(me) };
    }
}

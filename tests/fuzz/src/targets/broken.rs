//! Targets that always fail, for the test of the harness.

use crate::Target;

/// They are found by name, and are not among the others.
pub const ALL: [Target; 2] = [
    Target { name: "broken_panic", run: panic, memory: 1 << 20, longest: 1 },
    Target { name: "broken_memory", run: memory, memory: 1 << 20, longest: 1 },
];

fn panic(_: &[u8]) {
    drop(std::thread::spawn(|| panic!("on purpose")).join());
}

fn memory(_: &[u8]) {
    drop(std::hint::black_box(vec![1u8; 2 << 20]));
}

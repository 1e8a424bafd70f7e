//! The engine: libFuzzer around the target that AFTERIMAGE_FUZZ_TARGET names (`list` names them all). Built by `scripts/fuzz.sh`.

#![no_main]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command talks")]

use afterimage_fuzz::memory::Counting;
use afterimage_fuzz::{Target, find, memory, targets};
use std::sync::OnceLock;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

static TARGET: OnceLock<&'static Target> = OnceLock::new();

libfuzzer_sys::fuzz_target!(
    init: {
        let name = std::env::var("AFTERIMAGE_FUZZ_TARGET").unwrap_or_default();
        if name == "list" {
            targets::ALL.iter().for_each(|t| println!("{} {}", t.name, t.longest));
            std::process::exit(0);
        }
        let Some(target) = find(&name) else {
            eprintln!("AFTERIMAGE_FUZZ_TARGET={name}: there is no such target");
            std::process::exit(2);
        };
        TARGET.get_or_init(|| target);
        // The report of a panic allocates.
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            memory::unlimited();
            usual(info);
        }));
    },
    |data: &[u8]| {
        if let Some(target) = TARGET.get() {
            afterimage_fuzz::run(target, data);
        }
    }
);

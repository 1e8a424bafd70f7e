//! Whole-system comparisons: our export against other NBD servers, our ingest against backup programs, on the same disk in the
//! same run.
//!
//! How the figures are made comparable:
//!
//! * Rounds are interleaved: every candidate runs once per round, and every second round goes in the opposite order, so that
//!   a drift of the machine hits all of them. Tables show medians over the rounds, and ratios of medians.
//! * The page cache is in a known state before each run: everything written back, and no page of the disk's file cached.
//!   (On kernels with large folios a random 4 KiB overwrite of a cached page costs ten times more if the page was
//!   cached by a large write or by readahead.)
//! * Pinned and unpinned runs are told apart: at low depth the figure is mostly where the scheduler put client and server.
//!
//! | module | what |
//! |---|---|
//! | [`write_path`] | random and sequential writes through an export |
//! | [`ingest`] | two generations of a disk image into an encrypted, deduplicated store |
//! | [`image`] | that image |
//! | [`history`] | opening and reading points of a volume with a long history |
//! | [`cold`] | what reading it costs when nothing is in memory |
//! | [`generate`], [`kept`] | that history, and keeping it |
//! | [`lag`] | how far the appliance is behind at a given churn, and after an outage |
//! | [`growth`] | many volumes on one agent |
//! | [`site`], [`load`], [`mirror`], [`syscalls`] | the processes that are measured, the client, what is counted |
//! | [`outage`] | what a guest notices of an appliance that goes away |
//! | [`cache`] | the state of the page cache |
//! | [`usage`] | what a command takes |
//! | [`plot`] | bars, as SVG |
//! | [`figures`] | medians, quantities as text |
//! | [`report`] | JSON and the tables of docs/performance.md |

pub mod branch;
pub mod cache;
pub mod cold;
pub mod figures;
pub mod generate;
pub mod growth;
pub mod history;
pub mod image;
pub mod ingest;
pub mod kept;
pub mod lag;
pub mod load;
pub mod mirror;
pub mod outage;
pub mod plot;
pub mod report;
pub mod site;
pub mod syscalls;
pub mod usage;
pub mod write_path;

/// What is compared, in the order for this round: forwards and backwards in turn, so that who comes first gains nothing.
#[must_use]
pub fn in_turn<T: Clone>(candidates: &[T], round: u32) -> Vec<T> {
    let mut order = candidates.to_vec();
    if round % 2 == 1 {
        order.reverse();
    }
    order
}

/// Runs `one` for each candidate, round by round; `progress` hears of each run.
pub(crate) fn rounds<T: Clone, R>(
    rounds: u32,
    candidates: &[T],
    mut one: impl FnMut(T, u32) -> R,
    mut progress: impl FnMut(&R),
) -> Vec<R> {
    let mut runs = Vec::new();
    for round in 0..rounds {
        for candidate in in_turn(candidates, round) {
            let run = one(candidate, round);
            progress(&run);
            runs.push(run);
        }
    }
    runs
}

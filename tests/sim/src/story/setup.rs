//! What a seed is about, and the sizes of things in it.

use crate::hosts::Setup;
use crate::rng::Rng;
use crate::sched::MILLI;
use afterimage_agent::CacheMode;
use std::time::Duration;

/// What a seed is about.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Flavour {
    pub(super) kills: bool,
    pub(super) power: bool,
    pub(super) net: bool,
    pub(super) room: bool,
    pub(super) errors: bool,
    pub(super) clocks: bool,
    /// The agent's own files: errors, and files that are gone at a start.
    pub(super) files: bool,
    /// An older copy of the whole vault is put back.
    pub(super) copies: bool,
    /// The peer speaks another version of the protocol.
    pub(super) versions: bool,
    /// Disks are written behind the agent's back, which a verification finds; sizes change.
    pub(super) online: bool,
    /// Segments and layers are written wrongly, without a word. Nothing wrong may be shown then, but something may be lost.
    pub(super) damage: bool,
}

impl Flavour {
    pub(super) fn of(rng: &mut Rng) -> Flavour {
        let none = Flavour::default();
        let all = Flavour {
            kills: true,
            power: true,
            net: true,
            room: true,
            errors: true,
            clocks: true,
            files: true,
            copies: true,
            versions: true,
            online: true,
            damage: false,
        };
        match rng.below(15) {
            11 => Flavour { files: true, power: true, kills: true, ..none },
            12 => Flavour { copies: true, kills: true, ..none },
            13 => Flavour { online: true, ..none },
            14 => Flavour { online: true, versions: true, kills: true, net: true, ..none },
            10 => Flavour { damage: true, kills: true, ..none },
            0 => none,
            1 => Flavour { kills: true, ..none },
            2 => Flavour { power: true, ..none },
            3 => Flavour { kills: true, power: true, ..none },
            4 => Flavour { net: true, ..none },
            5 => Flavour { room: true, kills: true, ..none },
            6 => Flavour { errors: true, power: true, ..none },
            7 => Flavour { clocks: true, net: true, kills: true, ..none },
            _ => all,
        }
    }
}

pub(super) fn setup(rng: &mut Rng) -> Setup {
    let volumes = [1, 1, 1, 2, 3][rng.index(5)];
    let block = 4096;
    let size = |rng: &mut Rng| match rng.below(4) {
        // Neither a multiple of the grid nor of a region.
        0 => 70 * block + 512,
        _ => [24, 64, 128][rng.index(3)] * block,
    };
    Setup {
        sizes: (0..volumes).map(|_| size(rng)).collect(),
        ring: [1 << 20, 1 << 20, 1 << 20, 2 << 20][rng.index(4)],
        cache: if rng.below(3) == 0 { CacheMode::None } else { CacheMode::Writeback },
        queues: rng.between(1, 3),
        operations: [20, 60, 100, 150, 150, 400][rng.index(6)],
        longest: [4096, 4096, 8 << 10, 8 << 10, 16 << 10, 16 << 10, 64 << 10][rng.index(7)],
        think: [MILLI / 10, 5 * MILLI, 100 * MILLI][rng.index(3)],
        segment: [64 << 10, 256 << 10, 4 << 20][rng.index(3)],
        runs: [16, 200, 100_000][rng.index(3)],
        credit: [8 << 20, 24 << 20][rng.index(2)],
        window: if rng.below(3) == 0 { Duration::from_secs(rng.between(2, 60)) } else { Duration::from_secs(1 << 30) },
        collect: Duration::from_secs(rng.between(1, 30)),
        threads: 1 + rng.index(2),
        order: 0,
    }
}

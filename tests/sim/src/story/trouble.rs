//! What goes wrong: disks, deaths, the network, and files that are not what they were.

use super::Story;
use crate::disk::{Disk, Faults, Tag};
use crate::hosts::lock;
use crate::model::Past;
use crate::net::{Cut, Peer, Weather};
use crate::sched::{Death, Doom, Host, MILLI, SECOND};
use std::path::PathBuf;

/// An older copy of the appliance's disk, and the log of each volume as it was then.
pub(super) struct Copy {
    disk: Disk,
    logs: Vec<Past>,
}

impl Story {
    /// One of so many kinds of errors, rare or frequent: reads, writes, syncs, short results, a full disk.
    pub(super) fn errors(&mut self, kinds: usize, only: Option<Tag>) -> Faults {
        let which = self.rng.index(kinds);
        let n = [2, 20, 200][self.rng.index(3)];
        let one = |i, on| if i == which { on } else { 0 };
        let (read, write, sync, short) = (one(0, n), one(1, n), one(2, n), one(3, 500));
        Faults { read, write, sync, short, full: which == 4, only, ..Faults::default() }
    }

    pub(super) fn faults(&mut self, host: Host, faults: Faults, what: &'static str) {
        self.ill[host as usize] = true;
        self.lab.with_disk(host, |d| d.faults = faults);
        let mut s = self.lab.sim.state();
        s.count(what);
        s.say(&format!("{host:?}: {faults:?}"));
    }

    pub(super) fn strike(&mut self, host: Host) {
        let f = self.flavour;
        let death = if f.power && (!f.kills || self.rng.below(2) == 0) { Death::PowerCut } else { Death::Kill };
        if self.rng.below(3) == 0 {
            self.lab.sim.die(host, death);
        } else {
            // At any step, or at one of a kind: a sync, a rename, a new file.
            let only = [None, None, Some(b'S'), Some(b'n'), Some(b'o'), Some(b'W')][self.rng.index(6)];
            let most = if only.is_some() { [2, 10, 50] } else { [10, 300, 5000] }[self.rng.index(3)];
            let left = self.rng.below(most);
            self.lab.sim.state().hosts[host as usize].doom = Some(Doom { left, only, death });
        }
    }

    pub(super) fn weather(&mut self) {
        let mut w = Weather::FAIR;
        match self.rng.below(4) {
            0 => w.delay = (10 * MILLI, 2 * SECOND),
            1 => w.rate = self.rng.between(10_000, 1_000_000),
            2 => w.garbage = self.rng.between(1, 50),
            _ => {
                w.away = Some(self.rng.below(2) == 0);
                self.lab.net.cut(Cut::Both);
            }
        }
        self.lab.sim.state().count("bad network");
        self.lab.sim.say(&format!("{w:?}"));
        self.lab.net.set(w);
    }

    /// Errors of one kind of the agent's own files.
    pub(super) fn file_errors(&mut self) {
        let only = Some([Tag::Intent, Tag::Intent, Tag::Ring, Tag::Dirty, Tag::Meta][self.rng.index(5)]);
        let faults = self.errors(5, only);
        self.faults(Host::Agent, faults, "errors of the agent's own files");
    }

    /// Takes some of the agent's own files away, while it does not run: a bit for the ring, the dirty map, the write-intent map.
    pub(super) fn lose_files(&mut self, which: u64) {
        for volume in 0..self.lab.setup.sizes.len() {
            for (bit, name) in ["ring", "dirty", "intent"].into_iter().enumerate() {
                let path = PathBuf::from(format!("/agent/v{volume}/{name}"));
                if which >> bit & 1 == 1 && self.lab.with_disk(Host::Agent, |d| d.lose(&path)) {
                    let mut s = self.lab.sim.state();
                    s.count(["lost ring", "lost dirty map", "lost intent map"][bit]);
                    s.say(&format!("{} is lost", path.display()));
                }
            }
        }
    }

    /// Copies the appliance's disk, or puts an older copy back.
    pub(super) fn copy_vault(&mut self) {
        if self.copies.len() < 2 && (self.copies.is_empty() || self.rng.below(2) == 0) {
            let disk = self.lab.with_disk(Host::Appliance, |d| d.copy());
            let logs = (0..self.lab.model.len()).map(|v| self.lab.model.with(v, |v| v.past())).collect();
            self.copies.push(Copy { disk, logs });
            self.lab.sim.say("the vault is copied");
            return;
        }
        let copy = &self.copies[self.rng.index(self.copies.len())];
        self.lab.sim.say("an older copy of the vault is put back");
        self.lab.sim.die(Host::Appliance, Death::Kill);
        self.lab.bury(Host::Appliance);
        self.lab.with_disk(Host::Appliance, |d| *d = copy.disk.copy());
        for (volume, log) in copy.logs.iter().enumerate() {
            self.lab.model.with(volume, |v| v.put_back(log));
        }
        self.lab.sim.state().count("older copy of the vault");
    }

    /// From the next connection on the other side speaks another version, or again this one.
    pub(super) fn change_version(&mut self) {
        let peer = [Peer::Same, Peer::Old, Peer::Old, Peer::New][self.rng.index(4)];
        self.lab.net.set_peer(peer);
        let mut s = self.lab.sim.state();
        s.say(&format!("the peer: {peer:?}"));
        match peer {
            Peer::Same => {}
            Peer::Old => s.count("peer of the version before"),
            Peer::New => s.count("peer of a version unknown"),
        }
        drop(s);
        self.lab.net.cut(Cut::Both);
    }

    /// Whether all volumes are there to be asked for something.
    pub(super) fn volumes(&self) -> bool {
        lock(&self.lab.board).volumes.len() == self.lab.setup.sizes.len()
    }
}

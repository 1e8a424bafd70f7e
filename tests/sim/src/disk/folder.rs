//! A folder: its names now, and those that a power cut leaves.

use crate::rng::Rng;
use std::collections::BTreeMap;
use std::ffi::OsString;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Entry {
    File(usize),
    Folder,
}

#[derive(Debug, Clone)]
pub(super) enum Change {
    Set(OsString, Entry),
    Remove(OsString),
    Rename(OsString, OsString, Entry),
}

#[derive(Debug, Default, Clone)]
pub(super) struct Folder {
    pub(super) now: BTreeMap<OsString, Entry>,
    pub(super) durable: BTreeMap<OsString, Entry>,
    pub(super) changes: Vec<Change>,
}

pub(super) fn apply(names: &mut BTreeMap<OsString, Entry>, change: &Change) {
    match change {
        Change::Set(name, entry) => {
            names.insert(name.clone(), *entry);
        }
        Change::Remove(name) => {
            names.remove(name);
        }
        Change::Rename(from, to, entry) => {
            names.remove(from);
            names.insert(to.clone(), *entry);
        }
    }
}

impl Folder {
    pub(super) fn change(&mut self, change: Change) {
        apply(&mut self.now, &change);
        self.changes.push(change);
    }

    pub(super) fn sync(&mut self) {
        self.durable.clone_from(&self.now);
        self.changes.clear();
    }

    pub(super) fn power_cut(&mut self, rng: &mut Rng) {
        let mut left = self.durable.clone();
        let n = self.changes.len();
        let (first, keep) = match rng.below(3) {
            0 => (rng.index(n + 1), 0),
            1 => (0, 500),
            _ => (0, 0),
        };
        for (i, change) in self.changes.iter().enumerate() {
            if i < first || rng.permille(keep) {
                apply(&mut left, change);
            }
        }
        self.now.clone_from(&left);
        self.durable = left;
        self.changes.clear();
    }
}

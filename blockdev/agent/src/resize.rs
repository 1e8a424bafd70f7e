//! The volume's size, and how it changes while writes go on.
//!
//! The size of the volume is what the front ends see, and at most the size of the disk. A change goes through these steps, in
//! the keeper's thread, so that no sync runs beside it:
//!
//! | step | a crash behind it leaves |
//! |---|---|
//! | volume.json has the new size, that it is to be announced, and whether the new part is to be copied | the new size; the next start makes the rest, and compares the whole disk if it must |
//! | the dirty map has the new size | the same |
//! | with the gate closed for a moment: the write-intent map has the new size, a Resize record, and the new size for writers | the same; the record twice is no harm |
//! | volume.json has that it was announced | nothing to do |
//!
//! With the ring closed there is no record: the Gap that opens the ring again says the size. A disk that has grown by a
//! part which may hold something (a logical volume that got used space, say) begins a gap, so that this part is copied as it is;
//! a hole reads as zeroes on both sides and needs none.

use crate::disk::Disk;
use crate::shared::Shared;
use afterimage_base::buf::AlignedBuf;
use afterimage_base::world;
use afterimage_format::BLOCK_SIZE;
use afterimage_format::record::{Kind, MAX_VOLUME};
use afterimage_format::wire::SIZE_VERSION;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;
use thiserror::Error;

/// How long a request may take: the keeper ends the chunk that it copies first.
const PATIENCE: Duration = Duration::from_secs(30);
const TICK: Duration = Duration::from_millis(5);

/// Why a size cannot be changed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ResizeError {
    /// The disk has not so many bytes.
    #[error("volume {volume}: its disk has {disk} bytes: make the disk larger first, or give at most that --size")]
    Disk {
        /// The volume.
        volume: String,
        /// Size of the disk.
        disk: u64,
    },
    /// No volume can have this size.
    #[error("volume {volume}: a size of {size} bytes is not possible: {why}")]
    Size {
        /// The volume.
        volume: String,
        /// The size.
        size: u64,
        /// Why.
        why: String,
    },
    /// The appliance is too old.
    #[error(
        "volume {volume}: the appliance speaks version {version} of the protocol, which has no changes of size: update it"
    )]
    Appliance {
        /// The volume.
        volume: String,
        /// What it speaks.
        version: u16,
    },
    /// A file could not be changed.
    #[error("volume {volume}: its size stays {size} bytes: {why}")]
    Failed {
        /// The volume.
        volume: String,
        /// The size that it keeps.
        size: u64,
        /// Why.
        why: String,
    },
}

/// What a change of size did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resized {
    /// Bytes before.
    pub from: u64,
    /// Bytes now.
    pub to: u64,
    /// The history has a gap until the new part is copied.
    pub gap: bool,
}

/// A request to the keeper, and its answer.
#[derive(Debug, Default)]
pub(crate) struct Desk {
    asked: Option<Option<u64>>,
    /// The keeper is at it: it will answer.
    taken: bool,
    answer: Option<Result<Resized, ResizeError>>,
}

/// Whether `from..to` of the disk is one hole, behind zeroes up to the end of the block in which it begins.
pub(crate) fn is_hole(disk: &Disk, from: u64, to: u64) -> bool {
    let hole = from.next_multiple_of(BLOCK_SIZE as u64).min(to);
    let mut rest = AlignedBuf::zeroed(usize::try_from(hole - from).unwrap_or(0));
    if disk.read_at(from, &mut rest).is_err() || rest.iter().any(|b| *b != 0) {
        return false;
    }
    if hole == to {
        return true;
    }
    let from = hole;
    let first = disk.extents(from, to - from, 1).ok().and_then(|e| e.first().copied());
    first.is_some_and(|e| e.hole && e.len == to - from)
}

impl Shared {
    /// Has the keeper change the size to `size`, or to what the disk has.
    pub(crate) fn ask_resize(&self, size: Option<u64>) -> Result<Resized, ResizeError> {
        let desk = || self.desk.lock().unwrap_or_else(PoisonError::into_inner);
        let failed = |why: &str| ResizeError::Failed {
            volume: self.p.name.clone(),
            size: self.core.disk.size(),
            why: why.to_owned(),
        };
        {
            let mut desk = desk();
            if desk.asked.is_some() {
                return Err(failed("another change of size is under way"));
            }
            *desk = Desk { asked: Some(size), taken: false, answer: None };
        }
        self.p.bell.ring();
        let until = world::now() + PATIENCE;
        loop {
            let mut desk = desk();
            if let Some(answer) = desk.answer.take() {
                return answer;
            }
            if !desk.taken && (self.stopping() || world::now() >= until) {
                desk.asked = None;
                return Err(failed("the volume is stopping, or busy with something that does not end"));
            }
            drop(desk);
            world::sleep(TICK);
        }
    }

    /// Does what was asked for. The keeper calls this when it does nothing else.
    pub(crate) fn serve_desk(&self) {
        let desk = || self.desk.lock().unwrap_or_else(PoisonError::into_inner);
        let asked = {
            let mut desk = desk();
            desk.taken = desk.asked.is_some();
            desk.asked
        };
        if let Some(size) = asked {
            let answer = self.resize(size);
            *desk() = Desk { asked: None, taken: false, answer: Some(answer) };
        }
    }

    fn resize(&self, size: Option<u64>) -> Result<Resized, ResizeError> {
        let (p, disk) = (&self.p, &self.core.disk);
        let (volume, from) = (p.name.clone(), disk.size());
        let failed = |why: String| ResizeError::Failed { volume: p.name.clone(), size: from, why };
        let actual = disk.actual_size().map_err(|e| failed(format!("{}: {e}", disk.path().display())))?;
        let to = size.unwrap_or(actual);
        if to > actual {
            return Err(ResizeError::Disk { volume, disk: actual });
        }
        if to == 0 || to > MAX_VOLUME || !to.is_multiple_of(disk.align()) {
            let why = format!("it must be from 1 to {MAX_VOLUME}, and a multiple of {}", disk.align());
            return Err(ResizeError::Size { volume, size: to, why });
        }
        let version = self.peer.load(Ordering::Acquire);
        if to != from && version != 0 && version < SIZE_VERSION {
            return Err(ResizeError::Appliance { volume, version });
        }
        let empty = to <= from || is_hole(disk, from, to);
        let mut state = self.state();
        let before = state.meta.clone();
        state.meta.identity.size = actual;
        state.meta.unmarked = !empty;
        state.meta.size = to;
        (state.meta.resized, state.meta.announce) = (before.resized || to != from, before.announce || to != from);
        if !self.store(&mut state) {
            state.meta = before;
            return Err(failed(state.disk_trouble.clone().unwrap_or_default()));
        }
        if to == from {
            return Ok(Resized { from, to, gap: p.ring.is_closed() });
        }
        let cut = p.map.is_dirty(from / p.map.region());
        if let Err(e) = p.map.resize(to) {
            state.meta = before;
            self.store(&mut state);
            return Err(failed(e.to_string()));
        }
        if empty && to > from {
            let first = from / p.map.region();
            (first + u64::from(cut)..p.map.regions()).for_each(|r| p.map.clear(r));
        }
        if state.mode == crate::machine::Mode::Sync {
            // What the running sync knows of the disk is of the old size.
            p.close("the size changed during a sync, which begins anew");
        }
        if !empty {
            p.close("the disk has grown by a part that may hold something, which is copied");
        }
        if let Err(why) = self.announce(from, to) {
            state.meta = before;
            self.store(&mut state);
            return Err(failed(why));
        }
        (state.meta.announce, state.meta.unmarked) = (false, false);
        self.store(&mut state);
        drop(state);
        let gap = p.ring.is_closed();
        tracing::warn!("volume {}: its size was {from} bytes and is {to}", p.name);
        p.ring.wake_sender();
        p.bell.ring();
        Ok(Resized { from, to, gap })
    }

    /// Says the size in the ring, if it is open, at the instant at which it becomes the writers'. If that is not possible, the dirty map
    /// has the old size again.
    fn announce(&self, from: u64, to: u64) -> Result<(), String> {
        let p = &self.p;
        let hold = p.gate.close();
        if let Some(intent) = &p.intent
            && let Err(e) = intent.resize(to)
        {
            if let Err(undone) = p.map.resize(from) {
                return Err(format!("{e}; {undone}"));
            }
            // What comes back is marked. With an open ring nothing was, nobody writes now, and no sync would come for the marks.
            if !p.ring.is_closed() && !world::broken("regrown-marked") {
                (to / p.map.region()..p.map.regions()).for_each(|r| p.map.clear(r));
            }
            return Err(e.to_string());
        }
        say_size(p, to);
        self.core.disk.set_size(to);
        drop(hold);
        Ok(())
    }
}

/// Appends a Resize record. A ring that has no room is closed: its Gap says the size.
pub(crate) fn say_size(p: &crate::protect::Protection, size: u64) {
    match p.ring.reserve(Kind::Resize, 0, 0, size, 0) {
        Ok(place) => drop(place.publish(p.clock.wall())),
        Err(afterimage_journal::ReserveError::Closed) => {}
        Err(e) => p.close(&format!("the size changed, and the ring could not take the record of it: {e}")),
    }
}

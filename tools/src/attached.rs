//! The block devices that this process serves: made, remembered, taken over after a kill, left for the next process.
//!
//! What is attached is remembered in `DATA/devices.json` and attached again at every start, under the same path, until it is
//! detached. A device outlives its process: after a kill the kernel keeps what was asked, and so does it over a stop if
//! somebody uses the device; the next start takes it over, and users have seen a pause. A device that nobody uses at a
//! stop goes away until the next start.
//!
//! A moment that takes writes cannot be had again, since its writes are forgotten: it is not remembered, and ends with the process.

mod memory;
mod usage;

use afterimage_base::block::BlockDevice;
use afterimage_mgmt::attach::{AttachOptions, Attached, Detached, Front};
use afterimage_mgmt::protocol::{Code, DeviceResize, Failure};
use afterimage_nbd::kernel;
use afterimage_ublk::{Device, Error, Features, Options, Origin, disk_path};
use memory::{Note, load, store};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use xxhash_rust::xxh3::xxh3_64;

/// What is shown, and how it is told from everything else.
pub struct Shown {
    /// The bytes.
    pub device: Arc<dyn BlockDevice>,
    /// Id of the volume.
    pub id: String,
    /// The write after which it is shown; `None` for the disk itself.
    pub seq: Option<u64>,
}

/// Finds what is to be shown.
pub trait Source {
    /// The disk of a volume, or the volume as it was.
    ///
    /// # Errors
    /// If there is no such volume or moment here.
    fn shown(&self, volume: &str, options: &AttachOptions) -> Result<Shown, Failure>;
}

enum Kind {
    Ublk(Device),
    Nbd(kernel::Device),
    /// It could not be had again, for this reason.
    Lost(String),
}

struct One {
    note: Note,
    kind: Kind,
}

/// See the module.
pub struct Attachments {
    file: PathBuf,
    list: Mutex<Vec<One>>,
}

fn failed(e: impl std::fmt::Display) -> Failure {
    Failure::new(Code::Failed, e.to_string())
}

fn mark(id: &str, seq: Option<u64>) -> u64 {
    // Never 0, which is what others leave there.
    xxh3_64(format!("{id} {seq:?}").as_bytes()) | 1
}

fn path_of(note: &Note) -> PathBuf {
    match note.front {
        Front::Nbd => kernel::disk_path(note.number),
        _ => disk_path(note.number),
    }
}

impl One {
    fn path(&self) -> PathBuf {
        path_of(&self.note)
    }

    fn describe(&self) -> Attached {
        let Note { volume, front, seq, writable, queues, once, .. } = self.note.clone();
        let (trouble, lacks, queues) = match &self.kind {
            Kind::Ublk(device) => {
                let about = device.about();
                let trouble = (!device.is_served()).then(|| "the driver has ended it".to_owned());
                (trouble, about.lacks.iter().map(|&l| l.to_owned()).collect(), about.queues)
            }
            Kind::Nbd(device) => {
                let trouble = (!device.is_served()).then(|| "somebody has disconnected it".to_owned());
                // More connections than one would not be safe over a takeover.
                (trouble, device.lacks().into_iter().map(str::to_owned).collect(), 1)
            }
            Kind::Lost(why) => (Some(why.clone()), Vec::new(), queues),
        };
        let device = self.path().display().to_string();
        Attached { volume, device, front, seq, writable, queues, trouble, lacks, once }
    }
}

impl Attachments {
    /// Attaches again what was attached.
    #[must_use]
    pub fn restore(data: &Path, source: &dyn Source) -> Attachments {
        let file = data.join("devices.json");
        let notes = load(&file);
        let list = notes.into_iter().map(|note| again(note, source)).collect();
        let all = Attachments { file, list: Mutex::new(list) };
        all.remember(&all.list());
        all
    }

    fn list(&self) -> MutexGuard<'_, Vec<One>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, list: &[One]) {
        let notes: Vec<&Note> = list.iter().map(|one| &one.note).filter(|n| !n.writable || n.seq.is_none()).collect();
        if let Err(e) = store(&self.file, &notes) {
            tracing::error!("{}: {e}: what is attached is not attached again at the next start", self.file.display());
        }
    }

    /// The devices of a volume.
    #[must_use]
    pub fn of(&self, volume: &str) -> Vec<Attached> {
        self.list().iter().filter(|one| one.note.volume == volume).map(One::describe).collect()
    }

    /// Makes a device, unless there is one like that.
    ///
    /// # Errors
    /// What is missing, or in the way.
    pub fn attach(&self, volume: &str, options: &AttachOptions, source: &dyn Source) -> Result<Attached, Failure> {
        let shown = source.shown(volume, options)?;
        let mut list = self.list();
        let front = options.front;
        let same = |one: &&One| {
            one.note.volume == volume
                && one.note.seq == shown.seq
                && one.note.writable == (shown.seq.is_none() || options.writable)
                && front.is_none_or(|f| f == one.note.front)
                // What takes writes is not shared between a mount and others.
                && (one.note.once == options.once || !(one.note.writable && one.note.seq.is_some()))
                && !matches!(one.kind, Kind::Lost(_))
        };
        if let Some(at) = list.iter().position(|one| same(&one)) {
            // Who attaches it wants it longer than a mount lasts.
            if list[at].note.once && !options.once {
                list[at].note.once = false;
                self.remember(&list);
            }
            return Ok(list[at].describe());
        }
        let queues = options.queues.unwrap_or(1);
        let mut note = Note {
            volume: volume.to_owned(),
            mark: mark(&shown.id, shown.seq),
            seq: shown.seq,
            writable: shown.seq.is_none() || options.writable,
            front: front.unwrap_or(Front::Ublk),
            number: 0,
            queues,
            once: options.once,
        };
        let kind = match make(&mut note, &shown) {
            Err(e) if front.is_none() && matches!(e, Missing::Ublk(_)) => {
                tracing::info!("{}", e.text());
                note.front = Front::Nbd;
                let more =
                    |n: Missing| failed(format!("{}. Nor can the kernel's NBD client be used: {}", e.text(), n.text()));
                make(&mut note, &shown).map_err(more)?
            }
            other => other.map_err(|e| failed(e.text()))?,
        };
        let one = One { note, kind };
        let described = one.describe();
        list.push(one);
        self.remember(&list);
        tracing::info!("volume {volume}: attached as {}", described.device);
        for what in &described.lacks {
            tracing::info!("{}: this kernel lacks {what}", described.device);
        }
        Ok(described)
    }

    /// Gives the devices that show the disk of a volume its new size. Says for each what became of it.
    #[must_use]
    pub fn resized(&self, volume: &str) -> Vec<DeviceResize> {
        let list = self.list();
        let shown = list.iter().filter(|one| one.note.volume == volume && one.note.seq.is_none());
        let resize = |one: &One| {
            let done = match &one.kind {
                Kind::Ublk(device) => device.resize().map_err(|e| e.to_string()),
                Kind::Nbd(device) => device.resize().map_err(|e| e.to_string()),
                Kind::Lost(why) => Err(why.clone()),
            };
            let device = one.path().display().to_string();
            if let Err(why) = &done {
                tracing::warn!("{device} keeps its old size: {why}");
            }
            DeviceResize { device, trouble: done.err() }
        };
        shown.map(resize).collect()
    }

    /// Takes a device away, or all of a volume.
    ///
    /// # Errors
    /// If there is none, or somebody uses it.
    pub fn detach(&self, what: &str) -> Result<Detached, Failure> {
        let mut list = self.list();
        let wanted = |one: &One| one.note.volume == what || one.path() == Path::new(what);
        if !list.iter().any(&wanted) {
            return Err(Failure::new(
                Code::NotFound,
                format!("{what} is neither a volume that is attached here nor a device of one"),
            ));
        }
        for one in list.iter().filter(|one| wanted(one) && !matches!(one.kind, Kind::Lost(_))) {
            if let Some(who) = usage::user_of(&one.path()) {
                let text = format!("{} is in use ({who}): unmount it first", one.path().display());
                return Err(Failure::new(Code::Conflict, text));
            }
        }
        let (go, stay): (Vec<One>, Vec<One>) = std::mem::take(&mut *list).into_iter().partition(wanted);
        *list = stay;
        self.remember(&list);
        let mut devices = Vec::new();
        for one in go {
            devices.push(one.path().display().to_string());
            remove(one)?;
        }
        Ok(Detached { devices })
    }

    /// Ends the serving: a device that is in use is left for the next process, the others go away until then. To be called
    /// when no more is attached. True if a device was left, and its users wait.
    #[must_use]
    pub fn leave(&self) -> bool {
        let mut left = false;
        for one in std::mem::take(&mut *self.list()) {
            let path = one.path();
            let forgotten = one.note.writable && one.note.seq.is_some();
            let user = usage::user_of(&path).filter(|_| !forgotten && !matches!(one.kind, Kind::Lost(_)));
            if let Some(who) = &user {
                left = true;
                tracing::info!("{} is in use ({who}) and stays: its users wait for the next start", path.display());
            }
            let gone = match (one.kind, user) {
                (Kind::Ublk(device), Some(_)) => {
                    device.leave();
                    Ok(())
                }
                (Kind::Nbd(device), Some(_)) => {
                    device.leave();
                    Ok(())
                }
                (Kind::Ublk(device), None) => device.remove().map_err(|e| e.to_string()),
                (Kind::Nbd(device), None) => device.remove().map_err(|e| e.to_string()),
                (Kind::Lost(_), _) => Ok(()),
            };
            if let Err(e) = gone {
                tracing::warn!("{}: {e}", path.display());
            }
        }
        left
    }
}

fn remove(one: One) -> Result<(), Failure> {
    let (path, note) = (one.path(), &one.note);
    let done = match (one.kind, note.front) {
        (Kind::Ublk(device), _) => device.remove().map_err(|e| e.to_string()),
        (Kind::Nbd(device), _) => device.remove().map_err(|e| e.to_string()),
        (Kind::Lost(_), Front::Nbd) => {
            kernel::Device::remove_left(note.number, note.mark).map(drop).map_err(|e| e.to_string())
        }
        (Kind::Lost(_), _) => Device::remove_left(note.number, note.mark).map(drop).map_err(|e| e.to_string()),
    };
    done.map_err(|e| failed(format!("{}: {e}", path.display())))
}

/// Why a device cannot be had.
enum Missing {
    /// There is no ublk.
    Ublk(Error),
    Other(String),
}

impl Missing {
    fn text(&self) -> String {
        match self {
            Missing::Ublk(e) => e.to_string(),
            Missing::Other(text) => text.clone(),
        }
    }
}

/// What the kernel's ublk is to be taken not to have: for tests of what is done without.
fn without() -> Features {
    let named = std::env::var("AFTERIMAGE_UBLK_WITHOUT").unwrap_or_default();
    named.split(',').filter_map(Features::named).fold(Features::NONE, Features::and)
}

fn options(note: &Note) -> Options {
    let recoverable = note.seq.is_none() || !note.writable;
    Options { queues: note.queues, recoverable, without: without(), ..Options::new(note.mark) }
}

fn make(note: &mut Note, shown: &Shown) -> Result<Kind, Missing> {
    if note.front == Front::Nbd {
        load_nbd();
        let device =
            kernel::Device::connect(&shown.device, None, note.mark).map_err(|e| Missing::Other(e.to_string()))?;
        note.number = device.number();
        return Ok(Kind::Nbd(device));
    }
    load_ublk();
    match Device::create(&shown.device, &options(note)) {
        Ok(device) => {
            note.number = device.about().id;
            Ok(Kind::Ublk(device))
        }
        Err(e @ Error::NoDriver(_)) => Err(Missing::Ublk(e)),
        Err(e) => Err(Missing::Other(e.to_string())),
    }
}

fn load_ublk() {
    usage::load_module("ublk_drv", Path::new("/dev/ublk-control"));
}

fn load_nbd() {
    usage::load_module("nbd", Path::new("/sys/module/nbd"));
}

/// Attaches what the last process had attached.
fn again(mut note: Note, source: &dyn Source) -> One {
    let wanted = AttachOptions {
        at: note.seq.map(afterimage_mgmt::when::When::Seq),
        front: Some(note.front),
        writable: note.writable && note.seq.is_some(),
        queues: Some(note.queues),
        once: note.once,
    };
    let kind = source.shown(&note.volume, &wanted).map_err(|e| e.message).and_then(|shown| {
        if mark(&shown.id, shown.seq) != note.mark {
            return Err(format!("volume {} is another one than it was", note.volume));
        }
        let again = if note.front == Front::Nbd { nbd_again(&note, &shown) } else { ublk_again(&note, &shown) };
        let (kind, number, taken) = again?;
        note.number = number;
        Ok((kind, if taken { "taken over" } else { "attached again" }))
    });
    let path = path_of(&note);
    let (volume, path) = (&note.volume, path.display());
    let kind = match kind {
        Ok((kind, how)) => {
            tracing::info!("volume {volume}: {how} {path}");
            kind
        }
        Err(why) => {
            tracing::error!("volume {volume}: {path} is not served: {why}. `afterimage detach` takes it away");
            Kind::Lost(why)
        }
    };
    One { note, kind }
}

/// The device, its number, and whether it was taken over.
type Again = Result<(Kind, u32, bool), String>;

fn ublk_again(note: &Note, shown: &Shown) -> Again {
    load_ublk();
    let (device, origin) =
        Device::take_over_or_create(&shown.device, note.number, &options(note)).map_err(|e| e.to_string())?;
    let number = device.about().id;
    Ok((Kind::Ublk(device), number, origin == Origin::TakenOver))
}

fn nbd_again(note: &Note, shown: &Shown) -> Again {
    load_nbd();
    let taken = kernel::Device::take_over(&shown.device, note.number, note.mark).map_err(|e| e.to_string())?;
    if let Some(device) = taken {
        // It may have changed while nobody was there.
        device.resize().map_err(|e| e.to_string())?;
        return Ok((Kind::Nbd(device), note.number, true));
    }
    let device = kernel::Device::connect(&shown.device, Some(note.number), note.mark).map_err(|e| e.to_string())?;
    let number = device.number();
    Ok((Kind::Nbd(device), number, false))
}

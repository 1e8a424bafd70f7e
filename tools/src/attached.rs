//! The block devices that this process serves: made, remembered, taken over after a kill, left for the next process.
//!
//! What is attached is remembered in `DATA/devices.json` and attached again at every start, under the same path, until it is
//! detached. A ublk device outlives its process: after a kill the driver keeps what was asked, and so does it over a stop if
//! somebody uses the device; the next start takes it over, and users have seen a pause. A device that nobody uses at a
//! stop goes away until the next start.
//!
//! A moment that takes writes cannot be had again, since its writes are forgotten: it is not remembered, and ends with the process.

mod memory;
mod nbd;
mod usage;

use afterimage_base::block::BlockDevice;
use afterimage_mgmt::attach::{AttachOptions, Attached, Detached, Front};
use afterimage_mgmt::protocol::{Code, Failure};
use afterimage_nbd::{Address, Export, ExportTable, Limits, Listen, Server};
use afterimage_ublk::{Device, Error, Options, Origin, disk_path};
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

    /// Where the disk of a volume is served over NBD.
    fn served_at(&self) -> Vec<Address>;
}

enum Kind {
    Ublk(Device),
    /// With the server, if it is of this device alone.
    Nbd(Option<Server>),
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

impl One {
    fn path(&self) -> PathBuf {
        match self.note.front {
            Front::Nbd => nbd::path(self.note.number),
            _ => disk_path(self.note.number),
        }
    }

    fn describe(&self) -> Attached {
        let Note { volume, front, seq, writable, queues, .. } = self.note.clone();
        let (trouble, lacks, queues) = match &self.kind {
            Kind::Ublk(device) => {
                let about = device.about();
                let trouble = (!device.is_served()).then(|| "the driver has ended it".to_owned());
                (trouble, about.lacks.iter().map(|&l| l.to_owned()).collect(), about.queues)
            }
            Kind::Nbd(_) => {
                let lacks = vec!["takeover: the device fails when this process ends".to_owned()];
                (nbd::trouble(self.note.number), lacks, queues)
            }
            Kind::Lost(why) => (Some(why.clone()), Vec::new(), queues),
        };
        let device = self.path().display().to_string();
        Attached { volume, device, front, seq, writable, queues, trouble, lacks }
    }
}

impl Attachments {
    /// Attaches again what was attached.
    #[must_use]
    pub fn restore(data: &Path, source: &dyn Source) -> Attachments {
        let file = data.join("devices.json");
        let notes = load(&file);
        let list = notes.into_iter().map(|note| again(note, data, source)).collect();
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
                && !matches!(one.kind, Kind::Lost(_))
        };
        if let Some(one) = list.iter().find(same) {
            return Ok(one.describe());
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
        };
        let data = self.file.parent().unwrap_or(Path::new("."));
        let kind = match make(&mut note, &shown, data, source) {
            Err(e) if front.is_none() && matches!(e, Missing::Ublk(_)) => {
                tracing::info!("{}", e.text());
                note.front = Front::Nbd;
                let more =
                    |n: Missing| failed(format!("{}. Nor can the kernel's NBD client be used: {}", e.text(), n.text()));
                make(&mut note, &shown, data, source).map_err(more)?
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
            match one {
                One { note, kind: Kind::Ublk(device) } => {
                    let forgotten = note.writable && note.seq.is_some();
                    match usage::user_of(&path).filter(|_| !forgotten) {
                        Some(who) => {
                            left = true;
                            device.leave();
                            tracing::info!(
                                "{} is in use ({who}) and stays: its users wait for the next start",
                                path.display()
                            );
                        }
                        None => drop(device.remove().map_err(|e| tracing::warn!("{}: {e}", path.display()))),
                    }
                }
                One { note, kind: Kind::Nbd(_server) } => {
                    if let Some(who) = usage::user_of(&path) {
                        tracing::warn!(
                            "{} is in use ({who}), and ends with this process: it cannot be handed over",
                            path.display()
                        );
                    }
                    nbd::disconnect(note.number);
                }
                One { kind: Kind::Lost(_), .. } => {}
            }
        }
        left
    }
}

fn remove(one: One) -> Result<(), Failure> {
    let path = one.path();
    let named = |e: Error| failed(format!("{}: {e}", path.display()));
    match one.kind {
        Kind::Ublk(device) => device.remove().map_err(named),
        Kind::Lost(_) if one.note.front == Front::Ublk => {
            Device::remove_left(one.note.number, one.note.mark).map(drop).map_err(named)
        }
        Kind::Nbd(_) | Kind::Lost(_) => {
            nbd::disconnect(one.note.number);
            Ok(())
        }
    }
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

fn options(note: &Note) -> Options {
    Options { queues: note.queues, recoverable: note.seq.is_none() || !note.writable, ..Options::new(note.mark) }
}

fn make(note: &mut Note, shown: &Shown, data: &Path, source: &dyn Source) -> Result<Kind, Missing> {
    if note.front == Front::Nbd {
        note.number = nbd::free().map_err(Missing::Other)?;
        return connect(note, shown, data, source).map_err(Missing::Other);
    }
    usage::load_module("ublk_drv", Path::new("/dev/ublk-control"));
    match Device::create(&shown.device, &options(note)) {
        Ok(device) => {
            note.number = device.about().id;
            Ok(Kind::Ublk(device))
        }
        Err(e @ Error::NoDriver(_)) => Err(Missing::Ublk(e)),
        Err(e) => Err(Missing::Other(e.to_string())),
    }
}

/// Connects the kernel's NBD client: to where all volumes are served, or to a server for this moment.
fn connect(note: &Note, shown: &Shown, data: &Path, source: &dyn Source) -> Result<Kind, String> {
    let export = if note.seq.is_none() {
        let at = source.served_at();
        let best = at.iter().find(|a| matches!(a, Address::Unix(_))).or(at.first());
        nbd::connect(note, best.ok_or("the volumes are not served over NBD")?)?;
        return Ok(Kind::Nbd(None));
    } else {
        Export { name: note.volume.clone(), description: String::new(), device: Arc::clone(&shown.device) }
    };
    let socket = data.join(format!("nbd{}.sock", note.number));
    let table = Arc::new(ExportTable::single(export));
    let server =
        Server::start(vec![Listen::Unix(socket.clone())], table, Limits::default()).map_err(|e| e.to_string())?;
    nbd::connect(note, &Address::Unix(socket))?;
    Ok(Kind::Nbd(Some(server)))
}

/// Attaches what the last process had attached.
fn again(mut note: Note, data: &Path, source: &dyn Source) -> One {
    let wanted = AttachOptions {
        at: note.seq.map(afterimage_mgmt::when::When::Seq),
        front: Some(note.front),
        writable: note.writable && note.seq.is_some(),
        queues: Some(note.queues),
    };
    let kind = source.shown(&note.volume, &wanted).map_err(|e| e.message).and_then(|shown| {
        if mark(&shown.id, shown.seq) != note.mark {
            return Err(format!("volume {} is another one than it was", note.volume));
        }
        if note.front == Front::Nbd {
            nbd::disconnect(note.number);
            return connect(&note, &shown, data, source);
        }
        usage::load_module("ublk_drv", Path::new("/dev/ublk-control"));
        let (device, origin) =
            Device::take_over_or_create(&shown.device, note.number, &options(&note)).map_err(|e| e.to_string())?;
        let how = if origin == Origin::TakenOver { "taken over" } else { "attached again" };
        tracing::info!("volume {}: {how} {}", note.volume, device.path().display());
        note.number = device.about().id;
        Ok(Kind::Ublk(device))
    });
    let kind = kind.unwrap_or_else(|why| {
        let path = disk_path(note.number);
        tracing::error!(
            "volume {}: {} is not served: {why}. `afterimage detach` takes it away",
            note.volume,
            path.display()
        );
        Kind::Lost(why)
    });
    One { note, kind }
}

//! `volume.json`: what must be known of a volume before its ring is opened.
//!
//! A version number, and fields that later versions may add to but not change. Replaced as a whole.

use crate::continuity::Base;
use crate::disk::identity::{Identity, Stamp};
use crate::fence::FenceNote;
use afterimage_base::crashsafe;
use afterimage_base::world::{self, fs};
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};

/// 2: the volume may have a write-intent map, which programs of version 1 would not keep up, and another size than its disk.
const VERSION: u32 = 2;
/// 3: the volume is fenced, and programs of version 2 would let writes in. Written only while it is.
const FENCED_VERSION: u32 = 3;
/// 4: the volume adopts another's history, and programs of version 3 would go on with it unfenced. Written only until it has.
const ADOPTING_VERSION: u32 = 4;
const OLDEST: u32 = 1;
/// Far more than the file ever is; a longer one is not ours.
const MAX_BYTES: u64 = 1 << 20;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Meta {
    version: u32,
    /// Random, made with the volume.
    pub(crate) id: uuid::Uuid,
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    pub(crate) identity: Identity,
    /// No sync of the volume has ever ended.
    pub(crate) initial: bool,
    /// A Gap is or is about to be in the ring, and its SyncEnd is not.
    pub(crate) syncing: bool,
    /// What the appliance held when the ring was last reopened.
    pub(crate) base: Option<Base>,
    /// Every write so far was marked in the file `intent`.
    #[serde(default)]
    pub(crate) intent: bool,
    /// The gap that the running sync is to end.
    #[serde(default)]
    pub(crate) gap: Option<GapNote>,
    /// Size of the volume in bytes; 0 in files of version 1, where it is that of the disk.
    #[serde(default)]
    pub(crate) size: u64,
    /// The size was changed once: every Gap says what it is.
    #[serde(default)]
    pub(crate) resized: bool,
    /// The ring may lack the record of the size.
    #[serde(default)]
    pub(crate) announce: bool,
    /// The dirty map may lack what it should have: something was lost or has changed, and whoever found it out may have died
    /// before it was marked. The next start marks everything.
    #[serde(default)]
    pub(crate) unmarked: bool,
    /// What the disk's file looked like after a stop in order; `None` while it is in use.
    #[serde(default)]
    pub(crate) stamp: Option<Stamp>,
    /// No seq from here on was ever given out: a ring that is made anew begins here, so that no seq means two things.
    #[serde(default)]
    pub(crate) seq_limit: u64,
    /// The highest epoch that the appliance has told.
    #[serde(default)]
    pub(crate) epoch: u64,
    /// The machine runs elsewhere: no write is let in.
    #[serde(default)]
    pub(crate) fence: Option<FenceNote>,
    /// The disk takes the place of one whose agent is gone, and the appliance has not said yet that the volume is fenced.
    #[serde(default)]
    pub(crate) adopting: bool,
}

/// When and why a gap began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct GapNote {
    /// In nanoseconds since 1970.
    pub(crate) since: u64,
    pub(crate) why: Option<String>,
}

/// Why the file was refused.
pub(crate) enum MetaError {
    Missing,
    Bad(String),
}

impl Meta {
    pub(crate) fn new(name: &str, path: &Path, identity: Identity) -> io::Result<Meta> {
        Ok(Meta {
            version: VERSION,
            id: uuid::Builder::from_random_bytes(world::random_array()?).into_uuid(),
            name: name.to_owned(),
            path: path.to_path_buf(),
            size: identity.size,
            identity,
            initial: true,
            syncing: false,
            base: None,
            intent: false,
            gap: None,
            resized: false,
            announce: false,
            unmarked: false,
            stamp: None,
            seq_limit: 0,
            epoch: 0,
            fence: None,
            adopting: false,
        })
    }

    /// That of a disk which takes the place of the volume's former one. It is fenced from its beginning: what the appliance knows of
    /// the volume is more than it has.
    pub(crate) fn adopt(self, id: [u8; 16], now: u64) -> Meta {
        let fence = Some(FenceNote { epoch: 0, since: now, marked: false });
        // Its size may be another one than the volume's: every Gap says it.
        Meta { id: uuid::Uuid::from_bytes(id), initial: false, resized: true, fence, adopting: true, ..self }
    }

    /// Everything is brought again: what ends it with a point, if the volume is fenced, has to be made again, too. Whether that is news.
    pub(crate) fn mark_again(&mut self) -> bool {
        self.fence.as_mut().is_some_and(|f| std::mem::take(&mut f.marked))
    }

    pub(crate) fn load(file: &Path) -> Result<Meta, MetaError> {
        let bad = |e: &dyn std::fmt::Display| {
            MetaError::Bad(format!("{e}; restore the file, or remove the folder to start anew"))
        };
        match fs::metadata(file) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(MetaError::Missing),
            Err(e) => return Err(bad(&e)),
            Ok(m) if m.len > MAX_BYTES => return Err(bad(&"it is too long")),
            Ok(_) => {}
        }
        let text = fs::read(file).map_err(|e| bad(&e))?;
        let value: serde_json::Value = serde_json::from_slice(&text).map_err(|e| bad(&e))?;
        match value.get("version").and_then(serde_json::Value::as_u64) {
            Some(v) if (u64::from(OLDEST)..=u64::from(ADOPTING_VERSION)).contains(&v) => {}
            Some(v) => {
                return Err(MetaError::Bad(format!(
                    "it has version {v}, this program knows {OLDEST} to {ADOPTING_VERSION}; use the program that wrote it"
                )));
            }
            None => return Err(bad(&"it has no version")),
        }
        let mut meta: Meta = serde_json::from_value(value).map_err(|e| bad(&e))?;
        meta.intent &= meta.version >= VERSION;
        meta.version = VERSION;
        if meta.size == 0 {
            meta.size = meta.identity.size;
        }
        Ok(meta)
    }

    pub(crate) fn store(&self, file: &Path) -> io::Result<()> {
        let version = match (self.adopting, self.fence) {
            (true, _) => ADOPTING_VERSION,
            (false, Some(_)) => FENCED_VERSION,
            (false, None) => VERSION,
        };
        let mut text = serde_json::to_vec_pretty(&Meta { version, ..self.clone() }).map_err(io::Error::other)?;
        text.push(b'\n');
        crashsafe::replace(file, &text)
    }
}

//! `DATA/devices.json`: what is attached, for the next start.

use afterimage_base::crashsafe;
use afterimage_mgmt::attach::Front;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::Path;

/// A device to be attached again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Note {
    pub(super) volume: String,
    /// What the driver keeps to tell it from devices of others.
    pub(super) mark: u64,
    pub(super) seq: Option<u64>,
    pub(super) writable: bool,
    pub(super) front: Front,
    /// N of `/dev/ublkbN` or `/dev/nbdN`.
    pub(super) number: u32,
    pub(super) queues: u16,
    /// It goes away with the mount that it was made for.
    #[serde(default)]
    pub(super) once: bool,
}

#[derive(Serialize, Deserialize)]
struct Document<T> {
    v: u32,
    devices: Vec<T>,
}

/// What is there; nothing if there is no file. One that cannot be understood is said and left alone until the next change.
pub(super) fn load(file: &Path) -> Vec<Note> {
    let read = std::fs::read(file).map_err(|e| (e.kind() != io::ErrorKind::NotFound, e.to_string()));
    let read = read.and_then(|b| serde_json::from_slice::<Document<Note>>(&b).map_err(|e| (true, e.to_string())));
    match read {
        Ok(document) if document.v == 1 => document.devices,
        Ok(document) => {
            tracing::error!("{}: written by a newer version ({}): nothing is attached", file.display(), document.v);
            Vec::new()
        }
        Err((told, e)) => {
            if told {
                tracing::error!("{}: {e}: nothing is attached", file.display());
            }
            Vec::new()
        }
    }
}

/// Replaces it; without devices there is no file.
pub(super) fn store(file: &Path, notes: &[&Note]) -> io::Result<()> {
    if notes.is_empty() && !file.exists() {
        return Ok(());
    }
    let document = Document { v: 1, devices: notes.to_vec() };
    crashsafe::replace(file, &serde_json::to_vec_pretty(&document)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_attached_is_found_again_and_what_is_not_understood_is_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("devices.json");
        assert!(load(&file).is_empty());
        store(&file, &[]).unwrap();
        assert!(!file.exists(), "nobody who attaches nothing has the file");
        let note = Note {
            volume: "d".to_owned(),
            mark: u64::MAX,
            seq: Some(7),
            writable: false,
            front: Front::Nbd,
            number: 3,
            queues: 2,
            once: false,
        };
        store(&file, &[&note]).unwrap();
        assert_eq!(load(&file), [note]);
        store(&file, &[]).unwrap();
        assert!(load(&file).is_empty());
        for bad in ["", "{}", "{\"v\":2,\"devices\":[]}", "{\"v\":1,\"devices\":[{\"volume\":1}]}"] {
            std::fs::write(&file, bad).unwrap();
            assert!(load(&file).is_empty(), "{bad}");
        }
    }
}

//! A small real vault, as the appliance itself writes it: a part stopped in order, with layers and a sealed segment, and a part
//! that a kill has left in an open one.

use crate::agent::{Images, SIZE, config, hello, send_slowly};
use crate::{place, seeds};
use afterimage_appliance::Appliance;
use afterimage_format::record::{FLAG_INITIAL, Kind, Record};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Name of its volume.
pub const VOLUME: &str = "disk";

/// The files of the vault, and what they hold.
#[derive(Debug)]
pub struct Fixture {
    /// Paths under the vault's folder, with their content.
    pub files: Vec<(PathBuf, Vec<u8>)>,
    /// What the volume looks like after each record.
    pub images: Images,
}

fn records(seqs: std::ops::Range<u64>) -> Vec<(Record, Vec<u8>)> {
    seqs.map(|seq| {
        let kind = match seq {
            1 => Kind::Gap,
            2 => Kind::SyncEnd,
            n if n % 7 == 0 => Kind::Point,
            n if n % 5 == 0 => Kind::Zero,
            _ => Kind::Write,
        };
        let len = 300 + seq * 977 % 9000;
        let payload = match kind {
            Kind::Write => (0..len).map(|i| (i / 16 % (seq + 3)) as u8).collect(),
            Kind::Point => format!("p{seq}").into_bytes(),
            _ => Vec::new(),
        };
        let mut record = seeds::a_record(kind, seq, if kind == Kind::Zero { len } else { payload.len() as u64 });
        let data = matches!(kind, Kind::Write | Kind::Zero);
        record.offset = if data { seq * 3511 % (SIZE as u64 - len) } else { 0 };
        record.flags = if kind == Kind::Gap { FLAG_INITIAL } else { 0 };
        record.time += seq * 1000;
        (record, payload)
    })
    .collect()
}

fn collect(folder: &Path, under: &Path, out: &mut Vec<(PathBuf, Vec<u8>)>) {
    let mut entries: Vec<_> = fs::read_dir(folder.join(under)).unwrap().map(|e| e.unwrap()).collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = under.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            collect(folder, &path, out);
        } else if entry.file_name() != "LOCK" {
            out.push((path, fs::read(entry.path()).unwrap()));
        }
    }
    // Layers have random names: their sizes have not.
    out.sort_by_key(|(path, bytes)| (path.parent().map(Path::to_path_buf), bytes.len()));
}

/// The vault, made once in a process.
pub fn get() -> &'static Fixture {
    static FIXTURE: OnceLock<Fixture> = OnceLock::new();
    FIXTURE.get_or_init(|| {
        let folder = place::folder();
        let (config, hello, mut images) = (config(folder.path()), hello(7, VOLUME), Images::new());
        for (seqs, in_order) in [(1..24, true), (24..40, true), (40..50, false)] {
            let appliance = Appliance::start(config.clone()).unwrap();
            send_slowly(&folder.path().join("sock"), &hello, &records(seqs), &mut images);
            if in_order {
                appliance.stop();
            }
        }
        let mut files = Vec::new();
        collect(&config.dir, Path::new(""), &mut files);
        Fixture { files, images }
    })
}

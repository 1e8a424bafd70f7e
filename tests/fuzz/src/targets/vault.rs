//! A real vault with damaged files: looked through, checked, started. What is read is what was written, or an error.

use super::formats::seal_manifest;
use crate::input::Input;
use crate::{agent, fixture, place};
use afterimage_appliance::check::{check, dump};
use afterimage_appliance::{Appliance, KeySource};
use std::path::Path;

/// See the module.
pub(super) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let fixture = fixture::get();
    let folder = place::folder();
    let vault = folder.path().join("vault");
    let victims = [input.below(fixture.files.len()), input.below(fixture.files.len())];
    // A manifest with a right checksum and a wrong content is somebody's lie, and may show anything but a panic.
    let (lie, start) = (input.one_in(3), input.one_in(3));
    let mut damaged = false;
    for (i, (path, content)) in fixture.files.iter().enumerate() {
        let mut content = content.clone();
        if lie && path == Path::new("MANIFEST") {
            damaged |= input.edit(&mut content, 3);
            seal_manifest(&mut content);
        } else if !lie && victims.contains(&i) {
            damaged |= input.edit(&mut content, 3);
        }
        let path = vault.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    look(&vault, damaged);
    if start {
        let config = agent::config(folder.path());
        if let Ok(appliance) = Appliance::start(config) {
            read(&appliance, lie, damaged);
        } else {
            assert!(damaged, "a right vault opens");
        }
    }
}

fn look(vault: &Path, damaged: bool) {
    let key = KeySource::File(vault.join("key"));
    for source in [None, Some(&key)] {
        if let Ok(report) = check(vault, source) {
            assert!(damaged || report.damages.is_empty(), "{:?}", report.damages);
        }
    }
    let Ok(manifest) = dump::manifest(vault) else { return };
    for segment in manifest.segments.iter().take(8) {
        drop(dump::segment(vault, segment.number, Some(&key), |_, _| {}));
    }
}

fn read(appliance: &Appliance, lie: bool, damaged: bool) {
    for volume in appliance.volumes().iter().take(4) {
        drop(appliance.points(&volume.name));
        drop(appliance.gaps(&volume.name));
        if volume.size > 1 << 20 {
            continue;
        }
        for (seq, image) in &fixture::get().images {
            let shown = agent::read(appliance, &volume.name, *seq);
            assert!(lie || shown.as_ref().is_none_or(|s| s == image), "seq {seq} is shown wrong");
            assert!(damaged || shown.is_some() || *seq < 2, "seq {seq} is not shown");
        }
        drop(appliance.diff(&volume.name, 2, volume.durable_seq));
        drop(appliance.resolve_time(&volume.name, volume.durable_time));
    }
}

use super::*;
use crate::appliance::Appliance;
use crate::testing::*;
use afterimage_format::record::Kind;

/// A vault with a sealed segment, layers, and a segment that was left open.
fn vault(dir: &Path) -> crate::ApplianceConfig {
    let config = config(dir);
    let noise = |seq: u64| -> Vec<u8> {
        (0..6000u64)
            .flat_map(|i| xxhash_rust::xxh3::xxh3_64(&(seq * 9001 + i / 3).to_le_bytes()).to_le_bytes())
            .take(9000)
            .collect()
    };
    let records: Vec<Write1> = (1..=16).map(|s| record(Kind::Write, s, s * 4096 + 7, 9000, noise(s))).collect();
    let appliance = Appliance::start(config.clone()).unwrap();
    let mut agent = Agent::connect(&config.listen, &hello()).unwrap();
    for w in records[..10].chunks(3) {
        agent.send(&bytes_of(w));
        agent.wait(w.last().unwrap().record.seq).unwrap();
    }
    appliance.stop();
    let appliance = Appliance::start(config.clone()).unwrap();
    let mut agent = Agent::connect(&config.listen, &hello()).unwrap();
    agent.send(&bytes_of(&records[10..]));
    agent.wait(16).unwrap();
    drop(appliance);
    config
}

#[test]
fn a_sound_vault_has_no_damage_with_or_without_key() {
    let dir = tempfile::tempdir().unwrap();
    let config = vault(dir.path());
    let report = check(&config.dir, Some(&config.key)).unwrap();
    assert_eq!(report.damages, []);
    assert!(report.frames > 5 && report.blocks > 10 && report.layers > 0 && report.references > 10, "{report:?}");
    assert_eq!(check(&config.dir, None).unwrap().damages, []);
}

#[test]
fn every_flipped_bit_is_found_and_says_what_it_hits() {
    let dir = tempfile::tempdir().unwrap();
    let config = vault(dir.path());
    let mut files: Vec<PathBuf> = Vec::new();
    for folder in ["segments", "layers"] {
        let entries = std::fs::read_dir(config.dir.join(folder)).unwrap();
        files.extend(entries.map(|e| e.unwrap().path()));
    }
    assert!(files.len() >= 3, "{files:?}");
    files.push(config.dir.join("MANIFEST"));
    let (mut named, mut tried) = (0, 0);
    for file in &files {
        let good = std::fs::read(file).unwrap();
        let open = crate::vault::read_manifest(&config.dir).unwrap().unwrap();
        let open = open.segments.iter().any(|s| {
            s.state == afterimage_format::manifest::SegmentState::Open
                && file.ends_with(crate::store::file_name(s.number))
        });
        // In a segment that was left open, a broken last frame cannot be told from one that was torn.
        let upto = if open { good.len() / 2 } else { good.len() };
        for i in 0..40u64 {
            let at = usize::try_from(xxhash_rust::xxh3::xxh3_64(&i.to_le_bytes())).unwrap() % (upto * 8);
            let mut bad = good.clone();
            bad[at / 8] ^= 1 << (at % 8);
            std::fs::write(file, &bad).unwrap();
            let report = check(&config.dir, Some(&config.key)).unwrap();
            assert!(!report.damages.is_empty(), "bit {at} of {}", file.display());
            assert!(report.damages.iter().any(|d| d.file == *file), "{:?}", report.damages);
            let hits: Vec<&Hit> = report.damages.iter().flat_map(|d| &d.hits).collect();
            assert!(hits.iter().all(|h| h.volume == "disk" && h.len > 0 && h.offset + h.len <= 26 * 4096), "{hits:?}");
            named += usize::from(!hits.is_empty());
            tried += 1;
            assert!(!check(&config.dir, None).unwrap().damages.is_empty(), "without the key: bit {at}");
        }
        std::fs::write(file, &good).unwrap();
    }
    assert_eq!(check(&config.dir, Some(&config.key)).unwrap().damages, []);
    assert!(named * 2 > tried, "{named} of {tried} damages were traced to a volume");
}

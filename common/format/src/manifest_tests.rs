use super::*;

fn sample() -> Manifest {
    let mut v = VolumeMeta::new([9; 16], "disk".into(), 1 << 30);
    v.ring = [4; 16];
    (v.durable_seq, v.digest, v.durable_time, v.layered_to) = (77, 0xfeed, 1_700_000_000, 70);
    v.points.push(PointMeta::new("before upgrade".into(), 40, 1_600_000_000, false));
    v.gaps.push(GapMeta { from_seq: 1, from_time: 1, to_seq: Some(20), to_time: 5, initial: true });
    v.gaps.push(GapMeta { from_seq: 60, from_time: 9, to_seq: None, to_time: 0, initial: false });
    v.sizes.push(SizeMeta { from_seq: 44, size: 2 << 30 });
    v.points[0].note = "{}".into();
    (v.points[0].seen, v.points[0].pinned) = (1_600_000_007, true);
    v.retention = Some(RetentionMeta { hourly: 24, monthly: 12, hold: true, ..RetentionMeta::window(86_400) });
    let (state, owner) = (Fence::Closed, "job".to_owned());
    (v.epoch, v.fence) = (3, Some(FenceMeta { state, owner, since: 1_700_000_001 }));
    let mut branch = VolumeMeta::new([10; 16], "disk/trial".into(), 2 << 30);
    (branch.durable_seq, branch.layered_to) = (45, 45);
    branch.fork = Some(ForkMeta { parent: [9; 16], seq: 45, created: 1_800_000_000, kind: ForkKind::Branch });
    Manifest {
        vault: [1; 16],
        edition: 5,
        wrap: KeyWrap::Passphrase { memory_kib: 65536, passes: 3, lanes: 1, salt: [2; 16], sealed: [3; 48] },
        key_check: [8; 16],
        next_segment: 3,
        segments: vec![
            SegmentMeta { number: 1, volume: [9; 16], state: SegmentState::Sealed, length: 4096, last_seq: 50 },
            SegmentMeta { number: 2, volume: [9; 16], state: SegmentState::Open, length: 0, last_seq: 0 },
        ],
        volumes: vec![v, branch],
    }
}

#[test]
fn it_comes_back_and_every_flipped_bit_and_cut_is_seen() {
    let bytes = sample().encode();
    assert_eq!(Manifest::decode(&bytes), Ok(sample()));
    for bit in 0..bytes.len() * 8 {
        let mut bad = bytes.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(Manifest::decode(&bad).is_err(), "bit {bit}");
    }
    for cut in 0..bytes.len() {
        assert!(Manifest::decode(&bytes[..cut]).is_err(), "cut at {cut}");
    }
}

#[test]
fn golden_bytes() {
    let mut m = sample();
    (m.wrap, m.segments) = (KeyWrap::File, m.segments.split_off(1));
    m.volumes.clear();
    let hex: String = m.encode().iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(
        hex,
        "41494d310400000039000000000000007c3f29e481581c7a010101010101010101010101010101010500080808080808\
         080808080808080808080301020909090909090909090909090909090900000000"
    );
}

/// A manifest of an older version, with the volume's last fields cut off and those of its point.
fn older(version: u32, end: usize, change: impl FnOnce(&mut Vec<u8>)) -> (Manifest, Vec<u8>) {
    let mut m = sample();
    m.volumes.truncate(1);
    m.volumes[0].retention = None;
    (m.volumes[0].epoch, m.volumes[0].fence) = (0, None);
    m.volumes[0].points[0] = PointMeta::new("before upgrade".into(), 40, 1_600_000_000, false);
    if version == 1 {
        m.volumes[0].sizes.clear();
    }
    let mut body = m.encode()[HEADER_LEN..].to_vec();
    body.truncate(body.len() - end);
    let name = body.windows(14).position(|w| w == b"before upgrade").unwrap();
    // Behind the name, seq, time (5 bytes) and kind.
    if version < RETENTION_VERSION {
        drop(body.drain(name + 14 + 1 + 5 + 1..name + 14 + 1 + 5 + 1 + 4));
    }
    change(&mut body);
    let mut old = Vec::new();
    old.put_u32(MAGIC);
    old.put_u32(version);
    old.put_u64(body.len() as u64);
    let sum = checksum(&old, &body);
    old.put_u64(sum);
    old.extend_from_slice(&body);
    (m, old)
}

/// Vaults of older versions open.
#[test]
fn older_versions_are_read() {
    let (m, old) = older(1, 5, |body| {
        // Behind `layered_to` stood a number; behind the gaps nothing.
        let layered = body.windows(3).rposition(|w| w == [70, 0, 1]).unwrap();
        body.insert(layered + 1, 1);
    });
    assert_eq!(Manifest::decode(&old), Ok(m));
    for (version, end) in [(2, 4), (3, 2)] {
        let (m, old) = older(version, end, |_| ());
        assert_eq!(Manifest::decode(&old), Ok(m));
    }
}

#[test]
fn a_branch_pins_where_it_began_until_it_is_promoted() {
    let mut m = sample();
    assert_eq!(m.fork_seqs(&[9; 16]).collect::<Vec<_>>(), [45]);
    assert_eq!((m.volumes[0].leans_to(), m.volumes[1].leans_to()), (0, 45));
    m.volumes[1].fork.as_mut().unwrap().kind = ForkKind::Promoted;
    assert_eq!((m.fork_seqs(&[9; 16]).count(), m.volumes[1].leans_to()), (0, 0));
}

/// The bytes of a branch behind those of the volume before it.
#[test]
fn golden_bytes_of_a_fork() {
    let bytes = sample().encode();
    let hex: String = bytes[bytes.len() - 26..].iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(hex, "0001090909090909090909090909090909092d80a4a7da060000");
}

#[test]
fn another_version_is_named_as_such() {
    let mut bytes = sample().encode();
    bytes[4] = 9;
    assert_eq!(Manifest::decode(&bytes), Err(DecodeError::Version { what: "manifest", found: 9, known: VERSION }));
}

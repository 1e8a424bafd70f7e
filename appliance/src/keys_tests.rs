use super::*;
use std::os::unix::fs::PermissionsExt;

fn header() -> SegmentHeader {
    SegmentHeader { vault: [1; 16], number: 3, salt: random().unwrap(), volume: [2; 16] }
}

fn info(counter: u32) -> FrameInfo {
    FrameInfo { kind: FrameKind::Commit, codec: Codec::None, blocks: 0, counter, plain_len: 5 }
}

fn framed(key: &SegmentKey, counter: u32) -> Vec<u8> {
    let mut frame = vec![0; FRAME_HEADER_LEN];
    frame.extend_from_slice(b"hello");
    key.seal(info(counter), &mut frame).unwrap();
    frame
}

#[test]
fn a_key_file_is_made_once_and_private_and_a_wrong_one_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("key");
    let source = KeySource::File(path.clone());
    let (key, wrap) = VaultKey::create(&source).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let again = VaultKey::open(&source, &wrap, &key.check_value()).unwrap();
    assert_eq!(again.dedupe_key(), key.dedupe_key());
    std::fs::write(&path, [7; 32]).unwrap();
    assert!(matches!(VaultKey::open(&source, &wrap, &key.check_value()), Err(KeyError::Wrong)));
    std::fs::write(&path, [7; 31]).unwrap();
    assert!(matches!(VaultKey::open(&source, &wrap, &key.check_value()), Err(KeyError::Malformed(_))));
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(VaultKey::open(&source, &wrap, &key.check_value()), Err(KeyError::Missing(_))));
    let phrase = KeySource::Passphrase(Zeroizing::new("x".into()));
    assert!(matches!(VaultKey::open(&phrase, &wrap, &key.check_value()), Err(KeyError::Kind(_))));
}

#[test]
fn a_passphrase_opens_and_another_one_does_not() {
    let source = KeySource::Passphrase(Zeroizing::new("correct horse".into()));
    let (key, wrap) = VaultKey::create(&source).unwrap();
    assert!(VaultKey::open(&source, &wrap, &key.check_value()).is_ok());
    let wrong = KeySource::Passphrase(Zeroizing::new("battery staple".into()));
    assert!(matches!(VaultKey::open(&wrong, &wrap, &key.check_value()), Err(KeyError::Wrong)));
}

#[test]
fn a_frame_opens_only_where_it_belongs() {
    let (key, _) = VaultKey::create(&KeySource::File(tempfile::tempdir().unwrap().path().join("key")))
        .unwrap_or_else(|_| (VaultKey(Zeroizing::new([5; 32])), KeyWrap::File));
    let seal = key.segment(header());
    let frame = framed(&seal, 0);
    let head = FrameHeader::decode(&frame).unwrap();
    let body = FRAME_HEADER_LEN..FRAME_HEADER_LEN + head.sealed_len as usize;
    assert_eq!(head.checksum_of(&frame[body.clone()]), head.checksum);
    let open = |key: &SegmentKey, head: &FrameHeader| {
        let mut copy = frame[body.clone()].to_vec();
        key.open(head, &mut copy).map(|p| p.to_vec())
    };
    assert_eq!(open(&seal, &head).as_deref(), Some(&b"hello"[..]));
    for other in [
        SegmentHeader { number: 4, ..*seal.header() },
        SegmentHeader { vault: [9; 16], ..*seal.header() },
        SegmentHeader { salt: [9; 32], ..*seal.header() },
    ] {
        assert_eq!(open(&key.segment(other), &head), None);
    }
    assert_eq!(open(&seal, &FrameHeader { counter: 1, ..head }), None);
    assert_eq!(open(&seal, &FrameHeader { kind: FrameKind::Directory, ..head }), None);
    assert_eq!(open(&seal, &FrameHeader { plain_len: 6, ..head }), None);
}

#[test]
#[should_panic(expected = "key and nonce were used before")]
fn a_nonce_used_twice_is_caught() {
    let key = VaultKey(Zeroizing::new([6; 32])).segment(header());
    framed(&key, 0);
    framed(&key, 0);
}

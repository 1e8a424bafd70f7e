//! Decoders of the formats: bytes as they are, and with the checksum that fits them. What a decoder takes, its encoder gives back.

use crate::input::Input;
use afterimage_format::codec::Reader;
use afterimage_format::commit::{Commit, CommitBuilder};
use afterimage_format::compare::{HashQuery, Hashes};
use afterimage_format::dirtymap::DirtyMapHeader;
use afterimage_format::failback::{DiskDone, DiskSync, DiskWrite};
use afterimage_format::manifest::{self, Manifest};
use afterimage_format::place::Place;
use afterimage_format::record::{HEADER_LEN, Kind, Record};
use afterimage_format::ring::{FIXED_LEN, RingHeader};
use afterimage_format::segment::{self, DirEntry, FOOTER_LEN, FRAME_HEADER_LEN, Footer, FrameHeader, SegmentHeader};
use afterimage_format::wire::{self, Ack, Fill, Header, Hello, MessageType, Quiet, Refuse, Welcome};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// Puts the xxh3-64 of what is before it into the last 8 bytes.
fn fix(bytes: &mut [u8]) {
    if let Some(at) = bytes.len().checked_sub(8) {
        let sum = xxh3_64(&bytes[..at]);
        bytes[at..].copy_from_slice(&sum.to_le_bytes());
    }
}

/// Size of the disk that messages are about.
const DISK: u64 = 1 << 30;

/// Messages of the wire.
pub(super) fn wire(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut head = input.array::<{ wire::HEADER_LEN }>();
    let body = input.rest();
    if head[0] == 0 {
        // A header that is right, for the type that the input says.
        let kind = head[4];
        head = Header::of(MessageType::Refuse, body).encode();
        head[4] = kind;
    }
    let Ok(header) = Header::decode(&head) else { return };
    assert!(header.body_len <= wire::MAX_BODY);
    assert_eq!(header.encode(), head, "what is understood comes back the same");
    if header.verify(body).is_err() {
        return;
    }
    match header.kind {
        MessageType::Hello => same(Hello::decode(body), |h| Hello::decode(&h.encode())),
        MessageType::Welcome => same(Welcome::decode(body), |w| Welcome::decode(&w.encode())),
        MessageType::Ack => same(Ack::decode(body), |a| Ack::decode(&a.encode())),
        MessageType::Fill => same(Fill::decode(body), |f| Fill::decode(&f.encode())),
        MessageType::Quiet => same(Quiet::decode(body), |q| Quiet::decode(&q.encode())),
        MessageType::Refuse => same(Refuse::decode(body), |r| Refuse::decode(&r.encode())),
        MessageType::HashQuery | MessageType::DiskQuery => {
            same(HashQuery::decode(body, DISK), |q| HashQuery::decode(&q.encode(), DISK));
        }
        MessageType::Hashes | MessageType::DiskHashes => same(Hashes::decode(body), |h| Hashes::decode(&h.encode())),
        MessageType::DiskWrite => {
            if let Ok(write) = DiskWrite::decode(body, DISK) {
                assert!(write.offset + write.data.len() as u64 <= DISK);
                assert_eq!(write.encode(), body);
            }
        }
        MessageType::DiskSync => same(DiskSync::decode(body), |s| DiskSync::decode(&s.encode())),
        MessageType::DiskDone => same(DiskDone::decode(body), |d| DiskDone::decode(&d.encode())),
        MessageType::Data | MessageType::Ping | MessageType::Pong | MessageType::Bye => {}
    }
}

pub(super) fn same<T: PartialEq + std::fmt::Debug, E: PartialEq + std::fmt::Debug>(
    found: Result<T, E>,
    again: impl Fn(&T) -> Result<T, E>,
) {
    if let Ok(found) = found {
        assert_eq!(again(&found), Ok(found));
    }
}

/// Records, and the headers of ring and dirty map, which are as long.
pub(super) fn record(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let fixed = input.one_in(2);
    let mut head: [u8; HEADER_LEN] = input.array();
    if fixed {
        let sum = xxh3_64(&head[..48]);
        head[56..].copy_from_slice(&sum.to_le_bytes());
    }
    if let Ok(record) = Record::decode(&head) {
        assert_eq!(record.encode(), head);
        assert_eq!(record.digest().to_le_bytes(), head[56..]);
        assert!(record.payload_len() <= afterimage_format::record::MAX_PAYLOAD);
    }
    let mut fixed_part: [u8; FIXED_LEN] = head;
    if fixed {
        fix(&mut fixed_part);
    }
    if let Ok(header) = RingHeader::decode(&fixed_part) {
        assert_eq!(header.encode(), fixed_part);
        assert!(header.file_len() > header.data_at());
    }
    if let Ok(header) = DirtyMapHeader::decode(&fixed_part) {
        assert_eq!(header.encode(), fixed_part);
        assert!(header.file_len() <= (2 << 30) && header.words() <= header.regions());
    }
}

/// Commit frames: the content as it is, which a seal would cover.
pub(super) fn commit(bytes: &[u8]) {
    let Ok(commit) = Commit::decode(bytes) else { return };
    assert!(commit.first() <= commit.last() && !commit.records.is_empty());
    let mut builder = CommitBuilder::new();
    for r in &commit.records {
        let record = Record {
            kind: r.kind,
            flags: r.flags,
            seq: r.seq,
            offset: r.offset,
            len: if r.kind == Kind::Point { r.name.len() as u64 } else { r.len },
            time: r.time,
            payload_hash: 0,
            place: 0,
        };
        builder.push(&record, r.time, &r.name, &commit.runs[r.runs.clone()]);
    }
    let mut again = Vec::new();
    builder.finish(&commit.volume, &commit.ring, &mut again);
    let again = Commit::decode(&again).unwrap();
    assert_eq!((again.records, again.runs), (commit.records, commit.runs));
}

/// Manifests: a body with or without the right header.
pub(super) fn manifest(bytes: &[u8]) {
    let mut bytes = bytes.to_vec();
    if bytes.first() == Some(&0) {
        seal_manifest(&mut bytes);
    }
    same(Manifest::decode(&bytes), |m| Manifest::decode(&m.encode()));
}

/// Gives a manifest's body the header that fits it.
pub(super) fn seal_manifest(bytes: &mut [u8]) {
    if bytes.len() < manifest::HEADER_LEN {
        return;
    }
    bytes[..4].copy_from_slice(&manifest::MAGIC.to_le_bytes());
    bytes[4..8].copy_from_slice(&manifest::VERSION.to_le_bytes());
    let len = bytes.len() - manifest::HEADER_LEN;
    bytes[8..16].copy_from_slice(&(len as u64).to_le_bytes());
    let mut sum = Xxh3::new();
    sum.update(&bytes[..16]);
    sum.update(&bytes[manifest::HEADER_LEN..]);
    bytes[16..24].copy_from_slice(&sum.digest().to_le_bytes());
}

/// What a segment is made of: headers, footers, directories, places.
pub(super) fn segment_parts(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    match input.below(5) {
        0 => {
            let mut head: [u8; segment::HEADER_LEN] = input.array();
            if input.one_in(2) {
                fix(&mut head);
            }
            if let Ok(header) = SegmentHeader::decode(&head) {
                // Of version 1, which is written no more, it comes back as the newest.
                if head[4..8] == segment::VERSION.to_le_bytes() {
                    assert_eq!(header.encode(), head);
                }
            }
        }
        1 => {
            let head: [u8; FRAME_HEADER_LEN] = input.array();
            if let Ok(header) = FrameHeader::decode(&head) {
                assert_eq!(header.encode(), head);
                assert!(header.frame_len() <= u64::from(afterimage_format::place::MAX_FRAME));
            }
        }
        2 => {
            let mut foot: [u8; FOOTER_LEN] = input.array();
            if input.one_in(2) {
                fix(&mut foot);
            }
            if let Ok(footer) = Footer::decode(&foot) {
                assert_eq!(footer.encode(), foot);
            }
        }
        3 => {
            let word = u64::from_le_bytes(input.array());
            let Ok(place) = Place::from_word(word) else { return };
            assert_eq!(place.word(), word);
            if let Some(next) = place.advance(input.number()) {
                assert_eq!(next.frame(), place.frame());
            }
        }
        _ => directory(input.rest()),
    }
}

fn directory(content: &[u8]) {
    let Ok(entries) = DirEntry::decode_all(content) else { return };
    let (mut again, mut before) = (Vec::new(), 0);
    for entry in &entries {
        entry.encode(&mut again, before);
        before = entry.offset();
    }
    assert_eq!(DirEntry::decode_all(&again), Ok(entries));
    // A reader that has been refused something still stands where it stood.
    let mut r = Reader::new("fuzz", content);
    while r.varint().is_ok() {}
    assert!(r.rest().len() <= content.len());
}

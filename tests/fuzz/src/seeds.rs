//! The first inputs of each target: what the project itself writes. The engine grows the rest from them.

use afterimage_format::commit::{BlockRun, CommitBuilder};
use afterimage_format::fence::Fence;
use afterimage_format::layer::index::TimelineBuilder;
use afterimage_format::layer::page::PageBuilder;
use afterimage_format::manifest::{
    ForkKind, ForkMeta, GapMeta, KeyWrap, Manifest, PointMeta, SegmentMeta, SegmentState, VolumeMeta,
};
use afterimage_format::place::Place;
use afterimage_format::record::{Kind, Record};
use afterimage_format::ring::RingHeader;
use afterimage_format::segment::{Codec, DirEntry, Footer, FrameHeader, FrameKind, SegmentHeader};
use afterimage_format::wire::{Ack, Header, Hello, MessageType, Refuse, RefuseCode, Welcome};

/// The seeds of this target.
#[must_use]
pub fn of(target: &str) -> Vec<Vec<u8>> {
    match target {
        "wire" => wire(),
        "record" => record(),
        "commit" => vec![commit()],
        "manifest" => vec![manifest()],
        "segment_parts" => segment_parts(),
        "layer_parts" => layer_parts(),
        "text" => text(),
        "nbd_stream" => nbd_stream(),
        "nbd_session" => programs(),
        "nbd_client" => nbd_client(),
        "control" => control(),
        "coord" => coord(),
        "certificate" => certificate(),
        "volume_json" => vec![VOLUME_JSON.as_bytes().to_vec()],
        _ => programs(),
    }
}

const VOLUME_JSON: &str = r#"{"version":1,"id":"0b0c64f5-3b1c-4f8e-9c53-6f3e6a1d2c44","name":"disk0","path":"/d.img",
"identity":{"size":1048576,"key":"inode 7 born 9"},"initial":false,"syncing":true,
"base":{"ring":[8,8,8,8,8,8,8,8,8,8,8,8,8,8,8,8],"durable":40,"digest":4,"gap":41}}"#;

/// For targets whose input is a program: a few that do many different things.
fn programs() -> Vec<Vec<u8>> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut byte = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    let mut program = |len: usize, most: u8| (0..len).map(|_| byte() % most).collect::<Vec<u8>>();
    vec![vec![0; 64], program(200, 8), program(300, 64), program(300, 255), program(600, 200)]
}

fn nbd_stream() -> Vec<Vec<u8>> {
    let option =
        |code: u32, data: &[u8]| joined(&[b"IHAVEOPT", &code.to_be_bytes(), &(data.len() as u32).to_be_bytes(), data]);
    let request = |magic: u32, command: u16, offset: u64, len: &[u8]| {
        joined(&[
            &magic.to_be_bytes(),
            &[0, 0],
            &command.to_be_bytes(),
            &7u64.to_be_bytes(),
            &offset.to_be_bytes(),
            len,
        ])
    };
    let (start, go) = ([0, 255, 0, 0, 0, 3], option(7, &[&[0, 0, 0, 4][..], b"disk", &[0, 1, 0, 3]].concat()));
    let context = [&[0, 0, 0, 4][..], b"disk", &[0, 0, 0, 1, 0, 0, 0, 15], b"base:allocation"].concat();
    let read = request(0x2560_9513, 0, 0, &[0, 0, 2, 0]);
    let write = joined(&[&request(0x2560_9513, 1, 512, &[0, 0, 0, 4]), b"data"]);
    let status = request(0x2560_9513, 7, 0, &[0, 0, 16, 0]);
    let zeroes = request(0x21e4_1c71, 6, 0, &4096u64.to_be_bytes());
    let bye = request(0x2560_9513, 2, 0, &[0; 4]);
    vec![
        joined(&[&start, &option(3, &[]), &option(2, &[])]),
        joined(&[&start, &option(1, b"disk"), &read, &write, &bye]),
        joined(&[&start, &option(8, &[]), &option(10, &context), &go, &status, &read, &bye]),
        joined(&[&start, &option(11, &[]), &option(10, &context), &go, &zeroes]),
    ]
}

fn nbd_client() -> Vec<Vec<u8>> {
    let reply = |option: u32, kind: u32, data: &[u8]| {
        let magic = 0x0003_e889_0455_65a9u64.to_be_bytes();
        joined(&[&magic, &option.to_be_bytes(), &kind.to_be_bytes(), &(data.len() as u32).to_be_bytes(), data])
    };
    let info = joined(&[&[0, 0], &(1u64 << 20).to_be_bytes(), &[0, 1]]);
    let go = joined(&[&reply(7, 3, &info), &reply(7, 1, &[])]);
    let simple = joined(&[&0x6744_6698u32.to_be_bytes(), &[0; 4], &0u64.to_be_bytes(), &[5; 1000]]);
    let refused = joined(&[&0x6744_6698u32.to_be_bytes(), &[0, 0, 0, 22], &1u64.to_be_bytes()]);
    let none = |option| reply(option, (1 << 31) + 1, &[]);
    vec![
        joined(&[&[2, 3, 0], &go, &simple, &refused, &refused]),
        joined(&[&[1, 3, 0], &reply(8, 1, &[]), &go, &simple]),
        joined(&[&[0, 0, 0], &none(11), &none(8), &go, &simple, &refused]),
        joined(&[
            &[0, 0, 0],
            &reply(11, 1, &[]),
            &reply(10, 4, &joined(&[&[0, 0, 0, 1], b"base:allocation"])),
            &reply(10, 1, &[]),
            &go,
        ]),
    ]
}

fn control() -> Vec<Vec<u8>> {
    let lines = [
        r#"{"v":1,"op":"status"}"#,
        r#"{"v":1,"op":"points","volume":"disk0"}"#,
        r#"{"v":1,"op":"create-point","volume":"disk0","name":"one"}"#,
        r#"{"v":1,"op":"resolve","volume":"d","at":"@17"}"#,
        r#"{"v":1,"op":"diff","volume":"d","from":"-1h","to":"latest"}"#,
        r#"{"v":1,"op":"watch","interval-ms":500}"#,
        r#"{"v":1,"op":"nbd","volume":"d","at":"-10m","writable":true}"#,
        r#"{"v":1,"op":"export","volume":"d","at":"latest"}"#,
        r#"{"v":2,"op":"status"}"#,
    ];
    let mut seeds: Vec<Vec<u8>> = lines.iter().map(|l| format!("{l}\n").into_bytes()).collect();
    seeds.push(format!("{}\n{}\n", lines[1], lines[3]).into_bytes());
    seeds
}

fn joined(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

/// A record of this kind.
#[must_use]
pub fn a_record(kind: Kind, seq: u64, len: u64) -> Record {
    Record { kind, flags: 0, seq, offset: 4096, len, time: 1_700_000_000, payload_hash: 0, place: 0 }
}

fn coord() -> Vec<Vec<u8>> {
    use afterimage_format::coord::{Hello, Join, Joined, Kind, Refuse, Revocations, Welcome, message};
    vec![
        message(Kind::Hello, &Hello { oldest: 1, newest: 1, revocations: 3, program: "0.1.0".into() }.encode()),
        message(Kind::Welcome, &Welcome { version: 1, keep_alive_ms: 5000, time: 7 }.encode()),
        message(Kind::Revocations, &Revocations { number: 9, serials: vec![vec![1; 16], vec![2; 20]] }.encode()),
        message(Kind::Join, &Join { secret: [3; 32], role: 1, request: vec![48; 200], host: "web".into() }.encode()),
        message(Kind::Joined, &Joined { certificate: vec![48; 300], name: "web".into() }.encode()),
        message(Kind::Refuse, &Refuse { text: "no".into() }.encode()),
        message(Kind::Ping, &[0; 8]),
    ]
}

/// Certificates of a CA that is gone, and what else says who somebody is.
fn certificate() -> Vec<Vec<u8>> {
    vec![
        include_bytes!("certificates/agent.der").to_vec(),
        include_bytes!("certificates/authority.der").to_vec(),
        b"afterimage://agent/29bfc1bf-5cc2-4cc4-abb2-ee87fca86b4d?vault=ce9a316a-42fb-4941-bcfe-bdd8b726e56a".to_vec(),
        [b"aij1.", &[b'7'; 64][..], b".", &[b'f'; 64][..]].concat(),
    ]
}

fn wire() -> Vec<Vec<u8>> {
    let hello = Hello {
        oldest: 1,
        newest: 1,
        volume: [7; 16],
        ring: [8; 16],
        size: 1 << 20,
        first: 1,
        next: 9,
        name: "d".into(),
        epoch: 0,
        adopts: false,
    };
    let welcome =
        Welcome { version: 1, ring: [8; 16], durable: 5, digest: 6, credit: 1 << 20, epoch: 0, fence: Fence::Open };
    let refuse = Refuse { code: RefuseCode::Full, text: "no room".into() };
    let bodies = [
        (MessageType::Hello, hello.encode()),
        (MessageType::Welcome, welcome.encode()),
        (MessageType::Ack, Ack { durable: 9, credit: 1 << 22 }.encode()),
        (MessageType::Refuse, refuse.encode()),
        (MessageType::Ping, vec![1; 8]),
    ];
    bodies.iter().map(|(kind, body)| joined(&[&Header::of(*kind, body).encode(), body])).collect()
}

fn record() -> Vec<Vec<u8>> {
    let ring = RingHeader { volume: [1; 16], ring: [2; 16], slots: 64, pages: 8 };
    let map = afterimage_format::dirtymap::DirtyMapHeader { volume: [1; 16], size: 1 << 20, region: 65536 };
    vec![
        joined(&[&[0], &a_record(Kind::Write, 1, 4096).encode()]),
        joined(&[&[1], &a_record(Kind::Gap, 7, 0).encode()]),
        joined(&[&[1], &ring.encode()]),
        joined(&[&[1], &map.encode()]),
    ]
}

fn runs() -> Vec<BlockRun> {
    let place = Place::new(1, 96, 8192, 0).unwrap();
    vec![BlockRun { block: 1, count: 2, place }, BlockRun { block: 9, count: 1 << 30, place: Place::ZERO }]
}

/// Content of a commit frame with one record of each kind.
#[must_use]
pub fn commit() -> Vec<u8> {
    let (mut builder, mut out) = (CommitBuilder::new(), Vec::new());
    let kinds = [Kind::Gap, Kind::Write, Kind::Zero, Kind::SyncEnd, Kind::Point, Kind::Void];
    for (seq, kind) in (1..).zip(kinds) {
        let name = if kind == Kind::Point { "one" } else { "" };
        builder.push(&a_record(kind, seq, name.len() as u64), 1000 + seq, name, &runs());
    }
    builder.finish(&[7; 16], &[8; 16], &mut out);
    out
}

fn manifest() -> Vec<u8> {
    let mut volume = VolumeMeta::new([7; 16], "disk".into(), 1 << 20);
    volume.points = vec![PointMeta::new("one".into(), 3, 5, true)];
    volume.gaps = vec![GapMeta { from_seq: 1, from_time: 1, to_seq: Some(2), to_time: 3, initial: true }];
    let mut branch = VolumeMeta::new([8; 16], "disk/b".into(), 1 << 20);
    branch.fork = Some(ForkMeta { parent: [7; 16], seq: 3, created: 5, kind: ForkKind::Branch });
    let segment = SegmentMeta { number: 1, volume: [7; 16], state: SegmentState::Sealed, length: 4096, last_seq: 9 };
    let manifest = Manifest {
        vault: [1; 16],
        edition: 4,
        wrap: KeyWrap::File,
        key_check: [2; 16],
        next_segment: 2,
        segments: vec![segment],
        volumes: vec![volume, branch],
    };
    let mut bytes = manifest.encode();
    bytes[0] = 0;
    bytes
}

fn segment_parts() -> Vec<Vec<u8>> {
    let header = SegmentHeader { vault: [1; 16], number: 1, salt: [3; 32], volume: [7; 16] };
    let frame = FrameHeader {
        kind: FrameKind::Data,
        codec: Codec::Zstd,
        blocks: 2,
        counter: 0,
        sealed_len: 100,
        plain_len: 8192,
        checksum: 1,
    };
    let footer = Footer {
        number: 1,
        directory: 4096,
        directory_frames: 1,
        data_frames: 2,
        commit_frames: 1,
        blocks: 9,
        last_seq: 7,
        unreduced: 3,
    };
    let mut directory = vec![4];
    DirEntry::Data { offset: 96, frame_len: 132, fingerprints: vec![[9; 16]; 2] }.encode(&mut directory, 0);
    DirEntry::Commit { offset: 240, first: 1, last: 7 }.encode(&mut directory, 96);
    vec![
        joined(&[&[0], &header.encode()]),
        joined(&[&[1], &frame.encode()]),
        joined(&[&[2], &footer.encode()]),
        joined(&[&[3], &Place::new(1, 96, 8192, 3).unwrap().word().to_le_bytes(), &[2]]),
        directory,
    ]
}

/// A token page.
#[must_use]
pub fn tokens() -> Vec<u8> {
    let (mut builder, mut page) = (PageBuilder::new(), Vec::new());
    let place = Place::new(1, 96, 8192, 0).unwrap();
    for (block, count, seq, place) in
        [(0, 4, 1, Place::ZERO), (4, 2, 2, place), (4, 2, 9, Place::ZERO), (900, 1, 3, place)]
    {
        builder.push(block, count, seq, place);
    }
    builder.finish(&mut page);
    page
}

/// A timeline page.
#[must_use]
pub fn timeline() -> Vec<u8> {
    let (mut builder, mut page) = (TimelineBuilder::default(), Vec::new());
    [(1, 1000), (2, 1000), (3, 1700), (9, 2000)].iter().for_each(|(seq, time)| builder.push(*seq, *time));
    builder.finish(&mut page);
    page
}

fn layer_parts() -> Vec<Vec<u8>> {
    vec![joined(&[&[3], &tokens()]), joined(&[&[4], &timeline()]), joined(&[&[5], &[0; 40]]), vec![0; 65], vec![1; 113]]
}

fn text() -> Vec<Vec<u8>> {
    let texts = [
        "latest",
        "@17",
        "-1h30m",
        "2026-03-01T14:30:00Z",
        "before upgrade",
        "10GiB",
        "64KiB",
        "1h30m",
        "unix:/run/afterimage/nbd.sock",
        "[::1]:10809",
        "127.0.0.1:10809",
        "nbd+unix:///disk?socket=/run/nbd.sock",
        "nbd://host:10809/disk%20one",
    ];
    texts.iter().map(|t| t.as_bytes().to_vec()).collect()
}

use crate::appliance::Appliance;
use crate::testing::*;
use afterimage_format::compare::{BlockHasher, HashQuery, Hashes, MAX_QUERIES, Told};
use afterimage_format::record::Kind;
use afterimage_format::wire::{Header, MessageType, RefuseCode};

const KEY: [u8; 32] = [3; 32];

fn query(id: u64, seq: u64, offset: u64, len: u64) -> HashQuery {
    HashQuery { id, seq, offset, len, key: KEY }
}

fn ask(agent: &mut Agent, query: &HashQuery) -> Told {
    put(agent, query);
    let h = agent.hashes().unwrap();
    assert_eq!(h.id, query.id);
    h.told
}

fn put(agent: &mut Agent, query: &HashQuery) {
    let body = query.encode();
    agent.raw(&Header::of(MessageType::HashQuery, &body).encode());
    agent.raw(&body);
}

fn expected(image: &[u8], q: &HashQuery) -> Told {
    let hasher = BlockHasher::new(KEY);
    let from = usize::try_from(q.offset).unwrap();
    let part = &image[from..from + usize::try_from(q.len).unwrap()];
    if part.iter().all(|b| *b == 0) {
        return Told::Zero;
    }
    Told::Each(part.chunks(4096).map(|b| hasher.hash(b)).collect())
}

fn records() -> Vec<Write1> {
    let write = |seq, offset: u64, len: u64, byte| {
        record(Kind::Write, seq, offset, len, vec![byte; usize::try_from(len).unwrap()])
    };
    vec![
        record(Kind::Gap, 1, 0, 0, Vec::new()),
        write(2, 0, 3 * 4096, 1),
        write(3, 4096, 4096, 2),
        record(Kind::SyncEnd, 4, 0, 0, Vec::new()),
        write(5, 100, 5000, 3),
        record(Kind::Zero, 6, 8192, 4096, Vec::new()),
        write(7, 24 * 4096 + 10, 990, 4),
    ]
}

#[test]
fn every_range_at_every_seq_is_answered_as_the_model_says() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    let appliance = Appliance::start(config.clone()).unwrap();
    let mut agent = Agent::connect(&config.listen, &hello()).unwrap();
    let (records, mut id) = (records(), 0);
    let images = images(&records);
    agent.send(&bytes_of(&records));
    agent.wait(7).unwrap();
    for round in 0..2 {
        for seq in 1..=7u64 {
            for (offset, len) in
                [(0, SIZE), (0, 4096), (4096, 8192), (20 * 4096, 4 * 4096), (24 * 4096, SIZE - 24 * 4096)]
            {
                id += 1;
                let q = query(id, seq, offset, len);
                assert_eq!(ask(&mut agent, &q), expected(&images[usize::try_from(seq).unwrap()], &q), "{q:?}");
            }
        }
        if round == 0 {
            appliance.registry.all()[0].flush(&appliance.shared).unwrap();
        }
    }
    // Neither what is not there yet, nor the empty volume before everything.
    assert_eq!(ask(&mut agent, &query(900, 8, 0, 4096)), Told::Nothing);
    assert_eq!(ask(&mut agent, &query(901, 0, 0, 4096)), Told::Nothing);
}

#[test]
fn a_seq_that_is_no_longer_kept_is_not_told() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    let appliance = Appliance::start(config.clone()).unwrap();
    let mut agent = Agent::connect(&config.listen, &hello()).unwrap();
    agent.send(&bytes_of(&records()));
    agent.wait(7).unwrap();
    appliance.shared.vault.edit(|m| m.volumes[0].first_seq = 5).unwrap();
    assert_eq!(ask(&mut agent, &query(1, 3, 0, 4096)), Told::Nothing);
    assert!(matches!(ask(&mut agent, &query(2, 5, 0, 4096)), Told::Each(_)));
}

#[test]
fn a_damaged_segment_is_not_told_and_ingest_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.cache_bytes = 0;
    let _appliance = Appliance::start(config.clone()).unwrap();
    let mut agent = Agent::connect(&config.listen, &hello()).unwrap();
    agent.send(&bytes_of(&records()));
    agent.wait(7).unwrap();
    for entry in std::fs::read_dir(config.dir.join("segments")).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        let from = bytes.len().min(96);
        bytes[from..].fill(0x55);
        // In place: the appliance has it open.
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &bytes, 0).unwrap();
    }
    assert_eq!(ask(&mut agent, &query(1, 7, 0, 4096)), Told::Nothing);
    let after = record(Kind::Write, 8, 0, 4096, vec![9; 4096]);
    agent.send(&bytes_of(&[after]));
    agent.wait(8).unwrap();
    assert!(matches!(ask(&mut agent, &query(2, 8, 0, 4096)), Told::Each(_)));
}

#[test]
fn acknowledgements_come_between_the_answers() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    let _appliance = Appliance::start(config.clone()).unwrap();
    let mut agent = Agent::connect(&config.listen, &hello()).unwrap();
    let records = records();
    agent.send(&bytes_of(&records[..4]));
    agent.wait(4).unwrap();
    for id in 0..MAX_QUERIES as u64 {
        put(&mut agent, &query(id, 4, 0, SIZE));
    }
    agent.send(&bytes_of(&records[4..]));
    agent.wait(7).unwrap();
    while agent.answers.len() < MAX_QUERIES {
        agent.hashes().map(|h| agent.answers.push(h)).unwrap();
    }
    let ids: Vec<u64> = agent.answers.iter().map(|h| h.id).collect();
    assert_eq!(ids, (0..MAX_QUERIES as u64).collect::<Vec<_>>());
}

#[test]
fn queries_that_break_the_rules_end_the_session() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    let _appliance = Appliance::start(config.clone()).unwrap();
    for bad in [query(1, 1, 1, 4096), query(1, 1, 0, 0), query(1, 1, 0, SIZE + 1), query(1, 1, u64::MAX - 4095, 4096)] {
        let mut agent = Agent::connect(&config.listen, &hello()).unwrap();
        put(&mut agent, &bad);
        assert_eq!(agent.wait(1).unwrap_err().unwrap().code, RefuseCode::Malformed, "{bad:?}");
    }
    let mut old = hello();
    (old.oldest, old.newest) = (1, 1);
    let mut agent = Agent::connect(&config.listen, &old).unwrap();
    assert_eq!(agent.welcome.version, 1);
    put(&mut agent, &query(1, 1, 0, 4096));
    assert_eq!(agent.wait(1).unwrap_err().unwrap().code, RefuseCode::Malformed, "version 1 has no queries");
    let mut agent = Agent::connect(&config.listen, &hello()).unwrap();
    let h = Hashes { id: 1, told: Told::Zero }.encode();
    agent.raw(&Header::of(MessageType::Hashes, &h).encode());
    agent.raw(&h);
    assert_eq!(agent.wait(1).unwrap_err().unwrap().code, RefuseCode::Malformed, "answers are not an agent's to give");
}

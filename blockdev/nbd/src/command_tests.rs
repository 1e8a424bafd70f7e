use super::*;
use proptest::prelude::*;

const SIZE: u64 = 1 << 20;
const MAX_IO: u32 = 1 << 16;

fn terms(mode: Mode) -> Terms {
    let geometry = Geometry {
        size: SIZE,
        preferred_block: 4096,
        max_io: MAX_IO,
        read_only: false,
        multi_queue: true,
        trim: true,
        fast_zero: true,
        rotational: false,
    };
    Terms { geometry, mode, allocation: true, max_io: MAX_IO }
}

fn header(command: u16, flags: u16, offset: u64, len: u64) -> Header {
    Header { flags, command, cookie: 7, offset, len }
}

fn errno_of(terms: &Terms, h: &Header) -> u32 {
    terms.check(h, &[]).expect_err("it should be refused").0
}

fn modes() -> impl Strategy<Value = Mode> {
    prop_oneof![Just(Mode::Simple), Just(Mode::Structured), Just(Mode::Extended)]
}

fn wild() -> impl Strategy<Value = u64> {
    prop_oneof![0..2 * SIZE, any::<u64>(), Just(SIZE), Just(u64::MAX), Just(0), Just(u64::from(MAX_IO))]
}

proptest! {
    #[test]
    fn headers_come_back(mode in modes(), flags: u16, command: u16, cookie: u64, offset: u64, len: u64) {
        let len = if mode == Mode::Extended { len } else { len & u64::from(u32::MAX) };
        let h = Header { flags, command, cookie, offset, len };
        let mut bytes = Vec::new();
        h.encode(mode, &mut bytes);
        prop_assert_eq!(bytes.len(), mode.header_len());
        prop_assert_eq!(Header::parse(mode, &bytes), Some(h));
        prop_assert_eq!(Header::parse(mode, &bytes[1..]), None);
        bytes[0] ^= 1;
        prop_assert_eq!(Header::parse(mode, &bytes), None);
    }

    /// Whatever a client sends, what passes the door lies inside the export and is not empty, and a write's data is
    /// as long as announced.
    #[test]
    fn nothing_bad_passes(
        mode in modes(),
        flags in prop_oneof![Just(0u16), 0u16..64, any::<u16>()],
        command in prop_oneof![0u16..9, any::<u16>()],
        offset in wild(),
        len in wild(),
        payload in prop::collection::vec(any::<u8>(), 0..20),
    ) {
        let h = header(command, flags, offset, len);
        let inside = |offset: u64, len: u64| len > 0 && offset.checked_add(len).is_some_and(|end| end <= SIZE);
        match terms(mode).check(&h, &payload) {
            Ok(Command::Read { offset, len }) => prop_assert!(inside(offset, len.into()) && len <= MAX_IO),
            Ok(Command::Write { offset, .. }) => prop_assert!(inside(offset, len) && len <= u64::from(MAX_IO)),
            Ok(
                Command::Trim { offset, len, .. }
                | Command::WriteZeroes { offset, len, .. }
                | Command::Cache { offset, len }
                | Command::Status { offset, len, .. },
            ) => prop_assert!(inside(offset, len)),
            Ok(Command::Flush | Command::Disconnect) => {}
            Err(Refusal(errno, why)) => {
                prop_assert!([errno::EINVAL, errno::ENOSPC, errno::EOVERFLOW].contains(&errno) && !why.is_empty());
            }
        }
    }

    /// On a read-only export nothing that changes it passes.
    #[test]
    fn read_only_is_read_only(mode in modes(), flags in 0u16..64, command in 0u16..9, offset in wild(), len in wild()) {
        let mut terms = terms(mode);
        terms.geometry.read_only = true;
        let command = terms.check(&header(command, flags, offset, len), &[]);
        let changes = matches!(command, Ok(Command::Write { .. } | Command::Trim { .. } | Command::WriteZeroes { .. }));
        prop_assert!(!changes);
    }
}

#[test]
fn errors_are_those_of_the_document() {
    let terms = terms(Mode::Structured);
    for (command, errno) in [
        (cmd::READ, errno::EINVAL),
        (cmd::WRITE, errno::ENOSPC),
        (cmd::WRITE_ZEROES, errno::ENOSPC),
        (cmd::TRIM, errno::EINVAL),
        (cmd::CACHE, errno::EINVAL),
        (cmd::BLOCK_STATUS, errno::EINVAL),
    ] {
        assert_eq!(errno_of(&terms, &header(command, 0, SIZE - 1, 2)), errno, "command {command} past the end");
        assert_eq!(errno_of(&terms, &header(command, 0, 0, 0)), errno::EINVAL, "command {command} of no bytes");
        assert_eq!(errno_of(&terms, &header(command, 1 << 9, 0, 1)), errno::EINVAL, "command {command}, odd flag");
    }
    let mut read_only = terms;
    read_only.geometry.read_only = true;
    for command in [cmd::WRITE, cmd::TRIM, cmd::WRITE_ZEROES] {
        assert_eq!(errno_of(&read_only, &header(command, 0, 0, 1)), errno::EPERM);
    }
    let long = u64::from(MAX_IO) + 1;
    assert_eq!(errno_of(&terms, &header(cmd::READ, 0, 0, long)), errno::EOVERFLOW);
    assert_eq!(errno_of(&Terms { mode: Mode::Simple, ..terms }, &header(cmd::READ, 0, 0, long)), errno::EINVAL);
    assert_eq!(errno_of(&terms, &header(cmd::READ, 0, SIZE - 1, long)), errno::EINVAL);
    assert_eq!(errno_of(&terms, &header(8, 0, 0, 1)), errno::EINVAL);
    assert_eq!(errno_of(&terms, &header(cmd::FLUSH, 0, 1, 0)), errno::EINVAL);
}

#[test]
fn what_is_not_advertised_is_refused() {
    let mut poor = terms(Mode::Structured);
    (poor.geometry.trim, poor.geometry.fast_zero, poor.allocation) = (false, false, false);
    assert_eq!(poor.flags() & (transmission::SEND_TRIM | transmission::SEND_FAST_ZERO), 0);
    assert_eq!(errno_of(&poor, &header(cmd::TRIM, 0, 0, 1)), errno::EINVAL);
    assert_eq!(errno_of(&poor, &header(cmd::WRITE_ZEROES, command_flag::FAST_ZERO, 0, 1)), errno::EINVAL);
    assert_eq!(errno_of(&poor, &header(cmd::BLOCK_STATUS, 0, 0, 1)), errno::EINVAL);
    let simple = terms(Mode::Simple);
    assert_eq!(simple.flags() & transmission::SEND_DF, 0);
    assert_eq!(errno_of(&simple, &header(cmd::READ, command_flag::DF, 0, 1)), errno::EINVAL);
}

#[test]
fn extended_block_status_takes_a_selection_of_contexts() {
    let extended = terms(Mode::Extended);
    assert_ne!(extended.flags() & transmission::BLOCK_STATUS_PAYLOAD, 0);
    let select = |ids: &[u32]| {
        let mut payload = 4096u64.to_be_bytes().to_vec();
        ids.iter().for_each(|id| payload.extend(id.to_be_bytes()));
        let h = header(cmd::BLOCK_STATUS, command_flag::PAYLOAD_LEN, 0, payload.len() as u64);
        match extended.check(&h, &payload) {
            Ok(Command::Status { offset: 0, len: 4096, one: false }) => 0,
            Ok(other) => panic!("{other:?}"),
            Err(Refusal(errno, _)) => errno,
        }
    };
    assert_eq!(select(&[ALLOCATION_ID]), 0);
    for ids in [&[][..], &[2], &[ALLOCATION_ID, ALLOCATION_ID]] {
        assert_eq!(select(ids), errno::EINVAL);
    }
}

/// QEMU's client does not set PAYLOAD_LEN on a write, so that without it the bytes would be taken for requests.
#[test]
fn a_write_has_a_payload_with_and_without_the_flag() {
    for (mode, flags) in [(Mode::Simple, 0), (Mode::Structured, 0), (Mode::Extended, 0), (Mode::Extended, 32)] {
        let write = header(cmd::WRITE, flags, 8, 4);
        assert_eq!(write.payload_len(mode), 4);
        let command = terms(mode).check(&write, b"data");
        assert_eq!(command, Ok(Command::Write { offset: 8, data: b"data", fua: false }), "{mode:?}, flags {flags}");
    }
    assert_eq!(header(cmd::READ, 0, 8, 4).payload_len(Mode::Extended), 0);
    assert_eq!(errno_of(&terms(Mode::Structured), &header(cmd::WRITE, 32, 8, 4)), errno::EINVAL);
}

/// A goodbye has no reply, so nothing about it can be refused.
#[test]
fn a_goodbye_is_always_taken() {
    for flags in [0, command_flag::FUA, u16::MAX] {
        let goodbye = terms(Mode::Extended).check(&header(cmd::DISC, flags, 1, 1), &[]);
        assert_eq!(goodbye, Ok(Command::Disconnect), "flags {flags}");
    }
}

//! The bytes against what the C headers and the driver say.

use super::*;

/// What a C program prints for the macros of `linux/ublk_cmd.h` (6.12).
#[test]
fn commands_have_the_kernels_numbers() {
    for (command, bare, encoded) in [
        (Control::Info, 0x02, 0x8020_7502),
        (Control::Add, 0x04, 0xc020_7504),
        (Control::Delete, 0x05, 0xc020_7505),
        (Control::Start, 0x06, 0xc020_7506),
        (Control::Stop, 0x07, 0xc020_7507),
        (Control::SetParams, 0x08, 0xc020_7508),
        (Control::StartRecovery, 0x10, 0xc020_7510),
        (Control::EndRecovery, 0x11, 0xc020_7511),
        (Control::Features, 0x13, 0x8020_7513),
    ] {
        assert_eq!((command.op(false), command.op(true)), (bare, encoded), "{command:?}");
    }
    assert_eq!((Io::Fetch.op(false), Io::Fetch.op(true)), (0x20, 0xc010_7520));
    assert_eq!((Io::CommitAndFetch.op(false), Io::CommitAndFetch.op(true)), (0x21, 0xc010_7521));
}

#[test]
fn a_control_command_is_laid_out() {
    let bytes = control_command(7, 0x1122_3344_5566_7788, 64, 4711);
    let mut want = [0; SQE_COMMAND];
    want[0] = 7;
    want[4..8].copy_from_slice(&[0xff, 0xff, 64, 0]);
    want[8..16].copy_from_slice(&[0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11]);
    want[16..18].copy_from_slice(&[0x67, 0x12]);
    assert_eq!(bytes, want);
}

#[test]
fn what_the_driver_knows_comes_back() {
    let info =
        Info { queues: 4, depth: 128, state: 2, max_io: 1 << 20, id: 3, pid: -1, flags: 1 << 7, mark: u64::MAX - 1 };
    let bytes = info.encode();
    assert_eq!(Info::decode(&bytes), info);
    assert_eq!(
        (bytes[0], bytes[2], bytes[4], bytes[10], bytes[12], bytes[24], bytes[32]),
        (4, 128, 2, 16, 3, 128, 0xfe)
    );
}

#[test]
fn params_are_laid_out() {
    let params = Params {
        attributes: 0xc,
        logical_shift: 9,
        physical_shift: 12,
        io_opt_shift: 20,
        io_min_shift: 13,
        max_sectors: 2048,
        sectors: 0x1_0000_0000,
        discard_granularity: 4096,
        max_discard_sectors: 1 << 20,
        max_write_zeroes_sectors: 1 << 21,
    };
    let bytes = params.encode();
    let words: Vec<u32> = bytes.chunks_exact(4).map(|c| u32::from_ne_bytes(c.try_into().unwrap())).collect();
    assert_eq!(words[..4], [60, 3, 0xc, u32::from_ne_bytes([9, 12, 20, 13])]);
    assert_eq!(words[4..10], [2048, 0, 0, 1, 0, 0]);
    assert_eq!(words[10..], [0, 4096, 1 << 20, 1 << 21, 1]);
    let bare = Params { max_discard_sectors: 0, max_write_zeroes_sectors: 0, ..params }.encode();
    assert_eq!((bare[4], &bare[40..]), (1, &[0; 20][..]));
}

#[test]
fn a_request_is_read() {
    let mut bytes = [0; DESCRIPTOR_LEN];
    bytes[0..4].copy_from_slice(&(1u32 | 1 << 11 | 1 << 13).to_ne_bytes());
    bytes[4..8].copy_from_slice(&8u32.to_ne_bytes());
    bytes[8..16].copy_from_slice(&100u64.to_ne_bytes());
    let d = Descriptor::decode(&bytes);
    assert_eq!(d, Descriptor { operation: operation::WRITE, fua: true, no_unmap: false, sectors: 8, start: 100 });
    assert_eq!(d.range(), Some((51200, 4096)));
    assert_eq!(Descriptor { start: u64::MAX / 256, ..d }.range(), None);
    assert_eq!(Descriptor { start: u64::MAX / SECTOR, sectors: u32::MAX, ..d }.range(), None);
}

#[test]
fn places_are_those_of_the_driver() {
    assert_eq!(descriptors_of(0, 128), (0, 4096));
    assert_eq!(descriptors_of(2, 4096), (2 * 98304, 98304));
    assert_eq!(payload_at(0, 0), 0x8000_0000);
    assert_eq!(payload_at(0, 1), 0x8000_0000 + (32 << 20));
    assert_eq!(payload_at(3, 5), 0x8000_0000 + (3 << 41) + (5 << 25));
}

//! What the driver is told of devices. That it works is tested in a guest (`tests/tests/ublk.rs`).

use super::*;
use afterimage_base::block::{BlockError, Geometry, Queue, Topology};

struct Shown(Geometry, Topology);

impl BlockDevice for Shown {
    fn geometry(&self) -> Geometry {
        self.0
    }

    fn topology(&self) -> Topology {
        self.1
    }

    fn open_queue(self: Arc<Self>) -> Result<Box<dyn Queue>, BlockError> {
        Err(BlockError::Unsupported)
    }
}

fn geometry() -> Geometry {
    Geometry {
        size: (1 << 30) + 700,
        preferred_block: 4096,
        max_io: 32 << 20,
        read_only: false,
        multi_queue: true,
        trim: true,
        fast_zero: true,
        rotational: false,
    }
}

#[test]
fn blocks_and_limits_are_those_of_the_real_disk() {
    let native = Topology {
        logical_block: 4096,
        physical_block: 8192,
        io_min: 8192,
        io_opt: 1 << 20,
        max_io: 256 << 10,
        discard_granularity: 1 << 20,
    };
    let p = params(&Shown(geometry(), native), native.max_io).unwrap();
    assert_eq!((p.logical_shift, p.physical_shift, p.io_min_shift, p.io_opt_shift), (12, 12, 13, 20));
    assert_eq!((p.max_sectors, p.discard_granularity, p.sectors), (512, 1 << 20, 1 << 21));
    assert_eq!(p.attributes, attribute::VOLATILE_CACHE | attribute::FUA);
    assert!(p.max_discard_sectors != 0 && p.max_write_zeroes_sectors != 0);

    let p = params(&Shown(geometry(), Topology::plain()), 1 << 20).unwrap();
    assert_eq!((p.logical_shift, p.sectors), (9, (1 << 21) + 1), "a last block that is not whole is not shown");
}

#[test]
fn a_read_only_device_takes_nothing() {
    let shown = Shown(Geometry { read_only: true, rotational: true, ..geometry() }, Topology::plain());
    let p = params(&shown, 1 << 20).unwrap();
    assert_eq!(p.attributes, attribute::READ_ONLY | attribute::ROTATIONAL);
    assert_eq!((p.max_discard_sectors, p.max_write_zeroes_sectors), (0, 0));
    let small = Shown(Geometry { size: 511, ..geometry() }, Topology::plain());
    assert!(matches!(params(&small, 1 << 20), Err(Error::TooSmall(511))));
}

#[test]
fn what_a_kernel_takes_away_is_named() {
    let wanted = feature::USER_RECOVERY | feature::USER_RECOVERY_REISSUE | feature::USER_COPY;
    assert!(lacks(wanted, wanted | feature::ENCODE).is_empty());
    assert!(lacks(0, 0).is_empty());
    let old = lacks(wanted, feature::USER_RECOVERY | feature::USER_RECOVERY_REISSUE);
    assert!(old.len() == 1 && old[0].starts_with("user copy"), "{old:?}");
}

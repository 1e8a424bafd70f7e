use super::*;
use afterimage_base::simple::{MemoryDevice, Simple, SimpleDevice};
use afterimage_nbd::{Export, ExportTable, Limits, Listen, Server};
use std::sync::Arc;

const SIZE: usize = (9 << 20) + 1000;

/// An image with data in some places, its server, and what it holds.
fn fixture() -> (tempfile::TempDir, Server, Image, Vec<u8>) {
    let device = MemoryDevice::new(SIZE);
    let mut model = vec![0; SIZE];
    for (i, (at, len)) in [(4096, 8192), (1 << 20, 3 << 20), (5 << 20, 700_000), (SIZE - 500, 500)].iter().enumerate() {
        let data: Vec<u8> = (0..*len).map(|n: usize| u8::try_from((n / 512 + i) % 251 + 1).unwrap()).collect();
        device.write_at(*at as u64, &data).unwrap();
        model[*at..at + len].copy_from_slice(&data);
    }
    let dir = tempfile::tempdir().unwrap();
    let export = Export { name: "d".into(), description: String::new(), device: Arc::new(Simple(Arc::new(device))) };
    let listen = vec![Listen::Unix(dir.path().join("s"))];
    let server = Server::start(listen, Arc::new(ExportTable::single(export)), Limits::default()).unwrap();
    let client = Client::connect(&server.addresses()[0], "d").unwrap();
    (dir, server, Image { client }, model)
}

#[test]
fn pieces_come_in_order() {
    let (_dir, _server, mut image, model) = fixture();
    let ranges = image.data_ranges().unwrap();
    // The last range reaches past the end of the disk, which reads as zeroes.
    let chosen = [(0, 100), (5000, SIZE as u64 - 6000), (SIZE as u64 - 300, 1000)];
    for ranges in [&ranges[..], &chosen, &[]] {
        let (mut got, mut want) = (Vec::new(), Vec::new());
        let mut place = 0;
        image
            .read_ranges(ranges.iter().copied(), |at, data| {
                assert!(at >= place, "piece {at} came after {place}");
                place = at;
                got.extend_from_slice(data);
                Ok(())
            })
            .unwrap();
        for (at, len) in ranges {
            let (at, len) = (usize::try_from(*at).unwrap(), usize::try_from(*len).unwrap());
            want.extend((at..at + len).map(|i| model.get(i).copied().unwrap_or(0)));
        }
        assert!(got == want, "{ranges:?}");
    }
}

#[test]
fn the_ranges_hold_all_that_is_not_zero() {
    let (_dir, _server, mut image, model) = fixture();
    let ranges = image.data_ranges().unwrap();
    let inside = |i: u64| ranges.iter().any(|(at, len)| (*at..at + len).contains(&i));
    assert!(ranges.windows(2).all(|w| w[0].0 + w[0].1 < w[1].0), "{ranges:?}");
    assert!((0..SIZE).step_by(100).all(|i| model[i] == 0 || inside(i as u64)), "{ranges:?}");
}

#[test]
fn what_the_caller_refuses_and_what_the_server_refuses_ends_it() {
    let (_dir, server, mut image, _) = fixture();
    let refused = image.read_ranges([(0, 4 << 20)].into_iter(), |_, _| Err(Problem::failed("full"))).unwrap_err();
    assert_eq!(refused.text, "full");
    server.stop(std::time::Duration::ZERO);
    let (_dir, server, mut image, _) = fixture();
    server.stop(std::time::Duration::ZERO);
    assert!(image.read_ranges([(0, 4 << 20)].into_iter(), |_, _| Ok(())).is_err());
}

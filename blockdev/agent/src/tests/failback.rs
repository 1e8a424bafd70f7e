//! The appliance at the disk of a fenced volume: only then, and only once all that it has is in the journal (I13).

use crate::Volume;
use crate::kit::{Lab, wait};
use afterimage_base::block::Request;
use afterimage_base::simple::call;
use afterimage_format::compare::{BlockHasher, HashQuery, Hashes, Told};
use afterimage_format::failback::{DiskDone, DiskSync, DiskWrite};
use afterimage_format::wire::MessageType;
use std::sync::atomic::Ordering;

const SIZE: u64 = 4 << 20;
const KEY: [u8; 32] = [9; 32];

fn done(volume: &Volume, kind: MessageType, body: &[u8]) -> i32 {
    let (kind, body) = volume.shared().failback(kind, body).unwrap();
    assert_eq!(kind, MessageType::DiskDone);
    let done = DiskDone::decode(&body).unwrap();
    assert_eq!(done.id, 7);
    i32::try_from(done.errno).unwrap()
}

fn put(volume: &Volume, epoch: u64, offset: u64, data: &[u8]) -> i32 {
    done(volume, MessageType::DiskWrite, &DiskWrite { id: 7, epoch, offset, data }.encode())
}

fn sync(volume: &Volume, epoch: u64) -> i32 {
    done(volume, MessageType::DiskSync, &DiskSync { id: 7, epoch }.encode())
}

/// Blocks 2 and 3.
fn query(epoch: u64) -> Vec<u8> {
    HashQuery { id: 7, seq: epoch, offset: 8192, len: 8192, key: KEY }.encode()
}

#[test]
fn i13_only_a_fenced_disk_whose_rest_is_kept_is_written_to() {
    let lab = Lab::new(SIZE);
    let (_agent, volume) = lab.open();
    lab.settle(&volume);
    let mut queue = volume.device().open_queue().unwrap();
    call(&mut *queue, Request::Write { offset: 8192, data: &[1; 4096], fua: false }).unwrap();
    drop(queue);
    let before = lab.disk_bytes();

    // Not fenced.
    assert_eq!((put(&volume, 0, 0, &[5; 512]), sync(&volume, 0)), (libc::ESTALE, libc::ESTALE));
    assert_eq!(done(&volume, MessageType::DiskQuery, &query(0)), libc::ESTALE);
    // Fenced, and the point at its end is not made.
    lab.appliance.epoch.store(1, Ordering::SeqCst);
    lab.appliance.fence.store(2, Ordering::SeqCst);
    lab.appliance.cut();
    wait(&volume, |_| volume.shared().state().meta.fence.is_some_and(|f| f.marked));
    let mark = |marked: bool| volume.shared().state().meta.fence.as_mut().unwrap().marked = marked;
    mark(false);
    let early = put(&volume, 1, 0, &[5; 512]);
    // The keeper may have made it again meanwhile.
    let again = volume.shared().state().meta.fence.unwrap().marked;
    assert!(early == libc::EAGAIN || again, "{early}");
    mark(true);
    // Of another failover.
    assert_eq!((put(&volume, 2, 0, &[5; 512]), sync(&volume, 2)), (libc::ESTALE, libc::ESTALE));
    if early == libc::EAGAIN {
        assert!(lab.disk_bytes() == before, "what was refused was written");
    }

    let hashes = |volume: &Volume| {
        let (kind, body) = volume.shared().failback(MessageType::DiskQuery, &query(1)).unwrap();
        assert_eq!(kind, MessageType::DiskHashes);
        Hashes::decode(&body).unwrap()
    };
    let hasher = BlockHasher::new(KEY);
    let each =
        |a: u8, b: u8| Hashes { id: 7, told: Told::Each([a, b].map(|fill| hasher.hash(&[fill; 4096])).to_vec()) };
    assert_eq!(hashes(&volume), each(1, 0));
    assert_eq!(put(&volume, 1, 12_288, &[3; 4096]), 0);
    assert_eq!(hashes(&volume), each(1, 3));
    // Any alignment.
    assert_eq!((put(&volume, 1, SIZE - 5, &[4; 5]), sync(&volume, 1)), (0, 0));
    assert_eq!(lab.disk_bytes()[usize::try_from(SIZE).unwrap() - 6..], [0, 4, 4, 4, 4, 4]);
    // It is no record: the appliance writes what it has.
    wait(&volume, |s| s.seq_durable == s.seq_acked);
    assert!(lab.appliance.kept().log.iter().all(|(r, _)| r.offset != 12_288));

    let outside = DiskWrite { id: 7, epoch: 1, offset: SIZE - 4, data: &[4; 5] }.encode();
    assert!(volume.shared().failback(MessageType::DiskWrite, &outside).is_err());
    assert!(volume.shared().failback(MessageType::Ack, &[0; 16]).is_err(), "that is not the appliance's to ask");
}

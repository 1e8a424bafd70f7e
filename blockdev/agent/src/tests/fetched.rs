//! Writes whose bytes are fetched to their place, and fetches that fail in the middle.

use crate::kit::{Dice, Lab};
use afterimage_base::block::{BlockError, Completion, Payload, Queue, Submitted};

/// Gives its bytes, as long as the fetch ends before `until`.
struct Bytes<'a>(&'a [u8], usize);

impl Payload for Bytes<'_> {
    fn fetch(&mut self, from: usize, to: &mut [u8]) -> Result<(), BlockError> {
        if from + to.len() > self.1 {
            return Err(BlockError::Io(libc::EFAULT));
        }
        to.copy_from_slice(&self.0[from..from + to.len()]);
        Ok(())
    }
}

fn write(queue: &mut dyn Queue, offset: u64, data: &[u8], until: usize, fua: bool) -> Result<(), BlockError> {
    let ended = match queue.submit_write_of(1, (offset, data.len(), fua), &mut Bytes(data, until)) {
        Submitted::Done(c) => c,
        Submitted::Pending => {
            let mut out: Vec<Completion> = Vec::new();
            while out.is_empty() {
                queue.kick();
                queue.reap(&mut out);
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            out.remove(0)
        }
    };
    ended.result
}

#[test]
fn what_is_fetched_is_on_the_disk_and_in_the_history() {
    let lab = Lab::new(8 << 20);
    let (_agent, volume) = lab.open();
    lab.settle(&volume);
    let mut queue = volume.device().open_queue().unwrap();
    let mut dice = Dice::new(11);
    for n in 0..200u64 {
        let len = usize::try_from((dice.below(64) + 1) * 512).unwrap();
        let data: Vec<u8> = (0..len).map(|i| u8::try_from((i as u64 + n) % 251).unwrap()).collect();
        let offset = dice.below((8 << 20) / 512 - 64) * 512;
        write(&mut *queue, offset, &data, len, n % 5 == 0).unwrap();
    }
    // More than one record.
    let long: Vec<u8> = (0..3 << 20).map(|i: u32| i.to_le_bytes()[1]).collect();
    write(&mut *queue, 512, &long, long.len(), false).unwrap();
    assert_eq!(lab.disk_bytes()[512..512 + long.len()], long[..]);
    drop(queue);
    lab.settle(&volume);
    lab.compare();
}

#[test]
fn a_fetch_that_fails_leaves_disk_and_history_equal_and_the_volume_live() {
    let lab = Lab::new(8 << 20);
    let (_agent, volume) = lab.open();
    lab.settle(&volume);
    let mut queue = volume.device().open_queue().unwrap();
    let data = vec![7; 3 << 20];
    write(&mut *queue, 0, &vec![1; 4096], 4096, false).unwrap();
    for (until, fua) in [(0, false), (0, true), (1 << 20, false), (2 << 20, true)] {
        assert_eq!(write(&mut *queue, 4096, &data, until, fua), Err(BlockError::Io(libc::EFAULT)), "{until} {fua}");
    }
    // Nothing stands behind it.
    write(&mut *queue, 4096, &vec![9; 8192], 8192, true).unwrap();
    drop(queue);
    lab.settle(&volume);
    lab.compare();
    let disk = lab.disk_bytes();
    assert!(disk[..4096].iter().all(|b| *b == 1) && disk[4096..4096 + 8192].iter().all(|b| *b == 9));
    assert_eq!(volume.status().gaps, 0);
}

//! A token that goes round disks, its number written on each before it is handed on: whoever looks at all disks as they were at one moment
//! can tell whether it was one.

use afterimage_nbd::Address;
use afterimage_nbd::client::Client;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

const BLOCK: u64 = 4096;

/// One token. It visits the disks in this order, again and again.
pub(crate) struct Chain {
    pub(crate) order: Vec<usize>,
    /// Its place on each disk.
    pub(crate) offset: u64,
}

impl Chain {
    pub(crate) fn disk(&self, count: u64) -> usize {
        self.order[usize::try_from(count % self.order.len() as u64).unwrap()]
    }

    /// Carries the token until told to stop. A write that fails is made again: the token is handed on only when it is on the disk.
    pub(crate) fn carry(&self, sockets: &[PathBuf], disks: usize, stop: &AtomicBool) -> u64 {
        let mut clients: Vec<Option<Client>> = sockets.iter().flat_map(|_| (0..disks).map(|_| None)).collect();
        let mut count = 0;
        while !stop.load(Ordering::Relaxed) {
            let next = count + 1;
            let disk = self.disk(next);
            let mut block = [0; 4096];
            block[..8].copy_from_slice(&next.to_le_bytes());
            let address = Address::Unix(sockets[disk / disks].clone());
            let client = &mut clients[disk];
            if client.is_none() {
                *client = Client::connect(&address, &format!("d{disk}")).ok();
            }
            match client.as_mut().map(|c| c.write(self.offset, &block)) {
                Some(Ok(())) => count = next,
                _ => {
                    *client = None;
                    thread::sleep(Duration::from_millis(20));
                }
            }
        }
        count
    }

    /// What is wrong with these counts, one for each disk that has a part in the point.
    pub(crate) fn judge(&self, seen: &[(usize, u64)]) -> Result<(), String> {
        let most = seen.iter().map(|(_, count)| *count).max().unwrap_or(0);
        for (disk, count) in seen {
            // The last time at which the token was here, not later than the newest that anybody has.
            let want = (0..=most).rev().take(self.order.len()).find(|c| self.disk(*c) == *disk).unwrap_or(0);
            if *count != want {
                return Err(format!("d{disk} has {count}, and not {want}, though another one has {most}: {seen:?}"));
            }
        }
        Ok(())
    }
}

/// Two that go differently.
pub(crate) fn chains(disks: usize) -> Vec<Chain> {
    let forth: Vec<usize> = (0..disks).collect();
    // The disks of one machine lie apart in the second.
    let apart: Vec<usize> = (0..disks).rev().step_by(2).chain((0..disks.saturating_sub(1)).rev().step_by(2)).collect();
    vec![Chain { order: forth, offset: 0 }, Chain { order: apart, offset: 16 * BLOCK }]
}

/// The number that an image has of a token.
pub(crate) fn count(chain: &Chain, image: &[u8]) -> u64 {
    let at = usize::try_from(chain.offset).unwrap();
    u64::from_le_bytes(image[at..at + 8].try_into().unwrap())
}

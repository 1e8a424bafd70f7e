//! Hundreds of thousands of small writes to a large sparse disk, from a guest's write to the bytes of an exported point: every
//! moment shows what a model says, before and after a restart, and the history stays in few layers.

use afterimage_nbd::Address;
use afterimage_nbd::client::{Client, Command};
use afterimage_tests::daemon::number;
use afterimage_tests::data::Chance;
use afterimage_tests::lab::{DISK, Lab};
use serde_json::Value;
use std::path::Path;

const SIZE: u64 = 1 << 40;
const BLOCK: u64 = 4096;
type Block = [u8; 4096];
const WRITES: usize = 300_000;
/// Different blocks that are written, all over the disk.
const BLOCKS: usize = 40_000;
/// Most of them in so many pieces of the disk,
const PIECES: u64 = 128;
/// of so many bytes.
const PIECE: u64 = 1 << 20;
/// One after the other: of writes in flight together any may get the lower seq, and each is to be told by its own.
const DEPTH: usize = 1;
/// The ring holds so many: the appliance may be slower than the guest.
const CHUNK: usize = 25_000;

/// Where the writes went: for each the index of its block, and where the blocks lie.
struct Load {
    offsets: Vec<u64>,
    targets: Vec<usize>,
    /// Seq of the last record before the first write.
    base: u64,
}

fn content(write: usize) -> Block {
    let mut out = [0; 4096];
    for word in out.chunks_exact_mut(8) {
        word.copy_from_slice(&(write as u64 + 1).to_le_bytes());
    }
    out
}

fn connect(socket: &Path) -> Client {
    Client::connect(&Address::Unix(socket.to_owned()), DISK).expect("connect to the export")
}

impl Load {
    fn new(chance: &mut Chance, base: u64) -> Self {
        // Some neighbours, most of them in pieces that lie far apart.
        let mut offsets: Vec<u64> = (0..BLOCKS as u64 / 4).map(|n| SIZE / 2 + n * BLOCK).collect();
        let pieces: Vec<u64> = (0..PIECES).map(|_| chance.below(SIZE / PIECE) * PIECE).collect();
        let mut within = || chance.below(PIECES) * PIECE + chance.below(PIECE / BLOCK) * BLOCK;
        offsets.extend(
            (BLOCKS / 4..BLOCKS)
                .map(|_| within())
                .map(|at| pieces[usize::try_from(at / PIECE).unwrap_or(0)] + at % PIECE),
        );
        offsets.sort_unstable();
        offsets.dedup();
        let mut index = |below: usize| usize::try_from(chance.below(below as u64)).unwrap_or(0);
        // One write in four goes to a block that many writes hit.
        let all = offsets.len();
        let targets = (0..WRITES).map(|n| if n % 4 == 0 { index(100) } else { index(all) }).collect();
        Self { offsets, targets, base }
    }

    fn write(&self, lab: &Lab, socket: &Path) {
        let mut client = connect(socket);
        for (chunk, targets) in self.targets.chunks(CHUNK).enumerate() {
            for (n, target) in targets.iter().enumerate() {
                if client.in_flight() == DEPTH {
                    client.receive().and_then(|r| r.result).expect("a write");
                }
                let (write, offset) = (chunk * CHUNK + n, self.offsets[*target]);
                client
                    .submit(write as u64, &Command::Write { offset, data: &content(write), fua: false })
                    .expect("send a write");
            }
            while client.in_flight() > 0 {
                client.receive().and_then(|r| r.result).expect("a write");
            }
            lab.daemon.wait_durable(DISK);
        }
    }

    /// Reads blocks of the point after so many writes, and compares.
    fn check(&self, lab: &Lab, writes: usize, chance: &mut Chance) {
        // A killed command leaves its socket behind, so each has its own.
        let socket = lab.path(&format!("point-{}.sock", chance.bits()));
        let _point = lab.daemon.export(DISK, &format!("@{}", self.base + writes as u64), &socket, &[]);
        let mut client = connect(&socket);
        let mut newest = vec![None; self.offsets.len()];
        for (write, target) in self.targets[..writes].iter().enumerate() {
            newest[*target] = Some(write);
        }
        let mut found = [0; 4096];
        for n in 0..3000 {
            // The busiest, the last written, and any.
            let target = match n {
                0..200 => n % 100,
                200..400 => self.targets[writes.saturating_sub(n)],
                _ => usize::try_from(chance.below(self.offsets.len() as u64)).unwrap_or(0),
            };
            client.read(self.offsets[target], &mut found).expect("read a block");
            let wanted = newest[target].map_or([0; 4096], content);
            let at = self.offsets[target];
            assert!(
                found == wanted,
                "the block at {at} after {writes} writes: {:?} is {:?}",
                newest[target],
                &found[..8]
            );
        }
        // A long request over the neighbours.
        let start = self.offsets.iter().position(|o| *o == SIZE / 2).expect("the first neighbour");
        let mut long = vec![0; 8 << 20];
        client.read(SIZE / 2, &mut long).expect("read the neighbours");
        for (offset, write) in self.offsets[start..].iter().zip(&newest[start..]) {
            let at = usize::try_from(offset - SIZE / 2).unwrap_or(usize::MAX);
            let Some(found) = long.get(at..at + 4096) else { break };
            assert!(found == write.map_or([0; 4096], content), "the neighbour at {offset}, {writes} writes");
        }
        drop(client);
    }
}

#[test]
fn every_moment_of_a_long_history_is_what_was_written() {
    let mut chance = Chance::seeded();
    let mut lab = Lab::with(SIZE, &["--ring", "256MiB", "--point-every", "0"]);
    let load = Load::new(&mut chance, number(&lab.daemon.volume(DISK), "seq_acked"));
    load.write(&lab, &lab.daemon.data().join("nbd.sock"));
    assert_eq!(lab.daemon.wait_durable(DISK), load.base + WRITES as u64, "each write is one seq");
    for restarted in [false, true] {
        if restarted {
            assert!(lab.daemon.stop().success(), "{}", lab.daemon.log());
            lab.daemon.start();
            lab.daemon.wait_live(DISK);
        }
        for writes in [1, 1000, WRITES / 10, WRITES / 2, WRITES - 1, WRITES] {
            load.check(&lab, writes, &mut chance);
        }
        let manifest = lab.daemon.cli("dump manifest").arg("--json").run().stdout;
        let manifest: Value = serde_json::from_str(&manifest).unwrap();
        let layers = number(&manifest["volumes"][0], "layers");
        assert!((1..=12).contains(&layers), "{layers} layers after {WRITES} writes");
    }
}

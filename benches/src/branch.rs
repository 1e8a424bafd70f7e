//! A branch against what people use for the same today: `qemu-nbd` on a qcow2 overlay over a copy of the disk.
//!
//! A disk of compressible data is protected; a branch of it is made and served, and beside it `qemu-nbd` with an overlay over the same
//! bytes. fio's nbd engine runs the same job on either, one directly after the other, changing who is first: the ratio of a pair says more than
//! either figure. Reads go to a disk of which a part was written before, so that both read from both layers.

use crate::figures::{figure, median};
use crate::load::{self, Figures};
use afterimage_tests::daemon::{Daemon, daemon};
use afterimage_tests::process::Process;
use afterimage_tests::tool::tool;
use serde::Serialize;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// What is measured and how often.
#[derive(Debug, Clone)]
pub struct Plan {
    /// An empty folder on the file system to measure on.
    pub dir: PathBuf,
    /// Bytes of the disk.
    pub size: u64,
    /// Longest time of a run in seconds.
    pub seconds: u32,
    /// Pairs of each job.
    pub rounds: u32,
}

/// The jobs: name, and options of fio.
const JOBS: [(&str, &str); 6] = [
    ("random write 4k, depth 16", "--rw=randwrite --bs=4k --iodepth=16"),
    ("random write 4k, a flush after each", "--rw=randwrite --bs=4k --iodepth=1 --fsync=1"),
    ("random write 4k, a flush after 32", "--rw=randwrite --bs=4k --iodepth=16 --fsync=32"),
    ("sequential write 1M, depth 4", "--rw=write --bs=1m --iodepth=4"),
    ("random read 4k, depth 16", "--rw=randread --bs=4k --iodepth=16"),
    ("sequential read 1M, depth 4", "--rw=read --bs=1m --iodepth=4"),
];

/// One pair.
#[derive(Debug, Clone, Serialize)]
pub struct Pair {
    /// The job.
    pub job: &'static str,
    /// Megabytes per second of a branch.
    pub branch: f64,
    /// Of the overlay.
    pub overlay: f64,
    /// Median time from sending to answer in microseconds, of either.
    pub latency: [f64; 2],
}

struct Bench {
    _daemon: Daemon,
    _export: Process,
    _peer: Process,
    uris: [String; 2],
}

fn socket_uri(name: &str, socket: &Path) -> String {
    format!("nbd+unix:///{name}?socket={}", socket.display())
}

fn start(plan: &Plan) -> Bench {
    let (image, overlay) = (plan.dir.join("disk.raw"), plan.dir.join("overlay.qcow2"));
    tool("fio")
        .args([
            "--name=fill",
            "--rw=write",
            "--bs=1m",
            "--buffer_compress_percentage=50",
            "--refill_buffers",
            "--end_fsync=1",
        ])
        .arg(format!("--filename={}", image.display()))
        .arg(format!("--size={}", plan.size))
        .run();
    let daemon = daemon(&plan.dir).volume("disk", &image).start();
    daemon.wait_live("disk");
    daemon.wait_durable("disk");
    daemon.cli("branch create").args(["disk", "--name", "bench"]).run();
    let socket = plan.dir.join("branch.sock");
    let export = daemon.cli("branch export").args(["disk/bench", "--listen", &format!("unix:{}", socket.display())]);
    let mut export = Process::start(export.into_command(), &plan.dir.join("export.log"));
    export.wait_until("socket", || socket.exists());
    tool("qemu-img").args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"]).arg(&image).arg(&overlay).run();
    let peer_socket = plan.dir.join("peer.sock");
    let peer =
        tool("qemu-nbd").args(["-f", "qcow2", "-t", "-e", "16", "-x", "peer", "-k"]).arg(&peer_socket).arg(&overlay);
    let mut peer = Process::start(peer.into_command(), &plan.dir.join("peer.log"));
    peer.wait_until("socket", || peer_socket.exists());
    let uris = [socket_uri("disk/bench", &socket), socket_uri("peer", &peer_socket)];
    Bench { _daemon: daemon, _export: export, _peer: peer, uris }
}

fn run(bench: &Bench, who: usize, plan: &Plan, job: &str) -> Figures {
    let mut options: Vec<String> = job.split(' ').map(str::to_owned).collect();
    options.push(format!("--size={}", plan.size));
    options.extend(["--time_based".to_owned(), format!("--runtime={}", plan.seconds)]);
    load::run(std::slice::from_ref(&bench.uris[who]), false, &options)
}

/// Measures all jobs in pairs.
///
/// # Panics
/// If a program fails.
#[must_use]
pub fn measure(plan: &Plan, mut progress: impl FnMut(&Pair)) -> Vec<Pair> {
    let bench = start(plan);
    let mut pairs = Vec::new();
    for round in 0..plan.rounds {
        for (name, job) in JOBS {
            let mut figures: [Option<Figures>; 2] = [None, None];
            for turn in 0..2 {
                let who = usize::from((round + turn) % 2 == 1);
                figures[who] = Some(run(&bench, who, plan, job));
            }
            let [Some(branch), Some(overlay)] = figures else { continue };
            let latency = [branch.latency[0], overlay.latency[0]];
            let pair = Pair { job: name, branch: branch.megabytes, overlay: overlay.megabytes, latency };
            progress(&pair);
            pairs.push(pair);
        }
    }
    pairs
}

/// The table of docs/performance.md.
#[must_use]
pub fn table(plan: &Plan, pairs: &[Pair]) -> String {
    let mut out = format!(
        "A branch of a disk of {} MiB, and `qemu-nbd` on a qcow2 overlay over the same bytes; fio's nbd engine, {} pairs of runs of {} s. \
         Medians; the ratio is that of each pair.\n\n",
        plan.size >> 20,
        plan.rounds,
        plan.seconds
    );
    out.push_str(
        "| | branch MB/s | overlay MB/s | ratio | median \u{b5}s, branch | overlay |\n|---|---|---|---|---|---|\n",
    );
    for (name, _) in JOBS {
        let of = |f: &dyn Fn(&Pair) -> f64| median(&pairs.iter().filter(|p| p.job == name).map(f).collect::<Vec<_>>());
        let _ = writeln!(
            out,
            "| {name} | {} | {} | **{}** | {} | {} |",
            figure(of(&|p| p.branch)),
            figure(of(&|p| p.overlay)),
            figure(of(&|p| p.branch / p.overlay)),
            figure(of(&|p| p.latency[0])),
            figure(of(&|p| p.latency[1]))
        );
    }
    out
}

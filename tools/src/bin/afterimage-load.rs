//! The load generator: writes whose every byte says where it comes from, and the judgement of what came of them.

use afterimage::load::op::{Mix, Shape};
use afterimage::load::{run, verify};
use afterimage::problem::Problem;
use afterimage::signals;
use afterimage_mgmt::client::ControlClient;
use afterimage_mgmt::units::{format_size, parse_duration, parse_size};
use afterimage_nbd::client::Uri;
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

#[derive(Debug, Parser)]
#[command(name = "afterimage-load", version, about = "Stamped load on an NBD export, and its verification")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write to an export and keep a journal of it. Everything on the export's span is overwritten.
    Run(RunArgs),
    /// Judge the disk, or images of its history, by the journal.
    Verify(VerifyArgs),
}

#[derive(Debug, Args)]
struct RunArgs {
    /// The export: nbd://HOST:PORT/NAME or nbd+unix:///NAME?socket=PATH.
    #[arg(long)]
    uri: Uri,
    /// The journal to write.
    #[arg(long)]
    journal: PathBuf,
    /// Data folder of the running process: notes the volume's seq, so that `verify` can count.
    #[arg(long, requires = "volume")]
    data: Option<PathBuf>,
    /// The volume's name.
    #[arg(long, requires = "data")]
    volume: Option<String>,
    /// Connections.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    connections: u16,
    /// Requests in flight on each.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    depth: u16,
    /// Stop after so many requests.
    #[arg(long)]
    count: Option<u64>,
    /// Stop after so long.
    #[arg(long, value_parser = parse_duration)]
    duration: Option<Duration>,
    /// Requests per second, all connections together.
    #[arg(long)]
    rate: Option<u64>,
    /// Seed of requests and stamps.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Offsets and lengths are multiples of this; less than 512 with one request at a time only.
    #[arg(long, default_value = "512", value_parser = parse_size)]
    align: u64,
    /// Longest request.
    #[arg(long, default_value = "1MiB", value_parser = parse_size)]
    max_size: u64,
    /// Use only so much of the disk, from its start.
    #[arg(long, default_value = "0", value_parser = parse_size)]
    span: u64,
    /// Shares of writes, trims, zeroes and flushes.
    #[arg(long, default_value = "80,8,8,4")]
    mix: Mix,
    /// How long to try to connect again after a break; 0 means not at all.
    #[arg(long, default_value = "0", value_parser = parse_duration)]
    reconnect: Duration,
}

#[derive(Debug, Args)]
struct VerifyArgs {
    /// The journal of the load.
    #[arg(long)]
    journal: PathBuf,
    /// The disk itself, which must hold everything acknowledged: a URI or a path.
    #[arg(long)]
    disk: Option<String>,
    /// Data folder of the running process.
    #[arg(long, requires = "volume")]
    data: Option<PathBuf>,
    /// The volume whose history is judged.
    #[arg(long, requires = "data")]
    volume: Option<String>,
    /// How many random seqs.
    #[arg(long, default_value_t = 0)]
    samples: u64,
    /// Seed of the choice of seqs.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// A seq to judge; may be given several times.
    #[arg(long = "seq")]
    seqs: Vec<u64>,
    /// The newest image must hold everything acknowledged: for a volume that has caught up.
    #[arg(long)]
    latest: bool,
    /// A raw image at a seq, as PATH@SEQ; may be given several times.
    #[arg(long = "image", value_parser = parse_image)]
    images: Vec<(PathBuf, u64)>,
    /// What was on the disk before; zeroes without. For loads of one request at a time.
    #[arg(long)]
    initial: Option<PathBuf>,
}

fn parse_image(text: &str) -> Result<(PathBuf, u64), String> {
    let bad = || format!("'{text}' is not PATH@SEQ");
    let (path, seq) = text.rsplit_once('@').ok_or_else(bad)?;
    Ok((path.into(), seq.parse().map_err(|_| bad())?))
}

fn run_load(args: RunArgs) -> Result<(), Problem> {
    if args.align == 0 || args.max_size < args.align || args.max_size > 1 << 20 {
        return Err(Problem::usage("--align is at least 1, --max-size at least --align and at most 1MiB (one record)"));
    }
    let base_seq = match (&args.data, &args.volume) {
        (Some(data), Some(volume)) => {
            let status = ControlClient::connect(data)?.status()?;
            let found = status.volumes.iter().find(|v| v.name == *volume);
            Some(found.ok_or_else(|| Problem::failed(format!("there is no volume '{volume}'")))?.seq_acked)
        }
        _ => None,
    };
    let signals = signals::watch()?;
    let stop = Arc::new(AtomicBool::new(false));
    let stopping = Arc::clone(&stop);
    std::thread::spawn(move || {
        if signals.recv().is_ok() {
            stopping.store(true, Ordering::Relaxed);
        }
    });
    let options = run::Options {
        uri: args.uri,
        journal: args.journal,
        base_seq,
        connections: args.connections.into(),
        depth: args.depth.into(),
        shape: Shape { mix: args.mix, align: args.align, max_len: args.max_size, span: args.span },
        seed: args.seed,
        count: args.count,
        duration: args.duration,
        rate: args.rate,
        reconnect: args.reconnect,
    };
    let start = Instant::now();
    let done = run::run(&options, &stop)?;
    println!(
        "{} requests and {} flushes, {} written, {:.1} s; {} errors, {} broken connections",
        done.changes,
        done.flushes,
        format_size(done.bytes),
        start.elapsed().as_secs_f64(),
        done.errors,
        done.breaks
    );
    Ok(())
}

fn run_verify(args: VerifyArgs) -> Result<(), Problem> {
    let report = verify::verify(&verify::Options {
        journal: args.journal,
        disk: args.disk,
        volume: args.data.zip(args.volume),
        samples: args.samples,
        seed: args.seed,
        seqs: args.seqs,
        latest: args.latest,
        images: args.images,
        initial: args.initial,
    })?;
    if report.images == 0 {
        return Err(Problem::usage(
            "nothing to judge: give --disk, --image, or --data and --volume with --samples, --seq or --latest",
        ));
    }
    println!(
        "{} images are right ({} of them counted write by write); {} requests, {} of unknown fate",
        report.images, report.counted, report.requests, report.unknown
    );
    Ok(())
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(args) => run_load(args),
        Command::Verify(args) => run_verify(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(p) => {
            eprintln!("afterimage-load: {p}");
            ExitCode::from(p.exit)
        }
    }
}

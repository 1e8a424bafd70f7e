//! `afterimage-sim sim`: runs seeds, and says which failed and how to repeat them.

use afterimage_sim::story::About;
use afterimage_sim::summary::Sums;
use afterimage_sim::{Wish, runner};
use clap::{Parser, Subcommand, ValueEnum};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

#[derive(Parser)]
#[command(about = "The whole system on simulated time, network and disks, driven by seeds")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs seeds
    Sim {
        /// How many
        #[arg(long, default_value_t = 1000)]
        seeds: u64,
        /// The first one
        #[arg(long, default_value_t = 1)]
        first: u64,
        /// Only this one
        #[arg(long)]
        seed: Option<u64>,
        /// Stories about one thing only, which chance brings about rarely
        #[arg(long)]
        about: Option<About>,
        /// Print everything that happens
        #[arg(long)]
        trace: bool,
        /// How many at a time [default: one per core]
        #[arg(long)]
        jobs: Option<usize>,
        /// Go on after failures
        #[arg(long)]
        keep_going: bool,
        /// A file to which the counts of this run are added
        #[arg(long)]
        summary: Option<PathBuf>,
    },
}

fn main() -> ExitCode {
    match run(Args::parse().command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("cannot run: {e}");
            ExitCode::FAILURE
        }
    }
}

/// Whether all seeds were good.
fn run(command: Command) -> std::io::Result<bool> {
    let Command::Sim { seeds, first, seed, about, trace, jobs, keep_going, summary } = command;
    let mut wish = Wish { broken: std::env::var("AFTERIMAGE_SIM_BREAK").ok(), about, trace };
    if let (Some(seed), true) = (seed, trace) {
        afterimage_sim::run(seed, wish);
    }
    wish.trace = false;
    let range = seed.map_or(first..first + seeds, |s| s..s + 1);
    let jobs = jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(2, std::num::NonZero::get));
    let (start, sums) = (Instant::now(), Sums::new(summary.as_deref())?);
    let rate = |n: u64| n as f64 / start.elapsed().as_secs_f64();
    let s = runner::run(range, jobs, &wish, &mut |o, all| {
        if !o.good {
            println!("seed {}: {}", o.seed, o.text.trim_end());
            let about = about
                .and_then(|a| a.to_possible_value())
                .map_or(String::new(), |a| format!("--about {} ", a.get_name()));
            println!("repeat it with: cargo run --release -p afterimage-sim -- sim {about}--seed {} --trace", o.seed);
        } else if seed.is_some() {
            println!("{}", o.text.trim_end());
        }
        if all.seeds.is_multiple_of(1000) {
            println!("{} seeds, {:.1} per second", all.seeds, rate(all.seeds));
        }
        if all.seeds.is_multiple_of(100)
            && let Err(e) = sums.write(all.seeds, all.failures.len() as u64, &all.counts)
        {
            eprintln!("the summary cannot be written: {e}");
        }
        o.good || keep_going
    })?;
    sums.write(s.seeds, s.failures.len() as u64, &s.counts)?;
    println!("{} seeds, {} failed, {:.1} per second", s.seeds, s.failures.len(), rate(s.seeds));
    for (what, n) in &s.counts {
        println!("{n:>10} {what}");
    }
    Ok(s.failures.is_empty())
}

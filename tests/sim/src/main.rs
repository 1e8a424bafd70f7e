//! `afterimage-sim sim`: runs seeds, and says which failed and how to repeat them.

use afterimage_sim::runner;
use clap::{Parser, Subcommand};
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
        /// Print everything that happens
        #[arg(long)]
        trace: bool,
        /// How many at a time [default: one per core]
        #[arg(long)]
        jobs: Option<usize>,
        /// Go on after failures
        #[arg(long)]
        keep_going: bool,
    },
}

fn main() -> ExitCode {
    let Command::Sim { seeds, first, seed, trace, jobs, keep_going } = Args::parse().command;
    let broken = std::env::var("AFTERIMAGE_SIM_BREAK").ok();
    if let (Some(seed), true) = (seed, trace) {
        afterimage_sim::run(seed, broken, true);
    }
    let seeds = seed.map_or(first..first + seeds, |s| s..s + 1);
    let jobs = jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(2, std::num::NonZero::get));
    let (start, mut done) = (Instant::now(), 0u64);
    let summary = runner::run(seeds, jobs, broken.as_deref(), false, &mut |o| {
        done += 1;
        if !o.good {
            println!("seed {}: {}", o.seed, o.text.trim_end());
            println!("repeat it with: cargo run --release -p afterimage-sim -- sim --seed {} --trace", o.seed);
        }
        if done.is_multiple_of(1000) {
            println!("{done} seeds, {:.1} per second", done as f64 / start.elapsed().as_secs_f64());
        }
        o.good || keep_going
    });
    match summary {
        Ok(s) => {
            let rate = s.seeds as f64 / start.elapsed().as_secs_f64();
            println!("{} seeds, {} failed, {rate:.1} per second", s.seeds, s.failures.len());
            for (what, n) in &s.counts {
                println!("{n:>10} {what}");
            }
            if s.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(e) => {
            eprintln!("cannot run: {e}");
            ExitCode::FAILURE
        }
    }
}

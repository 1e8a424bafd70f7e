//! `cargo run --release -p afterimage-benches -- all`: runs the comparisons, prints the tables, writes the figures.

use afterimage_benches::report::{self, Machine, Results};
use afterimage_benches::usage::{self, Cores};
use afterimage_benches::{branch, cold, generate, growth, history, image, ingest, lag, outage, plot, write_path};
use afterimage_tests::binary;
use afterimage_tests::tool::tool;
use clap::{Parser, ValueEnum};
use std::path::{Path, PathBuf};

/// Compares Afterimage with other NBD servers and backup programs, on this machine, in one run.
#[derive(Debug, Parser)]
#[command(version)]
struct Options {
    /// What to measure
    part: Part,
    /// Interleaved repetitions of each measurement
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Longest time of one run of the write path in seconds
    #[arg(long, default_value_t = 5)]
    seconds: u32,
    /// Size of the disk that is written to, in MiB
    #[arg(long, default_value_t = 1024)]
    disk_mib: u64,
    /// Most bytes that one run of the write path writes, in MiB
    #[arg(long, default_value_t = 2048)]
    run_mib: u64,
    /// Ring of the protected volume on the write path; what a run writes should fit
    #[arg(long, default_value = "3GiB")]
    ring: String,
    /// Bytes of real files in the image that is ingested, in MiB
    #[arg(long, default_value_t = 1664)]
    content_mib: u64,
    /// Fail if a figure of the ingest is less than this part of its goal
    #[arg(long)]
    fail_below: Option<f64>,
    /// Writes in the long history
    #[arg(long, default_value_t = 10_000_000)]
    writes: u64,
    /// Blocks of 4 KiB that these writes go to
    #[arg(long, default_value_t = 1 << 20)]
    blocks: u64,
    /// Leave the long history in the order of writing, instead of waiting until it lies in disk order
    #[arg(long)]
    as_written: bool,
    /// Keep the long history and the images of its points in this folder (not a temporary one), or measure what is there:
    /// with --rounds 0 it is only made
    #[arg(long)]
    keep: Option<PathBuf>,
    /// Drop the store's pages from memory before each run of reads at a point
    #[arg(long)]
    cold: bool,
    /// Measure only candidates (of the long history: read only points) whose name in the table begins so; may be given several
    /// times
    #[arg(long)]
    only: Vec<String>,
    /// Requests of the write path to measure; may be given several times
    #[arg(long, value_parser = pattern)]
    pattern: Vec<write_path::Pattern>,
    /// Measure the write path only pinned, or only not pinned
    #[arg(long, value_parser = ["pinned", "free"])]
    place: Option<String>,
    /// Volumes on one agent, of 1, 4, 16 and 64, have disks of this size, in MiB
    #[arg(long, default_value_t = 64)]
    growth_mib: u64,
    /// Seconds without the appliance in the measurement of the lag
    #[arg(long, default_value_t = 60)]
    outage_seconds: u32,
    /// Exit code 1 if pinned, protected, this is not reached: PATTERN/CANDIDATE=RATIO, as in random-4k/unprotected=0.9
    #[arg(long)]
    at_least: Vec<write_path::Bound>,
    /// Draw the write path into this file (SVG)
    #[arg(long)]
    plot: Option<PathBuf>,
    /// Folder on the file system to measure on; by default bench/ in cargo's target folder
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Write all figures to this file
    #[arg(long)]
    json: Option<PathBuf>,
    /// Put the tables into docs/performance.md
    #[arg(long)]
    update_docs: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Writes through the export
    WritePath,
    /// A disk image into the store
    Ingest,
    /// Points of a volume with a long history
    History,
    /// Reads and decodings that points of a long history cost, before and after they are brought into disk order
    Cold,
    /// Writes while the appliance is away; --seconds says how long
    Outage,
    /// Frame sizes and levels of compression over the image that is ingested
    Levels,
    /// Seconds and bytes behind, at shares of the highest churn; --seconds for each
    Lag,
    /// Many volumes on one agent
    Growth,
    /// Reads and writes of a branch, in pairs with qemu-nbd on a qcow2 overlay
    Branch,
    /// Everything but the outage
    All,
}

impl Part {
    fn includes(self, part: Part) -> bool {
        self == part || (self == Part::All && !matches!(part, Part::Outage | Part::Cold | Part::Levels | Part::Branch))
    }
}

fn main() {
    usage::serve();
    if fill() {
        // As a killed process would end: see the generator.
        std::process::exit(0);
    }
    let options = Options::parse();
    tool(binary::repository().join("scripts/setup-debian.sh")).arg("--bench").run();
    let dir = options.dir.clone().unwrap_or_else(default_dir);
    std::fs::create_dir_all(&dir).unwrap_or_else(|e| panic!("make {}: {e}", dir.display()));
    let machine = Machine::this(&dir);
    let mut results = Results {
        v: 1,
        machine,
        write_path: Vec::new(),
        ingest: None,
        history: None,
        outage: Vec::new(),
        cold: Vec::new(),
        lag: None,
        growth: Vec::new(),
        branch: Vec::new(),
    };
    let mut tables = Vec::new();
    if options.part.includes(Part::WritePath) {
        tables.push(("write-path", measure_write_path(&options, &dir, &mut results)));
    }
    if options.part.includes(Part::Ingest) {
        tables.push(("ingest", measure_ingest(&options, &dir, &mut results)));
    }
    if options.part.includes(Part::History) {
        tables.push(("history", measure_history(&options, &dir, &mut results)));
    }
    if options.part.includes(Part::Cold) {
        measure_cold(&options, &dir, &mut results);
    }
    if options.part.includes(Part::Outage) {
        tables.push(("outage", measure_outage(&options, &dir, &mut results)));
    }
    if options.part.includes(Part::Levels) {
        tables.push(("levels", measure_levels(&options, &dir)));
    }
    if options.part.includes(Part::Lag) {
        tables.push(("lag", measure_lag(&options, &dir, &mut results)));
    }
    if options.part.includes(Part::Growth) {
        tables.push(("growth", measure_growth(&options, &dir, &mut results)));
    }
    if options.part.includes(Part::Branch) {
        tables.push(("branch", measure_branch(&options, &dir, &mut results)));
    }
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&results).expect("results are JSON");
        std::fs::write(path, text).unwrap_or_else(|e| panic!("write {}: {e}", path.display()));
    }
    for (name, table) in &tables {
        println!("\n{table}");
        if options.update_docs {
            let path = binary::repository().join("docs/performance.md");
            let document = std::fs::read_to_string(&path).unwrap_or_else(|_| "# Performance\n".to_owned());
            let updated = report::replace_section(&document, name, table);
            std::fs::write(&path, updated).unwrap_or_else(|e| panic!("write {}: {e}", path.display()));
        }
    }
    let goals = results.ingest.as_ref().map(ingest::table::goals).unwrap_or_default();
    let missed = |g: &&ingest::table::Goal| options.fail_below.is_some_and(|part| g.reached < g.wanted * part);
    let missed: Vec<&ingest::table::Goal> = goals.iter().filter(missed).collect();
    for goal in &missed {
        eprintln!("{}: {:.2}, wanted {:.2}", goal.what, goal.reached, goal.wanted);
    }
    let short: Vec<String> = options.at_least.iter().filter_map(|b| b.missed(&results.write_path)).collect();
    for what in &short {
        eprintln!("missed: {what}");
    }
    std::process::exit(i32::from(!missed.is_empty() || !short.is_empty()));
}

fn pattern(text: &str) -> Result<write_path::Pattern, String> {
    let known = || write_path::PATTERNS.iter();
    let found = known().find(|p| p.name() == text).copied();
    found.ok_or_else(|| format!("one of {}", known().map(|p| p.name()).collect::<Vec<_>>().join(", ")))
}

/// `fill DATA SIZE BLOCKS WRITES UNFLUSHED ORDER`, which this program asks itself for: makes the long history.
fn fill() -> bool {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [command, data, numbers @ ..] = &words[..] else { return false };
    let numbers: Vec<u64> = numbers.iter().filter_map(|n| n.parse().ok()).collect();
    let ("fill", [size, blocks, writes, unflushed, order]) = (command.as_str(), &numbers[..]) else { return false };
    let shape = generate::Shape { size: *size, blocks: *blocks, writes: *writes, unflushed: *unflushed };
    generate::fill(Path::new(data), &shape, *order > 0);
    true
}

/// Those that `--only` leaves.
fn chosen<T: Copy>(options: &Options, all: &[T], title: impl Fn(T) -> &'static str) -> Vec<T> {
    let wanted = |t: &T| options.only.is_empty() || options.only.iter().any(|o| title(*t).starts_with(o.as_str()));
    all.iter().copied().filter(wanted).collect()
}

/// Beside the program: target/release/../bench.
fn default_dir() -> PathBuf {
    let me = std::env::current_exe().expect("the path of the running program");
    me.ancestors().nth(2).unwrap_or(Path::new(".")).join("bench")
}

fn measure_write_path(options: &Options, dir: &Path, results: &mut Results) -> String {
    let (rounds, seconds) = (options.rounds, options.seconds);
    let candidates = chosen(options, &write_path::CANDIDATES, write_path::Candidate::title);
    let scratch = tempfile::Builder::new().prefix("write-path-").tempdir_in(dir).expect("make a folder");
    let plan = write_path::Plan {
        dir: scratch.path().to_owned(),
        size: options.disk_mib << 20,
        seconds,
        bytes: options.run_mib << 20,
        ring: options.ring.clone(),
        rounds,
        candidates,
        patterns: if options.pattern.is_empty() { write_path::PATTERNS.to_vec() } else { options.pattern.clone() },
        places: match options.place.as_deref() {
            Some("pinned") => vec![true],
            Some(_) => vec![false],
            None => vec![true, false],
        },
    };
    results.write_path = write_path::measure(&plan, |run| {
        let place = if run.pinned { "pinned" } else { "free" };
        let state = run.state_after.as_deref().unwrap_or("-");
        eprintln!(
            "round {} {:?} {place:6} {:26} {:8.0} IOPS {:8.1} MB/s {:6.1} CPU \u{b5}s, {} KiB cached before, {state}",
            run.round,
            run.pattern,
            run.candidate.title(),
            run.iops,
            run.megabytes,
            run.cpu_per_request,
            run.cached_before >> 10
        );
    });
    if let Some(path) = &options.plot {
        let groups = write_path::groups(&plan, &results.write_path);
        let drawn = plot::bars("Requests through an export", &groups);
        std::fs::write(path, drawn).unwrap_or_else(|e| panic!("write {}: {e}", path.display()));
    }
    report::write_path_table(&results.machine, &plan, &results.write_path)
}

fn measure_lag(options: &Options, dir: &Path, results: &mut Results) -> String {
    let scratch = tempfile::Builder::new().prefix("lag-").tempdir_in(dir).expect("make a folder");
    let plan = lag::Plan {
        dir: scratch.path().to_owned(),
        size: options.disk_mib << 20,
        seconds: options.seconds,
        outage: options.outage_seconds,
        ring: options.ring.clone(),
        pinned: options.place.as_deref() != Some("free"),
    };
    let found = lag::measure(&plan, |line| eprintln!("{line}"));
    let table = lag::table(&plan, &found);
    results.lag = Some(found);
    table
}

fn measure_growth(options: &Options, dir: &Path, results: &mut Results) -> String {
    let scratch = tempfile::Builder::new().prefix("growth-").tempdir_in(dir).expect("make a folder");
    let plan = growth::Plan {
        dir: scratch.path().to_owned(),
        size: options.growth_mib << 20,
        seconds: options.seconds,
        ring: "64MiB".to_owned(),
        rounds: options.rounds,
    };
    results.growth = growth::measure(&plan, |run| eprintln!("{run:?}"));
    growth::table(&plan, &results.growth)
}

fn measure_branch(options: &Options, dir: &Path, results: &mut Results) -> String {
    let scratch = tempfile::Builder::new().prefix("branch-").tempdir_in(dir).expect("make a folder");
    let plan = branch::Plan {
        dir: scratch.path().to_owned(),
        size: options.disk_mib << 20,
        seconds: options.seconds,
        rounds: options.rounds,
    };
    results.branch = branch::measure(&plan, |pair| eprintln!("{pair:?}"));
    branch::table(&plan, &results.branch)
}

fn measure_ingest(options: &Options, dir: &Path, results: &mut Results) -> String {
    let scratch = tempfile::Builder::new().prefix("image-").tempdir_in(dir).expect("make a folder");
    eprintln!("making a disk image in two generations");
    let generations = image::make(scratch.path(), options.content_mib << 20);
    eprintln!("{} MiB, {} MiB differ", generations.size >> 20, generations.changed >> 20);
    let plan = ingest::Plan {
        dir,
        generations: &generations,
        candidates: chosen(options, &ingest::CANDIDATES, ingest::Candidate::title),
        cores: vec![Cores::One, Cores::All],
        rounds: options.rounds,
    };
    let found = ingest::measure(&plan, |run| {
        let [first, second] = run.seconds;
        let [one, both] = run.stored.map(|b| b >> 20);
        let (title, cores) = (run.candidate.title(), run.cores.title());
        eprintln!(
            "round {} {cores:10} {title:20} {first:6.1} s, {second:6.1} s, CPU {:.1?} (agent {:.1?}); {one} MiB, {both} MiB; \
             restore {:.1} s, CPU {:.1}; peak {} MiB",
            run.round,
            run.cpu_seconds,
            run.agent_cpu_seconds.unwrap_or_default(),
            run.restore_seconds,
            run.restore_cpu_seconds,
            run.peak >> 20
        );
    });
    let text = ingest::table::of(&results.machine, &found);
    if options.update_docs {
        let path = binary::repository().join("docs/ingest.svg");
        let plot = ingest::table::plot(&found);
        std::fs::write(&path, plot).unwrap_or_else(|e| panic!("write {}: {e}", path.display()));
    }
    results.ingest = Some(found);
    text
}

fn measure_levels(options: &Options, dir: &Path) -> String {
    let scratch = tempfile::Builder::new().prefix("image-").tempdir_in(dir).expect("make a folder");
    let generations = image::make(scratch.path(), options.content_mib << 20);
    let choices = ingest::limit::choices(&generations.first, 512 << 20, |c| eprintln!("{c:?}"));
    ingest::table::levels(&choices)
}

fn measure_outage(options: &Options, dir: &Path, results: &mut Results) -> String {
    let scratch = tempfile::Builder::new().prefix("outage-").tempdir_in(dir).expect("make a folder");
    let plan = outage::Plan {
        dir: scratch.path().to_owned(),
        size: options.disk_mib << 20,
        seconds: options.seconds,
        ring: options.ring.clone(),
        rounds: options.rounds,
    };
    results.outage = outage::measure(&plan, |run| eprintln!("{run:?}"));
    outage::table(&plan, &results.outage)
}

fn measure_cold(options: &Options, dir: &Path, results: &mut Results) {
    let scratch = tempfile::Builder::new().prefix("cold-").tempdir_in(dir).expect("make a folder");
    let (writes, blocks) = (options.writes, options.blocks);
    let shape = generate::Shape { size: 1 << 40, blocks, writes, unflushed: 0 };
    results.cold = cold::measure(scratch.path(), &shape, |line| eprintln!("{line}"));
}

fn measure_history(options: &Options, dir: &Path, results: &mut Results) -> String {
    let scratch = tempfile::Builder::new().prefix("history-").tempdir_in(dir).expect("make a folder");
    let kept = options.keep.as_deref().unwrap_or(scratch.path());
    std::fs::create_dir_all(kept).unwrap_or_else(|e| panic!("make {}: {e}", kept.display()));
    let (writes, blocks) = (options.writes, options.blocks);
    let shape = generate::Shape { size: 1 << 40, blocks, writes, unflushed: 100_000.min(writes / 10) };
    let plan = history::Plan {
        dir: kept.to_owned(),
        shape,
        rounds: options.rounds,
        seconds: options.seconds,
        order: !options.as_written,
        cold: options.cold,
        only: options.only.clone(),
    };
    eprintln!("a history of {writes} writes in {}", kept.display());
    let found = history::measure(&plan, |line| eprintln!("{line}"));
    let table = report::history_table(&results.machine, &plan, &found);
    results.history = Some(found);
    table
}

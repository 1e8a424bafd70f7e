//! The tables, the plot and the goals of the ingest comparison.

use super::limit::{Choice, Limit};
use super::{CANDIDATES, Candidate, Results, Run};
use crate::figures::{figure, median, spread};
use crate::plot::{self, Group};
use crate::report::{Machine, precise};
use crate::usage::Cores;
use std::fmt::Write as _;

const MIB: f64 = 1048576.0;

/// A figure that somebody has set.
#[derive(Debug)]
pub struct Goal {
    /// Of what.
    pub what: String,
    /// What it is; more is better.
    pub reached: f64,
    /// What it should be at least.
    pub wanted: f64,
}

impl Results {
    fn middle(&self, candidate: Candidate, cores: Cores, of: impl Fn(&Run) -> f64) -> Option<f64> {
        let values = self.all(candidate, cores, of);
        (!values.is_empty()).then(|| median(&values))
    }

    fn all(&self, candidate: Candidate, cores: Cores, of: impl Fn(&Run) -> f64) -> Vec<f64> {
        self.runs.iter().filter(|r| r.candidate == candidate && r.cores == cores).map(of).collect()
    }

    fn rate(&self, candidate: Candidate, cores: Cores, generation: usize) -> Option<f64> {
        self.middle(candidate, cores, |r| precise(self.image[0]) / r.seconds[generation] / 1e6)
    }

    fn limit(&self, of: impl Fn(&Limit) -> f64) -> f64 {
        median(&self.limits.iter().map(of).collect::<Vec<_>>())
    }
}

/// What the figures come to, against what they should be.
#[must_use]
pub fn goals(r: &Results) -> Vec<Goal> {
    use Candidate::{Afterimage, Borg, QemuImg, Restic};
    let mut goals = Vec::new();
    let mut goal = |what: &str, wanted: f64, reached: Option<f64>| {
        goals.extend(reached.map(|reached| Goal { what: what.to_owned(), reached, wanted }));
    };
    let over = |a: Option<f64>, b: Option<f64>| a.zip(b).map(|(a, b)| a / b);
    for cores in [Cores::One, Cores::All] {
        for (generation, name, wanted) in [(0, "first", 3.0), (1, "second", 4.0)] {
            for peer in [Restic, Borg] {
                let ratio = over(r.rate(Afterimage, cores, generation), r.rate(peer, cores, generation));
                goal(&format!("{name} generation, of {}, {}", peer.title(), cores.title()), wanted, ratio);
            }
        }
    }
    let per_core = r.middle(Afterimage, Cores::One, |run| r.limit(Limit::first) / run.cpu_seconds[0]);
    goal("first generation, of the limit for a CPU second of the appliance", 0.8, per_core);
    goal(
        "first generation, both cores of one core",
        1.6,
        over(r.rate(Afterimage, Cores::All, 0), r.rate(Afterimage, Cores::One, 0)),
    );
    let stored = |c| r.middle(c, Cores::All, |run| precise(run.settled.map_or(run.stored[1], |s| s.0)));
    let best = [Restic, Borg].into_iter().filter_map(stored).reduce(f64::min);
    goal("stored after both, the better of restic and borg over ours", 1.0 / 0.75, over(best, stored(Afterimage)));
    let restore = |c| r.middle(c, Cores::All, |run| 1.0 / run.restore_seconds);
    let best = [Restic, Borg, QemuImg].into_iter().filter_map(restore).reduce(f64::max);
    goal("restore, of the fastest of restic, borg, qemu-img", 1.0, over(restore(Afterimage), best));
    goals
}

/// The tables.
#[must_use]
pub fn of(machine: &Machine, r: &Results) -> String {
    let [size, content, changed] = r.image.map(|b| b >> 20);
    let mut text = format!(
        "{}\n\nMedians of {} interleaved runs. An ext4 image of {size} MiB that holds {content} MiB of files from /usr; in the \
         second generation {changed} MiB differ: files replaced, files written inside, files added. MB/s are bytes of the image by \
         time; the images and, before a restore, the store are not in memory. Stored bytes are those that the store's folder takes on \
         the disk. One core: the appliance and the others on processor 1, agent and client on processor 0, as if they were \
         another host. CPU and peak memory of ours are the appliance's; in the agent's CPU seconds is the real disk.\n",
        machine.describe(),
        r.limits.len()
    );
    for cores in [Cores::One, Cores::All] {
        let _ = writeln!(
            text,
            "\n**{}**\n\n| program | first, MB/s | lowest - highest | second, MB/s | lowest - highest | CPU s, first + second | stored after first, MiB | after second | restore, MB/s | its CPU s | peak memory, MiB |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
            cores.title()
        );
        for candidate in CANDIDATES.into_iter().filter(|c| r.runs.iter().any(|run| run.candidate == *c)) {
            let line = line(r, candidate, cores);
            let _ = writeln!(text, "| {} | {line} |", candidate.title());
        }
    }
    text.push_str(&limits(r));
    text.push_str("\n| goal | wanted | reached |\n|---|---:|---:|\n");
    for goal in goals(r) {
        let _ = writeln!(text, "| {} | {:.2} | {:.2} |", goal.what, goal.wanted, goal.reached);
    }
    text.push_str("\n![Ingest, store and restore](ingest.svg)\n");
    text
}

fn line(r: &Results, candidate: Candidate, cores: Cores) -> String {
    let middle = |of: &dyn Fn(&Run) -> f64| r.middle(candidate, cores, of).unwrap_or(0.0);
    let rate = |n: usize| {
        let rates = r.all(candidate, cores, |run| precise(r.image[0]) / run.seconds[n] / 1e6);
        format!("{} | {}", figure(median(&rates)), spread(&rates))
    };
    let mut cpu = format!("{} + {}", figure(middle(&|r| r.cpu_seconds[0])), figure(middle(&|r| r.cpu_seconds[1])));
    if candidate == Candidate::Afterimage {
        let agent = |n: usize| figure(middle(&|r| r.agent_cpu_seconds.map_or(0.0, |a| a[n])));
        let _ = write!(cpu, " (agent {} + {})", agent(0), agent(1));
    }
    let mut second = figure(middle(&|r| precise(r.stored[1]) / MIB));
    let settled = r.all(candidate, cores, |r| r.settled.map_or(0.0, |s| precise(s.0) / MIB));
    if median(&settled) > 0.0 {
        let _ = write!(second, ", {} when quiet", figure(median(&settled)));
    }
    let restore = figure(middle(&|run| precise(r.image[0]) / run.restore_seconds / 1e6));
    format!(
        "{} | {} | {cpu} | {} | {second} | {restore} | {} | {}",
        rate(0),
        rate(1),
        figure(middle(&|r| precise(r.stored[0]) / MIB)),
        figure(middle(&|r| r.restore_cpu_seconds)),
        figure(middle(&|r| precise(r.peak) / MIB))
    )
}

fn limits(r: &Results) -> String {
    let mut text = "\nThe limit, on one core: the kernels alone, over the first generation, in CPU seconds.\n\n\
        | zero test | hash | zstd | seal | write | sum | MB/s, first pass | MB/s, nothing new |\n|---:|---:|---:|---:|---:|---:|---:|---:|\n"
        .to_owned();
    let seconds = |of: fn(&Limit) -> f64| format!("{:.2}", r.limit(of));
    let rate = |of: fn(&Limit) -> f64| figure(r.limit(|l| precise(l.bytes) / of(l) / 1e6));
    let kernels = [
        seconds(|l| l.zero),
        seconds(|l| l.hash),
        seconds(|l| l.compress),
        seconds(|l| l.seal),
        seconds(|l| l.write),
        seconds(Limit::first),
        rate(Limit::first),
        rate(Limit::known),
    ];
    let _ = writeln!(text, "| {} |", kernels.join(" | "));
    text
}

/// The plot.
#[must_use]
pub fn plot(r: &Results) -> String {
    let group = |title: &str, of: &dyn Fn(Candidate) -> Option<f64>| {
        let bar = |c: Candidate| of(c).map(|value| (c.title().to_owned(), value));
        Group { title: title.to_owned(), bars: CANDIDATES.into_iter().filter_map(bar).collect() }
    };
    let groups = [
        group("first generation, one core, MB/s", &|c| r.rate(c, Cores::One, 0)),
        group("first generation, both cores, MB/s", &|c| r.rate(c, Cores::All, 0)),
        group("second generation, both cores, MB/s", &|c| r.rate(c, Cores::All, 1)),
        group("restore, both cores, MB/s", &|c| {
            r.middle(c, Cores::All, |run| precise(r.image[0]) / run.restore_seconds / 1e6)
        }),
        group("stored after both generations, MiB", &|c| r.middle(c, Cores::All, |run| precise(run.stored[1]) / MIB)),
    ];
    plot::bars("A disk image in two generations", &groups)
}

/// The table of frame sizes and levels.
#[must_use]
pub fn levels(choices: &[Choice]) -> String {
    let mut text = "One core; what is not zero in an image of real files. Levels from 9 on saw every eighth frame.\n\n\
        | KiB a frame | level | stored / data | compress, MB for a CPU second | open a frame, microseconds |\n|---:|---:|---:|---:|---:|\n"
        .to_owned();
    for c in choices {
        let (ratio, rate) = (format!("{:.3}", c.ratio), figure(c.compress));
        let _ = writeln!(text, "| {} | {} | {ratio} | {rate} | {:.0} |", c.blocks * 4, c.level, c.open);
    }
    text
}

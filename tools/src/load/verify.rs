//! Fetches images of a volume at chosen or random seqs and has them judged.

use super::exact::Exact;
use super::journal::{self, Header};
use super::op::Chance;
use super::order::Order;
use crate::image::Image;
use crate::problem::Problem;
use afterimage_mgmt::client::ControlClient;
use afterimage_mgmt::protocol::PointList;
use afterimage_mgmt::when::When;
use afterimage_nbd::client::Uri;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// What to judge.
#[derive(Debug, Default)]
pub struct Options {
    /// The journal of the load.
    pub journal: PathBuf,
    /// The disk itself, which must hold everything acknowledged: an NBD URI or a path.
    pub disk: Option<String>,
    /// The data folder of the running process, and the volume in it.
    pub volume: Option<(PathBuf, String)>,
    /// How many random seqs.
    pub samples: u64,
    /// Seed of the choice.
    pub seed: u64,
    /// Seqs to judge besides.
    pub seqs: Vec<u64>,
    /// Whether the newest image must hold everything acknowledged.
    pub latest: bool,
    /// Raw images at seqs.
    pub images: Vec<(PathBuf, u64)>,
    /// What was on the disk before the load (exact loads); zeroes without.
    pub initial: Option<PathBuf>,
}

/// What was judged.
#[derive(Debug, Default)]
pub struct Report {
    /// Images compared.
    pub images: u64,
    /// Requests in the journal.
    pub requests: u64,
    /// Requests of unknown fate.
    pub unknown: u64,
    /// Of the images, those whose number of requests was known beforehand.
    pub counted: u64,
}

enum Judge {
    Exact(Exact),
    Order(Order),
}

/// Judges everything that the options name.
///
/// # Errors
/// The first image that is wrong, with its seq and what is wrong; or what cannot be read.
pub fn verify(options: &Options) -> Result<Report, Problem> {
    let (header, entries) = journal::load(&options.journal)?;
    let mut report = Report { requests: entries.len() as u64, ..Report::default() };
    report.unknown = entries.iter().filter(|e| e.acked == u64::MAX).count() as u64;
    let initial = match &options.initial {
        Some(path) => std::fs::read(path).map_err(|e| Problem::file(path, &e))?,
        None => vec![0; usize::try_from(header.size).map_err(|_| Problem::failed("the disk is too large"))?],
    };
    let list = match &options.volume {
        Some((data, volume)) => Some(ControlClient::connect(data)?.points(volume)?),
        None => None,
    };
    let since = header.base_seq.unwrap_or(0);
    let gap = list.iter().flat_map(|list| &list.gaps).any(|g| g.to_seq.is_none_or(|to| to > since));
    let new = || -> Result<Judge, Problem> {
        Ok(if header.exact {
            Judge::Exact(Exact::new(header.seed, &entries, initial.clone()))
        } else {
            let order = Order::new(header.seed, header.size, entries.clone()).map_err(Problem::failed)?;
            Judge::Order(order.torn(gap))
        })
    };
    if let Some(disk) = &options.disk {
        let image = read_disk(disk)?;
        new()?.complete(&image).map_err(|e| Problem::failed(format!("the disk {disk}: {e}")))?;
        report.images += 1;
    }
    let mut judge = new()?;
    let mut images: Vec<_> = options.images.iter().collect();
    images.sort_by_key(|(_, seq)| *seq);
    for (path, seq) in images {
        let image = std::fs::read(path).map_err(|e| Problem::file(path, &e))?;
        judge.at(None, &image).map_err(|e| Problem::failed(format!("{} at @{seq}: {e}", path.display())))?;
        report.images += 1;
    }
    if let Some(((data, volume), list)) = options.volume.as_ref().zip(list) {
        history(options, data, volume, &list, &header, new()?, &mut report)?;
    }
    Ok(report)
}

impl Judge {
    /// The image must hold everything acknowledged.
    fn complete(&mut self, image: &[u8]) -> Result<(), String> {
        match self {
            Judge::Exact(exact) => exact.check_at(exact.len(), image),
            Judge::Order(order) => order.check(image, true),
        }
    }

    /// The image at a seq, after `count` requests if that is known. Returns how many it shows at least and at most, if
    /// that is known now.
    fn at(&mut self, count: Option<usize>, image: &[u8]) -> Result<Option<(usize, usize)>, String> {
        match (self, count) {
            (Judge::Exact(exact), Some(count)) => exact.check_at(count, image).map(|()| Some((count, count))),
            (Judge::Exact(exact), None) => exact.find(image).map(|least| Some((least, exact.unchanged_until()))),
            (Judge::Order(order), _) => order.check(image, false).map(|()| None),
        }
    }

    /// Up to which count, not beyond `to`, the disk is like `image` again, which it is after `from` requests.
    fn last_like(&self, image: &[u8], from: usize, to: usize) -> usize {
        match self {
            Judge::Exact(exact) => exact.last_like(image, from, to),
            Judge::Order(_) => to,
        }
    }
}

fn history(
    options: &Options,
    data: &Path,
    volume: &str,
    list: &PointList,
    header: &Header,
    mut judge: Judge,
    report: &mut Report,
) -> Result<(), Problem> {
    let window = list.window.as_ref().ok_or_else(|| Problem::failed(format!("volume {volume} has no window yet")))?;
    let first = header.base_seq.unwrap_or(0).max(window.first_seq);
    let last = window.last_seq;
    // With no marker but points among the records, and no request of unknown fate, the count follows from the seq.
    let markers: Vec<u64> = list.points.iter().map(|p| p.seq).collect();
    let countable =
        header.exact && report.unknown == 0 && list.gaps.iter().all(|g| g.to_seq.is_some_and(|to| to <= first));
    let mut known = header.base_seq.filter(|b| countable && *b >= window.first_seq);
    if let Some(base) = known {
        let records = last.saturating_sub(base) - markers.iter().filter(|m| **m > base && **m <= last).count() as u64;
        // Records of requests that were sent again after a kill, or of others' writes.
        known = known.filter(|_| records == report.requests);
    }
    let mut chance = Chance::new(options.seed);
    let mut seqs: BTreeSet<u64> = options.seqs.iter().copied().collect();
    seqs.extend((0..options.samples).map(|_| first + chance.below(last - first + 1)));
    seqs.retain(|s| !list.gaps.iter().any(|g| g.from_seq <= *s && g.to_seq.is_none_or(|to| *s < to)));
    let mut before: Option<(u64, usize, Vec<u8>)> = None;
    for seq in seqs {
        let image = read_at(data, volume, &When::Seq(seq))?;
        let count = known.and_then(|base| {
            let records = seq - base - markers.iter().filter(|m| **m > base && **m <= seq).count() as u64;
            usize::try_from(records).ok()
        });
        let shows = judge.at(count, &image).map_err(|e| Problem::failed(format!("{volume} at @{seq}: {e}")))?;
        // Writes of a gap have no seq of their own: what was copied behind it stands for all of them.
        let gap = |from: u64| list.gaps.iter().any(|g| from < g.from_seq && g.from_seq <= seq);
        if let (Some((seq_before, count_before, image_before)), Some((count, _))) = (&before, shows)
            && !gap(*seq_before)
        {
            check_rate(&judge, (*seq_before, *count_before, image_before), (seq, count))
                .map_err(|e| Problem::failed(format!("{volume}: {e}")))?;
        }
        before = shows.map(|(_, most)| (seq, most, image));
        report.images += 1;
        report.counted += u64::from(count.is_some());
    }
    if options.latest {
        let image = read_at(data, volume, &When::Latest)?;
        judge.complete(&image).map_err(|e| Problem::failed(format!("{volume} at its newest write: {e}")))?;
        report.images += 1;
    }
    Ok(())
}

/// Between two seqs without a gap lie no more requests than records.
fn check_rate(
    judge: &Judge,
    (seq_before, count_before, image): (u64, usize, &[u8]),
    (seq, count): (u64, usize),
) -> Result<(), String> {
    let too_many = |before: usize| count.saturating_sub(before) as u64 > seq - seq_before;
    // The first image may have come back later: a write of a byte that was there, zeroes over what was written last.
    if too_many(count_before) && too_many(judge.last_like(image, count_before, count)) {
        return Err(format!(
            "between @{seq_before} and @{seq} lie {} requests, more than records",
            count - count_before
        ));
    }
    Ok(())
}

/// The whole volume as it was.
fn read_at(data: &Path, volume: &str, at: &When) -> Result<Vec<u8>, Problem> {
    read_all(Image::open(data, volume, at)?.1)
}

fn read_disk(disk: &str) -> Result<Vec<u8>, Problem> {
    if disk.starts_with("nbd") {
        return read_all(disk.parse::<Uri>()?.connect()?.into());
    }
    std::fs::read(disk).map_err(|e| Problem::file(Path::new(disk), &e))
}

fn read_all(mut image: Image) -> Result<Vec<u8>, Problem> {
    let mut bytes = vec![0; usize::try_from(image.size()).map_err(|_| Problem::failed("the disk is too large"))?];
    let ranges = image.data_ranges()?;
    image.read_ranges(ranges.into_iter(), |at, data| {
        let at = usize::try_from(at).unwrap_or(usize::MAX);
        bytes[at..at + data.len()].copy_from_slice(data);
        Ok(())
    })?;
    Ok(bytes)
}

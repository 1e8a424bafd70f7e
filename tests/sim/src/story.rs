//! One seed: what is set up, what goes wrong, and what is looked at in between and at the end.

use crate::disk::{Faults, Tag};
use crate::hosts::{Lab, Setup, VAULT, image, lock};
use crate::model::{GRANULE, Mark, Model};
use crate::net::{Cut, Net, Weather};
use crate::rng::Rng;
use crate::sched::{Death, Doom, HOSTS, Host, MILLI, SECOND, Sim};
use afterimage_agent::{CacheMode, VolumeState};
use afterimage_appliance::{Appliance, KeySource};
use afterimage_base::block::Request;
use afterimage_base::buf::AlignedBuf;
use std::panic::Location;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What a seed is about.
#[derive(Debug, Clone, Copy)]
struct Flavour {
    kills: bool,
    power: bool,
    net: bool,
    room: bool,
    errors: bool,
    clocks: bool,
    /// Segments and layers are written wrongly, without a word. Nothing wrong may be shown then, but something may be lost.
    damage: bool,
}

impl Flavour {
    fn of(rng: &mut Rng) -> Flavour {
        let none = Flavour {
            kills: false,
            power: false,
            net: false,
            room: false,
            errors: false,
            clocks: false,
            damage: false,
        };
        let all = Flavour { kills: true, power: true, net: true, room: true, errors: true, clocks: true, ..none };
        match rng.below(11) {
            10 => Flavour { damage: true, kills: true, ..none },
            0 => none,
            1 => Flavour { kills: true, ..none },
            2 => Flavour { power: true, ..none },
            3 => Flavour { kills: true, power: true, ..none },
            4 => Flavour { net: true, ..none },
            5 => Flavour { room: true, kills: true, ..none },
            6 => Flavour { errors: true, power: true, ..none },
            7 => Flavour { clocks: true, net: true, kills: true, ..none },
            _ => all,
        }
    }
}

fn setup(rng: &mut Rng) -> Setup {
    let volumes = [1, 1, 1, 2, 3][rng.index(5)];
    let block = 4096;
    let size = |rng: &mut Rng| match rng.below(4) {
        // Neither a multiple of the grid nor of a region.
        0 => 70 * block + 512,
        _ => [24, 64, 128][rng.index(3)] * block,
    };
    Setup {
        sizes: (0..volumes).map(|_| size(rng)).collect(),
        ring: [1 << 20, 1 << 20, 1 << 20, 2 << 20][rng.index(4)],
        cache: if rng.below(3) == 0 { CacheMode::None } else { CacheMode::Writeback },
        queues: rng.between(1, 3),
        operations: [20, 60, 100, 150, 150, 400][rng.index(6)],
        longest: [4096, 4096, 8 << 10, 8 << 10, 16 << 10, 16 << 10, 64 << 10][rng.index(7)],
        think: [MILLI / 10, 5 * MILLI, 100 * MILLI][rng.index(3)],
        segment: [64 << 10, 256 << 10, 4 << 20][rng.index(3)],
        runs: [16, 200, 100_000][rng.index(3)],
        credit: [8 << 20, 24 << 20][rng.index(2)],
        window: if rng.below(3) == 0 { Duration::from_secs(rng.between(2, 60)) } else { Duration::from_secs(1 << 30) },
        collect: Duration::from_secs(rng.between(1, 30)),
        threads: 1 + rng.index(2),
    }
}

/// Tells the story of the simulation's seed.
pub fn tell(sim: &'static Sim) {
    let mut rng = Rng::new(sim.seed ^ 0x5707);
    let flavour = Flavour::of(&mut rng);
    let setup = setup(&mut rng);
    sim.say(&format!("{flavour:?}"));
    sim.say(&format!("{setup:?}"));
    let model = Arc::new(Model::default());
    let begun = vec![0; setup.sizes.len()];
    let lab = Arc::new(Lab {
        sim,
        model,
        net: Net::new(sim),
        board: Mutex::default(),
        load: true.into(),
        dark: false.into(),
        setup,
    });
    lock(&lab.board).begun = begun;
    let mut story = Story { lab, rng, flavour, damaged: false, ill: [false; HOSTS], healing: None };
    story.prepare();
    story.middle();
    story.end();
}

struct Story {
    lab: Arc<Lab>,
    rng: Rng,
    flavour: Flavour,
    damaged: bool,
    /// Something was wrong with the host's disk when its process was started last, or since.
    ill: [bool; HOSTS],
    /// Since when nothing goes wrong any more.
    healing: Option<u64>,
}

impl Story {
    /// Makes the disks, with something on them.
    fn prepare(&mut self) {
        for (index, size) in self.lab.setup.sizes.iter().copied().enumerate() {
            self.lab.model.add(&format!("v{index}"), size);
            let fills = self.rng.below(5);
            let mut ranges = Vec::new();
            for _ in 0..fills {
                let len = (1 + self.rng.index(16)) * 4096;
                let at = self.rng.index(size - len.min(size - 4096)) / 4096 * 4096;
                ranges.push((at, len.min(size - at) / GRANULE * GRANULE));
            }
            let (lab, mut s) = (&self.lab, self.lab.sim.state());
            let how = crate::disk::How { create: true, new: true, truncate: false };
            let disks = &mut s.disks;
            let inode = disks.of(Host::Agent).open(&image(index), how, 0).unwrap_or(0);
            disks.of(Host::Agent).set_len(inode, size as u64);
            for (at, len) in ranges {
                let (id, mark) = lab.model.with(index, |v| v.begin(Mark::Own, at, len));
                let mut data = vec![0; len];
                data.chunks_mut(GRANULE).enumerate().for_each(|(i, g)| mark.fill(at / GRANULE + i, g));
                // Nothing goes wrong yet.
                let _ = disks.write(Host::Agent, inode, &data, at as u64, true);
                lab.model.with(index, |v| v.answered(id, true, true));
            }
            disks.of(Host::Agent).settle();
        }
    }

    fn pause(&mut self) {
        let longest = [5 * MILLI, 100 * MILLI, SECOND, 8 * SECOND, 50 * SECOND][self.rng.index(5)];
        let time = 1 + self.rng.below(longest);
        self.wait(time);
    }

    fn wait(&self, time: u64) {
        let until = self.lab.sim.state().now + time;
        loop {
            let now = self.lab.sim.state().now;
            if now >= until {
                return;
            }
            self.lab.sim.wait(crate::sched::death_key(), Some(until - now), Location::caller());
            self.bury();
        }
    }

    fn bury(&self) {
        self.lab.bury(Host::Agent);
        self.lab.bury(Host::Appliance);
    }

    /// Notes how the disk of a host is whose process is about to start.
    fn examine_disk(&mut self, host: Host) {
        let f = self.lab.with_disk(host, |d| d.faults);
        self.ill[host as usize] = f.full || f.read + f.write + f.sync > 0;
    }

    /// Starts what does not run.
    fn raise(&mut self) {
        self.bury();
        if !self.lab.up(Host::Appliance) {
            self.examine_disk(Host::Appliance);
            match self.lab.start_appliance() {
                None | Some(Ok(())) => {}
                Some(Err(e)) => self.refused(Host::Appliance, &e),
            }
            // Right behind a start it shows what was vouched for without being durable.
            if self.flavour.power && self.healing.is_none() && self.rng.below(4) == 0 {
                let time = self.rng.below(3 * SECOND);
                self.wait(time);
                self.lab.sim.die(Host::Appliance, Death::PowerCut);
                return;
            }
        }
        if !self.lab.up(Host::Agent) {
            self.examine_disk(Host::Agent);
            self.lab.start_agent();
        }
        let refused = lock(&self.lab.board).refused.take();
        if let Some(e) = refused {
            self.refused(Host::Agent, &e);
        }
    }

    /// A process did not start: that may be only while something is wrong with its disk.
    fn refused(&mut self, host: Host, why: &str) {
        self.lab.sim.say(&format!("{host:?} does not start: {why}"));
        if !self.ill[host as usize] && !self.damaged {
            crate::fail(&format!("{host:?} does not start: {why}"));
        }
        self.lab.sim.die(host, Death::Kill);
    }

    fn middle(&mut self) {
        self.raise();
        let steps = self.rng.between(3, 16);
        for _ in 0..steps {
            self.pause();
            self.bury();
            self.act();
            if self.rng.below(4) != 0 {
                self.raise();
            }
        }
    }

    fn act(&mut self) {
        let f = self.flavour;
        match self.rng.below(12) {
            0 | 1 if f.kills || f.power => self.strike(Host::Agent),
            2 | 3 if f.kills || f.power => self.strike(Host::Appliance),
            4 if f.net => {
                let how = [Cut::Both, Cut::Late, Cut::Silent][self.rng.index(3)];
                self.lab.sim.say(&format!("the network is cut: {how:?}"));
                self.lab.sim.state().count("cut of the network");
                self.lab.net.cut(how);
            }
            5 if f.net => self.weather(),
            6 if f.clocks => {
                let host = [Host::Agent, Host::Appliance][self.rng.index(2)];
                let hour = 3600 * i64::try_from(SECOND).unwrap_or(0);
                let skew = [-hour, 0, hour][self.rng.index(3)];
                let mut s = self.lab.sim.state();
                s.hosts[host as usize].skew = skew;
                s.count("jump of a clock");
                s.say(&format!("{host:?}: the clock jumps to {skew}"));
            }
            5..=7 if f.damage => {
                let n = [5, 50][self.rng.index(2)];
                let (flip, stray) = if self.rng.below(2) == 0 { (n, 0) } else { (0, n) };
                let only = Some([Tag::Segment, Tag::Layer][self.rng.index(2)]);
                self.damaged = true;
                (0..self.lab.model.len()).for_each(|v| self.lab.model.with(v, |v| v.forgiven = true));
                self.faults(Host::Appliance, Faults { flip, stray, only, ..Faults::default() }, "wrong writes");
            }
            7 if f.room => self.faults(Host::Appliance, Faults { full: true, ..Faults::default() }, "full disk"),
            7 if f.errors => {
                let faults = self.errors(4, None);
                self.faults(Host::Appliance, faults, "errors of the appliance's disk");
            }
            10 if f.errors => {
                let faults = self.errors(5, Some(Tag::Disk));
                self.faults(Host::Agent, faults, "errors of the protected disk");
            }
            11 if f.errors && self.rng.below(3) == 0 => {
                self.lab.sim.say("the vault is lost");
                self.lab.sim.die(Host::Appliance, Death::Kill);
                self.bury();
                self.lab.with_disk(Host::Appliance, |d| *d = crate::disk::Disk::default());
                (0..self.lab.model.len()).for_each(|v| self.lab.model.with(v, |v| v.lost = true));
                self.lab.sim.state().count("lost vault");
            }
            8 => self.point(),
            9 if f.kills => self.stop(),
            _ => self.look(),
        }
        if self.rng.below(3) == 0 {
            self.lab.with_disk(Host::Appliance, |d| d.faults = Faults::default());
            self.lab.with_disk(Host::Agent, |d| d.faults = Faults::default());
            self.lab.net.set(Weather::FAIR);
        }
    }

    /// One of so many kinds of errors, rare or frequent: reads, writes, syncs, short results, a full disk.
    fn errors(&mut self, kinds: usize, only: Option<Tag>) -> Faults {
        let which = self.rng.index(kinds);
        let n = [2, 20, 200][self.rng.index(3)];
        let one = |i, on| if i == which { on } else { 0 };
        let (read, write, sync, short) = (one(0, n), one(1, n), one(2, n), one(3, 500));
        Faults { read, write, sync, short, full: which == 4, only, ..Faults::default() }
    }

    fn faults(&mut self, host: Host, faults: Faults, what: &'static str) {
        self.ill[host as usize] = true;
        self.lab.with_disk(host, |d| d.faults = faults);
        let mut s = self.lab.sim.state();
        s.count(what);
        s.say(&format!("{host:?}: {faults:?}"));
    }

    fn strike(&mut self, host: Host) {
        let f = self.flavour;
        let death = if f.power && (!f.kills || self.rng.below(2) == 0) { Death::PowerCut } else { Death::Kill };
        if self.rng.below(3) == 0 {
            self.lab.sim.die(host, death);
        } else {
            // At any step, or at one of a kind: a sync, a rename, a new file.
            let only = [None, None, Some(b'S'), Some(b'n'), Some(b'o'), Some(b'W')][self.rng.index(6)];
            let most = if only.is_some() { [2, 10, 50] } else { [10, 300, 5000] }[self.rng.index(3)];
            let left = self.rng.below(most);
            self.lab.sim.state().hosts[host as usize].doom = Some(Doom { left, only, death });
        }
    }

    fn weather(&mut self) {
        let mut w = Weather::FAIR;
        match self.rng.below(4) {
            0 => w.delay = (10 * MILLI, 2 * SECOND),
            1 => w.rate = self.rng.between(10_000, 1_000_000),
            2 => w.garbage = self.rng.between(1, 50),
            _ => {
                w.away = Some(self.rng.below(2) == 0);
                self.lab.net.cut(Cut::Both);
            }
        }
        self.lab.sim.state().count("bad network");
        self.lab.sim.say(&format!("{w:?}"));
        self.lab.net.set(w);
    }

    fn point(&mut self) {
        let name = format!("p{}", self.rng.below(1000));
        self.lab.on(Host::Agent, "point", SECOND, move |lab| {
            let volumes = lock(&lab.board).volumes.clone();
            for v in volumes {
                // It is refused during a gap.
                let _ = v.create_point(&name, false);
            }
        });
    }

    fn stop(&mut self) {
        self.lab.sim.state().count("stop in order");
        if self.rng.below(2) == 0 {
            if self.lab.up(Host::Agent) && lock(&self.lab.board).volumes.len() == self.lab.setup.sizes.len() {
                self.lab.stop_agent();
            }
        } else if self.lab.up(Host::Appliance) {
            self.lab.stop_appliance();
        }
        self.bury();
    }

    /// Looks at some seqs that the appliance offers.
    fn look(&mut self) {
        let (mut rng, damaged) = (self.rng.fork(), self.damaged);
        self.lab.ask(move |lab, appliance| {
            for index in 0..lab.model.len() {
                examine(lab, appliance, index, &mut rng, 3, damaged);
            }
        });
    }

    /// Everything heals; the replica must converge.
    fn end(&mut self) {
        for host in [Host::Agent, Host::Appliance] {
            self.lab.with_disk(host, |d| d.faults = Faults::default());
            self.lab.sim.state().hosts[host as usize].doom = None;
        }
        self.lab.net.set(Weather::FAIR);
        self.lab.sim.say("everything heals");
        let now = self.lab.sim.state().now;
        self.healing = Some(now);
        let until = now + 1200 * SECOND;
        // What was begun by the last act shows by then.
        self.wait(300 * MILLI);
        while !(self.live() && self.appliance_has_all()) {
            self.raise();
            if self.damaged && self.lab.sim.state().now > now + 60 * SECOND {
                break;
            }
            let failed = self.lab.ask(|_, a| a.volumes().iter().any(|v| v.failure.is_some()));
            let refused = lock(&self.lab.board).status.iter().any(|s| s.state == VolumeState::Error);
            if failed == Some(true) || refused && self.rng.below(20) == 0 {
                // What an operator does about a volume that takes no more.
                self.lab.stop_appliance();
                continue;
            }
            if self.lab.sim.state().now > until {
                let status = lock(&self.lab.board).status.clone();
                crate::fail(&format!("the replica does not converge: {status:?}"));
            }
            self.wait(200 * MILLI);
            if self.lab.sim.state().now + 1100 * SECOND > until {
                self.lab.load.store(false, Ordering::Relaxed);
            }
        }
        if self.damaged {
            self.look();
        } else {
            self.compare();
        }
        self.stop_all();
        self.check();
    }

    fn live(&self) -> bool {
        let board = lock(&self.lab.board);
        let good = |s: &afterimage_agent::VolumeStatus| {
            s.state == VolumeState::Live && s.connected && s.seq_durable == s.seq_acked && s.dirty_bytes == 0
        };
        board.working == 0
            && board.status.len() == self.lab.setup.sizes.len()
            && board.status.iter().all(good)
            && board.appliance.is_some()
    }

    /// Whether the appliance itself holds what the agent believes that it holds: a connection may be half open.
    fn appliance_has_all(&self) -> bool {
        let want: Vec<(String, u64)> =
            lock(&self.lab.board).status.iter().map(|s| (s.name.clone(), s.seq_acked)).collect();
        let has =
            move |a: &Appliance, name: &str, seq| a.volumes().iter().any(|v| v.name == name && v.durable_seq == seq);
        self.lab.ask(move |_, a| want.iter().all(|(name, seq)| has(a, name, *seq))) == Some(true)
    }

    fn compare(&mut self) {
        for index in 0..self.lab.model.len() {
            let disk = self.lab.disk(index);
            if let Err(e) = self.lab.model.with(index, |v| v.check(&disk, false)) {
                crate::fail(&e);
            }
            let image = self.lab.model.with(index, |v| v.image(u64::MAX).to_vec());
            if let Some(at) = disk.iter().zip(&image).position(|(a, b)| a != b) {
                crate::fail(&format!("volume {index}: the newest image differs from the disk at byte {at}"));
            }
        }
        let mut rng = self.rng.fork();
        let looked = self.lab.ask(move |lab, appliance| {
            for index in 0..lab.model.len() {
                let last = lab.model.with(index, |v| v.last());
                let newest =
                    appliance.choose(&format!("v{index}"), afterimage_appliance::history::timeline::Wish::Latest);
                if !newest.as_ref().is_ok_and(|n| *n == last) {
                    crate::fail(&format!("volume {index}: the newest seq is {last}, and {newest:?} is offered"));
                }
                examine(lab, appliance, index, &mut rng, 8, false);
            }
        });
        if looked.is_none() {
            crate::fail("the appliance is gone, and nobody killed it");
        }
    }

    fn stop_all(&mut self) {
        if self.rng.below(2) == 0 {
            self.lab.stop_agent();
            self.lab.stop_appliance();
        } else {
            self.lab.sim.die(Host::Agent, Death::Kill);
            self.lab.sim.die(Host::Appliance, Death::Kill);
        }
        self.bury();
    }

    /// The offline check finds nothing wrong.
    fn check(&mut self) {
        self.lab.sim.state().hosts[Host::Appliance as usize].up = true;
        let report = self.lab.on(Host::Appliance, "check", 3600 * SECOND, |_| {
            let key = KeySource::File(Lab::vault().join("key"));
            afterimage_appliance::check::check(Lab::vault(), Some(&key)).map_err(|e| e.to_string())
        });
        match report {
            Some(Ok(report)) if report.damages.is_empty() => {}
            Some(Ok(_)) if self.damaged => self.lab.sim.state().count("damage named by check"),
            Some(Err(_)) if self.damaged => {}
            Some(Ok(report)) => crate::fail(&format!("check of {VAULT} finds: {:?}", report.damages)),
            Some(Err(e)) => crate::fail(&format!("check of {VAULT}: {e}")),
            None => crate::fail("check died"),
        }
    }
}

/// Compares what the appliance offers of a volume with the model: the newest, the points, and some more.
fn examine(lab: &Lab, appliance: &Appliance, index: usize, rng: &mut Rng, more: usize, damaged: bool) {
    use afterimage_appliance::history::timeline::Wish;
    let name = format!("v{index}");
    let Ok(latest) = appliance.choose(&name, Wish::Latest) else { return };
    let last = lab.model.with(index, |v| v.last());
    let mut seqs = vec![latest];
    seqs.extend(appliance.points(&name).unwrap_or_default().iter().rev().take(3).map(|p| p.seq));
    seqs.extend((0..more).map(|_| 1 + rng.below(last.max(1))));
    for seq in seqs {
        if appliance.check_seq(&name, seq).is_err() {
            continue;
        }
        if !lab.model.with(index, |v| v.valid(seq)) {
            let bounds = lab.model.with(index, |v| v.bounds());
            let gaps = appliance.gaps(&name);
            let window = appliance.volumes();
            crate::fail(&format!(
                "I6: volume {name}: seq {seq} is offered, and lies in a gap: sent were {bounds:?}, the appliance knows {gaps:?} and {window:?}"
            ));
        }
        let bytes = match read(appliance, &name, seq, lab.setup.sizes[index]) {
            Ok(bytes) => bytes,
            Err(e) => {
                let reads = lab.sim.state().disks.of(Host::Appliance).faults.read == 0;
                if !damaged && reads && appliance.check_seq(&name, seq).is_ok() {
                    crate::fail(&format!("volume {name}: seq {seq} is offered, and cannot be read: {e}"));
                }
                continue;
            }
        };
        lab.sim.state().note(b'=', seq);
        let wrong = lab.model.with(index, |v| {
            let image = v.image(seq);
            image.iter().zip(&bytes).position(|(a, b)| a != b)
        });
        if let Some(at) = wrong {
            crate::fail(&format!("volume {name}: the image of seq {seq} is wrong at byte {at}"));
        }
        lab.sim.state().count("image compared");
    }
}

fn read(appliance: &Appliance, name: &str, seq: u64, size: usize) -> Result<Vec<u8>, String> {
    let device = appliance.open_at(name, seq).map_err(|e| e.to_string())?;
    let mut queue = device.open_queue().map_err(|e| e.to_string())?;
    let read = afterimage_base::simple::call(&mut *queue, Request::Read { offset: 0, buf: AlignedBuf::zeroed(size) });
    Ok(read.map_err(|e| e.to_string())?.map(|b| b.to_vec()).unwrap_or_default())
}

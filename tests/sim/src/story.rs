//! One seed: what is set up, what goes wrong, and what is looked at in between and at the end.

mod about;
mod look;
mod online;
mod setup;
mod trouble;

use crate::disk::{Faults, Tag};
use crate::hosts::{Lab, image, lock};
use crate::model::{GRANULE, Mark, Model};
use crate::net::{Cut, Net, Peer, Weather};
use crate::rng::Rng;
use crate::sched::{Death, HOSTS, Host, MILLI, SECOND, Sim};
pub use about::About;
use afterimage_agent::VolumeState;
use afterimage_appliance::{Appliance, VolumeInfo};
use setup::Flavour;
use std::panic::Location;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

/// How fast the appliance brings segments into order: so slowly that much happens meanwhile, or at once.
fn order(seed: u64) -> u64 {
    [64 << 10, 1 << 20, 64 << 20][Rng::new(seed ^ 0x0de5).index(3)]
}

/// Tells the story of the simulation's seed: of anything, or about one thing only.
pub fn tell(sim: &'static Sim, about: Option<About>) {
    let mut rng = Rng::new(sim.seed ^ 0x5707);
    let flavour = Flavour::of(&mut rng);
    let mut setup = setup::setup(&mut rng);
    setup.order = order(sim.seed);
    if let Some(about) = about {
        about.shape(&mut setup);
        sim.say(&format!("about {about:?}"));
    }
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
    let mut story = Story {
        lab,
        rng,
        flavour,
        damaged: false,
        ill: [false; HOSTS],
        healing: None,
        copies: Vec::new(),
        differing: Vec::new(),
    };
    story.prepare();
    match about {
        Some(about) => story.only(about),
        None => story.middle(),
    }
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
    /// Older copies of the vault.
    copies: Vec<trouble::Copy>,
    /// Volumes whose disk was written behind the agent's back, until that is repaired.
    differing: Vec<usize>,
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
                None => {}
                Some(Ok(())) => self.nothing_is_lost(),
                Some(Err(e)) => self.refused(Host::Appliance, &e),
            }
            // Right behind a start it shows what was vouched for without being durable.
            if self.flavour.power && self.healing.is_none() && self.rng.below(2) == 0 {
                // An agent that waits between two attempts may take so long to come.
                let longest = [SECOND, 6 * SECOND, 15 * SECOND][self.rng.index(3)];
                let time = self.rng.below(longest);
                self.wait(time);
                self.lab.sim.die(Host::Appliance, Death::PowerCut);
                return;
            }
        }
        if !self.lab.up(Host::Agent) {
            if self.flavour.files && self.healing.is_none() && self.rng.below(3) == 0 {
                let which = 1 + self.rng.below(7);
                self.lose_files(which);
            }
            // What the last one said before it died is judged by how its disk was.
            self.agent_refused();
            self.examine_disk(Host::Agent);
            self.lab.start_agent();
        }
        self.agent_refused();
    }

    fn agent_refused(&mut self) {
        let refused = lock(&self.lab.board).refused.take();
        if let Some(e) = refused {
            self.refused(Host::Agent, &e);
        }
    }

    /// What the appliance has acknowledged it finds again, unless its disk was told to forget it (I5).
    fn nothing_is_lost(&self) {
        let lost = self.lab.ask(|_, a| a.started.damaged_volumes.clone()).unwrap_or_default();
        if !lost.is_empty() && !self.ill[Host::Appliance as usize] && !self.damaged {
            crate::fail(&format!("I5: the appliance lacks records of {lost:?} that it had acknowledged"));
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
        match self.rng.below(18) {
            12 | 13 if f.files => self.file_errors(),
            14 if f.copies => self.copy_vault(),
            15 if f.versions => self.change_version(),
            16 if f.online && self.rng.below(2) == 0 => self.resize(),
            16 if f.online => self.verify(),
            17 if f.online => self.write_behind(),
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

    /// Everything heals; the replica must converge.
    fn end(&mut self) {
        for host in [Host::Agent, Host::Appliance] {
            self.lab.with_disk(host, |d| d.faults = Faults::default());
            self.lab.sim.state().hosts[host as usize].doom = None;
        }
        self.lab.net.set(Weather::FAIR);
        if self.flavour.versions {
            self.lab.net.set_peer(Peer::Same);
            self.lab.net.cut(Cut::Both);
        }
        self.lab.sim.say("everything heals");
        let now = self.lab.sim.state().now;
        self.healing = Some(now);
        // What was begun by the last act shows by then.
        self.wait(300 * MILLI);
        self.converge(now);
        if !self.damaged && self.repair() {
            self.wait(300 * MILLI);
            self.converge(now);
        }
        if self.damaged {
            self.look();
        } else {
            self.compare();
        }
        self.stop_all();
        self.check();
    }

    /// Waits until disks and histories are equal again.
    fn converge(&mut self, now: u64) {
        let until = now + 1200 * SECOND;
        while !(self.live() && self.appliance_has_all()) {
            self.raise();
            if self.damaged && self.lab.sim.state().now > now + 60 * SECOND {
                break;
            }
            let failed = self.lab.ask(|_, a| a.volumes().iter().any(|v| v.failure.is_some()));
            let refused = lock(&self.lab.board).status.iter().any(|s| s.state == VolumeState::Error);
            if failed == Some(true) || refused && self.rng.below(20) == 0 {
                // What an operator does about a volume that takes no more.
                if failed != Some(true) && self.rng.below(2) == 0 && self.volumes() {
                    self.lab.stop_agent();
                    self.bury();
                } else {
                    self.lab.stop_appliance();
                }
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

    /// Whether the appliance itself holds, and can show, what the agent believes that it holds: a connection may be half open,
    /// and what could not be read at the appliance's start has stopped the volume there.
    fn appliance_has_all(&self) -> bool {
        let want: Vec<(String, u64)> =
            lock(&self.lab.board).status.iter().map(|s| (s.name.clone(), s.seq_acked)).collect();
        let good = |v: &VolumeInfo| v.connected && v.failure.is_none();
        let has = move |a: &Appliance, name: &str, seq| {
            a.volumes().iter().any(|v| v.name == name && v.durable_seq == seq && good(v))
        };
        self.lab.ask(move |_, a| want.iter().all(|(name, seq)| has(a, name, *seq))) == Some(true)
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
}

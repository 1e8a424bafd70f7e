//! Stories about one thing: what chance brings together once in thousands of seeds happens here again and again.

use super::Story;
use super::setup::Flavour;
use crate::disk::{Faults, Tag};
use crate::hosts::{Setup, lock};
use crate::net::{Cut, Weather};
use crate::sched::{Death, Doom, Host, MILLI, SECOND};
use afterimage_agent::VolumeState;
use std::sync::atomic::Ordering;

/// What a story is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum About {
    /// The appliance is killed between a write and its sync, vouches for what it finds, and then its host loses power
    Found,
    /// Syncs of the appliance's segments fail, and then its host loses power
    Sync,
    /// The appliance is killed, and its segments cannot be read when it starts
    Unread,
    /// The agent is killed between two steps of a write
    Publish,
    /// The agent's files are gone at a start, which does not come to its end
    Start,
    /// The agent is killed in its first start, and some time after the second its host loses power
    First,
    /// The agent has no room for what another size of a volume needs
    Size,
}

impl About {
    /// How often it happens in one story.
    const fn rounds(self) -> u64 {
        match self {
            About::Publish => 12,
            About::First => 1,
            _ => 3,
        }
    }

    /// A load that lasts until the story ends, and leaves time for what happens.
    pub(super) fn shape(self, setup: &mut Setup) {
        setup.operations = u64::MAX;
        // A client that thinks for longer would let others wait for what it has under way.
        setup.think = if self == About::Publish { 5 * MILLI } else { 100 * MILLI };
        setup.queues = setup.queues.min(2);
        if self == About::Unread {
            // Much is read at a start: many segments, and no layers that make reading them superfluous.
            (setup.segment, setup.runs) = (64 << 10, 100_000);
        }
    }
}

impl Story {
    pub(super) fn only(&mut self, about: About) {
        self.flavour = Flavour::default();
        if about == About::First {
            // While it makes the names of its folders and files durable.
            self.threaten(Host::Agent, Some(b'y'), 4, Death::Kill);
            self.raise();
            self.has_died(Host::Agent);
        }
        self.come_together();
        for _ in 0..about.rounds() {
            let longest = if about == About::Publish {
                // Whatever the appliance has got so far.
                self.raise();
                20 * MILLI
            } else {
                self.come_together();
                SECOND
            };
            let pause = self.rng.below(longest);
            self.wait(pause);
            match about {
                About::Found => self.found(),
                About::Sync => self.failed_syncs(),
                About::Unread => self.unread(),
                About::Publish => self.killed_writes(),
                About::Start => self.cut_off_start(),
                About::Size => self.refused_size(),
                About::First => self.lab.sim.die(Host::Agent, Death::PowerCut),
            }
        }
        self.lab.load.store(false, Ordering::Relaxed);
    }

    /// Waits until something is so, or not longer than that. Whether it is.
    fn until(&mut self, limit: u64, is: impl Fn(&Story) -> bool) -> bool {
        let until = self.lab.sim.state().now + limit;
        while !is(self) {
            if self.lab.sim.state().now > until {
                return false;
            }
            self.wait(20 * MILLI);
        }
        true
    }

    fn connected(&self) -> bool {
        let board = lock(&self.lab.board);
        let good = |s: &afterimage_agent::VolumeStatus| s.state == VolumeState::Live && s.connected;
        board.status.len() == self.lab.setup.sizes.len() && board.status.iter().all(good)
    }

    /// Both run, and the volumes are live, if that comes about within some seconds.
    fn come_together(&mut self) {
        for _ in 0..15 {
            self.raise();
            if self.until(SECOND, Story::connected) {
                return;
            }
        }
    }

    /// Lets a host die at one of the next operations of a kind. Whether it has.
    fn doom(&mut self, host: Host, only: Option<u8>, most: u64, death: Death) -> bool {
        self.threaten(host, only, most, death);
        self.has_died(host)
    }

    fn threaten(&mut self, host: Host, only: Option<u8>, most: u64, death: Death) {
        let left = self.rng.below(most);
        self.lab.sim.state().hosts[host as usize].doom = Some(Doom { left, only, death });
    }

    fn has_died(&mut self, host: Host) -> bool {
        let dead = self.until(3 * SECOND, |s| !s.lab.up(host));
        self.lab.sim.state().hosts[host as usize].doom = None;
        dead
    }

    fn heal(&self, host: Host) {
        self.lab.with_disk(host, |d| d.faults = Faults::default());
    }

    fn found(&mut self) {
        if !self.doom(Host::Appliance, Some(b'S'), 4, Death::Kill) {
            return;
        }
        self.raise();
        self.until(30 * SECOND, Story::connected);
        self.lab.sim.die(Host::Appliance, Death::PowerCut);
    }

    fn failed_syncs(&mut self) {
        let sync = [100, 300, 600][self.rng.index(3)];
        let faults = Faults { sync, only: Some(Tag::Segment), ..Faults::default() };
        self.faults(Host::Appliance, faults, "errors of the appliance's disk");
        let time = self.rng.below(2 * SECOND);
        self.wait(time);
        self.heal(Host::Appliance);
        self.lab.sim.die(Host::Appliance, Death::PowerCut);
    }

    fn unread(&mut self) {
        self.lab.sim.die(Host::Appliance, Death::Kill);
        self.bury();
        // Rare enough that a start gets some way.
        let read = [10, 30, 100][self.rng.index(3)];
        let faults = Faults { read, only: Some(Tag::Segment), ..Faults::default() };
        self.faults(Host::Appliance, faults, "errors of the appliance's disk");
        for _ in 0..8 {
            self.raise();
            if self.lab.up(Host::Appliance) {
                // So long an agent may wait before it comes again.
                self.until(12 * SECOND, Story::connected);
                break;
            }
        }
        self.heal(Host::Appliance);
        self.lab.sim.die(Host::Appliance, Death::Kill);
    }

    fn killed_writes(&mut self) {
        self.doom(Host::Agent, None, 60, Death::Kill);
    }

    fn refused_size(&mut self) {
        let faults = Faults { full: true, only: Some(Tag::Intent), ..Faults::default() };
        self.faults(Host::Agent, faults, "errors of the agent's own files");
        self.resize();
        self.wait(SECOND);
        self.heal(Host::Agent);
    }

    /// The ring holds what the appliance has not got, and is lost; the start that finds that dies, or has no room.
    fn cut_off_start(&mut self) {
        self.lab.net.set(Weather { away: Some(true), ..Weather::FAIR });
        self.lab.net.cut(Cut::Both);
        let time = self.rng.below(2 * SECOND);
        self.wait(time);
        let death = [Death::Kill, Death::PowerCut][self.rng.index(2)];
        self.lab.sim.die(Host::Agent, death);
        self.bury();
        // The write-intent map would tell what the ring held.
        let which = [0b101, 0b101, 0b111][self.rng.index(3)];
        self.lose_files(which);
        if self.rng.below(2) == 0 {
            let only = Some([Tag::Intent, Tag::Intent, Tag::Dirty, Tag::Meta][self.rng.index(4)]);
            let faults = Faults { full: true, only, ..Faults::default() };
            self.faults(Host::Agent, faults, "errors of the agent's own files");
            self.raise();
            self.wait(100 * MILLI);
            self.raise();
            self.heal(Host::Agent);
        } else {
            self.raise();
            self.doom(Host::Agent, None, 80, death);
        }
        self.lab.net.set(Weather::FAIR);
    }
}

//! Who runs next, who waits, who has died.

use super::{Death, Doing, Host, LONGEST, MILLI, State, Thread, death_key, join_key};
use crate::strand::Place;
use xxhash_rust::xxh3::xxh3_64_with_seed;

impl State {
    /// Where every thread stands.
    #[must_use]
    pub fn threads(&self) -> String {
        let mut out = format!("simulated time {} ms, {} steps\n", self.now / MILLI, self.steps);
        for (id, t) in self.threads.iter().enumerate() {
            if matches!(t.doing, Doing::Done | Doing::Frozen) {
                continue;
            }
            let current = if id == self.current { " <- runs" } else { "" };
            out.push_str(&format!("  {id:4} {:?} {:<12} {:?} {:?}{current}\n", t.host, t.name, t.doing, t.at));
        }
        out
    }

    /// The host of the running thread.
    #[must_use]
    pub fn host(&self) -> Host {
        self.threads[self.current].host
    }

    /// The thread that runs.
    #[must_use]
    pub fn current(&self) -> usize {
        self.current
    }

    pub(super) fn place(&self, thread: usize) -> Place {
        self.threads[thread].strand.place()
    }

    /// Whether the running thread's host lives.
    #[must_use]
    pub fn alive(&self) -> bool {
        self.threads[self.current].doing != Doing::Frozen
    }

    /// Counts something.
    pub fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    /// Takes something into the trace's hash.
    pub fn note(&mut self, what: u8, value: u64) {
        let mut b = [0; 17];
        b[0] = what;
        b[1..9].copy_from_slice(&value.to_le_bytes());
        b[9..].copy_from_slice(&self.now.to_le_bytes());
        self.hash = xxh3_64_with_seed(&b, self.hash);
    }

    /// The trace's hash so far.
    #[must_use]
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// Says what happens.
    pub fn say(&mut self, what: &str) {
        self.hash = xxh3_64_with_seed(what.as_bytes(), self.hash);
        if self.print {
            let t = &self.threads[self.current];
            println!("{:>12.6} {:?}/{}: {what}", self.now as f64 / 1e9, t.host, t.name);
        }
    }

    /// One step of the running thread's host, at which it may be doomed.
    pub fn step(&mut self, what: u8) {
        let host = self.host();
        self.steps += 1;
        let state = &mut self.hosts[host as usize];
        if let Some(doom) = &mut state.doom
            && doom.only.is_none_or(|only| only == what)
        {
            let (left, death) = (doom.left, doom.death);
            doom.left = left.saturating_sub(1);
            if left == 0 && state.up {
                self.die(host, death);
            }
        }
    }

    pub(super) fn die(&mut self, host: Host, death: Death) {
        let state = &mut self.hosts[host as usize];
        if !state.up {
            return;
        }
        (state.up, state.doom, state.death) = (false, None, Some(death));
        state.life += 1;
        if death == Death::PowerCut {
            state.boot = self.rng.word();
        }
        self.count(match (host, death) {
            (Host::Agent, Death::Kill) => "kill of the agent",
            (Host::Agent, Death::PowerCut) => "power cut of the agent's host",
            (_, Death::Kill) => "kill of the appliance",
            (_, Death::PowerCut) => "power cut of the appliance's host",
        });
        self.say(&format!("{host:?} dies: {death:?}"));
        for t in self.threads.iter_mut().filter(|t| t.host == host && t.doing != Doing::Done) {
            t.doing = Doing::Frozen;
        }
        let threads = &self.threads;
        self.live.retain(|t| threads[*t].doing != Doing::Frozen);
        if death == Death::PowerCut {
            self.disks.power_cut(host);
        }
        let life = self.hosts[host as usize].life;
        self.disks.forget_locks(host, life);
        self.wake(death_key(), true);
        let frozen: Vec<usize> = (0..self.threads.len()).filter(|t| self.threads[*t].doing == Doing::Frozen).collect();
        frozen.into_iter().for_each(|t| self.wake(join_key(t), true));
    }

    pub(super) fn wake(&mut self, key: usize, all: bool) {
        let waits = |t: &Thread| matches!(t.doing, Doing::Waiting { key: k, .. } if k == key);
        let mut woken: Vec<usize> = self.live.iter().copied().filter(|t| waits(&self.threads[*t])).collect();
        if !all && woken.len() > 1 {
            let one = self.rng.index(woken.len());
            woken = vec![woken[one]];
        }
        for t in woken {
            let t = &mut self.threads[t];
            (t.doing, t.notified) = (Doing::Ready, true);
        }
    }

    /// Chooses who runs next, letting time pass if nobody can.
    pub(super) fn choose(&mut self) -> usize {
        self.now += 200 + self.rng.below(1500);
        let mut ready = [0; 64];
        loop {
            let (mut n, mut next) = (0, u64::MAX);
            for id in &self.live {
                let can = match self.threads[*id].doing {
                    Doing::Ready => true,
                    Doing::Waiting { until: Some(until), .. } => {
                        next = next.min(until);
                        until <= self.now
                    }
                    _ => false,
                };
                if can && n < ready.len() {
                    ready[n] = *id;
                    n += 1;
                }
            }
            if n > 0 {
                let chosen = self.pick(&ready[..n]);
                self.threads[chosen].doing = Doing::Ready;
                self.current = chosen;
                self.note(b'r', chosen as u64);
                return chosen;
            }
            if next == u64::MAX || next > LONGEST {
                println!("{}", self.threads());
                crate::fail("nothing can go on any more: every thread waits for another one");
            }
            self.now = next;
        }
    }

    fn pick(&mut self, ready: &[usize]) -> usize {
        let stay = self.policy.stay;
        if ready.contains(&self.current) && self.rng.permille(stay) {
            return self.current;
        }
        if self.rng.permille(5) {
            self.policy.starve = (self.rng.below(4) == 0).then(|| self.rng.index(5));
        }
        let chosen = ready[self.rng.index(ready.len())];
        match self.policy.starve {
            Some(bit) if chosen >> bit & 1 == 1 => ready.iter().copied().find(|t| t >> bit & 1 == 0).unwrap_or(chosen),
            _ => chosen,
        }
    }
}

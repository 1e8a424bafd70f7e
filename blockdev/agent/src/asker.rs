//! Questions to the appliance that are under way: which blocks it has, by hash ([`afterimage_format::compare`]).
//!
//! Whoever compares (the sync, a verification) gets a [`Ticket`] for each question and looks at it later, so many can be on the
//! way at once and the latency of the link does not add up. The session's sender fetches the questions, its reader brings the answers.
//! At most [`MAX_QUERIES`] are known at a time, answered or not, each with at most [`MAX_HASHES`] hashes: memory is
//! bounded whatever the appliance does. It may answer only what was asked, once, with the number of hashes
//! asked for. With the end of a session all its questions are lost and can be asked again in the next.

use afterimage_base::world;
use afterimage_base::world::sync::Condvar;
use afterimage_format::compare::{BlockHasher, HashQuery, Hashes, MAX_HASHES, MAX_QUERIES, Told};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A question without answer for so long counts as answered with "cannot tell".
const PATIENCE: Duration = Duration::from_secs(10);

/// Whether questions can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// There is no session now.
    Away,
    /// The appliance does not know the question: it speaks version 1.
    Old,
    /// They can.
    Open,
}

/// What became of a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    Pending,
    Told(Told),
    /// The session has ended.
    Lost,
}

struct Question {
    blocks: usize,
    /// Nobody waits for it any more.
    dropped: bool,
    told: Option<Told>,
}

struct Inner {
    reach: Reach,
    hasher: Arc<BlockHasher>,
    next: u64,
    known: BTreeMap<u64, Question>,
    out: VecDeque<HashQuery>,
}

/// See the module.
pub(crate) struct Asker {
    inner: Mutex<Inner>,
    changed: Condvar,
}

/// A question under way. Dropping it is saying that the answer does not matter any more.
pub(crate) struct Ticket {
    asker: Arc<Asker>,
    id: u64,
    asked: Instant,
    /// What the answer's hashes are made with.
    pub(crate) hasher: Arc<BlockHasher>,
}

impl Asker {
    pub(crate) fn new() -> Asker {
        let inner = Inner {
            reach: Reach::Away,
            hasher: Arc::new(BlockHasher::new([0; 32])),
            next: 1,
            known: BTreeMap::new(),
            out: VecDeque::new(),
        };
        Asker { inner: Mutex::new(inner), changed: Condvar::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A session begins, with a key of its own.
    pub(crate) fn begin(&self, knows_hashes: bool) {
        let mut inner = self.lock();
        // Without randomness nothing is compared, as with an old appliance.
        let key = world::random_array();
        inner.reach = if knows_hashes && key.is_ok() { Reach::Open } else { Reach::Old };
        inner.hasher = Arc::new(BlockHasher::new(key.unwrap_or_default()));
        self.changed.notify_all();
    }

    /// The session has ended.
    pub(crate) fn end(&self) {
        let mut inner = self.lock();
        inner.reach = Reach::Away;
        inner.known.clear();
        inner.out.clear();
        self.changed.notify_all();
    }

    /// What the hashes of questions asked now are made with.
    pub(crate) fn hasher(&self) -> Arc<BlockHasher> {
        Arc::clone(&self.lock().hasher)
    }

    pub(crate) fn reach(&self) -> Reach {
        self.lock().reach
    }

    /// Asks for the blocks of `bytes` as they were at `seq`, which is durable. `None` if that cannot be asked now. The caller
    /// wakes the sender.
    pub(crate) fn ask(self: &Arc<Self>, seq: u64, bytes: Range<u64>) -> Option<Ticket> {
        let mut inner = self.lock();
        if inner.reach != Reach::Open || inner.known.len() >= MAX_QUERIES {
            return None;
        }
        let (id, hasher) = (inner.next, Arc::clone(&inner.hasher));
        let query = HashQuery { id, seq, offset: bytes.start, len: bytes.end - bytes.start, key: *hasher.key() };
        let blocks = usize::try_from(query.blocks()).ok().filter(|b| *b <= MAX_HASHES)?;
        inner.next += 1;
        inner.known.insert(id, Question { blocks, dropped: false, told: None });
        inner.out.push_back(query);
        Some(Ticket { asker: Arc::clone(self), id, asked: world::now(), hasher })
    }

    /// What the sender has to send next.
    pub(crate) fn outgoing(&self) -> Option<HashQuery> {
        self.lock().out.pop_front()
    }

    /// Takes an answer from the appliance.
    ///
    /// # Errors
    /// How it breaks the protocol.
    pub(crate) fn answer(&self, hashes: Hashes) -> Result<(), &'static str> {
        let mut inner = self.lock();
        let never = "it answered a question that was not asked";
        let unsent = inner.out.iter().any(|q| q.id == hashes.id);
        let question = inner.known.get_mut(&hashes.id).filter(|q| q.told.is_none() && !unsent).ok_or(never)?;
        if matches!(&hashes.told, Told::Each(h) if h.len() != question.blocks) {
            return Err("it answered with another number of hashes than was asked for");
        }
        if question.dropped {
            inner.known.remove(&hashes.id);
        } else {
            question.told = Some(hashes.told);
        }
        self.changed.notify_all();
        Ok(())
    }

    /// Waits until something has changed, or for `timeout`.
    pub(crate) fn wait(&self, timeout: Duration) {
        drop(self.changed.wait_timeout(&self.inner, self.lock(), timeout));
    }
}

impl Ticket {
    pub(crate) fn look(&self) -> Answer {
        let inner = self.asker.lock();
        match inner.known.get(&self.id) {
            None => Answer::Lost,
            Some(Question { told: Some(told), .. }) => Answer::Told(told.clone()),
            Some(_) if world::since(self.asked) > PATIENCE => Answer::Told(Told::Nothing),
            Some(_) => Answer::Pending,
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut inner = self.asker.lock();
        let before = inner.out.len();
        inner.out.retain(|q| q.id != self.id);
        let unsent = inner.out.len() != before;
        match inner.known.get_mut(&self.id) {
            // It will be answered and must be known then.
            Some(q) if q.told.is_none() && !unsent => q.dropped = true,
            Some(_) => drop(inner.known.remove(&self.id)),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open() -> Arc<Asker> {
        let asker = Arc::new(Asker::new());
        asker.begin(true);
        asker
    }

    fn each(id: u64, n: usize) -> Hashes {
        Hashes { id, told: Told::Each(vec![[1; 16]; n]) }
    }

    #[test]
    fn a_question_goes_out_and_its_answer_comes_to_its_ticket() {
        let asker = open();
        let (a, b) = (asker.ask(7, 0..8192).unwrap(), asker.ask(7, 8192..9000).unwrap());
        let q = asker.outgoing().unwrap();
        assert_eq!((q.id, q.seq, q.offset, q.len), (1, 7, 0, 8192));
        assert_eq!(q.key, *a.hasher.key());
        let q = asker.outgoing().unwrap();
        assert_eq!((q.id, q.offset, q.len), (2, 8192, 808));
        assert_eq!(asker.outgoing(), None);
        asker.answer(each(2, 1)).unwrap();
        assert_eq!(a.look(), Answer::Pending);
        assert_eq!(b.look(), Answer::Told(Told::Each(vec![[1; 16]])));
        asker.end();
        assert_eq!((a.look(), b.look()), (Answer::Lost, Answer::Lost));
        assert!(asker.ask(7, 0..4096).is_none());
    }

    #[test]
    fn an_appliance_that_answers_what_it_should_not_is_caught() {
        let asker = open();
        let _a = asker.ask(7, 0..8192).unwrap();
        assert!(asker.answer(each(1, 2)).is_err(), "it has not been sent yet");
        asker.outgoing().unwrap();
        assert!(asker.answer(each(2, 2)).is_err(), "never asked");
        assert!(asker.answer(each(1, 1)).is_err(), "too few");
        assert!(asker.answer(each(1, 3)).is_err(), "too many");
        asker.answer(each(1, 2)).unwrap();
        assert!(asker.answer(each(1, 2)).is_err(), "twice");
    }

    #[test]
    fn questions_are_bounded_also_when_nobody_waits_for_them() {
        let asker = open();
        for _ in 0..MAX_QUERIES {
            drop(asker.ask(7, 0..4096).unwrap());
            let ticket = asker.ask(7, 0..4096).unwrap();
            asker.outgoing().unwrap();
            drop(ticket);
        }
        assert!(asker.ask(7, 0..4096).is_none(), "all are on the way");
        let first = *asker.lock().known.keys().next().unwrap();
        asker.answer(each(first, 1)).unwrap();
        assert!(asker.ask(7, 0..4096).is_some());
        assert!(asker.ask(7, 0..(MAX_HASHES as u64 + 1) * 4096).is_none(), "too long");
    }

    #[test]
    fn an_old_appliance_is_asked_nothing() {
        let asker = Arc::new(Asker::new());
        assert_eq!(asker.reach(), Reach::Away);
        asker.begin(false);
        assert_eq!(asker.reach(), Reach::Old);
        assert!(asker.ask(7, 0..4096).is_none());
    }
}

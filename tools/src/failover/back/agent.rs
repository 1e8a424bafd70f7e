//! The disk of a way back that is with its agent, elsewhere: hashes and blocks that differ travel through the agent's session.

use super::disk::Pace;
use crate::problem::Problem;
use crate::site::failback::{receive, send};
use afterimage_base::world;
use afterimage_format::compare::{BlockHasher, HashQuery, Hashes, MAX_HASHES_BODY, Told};
use afterimage_format::failback::{DiskDone, DiskSync, DiskWrite};
use afterimage_format::wire::MessageType;
use afterimage_format::{BLOCK_SHIFT, BLOCK_SIZE};
use afterimage_mgmt::client::ControlClient;
use afterimage_mgmt::units::format_size;
use std::collections::VecDeque;
use std::io::{self, BufReader};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// Requests under way: at 512 KiB each they keep a link of 100 ms and 640 Mbit/s busy.
const DEPTH: usize = 16;

/// What an answer is to.
enum Asked {
    /// Hashes of what is there; this is to be there.
    Hashes {
        offset: u64,
        wanted: Vec<u8>,
    },
    Write,
    Sync,
}

/// See the module.
pub(super) struct AgentDisk {
    volume: String,
    reader: BufReader<UnixStream>,
    writer: UnixStream,
    epoch: u64,
    size: u64,
    hasher: BlockHasher,
    next: u64,
    /// In the order in which they are answered.
    asked: VecDeque<(u64, Asked)>,
    /// Writes that have not left: where, and what.
    todo: VecDeque<(u64, Vec<u8>)>,
    pace: Pace,
    /// Bytes written since somebody asked.
    moved: u64,
}

impl AgentDisk {
    /// Reaches for the disk of a volume's agent.
    ///
    /// # Errors
    /// If the agent is not there, not fenced, or its disk is too small.
    pub(super) fn open(data: &Path, volume: &str, size: u64, pace: Pace) -> Result<AgentDisk, Problem> {
        let (disk, stream) = ControlClient::connect(data)?.agent_disk(volume)?;
        if disk.size < size {
            let text = format!(
                "the disk of volume {volume} at its agent has {}, and {} are to go there",
                format_size(disk.size),
                format_size(size)
            );
            return Err(Problem::failed(text));
        }
        let key = world::random_array().map_err(|e| Problem::failed(format!("no random numbers: {e}")))?;
        let reader = stream.try_clone().map_err(|e| Problem::failed(format!("the control socket: {e}")))?;
        Ok(AgentDisk {
            volume: volume.to_owned(),
            reader: BufReader::new(reader),
            writer: stream,
            epoch: disk.epoch,
            size: disk.size,
            hasher: BlockHasher::new(key),
            next: 0,
            asked: VecDeque::new(),
            todo: VecDeque::new(),
            pace,
            moved: 0,
        })
    }

    fn lost(&self, why: &dyn std::fmt::Display) -> Problem {
        Problem::failed(format!(
            "the way to the disk of volume {} at its agent was lost: {why}; the same command goes on where it was, once the agent is back",
            self.volume
        ))
    }

    fn ask(
        &mut self,
        kind: MessageType,
        asked: Asked,
        body: impl FnOnce(&Self, u64) -> Vec<u8>,
    ) -> Result<(), Problem> {
        while self.asked.len() >= DEPTH {
            self.take()?;
        }
        let id = self.next;
        self.next += 1;
        let body = body(self, id);
        send(&self.writer, kind, &body).map_err(|e| self.lost(&e))?;
        self.asked.push_back((id, asked));
        Ok(())
    }

    /// Takes one answer.
    fn take(&mut self) -> Result<(), Problem> {
        let answer = receive(&mut self.reader, MAX_HASHES_BODY).map_err(|e| self.lost(&e))?;
        let (kind, body) = answer.ok_or_else(|| self.lost(&"the agent's session is over"))?;
        let Some((id, asked)) = self.asked.pop_front() else { return Err(self.lost(&"an answer to nothing")) };
        match (kind, asked) {
            (MessageType::DiskHashes, Asked::Hashes { offset, wanted }) => {
                let hashes = Hashes::decode(&body).map_err(|e| self.lost(&e))?;
                let blocks = wanted.len().div_ceil(BLOCK_SIZE);
                match hashes.told {
                    Told::Each(each) if each.len() == blocks && hashes.id == id => {
                        self.note_what_differs(offset, &wanted, &each);
                        Ok(())
                    }
                    _ => Err(self.lost(&"an answer to something else")),
                }
            }
            (MessageType::DiskDone, asked) => {
                let done = DiskDone::decode(&body).map_err(|e| self.lost(&e))?;
                let is_query = matches!(asked, Asked::Hashes { .. });
                if done.id != id || (is_query && done.errno == 0) {
                    return Err(self.lost(&"an answer to something else"));
                }
                match i32::try_from(done.errno).unwrap_or(libc::EIO) {
                    0 => Ok(()),
                    libc::ESTALE => Err(self.lost(&"it is not fenced by this failover any more")),
                    libc::EAGAIN => Err(self.lost(&"it has not brought all that it had")),
                    e => Err(Problem::failed(format!(
                        "the disk of volume {} at its agent: {}",
                        self.volume,
                        io::Error::from_raw_os_error(e)
                    ))),
                }
            }
            _ => Err(self.lost(&"an answer to something else")),
        }
    }

    fn note_what_differs(&mut self, offset: u64, wanted: &[u8], there: &[[u8; 16]]) {
        let differs = |block: &[u8], hash: &[u8; 16]| self.hasher.hash(block) != *hash;
        let each: Vec<bool> = wanted.chunks(BLOCK_SIZE).zip(there).map(|(b, h)| differs(b, h)).collect();
        let mut at = 0;
        while at < each.len() {
            let run = each[at..].iter().take_while(|d| **d == each[at]).count();
            if each[at] {
                let bytes = &wanted[at * BLOCK_SIZE..wanted.len().min((at + run) * BLOCK_SIZE)];
                self.todo.push_back((offset + ((at as u64) << BLOCK_SHIFT), bytes.to_vec()));
            }
            at += run;
        }
    }

    fn write(&mut self) -> Result<(), Problem> {
        while let Some((offset, data)) = self.todo.pop_front() {
            self.ask(MessageType::DiskWrite, Asked::Write, |this, id| {
                DiskWrite { id, epoch: this.epoch, offset, data: &data }.encode()
            })?;
            self.moved += data.len() as u64;
            self.pace.wrote(data.len() as u64);
        }
        Ok(())
    }

    /// Has a piece compared with what is there, and blocks that differ written, at some time before the next [`sync`](Self::sync).
    /// Answers how many bytes were written since the last answer.
    ///
    /// # Errors
    /// If the disk is not reached any more, or failed.
    pub(super) fn bring(&mut self, offset: u64, wanted: &[u8]) -> Result<u64, Problem> {
        // Whole blocks, unless the disk ends within the last one.
        let end = (offset + wanted.len() as u64).next_multiple_of(BLOCK_SIZE as u64).min(self.size);
        let asked = Asked::Hashes { offset, wanted: wanted.to_vec() };
        self.ask(MessageType::DiskQuery, asked, |this, id| {
            let key = *this.hasher.key();
            HashQuery { id, seq: this.epoch, offset, len: end - offset, key }.encode()
        })?;
        self.write()?;
        Ok(std::mem::take(&mut self.moved))
    }

    /// Makes all of it durable. Answers how many bytes were written since the last answer.
    ///
    /// # Errors
    /// As [`bring`](Self::bring).
    pub(super) fn sync(&mut self) -> Result<u64, Problem> {
        loop {
            self.write()?;
            if self.asked.is_empty() {
                break;
            }
            self.take()?;
        }
        self.ask(MessageType::DiskSync, Asked::Sync, |this, id| DiskSync { id, epoch: this.epoch }.encode())?;
        self.take()?;
        Ok(std::mem::take(&mut self.moved))
    }
}

//! A failback through the session: the appliance compares and writes the disk of a fenced volume ([`afterimage_format::failback`]).
//!
//! It is done where messages are received, one after the other: nobody else writes to a fenced disk, and what waits meanwhile are
//! acknowledgements of a journal that is empty. The writes go past ring and maps, as those of any other program would: when the fence
//! comes down, the whole disk is compared with the volume's history. A fence goes up or comes down between two sessions only, so
//! none changes while a request is carried out.

use crate::session::SessionError;
use crate::shared::Shared;
use afterimage_base::block::BlockError;
use afterimage_base::buf::AlignedBuf;
use afterimage_format::BLOCK_SIZE;
use afterimage_format::compare::{BlockHasher, HashQuery, Hashes, Told};
use afterimage_format::failback::{DiskDone, DiskSync, DiskWrite};
use afterimage_format::wire::MessageType;

const fn errno(e: &BlockError) -> i32 {
    match e {
        BlockError::Invalid(_) => libc::EINVAL,
        BlockError::Unsupported => libc::EOPNOTSUPP,
        BlockError::ReadOnly => libc::EROFS,
        BlockError::NoSpace => libc::ENOSPC,
        BlockError::Shutdown => libc::ESHUTDOWN,
        BlockError::Io(n) => *n,
    }
}

impl Shared {
    /// Whether the appliance may do as it likes with the disk (I13): else an error number.
    fn gives_up_disk(&self, epoch: u64) -> Result<(), i32> {
        let state = self.state();
        match state.meta.fence {
            Some(fence) if fence.epoch != epoch => Err(libc::ESTALE),
            // Not before all that it has is in the ring.
            Some(fence) if !fence.marked || state.meta.unmarked => Err(libc::EAGAIN),
            Some(_) if self.core.is_fenced() => Ok(()),
            _ => Err(libc::ESTALE),
        }
    }

    /// Carries out a request of the appliance. The answer.
    ///
    /// # Errors
    /// If it is none, or not about this disk.
    pub(crate) fn failback(&self, kind: MessageType, body: &[u8]) -> Result<(MessageType, Vec<u8>), SessionError> {
        let size = self.core.disk.size();
        let (id, result) = match kind {
            MessageType::DiskQuery => {
                let query = HashQuery::decode(body, size)?;
                let hashes = self.gives_up_disk(query.seq).and_then(|()| self.hashes(&query));
                match hashes {
                    Ok(hashes) => {
                        let hashes = Hashes { id: query.id, told: Told::Each(hashes) };
                        return Ok((MessageType::DiskHashes, hashes.encode()));
                    }
                    Err(e) => (query.id, Err(e)),
                }
            }
            MessageType::DiskWrite => {
                let write = DiskWrite::decode(body, size)?;
                let wrote = self.gives_up_disk(write.epoch);
                let put = || self.core.disk.write_any(write.offset, write.data).map_err(|e| errno(&e));
                (write.id, wrote.and_then(|()| put()))
            }
            MessageType::DiskSync => {
                let sync = DiskSync::decode(body)?;
                let may = self.gives_up_disk(sync.epoch);
                (sync.id, may.and_then(|()| self.core.disk.sync().map_err(|e| errno(&e))))
            }
            _ => return Err(SessionError::Protocol("it sent a message that is not its to send")),
        };
        let errno = result.err().map_or(0, |e| u32::try_from(e).unwrap_or(u32::MAX));
        if errno != 0 {
            let why = std::io::Error::from_raw_os_error(result.err().unwrap_or_default());
            tracing::warn!("volume {}: a request of the failback is refused: {why}", self.p.name);
        }
        Ok((MessageType::DiskDone, DiskDone { id, errno }.encode()))
    }

    fn hashes(&self, query: &HashQuery) -> Result<Vec<[u8; 16]>, i32> {
        let disk = &self.core.disk;
        let (from, to) = disk.span(query.offset, query.len);
        let index = |n: u64| usize::try_from(n).map_err(|_| libc::EINVAL);
        let mut span = AlignedBuf::zeroed(index(to - from)?);
        disk.read_at(from, &mut span).map_err(|e| errno(&e))?;
        let start = index(query.offset - from)?;
        let hasher = BlockHasher::new(query.key);
        let blocks = span[start..start + index(query.len)?].chunks(BLOCK_SIZE);
        Ok(blocks.map(|block| hasher.hash(block)).collect())
    }
}

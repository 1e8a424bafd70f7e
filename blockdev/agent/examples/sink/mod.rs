//! An appliance that only acknowledges, for examples that measure the protected side.

use afterimage_format::fence::Fence;
use afterimage_format::record::{self, Record};
use afterimage_format::wire::{self, Ack, Header, MAX_BODY, MessageType, Welcome};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

fn send(s: &mut UnixStream, kind: MessageType, body: &[u8]) -> io::Result<()> {
    let mut all = Header::of(kind, body).encode().to_vec();
    all.extend_from_slice(body);
    s.write_all(&all)
}

/// Serves one connection: reads, finds the last seq, acknowledges.
pub(crate) fn swallow(mut s: UnixStream) -> io::Result<()> {
    let (mut head, mut body) = ([0; wire::HEADER_LEN], vec![0; MAX_BODY]);
    let mut credit = 16 * MAX_BODY as u64;
    let mut greeted = false;
    loop {
        s.read_exact(&mut head)?;
        let header = Header::decode(&head).map_err(io::Error::other)?;
        s.read_exact(&mut body[..header.body_len])?;
        if !greeted {
            greeted = true;
            let welcome =
                Welcome { version: 1, ring: [0; 16], durable: 0, digest: 0, credit, epoch: 0, fence: Fence::Open };
            send(&mut s, MessageType::Welcome, &welcome.encode())?;
        } else if header.kind == MessageType::Data {
            let (mut at, mut durable) = (0, 0);
            while at < header.body_len {
                let bytes = body[at..at + record::HEADER_LEN].try_into().map_err(io::Error::other)?;
                let r = Record::decode(bytes).map_err(io::Error::other)?;
                durable = r.seq;
                at += record::HEADER_LEN + r.payload_len();
            }
            credit += header.body_len as u64;
            send(&mut s, MessageType::Ack, &Ack { durable, credit }.encode())?;
        }
    }
}

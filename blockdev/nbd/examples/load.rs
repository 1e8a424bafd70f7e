//! Random reads or writes through one connection: `load ADDRESS EXPORT read|write BLOCK DEPTH SECONDS`. Prints
//! requests per second. Requests that become due together are sent together, as a busy kernel client does.

use afterimage_nbd::client::{Client, Command, Options};
use afterimage_nbd::{Address, Mode};
use std::error::Error;
use std::time::{Duration, Instant};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [address, export, kind, block, depth, seconds] = &args[..] else {
        return Err("usage: load ADDRESS EXPORT read|write BLOCK DEPTH SECONDS".into());
    };
    let (block, depth): (u32, u64) = (block.parse()?, depth.parse()?);
    let options = Options { mode: Mode::Structured, allocation: false };
    let client = Client::connect_with(&address.parse::<Address>()?, export, &options)?;
    let blocks = client.size() / u64::from(block);
    let (mut sender, mut receiver) = client.split();
    let data = vec![0x5a; block as usize];
    let mut random = 88_172_645_463_325_252_u64;
    let mut due: Vec<u64> = (0..depth).collect();
    let (start, time) = (Instant::now(), Duration::from_secs(seconds.parse()?));
    let mut done = 0u64;
    while start.elapsed() < time {
        // Those that are due go out together.
        for cookie in due.drain(..) {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let offset = random % blocks * u64::from(block);
            match kind.as_str() {
                "read" => sender.send(cookie, &Command::Read { offset, len: block })?,
                _ => sender.send(cookie, &Command::Write { offset, data: &data, fua: false })?,
            }
        }
        sender.flush()?;
        while due.is_empty() || receiver.has_buffered() {
            let reply = receiver.receive()?;
            reply.result?;
            due.push(reply.cookie);
            done += 1;
        }
    }
    println!("{:.0} {kind}s of {block} bytes per second", done as f64 / start.elapsed().as_secs_f64());
    while sender.in_flight() > 0 {
        receiver.receive()?.result?;
    }
    Ok(())
}

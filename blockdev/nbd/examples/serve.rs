//! Serves a disk in memory: `serve [--size BYTES] [ADDRESS ...]`, until its standard input ends or
//! says something. Without an address it serves the sockets that systemd passes.
//!
//! The exports are `disk` (also the default one) and `ro`, the same size and read-only.

use afterimage_base::simple::{MemoryDevice, Simple};
use afterimage_nbd::{Export, ExportTable, Limits, Listen, Server, systemd_listeners};
use std::error::Error;
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

fn export(name: &str, device: MemoryDevice) -> Export {
    let device = Arc::new(Simple(Arc::new(device)));
    Export { name: name.to_owned(), description: format!("a disk in memory ({name})"), device }
}

fn main() -> Result<(), Box<dyn Error>> {
    let (mut size, mut listen) = (64 << 20, Vec::new());
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--size" => size = args.next().ok_or("--size needs a number of bytes")?.parse()?,
            address => listen.push(address.parse::<Listen>()?),
        }
    }
    if listen.is_empty() {
        listen = systemd_listeners()?;
    }
    let exports = ExportTable::single(export("disk", MemoryDevice::new(size)));
    exports.insert(export("ro", MemoryDevice::new(size).read_only()));
    let server = Server::start(listen, Arc::new(exports), Limits::default())?;
    for address in server.addresses() {
        println!("{}", address.uri("disk"));
    }
    let _ = std::io::stdin().read(&mut [0])?;
    println!("{:?}", server.stats());
    server.stop(Duration::from_secs(5));
    Ok(())
}

//! The control socket: a whole connection's lines, to a process that can do little.

use super::wires::Wires;
use crate::place;
use afterimage_mgmt::protocol::{
    Access, Code, CompareBegun, DiffEnd, Failure, PointInfo, PointList, Position, SizeChange, Status,
};
use afterimage_mgmt::server::ControlServer;
use afterimage_mgmt::site::{Opened, Site};
use afterimage_mgmt::when::When;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use tempfile::TempDir;

struct Little;

struct Nothing;

impl Opened for Nothing {
    fn serve_stream(self: Box<Self>, _: UnixStream) {}

    fn serve_listener(self: Box<Self>, _: UnixListener) -> Result<Box<dyn Send>, Failure> {
        Ok(self)
    }
}

fn position(volume: &str) -> Position {
    Position { volume: volume.into(), seq: 1, time: None, size: 4096 }
}

impl Site for Little {
    fn status(&self) -> Result<Status, Failure> {
        Err(Failure::new(Code::NotReady, "starting"))
    }

    fn points(&self, volume: &str) -> Result<PointList, Failure> {
        Ok(PointList { volume: volume.into(), window: None, points: Vec::new(), gaps: Vec::new() })
    }

    fn create_point(&self, volume: &str, name: &str) -> Result<PointInfo, Failure> {
        Err(Failure::new(Code::NotFound, format!("{volume} has no {name}")))
    }

    fn resize_volume(&self, volume: &str, size: Option<u64>) -> Result<SizeChange, Failure> {
        Ok(SizeChange { volume: volume.into(), from: 4096, to: size.unwrap_or(8192), gap: false, devices: Vec::new() })
    }

    fn compare_volume(&self, volume: &str) -> Result<CompareBegun, Failure> {
        Ok(CompareBegun { volume: volume.into(), bytes: 4096 })
    }

    fn resolve(&self, volume: &str, _: &When) -> Result<Position, Failure> {
        Ok(position(volume))
    }

    fn diff(&self, _: (&str, &When), (volume, _): (&str, &When)) -> Result<(DiffEnd, Vec<(u64, u64)>), Failure> {
        Ok((DiffEnd { base: None, volume: volume.into(), from: 1, to: 2 }, vec![(0, 4096)]))
    }

    fn open(&self, volume: &str, _: &When, _: Access) -> Result<(Position, Box<dyn Opened>), Failure> {
        Ok((position(volume), Box::new(Nothing)))
    }
}

fn server() -> &'static PathBuf {
    static SERVER: OnceLock<(PathBuf, ControlServer, TempDir)> = OnceLock::new();
    let made = || {
        let folder = place::folder();
        let path = folder.path().join("control.sock");
        (path.clone(), ControlServer::start(&path, Arc::new(Little)).unwrap(), folder)
    };
    &SERVER.get_or_init(made).0
}

/// See the module.
pub(super) fn run(bytes: &[u8]) {
    let mut wires = Wires::new(UnixStream::connect(server()).unwrap());
    wires.send(bytes);
    let said = wires.finish();
    // Every answer is a whole line.
    assert!(said.is_empty() || said.last() == Some(&b'\n'));
}

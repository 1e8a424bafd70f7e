//! The past of a volume: which moments can be chosen, and serving one of them.

use afterimage_appliance::history::timeline::{Wish, WishError};
use afterimage_appliance::{Appliance, ApplianceError, BranchError, FenceError};
use afterimage_mgmt::protocol::{Code, Failure};
use afterimage_mgmt::site::Opened;
use afterimage_mgmt::units::Time;
use afterimage_mgmt::when::Timeline;
use afterimage_nbd::{ExportTable, Limits, Listen, Server, Stop, serve_connection};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

/// A volume's history, as WHEN asks for it.
pub(super) struct OfVolume<'a> {
    pub(super) appliance: &'a Appliance,
    pub(super) volume: &'a str,
}

impl OfVolume<'_> {
    fn choose(&self, wish: Wish) -> Result<u64, Failure> {
        self.appliance.choose(self.volume, wish).map_err(|e| failure(Some(e)))
    }
}

impl Timeline for OfVolume<'_> {
    fn newest(&self) -> Result<u64, Failure> {
        self.choose(Wish::Latest)
    }

    fn at_time(&self, time: Time) -> Result<u64, Failure> {
        self.choose(Wish::Time(time.0))
    }

    fn point(&self, name: &str) -> Result<Option<u64>, Failure> {
        let points = self.appliance.points(self.volume).map_err(|e| failure(Some(e)))?;
        Ok(points.iter().rev().find(|p| p.name == name).map(|p| p.seq))
    }

    fn check(&self, seq: u64) -> Result<(), Failure> {
        self.choose(Wish::Seq(seq)).map(drop)
    }
}

/// The appliance's error in the words of the control socket.
pub(super) fn failure(error: Option<ApplianceError>) -> Failure {
    let Some(error) = error else { return Failure::new(Code::Failed, "the appliance gave no answer") };
    let code = match &error {
        ApplianceError::NoVolume(..) | ApplianceError::NoPoint(..) => Code::NotFound,
        ApplianceError::Held(_) => Code::Conflict,
        ApplianceError::When(_, WishError::InGap { .. }) => Code::Gap,
        ApplianceError::When(_, WishError::BeforeFirst { .. }) => Code::NotReady,
        ApplianceError::When(..) => Code::OutsideWindow,
        ApplianceError::Branch(_, BranchError::Name) => Code::BadRequest,
        ApplianceError::Branch(_, BranchError::None) => Code::NotFound,
        ApplianceError::Branch(_, BranchError::Gone) => Code::OutsideWindow,
        ApplianceError::Branch(_, BranchError::Ended(_) | BranchError::Failed(_)) => Code::Failed,
        ApplianceError::Fence(_, FenceError::Branch) => Code::BadRequest,
        ApplianceError::Fence(_, FenceError::Empty | FenceError::Away) => Code::NotReady,
        ApplianceError::Branch(..) | ApplianceError::Fence(..) => Code::Conflict,
        _ => Code::Failed,
    };
    Failure::new(code, error.to_string())
}

/// A volume as it was, ready to be served.
pub(super) struct Past {
    pub(super) table: ExportTable,
    pub(super) stop: Stop,
}

impl Opened for Past {
    fn serve_stream(self: Box<Self>, stream: UnixStream) {
        if let Err(e) = serve_connection(stream.into(), Arc::new(self.table), &Limits::default(), &self.stop) {
            tracing::debug!("a connection to an export ended: {e}");
        }
    }

    fn serve_listener(self: Box<Self>, listener: UnixListener) -> Result<Box<dyn Send>, Failure> {
        let started = Server::start(vec![Listen::Fd(listener.into())], Arc::new(self.table), Limits::default());
        let server = started.map_err(|e| Failure::new(Code::Failed, format!("the export cannot be served: {e}")))?;
        Ok(Box::new(server))
    }
}

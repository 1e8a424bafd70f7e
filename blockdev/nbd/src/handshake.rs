//! The conversation before requests: fixed newstyle, until GO (or the older EXPORT_NAME) chooses an export.

use crate::command::Terms;
use crate::export::{Export, Exports};
use crate::limits::{Limits, MAX_DROPPED_OPTION, MAX_OPTION};
use crate::options::{self, InfoRequest, MetaRequest};
use crate::proto::{
    ALLOCATION, ALLOCATION_ID, FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES, INIT_MAGIC, Mode, OPTION_MAGIC, Reader, info, opt,
    rep,
};
use crate::server::{Seat, Seats};
use crate::socket::{End, Socket};
use crate::stop::Stop;
use afterimage_base::block::{BlockError, Queue};
use afterimage_trust::stream::who;
use std::sync::Arc;
use std::time::Instant;

/// What a handshake leads to.
pub(crate) struct Session {
    pub(crate) export: Export,
    pub(crate) terms: Terms,
    pub(crate) queue: Box<dyn Queue>,
    /// Held as long as the connection lasts.
    pub(crate) seat: Seat,
}

/// What an option leads to.
enum Turn {
    /// The next option.
    Next,
    /// The client says goodbye.
    Leave,
    /// Requests.
    Enter(Box<Session>),
}

/// An option reply type with words.
struct No(u32, &'static str);

pub(crate) struct Handshake<'a> {
    socket: &'a Socket,
    exports: &'a dyn Exports,
    limits: &'a Limits,
    stop: &'a Stop,
    seats: &'a Arc<Seats>,
    deadline: Instant,
    /// The client wants no padding after EXPORT_NAME.
    no_zeroes: bool,
    mode: Mode,
    /// The export for which `base:allocation` was selected last.
    allocation: Option<String>,
    out: Vec<u8>,
}

impl<'a> Handshake<'a> {
    pub(crate) fn new(
        socket: &'a Socket,
        exports: &'a dyn Exports,
        limits: &'a Limits,
        stop: &'a Stop,
        seats: &'a Arc<Seats>,
    ) -> Self {
        let now = Instant::now();
        let deadline = now.checked_add(limits.handshake_time).unwrap_or(now);
        let (no_zeroes, mode, allocation) = (false, Mode::Simple, None);
        Self { socket, exports, limits, stop, seats, deadline, no_zeroes, mode, allocation, out: Vec::new() }
    }

    /// Talks until an export is chosen; `None` if the client left politely.
    pub(crate) fn run(&mut self) -> Result<Option<Session>, End> {
        self.greet()?;
        for _ in 0..self.limits.options {
            let mut header = [0; 16];
            self.read(&mut header)?;
            let mut r = Reader(&header);
            let (Some(OPTION_MAGIC), Some(option), Some(len)) = (r.u64(), r.u32(), r.u32()) else {
                return Err(End::Broken("an option does not begin with the magic number"));
            };
            let turn = match self.option_data(option, len)? {
                Some(data) => self.option(option, &data)?,
                None => Turn::Next,
            };
            let flushed = self.flush();
            if let Turn::Leave = turn {
                // A client that does not wait for the answer has left all the same.
                return Ok(None);
            }
            flushed?;
            match turn {
                Turn::Next | Turn::Leave => {}
                Turn::Enter(session) => return Ok(Some(*session)),
            }
        }
        Err(End::Broken("too many options in one handshake"))
    }

    fn read(&self, buf: &mut [u8]) -> Result<(), End> {
        self.socket.read_exact(buf, self.deadline, self.stop)
    }

    fn flush(&mut self) -> Result<(), End> {
        self.socket.write_all(&self.out, self.deadline, self.stop)?;
        self.out.clear();
        Ok(())
    }

    fn greet(&mut self) -> Result<(), End> {
        self.out.extend(INIT_MAGIC.to_be_bytes());
        self.out.extend(OPTION_MAGIC.to_be_bytes());
        self.out.extend((FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES).to_be_bytes());
        self.flush()?;
        let mut flags = [0; 4];
        self.read(&mut flags)?;
        let flags = u32::from_be_bytes(flags);
        if flags & !u32::from(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES) != 0 {
            return Err(End::Broken("unknown client flags"));
        }
        self.no_zeroes = flags & u32::from(FLAG_NO_ZEROES) != 0;
        Ok(())
    }

    /// Reads the data of an option; `None` if it was too long and is refused.
    fn option_data(&mut self, option: u32, len: u32) -> Result<Option<Vec<u8>>, End> {
        if len > MAX_DROPPED_OPTION || (len > MAX_OPTION && option == opt::EXPORT_NAME) {
            return Err(End::Broken("an option of absurd length is announced"));
        }
        let mut data = vec![0; len.min(MAX_OPTION) as usize];
        self.read(&mut data)?;
        if len <= MAX_OPTION {
            return Ok(Some(data));
        }
        let mut left = (len - MAX_OPTION) as usize;
        while left > 0 {
            let n = left.min(data.len());
            self.read(&mut data[..n])?;
            left -= n;
        }
        self.refuse(option, &No(rep::ERR_TOO_BIG, "the option is too long"));
        Ok(None)
    }

    fn option(&mut self, option: u32, data: &[u8]) -> Result<Turn, End> {
        let result = match option {
            opt::STARTTLS => return self.starttls(data),
            opt::EXPORT_NAME if self.lacks_tls() => {
                return Err(End::Refused("it did not begin TLS, which is required here"));
            }
            option if option != opt::ABORT && self.lacks_tls() => {
                Err(No(rep::ERR_TLS_REQD, "this server speaks over TLS only: begin with STARTTLS"))
            }
            opt::EXPORT_NAME => return self.export_name(data).map(Turn::Enter),
            opt::ABORT => {
                options::reply(&mut self.out, option, rep::ACK, &[]);
                return Ok(Turn::Leave);
            }
            opt::GO => self.go(data).map(Turn::Enter),
            opt::INFO => self.info(data).map(|()| Turn::Next),
            opt::LIST_META_CONTEXT | opt::SET_META_CONTEXT => self.meta(option, data).map(|()| Turn::Next),
            opt::LIST | opt::STRUCTURED_REPLY | opt::EXTENDED_HEADERS if !data.is_empty() => {
                Err(No(rep::ERR_INVALID, "the option takes no data"))
            }
            opt::LIST => {
                for (name, description) in self.exports.list() {
                    options::server_reply(&mut self.out, option, &name, &description);
                }
                Ok(Turn::Next)
            }
            opt::STRUCTURED_REPLY if self.mode == Mode::Extended => {
                Err(No(rep::ERR_EXT_HEADER_REQD, "extended headers are in use already"))
            }
            opt::STRUCTURED_REPLY => {
                self.mode = Mode::Structured;
                Ok(Turn::Next)
            }
            opt::EXTENDED_HEADERS => {
                self.mode = Mode::Extended;
                Ok(Turn::Next)
            }
            _ => Err(No(rep::ERR_UNSUP, "unknown option")),
        };
        match result {
            Ok(turn) => {
                options::reply(&mut self.out, option, rep::ACK, &[]);
                Ok(turn)
            }
            Err(no) => {
                self.refuse(option, &no);
                Ok(Turn::Next)
            }
        }
    }

    fn lacks_tls(&self) -> bool {
        self.limits.tls.is_required() && self.socket.is_tcp() && !self.socket.is_secure()
    }

    /// Begins TLS. What was agreed on before is forgotten: somebody in between may have said it.
    fn starttls(&mut self, data: &[u8]) -> Result<Turn, End> {
        let no = match self.limits.tls.server() {
            None => No(rep::ERR_POLICY, "this server does not do TLS"),
            Some(_) if !data.is_empty() => No(rep::ERR_INVALID, "the option takes no data"),
            Some(_) if self.socket.is_secure() => No(rep::ERR_INVALID, "TLS has begun already"),
            Some(tls) => {
                let (state, guard) = tls.begin().map_err(|e| End::Io(std::io::Error::other(e)))?;
                options::reply(&mut self.out, opt::STARTTLS, rep::ACK, &[]);
                self.flush()?;
                // Options are read to their last byte and no further, so what is read now is TLS, or nothing.
                let result = self.socket.begin_tls(state, self.deadline, self.stop);
                let verdict = guard.verdict();
                if let Err(e) = result {
                    let why = verdict.refused.unwrap_or_else(|| e.to_string());
                    let peer = who(&self.socket.peer(), &guard.verdict());
                    tracing::warn!("NBD: {peer}: refused: {why}");
                    return Err(e);
                }
                tracing::debug!("NBD: {} speaks TLS", who(&self.socket.peer(), &verdict));
                (self.mode, self.allocation) = (Mode::Simple, None);
                return Ok(Turn::Next);
            }
        };
        self.refuse(opt::STARTTLS, &no);
        Ok(Turn::Next)
    }

    fn refuse(&mut self, option: u32, No(kind, why): &No) {
        options::reply(&mut self.out, option, *kind, &[why.as_bytes()]);
    }

    fn find(&self, name: &str) -> Result<Export, No> {
        self.exports.find(name).ok_or(No(rep::ERR_UNKNOWN, "there is no export of this name"))
    }

    fn terms(&self, export: &Export, asked: &str) -> Terms {
        let geometry = export.device.geometry();
        let allocation = self.mode != Mode::Simple && self.allocation.as_deref() == Some(asked);
        Terms { geometry, mode: self.mode, allocation, max_io: geometry.max_io.min(self.limits.request) }
    }

    fn info(&mut self, data: &[u8]) -> Result<(), No> {
        let request = InfoRequest::parse(data).ok_or(No(rep::ERR_INVALID, "malformed"))?;
        let export = self.find(request.name)?;
        let terms = self.terms(&export, request.name);
        self.describe(opt::INFO, &request, &export, &terms);
        Ok(())
    }

    fn go(&mut self, data: &[u8]) -> Result<Box<Session>, No> {
        let request = InfoRequest::parse(data).ok_or(No(rep::ERR_INVALID, "malformed"))?;
        let session = self.enter(request.name)?;
        self.describe(opt::GO, &request, &session.export, &session.terms);
        Ok(session)
    }

    fn enter(&self, name: &str) -> Result<Box<Session>, No> {
        let export = self.find(name)?;
        let seat = self.seats.take().ok_or(No(rep::ERR_POLICY, "all connections of the server are in use"))?;
        let terms = self.terms(&export, name);
        let queue = Arc::clone(&export.device).open_queue().map_err(|e| match e {
            BlockError::Shutdown => No(rep::ERR_SHUTDOWN, "the export is going away; try again later"),
            e => {
                tracing::error!("export {:?} cannot be opened: {e}", export.name);
                No(rep::ERR_POLICY, "the export cannot be opened; the server's log says why")
            }
        })?;
        Ok(Box::new(Session { export, terms, queue, seat }))
    }

    fn describe(&mut self, option: u32, request: &InfoRequest<'_>, export: &Export, terms: &Terms) {
        let out = &mut self.out;
        let size = terms.geometry.size;
        options::info_reply(out, option, info::EXPORT, &options::export_info(size, terms.flags()));
        for kind in [info::NAME, info::DESCRIPTION, info::BLOCK_SIZE] {
            match kind {
                _ if !request.wants.contains(&kind) => {}
                info::NAME => options::info_reply(out, option, kind, export.name.as_bytes()),
                info::DESCRIPTION => options::info_reply(out, option, kind, export.description.as_bytes()),
                _ => {
                    let sizes = options::block_sizes(terms.geometry.preferred_block, terms.max_io);
                    options::info_reply(out, option, kind, &sizes);
                }
            }
        }
    }

    fn meta(&mut self, option: u32, data: &[u8]) -> Result<(), No> {
        let set = option == opt::SET_META_CONTEXT;
        if set {
            self.allocation = None;
        }
        if self.mode == Mode::Simple {
            return Err(No(rep::ERR_INVALID, "structured replies must be negotiated first"));
        }
        let request = MetaRequest::parse(data).ok_or(No(rep::ERR_INVALID, "malformed"))?;
        self.find(request.name)?;
        if if set { request.selects() } else { request.lists() } {
            let id = if set { ALLOCATION_ID } else { 0 };
            options::reply(&mut self.out, option, rep::META_CONTEXT, &[&id.to_be_bytes(), ALLOCATION.as_bytes()]);
            if set {
                self.allocation = Some(request.name.to_owned());
            }
        }
        Ok(())
    }

    /// The old way in. It knows no errors: who cannot enter is cut off.
    fn export_name(&mut self, data: &[u8]) -> Result<Box<Session>, End> {
        if self.mode == Mode::Extended {
            return Err(End::Broken("EXPORT_NAME after extended headers"));
        }
        let name = std::str::from_utf8(data).map_err(|_| End::Broken("the export name is not UTF-8"))?;
        let session = self.enter(name).map_err(|No(_, why)| End::Refused(why))?;
        self.out.extend(options::export_info(session.terms.geometry.size, session.terms.flags()));
        if !self.no_zeroes {
            self.out.extend([0; 124]);
        }
        Ok(session)
    }
}

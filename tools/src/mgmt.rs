//! `afterimage mgmt`: the role, and the commands that ask it.

use crate::cli::{MgmtArgs, MgmtCommand, TokenCommand};
use crate::config::{self, MgmtFile};
use crate::data::{self, DataDir};
use crate::problem::Problem;
use crate::remote::Way;
use crate::remote::cli::ApiTokenCommand;
use crate::show::{put, put_json, table};
use crate::{notify, screen, signals};
use afterimage_base::crashsafe;
use afterimage_base::net::Endpoint;
use afterimage_format::coord::DEFAULT_PORT;
use afterimage_mgmt::api::client::escape;
use afterimage_mgmt::api::types::{ApiToken, ApiTokenMade, AuditLine, List, NewApiToken};
use afterimage_mgmt::api::{Api, DEFAULT_API_PORT, openapi};
use afterimage_mgmt::groups::Groups;
use afterimage_mgmt::office::{Desk, Office, Port};
use afterimage_mgmt::protocol::{Ca, Certified, CertifyRequest, Members, RevokeDone, TokenMade, TokenRequest};
use afterimage_mgmt::server::ControlServer;
use afterimage_mgmt::site::Site;
use afterimage_mgmt::units::Time;
use afterimage_trust::csr;
use afterimage_trust::identity::hex;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// An address of mgmt: as one of the appliance, with another port if none is said.
///
/// # Errors
/// If it is none, or a unix socket.
pub fn parse_mgmt(text: &str) -> Result<Endpoint, String> {
    let full = if text.starts_with("tcp:") { text.to_owned() } else { format!("tcp:{text}") };
    match Endpoint::parse(&full, DEFAULT_PORT) {
        Ok(endpoint @ Endpoint::Tcp(..)) => Ok(endpoint),
        _ => Err(format!("'{text}' is no address of mgmt: write HOST, HOST:PORT or [IPv6]:PORT")),
    }
}

/// Runs mgmt until a signal.
///
/// # Errors
/// If something is in the way of the start.
pub fn run(args: MgmtArgs) -> Result<(), Problem> {
    if let Some(MgmtCommand::Openapi) = args.command {
        return put(&openapi::text());
    }
    if let Some(command) = args.command {
        return ask(&Way::of(&args.way)?, command);
    }
    let signals = signals::watch()?;
    screen::log(screen::INFO);
    let file: MgmtFile = args.config.as_deref().map_or_else(|| Ok(MgmtFile::default()), config::load)?;
    let folder = args.way.data.clone().or(file.data).map_or_else(data::default_path, Ok)?;
    let data = DataDir::create(&folder)?;
    let life = args.certificate_life.or(file.certificate_life.map(|s| s.0));
    if life.is_some_and(|l| l < Duration::from_secs(10)) {
        return Err(Problem::usage("certificates have to last 10 s at least"));
    }
    let mut listen = args.listen;
    if listen.is_empty() {
        for text in &file.listen {
            listen.push(parse_mgmt(text).map_err(Problem::usage)?);
        }
    }
    if listen.is_empty() {
        listen.push(Endpoint::Tcp("0.0.0.0".to_owned(), DEFAULT_PORT));
    }
    let failed = |e: &dyn std::fmt::Display| Problem::failed(e.to_string());
    let office = Arc::new(Office::open(data.path(), life).map_err(|e| failed(&e))?);
    // Before anybody comes, so that nothing that members say is missed.
    let groups = Arc::new(Groups::start(Arc::clone(&office))?);
    office.set_groups(&groups);
    let port = Port::open(&office, &listen)?;
    let addresses: Vec<String> = port.addresses().iter().map(ToString::to_string).collect();
    let names = if args.api_names.is_empty() { file.api_names } else { args.api_names };
    let api = open_api(&office, if args.api.is_empty() { &file.api } else { &args.api }, names)?;
    let desk = Desk::new(Arc::clone(&office), data.path().to_owned(), addresses.clone());
    let control = data.path().join("control.sock");
    let control = ControlServer::start(&control, Arc::new(desk) as Arc<dyn Site>)
        .map_err(|e| Problem::failed(format!("{}: {e}", control.display())))?;
    put(&format!(
        "afterimage {} mgmt, data in {}\nagents and appliances connect to {}\n",
        env!("CARGO_PKG_VERSION"),
        data.path().display(),
        addresses.join(", ")
    ))?;
    for address in api.iter().flat_map(Api::addresses) {
        put(&format!("API at https://{address}/v1\n"))?;
    }
    notify::notify("READY=1");
    let signal = signals.recv().map_err(|_| Problem::failed("the signal thread has ended"))?;
    notify::notify("STOPPING=1");
    tracing::info!("{signal}: stopping");
    drop((control, api, groups, port));
    Ok(())
}

/// An address of the API.
///
/// # Errors
/// If it is none.
pub fn parse_api(text: &str) -> Result<Endpoint, String> {
    let full = if text.starts_with("tcp:") { text.to_owned() } else { format!("tcp:{text}") };
    match Endpoint::parse(&full, DEFAULT_API_PORT) {
        Ok(endpoint @ Endpoint::Tcp(..)) => Ok(endpoint),
        _ => Err(format!("'{text}' is no address of the API: write HOST, HOST:PORT or [IPv6]:PORT")),
    }
}

/// The API, where it is wanted. Where nobody said, somebody else's use of the port is no reason for mgmt not to do its main work.
fn open_api(office: &Arc<Office>, texts: &[String], mut names: Vec<String>) -> Result<Option<Api>, Problem> {
    if texts.iter().any(|t| t == "none") {
        return Ok(None);
    }
    let default = [format!("0.0.0.0:{DEFAULT_API_PORT}")];
    let mut listen = Vec::new();
    for text in if texts.is_empty() { &default } else { texts } {
        listen.extend(parse_api(text).map_err(Problem::usage)?.resolve()?);
    }
    if names.is_empty() {
        names.extend(["localhost", "127.0.0.1", "::1"].map(str::to_owned));
        names.extend(nix::unistd::gethostname()?.into_string());
        names.extend(listen.iter().map(|a| a.ip()).filter(|ip| !ip.is_unspecified()).map(|ip| ip.to_string()));
        names.sort();
        names.dedup();
    }
    office.set_api_hosts(names);
    office.api_config().map_err(|e| Problem::failed(e.to_string()))?;
    match Api::open(office, &listen) {
        Ok(api) => Ok(Some(api)),
        Err(e) if texts.is_empty() => {
            tracing::error!("there is no API: {e}; say another address with --api, or --api none");
            Ok(None)
        }
        Err(e) => Err(e.into()),
    }
}

/// Seconds since 1970 as people see them.
fn at(seconds: i64) -> String {
    Time(u64::try_from(seconds).unwrap_or(0).saturating_mul(1_000_000_000)).short()
}

fn ask(way: &Way, command: MgmtCommand) -> Result<(), Problem> {
    match command {
        MgmtCommand::Token(TokenCommand::Create(a)) => {
            let new = TokenRequest {
                role: a.role.word().to_owned(),
                name: a.name,
                id: a.id,
                appliance: a.appliance,
                replace: a.replace,
                ttl_seconds: a.ttl.as_secs(),
            };
            let made: TokenMade = way.call("POST", "/v1/join-tokens", Some(&new))?;
            if a.json {
                return put_json(&made);
            }
            eprintln!("for joining as {}, once, until {}", made.role, made.expires.short());
            put(&format!("{}\n", made.token))
        }
        MgmtCommand::ApiToken(command) => api_token(way, command),
        MgmtCommand::Ca { pin } => {
            let ca: Ca = way.get("/v1/ca")?;
            put(&if pin { format!("{}\n", ca.pin) } else { ca.certificate })
        }
        // It asks nobody.
        MgmtCommand::Openapi => put(&openapi::text()),
        MgmtCommand::Ls { json } => {
            let members: Members = way.get("/v1/members")?;
            if json { put_json(&members) } else { put(&list(&members)) }
        }
        MgmtCommand::Revoke { what, json } => {
            let done: RevokeDone = way.call("DELETE", &format!("/v1/members/{}", escape(&what)), None::<&()>)?;
            if json { put_json(&done) } else { put(&told(&done)) }
        }
        MgmtCommand::Audit { limit, json } => {
            let rows: List<AuditLine> = way.get(&format!("/v1/audit?limit={limit}"))?;
            if json {
                return put_json(&rows.items);
            }
            let line = |r: AuditLine| vec![r.time.short(), r.who, r.action, r.object, r.detail];
            put(&headed(&["TIME", "WHO", "DID", "TO", ""], rows.items.into_iter().map(line).collect()))
        }
        MgmtCommand::Certify { name, host, to } => certify(way, name, host, &to),
    }
}

fn api_token(way: &Way, command: ApiTokenCommand) -> Result<(), Problem> {
    match command {
        ApiTokenCommand::Create { name, role, ttl, json } => {
            let new = NewApiToken { name, role: role.into(), ttl_seconds: ttl.as_secs() };
            let made: ApiTokenMade = way.call("POST", "/v1/api-tokens", Some(&new))?;
            if json {
                return put_json(&made);
            }
            eprintln!("API token {} of '{}' as {}, until {}", made.id, made.name, made.role, made.expires.short());
            put(&format!("{}\n", made.token))
        }
        ApiTokenCommand::Ls { json } => {
            let tokens: Vec<ApiToken> = way.get::<List<ApiToken>>("/v1/api-tokens")?.items;
            if json {
                return put_json(&tokens);
            }
            let state = |t: &ApiToken| match t.revoked {
                Some(at) => format!("revoked {}", at.short()),
                None if t.expires <= Time::now() => "expired".to_owned(),
                None => "valid".to_owned(),
            };
            let line =
                |t: &ApiToken| vec![t.id.to_string(), t.name.clone(), t.role.to_string(), state(t), t.expires.short()];
            put(&headed(&["ID", "NAME", "ROLE", "STATE", "UNTIL"], tokens.iter().map(line).collect()))
        }
        ApiTokenCommand::Revoke { id } => {
            way.delete(&format!("/v1/api-tokens/{id}"))?;
            put(&format!("API token {id} counts no more\n"))
        }
    }
}

pub(crate) fn headed(head: &[&str], lines: Vec<Vec<String>>) -> String {
    let head = head.iter().map(|&word| word.to_owned()).collect();
    table(&[vec![head], lines].concat())
}

fn list(members: &Members) -> String {
    let lines = members.members.iter().map(|m| {
        let valid = members.certificates.iter().filter(|c| c.member == m.id && c.revoked.is_none());
        let state = match (m.revoked, members.connected.contains(&m.id)) {
            (Some(_), _) => "revoked",
            (None, true) => "connected",
            (None, false) => "away",
        };
        let until = valid.map(|c| c.not_after).max().map_or_else(|| "-".to_owned(), at);
        vec![m.name.clone(), m.role.clone(), state.to_owned(), until, m.host.clone(), m.id.clone()]
    });
    let mut out = headed(&["NAME", "ROLE", "STATE", "CERTIFICATE UNTIL", "HOST", "ID"], lines.collect());
    for c in members.certificates.iter().filter(|c| c.role == "nbd" && c.revoked.is_none()) {
        out.push_str(&format!("NBD certificate {} ({}), until {}\n", c.name, c.serial, at(c.not_after)));
    }
    for t in &members.tokens {
        let name = t.name.as_deref().unwrap_or("the host's name");
        out.push_str(&format!("token {} for {} as {name}, until {}\n", t.id, t.role, at(t.expires)));
    }
    out
}

fn told(done: &RevokeDone) -> String {
    let mut out = format!("{}: {} certificates revoked\n", done.name, done.certificates);
    for name in &done.reached {
        out.push_str(&format!("appliance {name} refuses it now\n"));
    }
    for name in &done.waiting {
        out.push_str(&format!(
            "appliance {name} is not connected: it still takes it until it has reached mgmt again\n"
        ));
    }
    out
}

/// Makes a key here and has it certified, as files that QEMU, libnbd and nbdkit know.
fn certify(way: &Way, name: String, hosts: Vec<String>, to: &Path) -> Result<(), Problem> {
    let kind = if hosts.is_empty() { "client" } else { "server" };
    let fresh = csr::fresh().map_err(|e| Problem::failed(e.to_string()))?;
    let (key_file, certificate_file) = (to.join(format!("{kind}-key.pem")), to.join(format!("{kind}-cert.pem")));
    if key_file.exists() || certificate_file.exists() {
        return Err(Problem::failed(format!("{} has a {kind}'s key already: name another folder", to.display())));
    }
    let request = hex(&fresh.request);
    let ask = CertifyRequest { request, name, hosts };
    let made: Certified = way.call("POST", "/v1/certificates", Some(&ask))?;
    let write =
        |path: &Path, text: &str| crashsafe::replace(path, text.as_bytes()).map_err(|e| Problem::file(path, &e));
    crashsafe::create_folders(to).map_err(|e| Problem::file(to, &e))?;
    write(&to.join("ca-cert.pem"), &made.authority)?;
    write(&certificate_file, &made.certificate)?;
    write(&key_file, &csr::pem("PRIVATE KEY", &fresh.key))?;
    put(&format!("{}\n{}\n{}\n", to.join("ca-cert.pem").display(), certificate_file.display(), key_file.display()))
}

//! The commands that ask mgmt, all by its API: from any host over HTTPS, on its own host over the control socket.
//!
//! Where mgmt is and who asks come from flags, then the environment, then a file (`$AFTERIMAGE_MGMT_CONFIG`, else
//! `$XDG_CONFIG_HOME/afterimage/mgmt.toml`, else `~/.config/afterimage/mgmt.toml`). The token is never on the command line.

pub mod cli;
pub mod points;
mod way;

pub use way::Way;

use crate::mgmt::{headed, parse_api};
use crate::problem::Problem;
use crate::show::{put, put_json};
use afterimage_mgmt::api::client::{ApiClient, ApiError, escape};
use afterimage_mgmt::api::key::ApiKey;
use afterimage_mgmt::api::types::{
    ApplianceView, Event, Events, Finding, Job, Level, List, Machine, NewMachine, NewPolicy, Policy, PolicyChange,
    ProtectRequest, Protected, ReadinessReport, ReadinessRequest, VolumeView,
};
use afterimage_mgmt::retention::Retention;
use afterimage_mgmt::units::{Time, format_duration, format_size};
use afterimage_trust::identity::unhex;
use cli::{
    ApplianceListArgs, EventCommand, JobCommand, MachineCommand, PolicyArgs, PolicyCommand, ProtectArgs, RemoteArgs,
    WayArgs,
};
use serde::Deserialize;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// One wait for events, in seconds.
const WAIT: u32 = 30;
/// Longest token file.
const MAX_TOKEN: u64 = 4096;

/// The file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RemoteFile {
    address: Option<String>,
    token_file: Option<PathBuf>,
    ca_pin: Option<String>,
}

fn file() -> Result<RemoteFile, Problem> {
    if let Some(path) = std::env::var_os("AFTERIMAGE_MGMT_CONFIG") {
        return crate::config::load(Path::new(&path));
    }
    let under = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from);
    let under = under.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config")));
    match under.map(|dir| dir.join("afterimage/mgmt.toml")) {
        Some(path) if path.exists() => crate::config::load(&path),
        _ => Ok(RemoteFile::default()),
    }
}

fn read_token(path: &Path) -> Result<String, Problem> {
    let mut text = String::new();
    if path == Path::new("-") {
        std::io::stdin().take(MAX_TOKEN).read_to_string(&mut text)?;
        return Ok(text);
    }
    let failed = |e| Problem::file(path, &e);
    let open = std::fs::File::open(path).map_err(failed)?;
    let mode = open.metadata().map_err(failed)?.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(Problem::failed(format!(
            "{} can be read by others than its owner: chmod 600, and make a new token if somebody may have read it",
            path.display()
        )));
    }
    open.take(MAX_TOKEN).read_to_string(&mut text).map_err(failed)?;
    Ok(text)
}

/// The API over HTTPS, if anything says that it is meant.
fn https(args: &WayArgs) -> Result<Option<ApiClient>, Problem> {
    let file = file()?;
    let environment = |name: &str| std::env::var(name).ok().filter(|t| !t.is_empty());
    let (address, token) = (environment("AFTERIMAGE_MGMT"), environment("AFTERIMAGE_API_TOKEN"));
    let said = [address.is_some(), token.is_some(), file.address.is_some(), file.token_file.is_some()];
    if args.mgmt.is_none() && args.token_file.is_none() && !said.contains(&true) {
        return Ok(None);
    }
    let address = match &args.mgmt {
        Some(endpoint) => endpoint.clone(),
        None => {
            let text = address.or(file.address).ok_or_else(|| {
                Problem::usage(
                    "where is mgmt? Say it with --mgmt HOST[:PORT], $AFTERIMAGE_MGMT, or address in mgmt.toml",
                )
            })?;
            parse_api(&text).map_err(Problem::usage)?
        }
    };
    let token = match (&args.token_file, token, &file.token_file) {
        (Some(path), ..) | (None, None, Some(path)) => read_token(path)?,
        (None, Some(text), _) => text,
        (None, None, None) => {
            return Err(Problem::usage(
                "mgmt wants a token: --token-file FILE, $AFTERIMAGE_API_TOKEN, or token_file in mgmt.toml; \
                 `afterimage mgmt api-token create` on the host of mgmt makes one",
            ));
        }
    };
    let key: ApiKey = token.parse().map_err(|e: afterimage_mgmt::api::key::BadKey| Problem::usage(e.to_string()))?;
    let pin = args.ca_pin.clone().or(file.ca_pin).map(|text| {
        let bytes = unhex(text.trim()).and_then(|b| <[u8; 32]>::try_from(b).ok());
        bytes.ok_or_else(|| Problem::usage(format!("'{text}' is no SHA-256: 64 hexadecimal digits")))
    });
    Ok(Some(ApiClient { address, key, pin: pin.transpose()? }))
}

fn client(args: &RemoteArgs) -> Result<Way, Problem> {
    Way::of(&args.way)
}

fn lag(seconds: Option<f64>) -> String {
    seconds.map_or_else(|| "-".to_owned(), |s| format!("{s:.1} s"))
}

fn dash(text: Option<String>) -> String {
    text.unwrap_or_else(|| "-".to_owned())
}

fn findings(list: &[Finding]) -> String {
    let mut out = String::new();
    for f in list {
        let level = match f.level {
            Level::Ok => "ok     ",
            Level::Warning => "warning",
            Level::Error => "ERROR  ",
        };
        out.push_str(&format!("{:>3}. {level}  {:<10} {}\n", f.number, f.check, f.text));
        if let Some(remedy) = &f.remedy {
            out.push_str(&format!("{:26}-> {remedy}\n", ""));
        }
    }
    out
}

/// `afterimage machine`.
///
/// # Errors
/// What mgmt says, or what keeps it from being asked.
pub fn machine(command: MachineCommand) -> Result<(), Problem> {
    match command {
        MachineCommand::Ls(remote) => list_machines(&remote),
        MachineCommand::Show { machine, remote } => show_machine(&machine, &remote),
        MachineCommand::Check { machine, disk, remote } => check_machine(&machine, disk, &remote),
        MachineCommand::Protect(args) => protect(*args),
        MachineCommand::Unprotect { machine, remote } => {
            let path = format!("/v1/machines/{}/protect", escape(&machine));
            client(&remote)?.delete(&path)?;
            put(&format!("machine {machine} has no policy any more\n"))
        }
        MachineCommand::Create { name, agent, volume, remote } => {
            let new = NewMachine { name, agent, volumes: volume };
            let made: Machine = client(&remote)?.call("POST", "/v1/machines", Some(&new))?;
            if remote.json {
                put_json(&made)
            } else {
                put(&format!("machine {}, {} volumes\n", made.name, made.volumes))
            }
        }
        MachineCommand::DropVolume { machine, volume, remote } => {
            let path = format!("/v1/volumes/{}", escape(&format!("{machine}/{volume}")));
            client(&remote)?.delete(&path)?;
            put(&format!("machine {machine} is complete without volume {volume}; its history stays\n"))
        }
        MachineCommand::Rm { machine, remote } => {
            let path = format!("/v1/machines/{}", escape(&machine));
            client(&remote)?.delete(&path)?;
            put(&format!("machine {machine} is forgotten\n"))
        }
    }
}

fn list_machines(remote: &RemoteArgs) -> Result<(), Problem> {
    let list: List<Machine> = client(remote)?.get("/v1/machines")?;
    if remote.json {
        return put_json(&list.items);
    }
    let line = |m: Machine| {
        vec![
            m.name,
            if m.revoked.is_some() { "revoked".to_owned() } else { m.state },
            m.volumes.to_string(),
            format_size(m.size),
            lag(m.lag_seconds),
            dash(m.policy),
            m.appliance,
            m.host,
        ]
    };
    let head = ["NAME", "STATE", "VOLUMES", "SIZE", "LAG", "POLICY", "APPLIANCE", "HOST"];
    put(&headed(&head, list.items.into_iter().map(line).collect()))
}

fn show_machine(name: &str, remote: &RemoteArgs) -> Result<(), Problem> {
    let client = client(remote)?;
    let machine: Machine = client.get(&format!("/v1/machines/{}", escape(name)))?;
    let volumes: List<VolumeView> = client.get(&format!("/v1/volumes?machine={}", escape(name)))?;
    if remote.json {
        return put_json(&serde_json::json!({ "machine": machine, "volumes": volumes.items }));
    }
    let mut out = format!(
        "machine {} ({}) on {}, appliance {}, {}\n",
        machine.name, machine.id, machine.host, machine.appliance, machine.state
    );
    if let (Some(policy), Some(target)) = (&machine.policy, &machine.target) {
        let networks: Vec<String> = target.network.iter().map(|n| format!("{} as {}", n.source, n.target)).collect();
        out.push_str(&format!(
            "policy {policy}; history in {} of {}; a failover would run on {} as {}, with {}\n",
            target.store,
            target.appliance,
            target.failover_host,
            target.failover_name,
            if networks.is_empty() { "no network".to_owned() } else { networks.join(", ") }
        ));
    }
    let line = |v: VolumeView| {
        vec![
            v.name,
            v.state,
            format_size(v.size),
            lag(v.now.as_ref().map(|n| n.lag_seconds)),
            dash(v.history.as_ref().map(|h| h.points.to_string())),
            dash(v.history.as_ref().and_then(|h| h.durable_time).map(Time::short)),
            v.path,
        ]
    };
    let head = ["VOLUME", "STATE", "SIZE", "LAG", "POINTS", "DURABLE UNTIL", "DISK"];
    out.push_str(&headed(&head, volumes.items.into_iter().map(line).collect()));
    put(&out)
}

fn check_machine(name: &str, disks: Vec<String>, remote: &RemoteArgs) -> Result<(), Problem> {
    let path = format!("/v1/machines/{}/readiness", escape(name));
    let report: ReadinessReport = client(remote)?.call("POST", &path, Some(&ReadinessRequest { disks }))?;
    if remote.json {
        put_json(&report)?;
    } else {
        put(&findings(&report.findings))?;
    }
    if report.ready { Ok(()) } else { Err(Problem::failed(format!("machine '{name}' is not ready"))) }
}

fn protect(args: ProtectArgs) -> Result<(), Problem> {
    let ask = ProtectRequest {
        policy: args.policy,
        dry_run: args.dry_run,
        force: args.force,
        disks: args.disk,
        store: args.store,
        failover_host: args.failover_host,
        failover_name: args.failover_name,
        network: args.network,
    };
    let path = format!("/v1/machines/{}/protect", escape(&args.machine));
    let done: Protected = match client(&args.remote)?.call("POST", &path, Some(&ask)) {
        Err(ApiError::Refused(no)) if !no.findings.is_empty() && !args.remote.json => {
            put(&findings(&no.findings))?;
            return Err(Problem::failed(format!("{}; --force goes on all the same", no.detail)));
        }
        done => done?,
    };
    if args.remote.json {
        return put_json(&done);
    }
    let t = &done.target;
    let mut out = findings(&done.findings);
    out.push_str(&format!(
        "machine {} {} by policy {}; history in {} of {}; a failover would run on {} as {}\n",
        done.machine,
        if done.done { "is protected" } else { "would be protected" },
        done.policy,
        t.store,
        t.appliance,
        t.failover_host,
        t.failover_name
    ));
    for n in &t.network {
        out.push_str(&format!("network {} becomes {}\n", n.source, n.target));
    }
    for volume in &done.added {
        out.push_str(&format!("new volume {volume}: its initial sync has begun\n"));
    }
    put(&out)
}

fn change(args: &PolicyArgs) -> Result<PolicyChange, Problem> {
    let whole = |time: Option<Duration>, unit: u64, what: &str| match time {
        Some(t) if t.subsec_nanos() != 0 || t.as_secs() % unit != 0 => {
            Err(Problem::usage(format!("{what} is in whole {}", if unit == 1 { "seconds" } else { "minutes" })))
        }
        time => Ok(time.map(|t| u32::try_from(t.as_secs() / unit).unwrap_or(u32::MAX))),
    };
    Ok(PolicyChange {
        window_seconds: args.window.map(|w| w.as_secs()),
        hourly: args.hourly,
        daily: args.daily,
        weekly: args.weekly,
        monthly: args.monthly,
        crash_interval_seconds: whole(args.crash_every, 1, "--crash-every")?,
        app_interval_minutes: whole(args.app_every, 60, "--app-every")?,
        allow_partial: args.allow_partial,
    })
}

fn policies(list: &[Policy]) -> String {
    let every = |n: u32, unit: u64| match n {
        0 => "-".to_owned(),
        n => format_duration(Duration::from_secs(u64::from(n) * unit)),
    };
    let line = |p: &Policy| {
        let s = &p.settings;
        vec![
            p.name.clone(),
            format_duration(Duration::from_secs(s.window_seconds)),
            format!("{}/{}/{}/{}", s.hourly, s.daily, s.weekly, s.monthly),
            every(s.crash_interval_seconds, 1),
            every(s.app_interval_minutes, 60),
            if s.allow_partial { "yes" } else { "no" }.to_owned(),
            p.machines.join(" "),
            p.groups.join(" "),
        ]
    };
    let head = [
        "NAME",
        "ANY WRITE OF",
        "HOURS/DAYS/WEEKS/MONTHS",
        "CRASH EVERY",
        "APP EVERY",
        "PARTIAL",
        "MACHINES",
        "GROUPS",
    ];
    headed(&head, list.iter().map(line).collect())
}

/// `afterimage policy`.
///
/// # Errors
/// What mgmt says, or what keeps it from being asked.
pub fn policy(command: PolicyCommand) -> Result<(), Problem> {
    let at = |name: &str| format!("/v1/policies/{}", escape(name));
    let (policy, json): (Policy, bool) = match command {
        PolicyCommand::Ls(remote) => {
            let list: List<Policy> = client(&remote)?.get("/v1/policies")?;
            return if remote.json { put_json(&list.items) } else { put(&policies(&list.items)) };
        }
        PolicyCommand::Rm { policy, remote } => {
            client(&remote)?.delete(&at(&policy))?;
            return put(&format!("policy {policy} is removed\n"));
        }
        PolicyCommand::Preview { policy, volume, remote } => {
            let path = format!("/v1/volumes/{}/kept?policy={}", escape(&volume), escape(&policy));
            let kept: Retention = client(&remote)?.get(&path)?;
            return if remote.json { put_json(&kept) } else { put(&crate::cmd::retention::text(&kept)) };
        }
        PolicyCommand::Show { policy, remote } => (client(&remote)?.get(&at(&policy))?, remote.json),
        PolicyCommand::Create { policy, settings, remote } => {
            let new = NewPolicy { name: policy, settings: change(&settings)? };
            (client(&remote)?.call("POST", "/v1/policies", Some(&new))?, remote.json)
        }
        PolicyCommand::Set { policy, settings, remote } => {
            (client(&remote)?.call("PATCH", &at(&policy), Some(&change(&settings)?))?, remote.json)
        }
    };
    if json { put_json(&policy) } else { put(&policies(&[policy])) }
}

fn print_event(e: &Event, json: bool) -> Result<(), Problem> {
    if json {
        return put(&format!("{}\n", serde_json::to_string(e)?));
    }
    put(&format!("{:>6}  {}  {:<7}  {:<13}  {}\n", e.id, e.time.short(), e.severity, e.kind, e.text))
}

/// `afterimage event`. With `--json` each line is an object.
///
/// # Errors
/// What mgmt says, or what keeps it from being asked.
pub fn event(command: EventCommand) -> Result<(), Problem> {
    let EventCommand::Ls { follow, after, limit, remote } = command;
    let client = client(&remote)?;
    let first = after.map_or_else(String::new, |after| format!("&after={after}"));
    let mut got: Events = client.get(&format!("/v1/events?limit={limit}{first}"))?;
    loop {
        for e in &got.events {
            print_event(e, remote.json)?;
        }
        if !follow {
            return Ok(());
        }
        got = next(&client, got.next)?;
    }
}

/// Waits for the next events. A mgmt that is away for a while is waited for, too.
fn next(client: &Way, after: i64) -> Result<Events, Problem> {
    let mut told = false;
    loop {
        match client.get(&format!("/v1/events?after={after}&limit=1000&wait={WAIT}")) {
            Err(e @ (ApiError::Connection(..) | ApiError::Here(_))) => {
                if !std::mem::replace(&mut told, true) {
                    eprintln!("afterimage: {e}; waiting for it");
                }
                std::thread::sleep(Duration::from_secs(1));
            }
            done => return Ok(done?),
        }
    }
}

/// `afterimage job`.
///
/// # Errors
/// What mgmt says, or what keeps it from being asked.
pub fn job(command: JobCommand) -> Result<(), Problem> {
    let JobCommand::Ls { limit, remote } = command;
    let list: List<Job> = client(&remote)?.get(&format!("/v1/jobs?limit={limit}"))?;
    if remote.json {
        return put_json(&list.items);
    }
    let line = |j: Job| vec![j.id.to_string(), j.created.short(), j.kind, j.object, j.state, j.who, j.text];
    let head = ["ID", "BEGUN", "WHAT", "TO", "STATE", "BY", ""];
    put(&headed(&head, list.items.into_iter().map(line).collect()))
}

/// `afterimage appliance ls`.
///
/// # Errors
/// What mgmt says, or what keeps it from being asked.
pub fn appliances(args: &ApplianceListArgs) -> Result<(), Problem> {
    let list: List<ApplianceView> = client(&args.remote)?.get("/v1/appliances")?;
    if args.remote.json {
        return put_json(&list.items);
    }
    let line = |a: ApplianceView| {
        let state = match (a.revoked, a.connected) {
            (Some(_), _) => "revoked",
            (None, true) => "connected",
            (None, false) => "away",
        };
        vec![
            a.name,
            state.to_owned(),
            dash(a.volumes.map(|n| n.to_string())),
            dash(a.stored_bytes.map(format_size)),
            dash(a.logical_bytes.map(format_size)),
            a.listen.join(" "),
            a.host,
        ]
    };
    let head = ["NAME", "STATE", "VOLUMES", "STORED", "WRITTEN", "LISTENS AT", "HOST"];
    put(&headed(&head, list.items.into_iter().map(line).collect()))
}

//! `afterimage agent` and `afterimage appliance`: one role in a process of its own. What the configuration file says,
//! flags override.

use crate::app::AppSettings;
use crate::cli::{AgentArgs, ApplianceArgs, Cache, DataArgs, KeyArgs, NbdTlsArgs, OnFence, OnForeignWrite};
use crate::cmd::retention::TierArgs;
use crate::config::{self, AgentFile, ApplianceFile, RingSize, VolumeTable};
use crate::daemon::{AgentSettings, ApplianceSettings, Disk, Reach, Settings, Trusted};
use crate::data::DataDir;
use crate::problem::Problem;
use crate::site::load_taken;
use crate::up::{key_source, listeners, nbd_tls, parse_disk};
use crate::{screen, serve, signals};
use afterimage_appliance::MinFree;
use afterimage_base::net::Endpoint;
use afterimage_nbd::Listen;
use afterimage_trust::{Role, Trust, TrustError, folder};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

const RING: u64 = 128 << 20;
const POINT_EVERY: Duration = Duration::from_secs(300);
const WINDOW: Duration = Duration::from_secs(24 * 3600);

fn data_dir(flag: &DataArgs, file: Option<PathBuf>) -> Result<DataDir, Problem> {
    let folder = flag.data.clone().or(file).map_or_else(|| flag.folder(), Ok)?;
    DataDir::create(&folder)
}

fn load<T: Default + serde::de::DeserializeOwned>(file: Option<&Path>) -> Result<T, Problem> {
    file.map_or_else(|| Ok(T::default()), config::load)
}

/// Plain text stays on this machine unless the user has said otherwise.
fn plain_text_allowed(endpoint: &Endpoint, insecure: bool, role: &str) -> Result<(), Problem> {
    if insecure || endpoint.is_local() {
        return Ok(());
    }
    Err(Problem::usage(format!(
        "{endpoint}: this {role} has no certificate, so the stream is not encrypted and nobody is asked who he is, so it must not \
         leave this machine: let it join mgmt (afterimage {role} join), use an address of this machine, or allow it with \
         --insecure, or insecure = true in the file"
    )))
}

/// A host that has a certificate has no way back to plain text.
fn no_plain_text(role: &str) -> Problem {
    Problem::usage(format!(
        "this {role} has joined mgmt, so its stream is encrypted; insecure cannot be said as well. Leave it out, or use a data \
         folder that has not joined"
    ))
}

fn load_trust(data: &Path, role: Role) -> Result<Option<Trusted>, TrustError> {
    let trust = Trust::load(data)?;
    if let Some(trust) = &trust {
        folder::expect_role(&trust.credentials(), role)?;
    }
    Ok(trust.map(Trusted))
}

/// How the agent reaches its appliance. Credentials that cannot be used keep nobody from his disks, and never mean plain text.
fn reach(endpoint: Endpoint, insecure: bool, data: &Path) -> Result<Reach, Problem> {
    let trust = match (load_trust(data, Role::Agent), &endpoint) {
        (Ok(None), _) => {
            plain_text_allowed(&endpoint, insecure, "agent")?;
            return Ok(Reach::At { endpoint, local_only: !insecure });
        }
        // A unix socket is this user's own.
        (Ok(Some(_)), Endpoint::Unix(_)) => return Ok(Reach::At { endpoint, local_only: true }),
        (Ok(Some(trust)), _) => Ok(trust),
        (Err(e), _) => Err(e.to_string()),
    };
    if insecure {
        return Err(no_plain_text("agent"));
    }
    Ok(Reach::Secure { endpoint, trust })
}

fn trust_of(reach: &Reach) -> Option<Arc<Trust>> {
    match reach {
        Reach::Secure { trust: Ok(trust), .. } => Some(Arc::clone(&trust.0)),
        _ => None,
    }
}

/// Disks, and how their points are made app-consistent.
type Disks = (Vec<Disk>, BTreeMap<String, AppSettings>);

fn disks(file: &AgentFile, args: &AgentArgs, data: &Path) -> Result<Disks, Problem> {
    let named: Result<Vec<VolumeTable>, Problem> = args
        .disks
        .iter()
        .map(|text| {
            parse_disk(text).map(|d| VolumeTable {
                name: Some(d.name),
                path: d.path,
                ring: None,
                cache: None,
                adopt: None,
                app: None,
            })
        })
        .collect();
    let ring = args.ring.or(file.ring).unwrap_or(RingSize(RING));
    let cache = args.cache.or(file.cache).unwrap_or(Cache::Writeback);
    let mut seen = BTreeMap::new();
    let (mut out, mut apps) = (Vec::new(), BTreeMap::new());
    for volume in file.volumes.iter().cloned().chain(named?) {
        let name = match volume.name {
            Some(name) => name,
            None => parse_disk(&volume.path.display().to_string())?.name,
        };
        if let Some(other) = seen.insert(name.clone(), volume.path.clone()) {
            return Err(Problem::usage(format!(
                "two volumes are named '{name}' ({} and {}): give one of them another name",
                other.display(),
                volume.path.display()
            )));
        }
        // A flag is for all volumes, also for those of which the file says more.
        let ring = args.ring.or(volume.ring).unwrap_or(ring);
        let cache = args.cache.or(volume.cache).unwrap_or(cache).into();
        if let Some(table) = volume.app {
            apps.insert(name.clone(), table.settings(&name)?);
        }
        let flagged = args.adopt.iter().find(|a| a.name == name).map(|a| a.id);
        out.push(Disk { name, path: volume.path, ring: ring.0, cache, adopt: flagged.or(volume.adopt) });
    }
    // What mgmt had it take stays protected, also where it may ask for no more.
    for taken in load_taken(&data.join("agent")).map_err(Problem::failed)? {
        if out.iter().all(|d| d.name != taken.name && d.path != taken.path) {
            out.push(Disk { name: taken.name, path: taken.path, ring: ring.0, cache: cache.into(), adopt: None });
        }
    }
    if let Some(lone) = args.adopt.iter().find(|a| out.iter().all(|d| d.name != a.name)) {
        return Err(Problem::usage(format!(
            "--adopt names volume '{0}', and no disk does: give it as {0}=PATH, too",
            lone.name
        )));
    }
    Ok((out, apps))
}

fn agent_settings(mut file: AgentFile, args: AgentArgs, data: &Path) -> Result<AgentSettings, Problem> {
    let insecure = args.insecure || file.insecure.unwrap_or(false);
    let (disks, apps) = disks(&file, &args, data)?;
    let ring = args.ring.or(file.ring).unwrap_or(RingSize(RING)).0;
    let cache = args.cache.or(file.cache).unwrap_or(Cache::Writeback).into();
    let endpoint = args.appliance.or(file.appliance.take()).ok_or_else(|| {
        Problem::usage("the agent does not know its appliance: give --appliance ADDRESS, or appliance = in the file")
    })?;
    let reach = reach(endpoint, insecure, data)?;
    let tls = NbdTlsArgs {
        nbd_tls: args.tls.nbd_tls.or(file.nbd_tls),
        nbd_tls_dir: args.tls.nbd_tls_dir.clone().or(file.nbd_tls_dir.clone()),
    };
    let listen = if args.listen.is_empty() { file.listen } else { args.listen };
    let every = args.point_every.or(file.point_every.map(|s| s.0)).unwrap_or(POINT_EVERY);
    Ok(AgentSettings {
        disks,
        listen: listeners(listen, data)?,
        sync_rate: args.sync_rate.or(file.sync_rate.map(|s| s.0)).unwrap_or(0),
        point_every: Some(every).filter(|d| !d.is_zero()),
        foreign: args.on_foreign_write.or(file.on_foreign_write).unwrap_or(OnForeignWrite::Compare).into(),
        fence: args.on_fence.or(file.on_fence).unwrap_or(OnFence::ReadOnly).into(),
        resize: args.resize,
        take_disks: args.take_disks || file.take_disks.unwrap_or(false),
        new_disks: (ring, cache),
        tls: nbd_tls(&tls, trust_of(&reach))?,
        apps,
        reach,
    })
}

/// Runs the agent until a signal.
///
/// # Errors
/// If something is in the way of the start.
pub fn agent(args: AgentArgs) -> Result<(), Problem> {
    let signals = signals::watch()?;
    screen::log(screen::INFO);
    let mut file: AgentFile = load(args.config.as_deref())?;
    let data = data_dir(&args.data, file.data.take())?;
    let agent = agent_settings(file, args, data.path())?;
    serve::run(data, Settings { agent: Some(agent), appliance: None }, &signals)
}

fn appliance_settings(file: ApplianceFile, args: ApplianceArgs, data: &Path) -> Result<ApplianceSettings, Problem> {
    let insecure = args.insecure || file.insecure.unwrap_or(false);
    let listen = if args.listen.is_empty() { file.listen } else { args.listen };
    let trust = load_trust(data, Role::Appliance).map_err(|e| Problem::failed(e.to_string()))?;
    if trust.is_some() && insecure {
        return Err(no_plain_text("appliance"));
    }
    for endpoint in listen.iter().filter(|_| trust.is_none()) {
        plain_text_allowed(endpoint, insecure, "appliance")?;
    }
    if file.key_file.is_some() && file.passphrase_file.is_some() {
        return Err(Problem::usage("key_file and passphrase_file are both given: the vault has one key"));
    }
    let flagged = args.key.key_file.is_some() || args.key.passphrase_file.is_some();
    let key =
        if flagged { args.key } else { KeyArgs { key_file: file.key_file, passphrase_file: file.passphrase_file } };
    let window = args.window.or(file.window.map(|s| s.0)).unwrap_or(WINDOW);
    let threads = args.threads.or(file.threads);
    if threads == Some(0) || file.connections_per_address == Some(0) {
        return Err(Problem::usage("threads and connections_per_address must be at least 1"));
    }
    let bytes = |s: config::Size| usize::try_from(s.0).unwrap_or(usize::MAX);
    let passed = afterimage_nbd::systemd_listeners()?.into_iter();
    Ok(ApplianceSettings {
        listen,
        passed: passed.filter_map(|l| if let Listen::Fd(fd) = l { Some(fd) } else { None }).collect(),
        trust,
        per_address: file.connections_per_address,
        threads,
        memory: [file.dedupe_memory, file.frame_memory, file.layer_memory, file.ahead_memory].map(|m| m.map(bytes)),
        order_rate: file.order_rate.map(|s| s.0),
        collect_every: file.collect_every.map(|s| s.0.max(Duration::from_secs(1))),
        tiers: TierArgs {
            hourly: args.tiers.hourly.or(file.hourly),
            daily: args.tiers.daily.or(file.daily),
            weekly: args.tiers.weekly.or(file.weekly),
            monthly: args.tiers.monthly.or(file.monthly),
        },
        min_free: args.min_free.or(file.min_free.map(|f| f.0)).unwrap_or(MinFree::Auto),
        ..ApplianceSettings::new(window, key_source(&key, data)?)
    })
}

/// Runs the appliance until a signal.
///
/// # Errors
/// If something is in the way of the start.
pub fn appliance(args: ApplianceArgs) -> Result<(), Problem> {
    let signals = signals::watch()?;
    screen::log(screen::INFO);
    let mut file: ApplianceFile = load(args.config.as_deref())?;
    let data = data_dir(&args.data, file.data.take())?;
    let appliance = appliance_settings(file, args, data.path())?;
    serve::run(data, Settings { agent: None, appliance: Some(appliance) }, &signals)
}

#[cfg(test)]
#[path = "roles_tests.rs"]
mod tests;

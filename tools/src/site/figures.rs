//! What a volume's status is made of: the agent's part and the appliance's.

use super::{Local, Served, fences};
use afterimage_agent::{Volume, VolumeState};
use afterimage_appliance::history::timeline::Wish;
use afterimage_appliance::{Appliance, StoreInfo, VolumeInfo};
use afterimage_mgmt::protocol::{GapNow, State, StoreStatus, SyncInfo, VolumeStatus, Window};
use afterimage_mgmt::units::Time;
use std::path::Path;

/// The id as people see it.
pub(super) fn uuid(id: [u8; 16]) -> String {
    uuid::Uuid::from_bytes(id).to_string()
}

fn state(state: VolumeState) -> State {
    match state {
        VolumeState::InitialSync => State::InitialSync,
        VolumeState::Live => State::Live,
        VolumeState::Dirty => State::Dirty,
        VolumeState::Resync => State::Resync,
        VolumeState::Fenced => State::Fenced,
        VolumeState::Error => State::Error,
    }
}

/// A volume without figures.
pub(super) fn blank(name: &str, path: &Path, size: u64, state: State) -> VolumeStatus {
    VolumeStatus {
        name: name.to_owned(),
        id: String::new(),
        path: path.display().to_string(),
        uri: Vec::new(),
        size,
        state,
        state_since: None,
        reason: None,
        connected: false,
        seq_acked: 0,
        seq_durable: 0,
        lag_seconds: 0.0,
        lag_bytes: 0,
        ring_bytes: 0,
        ring_used: 0,
        dirty_bytes: 0,
        sync: None,
        gap: None,
        gaps: 0,
        points: 0,
        stored_bytes: 0,
        logical_bytes: 0,
        first_seq: None,
        first_time: None,
        durable_time: None,
        devices: Vec::new(),
        epoch: 0,
        fence: None,
    }
}

pub(super) fn of_agent(volume: &Volume) -> VolumeStatus {
    let s = volume.status();
    let mut out = blank(&s.name, &s.path, s.size, state(s.state));
    out.id = uuid(s.id);
    (out.reason, out.epoch) = (s.reason, s.epoch);
    out.connected = s.connected;
    (out.seq_acked, out.seq_durable) = (s.seq_acked, s.seq_durable);
    (out.lag_seconds, out.lag_bytes) = (s.lag_seconds, s.lag_bytes);
    (out.ring_bytes, out.ring_used, out.dirty_bytes) = (s.ring_bytes, s.ring_used, s.dirty_bytes);
    out.sync = s.sync.map(|s| SyncInfo {
        done_bytes: s.done_bytes,
        total_bytes: s.total_bytes,
        compared_bytes: s.compared_bytes,
        sent_bytes: s.sent_bytes,
        bytes_per_second: s.rate,
        cuts: s.cuts,
    });
    out.gap = s.gap_since.map(|since| GapNow { since: Time(since), reason: s.gap_reason });
    (out.state_since, out.gaps) = (Some(Time(s.state_since)), s.gaps);
    out
}

/// What the store says of itself.
pub(super) fn of_store(info: &StoreInfo) -> StoreStatus {
    StoreStatus {
        ingested_bytes: info.ingested_bytes,
        rewritten_bytes: info.rewritten_bytes,
        unordered_bytes: info.unordered_bytes,
        served_bytes: info.read.served_bytes,
        reads: info.read.reads,
        read_bytes: info.read.read_bytes,
        frames: info.read.frames,
    }
}

/// A volume whose disk is elsewhere, as its history shows it.
pub(super) fn of_appliance(appliance: &Appliance, info: &VolumeInfo) -> VolumeStatus {
    let gaps = appliance.gaps(&info.name).unwrap_or_default();
    let (state, since) = match gaps.last() {
        _ if !info.connected => (State::Offline, None),
        Some(gap) if gap.to_seq.is_none() && gap.initial => (State::InitialSync, Some(gap.from_time)),
        Some(gap) if gap.to_seq.is_none() => (State::Resync, Some(gap.from_time)),
        Some(gap) => (State::Live, Some(gap.to_time)),
        None => (State::Live, None),
    };
    let mut out = blank(&info.name, Path::new(""), info.size, state);
    (out.id, out.connected, out.state_since) = (uuid(info.id), info.connected, since.map(Time));
    // What the agent has acknowledged beyond that is known there alone.
    (out.seq_acked, out.seq_durable) = (info.durable_seq, info.durable_seq);
    out
}

pub(super) fn with_history(out: &mut VolumeStatus, appliance: &Appliance, info: &VolumeInfo) {
    out.points = info.points as u64;
    (out.stored_bytes, out.logical_bytes) = (info.stored_bytes, info.logical_bytes);
    if info.durable_seq > 0 {
        out.durable_time = Some(Time(info.durable_time));
    }
    if let Some(w) = window(appliance, info) {
        out.first_seq = Some(w.first_seq);
        out.first_time = Some(w.first_time);
    }
    out.epoch = out.epoch.max(info.standing.epoch);
    if info.standing.fence.is_some() {
        let fence = fences::of(&info.name, &info.standing, info.tail.clone(), info.durable_seq);
        if matches!(out.state, State::Offline | State::Live) {
            out.state = State::Fenced;
            let owner = fence.owner.as_deref().unwrap_or_default();
            out.reason.get_or_insert_with(|| format!("its machine runs elsewhere: failover {owner}"));
        }
        out.fence = Some(fence);
    }
    if let Some(text) = &info.failure {
        out.state = State::Error;
        out.reason = Some(format!("the appliance: {text}"));
    } else if let Some(text) = &info.paused {
        // What a reason says already need not be said twice.
        out.reason.get_or_insert_with(|| format!("the appliance has no room: {text}"));
    }
}

/// The window; `None` while nothing can be chosen.
pub(super) fn window(appliance: &Appliance, info: &VolumeInfo) -> Option<Window> {
    let last_seq = appliance.choose(&info.name, Wish::Latest).ok()?;
    let gaps = appliance.gaps(&info.name).unwrap_or_default();
    let hidden = |seq: u64| gaps.iter().find(|g| seq >= g.from_seq && g.to_seq.is_none_or(|to| seq < to));
    let mut first = (info.first_seq.max(1), info.first_time);
    // A gap at the beginning of the window hides what is before its end.
    while let Some(gap) = hidden(first.0) {
        first = (gap.to_seq?, gap.to_time);
    }
    (first.0 <= last_seq).then_some(Window {
        first_seq: first.0,
        first_time: Time(first.1),
        last_seq,
        last_time: Time(info.durable_time),
    })
}

impl Local {
    /// All volumes that are served or have history here, by name.
    pub(super) fn volumes_now(&self, appliance: Option<&Appliance>) -> Vec<VolumeStatus> {
        let infos = appliance.map(Appliance::volumes).unwrap_or_default();
        let mut volumes: Vec<VolumeStatus> = Vec::new();
        for served in &self.served() {
            let mut v = match served {
                Served::Protected(volume) => of_agent(volume),
                Served::Plain { name, path, device } => blank(name, path, device.geometry().size, State::Unprotected),
            };
            v.uri = self.uris(&v.name);
            let info = infos.iter().find(|i| i.name == v.name && uuid(i.id) == v.id);
            if let (Some(appliance), Some(info)) = (appliance, info) {
                with_history(&mut v, appliance, info);
            }
            volumes.push(v);
        }
        // Branches are shown by `branch ls`, until they stand by themselves.
        for info in infos.iter().filter(|i| !i.fork.is_some_and(|f| f.leans())) {
            if volumes.iter().all(|v| v.name != info.name)
                && let Some(appliance) = appliance
            {
                let mut v = of_appliance(appliance, info);
                with_history(&mut v, appliance, info);
                volumes.push(v);
            }
        }
        for v in &mut volumes {
            v.devices = self.devices_of(&v.name);
        }
        volumes.sort_by(|a, b| a.name.cmp(&b.name));
        volumes
    }
}

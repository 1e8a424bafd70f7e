//! A guest that protects disks of its own, and uses them as block devices of its kernel.

use crate::daemon::number;
use crate::guest::{Builder, Guest, machine};
use serde_json::Value;
use std::time::Duration;

/// How long a script may take: much happens in one, and the guest may be emulated.
pub const LIMIT: Duration = Duration::from_secs(900);

/// A guest that protects these sparse disks (name and MiB), all live.
///
/// # Panics
/// If it does not come up.
#[must_use]
#[track_caller]
pub fn protecting(disks: &[(&str, u32)], processors: u32) -> Guest {
    protecting_in(machine("ublk").processors(processors), disks, &[])
}

/// The same in a guest of this plan, which has devices (volume and path) of its own to protect, too.
///
/// # Panics
/// If it does not come up.
#[must_use]
#[track_caller]
pub fn protecting_in(plan: Builder, disks: &[(&str, u32)], devices: &[(&str, &str)]) -> Guest {
    let script = include_str!("../guest/ublk.sh");
    let mut vm = plan.afterimage().fio().memory(1024).file("/etc/ublk.sh", script).boot();
    vm.run("ip link set lo up; mkdir -p /mnt/e /mnt/x /mnt/past; modprobe xfs");
    for (name, mib) in disks {
        vm.run(&format!("truncate -s {mib}M /run/{name}.raw; echo {name}=/run/{name}.raw >>/run/disks"));
    }
    for (name, path) in devices {
        vm.run(&format!("echo {name}={path} >>/run/disks"));
    }
    ours(&mut vm, "up; answers");
    for name in disks.iter().map(|(name, _)| name).chain(devices.iter().map(|(name, _)| name)) {
        ours(&mut vm, &format!("afterimage wait {name} --timeout 5m"));
    }
    vm
}

/// Runs a script there, with what `tests/guest/ublk.sh` has.
///
/// # Panics
/// If it fails.
#[track_caller]
pub fn ours(vm: &mut Guest, script: &str) -> String {
    vm.run_within(LIMIT, &format!("set +e; . /etc/ublk.sh\nset -e; {script}"))
}

/// The newest write that is acknowledged.
///
/// # Panics
/// If there is no such volume.
#[track_caller]
#[must_use]
pub fn acked(vm: &mut Guest, volume: &str) -> u64 {
    let status: Value = serde_json::from_str(&ours(vm, "afterimage status --json")).expect("a status is JSON");
    let found = status["volumes"].as_array().and_then(|all| all.iter().find(|v| v["name"] == volume));
    number(found.unwrap_or_else(|| panic!("no volume {volume} in {status}")), "seq_acked")
}

//! Agent and appliance, two processes over TCP, are killed with SIGKILL at random moments, one of them or both, while
//! clients write: the load generator on one disk, QEMU (`reconnect-delay`) on another. The clients reconnect and see a pause
//! and no error. After every kill: the disks hold everything that was acknowledged, the newest images at the appliance are
//! the disks, images at random seqs on both sides of the kill show a prefix of what was written.
//!
//! `AFTERIMAGE_KILL_ROUNDS` sets how often; without it, as often as fits three minutes. A failed run is repeated with
//! `AFTERIMAGE_SEED`.

use afterimage_tests::binary::ours;
use afterimage_tests::daemon::number;
use afterimage_tests::data::{self, Chance};
use afterimage_tests::lab::DISK;
use afterimage_tests::pair::{Pair, Role};
use afterimage_tests::process::Process;
use afterimage_tests::proxy::{Proxy, proxy};
use afterimage_tests::tool::tool;
use std::path::Path;
use std::time::{Duration, Instant};

const SIZE: u64 = 24 << 20;
/// The disk that QEMU writes to.
const VM: &str = "vm";
/// How long the test goes on if nobody says how often.
const SHORT: Duration = Duration::from_secs(180);

fn rounds() -> u64 {
    std::env::var("AFTERIMAGE_KILL_ROUNDS").map_or(0, |text| text.parse().expect("AFTERIMAGE_KILL_ROUNDS is a number"))
}

/// How the load of a round writes: one request at a time, judged write by write; or many at once.
fn shape(chance: &mut Chance) -> std::str::Split<'static, char> {
    let shapes = [
        "--connections 1 --depth 1 --max-size 64KiB",
        "--connections 4 --depth 16 --max-size 256KiB",
        "--connections 2 --depth 64 --max-size 16KiB --mix 90,4,4,2",
    ];
    shapes[usize::try_from(chance.below(3)).unwrap_or(0)].split(' ')
}

fn load(pair: &Pair, journal: &Path, chance: &mut Chance) -> Process {
    // The judge knows only what the load itself wrote.
    tool("qemu-io").args(["-f", "raw", "-c", &format!("write -z 0 {SIZE}"), "-c", "flush", &pair.uri()]).run();
    let load = ours("afterimage-load")
        .args(["run", "--uri", &pair.uri(), "--seed", &chance.bits().to_string(), "--journal"])
        .arg(journal)
        .args(["--volume", DISK, "--data"])
        .arg(pair.data(Role::Agent))
        .args(["--duration", "2s", "--reconnect", "100s"])
        .args(shape(chance));
    Process::start(load.into_command(), &pair.path("load.log"))
}

/// QEMU's own client, as a guest's disk has it: writes, flushes, and reads back what it wrote.
fn qemu(pair: &Pair, chance: &mut Chance) -> Process {
    let node = format!(
        "driver=raw,file.driver=nbd,file.server.type=inet,file.server.host=127.0.0.1,file.server.port={},\
         file.export={VM},file.reconnect-delay=100,file.open-timeout=100",
        pair.nbd
    );
    let mut qemu = tool("qemu-io").args(["--image-opts", &node]);
    for step in 0..40 {
        let (at, pattern) = (chance.below(60) * 256, chance.between(1, 255));
        let (write, read) = (format!("write -P {pattern} {at}k 256k"), format!("read -P {pattern} {at}k 256k"));
        qemu = qemu.args(["-c", &write, "-c", if step % 4 == 0 { "flush" } else { "sleep 40" }, "-c", &read]);
    }
    Process::start(qemu.args(["-c", "flush"]).into_command(), &pair.path("qemu.log"))
}

/// Kills one role or both, and starts what was killed again, after a while and in any order.
fn kill(pair: &mut Pair, chance: &mut Chance) -> (&'static str, Duration) {
    let (name, roles): (_, &[Role]) = match chance.below(5) {
        0 | 1 => ("agent", &[Role::Agent]),
        2 | 3 => ("appliance", &[Role::Appliance]),
        _ if chance.below(2) == 0 => ("both, the agent back first", &[Role::Agent, Role::Appliance]),
        _ => ("both, the appliance back first", &[Role::Appliance, Role::Agent]),
    };
    for role in roles {
        pair.kill(*role);
    }
    std::thread::sleep(Duration::from_millis(chance.below(800)));
    let start = Instant::now();
    for role in roles {
        pair.start(*role);
        std::thread::sleep(Duration::from_millis(chance.below(300)));
    }
    pair.wait_live();
    (name, start.elapsed())
}

fn judge(pair: &Pair, journal: &Path, chance: &mut Chance) -> String {
    let verdict = ours("afterimage-load")
        .args(["verify", "--volume", DISK, "--latest", "--samples", "10", "--seed", &chance.bits().to_string()])
        .arg("--journal")
        .arg(journal)
        .arg("--disk")
        .arg(&pair.image)
        .arg("--data")
        .arg(pair.data(Role::Appliance))
        .run_any();
    assert!(verdict.status.success(), "{}\n{}", verdict.describe(), pair.logs());
    verdict.stdout.trim().to_owned()
}

fn assert_vm(pair: &Pair, image: &Path) {
    pair.cli(Role::Agent, "wait").args([VM, "--for", "durable"]).run();
    let restored = pair.path("vm-restored");
    pair.cli(Role::Appliance, "restore").args([VM, "--yes", "--to"]).arg(&restored).run();
    data::assert_same(image, &restored);
}

/// Half of the rounds go through the proxy, which delays and in the end cuts.
fn change_way(pair: &Pair, proxy: &Proxy, chance: &mut Chance) {
    let through = chance.below(2) == 0;
    pair.set_way(if through { proxy.port } else { pair.wire });
    proxy.change(|r| r.delay = Duration::from_millis(chance.below(3)));
    if chance.below(3) == 0 {
        proxy.cut();
    }
}

#[test]
fn nothing_acknowledged_is_lost_by_kills_of_either_role() {
    let mut chance = Chance::seeded();
    let mut pair = Pair::plan(SIZE, "64MiB");
    let proxy = proxy(pair.wire, chance.bits());
    let vm = pair.path("vm.raw");
    data::sparse(&vm, SIZE);
    pair.add_option(&format!("{VM}={}", vm.display()));
    pair.start(Role::Appliance);
    pair.start(Role::Agent);
    pair.wait_live();
    let (start, asked, mut slowest) = (Instant::now(), rounds(), Duration::ZERO);
    for round in 1.. {
        let journal = pair.path("load.journal");
        let before = number(&pair.try_volume(Role::Agent).expect("a status"), "seq_acked");
        let mut load = load(&pair, &journal, &mut chance);
        let mut qemu = qemu(&pair, &mut chance);
        pair.wait_volume(Role::Agent, "written to", |v| number(v, "seq_acked") > before + 20);
        change_way(&pair, &proxy, &mut chance);
        std::thread::sleep(Duration::from_millis(chance.below(1200)));
        let (what, recovery) = kill(&mut pair, &mut chance);
        slowest = slowest.max(recovery);
        let (of_load, of_qemu) = (load.wait_end(), qemu.wait_end());
        assert!(of_load.success(), "round {round}: the load failed: {}\n{}", load.describe(), pair.logs());
        let said = std::fs::read_to_string(pair.path("qemu.log")).unwrap();
        let fine = of_qemu.success() && !said.contains("failed") && !said.contains("rror");
        assert!(fine, "round {round}: QEMU saw an error: {}\n{}", qemu.describe(), pair.logs());
        pair.wait_durable();
        let verdict = judge(&pair, &journal, &mut chance);
        println!("kill {round}, {what}, back after {} ms: {verdict}", recovery.as_millis());
        for file in ["load.journal", "load.log", "qemu.log"] {
            std::fs::remove_file(pair.path(file)).unwrap();
        }
        assert_vm(&pair, &vm);
        if round == asked || (asked == 0 && start.elapsed() > SHORT) {
            println!("{round} kills in {} s, slowest recovery {} ms", start.elapsed().as_secs(), slowest.as_millis());
            break;
        }
    }
    pair.assert_history_is_the_disk();
    assert!(pair.stop(Role::Agent).success(), "{}", pair.logs());
    assert!(pair.stop(Role::Appliance).success(), "{}", pair.logs());
    for role in [Role::Agent, Role::Appliance] {
        pair.cli(role, "check").run();
    }
}

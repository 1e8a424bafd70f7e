//! `afterimage demo`: the main job on a disk of its own, in a few seconds.
//!
//! Nothing is pretended: a file system made by mke2fs, every change written block by block through the NBD socket, ring,
//! wire and store as in `up`, the restore that users run, and e2fsck and a byte compare at the end.

use crate::daemon::{AgentSettings, ApplianceSettings, Daemon, Disk, Reach, Settings};
use crate::data::DataDir;
use crate::problem::Problem;
use crate::restore::{self, Format};
use crate::screen;
use crate::show::put;
use afterimage_agent::CacheMode;
use afterimage_appliance::KeySource;
use afterimage_mgmt::protocol::State;
use afterimage_mgmt::when::When;
use afterimage_nbd::client::{Client, Uri};
use afterimage_nbd::{Address, Listen};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const SIZE: u64 = 64 << 20;
const BLOCK: usize = 4096;
const NAME: &str = "demo";
/// Versions of the report before the attack.
const VERSIONS: usize = 4;
/// Nothing here takes so long unless something is wrong.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs the demonstration.
///
/// # Errors
/// If a tool is missing, or anything is not as it must be.
pub fn run(keep: bool) -> Result<(), Problem> {
    screen::log(screen::WARN);
    let tools = Tools::find()?;
    let folder = tempfile::Builder::new().prefix("afterimage-demo-").tempdir()?;
    let result = Demo::start(&tools, folder.path()).and_then(Demo::play);
    if keep {
        put(&format!("\nEverything is left in {}\n", folder.keep().display()))?;
    }
    result
}

/// The programs of e2fsprogs.
struct Tools {
    mke2fs: PathBuf,
    debugfs: PathBuf,
    e2fsck: PathBuf,
}

impl Tools {
    fn find() -> Result<Tools, Problem> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders: Vec<PathBuf> = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]).collect();
        let find = |name: &str| {
            let found = folders.iter().map(|f| f.join(name)).find(|p| p.is_file());
            found.ok_or_else(|| {
                let text = format!(
                    "the demonstration makes a file system with {name}, which is not installed: apt install e2fsprogs"
                );
                Problem::failed(text)
            })
        };
        Ok(Tools { mke2fs: find("mke2fs")?, debugfs: find("debugfs")?, e2fsck: find("e2fsck")? })
    }

    fn call(program: &Path, args: &[&str], image: &Path) -> Result<Vec<u8>, Problem> {
        let out = Command::new(program).args(args).arg(image).stdin(Stdio::null()).output()?;
        if out.status.success() {
            return Ok(out.stdout);
        }
        let (said, erred) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        Err(Problem::failed(format!("{} {}: {}\n{said}{erred}", program.display(), args.join(" "), out.status)))
    }

    fn cat(&self, image: &Path, file: &str) -> Result<Vec<u8>, Problem> {
        Self::call(&self.debugfs, &["-R", &format!("cat {file}")], image)
    }
}

struct Demo<'a> {
    tools: &'a Tools,
    folder: &'a Path,
    daemon: Daemon,
    nbd: Client,
    /// What the disk holds, as far as written through the socket.
    disk: Vec<u8>,
}

fn report(version: usize) -> String {
    format!("Quarterly report, version {version}\n{}", "All figures are final.\n".repeat(version * 400))
}

fn wait_for(what: &str, mut reached: impl FnMut() -> Result<bool, Problem>) -> Result<(), Problem> {
    let start = Instant::now();
    while !reached()? {
        if start.elapsed() > PATIENCE {
            return Err(Problem::failed(format!("waited {} s in vain until {what}", PATIENCE.as_secs())));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

impl<'a> Demo<'a> {
    fn start(tools: &'a Tools, folder: &'a Path) -> Result<Demo<'a>, Problem> {
        let (disk, content) = (folder.join("disk.raw"), folder.join("content"));
        std::fs::create_dir_all(content.join("photos"))?;
        std::fs::write(content.join("readme.txt"), "This disk is a demonstration.\n")?;
        for i in 0..20 {
            std::fs::write(content.join(format!("photos/{i}.jpg")), noise(i, 100_000))?;
        }
        File::create(&disk)?.set_len(SIZE)?;
        let content = content.display().to_string();
        Tools::call(&tools.mke2fs, &["-q", "-F", "-t", "ext4", "-b", "4096", "-d", &content], &disk)?;
        std::fs::copy(&disk, folder.join("work.raw"))?;
        put(
            "1. A disk of 64 MiB with an ext4 file system and 21 files. It is protected from now on, with all that is on it.\n",
        )?;

        let data = DataDir::create(&folder.join("data"))?;
        let socket = data.path().join("nbd.sock");
        let key = KeySource::File(data.path().join("vault/key"));
        let cache = CacheMode::Writeback;
        let agent = AgentSettings {
            tls: afterimage_nbd::Tls::Off,
            apps: std::collections::BTreeMap::new(),
            disks: vec![Disk { name: NAME.to_owned(), path: disk.clone(), ring: 16 << 20, cache, adopt: None }],
            listen: vec![Listen::Unix(socket.clone())],
            sync_rate: 0,
            fence: afterimage_agent::FencePolicy::default(),
            foreign: afterimage_agent::ForeignWrite::Compare,
            resize: false,
            take_disks: false,
            new_disks: (16 << 20, cache),
            point_every: None,
            reach: Reach::Here,
        };
        let appliance = ApplianceSettings::new(Duration::from_secs(24 * 3600), key);
        let settings = Settings { agent: Some(agent), appliance: Some(appliance) };
        let daemon = Daemon::start(data, settings)?;
        let uri = Address::Unix(socket).uri(NAME);
        put(&format!("   It is served at {uri}\n"))?;
        let nbd = uri.parse::<Uri>()?.connect()?;
        let disk = std::fs::read(&disk)?;
        let demo = Demo { tools, folder, daemon, nbd, disk };
        demo.wait_live()?;
        Ok(demo)
    }

    fn volume(&self) -> Result<afterimage_mgmt::protocol::VolumeStatus, Problem> {
        let found = self.daemon.status()?.volumes.into_iter().find(|v| v.name == NAME);
        found.ok_or_else(|| Problem::failed("the volume is gone"))
    }

    fn wait_live(&self) -> Result<(), Problem> {
        wait_for("the initial sync has ended", || {
            let v = self.volume()?;
            Ok(v.state == State::Live && v.first_seq.is_some())
        })
    }

    fn work(&self) -> PathBuf {
        self.folder.join("work.raw")
    }

    /// Has debugfs change a copy of the disk, and writes every block that differs through the NBD socket. Returns the
    /// seq before and after.
    fn change(&mut self, commands: &str) -> Result<(u64, u64), Problem> {
        let script = self.folder.join("script");
        std::fs::write(&script, commands)?;
        Tools::call(&self.tools.debugfs, &["-w", "-f", &script.display().to_string()], &self.work())?;
        let wanted = std::fs::read(self.work())?;
        let before = self.volume()?.seq_acked;
        for (i, block) in wanted.chunks(BLOCK).enumerate() {
            let at = i * BLOCK;
            if self.disk[at..at + block.len()] != *block {
                self.nbd.write(at as u64, block)?;
            }
        }
        self.nbd.flush()?;
        self.disk = wanted;
        Ok((before, self.volume()?.seq_acked))
    }

    fn local(&self, name: &str, content: &[u8]) -> Result<String, Problem> {
        let path = self.folder.join(name);
        std::fs::write(&path, content)?;
        Ok(path.display().to_string())
    }

    fn play(mut self) -> Result<(), Problem> {
        put("\n2. Somebody works on it: a report is written and changed.\n")?;
        let mut good = 0;
        for version in 1..=VERSIONS {
            let source = self.local("report", report(version).as_bytes())?;
            let remove = if version > 1 { "rm report.txt\n" } else { "" };
            let (before, after) = self.change(&format!("{remove}write {source} report.txt\n"))?;
            put(&format!("   version {version} of report.txt: {} writes, the last is @{after}\n", after - before))?;
            good = after;
        }
        let as_it_was = self.disk.clone();

        put("\n3. Then ransomware strikes: every file is overwritten.\n")?;
        let mut commands = String::new();
        let garbage = self.local("garbage", &noise(99, 100_000))?;
        for file in (0..20).map(|i| format!("photos/{i}.jpg")).chain(["report.txt".to_owned(), "readme.txt".to_owned()])
        {
            commands.push_str(&format!("rm {file}\nwrite {garbage} {file}\n"));
        }
        let (first, last) = self.change(&commands)?;
        let now = self.tools.cat(&self.folder.join("disk.raw"), "report.txt")?;
        if now.starts_with(b"Quarterly") {
            return Err(Problem::failed("the attack did not reach the disk"));
        }
        put(&format!(
            "   {} writes, @{} to @{last}. On the disk, report.txt now begins with the bytes {}\n",
            last - first,
            first + 1,
            &garbage_start(&now)
        ))?;

        self.show_status(last)?;
        put(&format!(
            "\n5. The disk as it was after write @{good}, the last one before the attack:\n   afterimage restore {NAME} --at @{good} --to restored.raw\n"
        ))?;
        let restored = self.restore(good, "restored.raw")?;
        let checked = Tools::call(&self.tools.e2fsck, &["-f", "-n"], &restored)?;
        let text = self.tools.cat(&restored, "report.txt")?;
        if text != report(VERSIONS).as_bytes() || std::fs::read(&restored)? != as_it_was {
            return Err(Problem::failed("the restored disk is not the disk as it was"));
        }
        put(&format!(
            "   e2fsck: {}\n   report.txt is back: {:?}\n   and every byte of the disk is as it was.\n",
            last_word(&checked, &restored),
            String::from_utf8_lossy(&text).lines().next().unwrap_or_default()
        ))?;
        self.middle(first, last, as_it_was)?;
        self.end()
    }

    fn show_status(&self, last: u64) -> Result<(), Problem> {
        put("\n4. The appliance has everything, deduplicated, compressed, encrypted:\n")?;
        wait_for("everything is durable", || Ok(self.volume()?.seq_durable >= last))?;
        let v = self.volume()?;
        put(&format!(
            "   {} writes, {} of data, stored in {}\n   any of the writes from @{} to @{} can be chosen\n",
            v.seq_durable,
            afterimage_mgmt::units::format_size(v.logical_bytes),
            afterimage_mgmt::units::format_size(v.stored_bytes),
            v.first_seq.unwrap_or(0),
            v.seq_durable
        ))
    }

    fn restore(&self, seq: u64, name: &str) -> Result<PathBuf, Problem> {
        let to = self.folder.join(name);
        let at = When::Seq(seq);
        let options = restore::Options { volume: NAME.to_owned(), at, to: to.clone(), format: Format::Raw, yes: false };
        restore::restore(self.daemon.data().path(), &options)?;
        Ok(to)
    }

    /// One write in the middle of the attack: some blocks new, some old, exactly.
    fn middle(&self, first: u64, last: u64, mut model: Vec<u8>) -> Result<(), Problem> {
        let seq = first + (last - first) / 2;
        put(&format!("\n6. Not points alone: any write. In the middle of the attack, after write @{seq}:\n"))?;
        let restored = std::fs::read(self.restore(seq, "middle.raw")?)?;
        let changed = (0..model.len()).step_by(BLOCK).filter(|at| model[*at..at + BLOCK] != self.disk[*at..at + BLOCK]);
        let steps = usize::try_from(seq - first).unwrap_or(usize::MAX);
        for at in changed.collect::<Vec<_>>().into_iter().take(steps) {
            model[at..at + BLOCK].copy_from_slice(&self.disk[at..at + BLOCK]);
        }
        if restored != model {
            return Err(Problem::failed(format!("the disk after write @{seq} is not what was written until then")));
        }
        put(&format!(
            "   {} blocks are the attacker's, the others are as they were. Every byte is right.\n",
            seq - first
        ))
    }

    fn end(self) -> Result<(), Problem> {
        drop(self.nbd);
        if !self.daemon.stop() {
            return Err(Problem::failed("the daemon could not be stopped in order"));
        }
        put("\nDone. To protect a disk of yours: afterimage up NAME=PATH\n")
    }
}

/// e2fsck's verdict without the path in front of it.
fn last_word(said: &[u8], image: &Path) -> String {
    let text = String::from_utf8_lossy(said);
    let line = text.lines().last().unwrap_or_default();
    line.trim_start_matches(&*image.to_string_lossy()).trim_start_matches(':').trim().to_owned()
}

/// The first bytes of a file that is no text any more.
fn garbage_start(bytes: &[u8]) -> String {
    bytes.iter().take(6).map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(" ")
}

/// Bytes that do not compress.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut chance = crate::load::op::Chance::new(seed);
    std::iter::repeat_with(|| chance.word().to_le_bytes()).flatten().take(len).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_differ_and_noise_repeats() {
        assert_ne!(report(1), report(2));
        assert_eq!(noise(3, 100), noise(3, 100));
        assert_ne!(noise(3, 100), noise(4, 100));
    }
}

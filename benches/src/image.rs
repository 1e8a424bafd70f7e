//! A real disk image in two generations: an ext4 that holds files of this machine's /usr, and the same file system after a
//! tenth of its data was replaced and files were added, in place, as a machine at work does it.

use afterimage_tests::tool::tool;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// Two generations of a disk.
#[derive(Debug)]
pub struct Generations {
    /// The first.
    pub first: PathBuf,
    /// The second.
    pub second: PathBuf,
    /// Bytes of each image.
    pub size: u64,
    /// Bytes of the files in the first.
    pub content: u64,
    /// Bytes of the images that differ, in blocks of 4 KiB.
    pub changed: u64,
}

/// Makes both in `dir`, from about `content` bytes of files.
///
/// # Panics
/// If a program fails, or /usr holds too little.
#[must_use]
pub fn make(dir: &Path, content: u64) -> Generations {
    // A quarter more, for the replacements and the files that are added.
    let files = choose(content + content / 4);
    let mut kept: u64 = 0;
    let count = files
        .iter()
        .take_while(|f| {
            kept += f.1;
            kept <= content
        })
        .count();
    let (present, fresh) = files.split_at(count);
    let tree = dir.join("tree");
    let copied = copy(present, &tree);
    // A quarter of free space on top.
    let size = (copied + copied / 4).next_multiple_of(64 << 20);
    let (first, second) = (dir.join("first.raw"), dir.join("second.raw"));
    tool("mke2fs")
        .args([
            "-q",
            "-t",
            "ext4",
            "-b",
            "4096",
            "-m",
            "0",
            "-N",
            &(2 * files.len() + 1000).to_string(),
            "-U",
            "6d8b2f2e-5f0c-4c1c-9a57-0d3a1c9e7b10",
            "-E",
        ])
        .args(["hash_seed=6d8b2f2e-5f0c-4c1c-9a57-0d3a1c9e7b10,lazy_itable_init=1", "-d"])
        .arg(&tree)
        .arg(&first)
        .arg(format!("{}k", size >> 10))
        .run();
    fs::remove_dir_all(&tree).expect("remove the copied files");
    tool("cp").args(["--sparse=always"]).arg(&first).arg(&second).run();
    change(&second, present, fresh, dir);
    let changed = changed_bytes(&first, &second);
    Generations { first, second, size, content: copied, changed }
}

/// Regular files of this machine's system in a fixed order (programs first, then libraries, then documents), until
/// they are this many bytes together; with their sizes.
fn choose(enough: u64) -> Vec<(PathBuf, u64)> {
    let (mut found, mut bytes) = (Vec::new(), 0);
    let mut folders: Vec<PathBuf> = ["/usr/share", "/usr/lib", "/usr/bin"].map(PathBuf::from).into();
    while let Some(folder) = folders.pop() {
        let mut entries: Vec<_> = fs::read_dir(&folder).into_iter().flatten().flatten().map(|e| e.path()).collect();
        entries.sort();
        for path in entries {
            let Ok(about) = path.symlink_metadata() else { continue };
            // A name that debugfs could not be told is left out, and so is the odd giant.
            let plain = path.to_str().is_some_and(|p| !p.contains([' ', '"', '\n']));
            if about.is_dir() {
                folders.push(path);
            } else if about.is_file() && plain && about.len() < 64 << 20 && fs::File::open(&path).is_ok() {
                bytes += about.len();
                found.push((path, about.len()));
            }
        }
        if bytes >= enough {
            break;
        }
    }
    assert!(bytes >= enough / 2, "/usr holds only {bytes} bytes of files, ask for a smaller image");
    found
}

fn copy(files: &[(PathBuf, u64)], tree: &Path) -> u64 {
    for (path, _) in files {
        let to = inside(tree, path);
        fs::create_dir_all(to.parent().unwrap_or(tree)).expect("make a folder");
        fs::copy(path, &to).unwrap_or_else(|e| panic!("copy {}: {e}", path.display()));
    }
    files.iter().map(|f| f.1).sum()
}

fn inside(tree: &Path, path: &Path) -> PathBuf {
    tree.join(path.strip_prefix("/").unwrap_or(path))
}

/// Every tenth file gets another's content under its old name; a few new ones come.
fn change(image: &Path, present: &[(PathBuf, u64)], fresh: &[(PathBuf, u64)], dir: &Path) {
    let mut script = String::new();
    let mut sources = fresh.iter();
    let goal: u64 = present.iter().map(|f| f.1).sum::<u64>() / 10;
    let mut replaced = 0;
    for (path, _) in present.iter().step_by(10) {
        let Some((source, bytes)) = sources.next() else { break };
        replaced += bytes;
        let (folder, name) = (path.parent().unwrap_or(path), path.file_name().unwrap_or_default());
        let (folder, name, source) = (folder.display(), name.to_string_lossy(), source.display());
        let _ = writeln!(script, "cd {folder}\nrm {name}\nwrite {source} {name}");
        if replaced > goal {
            break;
        }
    }
    let _ = writeln!(script, "mkdir /added\ncd /added");
    for (n, (source, bytes)) in sources.enumerate() {
        replaced += bytes;
        if replaced > goal + goal / 4 {
            break;
        }
        let _ = writeln!(script, "write {} {n}", source.display());
    }
    let commands = dir.join("change.debugfs");
    fs::write(&commands, script).expect("write the list of changes");
    tool("debugfs").arg("-w").arg("-f").arg(&commands).arg(image).run();
    fs::remove_file(&commands).expect("remove the list of changes");
    tool("e2fsck").arg("-fp").arg(image).run_any();
}

fn changed_bytes(first: &Path, second: &Path) -> u64 {
    use std::io::Read;
    let open = |path: &Path| std::io::BufReader::with_capacity(1 << 20, fs::File::open(path).expect("open an image"));
    let (mut first, mut second) = (open(first), open(second));
    let (mut a, mut b) = ([0; 4096], [0; 4096]);
    let mut changed = 0;
    while first.read_exact(&mut a).is_ok() && second.read_exact(&mut b).is_ok() {
        if a != b {
            changed += a.len() as u64;
        }
    }
    changed
}

//! A real disk image in two generations: an ext4 that holds files of this machine's /usr, and the same file system after a
//! tenth of its data was changed and files were added, in place, as a machine at work does it.

use afterimage_tests::tool::tool;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::FileExt;
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
    // A quarter more, for what is written later.
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

/// A tenth of the data changes, one half as an upgrade does it and one half as databases, logs and mailboxes do: files are
/// replaced by others under the same name, and files are written inside, a few blocks at a time. A few new files come.
fn change(image: &Path, present: &[(PathBuf, u64)], fresh: &[(PathBuf, u64)], dir: &Path) {
    let goal: u64 = present.iter().map(|f| f.1).sum::<u64>() / 10;
    let mut script = String::new();
    let mut sources = fresh.iter();
    let mut replaced = 0;
    for (path, _) in present.iter().step_by(10) {
        let Some((source, bytes)) = sources.next() else { break };
        replaced += bytes;
        let (folder, name) = (path.parent().unwrap_or(path), path.file_name().unwrap_or_default());
        let (folder, name, source) = (folder.display(), name.to_string_lossy(), source.display());
        let _ = writeln!(script, "cd {folder}\nrm {name}\nwrite {source} {name}");
        if replaced > goal / 2 {
            break;
        }
    }
    let _ = writeln!(script, "mkdir /added\ncd /added");
    let mut added = 0;
    for (n, (source, bytes)) in sources.by_ref().enumerate() {
        added += bytes;
        let _ = writeln!(script, "write {} {n}", source.display());
        if added > goal / 4 {
            break;
        }
    }
    // Others than those that are replaced.
    let inside: Vec<&Path> =
        present.iter().skip(5).step_by(10).filter(|f| f.1 >= 64 << 10).map(|f| f.0.as_path()).collect();
    for path in &inside {
        let _ = writeln!(script, "blocks {}", path.display());
    }
    let commands = dir.join("change.debugfs");
    fs::write(&commands, script).expect("write the list of changes");
    let told = tool("debugfs").arg("-w").arg("-f").arg(&commands).arg(image).run().stdout;
    fs::remove_file(&commands).expect("remove the list of changes");
    tool("e2fsck").arg("-fp").arg(image).run_any();
    write_inside(image, &told, goal / 2, sources.map(|s| s.0.as_path()));
}

/// Overwrites pieces of 4 to 16 KiB of the files whose blocks debugfs has told, one block in eight, with what other files hold.
fn write_inside<'a>(image: &Path, told: &str, goal: u64, mut sources: impl Iterator<Item = &'a Path>) {
    let image = fs::OpenOptions::new().write(true).open(image).expect("open the image");
    let mut written = 0;
    let mut content = Vec::new();
    // After the echo of the command comes a line of numbers.
    let files = told.lines().filter(|l| l.starts_with(|c: char| c.is_ascii_digit()));
    for (n, file) in files.enumerate() {
        let blocks: Vec<u64> = file.split_whitespace().filter_map(|b| b.parse().ok()).collect();
        // Blocks of zeroes are holes; what is not a list of blocks has none.
        for piece in blocks.chunks(4 << (n % 3)).map(|c| &c[..c.len().min(1 << (n % 3))]).step_by(2) {
            for block in piece.iter().filter(|b| **b > 0) {
                while content.len() < 4096 {
                    let Some(source) = sources.next() else { return };
                    content.extend(fs::read(source).unwrap_or_default());
                }
                let rest = content.split_off(4096);
                image.write_all_at(&content, block * 4096).expect("write into the image");
                content = rest;
                written += 4096;
            }
        }
        if written > goal {
            return;
        }
    }
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

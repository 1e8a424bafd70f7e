use super::super::wire::tests::item;
use super::*;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

fn told(item: Item) -> Frame<Tell> {
    Frame::Message(Tell::Item(item))
}

fn sized(name: &[u8], size: u64) -> Item {
    Item { size, ..item(name, Kind::File) }
}

fn to(path: &Path, name: &[u8], force: bool) -> Writer {
    let top = Top::Named(open_folder(path).unwrap(), Name(name.to_vec()));
    Writer::new(top, force, false)
}

fn feed(writer: &mut Writer, frames: Vec<Frame<Tell>>) -> Step {
    frames.into_iter().try_for_each(|f| writer.take(f))
}

const LEAVE: Frame<Tell> = Frame::Message(Tell::Leave);
const END: Frame<Tell> = Frame::Message(Tell::End);

#[test]
fn a_tree_becomes_what_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = to(dir.path(), b"copy", false);
    let folder = Item { mode: 0o555, ..item(b"x", Kind::Folder) };
    let file = Item { mode: 0o4751, attributes: vec![("user.a".into(), "b".into())], ..sized(b"f\n\xff", 1 << 20) };
    let frames = vec![
        told(folder),
        told(file),
        Frame::Data(4096, b"data".to_vec()),
        END,
        told(Item { target: Some("/etc/passwd".into()), ..item(b"l", Kind::Link) }),
        told(item(b"fifo", Kind::Special)),
        LEAVE,
    ];
    feed(&mut writer, frames).unwrap();
    let copied = writer.finish().unwrap();
    let told = (copied.files, copied.folders, copied.links, copied.bytes, copied.special, copied.failed);
    assert_eq!(told, (1, 1, 1, 4, 1, 0));
    let copy = dir.path().join("copy");
    let file = copy.join(OsStr::from_bytes(b"f\n\xff"));
    let meta = file.metadata().unwrap();
    // Not with the right to run as its owner, who is another one now.
    assert_eq!((meta.mode() & 0o7777, meta.len(), meta.mtime(), meta.mtime_nsec()), (0o751, 1 << 20, 1, 2));
    assert!(meta.blocks() < 64, "it has holes");
    let bytes = std::fs::read(&file).unwrap();
    assert_eq!((&bytes[4096..4100], bytes.iter().filter(|b| **b != 0).count()), (&b"data"[..], 4));
    assert_eq!(std::fs::read_link(copy.join("l")).unwrap(), Path::new("/etc/passwd"));
    let meta = copy.metadata().unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.mtime()), (0o555, 1));
    std::fs::set_permissions(&copy, PermissionsExt::from_mode(0o755)).unwrap();
}

/// What a guest that was taken over may send: a link, and below the same name more.
fn through_a_link(outside: &Path) -> Vec<Frame<Tell>> {
    let away = Name(outside.as_os_str().as_bytes().to_vec());
    vec![
        told(item(b"x", Kind::Folder)),
        told(Item { target: Some(away), ..item(b"door", Kind::Link) }),
        told(item(b"door", Kind::Folder)),
        told(sized(b"planted", 1)),
        Frame::Data(0, b"x".to_vec()),
        END,
        told(item(b"deeper", Kind::Folder)),
        told(item(b"l", Kind::Link)),
        LEAVE,
        LEAVE,
        LEAVE,
    ]
}

#[test]
fn i12_a_copy_that_follows_links_is_seen() {
    let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut writer = to(dir.path(), b"copy", true);
    writer.trusting = true;
    feed(&mut writer, through_a_link(outside.path())).unwrap();
    assert!(outside.path().join("planted").exists());
}

#[test]
fn nothing_is_made_through_a_link_and_nothing_outside() {
    let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut writer = to(dir.path(), b"copy", true);
    feed(&mut writer, through_a_link(outside.path())).unwrap();
    assert_eq!(writer.finish().unwrap().failed, 4);
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
    // A file takes the place of the link, and is not written through it.
    let target = outside.path().join("target");
    std::fs::write(&target, "kept").unwrap();
    std::os::unix::fs::symlink(&target, dir.path().join("copy/l")).unwrap();
    let mut writer = to(&dir.path().join("copy"), b"l", true);
    feed(&mut writer, vec![told(sized(b"l", 3)), Frame::Data(0, b"new".to_vec()), END]).unwrap();
    writer.finish().unwrap();
    assert_eq!(std::fs::read_to_string(&target).unwrap(), "kept");
    assert_eq!(std::fs::read_to_string(dir.path().join("copy/l")).unwrap(), "new");
}

#[test]
fn what_is_there_stays_unless_it_is_to_be_replaced() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("copy/folder")).unwrap();
    std::fs::write(dir.path().join("copy/f"), "old").unwrap();
    let frames = || {
        vec![
            told(item(b"x", Kind::Folder)),
            told(sized(b"f", 3)),
            Frame::Data(0, b"new".to_vec()),
            END,
            told(sized(b"folder", 0)),
            END,
            told(sized(b"g", 0)),
            END,
            LEAVE,
        ]
    };
    for (force, failed, content) in [(false, 2, "old"), (true, 1, "new")] {
        let mut writer = to(dir.path(), b"copy", force);
        feed(&mut writer, frames()).unwrap();
        assert_eq!(writer.finish().unwrap().failed, failed);
        assert_eq!(std::fs::read_to_string(dir.path().join("copy/f")).unwrap(), content);
        assert!(dir.path().join("copy/g").exists() && dir.path().join("copy/folder").is_dir());
        std::fs::remove_file(dir.path().join("copy/g")).unwrap();
    }
}

#[test]
fn half_a_file_does_not_stay() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = to(dir.path(), b"f", false);
    feed(&mut writer, vec![told(sized(b"f", 9)), Frame::Data(0, b"half".to_vec())]).unwrap();
    assert!(dir.path().join("f").exists());
    drop(writer);
    assert!(!dir.path().join("f").exists(), "the copy was broken off");
    let mut writer = to(dir.path(), b"f", false);
    let trouble = Frame::Message(Tell::Trouble { path: "f".into(), why: "EIO".into() });
    feed(&mut writer, vec![told(sized(b"f", 9)), Frame::Data(0, b"half".to_vec()), trouble, END]).unwrap();
    assert_eq!(writer.finish().unwrap().failed, 1);
    assert!(!dir.path().join("f").exists(), "it could not be read to its end");
}

#[test]
fn what_cannot_be_ends_the_copy() {
    let dir = tempfile::tempdir().unwrap();
    let file = || told(sized(b"f", 8));
    let data = |at, len| Frame::Data(at, vec![1; len]);
    let folder = || told(item(b"d", Kind::Folder));
    for (n, frames) in [
        vec![END],
        vec![LEAVE],
        vec![data(0, 1)],
        vec![file(), LEAVE],
        vec![file(), file()],
        vec![file(), END, file()],
        vec![file(), END, LEAVE],
        vec![file(), data(0, 9)],
        vec![file(), data(u64::MAX, 2)],
        vec![file(), data(4, 4), data(4, 1)],
        vec![file(), Frame::Message(Tell::Hello { version: 1 })],
        vec![folder(), LEAVE, file()],
        (0..MAX_DEPTH + 2).map(|_| folder()).collect(),
    ]
    .into_iter()
    .enumerate()
    {
        let mut writer = to(dir.path(), b"top", true);
        assert!(feed(&mut writer, frames).is_err(), "case {n}");
        drop(writer);
        let top = dir.path().join("top");
        drop(std::fs::remove_dir_all(&top).or_else(|_| std::fs::remove_file(&top)));
    }
    for frames in [vec![], vec![folder()], vec![file()]] {
        let mut writer = to(dir.path(), b"top", true);
        feed(&mut writer, frames).unwrap();
        assert!(writer.finish().is_err());
        drop(std::fs::remove_dir_all(dir.path().join("top")));
    }
}

/// Chance that can be repeated.
struct Chance(u64);

impl Chance {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % end
    }
}

#[test]
fn whatever_is_sent_nothing_is_made_outside() {
    let dir = tempfile::tempdir().unwrap();
    let outside = dir.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("kept"), "kept").unwrap();
    let names = [&b"a"[..], b"b", b"top", b"kept", b"..", b".", b"a/b", b"", b"../outside/new", b"outside"];
    let targets = [&b"../outside"[..], b"/", b"..", b".", b"../../outside/kept", outside.as_os_str().as_bytes()];
    for seed in 0..400 {
        let mut chance = Chance(seed);
        let below = dir.path().join("below");
        std::fs::create_dir(&below).unwrap();
        let mut writer = to(&below, b"top", chance.below(2) == 0);
        for _ in 0..40 {
            let name = names[chance.below(names.len())];
            let frame = match chance.below(9) {
                0..3 => told(item(name, Kind::Folder)),
                3 => told(Item {
                    target: Some(Name(targets[chance.below(targets.len())].to_vec())),
                    ..item(name, Kind::Link)
                }),
                4 | 5 => told(sized(name, 8)),
                6 => Frame::Data(chance.below(9) as u64, vec![7; chance.below(9) + 1]),
                7 => END,
                _ => LEAVE,
            };
            // As the guest's door does it. A lie ends a copy; here the next one is heard all the same.
            if let Frame::Message(tell) = &frame
                && tell.check().is_err()
            {
                continue;
            }
            drop(writer.take(frame));
        }
        drop(writer);
        let mut left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["below", "outside"], "seed {seed}");
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 1, "seed {seed}");
        assert_eq!(std::fs::read_to_string(outside.join("kept")).unwrap(), "kept", "seed {seed}");
        assert!(std::fs::read_dir(&below).unwrap().all(|e| e.unwrap().file_name() == "top"), "seed {seed}");
        std::fs::remove_dir_all(&below).unwrap();
    }
}

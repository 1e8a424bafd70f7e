//! `qemu-storage-daemon` that mirrors the disk to a second one while it is written: what people do today for a live copy.

use crate::site::{NEAR, on};
use afterimage_tests::data;
use afterimage_tests::process::Process;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// Serves `image` at `dir`/peer.sock and mirrors it to `dir`/copy.raw, with this copy mode; the copy is complete when this returns.
/// Returns the process and the URI.
///
/// # Panics
/// If it does not come up.
#[must_use]
pub fn serve(image: &Path, dir: &Path, mode: &str, pinned: bool) -> (Process, String) {
    let (socket, control, copy) = (dir.join("peer.sock"), dir.join("qmp.sock"), dir.join("copy.raw"));
    let size = std::fs::metadata(image).expect("look at the image").len();
    data::sparse(&copy, size);
    let file = |node: &str, path: &Path| {
        format!("driver=raw,node-name={node},file.driver=file,file.aio=threads,file.filename={}", path.display())
    };
    let daemon = on(pinned.then_some(NEAR), "qemu-storage-daemon")
        .args(["--blockdev", &file("source", image), "--blockdev", &file("target", &copy)])
        .args(["--nbd-server", &format!("addr.type=unix,addr.path={},max-connections=0", socket.display())])
        .args(["--export", "type=nbd,id=export,node-name=source,name=disk,writable=on"])
        .args(["--chardev", &format!("socket,id=control,path={},server=on,wait=off", control.display())])
        .args(["--monitor", "chardev=control"]);
    let mut process = Process::start(daemon.into_command(), &dir.join("mirror.log"));
    process.wait_until("control socket", || control.exists() && socket.exists());
    let mut stream = UnixStream::connect(&control).expect("reach the storage daemon");
    let mut lines = BufReader::new(stream.try_clone().expect("share a socket")).lines();
    let mut say = |what: Value| writeln!(stream, "{what}").expect("talk to the storage daemon");
    say(json!({"execute": "qmp_capabilities"}));
    let arguments =
        json!({"job-id": "mirror", "device": "source", "target": "target", "sync": "full", "copy-mode": mode});
    say(json!({"execute": "blockdev-mirror", "arguments": arguments}));
    loop {
        let line = lines.next().expect("the storage daemon goes on").expect("hear the storage daemon");
        let said: Value = serde_json::from_str(&line).expect("it speaks JSON");
        assert!(said.get("error").is_none(), "the storage daemon refuses: {said}");
        if said["event"] == "BLOCK_JOB_READY" {
            break;
        }
    }
    // The daemon goes on without a control connection.
    (process, format!("nbd+unix:///disk?socket={}", socket.display()))
}

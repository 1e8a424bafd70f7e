//! What a running QEMU is asked, over [`afterimage_base::qemu`].

use afterimage_base::qemu::{QemuError, Qmp};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

/// How long QEMU may take for one answer: it may be emulating on a loaded host.
const ANSWER: Duration = Duration::from_secs(20);

/// A port of this host that leads to one of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forward {
    /// Where to connect.
    pub here: SocketAddr,
    /// The guest's port.
    pub guest: u16,
}

/// A connection to a QEMU.
#[derive(Debug)]
pub struct Monitor {
    qmp: Qmp,
}

/// Why a guest does not go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stands(pub String);

impl Monitor {
    /// Connects to its socket.
    ///
    /// # Errors
    /// If nobody listens, or no QEMU; so for all that follow.
    pub fn connect(socket: &Path) -> Result<Monitor, QemuError> {
        Ok(Monitor { qmp: Qmp::connect(socket, ANSWER)? })
    }

    fn call(&mut self, command: &str, arguments: Value) -> Result<Value, QemuError> {
        self.qmp.call(command, arguments, ANSWER)
    }

    /// Lets the guest run.
    ///
    /// # Errors
    /// [`QemuError`].
    pub fn resume(&mut self) -> Result<(), QemuError> {
        self.call("cont", Value::Null).map(drop)
    }

    /// Whether the guest goes on, by its state and by what has happened since this was last asked.
    ///
    /// # Errors
    /// [`QemuError`]; QEMU ends the connection when it ends.
    pub fn look(&mut self) -> Result<Option<Stands>, QemuError> {
        let answer = self.call("query-status", Value::Null)?;
        for event in self.qmp.events() {
            let why = match event["event"].as_str() {
                Some("GUEST_PANICKED") => "the guest's kernel has panicked".to_owned(),
                Some("SHUTDOWN") => {
                    let reason = event["data"]["reason"].as_str().unwrap_or("unknown");
                    format!("the guest has shut down ({reason})")
                }
                _ => continue,
            };
            return Ok(Some(Stands(why)));
        }
        Ok(match answer["status"].as_str() {
            Some("running") => None,
            other => Some(Stands(format!("the guest stands still: {}", other.unwrap_or("unknown")))),
        })
    }

    /// Writes what the screen shows to a PNG file.
    ///
    /// # Errors
    /// [`QemuError`]; a machine without a screen refuses.
    pub fn screenshot(&mut self, file: &str) -> Result<(), QemuError> {
        self.call("screendump", json!({"filename": file, "format": "png"})).map(drop)
    }

    /// Bytes that the guest has read from all its disks.
    ///
    /// # Errors
    /// [`QemuError`].
    pub fn bytes_read(&mut self) -> Result<u64, QemuError> {
        let answer = self.call("query-blockstats", Value::Null)?;
        let disks = answer.as_array().map(Vec::as_slice).unwrap_or_default();
        Ok(disks.iter().filter_map(|d| d["stats"]["rd_bytes"].as_u64()).fold(0, u64::saturating_add))
    }

    /// QEMU tells its ports only as a table for people.
    fn table(&mut self) -> Result<String, QemuError> {
        let answer = self.call("human-monitor-command", json!({"command-line": "info usernet"}))?;
        Ok(answer.as_str().unwrap_or_default().to_owned())
    }

    /// The ports of this host that lead to the guest.
    ///
    /// # Errors
    /// [`QemuError`].
    pub fn forwards(&mut self) -> Result<Vec<Forward>, QemuError> {
        Ok(self.table()?.lines().filter_map(forward).collect())
    }

    /// Whether the guest has taken a connection that came in at this address.
    ///
    /// # Errors
    /// [`QemuError`].
    pub fn is_established(&mut self, here: SocketAddr) -> Result<bool, QemuError> {
        Ok(self.table()?.lines().any(|line| is_established(line, here)))
    }
}

/// `  TCP[HOST_FORWARD]   8       127.0.0.1 39677    192.168.7.15    22     0     0`
fn forward(line: &str) -> Option<Forward> {
    let mut words = line.split_whitespace();
    (words.next()? == "TCP[HOST_FORWARD]").then_some(())?;
    let (_fd, ip, port) = (words.next()?, words.next()?, words.next()?);
    let (_guest, guest) = (words.next()?, words.next()?);
    Some(Forward { here: SocketAddr::new(ip.parse().ok()?, port.parse().ok()?), guest: guest.parse().ok()? })
}

fn is_established(line: &str, here: SocketAddr) -> bool {
    let (ip, port) = (here.ip().to_string(), here.port().to_string());
    let words: Vec<&str> = line.split_whitespace().take(4).collect();
    matches!(words[..], ["TCP[ESTABLISHED]", _, i, p] if i == ip && p == port)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::UnixListener;

    /// A QEMU that greets and then gives these answers.
    fn speaking(answers: &'static [&'static str]) -> Monitor {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("qmp.sock");
        let listener = UnixListener::bind(&path).unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n").unwrap();
            let mut asked = BufReader::new(stream.try_clone().unwrap()).lines();
            for (id, answer) in std::iter::once(&"{\"return\": {}").chain(answers).enumerate() {
                asked.next().unwrap().unwrap();
                stream.write_all(format!("{answer}, \"id\": {}}}\r\n", id + 1).as_bytes()).unwrap();
            }
        });
        Monitor::connect(&path).unwrap()
    }

    #[test]
    fn a_guest_that_stands_still_is_seen() {
        let mut qemu = speaking(&[
            r#"{"return": {"status": "running"}"#,
            "{\"event\": \"RTC_CHANGE\", \"data\": {}}\n{\"return\": {\"status\": \"running\"}",
            "{\"event\": \"GUEST_PANICKED\", \"data\": {}}\n{\"return\": {\"status\": \"running\"}",
            "{\"event\": \"SHUTDOWN\", \"data\": {\"reason\": \"guest-shutdown\"}}\n{\"return\": {\"status\": \"shutdown\"}",
            r#"{"return": {"status": "internal-error"}"#,
            r#"{"return": {"status": 7}"#,
        ]);
        assert_eq!(qemu.look().unwrap(), None);
        assert_eq!(qemu.look().unwrap(), None);
        for word in ["panicked", "guest-shutdown", "internal-error", "unknown"] {
            assert!(qemu.look().unwrap().unwrap().0.contains(word), "{word}");
        }
        assert!(qemu.look().is_err(), "it has ended");
    }

    #[test]
    fn what_the_guest_has_read_is_added_up() {
        let mut qemu = speaking(&[
            r#"{"return": [{"stats": {"rd_bytes": 512}}, {"stats": {"rd_bytes": 4096}}, {}, 7]"#,
            r#"{"return": 7"#,
            r#"{"error": {"class": "GenericError", "desc": "no screen"}"#,
        ]);
        assert_eq!(qemu.bytes_read().unwrap(), 4608);
        assert_eq!(qemu.bytes_read().unwrap(), 0);
        assert!(qemu.screenshot("x").unwrap_err().to_string().contains("no screen"));
    }

    #[test]
    fn the_table_of_ports_is_read() {
        let here = "127.0.0.1:39677".parse().unwrap();
        let found = forward("  TCP[HOST_FORWARD]   8       127.0.0.1 39677    192.168.7.15    22     0     0");
        assert_eq!(found, Some(Forward { here, guest: 22 }));
        for other in
            ["Hub -1 (net0):", "", "  TCP[HOST_FORWARD] 8 127.0.0.1 99999 1.2.3.4 22", "TCP[ESTABLISHED] 9 1.1.1.1 5"]
        {
            assert_eq!(forward(other), None, "{other}");
        }
        assert!(is_established("  TCP[ESTABLISHED]  27  127.0.0.1 39677  10.0.2.15  22  0  0", here));
        assert!(!is_established("  TCP[SYN_SENT]  27  127.0.0.1 39677  10.0.2.15  22  0  0", here));
        assert!(!is_established("  TCP[ESTABLISHED]  27  127.0.0.1 39678  10.0.2.15  22  0  0", here));
    }
}

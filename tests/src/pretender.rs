//! A guest agent that freezes nothing, and remembers what it was told.

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

const LONG: Duration = Duration::from_secs(60);

/// What it knows.
#[derive(Debug, Default)]
pub struct State {
    /// Whether it is frozen.
    pub frozen: bool,
    /// What it was told to do.
    pub heard: Vec<String>,
    /// How long freezing takes.
    pub slow: Duration,
    /// It thaws by itself before it is asked.
    pub fickle: bool,
}

/// A guest agent that freezes nothing.
#[derive(Debug, Clone, Default)]
pub struct Pretender(Arc<Mutex<State>>);

impl Pretender {
    /// Listens at a path, from now on.
    ///
    /// # Panics
    /// If it cannot.
    pub fn serve(&self, path: &Path) {
        let (listener, own) = (UnixListener::bind(path).expect("listen"), self.clone());
        std::thread::spawn(move || {
            // One client at a time, as QEMU has it.
            for stream in listener.incoming() {
                own.talk(stream.expect("a client"));
            }
        });
    }

    fn talk(&self, stream: UnixStream) {
        let mut lines = BufReader::new(stream);
        let mut line = Vec::new();
        while matches!(lines.read_until(b'\n', &mut line), Ok(n) if n > 0) {
            let text = line.strip_prefix(&[0xff]).unwrap_or(&line);
            let asked: Value = serde_json::from_slice(text).expect("JSON");
            let answer = self.answer(&asked);
            let mut bytes = format!("{}\n", json!({ "return": answer })).into_bytes();
            if asked["execute"] == "guest-sync-delimited" {
                bytes.insert(0, 0xff);
            }
            // Who has given up does not read it.
            let _ = lines.get_mut().write_all(&bytes);
            line.clear();
        }
    }

    fn answer(&self, asked: &Value) -> Value {
        let command = asked["execute"].as_str().unwrap_or_default();
        let slow = self.0.lock().unwrap_or_else(PoisonError::into_inner).slow;
        if command == "guest-fsfreeze-freeze" {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).heard.push("asked to freeze".to_owned());
            std::thread::sleep(slow);
        }
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match command {
            "guest-sync-delimited" => asked["arguments"]["id"].clone(),
            "guest-fsfreeze-status" => {
                if state.fickle {
                    state.frozen = false;
                }
                json!(if state.frozen { "frozen" } else { "thawed" })
            }
            "guest-fsfreeze-freeze" => {
                state.frozen = true;
                state.heard.push("freeze".to_owned());
                json!(2)
            }
            "guest-fsfreeze-thaw" => {
                state.frozen = false;
                state.heard.push("thaw".to_owned());
                json!(2)
            }
            other => panic!("{other} is not asked of a guest agent"),
        }
    }

    /// Changes it.
    pub fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Waits until it is so.
    ///
    /// # Panics
    /// If that never comes.
    pub fn wait(&self, what: &str, test: impl Fn(&State) -> bool) {
        let until = Instant::now() + LONG;
        while !test(&self.0.lock().unwrap_or_else(PoisonError::into_inner)) {
            assert!(
                Instant::now() < until,
                "never: {what}; heard {:?}",
                self.0.lock().unwrap_or_else(PoisonError::into_inner).heard
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Whether it is frozen.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).frozen
    }

    /// What it was told to do, from now on anew.
    #[must_use]
    pub fn heard(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner).heard)
    }
}

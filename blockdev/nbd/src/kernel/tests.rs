//! The order of what the kernel asks twice. That the kernel does what is relied on is tested in a guest (`tests/tests/attached.rs`).

use super::*;
use afterimage_base::block::{BlockError, Geometry};
use afterimage_base::simple::{Simple, SimpleDevice};
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::{Condvar, Mutex};

const SIZE: usize = 4096;

/// A disk on which the first write stands still until it is let go.
#[derive(Default)]
struct Slow {
    bytes: Mutex<Vec<u8>>,
    /// Writes that have begun; whether the first may go on.
    state: Mutex<(u32, bool)>,
    changed: Condvar,
}

impl Slow {
    fn new() -> Arc<Slow> {
        Arc::new(Slow { bytes: Mutex::new(vec![0; SIZE]), ..Slow::default() })
    }

    fn wait_until(&self, reached: impl Fn(&(u32, bool)) -> bool) {
        drop(self.changed.wait_while(self.state.lock().unwrap(), |s| !reached(s)).unwrap());
    }

    fn let_go(&self) {
        self.state.lock().unwrap().1 = true;
        self.changed.notify_all();
    }

    fn first_byte(&self) -> u8 {
        self.bytes.lock().unwrap()[0]
    }
}

impl SimpleDevice for Slow {
    fn geometry(&self) -> Geometry {
        Geometry {
            size: SIZE as u64,
            preferred_block: 512,
            max_io: 1 << 20,
            read_only: false,
            multi_queue: true,
            trim: true,
            fast_zero: false,
            rotational: false,
        }
    }

    fn read_at(&self, _offset: u64, buf: &mut [u8]) -> Result<(), BlockError> {
        buf.fill(0);
        Ok(())
    }

    fn write_at(&self, _offset: u64, data: &[u8]) -> Result<(), BlockError> {
        let first = {
            let mut state = self.state.lock().unwrap();
            state.0 += 1;
            state.0 == 1
        };
        self.changed.notify_all();
        if first {
            self.wait_until(|s| s.1);
        }
        self.bytes.lock().unwrap()[..data.len()].copy_from_slice(data);
        Ok(())
    }

    fn zero_at(&self, _offset: u64, _len: u64) -> Result<(), BlockError> {
        Ok(())
    }

    fn flush(&self) -> Result<(), BlockError> {
        Ok(())
    }
}

fn served(disk: &Arc<Slow>) -> Served {
    let device = Arc::new(Simple(Arc::clone(disk)));
    Served { device, number: 0, backend: backend(1), stop: Stop::new().unwrap() }
}

/// What the kernel sends for a write of 512 bytes at the front.
fn write(byte: u8) -> Vec<u8> {
    let mut out = 0x2560_9513u32.to_be_bytes().to_vec();
    out.extend([0, 0, 0, 1]);
    out.extend([0; 16]);
    out.extend(512u32.to_be_bytes());
    out.extend([byte; 512]);
    out
}

/// A connection over which the kernel has sent this, and that it has given up.
fn given_up(requests: &[u8]) -> OwnedFd {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    theirs.write_all(requests).unwrap();
    ours.into()
}

#[test]
fn a_connection_is_served_to_its_end_also_when_the_kernel_has_given_it_up() {
    let disk = Slow::new();
    let served = served(&disk);
    thread::scope(|scope| {
        let old = scope.spawn(|| served.serve(given_up(&[write(1), write(2)].concat())).unwrap());
        disk.wait_until(|s| s.0 == 1);
        assert!(!old.is_finished());
        disk.let_go();
        assert!(!old.join().unwrap(), "the kernel said no goodbye");
        assert_eq!(disk.first_byte(), 2, "what it had asked is done, so what it asks next comes later");
        assert!(!served.serve(given_up(&write(3))).unwrap());
        assert_eq!(disk.first_byte(), 3);
    });
}

/// Why there is never a second connection.
#[test]
fn a_second_connection_beside_the_first_lets_an_old_write_win() {
    let disk = Slow::new();
    let served = served(&disk);
    thread::scope(|scope| {
        let old = scope.spawn(|| served.serve(given_up(&write(1))).unwrap());
        disk.wait_until(|s| s.0 == 1);
        // Asked again, and answered; then its user writes something newer.
        served.serve(given_up(&[write(1), write(2)].concat())).unwrap();
        assert_eq!(disk.first_byte(), 2);
        disk.let_go();
        old.join().unwrap();
        assert_eq!(disk.first_byte(), 1);
    });
}

#[test]
fn a_goodbye_is_told_from_a_loss() {
    let served = served(&Slow::new());
    let mut goodbye = 0x2560_9513u32.to_be_bytes().to_vec();
    goodbye.extend([0, 0, 0, 2]);
    goodbye.extend([0; 20]);
    assert!(served.serve(given_up(&goodbye)).unwrap());
    assert!(!served.serve(given_up(&goodbye[..9])).unwrap());
}

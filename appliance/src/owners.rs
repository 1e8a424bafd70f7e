//! Which machine a volume belongs to: only that one may write to it.
//!
//! The file `owners` beside the manifest: a line `afterimage owners 1`, then for each volume its id and its machine's, in
//! hexadecimal digits, then `end`. It is replaced as a whole, and durable before the machine hears that the volume is its own.
//! A volume that nobody owns (it is from before the appliance joined) is taken by the first machine that knows its id, which
//! is random and was only ever known to its agent.

use crate::ingest::SessionError;
use crate::ingest::session::Machine;
use afterimage_base::crashsafe;
use afterimage_base::world::fs;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use uuid::Uuid;

const FIRST: &str = "afterimage owners 1";
const LAST: &str = "end";

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Owners {
    path: PathBuf,
    of: BTreeMap<[u8; 16], [u8; 16]>,
}

fn parse(text: &str) -> Option<BTreeMap<[u8; 16], [u8; 16]>> {
    let mut lines = text.lines();
    if lines.next() != Some(FIRST) {
        return None;
    }
    let mut of = BTreeMap::new();
    for line in lines.by_ref() {
        if line == LAST {
            return lines.next().is_none().then_some(of);
        }
        let (volume, machine) = line.split_once(' ')?;
        of.insert(Uuid::try_parse(volume).ok()?.into_bytes(), Uuid::try_parse(machine).ok()?.into_bytes());
    }
    None
}

impl Owners {
    /// Those of a vault.
    ///
    /// # Errors
    /// If the file is there and cannot be used.
    pub(crate) fn load(vault: &Path) -> io::Result<Owners> {
        let path = vault.join("owners");
        if !fs::exists(&path) {
            return Ok(Owners { path, of: BTreeMap::new() });
        }
        let of = String::from_utf8(fs::read(&path)?).ok().as_deref().and_then(parse);
        let bad = || io::Error::new(io::ErrorKind::InvalidData, "the file is damaged or of another version");
        Ok(Owners { path, of: of.ok_or_else(bad)? })
    }

    /// Whether the volume is known to be this machine's.
    pub(crate) fn is_owner(&self, volume: &[u8; 16], machine: &Machine) -> bool {
        self.of.get(volume).is_some_and(|owner| *owner == machine.id)
    }

    /// Whether the machine may bring this volume; from now on it is its own.
    pub(crate) fn claim(&mut self, volume: [u8; 16], name: &str, machine: &Machine) -> Result<(), SessionError> {
        match self.of.get(&volume) {
            Some(owner) if *owner == machine.id => return Ok(()),
            Some(_) => {
                return Err(SessionError::Volume(format!(
                    "volume {name} belongs to another machine than '{}' ({}); a host that takes the place of another joins with a \
                     token made with --replace",
                    machine.name,
                    Uuid::from_bytes(machine.id)
                )));
            }
            None => {}
        }
        self.of.insert(volume, machine.id);
        if let Err(e) = self.store() {
            self.of.remove(&volume);
            let text = format!("{}: {e}", self.path.display());
            return Err(if crashsafe::is_full(&e) { SessionError::Full(text) } else { SessionError::Failed(text) });
        }
        tracing::info!("volume {name}: belongs to machine '{}' now", machine.name);
        Ok(())
    }

    fn store(&self) -> io::Result<()> {
        let mut text = format!("{FIRST}\n");
        for (volume, machine) in &self.of {
            text.push_str(&format!("{} {}\n", Uuid::from_bytes(*volume), Uuid::from_bytes(*machine)));
        }
        text.push_str(LAST);
        text.push('\n');
        crashsafe::replace(&self.path, text.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(n: u8) -> Machine {
        Machine { id: [n; 16], name: format!("m{n}"), serial: vec![n] }
    }

    #[test]
    fn a_volume_has_one_machine_also_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let mut owners = Owners::load(dir.path()).unwrap();
        owners.claim([1; 16], "a", &machine(1)).unwrap();
        owners.claim([2; 16], "b", &machine(2)).unwrap();
        for mut owners in [owners, Owners::load(dir.path()).unwrap()] {
            owners.claim([1; 16], "a", &machine(1)).unwrap();
            let no = owners.claim([1; 16], "a", &machine(2)).unwrap_err();
            assert!(no.to_string().contains("belongs to another machine"), "{no}");
        }
    }

    #[test]
    fn half_a_file_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let mut owners = Owners::load(dir.path()).unwrap();
        owners.claim([1; 16], "a", &machine(1)).unwrap();
        let path = dir.path().join("owners");
        let whole = std::fs::read(&path).unwrap();
        for cut in 0..whole.len() - 1 {
            std::fs::write(&path, &whole[..cut]).unwrap();
            assert!(Owners::load(dir.path()).is_err(), "{cut} of {} bytes", whole.len());
        }
    }
}

//! Volumes of which mgmt says what is kept: that is changed at mgmt, and not by hand, where it would last until mgmt comes back.
//!
//! Who says it is in `DATA/policies.json`, so that it counts also while mgmt is away and after a restart.

use super::{Local, kept, lock};
use afterimage_mgmt::members::{Done, Managed, VolumeRetention};
use afterimage_mgmt::protocol::{Code, Failure};
use afterimage_mgmt::retention::{Retention, RetentionChange};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

const FILE: &str = "policies.json";

/// By the ids of volumes.
type ById = BTreeMap<String, Managed>;

/// See the module.
pub(super) struct Book {
    path: PathBuf,
    /// Locked while what is kept is changed, by mgmt or by hand.
    of: Mutex<ById>,
}

impl Book {
    /// That of a data folder.
    pub(super) fn load(data: &Path) -> Book {
        let path = data.join(FILE);
        let read = |bytes: Vec<u8>| serde_json::from_slice(&bytes).map_err(io::Error::from);
        let of = match std::fs::read(&path).and_then(read) {
            Ok(of) => of,
            Err(e) if e.kind() == io::ErrorKind::NotFound => ById::new(),
            // The history is whole without it, and mgmt says it all again.
            Err(e) => {
                tracing::error!(
                    "{}: {e}: until mgmt is there, nobody knows here which volumes its policies count for",
                    path.display()
                );
                ById::new()
            }
        };
        Book { path, of: Mutex::new(of) }
    }

    /// Has it say this from now on.
    fn write(&self, of: &mut ById, new: ById) -> Result<(), Failure> {
        if *of == new {
            return Ok(());
        }
        let failed = |e: &dyn std::fmt::Display| Failure::new(Code::Failed, format!("{}: {e}", self.path.display()));
        let text = serde_json::to_vec_pretty(&new).map_err(|e| failed(&e))?;
        afterimage_base::crashsafe::replace(&self.path, &text).map_err(|e| failed(&e))?;
        *of = new;
        Ok(())
    }
}

/// `before`, after mgmt has spoken of these volumes, of all of which it says anything.
fn told(before: &ById, volumes: &[VolumeRetention], all: Option<&[String]>) -> ById {
    let mut new = before.clone();
    for v in volumes {
        new.insert(v.id.clone(), v.by.clone());
    }
    if let Some(all) = all {
        let all: BTreeSet<&String> = all.iter().collect();
        new.retain(|id, _| all.contains(id));
    }
    new.retain(|_, by| *by != Managed::default());
    new
}

/// Why a change by hand is not made, if mgmt says otherwise.
fn refusal(volume: &str, by: &Managed, change: &RetentionChange) -> Option<Failure> {
    let rest = RetentionChange { hold: None, force: false, ..*change };
    let no = |text| Some(Failure::new(Code::Conflict, text));
    if let Some(group) = by.on_hold.as_ref().filter(|_| change.hold == Some(false) || change.reset) {
        return no(format!(
            "volume {volume} is on hold with its group '{group}': `afterimage group set {group} --on-hold false` ends that; for when \
             mgmt is lost for good there is --force"
        ));
    }
    if !by.policies.is_empty() && !rest.is_empty() {
        let policies = by.policies.join("' and '");
        return no(format!(
            "what is kept of volume {volume} is said by policy '{policies}': change that (`afterimage policy set`), or take its \
             machine or group out of it (`afterimage machine unprotect`, `afterimage group set --policy none`); for when mgmt is lost \
             for good there is --force"
        ));
    }
    None
}

impl Local {
    /// What mgmt says is kept of volumes; `all` are the ids of all those of which it says anything.
    ///
    /// # Errors
    /// If this is no appliance, or its files cannot be written.
    pub fn retain(&self, volumes: &[VolumeRetention], all: Option<&[String]>) -> Result<Done, Failure> {
        let appliance = self.appliance()?;
        let mut of = lock(&self.managed.of);
        // Whose word it is is known before it counts.
        let new = told(&of, volumes, all);
        self.managed.write(&mut of, new)?;
        kept::retain(&appliance, volumes)
    }

    /// What is kept of a volume, changed by hand.
    pub(super) fn retain_by_hand(
        &self,
        volume: &str,
        change: &RetentionChange,
        dry_run: bool,
    ) -> Result<Retention, Failure> {
        let appliance = self.appliance()?;
        let mut of = lock(&self.managed.of);
        let id = kept::id_of(&appliance, volume).unwrap_or_default();
        let by = of.get(&id).cloned().unwrap_or_default();
        if !dry_run && let Some(no) = refusal(volume, &by, change) {
            if !change.force {
                return Err(no);
            }
            tracing::warn!("volume {volume}: what is kept is changed by hand, though mgmt had said it: {by:?}");
            let mut new = of.clone();
            new.remove(&id);
            self.managed.write(&mut of, new)?;
        }
        let told = kept::retention(&appliance, volume, change, dry_run)?;
        Ok(shown(told, of.get(&id).cloned()))
    }

    /// What would be kept of a volume.
    ///
    /// # Errors
    /// If this is no appliance, or it has no such volume.
    pub fn preview(&self, id: &str, change: &RetentionChange) -> Result<Retention, Failure> {
        let by = lock(&self.managed.of).get(id).cloned();
        Ok(shown(kept::preview(&*self.appliance()?, id, change)?, by))
    }
}

fn shown(told: Retention, by: Option<Managed>) -> Retention {
    let by = by.unwrap_or_default();
    Retention { policies: by.policies, held_by: by.on_hold, ..told }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gold() -> Managed {
        Managed { policies: vec!["gold".to_owned()], on_hold: None }
    }

    fn volume(id: &str, by: Managed) -> VolumeRetention {
        VolumeRetention { id: id.to_owned(), change: RetentionChange::default(), by }
    }

    #[test]
    fn what_a_policy_says_is_not_changed_by_hand_and_the_rest_is() {
        let window = RetentionChange { window_seconds: Some(60), ..RetentionChange::default() };
        let hold = |hold| RetentionChange { hold: Some(hold), ..RetentionChange::default() };
        let reset = RetentionChange { reset: true, ..RetentionChange::default() };
        let held = Managed { policies: Vec::new(), on_hold: Some("shop".to_owned()) };
        let why = |by: &Managed, change| refusal("web", by, &change).map(|no| no.message);
        for change in [window, reset] {
            let no = why(&gold(), change).unwrap();
            assert!(no.contains("volume web") && no.contains("policy 'gold'"), "{no}");
        }
        // A policy says nothing of holds, and a hold nothing of the rest.
        assert_eq!((why(&gold(), hold(true)), why(&gold(), hold(false)), why(&held, window)), (None, None, None));
        for change in [hold(false), reset] {
            let no = why(&held, change).unwrap();
            assert!(no.contains("group 'shop'") && no.contains("--on-hold false"), "{no}");
        }
        assert_eq!(why(&held, hold(true)), None);
        let only_force = RetentionChange { force: true, ..RetentionChange::default() };
        assert_eq!(why(&gold(), only_force), None, "who changes nothing is told what there is");
    }

    #[test]
    fn what_mgmt_says_of_nobody_any_more_is_free_again_also_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let book = Book::load(dir.path());
        let tell = |book: &Book, volumes: &[VolumeRetention], all: Option<&[String]>| {
            let mut of = lock(&book.of);
            let new = told(&of, volumes, all);
            book.write(&mut of, new).unwrap();
        };
        let ids = |book: &Book| lock(&book.of).keys().cloned().collect::<Vec<_>>();
        tell(&book, &[volume("a", gold()), volume("b", gold()), volume("c", Managed::default())], None);
        assert_eq!(ids(&book), ["a", "b"], "of c nobody has said who says it");
        let book = Book::load(dir.path());
        assert_eq!(lock(&book.of)["a"], gold());
        tell(&book, &[volume("b", Managed::default())], Some(&["a".to_owned(), "b".to_owned()]));
        assert_eq!(ids(&book), ["a"]);
        tell(&book, &[], None);
        assert_eq!(ids(&book), ["a"], "a mgmt that does not say who all are says nothing of others");
        tell(&book, &[], Some(&[]));
        assert!(ids(&Book::load(dir.path())).is_empty());
        std::fs::write(dir.path().join(FILE), "{").unwrap();
        assert!(ids(&Book::load(dir.path())).is_empty());
    }
}

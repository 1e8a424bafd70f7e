use super::*;
use afterimage_trust::identity::Identity;
use uuid::Uuid;

fn open(dir: &Path) -> Catalogue {
    Catalogue::open(&dir.join("c.sqlite")).unwrap()
}

fn token(role: Role, name: &str) -> NewToken {
    NewToken { role, name: Some(name.to_owned()), id: None, appliance: None, replace: false, ttl: 60 }
}

fn authority(dir: &Path) -> crate::authority::Authority {
    crate::authority::Authority::create(&dir.join("a.pem")).unwrap()
}

struct Site {
    catalogue: Catalogue,
    authority: crate::authority::Authority,
    _dir: tempfile::TempDir,
}

impl Site {
    fn new() -> Site {
        let dir = tempfile::tempdir().unwrap();
        Site { catalogue: open(dir.path()), authority: authority(dir.path()), _dir: dir }
    }

    fn redeem(&self, hash: u8, role: Role) -> Result<Redeemed, CatalogueError> {
        let request = afterimage_trust::csr::fresh().unwrap().request;
        self.catalogue.change("test", |change| {
            change.redeem(&[hash; 32], role, "host", |identity, name| {
                let life = Duration::from_secs(3600);
                self.authority.issue(&request, &crate::authority::Subject { identity, name, hosts: &[], life })
            })
        })
    }

    fn add(&self, hash: u8, new: &NewToken) -> Result<TokenRow, CatalogueError> {
        self.catalogue.create_token("test", &[hash; 32], new)
    }
}

#[test]
fn a_change_that_says_nothing_is_not_made() {
    let dir = tempfile::tempdir().unwrap();
    let catalogue = open(dir.path());
    let silent = catalogue.change("me", |change| change.set("x", "1"));
    assert!(matches!(silent, Err(CatalogueError::Silent)), "{silent:?}");
    assert_eq!(catalogue.setting("x").unwrap(), None);
    catalogue.change("me", |c| c.set("x", "2").and_then(|()| c.log("set", "x", "2"))).unwrap();
    let failed: Result<(), _> =
        catalogue.change("me", |c| c.set("x", "3").and(c.log("set", "x", "3")).and(Err(CatalogueError::Silent)));
    assert!(failed.is_err());
    assert_eq!(catalogue.setting("x").unwrap().as_deref(), Some("2"));
    let audit = catalogue.audit(10).unwrap();
    assert_eq!(audit.len(), 1);
    assert_eq!((&*audit[0].who, &*audit[0].action, &*audit[0].detail), ("me", "set", "2"));
    // Nobody mends the book afterwards.
    for sql in ["DELETE FROM audit", "UPDATE audit SET who = 'you'"] {
        assert!(catalogue.lock().execute(sql, []).is_err(), "{sql}");
    }
}

#[test]
fn a_database_of_a_newer_program_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path()).lock().pragma_update(None, "user_version", 99).unwrap();
    let newer = Catalogue::open(&dir.path().join("c.sqlite"));
    assert!(matches!(newer, Err(CatalogueError::Newer { found: 99, .. })), "{newer:?}");
}

#[test]
fn a_token_works_once_for_what_it_was_made_for_and_not_too_late() {
    let site = Site::new();
    let early = site.add(9, &token(Role::Agent, "web")).unwrap_err().to_string();
    assert!(early.contains("no appliance has joined"), "{early}");
    site.add(1, &token(Role::Appliance, "vault")).unwrap();
    let say = |r: Result<Redeemed, CatalogueError>| r.unwrap_err().to_string();
    assert!(say(site.redeem(1, Role::Agent)).contains("is for joining as appliance"));
    assert!(say(site.redeem(7, Role::Appliance)).contains("not made here"));
    let vault = site.redeem(1, Role::Appliance).unwrap();
    assert!(say(site.redeem(1, Role::Appliance)).contains("used already, by vault"));
    site.add(2, &NewToken { ttl: 0, ..token(Role::Agent, "web") }).unwrap();
    assert!(say(site.redeem(2, Role::Agent)).contains("has expired"));
    site.add(3, &token(Role::Agent, "web")).unwrap();
    let web = site.redeem(3, Role::Agent).unwrap();
    assert_eq!((web.identity.vault, &*web.name), (vault.identity.id, "web"));
    assert_eq!(afterimage_trust::identity::Claims::of(&web.certificate).unwrap().identity, Some(web.identity));
    assert!(site.catalogue.audit(50).unwrap().iter().any(|a| a.action == "join" && a.object == "agent web"));
}

#[test]
fn a_name_is_taken_over_only_by_a_token_that_says_so_and_the_old_certificates_end() {
    let site = Site::new();
    site.add(1, &token(Role::Appliance, "vault")).unwrap();
    site.redeem(1, Role::Appliance).unwrap();
    site.add(2, &token(Role::Agent, "web")).unwrap();
    let first = site.redeem(2, Role::Agent).unwrap();
    assert!(site.add(3, &token(Role::Agent, "web")).is_err());
    assert!(site.add(3, &NewToken { replace: true, ..token(Role::Agent, "other") }).is_err());
    assert!(site.catalogue.revocations().unwrap().serials.is_empty());
    site.add(4, &NewToken { replace: true, ..token(Role::Agent, "web") }).unwrap();
    let second = site.redeem(4, Role::Agent).unwrap();
    assert_eq!(first.identity, second.identity, "its volumes stay its own");
    let list = site.catalogue.revocations().unwrap();
    let serial = |r: &Redeemed| afterimage_trust::identity::Claims::of(&r.certificate).unwrap().serial;
    assert_eq!(list.serials, [serial(&first)]);
    let (name, n) = site.catalogue.change("me", |c| c.revoke("web")).unwrap();
    assert_eq!((&*name, n), ("web", 1));
    let newer = site.catalogue.revocations().unwrap();
    assert!(newer.number > list.number && newer.serials.contains(&serial(&second)));
    assert!(site.catalogue.member(Role::Agent, &first.identity.id).unwrap().unwrap().revoked.is_some());
    assert!(site.catalogue.change("me", |c| c.revoke("nobody")).is_err());
}

#[test]
fn a_member_that_was_lost_comes_back_with_its_id() {
    let site = Site::new();
    let id = Uuid::from_u128(77);
    site.add(1, &NewToken { id: Some(id), ..token(Role::Appliance, "vault") }).unwrap();
    let vault = site.redeem(1, Role::Appliance).unwrap();
    assert_eq!(vault.identity, Identity { role: Role::Appliance, id, vault: id });
    let nameless = NewToken { id: Some(id), name: None, ..token(Role::Agent, "x") };
    assert!(site.add(2, &nameless).is_err());
}

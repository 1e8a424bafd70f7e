use super::client::{ApiClient, ApiError};
use super::key::ApiKey;
use super::openapi;
use super::problem::Kind;
use super::routes::{self, Method};
use super::types::*;
use crate::catalogue::{ApiRole, NewToken};
use crate::members::{Clock, DiskFound, DisksTaken, Done, Interface, MemberAsk, Readiness, Way};
use crate::office::{Answered, Office, Port};
use crate::protocol::{Code, Failure, PointList};
use crate::units::Time;
use afterimage_base::net::Endpoint;
use afterimage_trust::identity::Role;
use afterimage_trust::session::{Duties, Session};
use afterimage_trust::token::Token;
use afterimage_trust::{Trust, join};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

struct Site {
    office: Arc<Office>,
    api: super::Api,
    port: Port,
    dir: tempfile::TempDir,
}

impl Site {
    fn new() -> Site {
        let dir = tempfile::tempdir().unwrap();
        let office = Arc::new(Office::open(dir.path(), None).unwrap());
        let api = super::Api::open(&office, &["127.0.0.1:0".parse().unwrap()]).unwrap();
        let port = Port::open(&office, &[Endpoint::Tcp("127.0.0.1".to_owned(), 0)]).unwrap();
        Site { office, api, port, dir }
    }

    fn token(&self, name: &str, role: ApiRole, ttl_seconds: u64) -> ApiTokenMade {
        self.office.create_api_token("test", &NewApiToken { name: name.to_owned(), role, ttl_seconds }).unwrap()
    }

    fn client(&self, role: ApiRole) -> ApiClient {
        self.client_with(&self.token("somebody", role, 60).token)
    }

    fn client_with(&self, token: &str) -> ApiClient {
        let address = self.api.addresses()[0];
        ApiClient {
            address: Endpoint::Tcp(address.ip().to_string(), address.port()),
            key: token.parse().unwrap(),
            pin: None,
        }
    }

    /// A member that has joined, with a session.
    fn member(&self, role: Role, name: &str, fake: &Arc<Fake>) -> Session {
        let token = Token::new(self.office.authority.certificate()).unwrap();
        let new = NewToken { role, name: Some(name.to_owned()), id: None, appliance: None, replace: false, ttl: 60 };
        self.office.catalogue.create_token("test", &Token::hash(&token.secret), &new).unwrap();
        let folder = self.dir.path().join(name);
        let mgmt = self.port.addresses()[0].clone();
        join::join(&folder, &join::Wish { mgmt: &mgmt, token: &token, role, host: &format!("{name}.host") }).unwrap();
        let trust = Trust::load(&folder).unwrap().unwrap();
        Session::with_duties(trust, Some(Arc::clone(fake) as Arc<dyn Duties>), None).unwrap()
    }
}

#[derive(Default)]
struct Fake {
    volumes: Mutex<Vec<Value>>,
    readiness: Mutex<Readiness>,
    role: &'static str,
}

impl Duties for Fake {
    fn report(&self) -> Option<Vec<u8>> {
        let status = json!({
            "v": 1, "version": "9.9", "pid": 1, "data": "/d", "started": Time(0), "time": Time(0), "role": self.role,
            "window_seconds": 7, "clients": 0, "volumes": *self.volumes.lock().unwrap(), "new_field": 1
        });
        serde_json::to_vec(&status).ok()
    }

    fn answer(&self, ask: &[u8]) -> Vec<u8> {
        fn ok<T: serde::Serialize>(value: T) -> Vec<u8> {
            serde_json::to_vec(&Answered::Ok(value)).unwrap()
        }
        match serde_json::from_slice(ask).unwrap() {
            MemberAsk::Clock => ok(Clock { time_ns: Time::now().0 }),
            MemberAsk::Readiness { disks } => {
                let found = |path: String| DiskFound { path, size: 1 << 30, ..DiskFound::default() };
                let disks = disks.into_iter().map(found).collect();
                ok(Readiness { disks, ..self.readiness.lock().unwrap().clone() })
            }
            MemberAsk::Points { volume } if volume == "data" => {
                ok(PointList { volume, window: None, points: Vec::new(), gaps: Vec::new() })
            }
            MemberAsk::Points { volume } => {
                let no = Failure::new(Code::NotFound, format!("there is no volume '{volume}'"));
                serde_json::to_vec(&Answered::<()>::Error(no)).unwrap()
            }
            MemberAsk::Protect { disks } => {
                let names: Vec<String> = disks.into_iter().map(|d| d.name.unwrap_or(d.path)).collect();
                let mut volumes = self.volumes.lock().unwrap();
                volumes.extend(names.iter().map(|n| volume(n, "initial-sync")));
                ok(DisksTaken { volumes: names })
            }
            _ => ok(Done::default()),
        }
    }
}

fn volume(name: &str, state: &str) -> Value {
    json!({
        "name": name, "id": format!("id-of-{name}"), "path": format!("/{name}"), "uri": ["nbd://x"], "size": 1024, "state": state,
        "reason": null, "connected": true, "seq_acked": 7, "seq_durable": 5, "lag_seconds": 0.25, "lag_bytes": 4096,
        "ring_bytes": 8, "ring_used": 4, "dirty_bytes": 3, "points": 3, "stored_bytes": 5, "logical_bytes": 10,
        "first_seq": null, "first_time": null, "durable_time": null
    })
}

fn good() -> Readiness {
    Readiness {
        kernel: "6.1.0-13-amd64".into(),
        io_uring: true,
        ublk: false,
        nbd: true,
        free: 1 << 40,
        ring: 128 << 20,
        listen: vec!["unix:/x".into()],
        appliance: Some(Way {
            address: "tcp:vault:9443".into(),
            connect_ms: Some(3),
            bytes_per_second: Some(100 << 20),
            error: None,
        }),
        networks: vec![Interface { name: "eth0".into(), addresses: vec!["192.0.2.7/24".into()] }],
        disks: Vec::new(),
    }
}

fn eventually(what: &str, mut is: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(60);
    while !is() {
        assert!(Instant::now() < until, "it never came to this: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn refused<T: std::fmt::Debug>(result: Result<T, ApiError>, kind: Kind) -> String {
    match result {
        Err(ApiError::Refused(p)) => {
            let (status, word, _) = kind.parts();
            assert_eq!((p.status, p.kind.as_str()), (status, &*format!("urn:afterimage:{word}")), "{}", p.detail);
            p.detail
        }
        other => panic!("refused as {kind:?} is what it should be: {other:?}"),
    }
}

#[test]
fn the_description_is_that_of_the_code() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/openapi.json");
    if std::env::var_os("AFTERIMAGE_WRITE_OPENAPI").is_some() {
        std::fs::write(path, openapi::text()).unwrap();
    }
    let kept = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        kept == openapi::text(),
        "docs/openapi.json is not what the code says: `afterimage mgmt openapi > docs/openapi.json` makes a new one"
    );
    // Names are for programs: each stands for one thing, and each thing is reached.
    let ids: std::collections::BTreeSet<&str> = routes::all().map(|r| r.id).collect();
    assert_eq!(ids.len(), routes::all().count());
    for route in routes::all() {
        let path = route.path.split('/').map(|p| if p.starts_with('{') { "x%2Fy" } else { p }).collect::<Vec<_>>();
        let (found, open) = routes::find(route.method.as_str(), &path.join("/")).unwrap();
        assert_eq!(found.id, route.id);
        assert!(open.iter().all(|part| part == "x/y"));
        let looks = route.method == Method::Get;
        assert!(looks || route.role > ApiRole::Viewer, "{}: a viewer may change something", route.id);
        assert!(!looks || route.takes.is_none(), "{}: GET has no body", route.id);
    }
}

/// Every route with every role: who may not, hears 403 and nothing happens; who shows no token that counts hears 401, always the same.
#[test]
fn each_role_may_what_the_table_says_and_strangers_nothing() {
    let site = Site::new();
    let clients = ApiRole::ALL.map(|role| (role, site.client(role)));
    let strangers = [
        site.client_with(&ApiKey::new(site.office.authority.certificate()).unwrap().text()),
        site.client_with(&site.token("short", ApiRole::Admin, 1).token),
        {
            let made = site.token("gone", ApiRole::Admin, 60);
            site.office.catalogue.revoke_api_token("test", made.id).unwrap();
            site.client_with(&made.token)
        },
    ];
    std::thread::sleep(Duration::from_millis(2100));
    let mut heard = std::collections::BTreeSet::new();
    for route in routes::all() {
        let path = route.path.split('/').map(|p| if p.starts_with('{') { "nothing" } else { p }).collect::<Vec<_>>();
        let call = |c: &ApiClient| c.call::<Value, Value>(route.method.as_str(), &path.join("/"), None);
        for stranger in &strangers {
            heard.insert(refused(call(stranger), Kind::Unauthorized));
        }
        for (role, client) in &clients {
            let forbidden = matches!(call(client), Err(ApiError::Refused(p)) if p.status == 403);
            assert_eq!(forbidden, *role < route.role, "{} as {role}", route.id);
        }
    }
    heard.insert(refused(strangers[0].get::<Value>("/nothing/here"), Kind::Unauthorized));
    assert_eq!(heard.len(), 1, "a stranger learns something: {heard:?}");
    refused(clients[2].1.get::<Value>("/nothing/here"), Kind::NotFound);
    refused(clients[2].1.call::<Value, Value>("DELETE", "/v1/machines", None), Kind::Method);
}

#[test]
fn what_is_too_long_or_misspelt_is_refused() {
    let site = Site::new();
    let client = site.client(ApiRole::Operator);
    let long = json!({ "name": "x".repeat(100_000) });
    refused(client.call::<_, Value>("POST", "/v1/policies", Some(&long)), Kind::TooLong);
    let misspelt = json!({ "name": "p", "settings": { "hourlyy": 3 } });
    let detail = refused(client.call::<_, Value>("POST", "/v1/policies", Some(&misspelt)), Kind::BadRequest);
    assert!(detail.contains("hourlyy"), "{detail}");
    refused(client.get::<Value>("/v1/events?aftr=3"), Kind::BadRequest);
    refused(client.get::<Value>("/v1/events?after=x"), Kind::BadRequest);
    let out = json!({ "name": "p", "settings": { "window_seconds": 1 } });
    let detail = refused(client.call::<_, Value>("POST", "/v1/policies", Some(&out)), Kind::BadRequest);
    assert!(detail.contains("window_seconds is 1"), "{detail}");
    refused(client.call::<_, Value>("POST", "/v1/policies", Some(&json!({ "name": "a b" }))), Kind::BadRequest);
    // Nothing of that was done.
    assert_eq!(client.get::<List<Policy>>("/v1/policies").unwrap().items, []);
    // Another mgmt is not believed, and does not hear the token.
    let other = ApiClient { pin: Some([7; 32]), ..client };
    assert!(matches!(other.get::<Value>("/v1/status"), Err(ApiError::Connection(..))));
}

/// What somebody hears who does not speak TLS 1.3: an alert, or nothing.
#[test]
fn the_port_answers_strangers_with_an_alert_at_most() {
    let site = Site::new();
    for bytes in [&b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n"[..], &[0; 64], b"\x16\x03\x01\x00\x05hello"] {
        let mut stream = TcpStream::connect(site.api.addresses()[0]).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.write_all(bytes).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.is_empty() || (answer[0] == 0x15 && answer.len() <= 7), "{answer:?}");
    }
    // One that says nothing does not keep others out.
    let _silent: Vec<TcpStream> = (0..20).map(|_| TcpStream::connect(site.api.addresses()[0]).unwrap()).collect();
    site.client(ApiRole::Viewer).get::<MgmtStatus>("/v1/status").unwrap();
}

#[test]
fn policies_are_made_changed_and_kept_from_being_pulled_away() {
    let site = Site::new();
    let client = site.client(ApiRole::Operator);
    let new = json!({ "name": "gold", "settings": { "hourly": 24, "crash_interval_seconds": 5 } });
    let made: Policy = client.call("POST", "/v1/policies", Some(&new)).unwrap();
    assert_eq!((made.settings.hourly, made.settings.window_seconds), (24, 86_400));
    refused(client.call::<_, Value>("POST", "/v1/policies", Some(&new)), Kind::Conflict);
    let change = PolicyChange { daily: Some(7), allow_partial: Some(true), ..PolicyChange::default() };
    let set: Policy = client.call("PATCH", "/v1/policies/gold", Some(&change)).unwrap();
    assert_eq!((set.settings.hourly, set.settings.daily, set.settings.allow_partial), (24, 7, true));
    client.call::<(), Option<Value>>("DELETE", "/v1/policies/gold", None).unwrap();
    refused(client.get::<Value>("/v1/policies/gold"), Kind::NotFound);
    let admin = site.client(ApiRole::Admin);
    let audit: List<AuditLine> = admin.get("/v1/audit").unwrap();
    let by_me: Vec<&str> = audit
        .items
        .iter()
        .filter(|l| l.who.starts_with("somebody (operator, API token 1) at 127.0.0.1") && l.object == "policy gold")
        .map(|l| l.action.as_str())
        .collect();
    assert_eq!(by_me, ["create-policy", "set-policy", "remove-policy"]);
}

#[test]
fn who_waits_for_an_event_gets_it_when_it_comes() {
    let site = Site::new();
    let client = site.client(ApiRole::Operator);
    let before: Events = client.get("/v1/events").unwrap();
    assert!(before.next > 0 && !before.events.is_empty());
    let path = format!("/v1/events?after={}&wait=50", before.next);
    let waits = {
        let client = client.clone();
        std::thread::spawn(move || client.get::<Events>(&path).unwrap())
    };
    std::thread::sleep(Duration::from_millis(300));
    client.call::<_, Policy>("POST", "/v1/policies", Some(&json!({ "name": "silver" }))).unwrap();
    let news = waits.join().unwrap();
    assert_eq!(news.events.len(), 1);
    assert_eq!((news.events[0].kind.as_str(), news.events[0].object.as_str()), ("change", "policy silver"));
    assert_eq!(news.next, news.events[0].id);
    let none: Events = client.get(&format!("/v1/events?after={}&wait=0", news.next)).unwrap();
    assert_eq!((none.events.len(), none.next), (0, news.next));
}

#[test]
fn groups_are_made_changed_and_removed() {
    let site = Site::new();
    let client = site.client(ApiRole::Operator);
    assert_eq!(client.get::<Value>("/v1/groups").unwrap_err().to_string(), "mgmt is starting or stopping: try again");
    let groups = Arc::new(crate::groups::Groups::start(Arc::clone(&site.office)).unwrap());
    site.office.set_groups(&groups);
    let vault = Arc::new(Fake { role: "appliance", ..Fake::default() });
    let _vault = site.member(Role::Appliance, "vault", &vault);
    let web = Arc::new(Fake { role: "agent", ..Fake::default() });
    let _web = site.member(Role::Agent, "web", &web);
    let new = json!({ "name": "shop", "machines": ["web"], "how": { "every_seconds": 0 } });
    let made: Value = client.call("POST", "/v1/groups", Some(&new)).unwrap();
    assert_eq!((&made["group"]["hold_ms"], &made["group"]["members"][0]["name"]), (&json!(100), &json!("web")));
    refused(client.call::<_, Value>("POST", "/v1/groups", Some(&new)), Kind::Conflict);
    let set: Value = client.call("PATCH", "/v1/groups/shop", Some(&json!({ "hold_ms": 50 }))).unwrap();
    assert_eq!((&set["group"]["hold_ms"], &set["group"]["every_seconds"]), (&json!(50), &json!(0)));
    // Who leaves and who comes is one change: all of it, or nothing.
    let change = |body: Value| client.call::<_, Value>("PATCH", "/v1/groups/shop/machines", Some(&body));
    let members = || client.get::<Value>("/v1/groups/shop").unwrap()["group"]["members"].clone();
    refused(change(json!({ "remove": ["web", "nobody"] })), Kind::NotFound);
    refused(change(json!({ "remove": ["web"], "add": ["nobody"] })), Kind::NotFound);
    refused(change(json!({})), Kind::BadRequest);
    assert_eq!(members()[0]["name"], "web");
    assert_eq!(change(json!({ "remove": ["web"] })).unwrap()["group"]["members"], json!([]));
    assert_eq!(change(json!({ "add": ["web"] })).unwrap()["group"]["members"][0]["name"], "web");
    let left: Value = client.call::<(), _>("DELETE", "/v1/groups/shop/machines/web", None).unwrap();
    assert_eq!(left["group"]["members"], json!([]));
    let points: Value = client.get("/v1/groups/shop/points").unwrap();
    assert_eq!(points["points"], json!([]));
    refused(client.get::<Value>("/v1/groups/shop/points/x"), Kind::NotFound);
    client.call::<(), Option<Value>>("DELETE", "/v1/groups/shop", None).unwrap();
    refused(client.get::<Value>("/v1/groups/shop"), Kind::NotFound);
}

/// The whole way: members join, report and are asked over their sessions; machines are protected; a mgmt that comes back knows all.
#[test]
fn machines_are_seen_judged_and_protected() {
    let site = Site::new();
    let client = site.client(ApiRole::Operator);
    let vault = Arc::new(Fake { role: "appliance", ..Fake::default() });
    vault.volumes.lock().unwrap().push(volume("data", "live"));
    let _vault = site.member(Role::Appliance, "vault", &vault);
    let web = Arc::new(Fake { role: "agent", ..Fake::default() });
    *web.readiness.lock().unwrap() = good();
    let session = site.member(Role::Agent, "web", &web);
    let machine = || client.get::<Machine>("/v1/machines/web").unwrap();
    eventually("both are connected", || {
        machine().connected && client.get::<MgmtStatus>("/v1/status").unwrap().appliances_connected == 1
    });
    assert_eq!((machine().state.as_str(), machine().host.as_str()), ("none", "web.host"));

    // Nothing to protect: the findings say so, by number.
    let protect = |body: Value| client.call::<_, Protected>("POST", "/v1/machines/web/protect", Some(&body));
    let Err(ApiError::Refused(no)) = protect(json!({})) else { panic!("there is nothing to protect") };
    assert_eq!(no.status, 422);
    assert!(no.findings.iter().zip(1..).all(|(f, n)| f.number == n) && no.detail.contains("serves no disk"), "{no:?}");
    let tried = protect(json!({ "dry_run": true, "disks": [{ "path": "/dev/vdb", "name": "data" }] })).unwrap();
    assert!(!tried.done && tried.job.is_none() && machine().policy.is_none());

    // One call: the policy, the target by default names, the disk.
    let ask = json!({ "disks": [{ "path": "/dev/vdb", "name": "data" }], "failover_host": "dr1" });
    let done = protect(ask).unwrap();
    assert_eq!((done.done, done.policy.as_str(), done.added.as_slice()), (true, "default", &["data".to_owned()][..]));
    let eth0 = NetworkMap { source: "eth0".into(), target: "eth0".into() };
    let target = Target {
        appliance: "vault".into(),
        store: "vault".into(),
        failover_host: "dr1".into(),
        failover_name: "web-failover".into(),
        network: vec![eth0],
    };
    assert_eq!(done.target, target);
    let job: Job = client.get(&format!("/v1/jobs/{}", done.job.unwrap())).unwrap();
    assert_eq!((job.state.as_str(), job.object.as_str()), ("done", "machine web"));
    refused(client.call::<(), Value>("DELETE", "/v1/policies/default", None), Kind::Conflict);

    // What is overridden later is, and the rest stays.
    let again = protect(json!({ "network": [{ "source": "eth0", "target": "dr-lan" }] })).unwrap();
    assert_eq!((again.target.failover_host.as_str(), again.target.network[0].target.as_str()), ("dr1", "dr-lan"));
    assert_eq!(again.target.network.len(), 1);

    // The volume shows, with its history from the appliance.
    eventually("the volume shows", || machine().volumes == 1 && machine().state == "initial-sync");
    let v: VolumeView = client.get("/v1/volumes/web%2Fdata").unwrap();
    assert_eq!((v.now.as_ref().unwrap().lag_bytes, v.history.as_ref().unwrap().points), (4096, 3));
    let points: VolumePoints = client.get("/v1/volumes/data/points").unwrap();
    assert_eq!(points.volume, "data");
    let metrics = crate::metrics::of_office(&site.office).unwrap();
    for line in [
        "afterimage_member_connected{role=\"agent\",member=\"web\"} 1",
        "afterimage_machine_protected{machine=\"web\"} 1",
        "afterimage_volume_lag_bytes{machine=\"web\",volume=\"data\"} 4096",
        "afterimage_volume_reduce_ratio{appliance=\"vault\",volume=\"data\"} 2",
    ] {
        assert!(metrics.lines().any(|l| l == line), "{line} is not in\n{metrics}");
    }

    // A guest of the same agent.
    let guest = json!({ "name": "db", "agent": "web", "volumes": ["data"] });
    assert_eq!(client.call::<_, Machine>("POST", "/v1/machines", Some(&guest)).unwrap().volumes, 1);
    assert_eq!(machine().volumes, 0);
    let list: List<VolumeView> = client.get("/v1/volumes?machine=db").unwrap();
    assert_eq!(list.items[0].machine, "db");
    client.call::<(), Option<Value>>("DELETE", "/v1/machines/db", None).unwrap();
    assert_eq!(machine().volumes, 1);

    // The agent leaves: what is known stays, as known; asking it says what is the matter.
    drop(session);
    eventually("it is away", || !machine().connected);
    assert_eq!((machine().state.as_str(), machine().lag_bytes), ("away", None));
    let Err(ApiError::Refused(no)) = protect(json!({})) else { panic!("nobody is there") };
    assert!(no.findings[0].text.contains("is not connected"), "{no:?}");
    let events: Events = client.get("/v1/events?after=0&limit=1000").unwrap();
    for (kind, object) in
        [("connected", "machine web"), ("volume-state", "volume web/data"), ("away", "machine web"), ("job", "job 1")]
    {
        assert!(events.events.iter().any(|e| e.kind == kind && e.object == object), "{kind} {object}: {events:?}");
    }

    // Another process on the same catalogue.
    let Site { office, api, port, dir } = site;
    drop((api, port));
    drop(office);
    let office = Office::open(dir.path(), None).unwrap();
    let seen = super::view::find(&office, "web").unwrap();
    assert_eq!((seen.machine.policy.as_deref(), seen.volumes.len()), (Some("default"), 1));
    assert_eq!(seen.volumes[0].last_state, "initial-sync");
}

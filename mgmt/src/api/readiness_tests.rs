use super::*;
use crate::members::{DiskFound, Interface};

fn good() -> Readiness {
    Readiness {
        kernel: "6.1.0-13-amd64".into(),
        io_uring: true,
        ublk: true,
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
        networks: vec![Interface { name: "eth0".into(), addresses: Vec::new() }],
        disks: vec![DiskFound { path: "/dev/vdb".into(), size: 1 << 30, ..DiskFound::default() }],
    }
}

const EXACT: ClockSeen = ClockSeen { ahead_ms: 3, uncertain_ms: 100 };

/// Each thing that can be wrong is found, as what it is, and nothing else with it.
#[test]
fn every_fault_is_a_finding_of_its_own() {
    let fine = judge(&good(), EXACT, 0);
    assert!(fine.iter().all(|f| f.level == Level::Ok && f.remedy.is_none()), "{fine:?}");
    assert!(fine.iter().zip(1..).all(|(f, n)| f.number == n));
    type Break = fn(&mut Readiness);
    let faults: [(&str, Level, Break); 12] = [
        ("kernel", Level::Error, |r| r.kernel = "4.19.0".into()),
        ("kernel", Level::Error, |r| r.kernel = "not a version".into()),
        ("kernel", Level::Error, |r| r.io_uring = false),
        ("kernel", Level::Warning, |r| (r.ublk, r.nbd) = (false, false)),
        ("space", Level::Error, |r| r.free = r.ring - 1),
        ("space", Level::Warning, |r| r.free = r.ring),
        ("ports", Level::Warning, |r| r.listen.clear()),
        ("ports", Level::Error, |r| r.appliance = None),
        ("disk", Level::Error, |r| r.disks[0].used_by.push("mounted at /srv".into())),
        ("disk", Level::Error, |r| r.disks[0].error = Some("no such file".into())),
        ("throughput", Level::Warning, |r| r.appliance.as_mut().unwrap().bytes_per_second = Some(1000)),
        ("throughput", Level::Warning, |r| r.appliance.as_mut().unwrap().bytes_per_second = None),
    ];
    for (check, level, make) in faults {
        let mut found = good();
        make(&mut found);
        let bad: Vec<Finding> = judge(&found, EXACT, 0).into_iter().filter(|f| f.level != Level::Ok).collect();
        assert!(bad.len() == 1 && bad[0].check == check && bad[0].level == level, "{check}: {bad:?}");
        assert!(bad[0].remedy.is_some());
    }
    let mut cut = good();
    cut.appliance = Some(Way { address: "tcp:x:1".into(), error: Some("refused".into()), ..Way::default() });
    let bad: Vec<Finding> = judge(&cut, EXACT, 0).into_iter().filter(|f| f.level != Level::Ok).collect();
    assert!(bad.len() == 1 && bad[0].check == "ports" && bad[0].text.contains("refused"), "{bad:?}");
}

#[test]
fn clocks_are_judged_by_what_is_certain() {
    let level = |ahead_ms, uncertain_ms| {
        let all = judge(&good(), ClockSeen { ahead_ms, uncertain_ms }, 0);
        all.into_iter().find(|f| f.check == "clock").unwrap().level
    };
    assert_eq!(level(1500, 10), Level::Ok);
    assert_eq!(level(2500, 10), Level::Warning);
    assert_eq!(level(-2500, 10), Level::Warning);
    assert_eq!(level(2500, 1000), Level::Ok);
    assert_eq!(level(-700_000, 10), Level::Error);
    let seen = clock_seen(10_000_000_000, 8_000_000_000, Duration::from_secs(2));
    assert_eq!(seen, ClockSeen { ahead_ms: 1000, uncertain_ms: 1001 });
}

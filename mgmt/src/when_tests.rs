use super::*;

#[test]
fn every_form_is_read_and_written_back() {
    for (text, when) in [
        ("latest", When::Latest),
        ("@1", When::Seq(1)),
        ("@18446744073709551615", When::Seq(u64::MAX)),
        ("-10m", When::Ago(Duration::from_secs(600))),
        ("-1h30m", When::Ago(Duration::from_secs(5400))),
        ("-2d", When::Ago(Duration::from_secs(172_800))),
        ("-1m1s5ms", When::Ago(Duration::from_millis(61_005))),
        ("-5ms", When::Ago(Duration::from_millis(5))),
        ("2026-03-01T14:30:00Z", When::Time(Time(1_772_375_400_000_000_000))),
        ("before upgrade", When::Point("before upgrade".to_owned())),
        ("2026", When::Point("2026".to_owned())),
        ("10m", When::Point("10m".to_owned())),
    ] {
        assert_eq!(text.parse(), Ok(when.clone()), "{text}");
        assert_eq!(when.to_string(), text);
        let json = serde_json::to_string(&when).unwrap();
        assert_eq!(serde_json::from_str::<When>(&json).unwrap(), when);
    }
}

#[test]
fn what_means_nothing_says_what_to_write() {
    for (text, says) in [
        ("@", "@1024"),
        ("@0", "begin at 1"),
        ("@-5", "@1024"),
        ("@+5", "@1024"),
        ("@99999999999999999999", "@1024"),
        ("-", "90s"),
        ("-10", "90s"),
        ("-10y", "90s"),
        ("2026-03-01", "RFC 3339"),
        ("2026-03-01T14:30:00", "zone"),
        ("", "1 to 255 bytes"),
        ("a\nb", "control"),
    ] {
        let error = text.parse::<When>().unwrap_err().to_string();
        assert!(error.contains(says), "{text}: {error}");
    }
}

#[test]
fn a_name_that_reads_as_something_else_cannot_be_given() {
    for name in ["latest", "@5", "@x", "-10m", "-x", "2026-03-01T14:30:00Z", "2026-x"] {
        assert_eq!(check_point_name(name), Err(WhenError::Taken(name.to_owned())));
    }
    for name in ["", "a\tb", &"x".repeat(256)] {
        assert_eq!(check_point_name(name), Err(WhenError::Name(name.to_owned())));
    }
    for name in ["x", "before upgrade", "v2", "größe", &"x".repeat(255)] {
        assert_eq!(check_point_name(name), Ok(()));
    }
}

/// Seqs 10 to 20 can be chosen except 14 and 15 (a gap); seq n was written at second n.
struct Plain;

impl Timeline for Plain {
    fn newest(&self) -> Result<u64, Failure> {
        Ok(20)
    }

    fn at_time(&self, time: Time) -> Result<u64, Failure> {
        Ok((time.0 / 1_000_000_000).min(20))
    }

    fn point(&self, name: &str) -> Result<Option<u64>, Failure> {
        Ok((name == "here").then_some(12))
    }

    fn check(&self, seq: u64) -> Result<(), Failure> {
        match seq {
            14 | 15 => Err(Failure::new(Code::Gap, "in a gap")),
            10..=20 => Ok(()),
            _ => Err(Failure::new(Code::OutsideWindow, "outside")),
        }
    }
}

#[test]
fn each_form_means_one_seq_or_one_error() {
    let now = Time(23_500_000_000);
    let resolve = |text: &str| text.parse::<When>().unwrap().resolve(&Plain, now).map_err(|f| f.code);
    assert_eq!(resolve("latest"), Ok(20));
    assert_eq!(resolve("@11"), Ok(11));
    assert_eq!(resolve("here"), Ok(12));
    assert_eq!(resolve("-5s"), Ok(18));
    assert_eq!(resolve("1970-01-01T00:00:13.9Z"), Ok(13));
    assert_eq!(resolve("there"), Err(Code::NotFound));
    assert_eq!(resolve("@9"), Err(Code::OutsideWindow));
    assert_eq!(resolve("@21"), Err(Code::OutsideWindow));
    assert_eq!(resolve("@14"), Err(Code::Gap));
    assert_eq!(resolve("-9s"), Err(Code::Gap));
    assert_eq!(resolve("-1d"), Err(Code::OutsideWindow));
}

use super::*;

/// A plain entry of this name.
pub(in crate::files) fn item(name: &[u8], kind: Kind) -> Item {
    let at = Stamp { s: 1, ns: 2 };
    let target = (kind == Kind::Link).then(|| Name::from("somewhere"));
    let name = Name(name.to_vec());
    Item { name, kind, mode: 0o755, uid: 0, gid: 0, size: 0, modified: at, accessed: at, target, attributes: vec![] }
}

#[test]
fn names_of_any_bytes_travel_and_are_shown_on_one_line() {
    for (bytes, shown) in [
        (&b"plain"[..], "plain"),
        (b"a\nb\\", "a\\nb\\\\"),
        (b"\xff\x1b[2J", "\\xff\\u{1b}[2J"),
        ("\u{202e}txt.exe".as_bytes(), "\\u{202e}txt.exe"),
        ("Grüße".as_bytes(), "Grüße"),
    ] {
        let name = Name(bytes.to_vec());
        assert_eq!(name.to_string(), shown);
        let text = serde_json::to_string(&name).unwrap();
        assert_eq!(serde_json::from_str::<Name>(&text).unwrap(), name, "{text}");
    }
    assert!(serde_json::from_str::<Name>("[256]").is_err());
}

#[test]
fn frames_come_back() {
    let mut bytes = Vec::new();
    let told = Tell::Item(item(b"\xfe", Kind::Link));
    put(&mut bytes, &told).unwrap();
    put_data(&mut bytes, 7, b"data").unwrap();
    let mut from = bytes.as_slice();
    assert_eq!(get::<Tell>(&mut from).unwrap(), Frame::Message(told));
    assert_eq!(get::<Tell>(&mut from).unwrap(), Frame::Data(7, b"data".to_vec()));
    assert_eq!(get::<Tell>(&mut from).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
}

#[test]
fn frames_that_cannot_be_are_refused_before_they_take_memory() {
    for bad in [
        &[0, 0, 0, 0][..],
        &[0xff, 0xff, 0xff, 0xff, 0],
        &[1, 0, 0, 0, 9],
        &[1, 0, 0, 0, DATA],
        &[9, 0, 0, 0, DATA, 0, 0, 0, 0, 0, 0, 0, 0],
        &[3, 0, 0, 0, JSON, b'{', b'}'],
    ] {
        assert_eq!(get::<Tell>(&mut &*bad).unwrap_err().kind(), io::ErrorKind::InvalidData, "{bad:?}");
    }
    assert!(put(&mut Vec::new(), &Name(vec![b'a'; MAX_FRAME])).is_err());
}

#[test]
fn entries_that_lead_elsewhere_are_no_entries() {
    for good in [&b"a"[..], b"...", b".a", b"a b", b"a\nb", b"-rf", b"\xff", &[b'x'; MAX_NAME]] {
        item(good, Kind::File).check().unwrap();
    }
    for bad in [&b""[..], b".", b"..", b"/", b"a/b", b"../x", b"a\0b", &[b'x'; MAX_NAME + 1]] {
        assert!(item(bad, Kind::File).check().is_err(), "{bad:?}");
        let (path, after) = (Name::from("p"), Some(item(bad, Kind::File)));
        let change = Change::Added;
        let told = Tell::Changed { path, change, before: None, after, content: false, attributes: false };
        assert!(told.check().is_err(), "{bad:?}");
    }
    let good = item(b"a", Kind::File);
    for bad in [
        Item { mode: 0o10_000, ..good.clone() },
        Item { size: u64::MAX, ..good.clone() },
        Item { modified: Stamp { s: 0, ns: 1_000_000_000 }, ..good.clone() },
        Item { target: Some(Name::from("x")), ..good.clone() },
        Item { target: None, kind: Kind::Link, ..good.clone() },
        Item { target: Some(Name(vec![b'a'; MAX_PATH + 1])), kind: Kind::Link, ..good.clone() },
        Item { target: Some(Name(b"a\0".to_vec())), kind: Kind::Link, ..good.clone() },
        Item { attributes: vec![("user.a".into(), Name(vec![0; MAX_ATTRIBUTES]))], ..good.clone() },
        Item { attributes: vec![(String::new(), Name::default())], ..good },
    ] {
        assert!(bad.check().is_err(), "{bad:?}");
    }
}

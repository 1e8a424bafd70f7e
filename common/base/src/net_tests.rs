use super::*;

#[test]
fn addresses_go_both_ways() {
    for (text, back) in [
        ("unix:/run/a b.sock", "unix:/run/a b.sock"),
        ("tcp:127.0.0.1", "tcp:127.0.0.1:9443"),
        ("tcp:backup.example.org:1", "tcp:backup.example.org:1"),
        ("tcp:[::1]", "tcp:[::1]:9443"),
        ("tcp:[2001:db8::7]:65535", "tcp:[2001:db8::7]:65535"),
    ] {
        assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), back, "{text}");
    }
    for bad in [
        "",
        "unix:",
        "tcp:",
        "tcp::1",
        "tcp:a:",
        "tcp:a:65536",
        "tcp:a:+1",
        "tcp:::1:5",
        "tcp:[::1",
        "tcp:[::1]5",
        "tcp:[a]",
        "tcp:a b",
        "/run/x",
        "http://a",
    ] {
        assert!(bad.parse::<Endpoint>().is_err(), "{bad}");
    }
}

#[test]
fn only_this_machine_is_local() {
    for text in ["unix:/x", "tcp:localhost", "tcp:127.9.9.9:1", "tcp:[::1]:1", "tcp:[::ffff:127.0.0.1]:1"] {
        assert!(text.parse::<Endpoint>().unwrap().is_local(), "{text}");
    }
    for text in ["tcp:0.0.0.0:1", "tcp:[::]:1", "tcp:192.0.2.7:1", "tcp:backup:1", "tcp:localhost.example.org"] {
        assert!(!text.parse::<Endpoint>().unwrap().is_local(), "{text}");
    }
    let refused = Endpoint::Tcp("192.0.2.7".into(), 1).connect(true).unwrap_err().to_string();
    assert!(refused.contains("192.0.2.7:1 is on another machine"), "{refused}");
}

#[test]
fn every_address_of_a_name_is_tried() {
    // On most machines localhost is ::1 first and 127.0.0.1 then; the listener is on one of them only.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let stream = Endpoint::Tcp("localhost".into(), port).connect(true).unwrap();
    assert_eq!(stream.peer().unwrap().port(), port);
    drop(listener);
    let failed = Endpoint::Tcp("localhost".into(), port).connect(true).unwrap_err().to_string();
    assert!(failed.contains(&format!("127.0.0.1:{port}: ")), "{failed}");
}

#[test]
fn tcp_is_set_up_on_both_sides() {
    let listener = StreamListener::Tcp(TcpListener::bind("127.0.0.1:0").unwrap());
    let client = listener.endpoint().unwrap().connect(true).unwrap();
    for stream in [&client, &listener.accept().unwrap()] {
        assert!(socket::getsockopt(stream, sockopt::TcpNoDelay).unwrap());
        assert!(socket::getsockopt(stream, sockopt::KeepAlive).unwrap());
        assert_eq!(socket::getsockopt(stream, sockopt::TcpUserTimeout).unwrap(), USER_TIMEOUT);
    }
}

#[test]
fn a_socket_passed_in_is_taken_only_if_it_listens() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let adopted = StreamListener::adopt(listener.into()).unwrap();
    assert_eq!(adopted.endpoint().unwrap(), Endpoint::from(address));
    let connected = TcpStream::connect(address).unwrap();
    assert!(StreamListener::adopt(connected.into()).is_err());
    assert!(StreamListener::adopt(std::fs::File::open("/dev/null").unwrap().into()).is_err());
}

use super::*;
use std::os::unix::fs::PermissionsExt;

fn open(path: &Path) -> io::Result<Listener> {
    Listener::open(Listen::Unix(path.to_owned()))
}

#[test]
fn a_socket_is_private_and_goes_with_its_listener() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let listener = open(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(listener.address(), Some(Address::Unix(path.clone())));
    assert!(listener.accept().unwrap().is_none());
    let _client = UnixStream::connect(&path).unwrap();
    assert!(listener.accept().unwrap().is_some());
    drop(listener);
    assert!(!path.exists());
}

#[test]
fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let listener = open(&path).unwrap();
    let e = open(&path).unwrap_err();
    assert_eq!(e.kind(), io::ErrorKind::AddrInUse);
    assert!(e.to_string().contains("in use by a running server") && e.to_string().contains(path.to_str().unwrap()));
    drop(listener);
    fs::write(&path, b"precious").unwrap();
    assert!(open(&path).unwrap_err().to_string().contains("not a socket"));
    assert_eq!(fs::read(&path).unwrap(), b"precious");
}

#[test]
fn a_successors_socket_is_not_removed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let first = open(&path).unwrap();
    fs::rename(&path, dir.path().join("moved")).unwrap();
    let _second = open(&path).unwrap();
    drop(first);
    assert!(path.exists());
}

#[test]
fn only_listening_stream_sockets_are_taken_over() {
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = Address::Tcp(tcp.local_addr().unwrap());
    assert_eq!(Listener::open(Listen::Fd(tcp.into())).unwrap().address(), Some(address));
    let (a, _b) = UnixStream::pair().unwrap();
    assert!(Listener::open(Listen::Fd(a.into())).unwrap_err().to_string().contains("ListenStream"));
    let file = tempfile::tempfile().unwrap();
    assert!(Listener::open(Listen::Fd(file.into())).is_err());
}

#[test]
fn a_path_too_long_for_a_socket_is_named() {
    let path = PathBuf::from(format!("/tmp/{}", "x".repeat(200)));
    assert!(open(&path).unwrap_err().to_string().contains("xxx"));
}

//! What TLS costs: bytes over loopback, as they are and encrypted, in turns. Prints the medians and their ratio.
//!
//!     cargo run --release -p afterimage-trust --example throughput

#![allow(clippy::unwrap_used, reason = "a benchmark stops at the first error")]

use afterimage_base::net::{Half, Stream};
use afterimage_trust::stream::{Tls, deadline};
use afterimage_trust::trust::{certified, client_config, server_config};
use afterimage_trust::verify::{Anchor, Expect, Guard};
use afterimage_trust::{Role, csr};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use std::io::{IoSlice, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

const BYTES: usize = 1 << 30;
/// As the agent sends: a header and a payload for each record, many in one call.
const RECORD: usize = 4096;
const BATCH: usize = 128;

/// A CA, and a key that it certified for an agent.
fn keys() -> (Vec<u8>, Arc<rustls::sign::CertifiedKey>) {
    let authority = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let own = params.self_signed(&authority).unwrap().der().to_vec();
    let issuer = Issuer::from_ca_cert_der(&own.as_slice().into(), authority).unwrap();
    let fresh = csr::fresh().unwrap();
    let mut request = rcgen::CertificateSigningRequestParams::from_der(&fresh.request.as_slice().into()).unwrap();
    let id = "29bfc1bf-5cc2-4cc4-abb2-ee87fca86b4d";
    let uri = format!("afterimage://agent/{id}?vault={id}");
    request.params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
    let certificate = request.signed_by(&issuer).unwrap().der().to_vec();
    (own, Arc::new(certified(vec![certificate], &fresh.key).unwrap()))
}

fn receive(mut from: impl Read) {
    let (mut buf, mut left) = (vec![0; 1 << 20], BYTES);
    while left > 0 {
        left -= from.read(&mut buf).unwrap().min(left);
    }
}

fn send(mut to: impl Write) {
    let (header, payload) = ([7; 64], [9; RECORD]);
    let mut left = BYTES;
    while left > 0 {
        let mut slices = [[IoSlice::new(&header), IoSlice::new(&payload)]; BATCH].concat();
        let mut bufs = &mut slices[..];
        while !bufs.is_empty() {
            let n = to.write_vectored(bufs).unwrap();
            left = left.saturating_sub(n);
            IoSlice::advance_slices(&mut bufs, n);
        }
    }
}

fn run(tls: Option<&(Vec<u8>, Arc<rustls::sign::CertifiedKey>)>) -> f64 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = Arc::new(Stream::tcp(TcpStream::connect(listener.local_addr().unwrap()).unwrap()));
    let server = Arc::new(Stream::tcp(listener.accept().unwrap().0));
    let until = deadline(Duration::from_secs(10));
    let guard = |ca: &Vec<u8>| Guard::new(Anchor::Known(ca.clone()), Expect::role(Role::Agent, None), Arc::default());
    std::thread::scope(|scope| {
        let began = Instant::now();
        let receiver = scope.spawn(|| match tls {
            None => receive(Half(server)),
            Some((ca, key)) => {
                let guard = guard(ca);
                let config = server_config(Some(Arc::clone(&guard)), Arc::clone(key), &[]).unwrap();
                receive(Tls::server(server, config, &guard, until).unwrap().split().0);
            }
        });
        match tls {
            None => send(Half(client)),
            Some((ca, key)) => {
                let guard = guard(ca);
                let config = client_config(Arc::clone(&guard), Some(Arc::clone(key)), &[]).unwrap();
                let (_reader, writer) = Tls::client(client, config, &guard, until).unwrap().split();
                send(writer);
            }
        }
        receiver.join().unwrap();
        #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
        let rate = BYTES as f64 / began.elapsed().as_secs_f64() / 1e9;
        rate
    })
}

fn main() {
    let keys = keys();
    let (mut plain, mut secure): (Vec<f64>, Vec<f64>) = (0..7).map(|_| (run(None), run(Some(&keys)))).unzip();
    plain.sort_by(f64::total_cmp);
    secure.sort_by(f64::total_cmp);
    println!("plain {:.2} GB/s, TLS 1.3 {:.2} GB/s, ratio {:.2}", plain[3], secure[3], secure[3] / plain[3]);
}

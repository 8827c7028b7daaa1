//! Whoever can reach the socket and means harm: rsnet stays small, and the engine gets its answers.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::lab::{Engine, Host, Lab, wait_until};

const SOCKET: &str = "/run/docker/plugins/rsnet.sock";
/// Megabytes. A debug build that has just started has about 20.
const MOST: u64 = 150;
/// How long the engine may wait for a call in the midst of an attack.
const AT_ONCE: Duration = Duration::from_secs(10);

fn connect(host: &Host) -> UnixStream {
    let stream = UnixStream::connect(host.path(SOCKET)).expect("the socket takes connections");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("set a timeout");
    stream
}

/// The daemon's memory now.
fn megabytes(host: &Host) -> u64 {
    let status = host.sh("grep VmRSS /proc/$(pidof rsnet)/status");
    let kilobytes = status.ok().split_whitespace().nth(1).and_then(|text| text.parse::<u64>().ok());
    kilobytes.expect("a number of kilobytes") / 1024
}

/// A network and a container come and go at once, and rsnet is small.
#[track_caller]
fn all_is_well(host: &Host) {
    let began = Instant::now();
    let answer = host.plugin("/NetworkDriver.GetCapabilities", "").expect("rsnet answers");
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(began.elapsed() < AT_ONCE, "an answer took {:?}", began.elapsed());
    host.docker("network create -d rsnet --ipam-driver rsnet net").ok();
    host.docker("run --rm --network net -p 8080:80 box true").ok();
    host.docker("network rm net").ok();
    assert!(began.elapsed() < 3 * AT_ONCE, "the engine needed {:?}", began.elapsed());
    let size = megabytes(host);
    assert!(size < MOST, "rsnet has grown to {size} MB");
}

pub fn ten_thousand_connections_do_not_keep_the_engine_out(engine: Engine) {
    let lab = Lab::new();
    let host = lab.host("h1", engine, &[]);
    host.start_rsnet();
    let (_, most) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).expect("read the limit of files");
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, most, most).expect("raise the limit of files");
    let mut held = Vec::new();
    for n in 0..10_000 {
        let mut stream = connect(&host);
        // some say nothing, some half a head, some half a body
        let half: &[u8] = match n % 3 {
            0 => b"",
            1 => b"POST /NetworkDriver.Join HTTP/1.1\r\nHost: x\r\nX-Half: ",
            _ => b"POST /NetworkDriver.Join HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{",
        };
        let _ = stream.write_all(half);
        held.push(stream);
        if n % 2_500 == 2_499 {
            all_is_well(&host);
        }
    }
    let files = host.sh("ls /proc/$(pidof rsnet)/fd | wc -l");
    assert!(files.ok().parse::<u32>().expect("a number") < 400, "rsnet keeps {files} files open");
    let began = Instant::now();
    let status = host.stop_rsnet();
    assert!(
        status.success() && began.elapsed() < Duration::from_secs(5),
        "SIGTERM among half requests: {status} after {:?}",
        began.elapsed()
    );
}

/// What comes back for `request`, its end included: nothing if rsnet hangs up at once.
fn send(host: &Host, request: &[u8]) -> String {
    let mut stream = connect(host);
    let _ = stream.write_all(request);
    let _ = stream.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

pub fn half_requests_huge_bodies_and_path_tricks_are_refused(engine: Engine) {
    let lab = Lab::new();
    let host = lab.host("h1", engine, &[]);
    host.start_rsnet();
    a_half_body_is_given_up(&host);
    huge_bodies_are_refused(&host);
    for path in
        ["/../../etc/passwd", "/NetworkDriver.Join/..", "/%2e%2e/%2e%2e/etc/passwd", "//", "/\u{202e}", "http://other/NetworkDriver.Join"]
    {
        let answer = send(&host, format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{{}}").as_bytes());
        assert!(!answer.starts_with("HTTP/1.1 200") && !answer.contains("root:"), "{path}: {answer}");
    }
    for garbage in [&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..], b"\0\0\0\0", b"GET", b"POST / HTTP/9.9\r\n\r\n", &[b'A'; 100_000]]
    {
        let answer = send(&host, garbage);
        assert!(!answer.starts_with("HTTP/1.1 200"), "{garbage:?}: {answer}");
    }
    let chunked = "POST /NetworkDriver.Join HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFF\r\n";
    assert!(!send(&host, chunked.as_bytes()).starts_with("HTTP/1.1 200"));
    all_is_well(&host);
}

fn a_half_body_is_given_up(host: &Host) {
    let mut stream = connect(host);
    stream.write_all(b"POST /NetworkDriver.Join HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{\"Network").expect("rsnet reads");
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).expect("rsnet says that it waits no longer");
    assert_eq!(&answer, b"HTTP/1.1 408");
}

/// Forty at a time, a gigabyte in all, as much of it as rsnet will read.
fn huge_bodies_are_refused(host: &Host) {
    let head = "POST /NetworkDriver.CreateNetwork HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
    std::thread::scope(|scope| {
        for _ in 0..40 {
            scope.spawn(|| {
                let mut stream = connect(host);
                let chunk = [format!("{:x}\r\n", 1 << 20).into_bytes(), vec![b'['; 1 << 20], b"\r\n".to_vec()].concat();
                stream.set_write_timeout(Some(Duration::from_secs(30))).expect("set a timeout");
                let _ = stream.write_all(head.as_bytes());
                let refused = (0..25).any(|_| stream.write_all(&chunk).is_err());
                let mut answer = String::new();
                let _ = stream.read_to_string(&mut answer);
                assert!(refused || !answer.starts_with("HTTP/1.1 200"), "{answer}");
            });
        }
        wait_until("rsnet to answer meanwhile", AT_ONCE, || {
            host.plugin("/NetworkDriver.GetCapabilities", "").map_err(|error| error.to_string())
        });
        let size = megabytes(host);
        assert!(size < MOST, "rsnet has grown to {size} MB");
    });
}

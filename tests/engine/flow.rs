//! Questions and answers that go on while something else happens: a thousand a second, and every one that is not answered is counted.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};

use crate::lab::{Host, spawn_in};

/// How long an answer is waited for before the next question. On a good day it takes 0.1 ms.
const LATE: Duration = Duration::from_secs(1);
/// How late an answer may be: a machine that others share stands still for seconds. What was lost does not come later either.
const LOST: Duration = Duration::from_secs(10);
const MILLISECOND: Duration = Duration::from_millis(1);

/// The network of a machine or of one of its containers.
pub struct Place(File);

impl Place {
    #[track_caller]
    pub fn host(host: &Host) -> Place {
        Place(host.network())
    }

    #[track_caller]
    pub fn container(host: &Host, container: &str) -> Place {
        Place(host.network_of(container))
    }

    /// Runs `job` there on a thread of its own.
    pub fn spawn<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        spawn_in(self.0.try_clone().expect("duplicate a file"), job)
    }

    /// Answers every UDP datagram and every TCP connection on `port` with what it says, until the test ends.
    pub fn echo(&self, port: u16) {
        let any = SocketAddr::new(IpAddr::from(std::net::Ipv6Addr::UNSPECIFIED), port);
        let (ready, up) = std::sync::mpsc::channel();
        let told = ready.clone();
        self.spawn(move || {
            let socket = UdpSocket::bind(any).expect("bind for the echo");
            told.send(()).expect("the test waits");
            let mut datagram = [0; 64];
            while let Ok((length, from)) = socket.recv_from(&mut datagram) {
                let _ = socket.send_to(&datagram[..length], from);
            }
        });
        self.spawn(move || {
            let listener = TcpListener::bind(any).expect("listen for the echo");
            ready.send(()).expect("the test waits");
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || drop(std::io::copy(&mut &stream, &mut &stream)));
            }
        });
        (0..2).for_each(|_| up.recv().expect("both echoes are up"));
    }

    /// Asks `target` a thousand times a second by UDP.
    pub fn ask(&self, what: &str, target: SocketAddr) -> Flow {
        let job = move |stop: &AtomicBool| {
            let from: IpAddr = if target.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { std::net::Ipv6Addr::UNSPECIFIED.into() };
            let socket = UdpSocket::bind((from, 0)).expect("bind to ask");
            setsockopt(&socket, sockopt::RcvBuf, &(1 << 20)).expect("enlarge a buffer");
            socket.set_read_timeout(Some(LATE)).expect("set a timeout");
            // neighbours look for each other first, and make sure that their addresses are unique
            let mut late = BTreeSet::new();
            assert!((0..10).any(|_| ask_once(&socket, target, u64::MAX, &mut late)), "{target} never answers");
            let (asked, mut missing) = regularly(stop, |number| ask_once(&socket, target, number, &mut late));
            let end = Instant::now() + LOST;
            while missing.iter().any(|number| !late.contains(number)) && Instant::now() < end {
                late.extend(hear(&socket));
            }
            missing.retain(|number| !late.contains(number));
            (asked, missing)
        };
        Flow::start(self, what, job)
    }

    /// Asks `target` a thousand times a second in one TCP connection, and every twentieth time in one more.
    pub fn converse(&self, what: &str, target: SocketAddr) -> Flow {
        let job = move |stop: &AtomicBool| {
            let mut stream = connect(target).expect("the first connection stands");
            regularly(stop, |number| {
                let fresh = number % 20 != 0 || connect(target).is_ok_and(|mut fresh| say(&mut fresh, number));
                fresh && say(&mut stream, number)
            })
        };
        Flow::start(self, what, job)
    }
}

fn connect(target: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&target, LOST)?;
    stream.set_read_timeout(Some(LOST))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn say(stream: &mut TcpStream, number: u64) -> bool {
    let mut answer = [0; 8];
    stream.write_all(&number.to_be_bytes()).is_ok() && stream.read_exact(&mut answer).is_ok() && answer == number.to_be_bytes()
}

/// Whether it is answered soon. An answer to an earlier question is a late one.
fn ask_once(socket: &UdpSocket, target: SocketAddr, number: u64, late: &mut BTreeSet<u64>) -> bool {
    if socket.send_to(&number.to_be_bytes(), target).is_err() {
        return false;
    }
    while let Some(answered) = hear(socket) {
        if answered == number {
            return true;
        }
        late.insert(answered);
    }
    false
}

/// Which question the next answer is to; none: there is none for a while.
fn hear(socket: &UdpSocket) -> Option<u64> {
    let mut answer = [0; 8];
    socket.recv(&mut answer).ok().map(|_| u64::from_be_bytes(answer))
}

/// How often `question` was asked, and which were not answered.
fn regularly(stop: &AtomicBool, mut question: impl FnMut(u64) -> bool) -> (u64, Vec<u64>) {
    let (mut next, mut number, mut missing) = (Instant::now(), 0, Vec::new());
    while !stop.load(Ordering::Relaxed) {
        if !question(number) {
            missing.push(number);
        }
        number += 1;
        // a machine that is busy asks less often, it does not catch up
        next = (next + MILLISECOND).max(Instant::now() - MILLISECOND);
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    (number, missing)
}

/// A series of questions under way.
pub struct Flow {
    what: String,
    stop: Arc<AtomicBool>,
    asking: JoinHandle<(u64, Vec<u64>)>,
    began: Instant,
}

impl Flow {
    fn start(place: &Place, what: &str, job: impl FnOnce(&AtomicBool) -> (u64, Vec<u64>) + Send + 'static) -> Flow {
        let stop = Arc::new(AtomicBool::new(false));
        let told = stop.clone();
        Flow { what: what.to_string(), stop, asking: place.spawn(move || job(&told)), began: Instant::now() }
    }

    /// Ends it and expects that every question was answered.
    #[track_caller]
    pub fn none_missing(self) {
        self.stop.store(true, Ordering::Relaxed);
        let (asked, missing) = self.asking.join().expect("asking did not panic");
        let seconds = self.began.elapsed().as_secs_f64();
        println!("{}: {asked} questions, {:.0} a second", self.what, asked as f64 / seconds);
        assert!(asked > 1000, "{}: only {asked} questions in {seconds:.1} s", self.what);
        assert!(missing.is_empty(), "{}: {} of {asked} questions were not answered: {missing:?}", self.what, missing.len());
    }
}

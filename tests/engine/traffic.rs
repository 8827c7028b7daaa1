//! Questions and answers over the wire: servers that say whom they saw, and clients that ask many of them at once.
//!
//! Both are threads of the test that stand in a machine's or a container's network namespace. Owns: how a packet is sent and what counts as
//! arrived. Must not: know what is allowed.

use crate::lab::{Host, Output, PATIENCE, spawn_in, wait_until};
use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::oneshot;
use tokio::time::timeout;

/// How long a question waits for its answer. A lost SYN is sent again after a second.
const WAIT: Duration = Duration::from_millis(1500);

/// Every question is a number of its own; and who the server saw asking it.
static NUMBER: AtomicU32 = AtomicU32::new(1);
static SEEN: Mutex<BTreeMap<u32, IpAddr>> = Mutex::new(BTreeMap::new());

/// A place from which to ask, or at which to serve.
#[derive(Clone, Copy)]
pub enum Place<'a> {
    Machine(&'a Host),
    Container(&'a Host, &'a str),
}

impl Place<'_> {
    #[track_caller]
    pub fn sh(&self, script: &str) -> Output {
        match self {
            Place::Machine(host) => host.sh(script),
            Place::Container(host, container) => host.in_container(container, script),
        }
    }

    #[track_caller]
    fn namespace(&self) -> File {
        match self {
            Place::Machine(host) => host.network(),
            Place::Container(host, container) => host.network_of(container),
        }
    }
}

/// Runs `work` on a thread of its own in the namespace.
fn inside<T: Send + 'static, F: Future<Output = T>>(namespace: File, work: impl FnOnce() -> F + Send + 'static) -> JoinHandle<T> {
    spawn_in(namespace, move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("make a runtime");
        runtime.block_on(async { work().await })
    })
}

/// Servers of a place; their ports are free again when this is dropped.
pub struct Servers {
    running: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Servers {
    fn drop(&mut self) {
        drop(self.running.take());
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Servers for TCP and UDP, IPv4 and IPv6, on these ports of a container.
#[track_caller]
pub fn serve(host: &Host, container: &str, ports: &[u16]) -> Servers {
    serve_at(Place::Container(host, container), ports)
}

/// The same at any place.
#[track_caller]
pub fn serve_at(place: Place, ports: &[u16]) -> Servers {
    let (running, over) = oneshot::channel::<()>();
    let (tell, told) = std::sync::mpsc::channel();
    let ports = ports.to_vec();
    let thread = inside(place.namespace(), move || async move {
        let _ = tell.send(start(&ports).await);
        let _ = over.await;
    });
    told.recv().expect("the servers' thread lives").expect("bind the servers' ports");
    Servers { running: Some(running), thread: Some(thread) }
}

async fn start(ports: &[u16]) -> io::Result<()> {
    for &port in ports {
        let at = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        tokio::spawn(serve_tcp(TcpListener::bind(at).await?));
        tokio::spawn(serve_udp(UdpSocket::bind(at).await?));
    }
    Ok(())
}

async fn serve_tcp(listener: TcpListener) {
    while let Ok((mut stream, peer)) = listener.accept().await {
        tokio::spawn(async move {
            let number = stream.read_u32().await?;
            stream.write_all(&note(number, peer)).await
        });
    }
}

async fn serve_udp(socket: UdpSocket) {
    let mut number = [0; 4];
    while let Ok((_, peer)) = socket.recv_from(&mut number).await {
        let _ = socket.send_to(&note(u32::from_be_bytes(number), peer), peer).await;
    }
}

/// Remembers who asked, and answers with the number.
fn note(number: u32, peer: SocketAddr) -> [u8; 4] {
    SEEN.lock().expect("no panic while held").insert(number, peer.ip().to_canonical());
    number.to_be_bytes()
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Protocol {
    Tcp,
    Udp,
    Icmp,
}

/// One thing to ask: does this reach there?
#[derive(Clone, Copy, Debug)]
pub struct Question {
    pub protocol: Protocol,
    pub to: IpAddr,
    /// Nothing for ICMP.
    pub port: u16,
}

/// What became of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Answer {
    /// Nothing arrived, as far as the other side can tell.
    None,
    /// It arrived and the answer was lost.
    Lost,
    /// It was answered, and the other side saw this address; with ICMP, the address asked.
    Seen(IpAddr),
}

impl fmt::Display for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} to {}", self.protocol, SocketAddr::from((self.to, self.port)))
    }
}

pub fn tcp(to: IpAddr, port: u16) -> Question {
    Question { protocol: Protocol::Tcp, to, port }
}

pub fn udp(to: IpAddr, port: u16) -> Question {
    Question { protocol: Protocol::Udp, to, port }
}

pub fn icmp(to: IpAddr) -> Question {
    Question { protocol: Protocol::Icmp, to, port: 0 }
}

impl Question {
    async fn answer(self, number: u32) -> Answer {
        let answered = match self.protocol {
            Protocol::Icmp => return self.ping().await,
            Protocol::Tcp => timeout(WAIT, self.over_tcp(number)).await,
            Protocol::Udp => timeout(WAIT, self.over_udp(number)).await,
        };
        let seen = SEEN.lock().expect("no panic while held").get(&number).copied();
        match (seen, answered) {
            (Some(peer), Ok(Ok(_))) => Answer::Seen(peer),
            (Some(_), _) => Answer::Lost,
            (None, _) => Answer::None,
        }
    }

    async fn over_tcp(self, number: u32) -> io::Result<()> {
        let mut stream = TcpStream::connect((self.to, self.port)).await?;
        stream.write_u32(number).await?;
        stream.read_u32().await.map(drop)
    }

    async fn over_udp(self, number: u32) -> io::Result<()> {
        let any: IpAddr = if self.to.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
        let socket = UdpSocket::bind((any, 0)).await?;
        socket.connect((self.to, self.port)).await?;
        socket.send(&number.to_be_bytes()).await?;
        socket.recv(&mut [0; 4]).await.map(drop)
    }

    async fn ping(self) -> Answer {
        let mut ping = Command::new("ping");
        ping.args(["-n", "-c1", "-W1", &self.to.to_string()]).stdout(Stdio::null()).stderr(Stdio::null());
        let mut ping = ping.spawn().expect("start ping"); // in this thread, for it alone is in the namespace for sure
        let ended = tokio::task::spawn_blocking(move || ping.wait()).await.expect("no panic there");
        if ended.is_ok_and(|status| status.success()) { Answer::Seen(self.to) } else { Answer::None }
    }
}

impl Answer {
    pub fn seen(self) -> Option<IpAddr> {
        if let Answer::Seen(peer) = self { Some(peer) } else { None }
    }
}

/// Asks all at once.
#[track_caller]
pub fn ask(from: Place, questions: &[Question]) -> Vec<Answer> {
    asking(from, questions).join().expect("the asking thread ended well")
}

/// Begins to ask all at once.
#[track_caller]
pub fn asking(from: Place, questions: &[Question]) -> JoinHandle<Vec<Answer>> {
    let questions = questions.to_vec();
    inside(from.namespace(), move || async move {
        let number = || NUMBER.fetch_add(1, Ordering::SeqCst);
        futures_util::future::join_all(questions.into_iter().map(|question| question.answer(number()))).await
    })
}

/// Waits until the question is answered; who the other side saw.
#[track_caller]
pub fn reaches(from: Place, question: Question) -> IpAddr {
    wait_until(&format!("an answer to {question}"), PATIENCE / 4, || {
        let answer = ask(from, &[question])[0];
        answer.seen().ok_or_else(|| format!("{answer:?}\n{}", from.sh("ip route; ip -6 route; ip -br addr")))
    })
}

/// Waits until each question is answered.
#[track_caller]
pub fn reaches_all(from: Place, questions: &[Question]) {
    let mut left = questions.to_vec();
    wait_until(&format!("answers to {}", list(questions)), PATIENCE / 4, || {
        let answers = ask(from, &left);
        left = left.iter().zip(answers).filter(|(_, answer)| answer.seen().is_none()).map(|(question, _)| *question).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("no answer to {}", list(&left))) }
    });
}

/// Asks each question twice, and wants none to arrive.
#[track_caller]
pub fn reaches_none(from: Place, questions: &[Question]) {
    let twice = [questions, questions].concat();
    let arrived: Vec<_> = twice.iter().zip(ask(from, &twice)).filter(|(_, answer)| *answer != Answer::None).collect();
    assert!(arrived.is_empty(), "must not arrive, and did: {arrived:?}");
}

fn list(questions: &[Question]) -> String {
    questions.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Runs a container that does nothing, `run(&host, "web", "--network net -p 8080:80")`.
#[track_caller]
pub fn run(host: &Host, name: &str, flags: &str) {
    host.docker(&format!("run -d --init --name {name} {flags} box sleep 100000")).ok();
}

/// The addresses of a container on a network, IPv4 first; IPv6 only if it has one there.
#[track_caller]
pub fn addresses(host: &Host, container: &str, network: &str) -> Vec<IpAddr> {
    let format =
        format!("{{{{with index .NetworkSettings.Networks \"{network}\"}}}}{{{{.IPAddress}}}} {{{{.GlobalIPv6Address}}}}{{{{end}}}}");
    let seen = host.docker(&format!("inspect -f '{format}' {container}"));
    seen.ok().split_whitespace().map(|address| address.parse().expect("an address")).collect()
}

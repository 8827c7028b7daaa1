//! One sandbox's post: its sockets, the divert that leads to them, and who answers.

use std::io;
use std::net::{SocketAddr, SocketAddrV4, TcpListener as Listener, UdpSocket as Socket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::RwLock;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use super::Shared;
use super::answer::{Transport, answer, failure};
use super::resolver::{DOCKERS, MARK, PATIENCE, Resolver, receive};
use crate::firewall::FirewallError;
use crate::firewall::divert::{Divert, Diverted};
use crate::kernel::holders::Held;
use crate::kernel::sandbox::Sandbox;
use crate::model::NetworkId;

/// The networks of a sandbox, as they are by now.
pub type Networks = Arc<RwLock<Vec<NetworkId>>>;

/// Where we listen if nobody in the container does: above what the kernel gives to those who do not choose (`ip_local_port_range`), and the same in
/// each process, so that an asker who keeps to one socket is heard again when this process was replaced.
const PORT: u16 = 65_353;
/// When what failed is tried again.
const AGAIN: Duration = Duration::from_millis(500);
/// How often it fails before it is told: the container may be going, or the process before us.
const ONCE_TOLD: usize = 4;
/// Datagrams that wait for Docker's resolver at a time; the asker of one more asks again.
const DATAGRAMS: usize = 256;
/// Connections at a time; more wait.
const STREAMS: usize = 32;
/// How long a connection may be silent.
const SILENCE: Duration = Duration::from_secs(10);

/// How a post is.
#[derive(Default)]
pub struct Condition {
    pub standing: AtomicBool,
    /// It failed as often as is told.
    pub failing: AtomicBool,
}

pub struct Post {
    shared: Arc<Shared>,
    sandbox: Sandbox,
    networks: Networks,
    condition: Arc<Condition>,
    stop: CancellationToken,
}

impl Post {
    pub fn new(shared: Arc<Shared>, sandbox: Sandbox, networks: Networks, condition: Arc<Condition>, stop: CancellationToken) -> Self {
        Post { shared, sandbox, networks, condition, stop }
    }

    /// Stands until it is stopped, and leaves nothing.
    pub async fn stand(self) {
        let mut failures = 0;
        while !self.stop.is_cancelled() && !self.shared.unsupported.load(Ordering::Relaxed) {
            match self.set_up().await {
                Ok((desk, divert)) => {
                    failures = 0;
                    self.serve(desk, divert).await;
                }
                Err(error) => {
                    failures += 1;
                    self.tell(&error, failures);
                }
            }
            let _ = timeout(AGAIN, self.stop.cancelled()).await;
        }
    }

    fn tell(&self, error: &io::Error, failures: usize) {
        if error.kind() == io::ErrorKind::Unsupported {
            if !self.shared.unsupported.swap(true, Ordering::Relaxed) {
                warn!("{error}: containers are not told the names of other hosts' containers; all else works");
            }
        } else if failures == ONCE_TOLD {
            self.condition.failing.store(true, Ordering::Relaxed);
            warn!(sandbox = %self.sandbox, %error, "a container is not told the names of other hosts' containers; trying again");
        } else {
            debug!(sandbox = %self.sandbox, %error, "could not be set up to answer queries");
        }
    }

    /// The sockets come first, and go last.
    async fn set_up(&self) -> io::Result<(Arc<Desk>, Held<Divert>)> {
        let _hand = self.shared.hands.acquire().await;
        let (udp, tcp) = self.sandbox.run(|| listen(PORT).or_else(|_| listen(0))).await?;
        let wanted = Diverted { from: DOCKERS, udp: udp.local_addr()?.port(), tcp: tcp.local_addr()?.port(), unless_marked: MARK };
        let desk = Desk {
            shared: self.shared.clone(),
            networks: self.networks.clone(),
            resolver: Resolver::new(self.shared.clone(), self.sandbox.clone()),
            udp: UdpSocket::from_std(udp)?,
            tcp: TcpListener::from_std(tcp)?,
            turn: AtomicUsize::default(),
        };
        let (shared, sandbox) = (self.shared.clone(), self.sandbox.clone());
        let named = |error: FirewallError| io::Error::new(error.cause.kind(), error.to_string());
        let divert = move || shared.diverts.hold(&sandbox, move || Divert::open(&wanted).map_err(named));
        Ok((Arc::new(desk), tokio::task::spawn_blocking(divert).await??))
    }

    /// Goes on while the divert is taken away: until then queries come.
    async fn serve(&self, desk: Arc<Desk>, divert: Held<Divert>) {
        self.condition.standing.store(true, Ordering::Relaxed);
        self.condition.failing.store(false, Ordering::Relaxed);
        let taken_down = async {
            self.stop.cancelled().await;
            let _hand = self.shared.hands.acquire().await;
            let _ = tokio::task::spawn_blocking(move || divert.let_go()).await;
        };
        tokio::select! {
            () = desk.clone().answer_datagrams() => {}
            () = desk.answer_streams() => {}
            () = taken_down => {}
        }
        self.condition.standing.store(false, Ordering::Relaxed);
    }
}

/// At a port of the address that the resolver has, where no process of the container listens by chance; 0: at any.
fn listen(port: u16) -> io::Result<(Socket, Listener)> {
    let at = SocketAddrV4::new(*DOCKERS.ip(), port);
    let (udp, tcp) = (Socket::bind(at)?, Listener::bind(at)?);
    udp.set_nonblocking(true)?;
    tcp.set_nonblocking(true)?;
    Ok((udp, tcp))
}

/// Where queries of one sandbox come in.
struct Desk {
    shared: Arc<Shared>,
    networks: Networks,
    resolver: Resolver,
    udp: UdpSocket,
    tcp: TcpListener,
    turn: AtomicUsize,
}

impl Desk {
    /// The answer, if it is ours to give.
    fn known(&self, query: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let (turn, since) = (self.turn.fetch_add(1, Ordering::Relaxed), Instant::now());
        let networks = self.networks.read();
        let answer = answer(&self.shared.directory, &networks, query, transport, turn);
        answer.inspect(|_| self.shared.tally.known(since))
    }

    async fn answer_datagrams(self: Arc<Self>) {
        let mut asking = JoinSet::new();
        loop {
            let (query, from) = tokio::select! {
                Some(_) = asking.join_next() => continue,
                received = receive(&self.udp) => match received {
                    Ok(received) => received,
                    Err(error) => return error!(%error, "receive a container's query"),
                },
            };
            let since = Instant::now();
            match self.known(&query, Transport::Udp) {
                Some(answer) => self.send(&answer, from).await,
                None if asking.len() < DATAGRAMS => drop(asking.spawn(self.clone().pass(query, from, since))),
                None => self.shared.tally.passed(since, false),
            }
        }
    }

    /// Has Docker's resolver answer. Where that is silent we are; where it is not there the asker is told at once, as it would be without us.
    async fn pass(self: Arc<Self>, query: Vec<u8>, from: SocketAddr, since: Instant) {
        let answered = self.resolver.ask(&query).await;
        self.shared.tally.passed(since, answered.is_ok());
        match answered {
            Ok(answer) => self.send(&answer, from).await,
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {}
            Err(_) => {
                if let Some(failure) = failure(&query) {
                    self.send(&failure, from).await;
                }
            }
        }
    }

    /// The asker may be gone.
    async fn send(&self, answer: &[u8], to: SocketAddr) {
        let _ = self.udp.send_to(answer, to).await;
    }

    async fn answer_streams(self: Arc<Self>) {
        let mut open = JoinSet::new();
        loop {
            tokio::select! {
                Some(_) = open.join_next() => {}
                accepted = self.tcp.accept(), if open.len() < STREAMS => match accepted {
                    Ok((stream, _)) => drop(open.spawn(self.clone().converse(stream))),
                    // no descriptors left, or the asker is gone already
                    Err(_) => sleep(AGAIN).await,
                },
            }
        }
    }

    /// Answers query after query until the asker is silent or gone.
    async fn converse(self: Arc<Self>, mut asker: TcpStream) {
        let mut docker = None;
        while let Ok(Ok(query)) = timeout(SILENCE, read(&mut asker)).await {
            let answer = match self.known(&query, Transport::Tcp) {
                Some(answer) => answer,
                None => {
                    let since = Instant::now();
                    let answered = self.pass_on(&mut docker, &query).await;
                    self.shared.tally.passed(since, answered.is_ok());
                    match answered {
                        Ok(answer) => answer,
                        Err(_) => return,
                    }
                }
            };
            if !matches!(timeout(SILENCE, write(&mut asker, &answer)).await, Ok(Ok(()))) {
                return;
            }
        }
    }

    /// Has Docker's resolver answer, by the connection that there is, or by a new one where that was closed meanwhile.
    async fn pass_on(&self, docker: &mut Option<TcpStream>, query: &[u8]) -> io::Result<Vec<u8>> {
        if let Some(stream) = docker
            && let Ok(answer) = exchange(stream, query).await
        {
            return Ok(answer);
        }
        exchange(docker.insert(self.resolver.connect().await?), query).await
    }
}

async fn exchange(stream: &mut TcpStream, query: &[u8]) -> io::Result<Vec<u8>> {
    timeout(PATIENCE, async {
        write(stream, query).await?;
        read(stream).await
    })
    .await?
}

/// A message with its length before it (RFC 1035 4.2.2).
async fn read(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut message = vec![0; stream.read_u16().await?.into()];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

/// In one piece: some askers expect the length and the message in one segment.
async fn write(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes()[..], message].concat()).await
}

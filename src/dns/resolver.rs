//! Docker's resolver of one sandbox, asked as a process of the container would ask it.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::Interest;
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::time::{Instant, timeout};

use super::Shared;
use crate::kernel::sandbox::{Asks, Sandbox, marked_socket};

/// Where the engine has containers ask, in every sandbox (`libnetwork/sandbox_dns_unix.go`).
pub const DOCKERS: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 11), 53);
/// The mark of what we ask ourselves, by which the divert lets it go by to Docker's own rules: "rsn".
pub const MARK: u32 = 0x72_73_6e;
/// How long Docker's resolver may take: it gives each of up to three servers 4 s (`extIOTimeout`), and an asker who waits takes late answers.
pub const PATIENCE: Duration = Duration::from_secs(13);
/// How many sockets are kept for the next queries: resolvers ask for both families at once.
const KEPT: usize = 2;
/// For how long: the kernel leads a socket's packets to where it led its first, and an engine that was restarted listens elsewhere.
const FRESH: Duration = Duration::from_secs(10);
/// Bytes of the longest datagram, and of the longest message on a stream.
pub const LONGEST: usize = 65_535;

pub struct Resolver {
    shared: Arc<Shared>,
    sandbox: Sandbox,
    kept: Mutex<Vec<(UdpSocket, Instant)>>,
}

impl Resolver {
    pub fn new(shared: Arc<Shared>, sandbox: Sandbox) -> Self {
        Resolver { shared, sandbox, kept: Mutex::default() }
    }

    /// What it answers to a datagram. `ConnectionRefused`: it is not there. `TimedOut`: it says nothing.
    pub async fn ask(&self, query: &[u8]) -> io::Result<Vec<u8>> {
        if let Some(socket) = self.take() {
            match self.exchange(socket, query).await {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                answer => return answer,
            }
        }
        let socket = UdpSocket::from_std(self.open(Asks::Datagram).await?.into())?;
        socket.connect(SocketAddr::V4(DOCKERS)).await?;
        self.exchange(socket, query).await
    }

    /// A connection to it.
    pub async fn connect(&self) -> io::Result<TcpStream> {
        let socket = self.open(Asks::Stream).await?;
        timeout(PATIENCE, TcpSocket::from_std_stream(socket.into()).connect(SocketAddr::V4(DOCKERS))).await?
    }

    /// From the address that we ask: the kernel remembers where it led the packets of two addresses and ports, for half a minute and more. The
    /// container's own processes ask from 127.0.0.1, so a port that they and we have one after the other is two flows.
    async fn open(&self, asks: Asks) -> io::Result<std::os::fd::OwnedFd> {
        let _hand = self.shared.hands.acquire().await;
        self.sandbox.run(move || marked_socket(asks, *DOCKERS.ip(), MARK)).await
    }

    /// A socket that timed out or failed is not used again: what it hears later belongs to nobody.
    async fn exchange(&self, socket: UdpSocket, query: &[u8]) -> io::Result<Vec<u8>> {
        let answer = timeout(PATIENCE, async {
            socket.send(query).await?;
            loop {
                let (answer, _) = tokio::select! {
                    received = receive(&socket) => received?,
                    error = refusal(&socket) => return Err(error),
                };
                if answer.get(..2) == query.get(..2) {
                    return Ok::<_, io::Error>(answer);
                }
            }
        });
        let answer = answer.await??;
        let mut kept = self.kept.lock();
        if kept.len() < KEPT {
            kept.push((socket, Instant::now()));
        }
        Ok(answer)
    }

    fn take(&self) -> Option<UdpSocket> {
        let mut kept = self.kept.lock();
        kept.retain(|(_, since)| since.elapsed() < FRESH);
        kept.pop().map(|(socket, _)| socket)
    }
}

/// What the kernel says of a datagram that found nobody. It makes a socket ready by itself, without anything to receive.
async fn refusal(socket: &UdpSocket) -> io::Error {
    let told = match socket.ready(Interest::ERROR).await {
        Ok(_) => socket.take_error(),
        Err(error) => Err(error),
    };
    told.unwrap_or_else(Some).unwrap_or_else(|| io::ErrorKind::ConnectionRefused.into())
}

/// The next datagram, and from where. Room for it is taken when it is there: a thousand sockets wait, and few have one.
pub async fn receive(socket: &UdpSocket) -> io::Result<(Vec<u8>, SocketAddr)> {
    loop {
        socket.readable().await?;
        let mut datagram = Vec::with_capacity(LONGEST);
        match socket.try_recv_buf_from(&mut datagram) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            received => {
                let (_, from) = received?;
                datagram.shrink_to_fit();
                return Ok((datagram, from));
            }
        }
    }
}

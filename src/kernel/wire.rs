//! One rtnetlink socket, spoken to in questions and answers.
//!
//! Synchronous on purpose: the kernel does all of a request's work, grace periods included, inside `send`, so an asynchronous socket would
//! block a thread of the runtime all the same (15 ms for deleting a veth). Callers stand on threads of [`super::crew`].

use std::io;
use std::os::fd::AsFd;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkBuffer, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

/// How long an answer may take, in seconds. The kernel answers before `send` returns: only a lost answer takes this long.
const PATIENCE: i64 = 5;

/// Bytes. Answers that do not fit are lost; a dump of a host with thousands of links is a few megabytes, and comes in portions.
const RECEIVE_BUFFER: usize = 4 << 20;

/// `NLM_F_DUMP_INTR`: the table changed during the dump.
const INTERRUPTED: u16 = 0x10;

/// How often a dump is asked again when the table changes meanwhile; after that the last answer counts, and the events tell the rest.
const DUMPS: usize = 4;

pub(super) struct Wire {
    socket: Socket,
    sequence: u32,
}

/// What came of one request.
#[derive(Default)]
struct Answer {
    messages: Vec<RouteNetlinkMessage>,
    interrupted: bool,
    done: bool,
}

impl Wire {
    /// A socket in the network namespace of the calling thread; it stays in it.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        enlarge_receive_buffer(&socket)?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(PATIENCE))?;
        // Since Linux 4.20; without it dumps are filtered only here.
        let _ = socket.set_netlink_get_strict_chk(true);
        Ok(Wire { socket, sequence: 0 })
    }

    /// Asks for a change and waits for the acknowledgement. `flags`: `NLM_F_CREATE` and its like.
    pub fn change(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.exchange(message, NLM_F_ACK | flags).map(drop)
    }

    /// Asks for one thing.
    pub fn get(&mut self, message: RouteNetlinkMessage) -> io::Result<Option<RouteNetlinkMessage>> {
        Ok(self.exchange(message, NLM_F_ACK)?.messages.into_iter().next())
    }

    /// Asks for everything of a kind. Messages that cannot be decoded (a link of an exotic kind) are left out.
    pub fn dump(&mut self, message: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        let mut answer = self.exchange(message.clone(), NLM_F_DUMP)?;
        for _ in 1..DUMPS {
            if !answer.interrupted {
                break;
            }
            answer = self.exchange(message.clone(), NLM_F_DUMP)?;
        }
        Ok(answer.messages)
    }

    fn exchange(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<Answer> {
        self.sequence = self.sequence.wrapping_add(1);
        self.socket.send(&encode(message, NLM_F_REQUEST | flags, self.sequence), 0)?;
        let mut answer = Answer::default();
        while !answer.done {
            let (datagram, _) = self.socket.recv_from_full().map_err(explain_silence)?;
            answer.read(&datagram, self.sequence)?;
        }
        Ok(answer)
    }
}

impl Answer {
    fn read(&mut self, datagram: &[u8], sequence: u32) -> io::Result<()> {
        let mut rest = datagram;
        while let Ok(header) = NetlinkBuffer::new_checked(rest) {
            // `new_checked` promises that `length` is at least the header's and at most `rest`'s.
            let (message, flags) = (&rest[..header.length() as usize], header.flags());
            // An answer to an earlier request that was given up.
            if header.sequence_number() == sequence {
                self.interrupted |= flags & INTERRUPTED != 0;
                self.take(message)?;
            }
            rest = &rest[message.len().next_multiple_of(4).min(rest.len())..];
        }
        Ok(())
    }

    fn take(&mut self, message: &[u8]) -> io::Result<()> {
        match NetlinkMessage::<RouteNetlinkMessage>::deserialize(message).map(|m| m.payload) {
            Ok(NetlinkPayload::InnerMessage(inner)) => self.messages.push(inner),
            Ok(NetlinkPayload::Error(error)) if error.code.is_some() => return Err(io::Error::from_raw_os_error(-error.raw_code())),
            Ok(NetlinkPayload::Done(done)) if done.code < 0 => return Err(io::Error::from_raw_os_error(-done.code)),
            Ok(NetlinkPayload::Error(_) | NetlinkPayload::Done(_)) => self.done = true,
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, "left out a netlink message that cannot be decoded"),
        }
        Ok(())
    }
}

fn encode(message: RouteNetlinkMessage, flags: u16, sequence: u32) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    header.sequence_number = sequence;
    let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(message));
    packet.finalize();
    let mut bytes = vec![0; packet.buffer_len()];
    packet.serialize(&mut bytes);
    bytes
}

fn explain_silence(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock => io::Error::new(io::ErrorKind::TimedOut, format!("the kernel gave no answer within {PATIENCE} s")),
        _ => error,
    }
}

/// Beyond `net.core.rmem_max` with CAP_NET_ADMIN, else as far as it allows.
pub(super) fn enlarge_receive_buffer(socket: &impl AsFd) -> io::Result<()> {
    setsockopt(socket, sockopt::RcvBufForce, &RECEIVE_BUFFER)
        .or_else(|_| setsockopt(socket, sockopt::RcvBuf, &RECEIVE_BUFFER))
        .map_err(io::Error::from)
}

//! A netlink socket to netfilter (`NETLINK_NETFILTER`), asked and answered in place.
//!
//! The kernel works off a request before `send` returns and produces a dump while it is read, so no call here ever waits: an answer that
//! is not there at once will not come, and is an error instead of a hang. That is why this is not an asynchronous connection.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

use netlink_packet_core::NetlinkBuffer;
use netlink_sys::{Socket as RawSocket, SocketAddr, protocols::NETLINK_NETFILTER};
use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};

use super::attribute::{Attribute, find_string, write};
use super::batch::Operation;

pub const NFTABLES: u8 = 10;

const HEADER: usize = 16;
/// `struct nfgenmsg`.
const FAMILY_HEADER: usize = 4;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;

/// The most that one batch may be, and the most that its events may be, in bytes. The kernel reserves nothing for it.
const BUFFERS: usize = 64 << 20;
/// What one read may return; the kernel sends dumps in portions of at most 32 KiB.
pub const READ: usize = 64 * 1024;

/// A message to netfilter.
pub struct Message {
    /// `NFNL_SUBSYS_*`.
    pub subsystem: u8,
    /// Number within the subsystem.
    pub kind: u8,
    /// `NLM_F_*` beyond those of every request.
    pub flags: u16,
    pub family: u8,
    pub attributes: Vec<Attribute>,
}

/// A message from netfilter.
#[derive(Clone, Debug)]
pub struct Reply {
    pub subsystem: u8,
    pub kind: u8,
    pub family: u8,
    /// The port of the socket whose request this answers or reports.
    pub port: u32,
    pub attributes: Vec<u8>,
}

pub struct Socket {
    raw: RawSocket,
    port: u32,
    sequence: AtomicU32,
}

/// Gives the socket its port, which is returned, and its buffers.
pub fn prepare(raw: &mut RawSocket) -> io::Result<u32> {
    let address = raw.bind_auto()?;
    raw.set_non_blocking(true)?;
    setsockopt(raw, sockopt::SndBufForce, &BUFFERS)?;
    setsockopt(raw, sockopt::RcvBufForce, &BUFFERS)?;
    Ok(address.port_number())
}

/// What failed of a batch: which operation, if the kernel said, and why.
pub struct Refused {
    pub operation: Option<usize>,
    pub cause: io::Error,
}

impl From<io::Error> for Refused {
    fn from(cause: io::Error) -> Self {
        Refused { operation: None, cause }
    }
}

impl Socket {
    /// Opens one in the network namespace of the calling thread.
    pub fn open() -> io::Result<Self> {
        let mut raw = RawSocket::new(NETLINK_NETFILTER)?;
        let port = prepare(&mut raw)?;
        // Errors without the failed message, with the kernel's own words. Older kernels lack the options and the words.
        let _ = raw.set_cap_ack(true);
        let _ = raw.set_ext_ack(true);
        Ok(Socket { raw, port, sequence: AtomicU32::new(1) })
    }

    pub fn port(&self) -> u32 {
        self.port
    }

    /// Applies all operations or none.
    pub fn commit(&self, operations: &[Operation]) -> Result<(), Refused> {
        if operations.is_empty() {
            return Ok(());
        }
        let first = self.sequence.fetch_add(operations.len() as u32 + 2, Ordering::Relaxed);
        self.send(&batch(operations, first))?;
        self.outcome(first, operations.len())
    }

    /// The kernel answers every operation that failed, and the last one in any case.
    fn outcome(&self, first: u32, count: usize) -> Result<(), Refused> {
        let mut answered = false;
        let mut refused: Option<Refused> = None;
        while let Some(datagram) = self.receive()? {
            for (sequence, error) in messages(&datagram).filter_map(|m| Some((m.sequence_number(), failure(&m)?))) {
                let index = sequence.wrapping_sub(first + 1) as usize;
                answered |= index + 1 == count;
                if let Some(cause) = error {
                    refused.get_or_insert(Refused { operation: (index < count).then_some(index), cause });
                }
            }
        }
        match (refused, answered) {
            (Some(refused), _) => Err(refused),
            (None, true) => Ok(()),
            (None, false) => Err(unanswered().into()),
        }
    }

    /// Everything that the kernel has of a kind, from one moment: repeated while others change it.
    pub fn dump(&self, request: &Message) -> io::Result<Vec<Reply>> {
        for _ in 0..10 {
            if let Some(replies) = self.ask(request, NLM_F_DUMP)? {
                return Ok(replies);
            }
        }
        Err(io::Error::new(io::ErrorKind::ResourceBusy, "it was changed during each of ten readings"))
    }

    /// What the kernel answers to a request that is no dump: nothing but success, or one object.
    pub fn request(&self, request: &Message) -> io::Result<Vec<Reply>> {
        Ok(self.ask(request, NLM_F_ACK)?.unwrap_or_default())
    }

    /// The object, if there is one.
    pub fn get(&self, request: &Message) -> io::Result<Option<Reply>> {
        match self.request(request) {
            Ok(replies) => Ok(replies.into_iter().next()),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Nothing where a dump was interrupted.
    fn ask(&self, request: &Message, flags: u16) -> io::Result<Option<Vec<Reply>>> {
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed);
        let mut buffer = Vec::new();
        encode(request, flags, sequence, &mut buffer);
        self.send(&buffer)?;
        let (mut replies, mut interrupted) = (Vec::new(), false);
        while let Some(datagram) = self.receive()? {
            for message in messages(&datagram).filter(|m| m.sequence_number() == sequence) {
                interrupted |= message.flags() & NLM_F_DUMP_INTR != 0;
                match failure(&message) {
                    Some(Some(error)) => return Err(error),
                    Some(None) => return Ok((!interrupted).then_some(replies)),
                    None => replies.extend(reply(&message)),
                }
            }
        }
        Err(unanswered())
    }

    fn send(&self, buffer: &[u8]) -> io::Result<()> {
        self.drain();
        self.raw.send_to(buffer, &SocketAddr::new(0, 0), 0).map(drop)
    }

    /// Throws away what an abandoned dump left.
    fn drain(&self) {
        while let Ok(Some(_)) = self.receive() {}
    }

    /// The next datagram that is there.
    fn receive(&self) -> io::Result<Option<Vec<u8>>> {
        let mut buffer = Vec::with_capacity(READ);
        match self.raw.recv(&mut buffer, 0) {
            Ok(_) => Ok(Some(buffer)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn unanswered() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the kernel gave no answer")
}

/// Begin, operations, end; only the last operation asks for an answer.
fn batch(operations: &[Operation], first: u32) -> Vec<u8> {
    let mut buffer = Vec::with_capacity(1024);
    bracket(BATCH_BEGIN, first, &mut buffer);
    for (index, operation) in operations.iter().enumerate() {
        let flags = if index + 1 == operations.len() { NLM_F_ACK } else { 0 };
        encode(&operation.message, flags, first + 1 + index as u32, &mut buffer);
    }
    bracket(BATCH_END, first + 1 + operations.len() as u32, &mut buffer);
    buffer
}

fn bracket(kind: u16, sequence: u32, to: &mut Vec<u8>) {
    header(kind, NLM_F_REQUEST, sequence, HEADER + FAMILY_HEADER, to);
    to.extend([0, 0, 0, NFTABLES]);
}

fn encode(message: &Message, flags: u16, sequence: u32, to: &mut Vec<u8>) {
    let start = to.len();
    let kind = u16::from(message.subsystem) << 8 | u16::from(message.kind);
    header(kind, NLM_F_REQUEST | flags | message.flags, sequence, 0, to);
    to.extend([message.family, 0, 0, 0]);
    write(&message.attributes, to);
    let length = (to.len() - start) as u32;
    to[start..start + 4].copy_from_slice(&length.to_ne_bytes());
}

fn header(kind: u16, flags: u16, sequence: u32, length: usize, to: &mut Vec<u8>) {
    to.extend((length as u32).to_ne_bytes());
    to.extend(kind.to_ne_bytes());
    to.extend(flags.to_ne_bytes());
    to.extend(sequence.to_ne_bytes());
    to.extend([0; 4]);
}

/// The messages in a datagram, up to the first malformed one.
pub fn messages(datagram: &[u8]) -> impl Iterator<Item = NetlinkBuffer<&[u8]>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let message = NetlinkBuffer::new_checked(rest).ok()?;
        let length = (message.length() as usize).next_multiple_of(4).min(rest.len());
        let (this, others) = rest.split_at(length);
        rest = others;
        Some(NetlinkBuffer::new(this))
    })
}

/// Nothing for a message that carries an object; success or the error for one that ends a request.
fn failure(message: &NetlinkBuffer<&[u8]>) -> Option<Option<io::Error>> {
    if !matches!(message.message_type(), NLMSG_ERROR | NLMSG_DONE) {
        return None;
    }
    let payload = message.payload();
    let code = payload.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
    Some((code < 0).then(|| explained(io::Error::from_raw_os_error(-code), said(message))))
}

/// The error keeps its number; the kernel's words go to the log.
fn explained(error: io::Error, words: Option<&str>) -> io::Error {
    if let Some(words) = words {
        tracing::debug!(%error, words, "netfilter refused a request");
    }
    error
}

/// `NLMSGERR_ATTR_MSG`.
fn said<'a>(message: &NetlinkBuffer<&'a [u8]>) -> Option<&'a str> {
    if message.message_type() != NLMSG_ERROR || message.flags() & NLM_F_ACK_TLVS == 0 {
        return None;
    }
    let payload = message.payload();
    let failed = u32::from_ne_bytes(*payload.get(4..)?.first_chunk()?) as usize;
    let skip = 4 + if message.flags() & NLM_F_CAPPED != 0 { HEADER } else { failed.next_multiple_of(4) };
    find_string(payload.get(skip..)?, 1)
}

pub fn reply(message: &NetlinkBuffer<&[u8]>) -> Option<Reply> {
    let [subsystem, kind] = message.message_type().to_be_bytes();
    let (family, attributes) = message.payload().split_at_checked(FAMILY_HEADER)?;
    Some(Reply { subsystem, kind, family: family[0], port: message.port_number(), attributes: attributes.to_vec() })
}

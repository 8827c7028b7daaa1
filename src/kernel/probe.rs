//! One packet of a container's, sent from its own namespace, and what comes of it. Nothing is left there.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, connect, recv, send, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use nix::{setsockopt_impl, sockopt_impl};

use crate::model::{Answer, NoWay, Probe, Protocol};

sockopt_impl!(MtuDiscover, SetOnly, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, i32);
sockopt_impl!(MtuDiscover6, SetOnly, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, i32);

/// Bytes of the headers of an echo: IP's and ICMP's.
const ECHO: [u32; 2] = [20 + 8, 40 + 8];

/// In the namespace of the calling thread.
pub(super) fn send_one(probe: &Probe, patience: Duration) -> io::Result<Answer> {
    match probe.flow.port {
        None => echo(probe, patience),
        Some((Protocol::Tcp, port)) => tcp(probe, port, patience),
        Some((Protocol::Udp, port)) => udp(probe, port, patience),
        Some((Protocol::Sctp, _)) => Err(io::Error::new(io::ErrorKind::Unsupported, "SCTP is not asked")),
    }
}

fn address(ip: IpAddr, port: u16) -> SockaddrStorage {
    SockaddrStorage::from(SocketAddr::new(ip, port))
}

fn family(ip: IpAddr) -> AddressFamily {
    if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn wait_at_most(socket: &OwnedFd, patience: Duration) -> io::Result<()> {
    let limit = TimeVal::milliseconds(patience.as_millis() as i64);
    setsockopt(socket, sockopt::SendTimeout, &limit)?;
    Ok(setsockopt(socket, sockopt::ReceiveTimeout, &limit)?)
}

/// A connection that is made and reset: nothing of it stays.
fn tcp(probe: &Probe, port: u16, patience: Duration) -> io::Result<Answer> {
    let socket = socket(family(probe.flow.to), SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    wait_at_most(&socket, patience)?;
    setsockopt(&socket, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
    bind(socket.as_raw_fd(), &address(probe.flow.from, probe.source))?;
    Ok(answer(connect(socket.as_raw_fd(), &address(probe.flow.to, port))))
}

/// An empty datagram. A server that takes it says nothing.
fn udp(probe: &Probe, port: u16, patience: Duration) -> io::Result<Answer> {
    let socket = UdpSocket::bind((probe.flow.from, probe.source))?;
    hear_errors(&socket, probe.flow.to);
    socket.set_read_timeout(Some(patience))?;
    let asked = socket.connect((probe.flow.to, port)).and_then(|()| socket.send(&[])).and_then(|_| socket.recv(&mut [0; 16]));
    Ok(answer(asked.map_err(|error| error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw))))
}

/// What routers say of a packet is an error of its socket.
fn hear_errors(socket: &impl std::os::fd::AsFd, to: IpAddr) {
    // without it there is silence instead of a word
    let _ = if to.is_ipv4() { setsockopt(socket, sockopt::Ipv4RecvErr, &true) } else { setsockopt(socket, sockopt::Ipv6RecvErr, &true) };
}

fn answer<T>(asked: Result<T, Errno>) -> Answer {
    match asked {
        Ok(_) => Answer::Reached,
        Err(Errno::ECONNREFUSED) => Answer::Refused,
        Err(Errno::EMSGSIZE) => Answer::TooBig,
        Err(Errno::EINPROGRESS | Errno::EAGAIN | Errno::EALREADY | Errno::ETIMEDOUT) => Answer::Silent,
        Err(errno) => Answer::Unreachable(NoWay { code: errno as i32, words: errno.desc().to_owned() }),
    }
}

/// By a socket for echoes alone, which Docker lets containers have; else by a raw one.
fn echo(probe: &Probe, patience: Duration) -> io::Result<Answer> {
    let (family, protocol) = match probe.flow.to {
        IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp),
        IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6),
    };
    let open = |kind| socket(family, kind, SockFlag::SOCK_CLOEXEC, protocol);
    let (socket, raw) = match open(SockType::Datagram) {
        Ok(socket) => (socket, false),
        Err(_) => (open(SockType::Raw)?, true),
    };
    wait_at_most(&socket, patience)?;
    hear_errors(&socket, probe.flow.to);
    // IP_PMTUDISC_PROBE: whole or not at all, whatever was learnt before
    let whole = libc::IP_PMTUDISC_PROBE;
    if probe.flow.to.is_ipv4() { setsockopt(&socket, MtuDiscover, &whole) } else { setsockopt(&socket, MtuDiscover6, &whole) }?;
    let number = if raw { 0 } else { probe.source };
    let asked =
        bind(socket.as_raw_fd(), &address(probe.flow.from, number)).and_then(|()| connect(socket.as_raw_fd(), &address(probe.flow.to, 0)));
    let packet = question(probe);
    Ok(answer(asked.and_then(|()| send(socket.as_raw_fd(), &packet, MsgFlags::empty())).and_then(|_| hear(&socket, probe, patience))))
}

/// Echo request (RFC 792, RFC 4443) with the number and, in IPv4, its checksum; in IPv6 the kernel adds that.
fn question(probe: &Probe) -> Vec<u8> {
    let v6 = probe.flow.to.is_ipv6();
    let length = probe.size.map_or(16, |size| size.saturating_sub(ECHO[usize::from(v6)]));
    let mut packet = vec![if v6 { 128 } else { 8 }, 0, 0, 0];
    packet.extend(probe.source.to_be_bytes());
    packet.extend([0, 1]);
    packet.resize(8 + length as usize, 0);
    if !v6 {
        let sum = checksum(&packet);
        packet[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    packet
}

/// RFC 1071.
fn checksum(packet: &[u8]) -> u16 {
    let words = packet.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word.get(1).copied().unwrap_or_default()));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}

/// Waits for the answer to our own number: a raw socket hears those of others too.
fn hear(socket: &OwnedFd, probe: &Probe, patience: Duration) -> Result<(), Errno> {
    let began = Instant::now();
    let mut buffer = vec![0; 1 << 16];
    while began.elapsed() < patience {
        let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        if is_answer(&buffer[..length], probe) {
            return Ok(());
        }
    }
    Err(Errno::EAGAIN)
}

/// A raw socket of IPv4 hears the IP header too.
fn is_answer(packet: &[u8], probe: &Probe) -> bool {
    let skip = packet.first().filter(|first| **first >> 4 == 4 && packet.len() > 20).map_or(0, |first| usize::from(first & 0xf) * 4);
    let expected = if probe.flow.to.is_ipv6() { 129 } else { 0 };
    packet.get(skip..).is_some_and(|icmp| icmp.first() == Some(&expected) && icmp.get(4..6) == Some(&probe.source.to_be_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Flow;

    #[test]
    fn an_echo_has_its_number_its_size_and_a_true_checksum() {
        let flow = Flow { from: "10.0.0.1".parse().unwrap(), to: "10.0.0.2".parse().unwrap(), port: None };
        let packet = question(&Probe { flow, source: 0x1234, size: Some(1450) });
        assert_eq!(packet.len(), 1450 - 20);
        assert_eq!(packet[4..6], [0x12, 0x34]);
        assert_eq!(checksum(&packet), 0, "a packet with its checksum sums up to nothing");
    }

    #[test]
    fn only_the_answer_to_the_own_number_counts() {
        let flow = Flow { from: "10.0.0.1".parse().unwrap(), to: "10.0.0.2".parse().unwrap(), port: None };
        let probe = Probe { flow, source: 7, size: None };
        let answer = [0, 0, 0, 0, 0, 7, 0, 1];
        assert!(is_answer(&answer, &probe));
        assert!(is_answer(&[&[0x45; 1][..], &[0; 19], &answer].concat(), &probe), "behind an IP header");
        assert!(!is_answer(&[8, 0, 0, 0, 0, 7, 0, 1], &probe), "the question itself");
        assert!(!is_answer(&[0, 0, 0, 0, 0, 8, 0, 1], &probe));
        assert!(!is_answer(&[], &probe));
    }

    #[test]
    fn somebody_who_listens_is_told_from_nobody() {
        let here: IpAddr = "127.0.0.1".parse().unwrap();
        let server = std::net::TcpListener::bind((here, 0)).unwrap();
        let port = server.local_addr().unwrap().port();
        let ask = |port, source| {
            let flow = Flow { from: here, to: here, port: Some((Protocol::Tcp, port)) };
            send_one(&Probe { flow, source, size: None }, Duration::from_secs(1)).unwrap()
        };
        assert_eq!(ask(port, 0), Answer::Reached);
        drop(server);
        assert_eq!(ask(port, 0), Answer::Refused);
    }
}

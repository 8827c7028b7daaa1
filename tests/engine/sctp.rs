//! SCTP without a kernel that speaks it: the two ends say an association (RFC 9260) themselves, on raw sockets. What lies between, the
//! translation of a published port with its checksums and its connection tracking, is the kernel's.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::FromRawFd;
use std::time::{Duration, Instant};

use nix::libc;

use crate::flow::Place;
use crate::lab::{Engine, PATIENCE};
use crate::publish::World;
use crate::traffic::run;

/// The client's port, the published one, the container's.
const CLIENT: u16 = 9;
const PUBLISHED: u16 = 9000;
const INSIDE: u16 = 9001;
/// The tags by which each end wants to be addressed.
const CLIENT_TAG: u32 = 0x0c11_e7a6;
const SERVER_TAG: u32 = 0x05e7_ea6a;
const COOKIE: [u8; 4] = *b"cook";

const DATA: u8 = 0;
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const SACK: u8 = 3;
const COOKIE_ECHO: u8 = 10;
const COOKIE_ACK: u8 = 11;

pub fn an_sctp_association_passes_a_published_port(engine: Engine) {
    let w = World::new(engine);
    w.network("net", 1, "");
    run(&w.host, "web", &format!("--network net -p {PUBLISHED}:{INSIDE}/sctp"));
    assert_eq!(w.ports()[0]["protocol"], "sctp", "{}", w.ports());
    let (inside, outside) = (Place::container(&w.host, "web"), Place::host(&w.station));
    for (host, station) in [(w.host.ipv4(), w.station.ipv4()), (w.host.ipv6(), w.station.ipv6())] {
        let socket = inside.spawn(move || raw(host)).join().expect("a raw socket");
        let server = inside.spawn(move || serve(&socket));
        let heard = outside.spawn(move || associate(host)).join().expect("the client ended well");
        assert_eq!(heard, b"pong", "the client's data is answered");
        let (peer, said) = server.join().expect("the server ended well");
        assert_eq!((peer, &said[..]), (station, &b"ping"[..]), "the server sees who asks, and what");
        let flows = w.host.sh("conntrack -L -p sctp; conntrack -L -f ipv6 -p sctp");
        flows.says(&format!("ESTABLISHED src={station} dst={host} sport={CLIENT} dport={PUBLISHED}"));
    }
}

/// A socket for all SCTP packets of the address's family.
fn raw(of: IpAddr) -> UdpSocket {
    let family = if of.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    // SAFETY: a new descriptor that nobody else has, if it is one.
    let socket = unsafe {
        let socket = libc::socket(family, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::IPPROTO_SCTP);
        assert!(socket >= 0, "{}", io::Error::last_os_error());
        UdpSocket::from_raw_fd(socket)
    };
    socket.set_read_timeout(Some(Duration::from_secs(1))).expect("set a timeout");
    socket
}

/// Answers an association until data came; who spoke, and the data.
fn serve(socket: &UdpSocket) -> (IpAddr, Vec<u8>) {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        let Some((peer, packet)) = hear(socket, CLIENT, INSIDE) else { continue };
        let answer = |kind, value: &[u8]| tell(socket, peer, &Packet::new(INSIDE, CLIENT, CLIENT_TAG, kind, value));
        match packet.kind {
            INIT => answer(INIT_ACK, &[&hello(SERVER_TAG)[..], &[0, 7, 0, 8], &COOKIE].concat()),
            COOKIE_ECHO if packet.tag == SERVER_TAG && packet.value == COOKIE => answer(COOKIE_ACK, &[]),
            DATA if packet.tag == SERVER_TAG => {
                answer(SACK, &[1_u32.to_be_bytes(), 65535_u32.to_be_bytes(), [0; 4]].concat());
                answer(DATA, &payload(b"pong"));
                return (peer, packet.value[12..].to_vec());
            }
            _ => {}
        }
    }
    panic!("no data came in {PATIENCE:?}");
}

/// Makes an association with the published port and says something; what is said back.
fn associate(host: IpAddr) -> Vec<u8> {
    let socket = raw(host);
    let say = |tag, kind, value: &[u8], wanted| exchange(&socket, host, &Packet::new(CLIENT, PUBLISHED, tag, kind, value), wanted);
    let acknowledged = say(0, INIT, &hello(CLIENT_TAG), INIT_ACK);
    let tag = u32::from_be_bytes(acknowledged[..4].try_into().expect("four bytes"));
    say(tag, COOKIE_ECHO, &acknowledged[20..], COOKIE_ACK);
    say(tag, DATA, &payload(b"ping"), DATA)[12..].to_vec()
}

/// Says it again every second until the wanted answer comes from there; its value.
fn exchange(socket: &UdpSocket, host: IpAddr, packet: &Packet, wanted: u8) -> Vec<u8> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        tell(socket, host, packet);
        while let Some((peer, answer)) = hear(socket, PUBLISHED, CLIENT) {
            assert_eq!((peer, answer.tag), (host, CLIENT_TAG), "the answer comes from whom was asked");
            if answer.kind == wanted {
                return answer.value;
            }
        }
    }
    panic!("no answer of kind {wanted} in {PATIENCE:?}");
}

/// A packet with one chunk.
struct Packet {
    from: u16,
    to: u16,
    tag: u32,
    kind: u8,
    value: Vec<u8>,
}

impl Packet {
    fn new(from: u16, to: u16, tag: u32, kind: u8, value: &[u8]) -> Packet {
        Packet { from, to, tag, kind, value: value.to_vec() }
    }

    fn bytes(&self) -> Vec<u8> {
        let flags = if self.kind == DATA { 3 } else { 0 }; // the first part and the last
        let length = (self.value.len() as u16 + 4).to_be_bytes();
        let chunk = [&[self.kind, flags], &length[..], &self.value].concat();
        let mut bytes = [&self.from.to_be_bytes()[..], &self.to.to_be_bytes(), &self.tag.to_be_bytes(), &[0; 4], &chunk].concat();
        let checksum = crc32c(&bytes).to_le_bytes();
        bytes[8..12].copy_from_slice(&checksum);
        bytes
    }

    /// Only what bears the right checksum is one.
    fn read(bytes: &[u8]) -> Packet {
        let half = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        let tag = u32::from_be_bytes(bytes[4..8].try_into().expect("four bytes"));
        let packet = Packet::new(half(0), half(2), tag, bytes[12], &bytes[16..12 + usize::from(half(14))]);
        assert_eq!(packet.bytes()[8..12], bytes[8..12], "the checksum after the translation");
        packet
    }
}

/// Sends it, if there is a way yet.
fn tell(socket: &UdpSocket, to: IpAddr, packet: &Packet) {
    let _ = socket.send_to(&packet.bytes(), SocketAddr::new(to, 0));
}

/// The next packet between these ports, and its sender; none in a second.
fn hear(socket: &UdpSocket, from: u16, to: u16) -> Option<(IpAddr, Packet)> {
    let mut buffer = [0; 2048];
    loop {
        let (length, peer) = socket.recv_from(&mut buffer).ok()?;
        // with IPv4 the header comes along
        let header = if peer.is_ipv4() { usize::from(buffer[0] & 15) * 4 } else { 0 };
        let packet = Packet::read(&buffer[header..length]);
        if (packet.from, packet.to) == (from, to) {
            return Some((peer.ip(), packet));
        }
    }
}

/// What INIT and INIT ACK begin with: tag, window, a stream each way, the first number.
fn hello(tag: u32) -> Vec<u8> {
    [tag.to_be_bytes(), 65535_u32.to_be_bytes(), [0, 1, 0, 1], 1_u32.to_be_bytes()].concat()
}

/// What DATA holds: number, stream, protocol, and what is said.
fn payload(said: &[u8; 4]) -> Vec<u8> {
    [1_u32.to_be_bytes(), [0; 4], [0; 4], *said].concat()
}

fn crc32c(bytes: &[u8]) -> u32 {
    let bit = |crc: u32, _| (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
    !bytes.iter().fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), bit))
}

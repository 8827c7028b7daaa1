//! Flows that began before the ports were published or taken back; `conntrack` as the second opinion.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use rsnet::firewall::Firewall;
use rsnet::model::{Entry, Family, Inbound, Protocol};

use crate::lab::{A, FAMILIES, Lab, Space, at, eventually, open, publish, run, segment};

const PATIENCE: Duration = Duration::from_secs(5);

/// Answers every datagram to a port with `name`.
fn answer_as(space: &Space, port: u16, name: &'static str) {
    let socket = space.within(|| UdpSocket::bind(SocketAddr::new("::".parse().unwrap(), port)).unwrap());
    thread::spawn(move || {
        let mut question = [0; 64];
        while let Ok((_, peer)) = socket.recv_from(&mut question) {
            let _ = socket.send_to(name.as_bytes(), peer);
        }
    });
}

/// A socket that keeps its port, and so its flow, to a port of the host.
fn caller(space: &Space, family: Family, port: u16) -> UdpSocket {
    let host = SocketAddr::new(at(family, "host").parse().unwrap(), port);
    space.within(|| {
        let socket = UdpSocket::bind((at(family, "world"), 0)).unwrap();
        socket.connect(host).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        socket
    })
}

/// Who answers; nobody in time, or a refusal: an empty name.
fn who(socket: &UdpSocket) -> String {
    let mut answer = [0; 64];
    let asked = socket.send(b"?").and_then(|_| socket.recv(&mut answer));
    asked.map(|length| String::from_utf8_lossy(&answer[..length]).into_owned()).unwrap_or_default()
}

fn flows(of: &str) -> String {
    run(&format!("conntrack -L -f ipv4 {of} 2>/dev/null; conntrack -L -f ipv6 {of} 2>/dev/null"))
}

fn both(protocol: Protocol, host: &str, ports: (u16, u16), to: &str, to_port: u16) -> Vec<Entry> {
    FAMILIES.map(|f| publish(protocol, at(f, host), ports, at(f, to), to_port)).to_vec()
}

#[tokio::test]
async fn a_udp_flow_that_nobody_answered_follows_its_port_to_one_container_and_to_the_next() {
    let lab = Lab::new();
    answer_as(&lab.a1, 53, "a1");
    answer_as(&lab.a2, 53, "a2");
    lab.firewall.converge(&segment(A, Inbound::Closed).into_iter().collect()).await.unwrap();
    let callers = FAMILIES.map(|family| caller(&lab.world, family, 53));
    let expect = |name: &str| callers.iter().for_each(|caller| eventually(name, || (who(caller) == name).then_some(())));
    expect("");
    let (first, second) = (both(Protocol::Udp, "any", (53, 53), "a1", 53), both(Protocol::Udp, "host", (53, 53), "a2", 53));
    lab.firewall.apply(&[], &first).await.unwrap();
    expect("a1");
    lab.firewall.apply(&first, &[]).await.unwrap();
    expect("");
    lab.firewall.apply(&[], &second).await.unwrap();
    expect("a2");
    lab.firewall.apply(&second, &first).await.unwrap();
    expect("a1");
    lab.firewall.converge(&segment(A, Inbound::Closed).into_iter().collect()).await.unwrap();
    expect("");
}

#[tokio::test]
async fn a_connection_through_a_port_that_was_taken_back_ends_and_never_reaches_the_next_container() {
    let lab = Lab::new();
    let opened = FAMILIES.map(|f| open(Protocol::Tcp, at(f, "a1"), 8080, 8080));
    let entries = [segment(A, Inbound::Opened), opened.to_vec()].concat();
    lab.firewall.converge(&entries.into_iter().collect()).await.unwrap();
    let ports = both(Protocol::Tcp, "any", (7000, 7999), "a1", 7000);
    lab.firewall.apply(&[], &ports).await.unwrap();
    let listener = |port: u16| lab.a1.within(|| TcpListener::bind(SocketAddr::new("::".parse().unwrap(), port)).unwrap());
    let (published, direct) = (listener(7500), listener(8080));
    let mut streams = Vec::new();
    for (to, port, listener) in [("host", 7500, &published), ("a1", 8080, &direct)] {
        for family in FAMILIES {
            let to = SocketAddr::new(at(family, to).parse().unwrap(), port);
            let stream = lab.world.within(|| TcpStream::connect_timeout(&to, PATIENCE).unwrap());
            let mut server = listener.accept().unwrap().0;
            server.write_all(b"hello").unwrap();
            streams.push((stream, server));
        }
    }
    for (stream, _) in &mut streams {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.read_exact(&mut [0; 5]).unwrap();
    }
    assert_eq!(flows("-p tcp --state ESTABLISHED").lines().count(), 4);
    lab.firewall.apply(&[ports.clone(), opened.to_vec()].concat(), &[]).await.unwrap();
    lab.firewall.apply(&[], &both(Protocol::Tcp, "any", (7500, 7500), "a2", 7500)).await.unwrap();
    eventually("forgotten", || flows("-p tcp --state ESTABLISHED").is_empty().then_some(()));
    for (stream, server) in streams.iter_mut().take(2) {
        stream.write_all(b"still there?").unwrap();
        let ended = stream.read(&mut [0; 1]);
        assert!(!matches!(ended, Ok(1..)), "it heard something");
        assert_eq!(ended.map_err(|error| error.kind()).unwrap_err(), std::io::ErrorKind::ConnectionReset);
        server.set_nonblocking(true).unwrap();
        assert_eq!(server.read(&mut [0; 16]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "nothing arrived");
    }
    for (stream, server) in streams.iter_mut().skip(2) {
        stream.write_all(b"still there?").unwrap();
        server.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        assert_eq!(server.read(&mut [0; 16]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "the closed way lets nothing in");
    }
}

/// A flow of somebody's, as connection tracking would have noted it.
fn note(protocol: &str, to: &str, port: u16, answerer: &str) {
    let state = match protocol {
        "tcp" => "--state ESTABLISHED -u ASSURED",
        "sctp" => "--state ESTABLISHED --orig-vtag 1 --reply-vtag 2",
        _ => "",
    };
    let caller = if to.contains(':') { "2001:db8::9" } else { "192.0.2.9" };
    let translated = if answerer == to { String::new() } else { format!("--dst-nat {answerer}") };
    run(&format!("conntrack -I -p {protocol} -t 600 -s {caller} -d {to} --sport 999 --dport {port} {state} {translated} 2>&1"));
}

#[tokio::test]
async fn all_of_a_range_is_forgotten_in_every_protocol_and_nothing_of_anybody_elses() {
    let lab = Lab::new();
    lab.firewall.converge(&segment(A, Inbound::Closed).into_iter().collect()).await.unwrap();
    let protocols = [(Protocol::Tcp, "tcp"), (Protocol::Udp, "udp"), (Protocol::Sctp, "sctp")];
    let all = |to_port| protocols.iter().flat_map(|(p, _)| both(*p, "host", (1000, 1999), "a1", to_port)).collect::<Vec<_>>();
    // As one element of a range, and as a thousand elements.
    for to_port in [1000, 5000] {
        lab.firewall.apply(&[], &all(to_port)).await.unwrap();
        for (_, protocol) in protocols {
            for family in FAMILIES {
                let (host, a1) = (at(family, "host"), at(family, "a1"));
                [1000, 1234, 1999].iter().for_each(|port| note(protocol, host, *port, a1));
                note(protocol, host, 2000, a1);
                note(protocol, host, 1001, at(family, "docker"));
                note(protocol, at(family, "gateway"), 1002, a1);
                note(protocol, a1, 1003, a1);
            }
        }
        let there = || flows("").matches("sport=999 ").count();
        eventually("all noted", || (there() == 42).then_some(()));
        lab.firewall.apply(&all(to_port), &[]).await.unwrap();
        eventually("what was ours is gone", || (there() == 24).then_some(()));
        let left = flows("");
        for port in [1000, 1234, 1999] {
            assert!(!left.contains(&format!("dport={port} ")), "{left}");
        }
        run("conntrack -F 2>/dev/null");
    }
}

#[tokio::test]
async fn publishing_a_udp_port_forgets_no_flow_that_goes_elsewhere_or_is_right_already() {
    let lab = Lab::new();
    let entries = segment(A, Inbound::Closed);
    lab.firewall.converge(&entries.iter().cloned().collect()).await.unwrap();
    for family in FAMILIES {
        note("udp", at(family, "world"), 53, at(family, "world"));
        note("udp", at(family, "host"), 53, at(family, "a1"));
        note("udp", at(family, "gateway"), 53, at(family, "gateway"));
        note("tcp", at(family, "host"), 53, at(family, "host"));
    }
    lab.firewall.apply(&[], &both(Protocol::Udp, "any", (53, 53), "a1", 53)).await.unwrap();
    eventually("the wrong one is gone", || (!flows("").contains(&format!("dst={} sport", at(Family::V4, "gateway")))).then_some(()));
    eventually("of each family", || (flows("").matches("sport=999 ").count() == 6).then_some(()));
}

#[tokio::test]
async fn old_flows_are_gone_before_the_same_ports_lead_to_the_same_address_again() {
    let lab = Lab::new();
    let ports = both(Protocol::Udp, "host", (53, 53), "a1", 53);
    lab.firewall.converge(&ports.iter().cloned().collect()).await.unwrap();
    for _ in 0..20 {
        FAMILIES.iter().for_each(|family| note("udp", at(*family, "host"), 53, at(*family, "a1")));
        lab.firewall.apply(&ports, &[]).await.unwrap();
        lab.firewall.apply(&[], &ports).await.unwrap();
        assert_eq!(flows("-p udp"), "");
    }
}

#[tokio::test]
async fn what_is_to_be_forgotten_is_so_when_the_process_ends_at_once() {
    let lab = Lab::new();
    let ports = both(Protocol::Udp, "host", (53, 53), "a1", 53);
    lab.firewall.converge(&ports.iter().cloned().collect()).await.unwrap();
    for family in FAMILIES {
        note("udp", at(family, "host"), 53, at(family, "a1"));
    }
    lab.firewall.apply(&ports, &[]).await.unwrap();
    drop(lab.firewall);
    assert_eq!(flows("-p udp"), "");
}

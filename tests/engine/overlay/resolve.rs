//! Names as processes in containers resolve them: by busybox, glibc and Go, with no `--dns` but that of the world outside.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::{RData, Record};

use super::Cluster;
use crate::lab::{Engine, Host, Output, PATIENCE, spawn_in, wait_until};
use crate::traffic::{addresses, run};

/// What the world outside answers for `outside.test`, in bytes of a record.
const OUTSIDE: [u8; 4] = [192, 0, 2, 77];

/// The world's name server, on a machine; it knows one name. Ends with the test's process.
fn serve_the_world(machine: &Host) {
    let at = SocketAddr::new(machine.ipv4(), 53);
    spawn_in(machine.network(), move || {
        let socket = UdpSocket::bind(at).expect("bind port 53");
        let mut query = vec![0; 4096];
        while let Ok((length, from)) = socket.recv_from(&mut query) {
            let _ = Message::from_vec(&query[..length]).map(|asked| socket.send_to(&answer(asked), from));
        }
    });
    machine.wait_listening("udp", 53);
}

fn answer(asked: Message) -> Vec<u8> {
    let mut answer = Message::new(asked.metadata.id, MessageType::Response, OpCode::Query);
    answer.metadata.recursion_available = true;
    for question in asked.queries {
        let known = question.name().to_ascii() == "outside.test.";
        if known && question.query_type() == hickory_proto::rr::RecordType::A {
            answer.add_answer(Record::from_rdata(question.name().clone(), 5, RData::A(std::net::Ipv4Addr::from(OUTSIDE).into())));
        } else if !known {
            answer.metadata.response_code = ResponseCode::NXDomain;
        }
        answer.add_query(question);
    }
    answer.to_vec().expect("an answer is written")
}

/// Runs a program of the host, with its glibc or Go, where a process of the container would: in its network and with its `resolv.conf`.
fn as_in(host: &Host, container: &str, script: &str) -> Output {
    let conf = "echo nameserver 127.0.0.11 >/tmp/resolv.conf; touch /etc/resolv.conf; mount --bind /tmp/resolv.conf /etc/resolv.conf";
    host.in_container(container, &format!("unshare -m sh -c '{conf}; {script}'"))
}

/// The addresses that busybox's `nslookup` prints of a name.
fn looked_up(host: &Host, container: &str, name: &str) -> Vec<IpAddr> {
    let seen = host.docker(&format!("exec {container} nslookup {name}"));
    let answer = seen.stdout.split("Name:").skip(1).flat_map(str::lines);
    let mut found: Vec<IpAddr> = answer.filter_map(|line| line.split_whitespace().last()?.parse().ok()).collect();
    found.sort();
    found
}

#[track_caller]
fn resolves(host: &Host, container: &str, name: &str, to: &[IpAddr]) {
    let mut to = to.to_vec();
    to.sort();
    wait_until(&format!("{container} to resolve {name}"), PATIENCE, || {
        let seen = looked_up(host, container, name);
        if seen == to { Ok(()) } else { Err(format!("it has {seen:?} in place of {to:?}")) }
    });
}

pub fn names_of_all_hosts_are_resolved_in_containers_and_all_else_by_docker(engine: Engine) {
    let cluster = Cluster::new(engine, 2, "");
    serve_the_world(&cluster.consul.machine);
    let [h1, h2] = &cluster.hosts[..] else { unreachable!("two hosts") };
    cluster.create("--ipv6 --subnet 10.50.0.0/16 --subnet fd00:50::/64 blue");
    cluster.create("--subnet 10.60.0.0/16 red");
    cluster.create("--internal --subnet 10.70.0.0/16 inner");
    let dns = format!("--dns {}", cluster.consul.machine.ipv4());
    run(h1, "c1", &format!("--network blue {dns}"));
    run(h1, "local", "--network blue --network-alias web");
    run(h1, "in1", &format!("--network inner {dns}"));
    run(h2, "web1", "--network blue --network-alias web");
    run(h2, "db", "--network red");
    run(h2, "in2", "--network inner --read-only");
    let (web1, local) = (addresses(h2, "web1", "blue"), addresses(h1, "local", "blue"));
    let both = [web1.clone(), local.clone()].concat();
    let outside = [IpAddr::from(OUTSIDE)];

    // names of other hosts, alone and beside this one's; names of this host; names of the world
    resolves(h1, "c1", "web1", &web1);
    resolves(h1, "c1", "web1.blue", &web1);
    resolves(h1, "c1", "web", &both);
    resolves(h1, "c1", "local", &local);
    resolves(h1, "c1", "outside.test", &outside);
    resolves(h1, "in1", "in2", &addresses(h2, "in2", "inner"));
    resolves(h2, "in2", "in1", &addresses(h1, "in1", "inner"));
    h1.docker("exec c1 ping -c 1 -W 2 web1").ok();
    h1.docker(&format!("exec c1 nslookup {}", web1[0])).says("web1.blue");
    // no network's names are known in another
    for (container, unknown) in [("c1", "db"), ("c1", "in2"), ("in1", "web1"), ("c1", "db.red"), ("c1", "nobody")] {
        assert_eq!(looked_up(h1, container, unknown), Vec::<IpAddr>::new(), "{unknown} in {container}");
    }
    // an internal network reaches no world, as with Docker alone
    assert_eq!(looked_up(h1, "in1", "outside.test"), Vec::<IpAddr>::new());

    as_in(h1, "c1", "getent ahostsv4 web1").says(&web1[0].to_string());
    as_in(h1, "c1", "getent ahostsv6 web1").says(&web1[1].to_string());
    as_in(h1, "c1", "getent ahostsv4 outside.test").says("192.0.2.77");
    as_in(h1, "c1", "getent ahosts nobody").fails();
    // the client of docker is a Go program: it gets as far as the server there, and not to one that is nowhere
    h2.docker("exec web1 httpd -p 2375").ok();
    let go = |name: &str| as_in(h1, "c1", &format!("GODEBUG=netdns=go docker -H tcp://{name}:2375 ps 2>&1; true")).ok().to_owned();
    let (there, nowhere) = (go("web1"), go("nobody"));
    assert!(!there.contains("onnect to the") && !there.contains("lookup"), "{there}");
    assert!(nowhere.contains("onnect to the") || nowhere.contains("lookup"), "{nowhere}");

    // the host's own network, and containers in it, are never touched
    h1.docker("run -d --name bare --network host box sleep 1000").ok();
    assert!(!h1.sh("nft list tables").ok().contains("rsnet-names"), "a divert on the host");
    h1.in_container("c1", "nft list tables").says("rsnet-names");

    h1.kill_rsnet();
    let began = Instant::now();
    assert_eq!((looked_up(h1, "c1", "outside.test"), looked_up(h1, "c1", "local")), (outside.to_vec(), local));
    println!("{engine:?}: two names by Docker alone, {:.1?} after rsnet was killed", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    assert!(!h1.in_container("c1", "nft list tables").ok().contains("rsnet-names"));
    cluster.start_rsnet(h1, "");
    resolves(h1, "c1", "web1", &web1);
    // a network that is connected while the container runs, and disconnected
    h1.docker("network connect red c1").ok();
    resolves(h1, "c1", "db", &addresses(h2, "db", "red"));
    h1.docker("network disconnect red c1").ok();
    resolves(h1, "c1", "db", &[]);
    h1.docker("restart -t 0 c1").ok();
    resolves(h1, "c1", "web1", &web1);
    let took = begins_to_resolve(h1, &dns);
    println!("{engine:?}: a name of the other host in a container's first breath: {took:.1?}");
}

/// From the start of a container to its first answer about another host's container, by the container itself.
fn begins_to_resolve(h1: &Host, dns: &str) -> Duration {
    let script = "until ping -c 1 -W 1 web1 >/dev/null 2>&1; do :; done";
    let began = Instant::now();
    h1.docker(&format!("run --rm --network blue {dns} box sh -c \"{script}\"")).ok();
    began.elapsed()
}

//! Names in containers: network namespaces with a resolver in the place of Docker's and its rules, and what their processes are answered.

mod container;
#[path = "../lab/namespace.rs"]
mod namespace;

use std::collections::BTreeMap;
use std::net::{IpAddr, TcpListener, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use container::{Container, Docker, RESOLVER, ask_by, ask_here, dockers_answer};
use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use ipnet::IpNet;
use namespace::{become_a_host, eventually, run};
use prometheus_client::registry::Registry;
use rsnet::dns::{Dns, Posts};
use rsnet::model::NetworkId;
use rsnet::names::{Directory, Named, Zone};
use tokio::runtime::Runtime;

/// rsnet's part, on a host of its own whose containers are on the networks `blue` (1) and `red` (2), which host `b` has too.
struct World {
    dns: Dns,
    runtime: Runtime,
    directory: tempfile::TempDir,
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn blue() -> NetworkId {
    "1".parse().unwrap()
}

fn red() -> NetworkId {
    "2".parse().unwrap()
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn known() -> Directory {
    let zone = |name: &str, subnet: &str| Zone { name: Some(name.to_owned()), subnets: vec![net(subnet)] };
    let directory = Directory::default();
    directory.set_zones([(blue(), zone("blue", "10.50.0.0/16")), (red(), zone("red", "10.60.0.0/16"))].into());
    directory.set_hosts(&["b".to_owned()].into(), ["b".to_owned()].into());
    let named = |name: &str, addresses: Vec<IpAddr>| Named { names: vec![name.to_owned()], addresses };
    let many = (0..200).map(|n| IpAddr::from([10, 50, 3, n])).collect();
    let blues = vec![named("web", vec!["10.50.1.2".parse().unwrap()]), named("many", many)];
    directory.hear("b", net("10.50.0.0/16"), 1, blues);
    directory.hear("b", net("10.60.0.0/16"), 1, vec![named("db", vec!["10.60.1.2".parse().unwrap()])]);
    directory
}

impl World {
    fn new() -> World {
        become_a_host();
        World { dns: Dns::new(Arc::new(known())), runtime: runtime(), directory: tempfile::tempdir().unwrap() }
    }

    fn container(&self, name: &str) -> Container {
        Container::new(self.directory.path(), name)
    }

    /// Has posts in these, and waits until they stand.
    fn keep(&self, wanted: &[(&Container, NetworkId)]) {
        let wanted: BTreeMap<_, _> = wanted.iter().map(|(container, id)| (container.path.clone(), vec![id.clone()])).collect();
        let _context = self.runtime.enter();
        self.dns.keep(&wanted);
        let all = Posts { standing: wanted.len(), failing: 0, unsupported: false };
        eventually("all posts stand", || (self.dns.posts() == all).then_some(()));
    }
}

fn query(id: u16, name: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message.to_vec().unwrap()
}

fn addresses(answer: &[u8]) -> Vec<IpAddr> {
    let message = Message::from_vec(answer).unwrap();
    let address = |data: &RData| match data {
        RData::A(address) => Some(IpAddr::V4(address.0)),
        RData::AAAA(address) => Some(IpAddr::V6(address.0)),
        _ => None,
    };
    message.answers.iter().filter_map(|record| address(&record.data)).collect()
}

fn code(answer: &[u8]) -> ResponseCode {
    Message::from_vec(answer).unwrap().metadata.response_code
}

/// How queries ended, as Prometheus is told.
fn counted(dns: &Dns) -> String {
    let (mut registry, mut text, tally) = (Registry::default(), String::new(), dns.tally());
    registry.register("seconds", "", tally.seconds);
    registry.register("failed", "", tally.failed);
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    text
}

const WEB: [IpAddr; 1] = [IpAddr::V4(std::net::Ipv4Addr::new(10, 50, 1, 2))];

#[test]
fn names_of_other_hosts_are_answered_and_all_else_is_dockers_byte_for_byte() {
    for iptables in ["iptables-nft", "iptables-legacy"] {
        let world = World::new();
        let container = world.container("c");
        let docker = Docker::start(&container, "Docker", false);
        container.lead_to(iptables, &docker);
        world.keep(&[(&container, blue())]);
        let known = query(7, "web.", RecordType::A);
        assert_eq!(addresses(&container.ask(&known).unwrap()), WEB, "{iptables}");
        assert_eq!(docker.asked(), Vec::<Vec<u8>>::new(), "{iptables}");
        let plain = query(8, "example.com.", RecordType::TXT);
        let strange: [&[u8]; 5] = [&plain, &query(9, "local.", RecordType::A), b"xy", &[0xff; 700], &[7; 30_000]];
        for unknown in strange {
            assert_eq!(container.ask(unknown).unwrap(), dockers_answer(unknown, "Docker"), "{iptables}");
        }
        let asked = [&plain, &known, &[7; 60_000][..], &known];
        let answers = container.ask_by_stream(&asked);
        assert_eq!((addresses(&answers[1]), addresses(&answers[3])), (WEB.to_vec(), WEB.to_vec()), "{iptables}");
        assert_eq!((&answers[0], &answers[2]), (&dockers_answer(asked[0], "Docker"), &dockers_answer(asked[2], "Docker")), "{iptables}");
        let seen: Vec<&[u8]> = strange.into_iter().chain([asked[0], asked[2]]).collect();
        assert_eq!(docker.asked(), seen, "{iptables}");
        let seen = counted(&world.dns);
        for (sample, count) in
            [("seconds_count{answered_by=\"rsnet\"}", 3), ("seconds_count{answered_by=\"docker\"}", 7), ("failed_total", 0)]
        {
            assert!(seen.contains(&format!("\n{sample} {count}\n")), "{iptables}: {sample} is not {count} in {seen}");
        }
    }
}

#[test]
fn an_answer_that_does_not_fit_a_datagram_comes_by_stream() {
    let world = World::new();
    let container = world.container("c");
    container.lead_to("iptables", &Docker::start(&container, "Docker", false));
    world.keep(&[(&container, blue())]);
    let query = query(7, "many.blue.", RecordType::A);
    let cut = container.ask(&query).unwrap();
    assert!(cut.len() <= 512 && Message::from_vec(&cut).unwrap().metadata.truncation);
    assert_eq!(addresses(&container.ask_by_stream(&[&query])[0]).len(), 200);
}

#[test]
fn names_do_not_leave_their_networks() {
    let world = World::new();
    let (one, other) = (world.container("one"), world.container("other"));
    for container in [&one, &other] {
        container.lead_to("iptables", &Docker::start(container, "Docker", false));
    }
    world.keep(&[(&one, blue()), (&other, red())]);
    let (web, db) = (query(1, "web.", RecordType::A), query(2, "db.red.", RecordType::A));
    assert_eq!(addresses(&one.ask(&web).unwrap()), WEB);
    assert_eq!(addresses(&other.ask(&db).unwrap()), [IpAddr::from([10, 60, 1, 2])]);
    assert_eq!(one.ask(&db).unwrap(), dockers_answer(&db, "Docker"));
    assert_eq!(other.ask(&web).unwrap(), dockers_answer(&web, "Docker"));
    // connected to another one while it runs
    world.keep(&[(&one, red()), (&other, red())]);
    assert_eq!(one.ask(&web).unwrap(), dockers_answer(&web, "Docker"));
    assert_eq!(addresses(&one.ask(&db).unwrap()), [IpAddr::from([10, 60, 1, 2])]);
}

/// Where the process of [`a_process_that_holds_the_posts`] is to find containers.
const HOLD: &str = "RSNET_TEST_HOLD";

/// Run as a process of its own by the test below, to be killed; does nothing in a run of the tests.
#[test]
fn a_process_that_holds_the_posts() {
    let Some(directory) = std::env::var_os(HOLD) else { return };
    let runtime = runtime();
    let _context = runtime.enter();
    let dns = Dns::new(Arc::new(known()));
    let paths = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    dns.keep(&paths.map(|path| (path, vec![blue()])).collect());
    thread::sleep(Duration::from_secs(60));
}

#[test]
fn docker_is_asked_as_before_once_rsnet_is_killed() {
    let world = World::new();
    let containers: Vec<Container> = (0..100).map(|n| world.container(&format!("c{n}"))).collect();
    for container in &containers {
        container.lead_to("iptables", &Docker::start(container, "Docker", false));
    }
    let mut holder = Command::new(std::env::current_exe().unwrap());
    holder.args(["--exact", "a_process_that_holds_the_posts"]).env(HOLD, world.directory.path()).stdout(Stdio::null());
    let mut holder = holder.spawn().unwrap();
    let web = query(1, "web.", RecordType::A);
    let answered = |container: &Container| container.within(|| ask_here(&web, Duration::from_millis(20))).ok();
    for container in &containers {
        eventually("the post stands", || (addresses(&answered(container)?) == WEB).then_some(()));
    }
    let began = Instant::now();
    holder.kill().unwrap();
    let killed: Vec<Duration> = containers
        .iter()
        .map(|container| {
            eventually("Docker is asked", || (answered(container)? == dockers_answer(&web, "Docker")).then(|| began.elapsed()))
        })
        .collect();
    let last = killed.into_iter().max().unwrap();
    println!("Docker is asked again in all of 100 containers {last:?} after the kill");
    // one after the other they would take 1.5 s
    assert!(last < Duration::from_secs(1), "{last:?}");
    holder.wait().unwrap();
}

#[test]
fn a_container_has_port_53_for_a_server_of_its_own() {
    let world = World::new();
    let container = world.container("c");
    container.lead_to("iptables", &Docker::start(&container, "Docker", false));
    world.keep(&[(&container, blue())]);
    container.within(|| {
        let (own, _listener) = (UdpSocket::bind("0.0.0.0:53").unwrap(), TcpListener::bind("0.0.0.0:53").unwrap());
        let asker = UdpSocket::bind("127.0.0.1:0").unwrap();
        asker.connect("127.0.0.1:53").unwrap();
        asker.send(b"own").unwrap();
        let (length, from) = own.recv_from(&mut [0; 16]).unwrap();
        assert_eq!((length, from), (3, asker.local_addr().unwrap()));
    });
    assert_eq!(addresses(&container.ask(&query(1, "web.", RecordType::A)).unwrap()), WEB);
}

#[test]
fn a_container_of_another_user_namespace_is_served_too() {
    let world = World::new();
    let path = world.directory.path().join("remapped");
    std::fs::write(&path, "").unwrap();
    let mut holder = Command::new("unshare").args(["--user", "--map-root-user", "--net", "sleep", "60"]).spawn().unwrap();
    let namespace = format!("/proc/{}/ns/net", holder.id());
    let own = std::fs::read_link("/proc/self/ns/net").unwrap();
    eventually("it is in its namespace", || (std::fs::read_link(&namespace).ok()? != own).then_some(()));
    run(&format!("mount --bind {namespace} {}", path.display()));
    let container = Container::at(path);
    container.within(|| run("ip link set lo up"));
    container.lead_to("iptables", &Docker::start(&container, "Docker", false));
    world.keep(&[(&container, blue())]);
    assert_eq!(addresses(&container.ask(&query(1, "web.", RecordType::A)).unwrap()), WEB);
    holder.kill().unwrap();
    holder.wait().unwrap();
}

#[test]
fn a_table_of_somebody_elses_by_our_name_is_left_alone_and_told() {
    let world = World::new();
    let container = world.container("c");
    container.within(|| run("nft add table ip rsnet-names"));
    let _context = world.runtime.enter();
    world.dns.keep(&[(container.path.clone(), vec![blue()])].into());
    let failing = Posts { standing: 0, failing: 1, unsupported: false };
    eventually("it is told", || (world.dns.posts() == failing).then_some(()));
    assert_eq!(container.within(|| run("nft list ruleset")).trim(), "table ip rsnet-names {\n}");
    container.within(|| run("nft delete table ip rsnet-names"));
    world.keep(&[(&container, blue())]);
}

#[test]
fn a_taken_port_is_no_hindrance() {
    let world = World::new();
    let container = world.container("c");
    container.lead_to("iptables", &Docker::start(&container, "Docker", false));
    let _taken = container.within(|| UdpSocket::bind("0.0.0.0:65353").unwrap());
    world.keep(&[(&container, blue())]);
    assert_eq!(addresses(&container.ask(&query(1, "web.", RecordType::A)).unwrap()), WEB);
}

#[test]
fn a_silent_docker_holds_up_nobody_whose_name_is_known_however_many_wait() {
    let world = World::new();
    let container = world.container("c");
    let docker = Docker::start(&container, "", true);
    container.lead_to("iptables", &docker);
    world.keep(&[(&container, blue())]);
    container.within(|| {
        let flood = UdpSocket::bind("0.0.0.0:0").unwrap();
        flood.connect(RESOLVER).unwrap();
        for id in 0..2_000 {
            flood.send(&query(id, "nobody.", RecordType::A)).unwrap();
            if id % 50 == 0 {
                let web = query(id, "web.", RecordType::A);
                assert_eq!(addresses(&ask_here(&web, Duration::from_secs(2)).unwrap()), WEB);
            }
        }
    });
    eventually("as many are passed on as may wait", || (docker.asked.lock().unwrap().len() == 256).then_some(()));
}

#[test]
fn many_threads_are_answered_at_once_each_its_own_question() {
    let world = World::new();
    let container = world.container("c");
    container.lead_to("iptables", &Docker::start(&container, "Docker", false));
    world.keep(&[(&container, blue())]);
    container.within(|| {
        thread::scope(|scope| {
            for n in 0..16 {
                scope.spawn(move || {
                    for id in 0..50 {
                        let (web, other) = (query(id, "web.", RecordType::A), query(id, &format!("n{n}."), RecordType::A));
                        assert_eq!(addresses(&ask_here(&web, Duration::from_secs(5)).unwrap()), WEB);
                        assert_eq!(ask_here(&other, Duration::from_secs(5)).unwrap(), dockers_answer(&other, "Docker"));
                    }
                });
            }
        });
    });
}

#[test]
fn a_docker_that_is_gone_is_said_at_once_and_one_that_is_elsewhere_is_found() {
    let world = World::new();
    let container = world.container("c");
    let first = Docker::start(&container, "first", false);
    container.lead_to("iptables", &first);
    world.keep(&[(&container, blue())]);
    let other = query(1, "other.", RecordType::A);
    assert_eq!(container.ask(&other).unwrap(), dockers_answer(&other, "first"));
    first.stop(&container);
    let began = Instant::now();
    assert_eq!(code(&container.ask(&other).unwrap()), ResponseCode::ServFail);
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    // the engine was restarted: another port, and the rules for it
    container.lead_to("iptables", &Docker::start(&container, "second", false));
    assert_eq!(container.ask(&other).unwrap(), dockers_answer(&other, "second"));
}

#[test]
fn a_sandbox_that_goes_is_let_go() {
    let world = World::new();
    let container = world.container("c");
    container.lead_to("iptables", &Docker::start(&world.container("elsewhere"), "", false));
    world.keep(&[(&container, blue())]);
    run(&format!("ip link add outer type veth peer name inner netns {}", container.path.display()));
    let path = container.unmount();
    assert!(run("ip -br link").contains("outer"), "its sockets hold it");
    let _context = world.runtime.enter();
    world.dns.keep(&[(path, vec![blue()])].into());
    eventually("it is gone, and its link", || (!run("ip -br link").contains("outer")).then_some(()));
    assert_eq!(world.dns.posts(), Posts { standing: 0, failing: 0, unsupported: false });
}

#[test]
fn who_keeps_to_one_socket_is_answered_by_the_process_after_us() {
    let world = World::new();
    let container = world.container("c");
    container.lead_to("iptables", &Docker::start(&container, "Docker", false));
    world.keep(&[(&container, blue())]);
    let (web, patience) = (query(1, "web.", RecordType::A), Duration::from_secs(5));
    let socket = container.within(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.connect(RESOLVER).unwrap();
        socket
    });
    assert_eq!(addresses(&ask_by(&socket, &web, patience).unwrap()), WEB);
    world.runtime.block_on(world.dns.close());
    world.keep(&[(&container, blue())]);
    assert_eq!(addresses(&ask_by(&socket, &web, patience).unwrap()), WEB);
}

/// How long a question takes, in the middle of many.
fn median(container: &Container, query: &[u8]) -> Duration {
    container.within(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.connect(RESOLVER).unwrap();
        let mut took: Vec<Duration> = (0..2_000)
            .map(|_| {
                let began = Instant::now();
                ask_by(&socket, query, Duration::from_secs(5)).unwrap();
                began.elapsed()
            })
            .collect();
        took.sort();
        took[took.len() / 2]
    })
}

/// Kilobytes of this process that are in memory, and its open descriptors.
fn held() -> (usize, usize) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    (line.split_whitespace().nth(1).unwrap().parse().unwrap(), std::fs::read_dir("/proc/self/fd").unwrap().count())
}

#[test]
fn a_post_costs_little() {
    let world = World::new();
    let containers: Vec<Container> = (0..200).map(|n| world.container(&format!("c{n}"))).collect();
    let container = &containers[0];
    container.lead_to("iptables", &Docker::start(container, "Docker", false));
    let other = query(1, "other.", RecordType::A);
    let before = median(container, &other);
    let (memory, descriptors) = held();
    let began = Instant::now();
    world.keep(&containers.iter().map(|container| (container, blue())).collect::<Vec<_>>());
    let took = began.elapsed();
    let (memory, descriptors) = (held().0.saturating_sub(memory), held().1 - descriptors);
    let (after, known) = (median(container, &other), median(container, &query(1, "web.", RecordType::A)));
    println!("Docker answers in {before:?}, past a post in {after:?}; the post itself in {known:?}");
    let began = Instant::now();
    world.runtime.block_on(world.dns.close());
    let closed = began.elapsed();
    println!("200 posts: made in {took:?}, taken down in {closed:?}, {descriptors} descriptors, {memory} kB");
    // one after the other they would take 3 s
    assert!(closed < Duration::from_secs(2), "{closed:?}");
    assert!(after < before + Duration::from_millis(5), "{before:?} {after:?}");
    assert!(descriptors <= 200 * 3 && memory < 200 * 100, "{descriptors} {memory}");
}

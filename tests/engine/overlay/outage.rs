//! The store fails in one way or another: hosts and containers go on, and when it is back all are in step again at once.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::size::size;
use super::truth::wrong;
use super::witness::look;
use super::{Cluster, Consul, NETWORK};
use crate::flow::{self, Flow};
use crate::lab::{Engine, PATIENCE, wait_until};
use crate::proxy::{Fault, Proxy};
use crate::traffic::{addresses, ask, icmp, reaches_all, run};

/// Of the store's return, until all know what happens.
const IN_STEP: Duration = Duration::from_secs(5);
/// Where the slow one listens, and how slow it is.
const PROXY: u16 = 9500;
const SLOW: Duration = Duration::from_secs(2);

/// A network of the first two hosts with a container each. The third host is not part of it yet.
fn begin(cluster: &Cluster, flags: &str) {
    cluster.create_on(&[0, 1], "--subnet 10.50.0.0/16 blue");
    for n in [0, 1] {
        run(&cluster.hosts[n], &format!("c{}", n + 1), &format!("--network blue {flags}"));
    }
}

/// Questions between the two containers all the while.
fn flows(cluster: &Cluster) -> Vec<Flow> {
    super::flows(cluster, &[vec![], addresses(&cluster.hosts[1], "c2", "blue")])
}

/// Starts and stops containers on both hosts, each asked once from the other host as soon as it runs.
fn lives(cluster: &Cluster, count: usize) {
    for turn in 0..count {
        let (host, name) = (&cluster.hosts[turn % 2], format!("more{turn}"));
        run(host, &name, "--network blue");
        let own = addresses(host, &name, "blue")[0];
        assert!(ask(cluster.place(1 - turn % 2), &[icmp(own)])[0].seen().is_some(), "{name} of {} is reached at once", host.name);
        host.docker(&format!("rm -f {name}")).ok();
    }
}

/// The third host comes into the network and all hosts' rows lead to each other, in time; its container is reached; it leaves.
fn in_step(cluster: &Cluster, what: &str) {
    let (began, host) = (Instant::now(), &cluster.hosts[2]);
    wait_until("the third host to be in the network", PATIENCE, || {
        let seen = host.docker(&format!("network create {NETWORK} --subnet 10.50.0.0/16 blue"));
        if seen.succeeded() { Ok(()) } else { Err(seen.to_string()) }
    });
    let joined = began.elapsed();
    wait_until("all hosts to know each other", PATIENCE, || {
        let look = look(&cluster.hosts);
        let (known, wrong) = (look.after[2].len(), wrong(&look));
        if known == 1 && wrong.is_empty() { Ok(()) } else { Err(format!("{look:?}")) }
    });
    let took = began.elapsed();
    println!("{what}: a third host has joined {joined:.1?} after, all know it {took:.1?} after");
    assert!(took < IN_STEP, "{what}: {took:?}");
    run(host, "c3", "--network blue");
    reaches_all(cluster.place(0), &[icmp(addresses(host, "c3", "blue")[0])]);
    reaches_all(cluster.place(2), &[icmp(addresses(&cluster.hosts[1], "c2", "blue")[0])]);
    host.docker("rm -f c3").ok();
    host.docker("network rm blue").ok();
}

pub fn an_outage_of_consul_is_not_noticed_and_over_at_once(engine: Engine) {
    let mut cluster = Cluster::new(engine, 3, "");
    begin(&cluster, "");
    let flows = flows(&cluster);
    let (seconds, count) = size().without_consul;
    let began = Instant::now();
    cluster.consul.kill();
    let rounds = 5;
    for round in 1..=rounds {
        lives(&cluster, count / rounds);
        let due = Duration::from_secs(seconds) * u32::try_from(round).expect("few") / u32::try_from(rounds).expect("few");
        std::thread::sleep(due.saturating_sub(began.elapsed()));
    }
    println!("{count} containers in {:.0?} without Consul", began.elapsed());
    cluster.consul.start_again();
    in_step(&cluster, "Consul is back");
    flows.into_iter().for_each(Flow::none_missing);
}

pub fn a_slow_consul_holds_up_nobody(engine: Engine) {
    let cluster = Cluster::new(engine, 3, "");
    let proxy = flow::Place::host(&cluster.consul.machine).spawn(|| Proxy::start_at(&format!("0.0.0.0:{PROXY}"))).join().expect("a proxy");
    for host in &cluster.hosts {
        host.stop_rsnet();
        cluster.start_rsnet(host, &format!("RSNET_STORE=consul://{}:{PROXY}/rsnet", cluster.consul.machine.ipv4()));
    }
    begin(&cluster, "");
    let flows = flows(&cluster);
    proxy.does(Fault::Slow(SLOW));
    // the lease is 30 s
    let until = Instant::now() + Duration::from_secs(size().slow);
    while Instant::now() < until {
        lives(&cluster, 2);
    }
    cluster.hosts[0].sh("rsnet hosts").says("h2");
    assert!(!cluster.hosts[0].sh("rsnet hosts").stdout.contains("gone"), "{}", cluster.hosts[0].sh("rsnet hosts"));
    proxy.does(Fault::None);
    std::thread::sleep(SLOW); // what was asked before is still slow
    in_step(&cluster, "Consul is fast again");
    flows.into_iter().for_each(Flow::none_missing);
}

pub fn the_loss_of_consuls_leader_is_not_noticed(engine: Engine) {
    let mut cluster = Cluster::on_three_servers(engine, 3);
    begin(&cluster, "");
    let flows = flows(&cluster);
    let leader = leader(&mut cluster);
    cluster.servers[leader].kill();
    lives(&cluster, 4);
    in_step(&cluster, "a leader is lost");
    cluster.servers[leader].start();
    flows.into_iter().for_each(Flow::none_missing);
}

/// The one of the other servers that leads. If it is the one that the hosts ask, that is no question of leaders: it is started again.
fn leader(cluster: &mut Cluster) -> usize {
    wait_until("another server to lead", PATIENCE, || {
        let listed = cluster.consul.sh("operator raft list-peers").stdout;
        let leader = listed.lines().find(|line| line.contains("leader")).map(str::to_owned).ok_or_else(|| listed.clone())?;
        let at = cluster.servers.iter().position(|server: &Consul| leader.contains(&format!("{}:8300", server.machine.ipv4())));
        if at.is_none() {
            cluster.consul.kill();
            cluster.consul.start_again();
        }
        at.ok_or(listed)
    })
}

pub fn a_consul_that_comes_up_after_everything_else_finds_all_at_work(engine: Engine) {
    let mut cluster = Cluster::new(engine, 3, "");
    begin(&cluster, "--restart always");
    cluster.consul.kill();
    let settings = cluster.settings();
    for host in &mut cluster.hosts {
        host.reboot();
        host.start_rsnet_with(&settings);
        host.start_dockerd();
    }
    for (n, host) in cluster.hosts[..2].iter().enumerate() {
        wait_until("the container to run again", PATIENCE, || {
            let seen = host.docker(&format!("inspect -f {{{{.State.Running}}}} c{}", n + 1));
            if seen.stdout.contains("true") { Ok(()) } else { Err(seen.to_string()) }
        });
    }
    let to: Vec<IpAddr> = addresses(&cluster.hosts[1], "c2", "blue");
    assert!(ask(cluster.place(0), &[icmp(to[0])])[0].seen().is_some(), "without Consul, after a reboot of both");
    let flows = flows(&cluster);
    lives(&cluster, 4);
    cluster.consul.start_again();
    in_step(&cluster, "Consul is there");
    flows.into_iter().for_each(Flow::none_missing);
}

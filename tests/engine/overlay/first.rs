//! A container's first packets.

use std::net::IpAddr;

use super::size::size;
use super::{Cluster, ways};
use crate::lab::{Engine, Host, PATIENCE, wait_until};
use crate::traffic::{addresses, ask, icmp};

/// All keys with their versions.
fn keys(cluster: &Cluster) -> String {
    cluster.consul.sh("kv get -recurse -detailed rsnet").ok().to_owned()
}

/// Starts a container whose first deed is to ask every standing one once, and is itself asked by all others as soon as it runs. What was
/// not answered.
fn first_packets(cluster: &Cluster, number: usize, turn: usize, standing: &[IpAddr]) -> Vec<String> {
    let (host, name) = (&cluster.hosts[number], format!("w{turn}"));
    let all = standing.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    let deed = format!(
        "for a in {all}; do ping -c 1 -W 1 $a >/dev/null || {{ echo lost $a; ping -c 1 -W 3 $a; ip neigh; ip route; }}; done; echo asked; exec sleep 1000"
    );
    host.docker(&format!("run -d --init --name {name} --network blue box sh -c '{deed}'")).ok();
    let own = addresses(host, &name, "blue");
    let mut lost = Vec::new();
    for other in (0..cluster.hosts.len()).filter(|other| *other != number) {
        let answers = ask(cluster.place(other), &own.iter().map(|to| icmp(*to)).collect::<Vec<_>>());
        let missing = answers.iter().filter(|answer| answer.seen().is_none());
        lost.extend(missing.map(|_| format!("c{} to {name} of h{}", other + 1, number + 1)));
    }
    let said = said(host, &name);
    lost.extend(said.contains("lost").then(|| format!("{name} of h{}: {said}", number + 1)));
    host.docker(&format!("rm -f {name}")).ok();
    lost
}

fn said(host: &Host, name: &str) -> String {
    wait_until(&format!("{name} to have asked"), PATIENCE, || {
        let seen = host.docker(&format!("logs {name}")).stdout;
        if seen.contains("asked") { Ok(seen) } else { Err(seen) }
    })
}

pub fn first_packets_arrive_and_nothing_is_written_for_a_container(engine: Engine) {
    let cluster = Cluster::new(engine, 3, "");
    let way = ways(engine).last().expect("one at least");
    cluster.create(&format!("--subnet 10.50.0.0/16 -o attach={way} blue"));
    let standing: Vec<IpAddr> = cluster.run("blue", "").into_iter().flatten().collect();
    for to in &standing {
        (0..3).for_each(|n| crate::traffic::reaches_all(cluster.place(n), &[icmp(*to)]));
    }
    let before = keys(&cluster);
    let starts = size().starts.div_ceil(3);
    let lives = &|number: usize| (0..starts).flat_map(|turn| first_packets(&cluster, number, turn, &standing)).collect::<Vec<_>>();
    let lost: Vec<String> = std::thread::scope(|scope| {
        let lives: Vec<_> = (0..3).map(|number| scope.spawn(move || lives(number))).collect();
        lives.into_iter().flat_map(|life| life.join().expect("life goes on")).collect()
    });
    println!("standing: {standing:?}; {} starts with attach={way}, {} first packets, {} lost", 3 * starts, 3 * starts * 5, lost.len());
    lost.iter().for_each(|lost| println!("{lost}"));
    assert!(lost.is_empty(), "{lost:?}");
    let now = keys(&cluster);
    assert_eq!(now, before, "{}", crate::standing::difference(&before, &now));
}

pub fn each_of_many_hosts_reaches_each_other_at_once(engine: Engine) {
    let hosts = size().hosts;
    let cluster = Cluster::new(engine, hosts, "");
    let began = std::time::Instant::now();
    cluster.create("--subnet 10.50.0.0/16 blue");
    let all: Vec<IpAddr> = cluster.run("blue", "").into_iter().flatten().collect();
    println!("{hosts} hosts with a network and a container each after {:.1?}", began.elapsed());
    let questions: Vec<_> = all.iter().map(|to| icmp(*to)).collect();
    let lost = |n: usize| ask(cluster.place(n), &questions).iter().filter(|answer| answer.seen().is_none()).count();
    assert_eq!((0..hosts).map(lost).sum::<usize>(), 0, "of {} first packets", hosts * hosts);
}

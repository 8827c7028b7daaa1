//! By which way packets get to another host: in a tunnel, as they are, or as they are where that is possible.

use super::{Cluster, NETWORK, flows, ways};
use crate::flow::Flow;
use crate::lab::{Engine, Host, PATIENCE, wait_until};
use crate::traffic::{Place, ask, reaches, serve, tcp, udp};

/// Counts what comes in: in tunnels, and from containers' addresses as they are. At the link itself, before the fast way takes it.
fn count(host: &Host) {
    host.sh("nft 'add table netdev seen
         add chain netdev seen c { type filter hook ingress device eth0 priority -400; }
         add rule netdev seen c udp dport 4789 counter comment tunneled
         add rule netdev seen c ip saddr 10.50.0.0/16 counter comment plain'")
        .ok();
}

/// Whether there came anything of that kind.
fn came(host: &Host, kind: &str) -> bool {
    let seen = host.sh(&format!("nft list chain netdev seen c | grep {kind}"));
    !seen.ok().contains("packets 0")
}

pub fn packets_pass_as_they_are_between_hosts_of_one_segment(engine: Engine) {
    for way in ways(engine) {
        let cluster = Cluster::new(engine, 2, "");
        cluster.hosts[0]
            .docker(&format!("network create {NETWORK} -o transport=direct --ipv6 --subnet 10.50.0.0/16 --subnet fd50::/64 blue"))
            .fails_with("use transport=auto");
        cluster.create(&format!("-o transport=direct -o attach={way} --subnet 10.50.0.0/16 blue"));
        let all = cluster.run("blue", "");
        let _servers = [serve(&cluster.hosts[0], "c1", &[7]), serve(&cluster.hosts[1], "c2", &[7])];
        cluster.hosts.iter().for_each(count);
        for (from, to) in [(0, 1), (1, 0)] {
            for question in [tcp(all[to][0], 7), udp(all[to][0], 7)] {
                assert_eq!(ask(cluster.place(from), &[question])[0].seen(), Some(all[from][0]), "attach={way}: {question}");
            }
            let home = reaches(Place::Machine(&cluster.hosts[from]), tcp(all[to][0], 7));
            cluster.hosts[from].sh("ip -4 -o addr show | grep rsx-").says(&home.to_string());
        }
        cluster.place(0).sh("ip link").says("mtu 1500 ");
        crate::flow::Place::container(&cluster.hosts[0], "c1").echo(9);
        let script = format!("head -c 65536 /dev/zero | socat -t5 - TCP:{}:9,connect-timeout=5 | wc -c", all[0][0]);
        cluster.place(1).sh(&script).says("65536");
        for host in &cluster.hosts {
            assert!(came(host, "plain") && !came(host, "tunneled"), "{}", host.sh("nft list chain netdev seen c"));
        }
    }
}

/// The second host's address leaves the segment, as far as its prefix says, and comes back. The first never changes its way to it.
pub fn a_host_takes_another_way_to_its_peers_without_a_break(engine: Engine) {
    let cluster = Cluster::new(engine, 2, "");
    cluster.create("-o transport=auto --ipv6 --subnet 10.50.0.0/16 --subnet fd50::/64 blue");
    let all = cluster.run("blue", "");
    let [h1, h2] = &cluster.hosts[..] else { unreachable!() };
    let (own, peer) = (h2.ipv4(), h1.ipv4());
    let by = |way: &str| {
        wait_until(&format!("h2 to reach h1 by {way}"), PATIENCE, || {
            let seen = h2.sh("ip -4 route show proto 195 | grep /26");
            if seen.stdout.contains(way) { Ok(()) } else { Err(seen.to_string()) }
        });
    };
    by(&format!("via {peer} dev eth0"));
    h2.sh("ip -6 route show proto 195").says("dev rsx-");
    cluster.place(0).sh("ip link show eth0").says("mtu 1450 ");
    let flows = flows(&cluster, &all);
    for _ in 0..3 {
        h2.sh(&format!("ip addr add {own}/32 dev eth0; ip route add 10.77.0.0/24 dev eth0 metric 9; ip addr del {own}/24 dev eth0")).ok();
        by("dev rsx-");
        h1.sh("ip -4 route show proto 195").says(&format!("via {own} dev eth0"));
        h2.sh(&format!("ip addr add {own}/24 dev eth0; ip addr del {own}/32 dev eth0; ip route del 10.77.0.0/24 dev eth0 metric 9")).ok();
        by(&format!("via {peer} dev eth0"));
    }
    flows.into_iter().for_each(Flow::none_missing);
}

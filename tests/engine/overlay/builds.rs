//! Two builds of rsnet in one cluster, each in the other's place. By hand, before a release, with the one before it:
//! `OTHER_RSNET=/tmp/before cargo nextest run --run-ignored only -E 'test(hosts_of_two_builds)'`, where the directory has its `rsnet`.

use std::net::IpAddr;
use std::path::Path;

use serde_json::Value;

use super::{Cluster, spec};
use crate::lab::{Engine, Host, Lab, PATIENCE, wait_until};
use crate::traffic::{addresses, icmp, reaches_all, run};
use nix::sys::signal::Signal;

/// Which of the two a host runs.
#[derive(Clone, Copy)]
enum Build {
    This,
    Other,
}

impl Build {
    fn path(self, other: &str) -> String {
        let before = if let Build::Other = self { other } else { "/usr/local/sbin" };
        format!("PATH={before}:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin")
    }
}

/// 1,000 questions a second each way for as long as something is done.
fn loses_none(cluster: &Cluster, all: &[Vec<IpAddr>], during: &str, what: impl FnOnce()) {
    let ping = |(n, to): (usize, usize)| {
        let name = ["c1", "c2"][n];
        let log = format!("ping-{name}-{}-{}", during.replace(' ', "-"), std::process::id());
        cluster.hosts[n].spawn_in_container(name, &log, &format!("ping -q -i 0.001 {}", all[to][0]))
    };
    let pings = [(0, 1), (1, 0)].map(ping);
    what();
    for ping in pings {
        ping.signal(Signal::SIGINT);
        let sum = wait_until("ping to sum up", PATIENCE, || {
            let printed = ping.printed();
            printed.lines().find(|line| line.contains("packet loss")).map(str::to_owned).ok_or(printed)
        });
        println!("{during}: {sum}");
        assert!(sum.contains(" 0% packet loss"), "{during}: {sum}");
    }
}

/// Both ways, by address and by name.
fn talk(cluster: &Cluster, all: &[Vec<IpAddr>], when: &str) {
    for (from, to) in [(0, 1), (1, 0)] {
        reaches_all(cluster.place(from), &all[to].iter().map(|to| icmp(*to)).collect::<Vec<_>>());
        let (host, own, other) = (&cluster.hosts[from], ["c1", "c2"][from], ["c1", "c2"][to]);
        wait_until(&format!("{own} to reach {other} by name, {when}"), PATIENCE, || {
            let seen = host.docker(&format!("exec {own} ping -c 1 -W 2 {other}"));
            if seen.succeeded() { Ok(()) } else { Err(seen.to_string()) }
        });
    }
}

/// An address of the other host's block, for a user who names it, and what both then tell of who has what.
fn borrow(cluster: &Cluster, all: &[Vec<IpAddr>], last: u8) {
    for (n, to) in [(0, 1), (1, 0)] {
        let (host, IpAddr::V4(of)) = (&cluster.hosts[n], all[to][0]) else { unreachable!() };
        let [a, b, c, d] = of.octets();
        let address = format!("{a}.{b}.{c}.{}", d / 64 * 64 + last);
        host.docker(&format!("run -d --init --name borrower --network blue --ip {address} box sleep 1000")).ok();
        host.docker(&format!("exec borrower ping -c 3 -i 0.2 -W 2 {of}")).ok();
        for host in &cluster.hosts {
            let told = host.sh("rsnet addresses blue --json");
            let _: Value = serde_json::from_str(told.ok()).expect("JSON");
        }
        host.docker("rm -f borrower").ok();
    }
}

/// In networks that either made, containers meet; addresses are lent; Consul may lose all; and each restarts as the other without a packet lost.
#[test]
#[ignore = "needs another build of rsnet, in a directory that OTHER_RSNET names"]
fn hosts_of_two_builds_share_networks_and_take_each_others_place() {
    let engine = Engine::V28_5;
    let other = std::env::var("OTHER_RSNET").expect("OTHER_RSNET names a directory with another build of rsnet");
    let lab = Lab::new();
    let segment = lab.segment(["10.77.0.0/24", "fd77::/64"]);
    let consul = lab.station("consul", &[&segment]);
    let hosts: Vec<Host> = (1..=2).map(|n| lab.make(&spec(n, engine).on(&[&segment]).showing(Path::new(&other)))).collect();
    let builds = [Build::Other, Build::This];
    let cluster = Cluster::of(lab, consul, hosts, |host| builds[usize::from(host.name == "h2")].path(&other));
    let [h1, h2] = &cluster.hosts[..] else { unreachable!() };
    cluster.create("--ipv6 --subnet 10.50.0.0/16 --subnet fd50::/64 blue");
    cluster.create_on(&[1, 0], "--subnet 10.60.0.0/16 red");
    let all = cluster.run("blue", "");
    talk(&cluster, &all, "at first");
    for (host, name) in [(h1, "r1"), (h2, "r2")] {
        run(host, name, "--network red");
    }
    reaches_all(crate::traffic::Place::Container(h1, "r1"), &[icmp(addresses(h2, "r2", "red")[0])]);
    borrow(&cluster, &all, 40);
    for (host, builds) in [(h1, [Build::This, Build::Other]), (h2, [Build::Other, Build::This])] {
        for build in builds {
            let during = format!("{} becomes {}", host.name, if let Build::This = build { "this build" } else { "the other" });
            loses_none(&cluster, &all, &during, || {
                host.stop_rsnet();
                cluster.start_rsnet(host, &build.path(&other));
                talk(&cluster, &all, &during);
            });
        }
    }
    loses_none(&cluster, &all, "Consul lost all", || {
        cluster.consul.sh("kv delete -recurse rsnet/").ok();
        wait_until("both hosts' records to be there again", PATIENCE, || {
            let keys = cluster.consul.sh("kv get -keys -separator= rsnet/cluster/").stdout;
            let all = ["alive/h1", "alive/h2", "networks/all"].iter().all(|key| keys.contains(key));
            // some builds ask a host for nothing until they have heard that it is back
            let gone = cluster.hosts.iter().any(|host| host.sh("rsnet hosts").stdout.contains("gone"));
            if all && !gone && keys.matches("/block/").count() >= 6 { Ok(()) } else { Err(keys) }
        });
        borrow(&cluster, &all, 41);
        talk(&cluster, &all, "after Consul lost all");
    });
    // each forgets the other
    for (host, gone, build) in [(h2, h1, Build::Other), (h1, h2, Build::This)] {
        gone.kill_rsnet();
        cluster.consul.sh(&format!("kv delete rsnet/cluster/alive/{}", gone.name)).ok();
        wait_until("the host to be forgotten", PATIENCE, || {
            let seen = host.sh(&format!("rsnet host forget {}", gone.name));
            if seen.succeeded() { Ok(()) } else { Err(seen.to_string()) }
        });
        cluster.start_rsnet(gone, &build.path(&other));
        talk(&cluster, &all, "after it was forgotten and came back");
    }
}

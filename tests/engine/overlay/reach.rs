//! Who reaches whom in a network of several hosts, and whom the other side sees.

use std::net::IpAddr;

use super::{Cluster, ways};
use crate::compose::{compose, install};
use crate::lab::{Engine, Host, PATIENCE, asks_for, wait_until};
use crate::traffic::{Place, addresses, ask, icmp, reaches, reaches_all, reaches_none, run, serve, serve_at, tcp, udp};

const BLUE: &str = "--ipv6 --subnet 10.50.0.0/16 --subnet fd50::/64";

/// Containers with servers on port 7, on each host.
pub fn containers_on_three_hosts_reach_each_other(engine: Engine) {
    for way in ways(engine) {
        let cluster = Cluster::new(engine, 3, "");
        cluster.create(&format!("{BLUE} -o attach={way} blue"));
        let all = cluster.run("blue", "");
        let _servers: Vec<_> = (0..3).map(|n| serve(&cluster.hosts[n], &format!("c{}", n + 1), &[7])).collect();
        for (n, mine) in all.iter().enumerate() {
            for to in all.iter().flatten() {
                let own = *mine.iter().find(|own| own.is_ipv4() == to.is_ipv4()).expect("both families");
                for question in [tcp(*to, 7), udp(*to, 7)] {
                    // once, and no second time: nothing has to be learned first
                    let seen = ask(cluster.place(n), &[question])[0].seen();
                    assert_eq!(seen, Some(own), "c{} with attach={way}: {question}", n + 1);
                }
            }
        }
    }
}

/// The host's own address of a family on the network.
pub fn home(cluster: &Cluster, n: usize, like: IpAddr) -> IpAddr {
    let family = if like.is_ipv4() { "-4" } else { "-6" };
    let show = format!("ip {family} -o addr show scope global | awk '$2 ~ /^rsx-/ {{ sub(\"/.*\", \"\", $4); print $4 }}'");
    let shown = cluster.hosts[n].sh(&show);
    shown.ok().trim().parse().unwrap_or_else(|e| panic!("{e}: {shown}"))
}

pub fn hosts_and_containers_of_all_hosts_see_each_others_true_addresses(engine: Engine) {
    let cluster = Cluster::new(engine, 2, "");
    cluster.create(&format!("{BLUE} blue"));
    let all = cluster.run("blue", "");
    let _servers = [serve(&cluster.hosts[0], "c1", &[7]), serve_at(Place::Machine(&cluster.hosts[1]), &[9])];
    for to in all[0].iter().copied() {
        for n in [0, 1] {
            assert_eq!(reaches(Place::Machine(&cluster.hosts[n]), tcp(to, 7)), home(&cluster, n, to), "h{} to {to}", n + 1);
        }
        assert_eq!(reaches(cluster.place(0), tcp(home(&cluster, 1, to), 9)), to, "c1 to h2");
    }
}

pub fn the_way_out_is_the_hosts_and_published_ports_lead_in(engine: Engine) {
    for way in ways(engine) {
        let cluster = Cluster::new(engine, 2, "");
        cluster.create(&format!("{BLUE} -o attach={way} blue"));
        let all = cluster.run("blue", "-p 8080:7 -p 8080:7/udp");
        let station = &cluster.consul.machine;
        let _servers = [serve(&cluster.hosts[0], "c1", &[7]), serve_at(Place::Machine(station), &[9])];
        for (host, own) in cluster.hosts[0].addresses().into_iter().zip(station.addresses()) {
            assert_eq!(reaches(cluster.place(0), tcp(own, 9)), host, "c1 to the station is translated to its host");
            assert_eq!(reaches(Place::Machine(station), tcp(host, 8080)), own, "the station's address is kept");
            assert_eq!(reaches(Place::Machine(station), udp(host, 8080)), own);
            // the other host's container comes as its host, the container itself as nobody it could mistake for itself
            reaches_all(cluster.place(1), &[tcp(host, 8080), udp(host, 8080)]);
            reaches_all(cluster.place(0), &[tcp(host, 8080), udp(host, 8080)]);
        }
        reaches_all(Place::Machine(&cluster.hosts[0]), &[tcp([127, 0, 0, 1].into(), 8080)]);
        // nobody outside gets to a container's own address, although its host would forward
        for (to, by) in all[0].iter().zip(cluster.hosts[0].addresses()) {
            station.sh(&format!("ip route replace {to} via {by}")).ok();
            reaches_none(Place::Machine(station), &[tcp(*to, 7), udp(*to, 7), icmp(*to)]);
        }
    }
}

pub fn networks_are_walled_off_from_each_other_on_all_hosts(engine: Engine) {
    let cluster = Cluster::new(engine, 2, "");
    cluster.create(&format!("{BLUE} blue"));
    cluster.create("--internal --subnet 10.60.0.0/24 red");
    cluster.run("blue", "");
    let mut red = Vec::new();
    for host in &cluster.hosts {
        run(host, "red1", "--network red");
        red.extend(addresses(host, "red1", "red"));
        host.docker("network create -d rsnet --subnet 172.30.1.0/24 green").ok();
        run(host, "green1", "--network green --ip 172.30.1.10");
    }
    let _servers: Vec<_> = cluster.hosts.iter().flat_map(|host| [serve(host, "red1", &[7]), serve(host, "green1", &[7])]).collect();
    let green: IpAddr = [172, 30, 1, 10].into();
    let station = cluster.consul.machine.ipv4();
    for n in [0, 1] {
        let r = Place::Container(&cluster.hosts[n], "red1");
        reaches_all(r, &red.iter().flat_map(|to| [tcp(*to, 7), udp(*to, 7), icmp(*to)]).collect::<Vec<_>>());
        reaches_none(r, &[tcp(station, 8500), icmp(station), tcp(green, 7), icmp(green)]);
        reaches_none(cluster.place(n), &[tcp(red[0], 7), tcp(red[1], 7), udp(red[1], 7), icmp(red[0]), icmp(green), tcp(green, 7)]);
        reaches_none(Place::Container(&cluster.hosts[n], "green1"), &[tcp(red[0], 7), icmp(red[1])]);
    }
}

/// 64 KB each way, where the way between the hosts is narrower or wider than Ethernet's.
pub fn large_transfers_pass_whatever_the_underlays_mtu(engine: Engine) {
    for mtu in [1400, 9000] {
        let cluster = Cluster::prepared(engine, 2, "", |host| host.set_mtu(mtu));
        cluster.create("--subnet 10.50.0.0/16 blue");
        let all = cluster.run("blue", "");
        cluster.place(0).sh("ip link show eth0").says(&format!("mtu {} ", mtu - 50));
        crate::flow::Place::container(&cluster.hosts[0], "c1").echo(7);
        let script = format!("head -c 65536 /dev/zero | socat -t5 - TCP:{}:7,connect-timeout=5 | wc -c", all[0][0]);
        cluster.place(1).sh(&script).says("65536");
    }
}

pub fn the_compose_example_talks_across_three_hosts(engine: Engine) {
    let cluster = Cluster::new(engine, 3, "");
    let compose = |host: &Host, arguments: &str| compose(host, "overlay", arguments);
    for host in &cluster.hosts {
        install(host);
        compose(host, "up -d").ok();
    }
    for to in &cluster.hosts {
        let address = addresses(to, "overlay-web-1", "overlay_blue")[0];
        for from in &cluster.hosts {
            compose(from, &format!("exec -T web ping -c 1 -W 2 {address}")).ok();
            from.in_container("overlay-web-1", &asks_for("/", &format!("{address}:80"))).says(&address.to_string());
        }
        cluster.consul.machine.sh(&asks_for("/", &format!("{}:8080", to.ipv4()))).says(&address.to_string());
    }
    cluster.hosts.iter().for_each(|host| drop(compose(host, "down").ok().to_owned()));
}

/// The web server finds the database by its name, on the other host; nobody outside of the network sees the database.
pub fn the_web_server_of_one_host_finds_the_database_of_the_other(engine: Engine) {
    let cluster = Cluster::new(engine, 2, "");
    let compose = |host: &Host, arguments: &str| compose(host, "web-and-database", arguments);
    for (host, file) in cluster.hosts.iter().zip(["db.yaml", "web.yaml"]) {
        install(host);
        compose(host, &format!("-f {file} up -d")).ok();
    }
    let rows = asks_for("/cgi-bin/rows", &format!("{}:8080", cluster.hosts[1].ipv4()));
    wait_until("the database's rows", PATIENCE, || {
        let seen = cluster.consul.machine.sh(&rows);
        if seen.stdout.ends_with("42 rows\n") { Ok(()) } else { Err(seen.to_string()) }
    });
    let database = addresses(&cluster.hosts[0], "web-and-database-db-1", "web-and-database_shop")[0];
    cluster.consul.machine.sh(&format!("socat -T1 - TCP:{database}:5432,connect-timeout=1")).fails();
}

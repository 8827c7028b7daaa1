//! What others take away or alter, rsnet puts back within a second; what is not rsnet's it leaves alone.

use std::time::{Duration, Instant};

use crate::lab::{Engine, Host, Lab, PATIENCE, asks, wait_until};
use crate::standing::{bridge, difference, in_forward, inside, own, standing, veth};

const SECOND: Duration = Duration::from_secs(1);

/// One dual-stack network with a `client` and a `server` that publishes 8080, and on loopback only 8081.
fn two_containers(host: &Host) {
    host.docker("network create -d rsnet --ipv6 --subnet 172.30.1.0/24 --subnet fd30:1::/64 net").ok();
    host.docker("run -d --name client --network net box sleep 10000").ok();
    let serve = "sh -c 'echo hello >index.html; httpd -f -p 80'";
    host.docker(&format!("run -d --name server --network net --ip 172.30.1.80 -p 8080:80 -p 127.0.0.1:8081:80 box {serve}")).ok();
    wait_until("the server to answer its neighbour", PATIENCE, || answers(host.in_container("client", &ask("172.30.1.80:80"))));
}

fn answers(seen: crate::lab::Output) -> Result<(), String> {
    if seen.stdout.ends_with("hello\n") { Ok(()) } else { Err(seen.to_string()) }
}

/// A request by HTTP; `port` as in `10.0.0.1:80`.
fn ask(port: &str) -> String {
    asks("GET / HTTP/1.0", port)
}

/// Runs `damage` and expects all as before within a second, and what it takes to look.
#[track_caller]
fn comes_back(host: &Host, before: &str, look: fn(&Host) -> String, damage: &str) {
    let began = Instant::now();
    assert_eq!(look(host), before, "before `{damage}`");
    let a_look = began.elapsed();
    host.sh(damage).ok();
    let began = Instant::now();
    let whole = || {
        let now = look(host);
        if now == before { Ok(()) } else { Err(difference(before, &now)) }
    };
    wait_until(&format!("all to be back after `{damage}`"), SECOND + a_look, whole);
    println!("{:4} ms: {damage}", began.elapsed().as_millis());
}

pub fn what_is_deleted_or_altered_by_hand_is_back_within_a_second(engine: Engine) {
    damage(engine, "RSNET_ATTACH=engine");
}

pub fn what_is_deleted_by_hand_is_back_within_a_second_where_rsnet_made_the_links(engine: Engine) {
    damage(engine, "RSNET_ATTACH=direct");
}

/// Damage in chains of Docker's.
const AMONG_DOCKERS: &[&str] = &[
    "iptables -F DOCKER-USER",
    "iptables -D FORWARD 2",
    "iptables -D FORWARD -j DOCKER-USER; iptables -A FORWARD -j DOCKER-USER; iptables -I FORWARD -j DOCKER-USER",
];

fn damage(engine: Engine, settings: &str) {
    let lab = Lab::new();
    let lan = lab.segment(["10.77.0.0/24", "fd77::/64"]);
    let host = lab.host("h1", engine, &[&lan]);
    let station = lab.station("s1", &[&lan]);
    host.start_rsnet_with(settings);
    two_containers(&host);
    let among_dockers = if engine.uses_iptables() { AMONG_DOCKERS } else { &[] };
    host.sh("iptables -S FORWARD").says(if engine.uses_iptables() { "-P FORWARD DROP" } else { "-P FORWARD ACCEPT" });
    let (before, inside_before) = (standing(&host), inside(&host, "server"));
    let (br, rsv) = (bridge(&host), veth(&host, "server"));
    for damage in [
        format!("ip link del {br}"),
        format!("ip link set {br} down"),
        format!("ip link set {br} mtu 1400"),
        format!("ip link set {br} address 02:00:00:00:00:99"),
        format!("ip addr flush dev {br}"),
        format!("ip addr del 172.30.1.1/24 dev {br}"),
        format!("ip addr del fd30:1::1/64 dev {br}"),
        format!("ip route del local ::1 dev {br} table local proto 195"),
        format!("ip link set {rsv} nomaster"),
        format!("ip link set {rsv} down"),
        format!("ip link set {rsv} mtu 1300"),
        format!("bridge link set dev {rsv} isolated on"),
        format!("bridge link set dev {rsv} hairpin off"),
        format!("ip link del {rsv}"),
        format!("sysctl -q -w net.ipv4.conf.{br}.route_localnet=0"),
        format!("sysctl -q -w net.ipv6.conf.{br}.accept_ra=1"),
        format!("sysctl -q -w net.ipv6.conf.{br}.disable_ipv6=1"),
        "sysctl -q -w net.ipv4.ip_forward=0".to_string(),
        "sysctl -q -w net.ipv6.conf.all.forwarding=0".to_string(),
        "nft flush chain inet rsnet forward".to_string(),
        "nft insert rule inet rsnet forward drop".to_string(),
        "nft flush table inet rsnet".to_string(),
        "nft delete table inet rsnet".to_string(),
    ]
    .into_iter()
    .chain(among_dockers.iter().map(|damage| damage.to_string()))
    {
        comes_back(&host, &before, standing, &damage);
    }
    assert_eq!(inside(&host, "server"), inside_before, "the container's own end is as before");
    wait_until("the published port to answer", SECOND, || answers(station.sh(&ask(&format!("{}:8080", host.ipv4())))));
    wait_until("the port on loopback to answer", SECOND, || answers(host.sh(&ask("127.0.0.1:8081"))));
    host.in_container("client", &ask("172.30.1.80:80")).says("hello");
    comes_back(&host, &of_rsnet_alone(&host), of_rsnet_alone, "nft flush ruleset");
    restart_of_docker_is_followed(&host, &station, &before);
}

pub fn what_is_altered_by_hand_on_a_macvlan_network_is_back_within_a_second(engine: Engine) {
    for settings in ["RSNET_ATTACH=engine", "RSNET_ATTACH=direct"] {
        let lab = Lab::new();
        let lan = lab.segment(["10.77.0.0/24", "fd77::/64"]);
        let host = lab.host("h1", engine, &[&lan]);
        host.start_rsnet_with(settings);
        let net = "--ipv6 --subnet 10.77.0.0/24 --subnet fd77::/64 --ip-range 10.77.0.128/25 --gateway 10.77.0.254";
        host.docker(&format!("network create -d rsnet -o mode=macvlan -o parent=eth0 -o host_access=true {net} net")).ok();
        host.docker("run -d --stop-signal KILL --name one --network net --ip 10.77.0.130 --ip6 fd77::130 box sleep 10000").ok();
        wait_until("the host to reach the container", PATIENCE, || {
            let seen = host.sh("ping -c1 -W1 10.77.0.130 && ping -c1 -W1 fd77::130");
            if seen.succeeded() { Ok(()) } else { Err(seen.to_string()) }
        });
        let before = of_macvlan(&host);
        let rsh = host.sh("ls /sys/class/net | grep '^rsh-'").ok().to_owned();
        let sandbox = host.docker("inspect -f '{{.NetworkSettings.SandboxKey}}' one").ok().to_owned();
        let link = host.in_container("one", "ip -o link show type macvlan | cut -d: -f2 | cut -d@ -f1").ok().trim().to_owned();
        for damage in [
            format!("ip link del {rsh}"),
            format!("ip link set {rsh} down"),
            format!("ip link set {rsh} address 02:00:00:00:00:99"),
            format!("ip link set {rsh} type macvlan mode private"),
            format!("ip addr flush dev {rsh}"),
            format!("ip addr del 10.77.0.1/32 dev {rsh}"),
            format!("ip route del 10.77.0.130/32 dev {rsh} proto 195"),
            format!("ip route del fd77::130/128 dev {rsh} proto 195"),
            format!("sysctl -q -w net.ipv4.conf.{rsh}.arp_filter=0"),
            format!("nsenter --net={sandbox} ip link del {link}"),
            format!("nsenter --net={sandbox} ip link set {link} type macvlan mode private"),
        ] {
            comes_back(&host, &before, of_macvlan, &damage);
        }
        host.sh("ping -c1 -W2 10.77.0.130 && ping -c1 -W2 fd77::130").ok();
    }
}

/// What stands of a macvlan network, on the host and in its container.
fn of_macvlan(host: &Host) -> String {
    let link = "ip -d -o link show type macvlan | grep -o 'link/ether [^ ]*\\|mtu [0-9]*\\|mode [a-z]*' | grep -v DEFAULT; ip -o link show up | grep -c macvlan";
    let show = "ip -o addr show scope global | awk '{ print $2, $4 }'; ip route; ip -6 route | grep -v fe80 | cut -d' ' -f1-3";
    format!("{}{}", standing(host), host.in_container("one", &format!("{link}; {show}")).stdout)
}

/// Docker's bridges are in rsnet's table as long as Docker's chains name them.
fn of_rsnet_alone(host: &Host) -> String {
    own(host).lines().filter(|line| !line.contains("docker0")).map(|line| format!("{line}\n")).collect()
}

/// Docker makes its chains anew; rsnet's rules are behind them within a second, and the port answers the segment.
fn restart_of_docker_is_followed(host: &Host, station: &Host, before: &str) {
    host.stop_dockerd();
    host.start_dockerd();
    let rules = || {
        let now = in_forward(host);
        if before.contains(&now) { Ok(()) } else { Err(now) }
    };
    wait_until("rsnet's rules in FORWARD", SECOND, rules);
    host.docker("start client server").ok();
    wait_until("the published port to answer", PATIENCE, || answers(station.sh(&ask(&format!("{}:8080", host.ipv4())))));
}

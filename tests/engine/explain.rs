//! `rsnet explain`: faults that are seeded and healed one after the other, and what it says of each; and that it raises no false alarm.

use serde_json::Value;

use crate::lab::{Engine, Host, HostSpec, Lab, PATIENCE, wait_until};
use crate::overlay::Cluster;
use crate::traffic::{addresses, reaches_all, run, serve, tcp};

/// Something that goes wrong, and what should be said about it.
struct Fault<'a> {
    name: String,
    seed: Box<dyn Fn() + 'a>,
    heal: Box<dyn Fn() + 'a>,
    ask: String,
    /// The `about` of the first part of the way that is not fine, and words of it.
    about: &'static str,
    says: String,
}

/// By scripts on a host.
fn fault<'a>(host: &'a Host, seed: &str, heal: &str, ask: &str, about: &'static str, says: &str) -> Fault<'a> {
    let run = |script: &str| {
        let script = script.to_owned();
        Box::new(move || drop(host.sh(&script).ok().to_owned())) as Box<dyn Fn() + 'a>
    };
    made(seed, run(seed), run(heal), ask, about, says)
}

fn made<'a>(name: &str, seed: Box<dyn Fn() + 'a>, heal: Box<dyn Fn() + 'a>, ask: &str, about: &'static str, says: &str) -> Fault<'a> {
    Fault { name: name.to_owned(), seed, heal, ask: ask.to_owned(), about, says: says.to_owned() }
}

/// The part of the way that is broken, as `--json` tells it: its state, what it is about, and words. Else of all that is not fine the one with these words, since
/// what was mended before is told for some seconds; or the first.
fn not_fine(answer: &Value, words: &str) -> (String, String, String) {
    let text = |hop: &Value, of: &str| hop[of].as_str().unwrap_or_default().to_owned();
    let hops = answer["hops"].as_array().cloned().unwrap_or_default();
    let noted = || hops.iter().filter(|hop| hop["state"] != "ok");
    let broken = hops.iter().find(|hop| hop["state"] == "broken");
    let hop = broken.or_else(|| noted().find(|hop| text(hop, "says").contains(words))).or_else(|| noted().next());
    hop.map_or_else(Default::default, |hop| (text(hop, "state"), text(hop, "about"), text(hop, "says")))
}

/// Asks on `asker` while each fault is there; all that was not said as expected.
fn judge(asker: &Host, faults: &[Fault]) -> Vec<String> {
    faults.iter().filter_map(|fault| judge_one(asker, fault).err()).collect()
}

fn judge_one(asker: &Host, fault: &Fault) -> Result<(), String> {
    let Fault { name, seed, heal, ask, about, says } = fault;
    seed();
    let began = std::time::Instant::now();
    let seen = asker.sh(&format!("rsnet explain {ask} --json"));
    let took = began.elapsed();
    heal();
    let answer: Value = serde_json::from_str(&seen.stdout).map_err(|error| format!("{name}: {error}: {seen}"))?;
    let (state, is, words) = not_fine(&answer, says);
    println!("{:5} ms  {ask}: {state} {is}: {words}    ({name})", took.as_millis());
    // what rsnet has mended by then, or others go round, is told and breaks nothing
    let code = if state == "broken" { 3 } else { 0 };
    let told = is == *about && words.contains(says.as_str()) && seen.code == code;
    if told { Ok(()) } else { Err(format!("after `{name}`, expected {about}: {says}\n{}", shown(&answer))) }
}

fn shown(answer: &Value) -> String {
    let hops = answer["hops"].as_array().cloned().unwrap_or_default();
    hops.iter().map(|hop| format!("{} {} {}: {}\n", hop["state"], hop["place"], hop["about"], hop["says"])).collect()
}

fn healthy(asker: &Host, questions: &[String]) -> Vec<String> {
    let alarm = |question: &String| {
        let began = std::time::Instant::now();
        let seen = asker.sh(&format!("rsnet explain {question}"));
        println!("=== {question} ({} ms)\n{seen}\n", began.elapsed().as_millis());
        let fine = seen.code == 0 && !["NO  ", "?   ", "note"].iter().any(|mark| seen.stdout.lines().any(|line| line.starts_with(mark)));
        (!fine).then(|| format!("a false alarm: {seen}"))
    };
    questions.iter().filter_map(alarm).collect()
}

pub fn faults_on_one_host_are_named_and_healthy_pairs_raise_no_alarm(engine: Engine) {
    let lab = Lab::new();
    let lan = lab.segment(["10.77.0.0/24", "fd77::/64"]);
    let host = lab.host("h1", engine, &[&lan]);
    let station = lab.station("s1", &[&lan]);
    let _server = station.spawn("http", "busybox httpd -f -p 80");
    host.start_rsnet();
    two_of_each(&host);
    let _servers = ["b2", "o2"].map(|name| serve(&host, name, &[80]));
    let (h, s) = (host.ipv4(), station.ipv4());
    let at = |name: &str, network: &str| addresses(&host, name, network)[0];
    let fine = [
        "b1 b2".to_owned(),
        "b1 b2 80/tcp".to_owned(),
        "b1 b2 80/udp".to_owned(),
        format!("b1 {}", at("b2", "br")),
        "o1 o2 80/tcp".to_owned(),
        format!("b1 {s} 80/tcp"),
        format!("o1 {s} 80/tcp"),
        "b1 host".to_owned(),
        format!("b1 {h} 8080/tcp"),
        format!("o1 {h} 8080/tcp"),
        "m1 m2".to_owned(),
        format!("m1 {s} 80/tcp"),
    ];
    let mut wrong = healthy(&host, &fine);
    let bridge = host.docker("network inspect -f '{{slice .Id 0 10}}' br").ok().to_owned();
    let bridge = format!("rsb-{bridge}");
    let within = |container: &str, script: &str| {
        let sandbox = host.docker(&format!("inspect -f '{{{{.NetworkSettings.SandboxKey}}}}' {container}"));
        format!("nsenter --net={} sh -c '{script}'", sandbox.ok())
    };
    let gateway = "172.30.1.1";
    let drop = |rule: &str| {
        format!(
            "nft add table inet foreign; nft add chain inet foreign f '{{ type filter hook forward priority 10; }}'; nft add rule inet foreign f {rule} drop"
        )
    };
    let policy = "nft add table inet foreign; nft add chain inet foreign f '{ type filter hook forward priority 10; policy drop; }'";
    let away = "nft delete table inet foreign";
    let b2 = at("b2", "br");
    wrong.extend(judge(&host, &[
        fault(&host, "true", "true", "b1 nobody", "name", "nobody is called nobody"),
        fault(&host, "true", "true", "b1 off", "container", "off does not run"),
        fault(&host, "true", "true", "b1 r1", "network", "walled off"),
        fault(&host, "true", "true", "b1 dk", "network", "not rsnet's"),
        fault(&host, "true", "true", &format!("i1 {s} 80/tcp"), "network", "is internal"),
        fault(&host, "true", "true", "w1 w2", "network", "icc=false"),
        fault(&host, "true", "true", &format!("b1 {h} 8081/tcp"), "port", "8081/tcp"),
        fault(&host, "true", "true", "b1 b2 81/tcp", "port", "nobody listens on 81/tcp"),
        fault(&host, "true", "true", "b1 b2 82/tcp", "port", "127.0.0.1 only"),
        fault(&host, &drop(&format!("ip daddr {s}")), away, &format!("b1 {s} 80/tcp"), "firewall", "table inet foreign"),
        fault(&host, &drop(&format!("ip saddr {s}")), away, &format!("o1 {s}"), "firewall", "drops the answers"),
        fault(&host, policy, away, &format!("b1 {s} 80/tcp"), "firewall", "the policy of chain f in table inet foreign"),
        fault(&host, &within("b1", "ip link set eth0 down"), &within("b1", &format!("ip link set eth0 up; ip route add default via {gateway}")), "b1 b2", "interface", "is down"),
        fault(&host, &within("b2", "ip link set eth0 down"), &within("b2", &format!("ip link set eth0 up; ip route add default via {gateway}")), "b1 b2", "interface", "is down"),
        fault(&host, &within("b1", "ip route del default"), &within("b1", &format!("ip route add default via {gateway}")), &format!("b1 {s} 80/tcp"), "route", "do not lead to"),
        fault(&host, &within("b1", "ip link set eth0 mtu 9000"), &within("b1", "ip link set eth0 mtu 1500"), "b1 b2", "interface", "MTU of 9000"),
        fault(&host, &within("b3", &format!("ip addr add {b2}/24 dev eth0")), &within("b3", &format!("ip addr del {b2}/24 dev eth0")), "b1 b2", "twin", "as well"),
        fault(&host, &format!("sysctl -q -w net.ipv4.conf.{bridge}.forwarding=0"), &format!("sysctl -q -w net.ipv4.conf.{bridge}.forwarding=1"), &format!("b1 {s} 80/tcp"), "forward", "does not forward"),
        fault(&host, "sysctl -q -w net.ipv4.conf.all.rp_filter=1; ip route add 172.30.1.0/24 dev eth0 table 77; ip rule add to 172.30.1.0/24 lookup 77", "ip rule del to 172.30.1.0/24 lookup 77; ip route flush table 77; sysctl -q -w net.ipv4.conf.all.rp_filter=0", &format!("b1 {s} 80/tcp"), "rp_filter", "rp_filter is on"),
        fault(&host, &format!("ip link set {bridge} mtu 1400"), "true", "b1 b2", "row", &bridge),
    ]));
    assert_eq!(host.sh("nft list tables | grep explain").stdout, "", "nothing is left of what followed the packets");
    assert!(wrong.is_empty(), "{} not as they should be:\n{}", wrong.len(), wrong.join("\n\n"));
}

/// Two containers on a bridge, an overlay and a macvlan network, and one each where nobody is reached.
fn two_of_each(host: &Host) {
    for network in [
        "--subnet 172.30.1.0/24 br",
        "--subnet 172.30.2.0/24 red",
        "--internal --subnet 172.30.3.0/24 in",
        "--subnet 172.30.4.0/24 -o icc=false apart",
        "--ipam-driver rsnet -o mode=overlay --subnet 10.50.0.0/16 blue",
        "-o mode=macvlan -o parent=eth0 --subnet 10.77.0.0/24 --ip-range 10.77.0.128/25 lan",
    ] {
        host.docker(&format!("network create -d rsnet {network}")).ok();
    }
    for (name, flags) in [
        ("b1", "--network br"),
        ("b2", "--network br -p 8080:80"),
        ("b3", "--network br"),
        ("r1", "--network red"),
        ("i1", "--network in"),
        ("w1", "--network apart"),
        ("w2", "--network apart"),
        ("o1", "--network blue"),
        ("o2", "--network blue"),
        ("m1", "--network lan"),
        ("m2", "--network lan"),
        ("dk", "--network bridge"),
        ("off", "--network br"),
    ] {
        run(host, name, flags);
    }
    host.docker("kill off").ok();
    host.docker("exec -d b2 httpd -f -p 127.0.0.1:82").ok();
    wait_until("the server on loopback to listen", PATIENCE, || {
        let seen = host.in_container("b2", "ss -Hltn");
        if seen.stdout.contains(":82") { Ok(()) } else { Err(seen.to_string()) }
    });
}

/// Takes a row away, and again and again until [`ENOUGH`]: rsnet puts it right in between. One process for all of it, so that the row is hardly ever there.
fn again_and_again(program: &str, row: &str) -> String {
    let all = format!("while [ -e /tmp/again ]; do echo {row}; done | {program} -force -batch -");
    format!("touch /tmp/again /tmp/going; {program} {row}; ({all}; rm /tmp/going) >/dev/null 2>&1 &")
}
/// What was written for that process is done, and the row is back.
const ENOUGH: &str = "rm /tmp/again; while [ -e /tmp/going ]; do sleep 0.01; done; rsnet doctor --fix >/dev/null; true";

pub fn faults_between_hosts_are_named_and_healthy_pairs_raise_no_alarm(engine: Engine) {
    let cluster = Cluster::new(engine, 2, "");
    cluster.create("--ipv6 --subnet 10.50.0.0/16 --subnet fd50::/64 blue");
    let all = cluster.run("blue", "");
    let [h1, h2] = &cluster.hosts[..] else { unreachable!() };
    let servers = serve(h2, "c2", &[80]);
    let (c1, c2, c2v6) = (all[0][0], all[1][0], all[1][1]);
    reaches_all(cluster.place(0), &[tcp(c2, 80), tcp(c2v6, 80)]);
    wait_until("h1 to know c2 by its name", PATIENCE, || {
        let seen = h1.sh("rsnet explain c1 c2");
        if seen.code == 0 { Ok(()) } else { Err(seen.to_string()) }
    });
    let fine = [
        "c1 c2".to_owned(),
        "c1 c2 80/tcp".to_owned(),
        format!("c1 {c2} 80/udp"),
        format!("c1 {c2v6} 80/tcp"),
        format!("{c1} {c2}"),
        "c1 10.77.0.1 8500/tcp".to_owned(),
    ];
    let mut wrong = healthy(h1, &fine);
    let tunnel = h1.sh("ls /sys/class/net | grep ^rsx-").ok().to_owned();
    let route = h1.sh(&format!("ip route show proto 195 dev {tunnel} | head -1 | cut -d' ' -f1")).ok().to_owned();
    let home = h1.sh(&format!("ip -4 neigh show dev {tunnel} nud permanent | head -1 | cut -d' ' -f1")).ok().to_owned();
    let mac = h2.sh(&format!("bridge fdb show dev {tunnel} | grep dst | head -1 | cut -d' ' -f1")).ok().to_owned();
    let foreign = |hook: &str, rule: &str| {
        format!(
            "nft add table inet foreign; nft add chain inet foreign f '{{ type filter hook {hook} priority 10; }}'; nft add rule inet foreign f {rule} drop"
        )
    };
    // once rsnet has seen them, packets pass by rules that name them
    let seen = "for n in $(seq 200); do nft list map netdev rsnet here4 | grep -q elements || break; sleep 0.02; done";
    let led = |rule: &str| format!("{}; {seen}", foreign("forward", rule));
    let away = "nft delete table inet foreign";
    let sandbox = h2.docker("inspect -f '{{.NetworkSettings.SandboxKey}}' c2").ok().to_owned();
    let within = |script: &str| format!("nsenter --net={sandbox} {script}");
    let outer = h1.ipv4();
    let on_the_wire = |rule: &str| {
        let chain = "nft add chain netdev foreign f '{ type filter hook ingress device eth0 priority -500; }'";
        format!("nft add table netdev foreign; {chain}; nft add rule netdev foreign f {rule} drop")
    };
    let short = on_the_wire("ip length gt 1300");
    // before anything that could be traced, as if it had never come
    let ingress = on_the_wire("udp dport 4789");
    // rsnet may have made the network as narrow meanwhile
    let widened = || {
        h2.set_mtu(1500);
        wait_until("the network to have its MTU again", PATIENCE, || {
            let seen = h2.sh(&format!("ip link show {tunnel}"));
            if seen.stdout.contains("mtu 1450 ") { Ok(()) } else { Err(seen.to_string()) }
        });
    };
    let faults = [
        made("what fits h2's wire", Box::new(|| h2.set_mtu(1300)), Box::new(widened), "c1 c2", "mtu", "1300 bytes"),
        // a way that takes less than its ends believe, and says nothing
        fault(h2, &short, "nft delete table netdev foreign", "c1 c2", "mtu", "1450 bytes are lost"),
        fault(
            h1,
            &again_and_again("ip", &format!("route del {route} proto 195")),
            ENOUGH,
            "c1 c2 80/tcp",
            "row",
            &format!("route to {route}"),
        ),
        fault(
            h1,
            &again_and_again("ip", &format!("neigh del {home} dev {tunnel}")),
            ENOUGH,
            "c1 c2 80/tcp",
            "row",
            &format!("neighbour {home}"),
        ),
        fault(h2, &again_and_again("bridge", &format!("fdb del {mac} dev {tunnel}")), ENOUGH, "c1 c2 80/tcp", "row", "forwarding to"),
        fault(h2, &foreign("input", "udp dport 4789"), away, "c1 c2 80/tcp", "firewall", "drops the tunnel's packets"),
        fault(h1, &foreign("output", "udp dport 4789"), away, "c1 c2 80/tcp", "firewall", "drops the tunnel's packets"),
        fault(h2, &led(&format!("ip daddr {c2}")), away, "c1 c2 80/tcp", "firewall", "drops packets from c1"),
        fault(h2, &led(&format!("ip saddr {c2}")), away, "c1 c2 80/tcp", "firewall", "drops the answers"),
        fault(h2, &ingress, "nft delete table netdev foreign", "c1 c2", "underlay", "UDP port 4789"),
        made("the wire of h2 is cut", Box::new(|| h2.cut()), Box::new(|| h2.mend()), "c1 c2", "underlay", "answers nothing at all"),
        fault(
            h1,
            &format!("ip addr del {outer}/24 dev eth0"),
            &format!("ip addr add {outer}/24 dev eth0"),
            "c1 c2",
            "underlay",
            "lost its outer address",
        ),
        fault(h1, "true", "true", &format!("c1 {c2} 81/tcp"), "port", "nobody listens on 81/tcp"),
        fault(
            h1,
            &format!("ip rule add to {c2} lookup 77; ip route add {c2} dev eth0 table 77"),
            &format!("ip rule del to {c2} lookup 77; ip route flush table 77"),
            &format!("c1 {c2}"),
            "forward",
            "by eth0 instead of",
        ),
        fault(
            h2,
            &format!("sysctl -q -w net.ipv4.conf.{tunnel}.forwarding=0"),
            &format!("sysctl -q -w net.ipv4.conf.{tunnel}.forwarding=1"),
            &format!("c1 {c2}"),
            "forward",
            "does not forward",
        ),
        fault(h1, "true", "true", "c1 10.50.255.9", "name", "nobody has 10.50.255.9"),
    ];
    wrong.extend(judge(h1, &faults));
    drop((faults, servers));
    h2.kill_rsnet();
    wrong.extend(judge(h1, &[fault(h1, "true", "true", &format!("c1 {c2}"), "peer", "rsnet on h2 does not answer")]));
    cluster.start_rsnet(h2, "");
    wait_until("h2 to answer again", PATIENCE, || {
        let seen = h1.sh(&format!("rsnet explain c1 {c2}"));
        if seen.stdout.contains("ok    h2") { Ok(()) } else { Err(seen.to_string()) }
    });
    wrong.extend(judge(h1, &[fault(h2, &within("ip link set eth0 down"), "true", &format!("c1 {c2}"), "interface", "is down")]));
    for host in &cluster.hosts {
        assert_eq!(host.sh("nft list tables | grep explain").stdout, "", "nothing is left of what followed the packets");
    }
    assert!(wrong.is_empty(), "{} not as they should be:\n{}", wrong.len(), wrong.join("\n\n"));
}

/// Other ways than a tunnel over IPv4: a tunnel over IPv6, none at all, a LAN behind a card of its own.
pub fn faults_on_other_ways_between_hosts_are_named_and_healthy_pairs_raise_no_alarm(engine: Engine) {
    let lab = Lab::new();
    let (segment, lan) = (lab.segment(["10.77.0.0/24", "fd77::/64"]), lab.segment(["10.78.0.0/24"]));
    let consul = lab.station("consul", &[&segment]);
    let hosts: Vec<Host> =
        (1..=2).map(|n| lab.make(&HostSpec::new(&format!("h{n}")).engine(engine).legacy_iptables().on(&[&segment, &lan]))).collect();
    let cluster = Cluster::of(lab, consul, hosts, |host| format!("RSNET_UNDERLAY={}", host.ipv6()));
    let [h1, h2] = &cluster.hosts[..] else { unreachable!() };
    cluster.create("--ipv6 --subnet 10.50.0.0/16 --subnet fd50::/64 blue");
    let all = cluster.run("blue", "");
    for (host, name) in [(h1, "m1"), (h2, "m2")] {
        let range = "-o parent=eth1 --subnet 10.78.0.0/24 --ip-range 10.78.0.128/25";
        host.docker(&format!("network create -d rsnet --ipam-driver rsnet -o mode=macvlan {range} lan")).ok();
        run(host, name, "--network lan");
    }
    let (c2v6, m2) = (all[1][1], addresses(h2, "m2", "lan")[0]);
    let _servers = ["c2", "m2"].map(|name| serve(h2, name, &[80]));
    knows(h1, &["c1 c2", "m1 m2"]);
    let fine = ["c1 c2 80/tcp".to_owned(), format!("c1 {c2v6} 80/tcp"), "m1 m2".to_owned(), format!("m1 {m2} 80/tcp")];
    let mut wrong = healthy(h1, &fine);
    let outer = h1.ipv6();
    let sandbox = h1.docker("inspect -f '{{.NetworkSettings.SandboxKey}}' m1").ok().to_owned();
    let ingress = "nft add table netdev foreign; nft add chain netdev foreign f '{ type filter hook ingress device eth1 priority -500; policy drop; }'";
    let legacy = |rule: &str| (format!("iptables-legacy -I {rule}"), format!("iptables-legacy -D {rule}"));
    let legacy6 = |rule: &str| (format!("ip6tables-legacy -I {rule}"), format!("ip6tables-legacy -D {rule}"));
    let (in6, no_in6) = legacy6("INPUT -p udp --dport 4789 -j DROP");
    let foreign = "nft add table ip6 foreign; nft add chain ip6 foreign f '{ type filter hook input priority 10; }'; nft add rule ip6 foreign f udp dport 4789 drop";
    wrong.extend(judge(
        h1,
        &[
            fault(h2, foreign, "nft delete table ip6 foreign", "c1 c2 80/tcp", "firewall", "drops the tunnel's packets"),
            fault(
                h2,
                &in6,
                &no_in6,
                "c1 c2 80/tcp",
                "firewall",
                "rule 1 of chain INPUT in table filter of ip6tables-legacy drops the tunnel's packets",
            ),
            fault(
                h1,
                &format!("ip addr del {outer}/64 dev eth0"),
                &format!("ip addr add {outer}/64 dev eth0 nodad"),
                "c1 c2",
                "underlay",
                "lost its outer address",
            ),
            fault(h2, "ip link set eth1 down", "ip link set eth1 up", "m1 m2", "interface", "eth1"),
            made(
                "h2 takes nothing by eth1",
                Box::new(|| {
                    h2.sh(ingress).ok();
                    h1.sh(&format!("nsenter --net={sandbox} ip neigh flush all")).ok();
                }),
                Box::new(|| drop(h2.sh("nft delete table netdev foreign").ok().to_owned())),
                "m1 m2 80/tcp",
                "underlay",
                "leaves by eth1 of h1, and no answer comes from there",
            ),
        ],
    ));
    // the same hosts by their IPv4 addresses, and a network that needs no tunnel between these
    for host in &cluster.hosts {
        host.stop_rsnet();
        cluster.start_rsnet(host, "");
    }
    cluster.create("-o transport=direct --subnet 10.60.0.0/16 green");
    for (host, name) in [(h1, "d1"), (h2, "d2")] {
        run(host, name, "--network green");
    }
    let d2 = addresses(h2, "d2", "green")[0];
    let _server = serve(h2, "d2", &[80]);
    knows(h1, &["d1 d2", "c1 c2"]);
    wrong.extend(healthy(h1, &["d1 d2 80/tcp".to_owned(), format!("d1 {d2}"), "c1 c2 80/tcp".to_owned()]));
    // another host's container is called as the id of one here begins
    let alike = h1.docker("inspect -f '{{.Id}}' d1").ok()[..4].to_owned();
    run(h2, &alike, "--network green");
    let to = format!(" to {alike} ({})", addresses(h2, &alike, "green")[0]);
    wait_until("the name of the other host's", PATIENCE, || {
        let seen = h1.sh(&format!("rsnet explain d1 {alike}"));
        if seen.stdout.contains(&to) { Ok(()) } else { Err(seen.to_string()) }
    });
    let route = h1.sh("ip route show proto 195 | grep '^10.60.*via' | head -1 | cut -d' ' -f1").ok().to_owned();
    let (out, no_out) = legacy("FORWARD -s 10.60.0.0/16 -d 10.77.0.1 -j DROP");
    wrong.extend(judge(
        h1,
        &[
            made("the wires of h2 are cut", Box::new(|| h2.cut()), Box::new(|| h2.mend()), "d1 d2", "underlay", "answers nothing at all"),
            fault(
                h1,
                &out,
                &no_out,
                "d1 10.77.0.1 8500/tcp",
                "firewall",
                "rule 1 of chain FORWARD in table filter of iptables-legacy drops packets from d1",
            ),
            // until rsnet has put it right the last time, it is missed
            fault(
                h1,
                &again_and_again("ip", &format!("route del {route} proto 195")),
                ENOUGH,
                "d1 d2 80/tcp",
                "row",
                &format!("route to {route}"),
            ),
        ],
    ));
    assert!(wrong.is_empty(), "{} not as they should be:\n{}", wrong.len(), wrong.join("\n\n"));
}

/// Waits until nothing is in the way of these, and the names are known.
fn knows(host: &Host, questions: &[&str]) {
    for question in questions {
        wait_until(&format!("{} to explain {question}", host.name), PATIENCE, || {
            let seen = host.sh(&format!("rsnet explain {question}"));
            if seen.code == 0 && !seen.stdout.contains("note") { Ok(()) } else { Err(seen.to_string()) }
        });
    }
}

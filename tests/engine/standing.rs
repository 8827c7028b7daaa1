//! What rsnet has standing on a host, as the host's own tools show it, in a form that can be compared.

use crate::lab::Host;

/// Links, addresses, routes, sysctls, the table and the rules among Docker's; without what a second making changes (indices, handles,
/// counters) and in a fixed order. A line each, so that a difference is readable.
const SHOW: &str = r#"
links=$(ls /sys/class/net | grep '^rs[bvcxh]-' | sort)
for l in $links; do
  ip -d -o link show "$l" | grep -o ' \(rs[a-z0-9-]*@\|mtu [0-9]*\|master [^ ]*\|link/ether [^ ]*\|alias [^ ]*\|isolated [a-z]*\|macvlan mode [a-z]*\|hairpin [a-z]*\)' | tr '\n' ' '
  ip -o link show "$l" | grep -q '[<,]UP[,>]' && echo "$l up" || echo "$l down"
done | sed '/^ rsv-.* master/s/link.ether [^ ]* //' # the kernel chooses one that nobody sees
for l in $links; do ip -o addr show dev "$l" scope global | awk '{ print "address", $2, $4 }' | sort; done
for l in $links; do
  case $l in rsx-*) ip neigh show dev $l nud permanent | sort; bridge fdb show dev $l | sort; ip -d -o link show "$l" | grep -o 'vxlan id.*dstport [0-9]*';; esac
done
for f in -4 -6; do ip $f route show table all proto 195 | sed 's/^/route /' | sort; done
for l in $links; do
  case $l in rsh-*) echo "arp_filter $(cat /proc/sys/net/ipv4/conf/$l/arp_filter)";; rsb-*) for s in ipv4/conf/$l/route_localnet ipv6/conf/$l/accept_ra ipv6/conf/$l/disable_ipv6; do echo "$s $(cat /proc/sys/net/$s)"; done;; esac
done
echo "forwarding $(cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding | tr '\n' ' ')"
nft -n list table inet rsnet 2>&1
"#;

/// The rules that rsnet has in iptables' FORWARD; among themselves they have no order.
const PASS: &str = "for i in iptables ip6tables; do $i -S FORWARD 2>/dev/null | grep rsnet | sed \"s/^/$i /\" | sort; done";

/// All of rsnet's that stands on the host, a line each.
pub fn standing(host: &Host) -> String {
    format!("{}{}", own(host), in_forward(host))
}

/// The same without what it has in FORWARD.
pub fn own(host: &Host) -> String {
    let mut text = host.sh(SHOW).stdout;
    text.truncate(text.trim_end().len());
    sorted_elements(&text) + "\n"
}

pub fn in_forward(host: &Host) -> String {
    host.sh(PASS).stdout
}

/// nft lists the elements of a set in the order of their hashes.
fn sorted_elements(text: &str) -> String {
    let sorted = |line: &str| {
        let Some((before, list)) = line.split_once("elements = {") else { return line.to_string() };
        let mut items: Vec<&str> = list.trim_end_matches([' ', '}']).split(',').map(str::trim).collect();
        items.sort_unstable();
        format!("{before}elements = {{ {} }}", items.join(", "))
    };
    // a long list goes over several lines
    let joined = text.replace(",\n", ",");
    joined.lines().map(sorted).collect::<Vec<_>>().join("\n")
}

/// The lines by which two such texts differ, for people.
pub fn difference(before: &str, now: &str) -> String {
    let only = |a: &str, b: &str, sign: &str| {
        let count = |text: &str, line: &str| text.lines().filter(|other| *other == line).count();
        let lines: Vec<String> = a.lines().filter(|line| count(a, line) > count(b, line)).map(|l| format!("{sign} {l}")).collect();
        lines.join("\n")
    };
    format!("{}\n{}", only(before, now, "-"), only(now, before, "+"))
}

/// The one bridge of rsnet's.
#[track_caller]
pub fn bridge(host: &Host) -> String {
    host.sh("ls /sys/class/net | grep '^rsb-'").ok().to_string()
}

/// The host's end of a container's link on rsnet's network.
#[track_caller]
pub fn veth(host: &Host, container: &str) -> String {
    let format = "'{{range .NetworkSettings.Networks}}{{.EndpointID}}{{end}}'";
    let id = host.docker(&format!("inspect -f {format} {container}"));
    host.sh(&format!("ls /sys/class/net | grep '^rsv-{}'", &id.ok()[..8])).ok().to_string()
}

/// A container's links, addresses and routes, without indices.
#[track_caller]
pub fn inside(host: &Host, container: &str) -> String {
    let show = "ip -o addr show scope global | cut -d' ' -f2- ; ip -o link show type veth | grep -o 'link/ether [^ ]*'; ip route; ip -6 route | grep -v fe80";
    host.in_container(container, show).ok().to_string()
}

/// Makes beside rsnet's what others might have: a bridge, a route, a table and a tunnel, with names and numbers of their own.
#[track_caller]
pub fn make_foreign(host: &Host) {
    let make = "ip link add br-other type bridge && ip addr add 10.250.0.1/24 dev br-other && ip link set br-other up \
        && ip route add 10.251.0.0/16 dev br-other proto 99 && ip link add vx-other type vxlan id 42 dstport 4790 local 127.0.0.1 \
        && nft 'table inet other { set s { type ifname; elements = { \"br-other\" }; }; chain c { type filter hook forward priority 5; \
        iifname @s accept; }; }'";
    host.sh(make).ok();
    host.docker("run -d --stop-signal KILL --name neighbour -p 7070:70 box sleep 10000").ok();
}

/// What stands on the host that is not rsnet's.
#[track_caller]
pub fn foreign(host: &Host) -> String {
    let show = "ip -o link show | grep -v ' rs[bvc]-' | grep -v 'link-netns\\|veth' | cut -d' ' -f2-; ip -o addr show | grep -v ' rs[bvc]-\\|veth' | cut -d' ' -f2- ; \
        ip route show table all | grep -v 'dev rs\\|proto 195'; nft list table inet other; iptables -t nat -S; iptables -S | grep -v rsnet";
    // link-local addresses come of themselves, a second or two after their links
    let text = host.sh(show).stdout;
    let mut lines: Vec<_> = text.lines().filter(|line| !line.contains("fe80:") && !line.contains("ff00:")).collect();
    // the engine takes its jumps out and puts them in again as networks come and go; 20.10 now and then puts one in twice
    lines.sort_unstable();
    lines.dedup();
    lines.join("\n")
}

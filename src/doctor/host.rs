//! What the daemon's own facts say.

use std::collections::BTreeMap;

use super::{Blocker, Deviation, Disk, Disowned, Facts, Finding, Gone, Names, Network, Store, Tunnel, Way};

/// Bytes below which the disk counts as full: a record has 1 KB, and redb grows by the megabyte.
const LITTLE: u64 = 16 << 20;
/// Seconds that clocks may differ. The store tells its own in whole seconds, after a moment on the way.
const CLOCKS: i64 = 30;
/// So many objects are named; the rest is counted.
const NAMED: usize = 3;

const FIX: &str = "rsnet doctor --fix";

/// All that is wrong.
pub fn examine(facts: &Facts) -> Vec<Finding> {
    let singles = [blind(facts), leftovers(facts), firewall(facts), forwarding(facts), reverse_path(facts), records(facts)];
    let findings = singles.into_iter().flatten().chain(drift(facts));
    let findings = findings.chain(facts.blockers.iter().map(blocked)).chain(facts.networks.iter().flat_map(|one| network(one, facts)));
    let findings = findings.chain(facts.disowned.iter().map(disowned));
    let findings = findings.chain(facts.store.iter().flat_map(store)).chain(facts.hosts_gone.iter().map(gone));
    let findings = findings.chain(facts.names.iter().flat_map(names));
    findings.chain(facts.disk.iter().filter_map(disk)).collect()
}

fn blind(facts: &Facts) -> Option<Finding> {
    let why = match &facts.blind {
        Some(why) => why.clone(),
        None if !facts.looked => "the first look at the whole host is not over".to_owned(),
        None => return None,
    };
    let meaning = "rsnet cannot compare this host with its plans; what is deleted meanwhile is not put back.";
    Some(Finding::new("look", why, meaning, "Wait a few seconds and ask again; if it stays so, see the log of rsnet."))
}

/// One finding for each network: what stands on a link is missing with it.
fn drift(facts: &Facts) -> Vec<Finding> {
    let mut networks: BTreeMap<&String, Vec<&Deviation>> = BTreeMap::new();
    // who has their tunnels' number is a finding of its own
    let robbed = |name: &String| facts.networks.iter().any(|one| one.name == *name && foreign_tunnel(one, &facts.tunnels).is_some());
    for deviation in &facts.deviations {
        if let Some(network) = deviation.network.as_ref().filter(|name| !robbed(name)) {
            networks.entry(network).or_default().push(deviation);
        }
    }
    networks.into_iter().map(|(network, deviations)| drift_of(network, &deviations)).collect()
}

fn drift_of(network: &str, deviations: &[&Deviation]) -> Finding {
    let what = format!("network {network}: {}", list(deviations.iter().map(|deviation| deviation.what.clone())));
    match deviations.iter().find_map(|deviation| deviation.failing.as_ref()) {
        None => Finding { heals: true, ..Finding::new("drift", what, TAKEN, format!("Put it back now: {FIX}")) },
        Some(cause) => {
            let meaning = format!("rsnet cannot make it so, and tries again every 2 s: {cause}");
            Finding::new("drift", what, meaning, format!("Take the cause away; rsnet does the rest, at once by {FIX}"))
        }
    }
}

const TAKEN: &str = "Somebody took it away or altered it. rsnet puts it back when the kernel tells of it, or within a minute.";

fn leftovers(facts: &Facts) -> Option<Finding> {
    let left = facts.deviations.iter().filter(|deviation| deviation.network.is_none());
    let what = list(left.map(|deviation| deviation.what.clone()));
    let meaning = "It bears rsnet's mark and belongs to no network. rsnet removes it within a minute.";
    let found = Finding { heals: true, ..Finding::new("leftover", what.clone(), meaning, format!("Remove it now: {FIX}")) };
    (!what.is_empty()).then_some(found)
}

fn firewall(facts: &Facts) -> Option<Finding> {
    if facts.firewall.is_empty() && facts.firewall_failing.is_none() {
        return None;
    }
    let what = format!("the firewall is not as planned; to do: {}", list(facts.firewall.iter().cloned()));
    Some(match &facts.firewall_failing {
        None => Finding { heals: true, ..Finding::new("firewall", what, TAKEN, format!("Put it back now: {FIX}")) },
        Some(cause) => {
            let meaning = format!("rsnet cannot make it so, and tries again every 2 s: {cause}");
            Finding::new(
                "firewall",
                what,
                meaning,
                "Take the cause away: most often a kernel without nf_tables, or rsnet without CAP_NET_ADMIN.",
            )
        }
    })
}

fn blocked(Blocker { chain, how }: &Blocker) -> Finding {
    let meaning =
        "Containers of rsnet's networks do not reach the world, or are not reached: a drop is final, whatever rsnet's own table says.";
    let remedy = "Let that firewall pass rsnet's links (rsb-*, rsv-*, rsx-*); docs/firewall.md says how for firewalld, ufw and iptables.";
    Finding::new("blocked", format!("{chain} {how}"), meaning, remedy)
}

fn names(names: &Names) -> Option<Finding> {
    let meaning = "They find containers of this host by name, as without rsnet, and those of other hosts by address only.";
    if names.unsupported {
        let what = "containers are not told the names of other hosts' containers: the kernel has no nftables tables with an owner";
        return Some(Finding::new("names", what, meaning, "Run Linux 5.12 or newer."));
    }
    let what = format!("containers that are not told the names of other hosts' containers: {}", names.untold);
    (names.untold > 0).then(|| Finding::new("names", what, meaning, "See why in the log of rsnet, which tries again twice a second."))
}

fn network(network: &Network, facts: &Facts) -> Vec<Finding> {
    let warnings = network.warnings.iter().map(|warning| warned(network, warning));
    let others = [too_large(network), no_ipv6(network, facts), foreign_tunnel(network, &facts.tunnels)];
    warnings.chain(others.into_iter().flatten()).collect()
}

fn warned(network: &Network, warning: &str) -> Finding {
    let meaning = "The network can be made, and this part of it does not work.";
    Finding::new("warning", format!("network {}: {warning}", network.name), meaning, "Change what the sentence names.")
}

fn too_large(network: &Network) -> Option<Finding> {
    let (size, Way { link, mtu }) = network.size.as_ref()?;
    let what = format!("network {}: its packets have up to {size} bytes, and {link} takes {mtu}", network.name);
    let meaning = "Large packets depend on ICMP errors on their way; where those are lost, connections hang after the first bytes.";
    let remedy = format!("Raise the MTU of {link}, or make the network again with an -o mtu that is {} lower.", size.saturating_sub(*mtu));
    (size > mtu).then(|| Finding::new("mtu", what, meaning, remedy))
}

fn no_ipv6(network: &Network, facts: &Facts) -> Option<Finding> {
    let what = format!("network {} has IPv6, and this kernel has none (ipv6.disable=1)", network.name);
    let found =
        Finding::new("ipv6", what, "Its containers get no IPv6 address.", "Boot with IPv6, or make the network again without --ipv6.");
    (network.ipv6 && facts.without_ipv6).then_some(found)
}

/// One of the same number on the same port, or of any number there, takes what is ours.
fn foreign_tunnel(network: &Network, tunnels: &[Tunnel]) -> Option<Finding> {
    let (vni, port) = network.tunnel?;
    let tunnel = tunnels.iter().find(|tunnel| tunnel.port == port && (tunnel.vni == vni || tunnel.vni == 0))?;
    let number = if tunnel.vni == 0 { "any VNI".to_owned() } else { format!("VNI {vni}") };
    let what = format!("network {}: the VXLAN device {}, which is not rsnet's, has {number} on UDP port {port}", network.name, tunnel.link);
    let meaning = "One host can have a number on a port once: the tunnels of this network do not work here.";
    let remedy = format!("Delete it (ip link del {}), or make the network again on all hosts with -o vxlan_port=ANOTHER.", tunnel.link);
    Some(Finding::new("tunnel", what, meaning, remedy))
}

fn forwarding(facts: &Facts) -> Option<Finding> {
    let uplink = facts.uplink.as_ref().filter(|uplink| !uplink.not_forwarding.is_empty())?;
    let families = uplink.not_forwarding.join(" and ");
    let what = format!("{} does not forward {families} (net.{}.conf.{}.forwarding=0)", uplink.link, uplink.not_forwarding[0], uplink.link);
    let meaning = "What comes in by it goes to no container: answers from the world and callers of published ports are dropped.";
    let remedy = format!("sysctl -w net.{}.conf.{}.forwarding=1, and look who turned it off.", uplink.not_forwarding[0], uplink.link);
    Some(Finding::new("forwarding", what, meaning, remedy))
}

fn reverse_path(facts: &Facts) -> Option<Finding> {
    let (strict, network) = (facts.strict.as_ref()?, facts.networks.iter().find(|network| network.two_ways)?);
    let what = format!("the reverse path filter is strict (net.ipv4.conf.{strict}.rp_filter=1), and network {} has two ways", network.name);
    let meaning = "While two hosts change between tunnels and plain routes, each drops what comes by the way it does not send by.";
    Some(Finding::new("rp_filter", what, meaning, format!("sysctl -w net.ipv4.conf.{strict}.rp_filter=2 (loose), or 0.")))
}

fn store(store: &Store) -> Vec<Finding> {
    let Store { place, problem, ahead } = store;
    let unusable = problem.as_ref().map(|problem| {
        let meaning =
            "What runs goes on, and containers start with addresses of this host's blocks; no new shared network and no new block.";
        let remedy = "Reach it from here: consul info, firewall, token and certificates; see docs/store.md.";
        Finding::new("store", format!("the store {place} cannot be used: {problem}"), meaning, remedy)
    });
    let clock = ahead.filter(|ahead| ahead.abs() > CLOCKS).map(|ahead| {
        let side = if ahead > 0 { "ahead of" } else { "behind" };
        let what = format!("this host's clock is {} s {side} that of {place}", ahead.abs());
        let meaning = "Certificates may count as not yet or no longer valid, and logs of two hosts cannot be laid side by side.";
        Finding::new("clock", what, meaning, "Have both follow one time server (timedatectl, chronyc tracking).")
    });
    unusable.into_iter().chain(clock).collect()
}

fn gone(Gone { name, address, since }: &Gone) -> Finding {
    let since = since.map(|seconds| format!(" for {} min", seconds / 60)).unwrap_or_default();
    let meaning = "Its containers are not reached from here. Its addresses stay its own for an hour at least.";
    let remedy = format!("Start rsnet there, or its way to the store. If it will not come back: rsnet host forget {name}");
    Finding::new("host", format!("host {name} ({address}) is gone{since}"), meaning, remedy)
}

fn disowned(Disowned { network, addresses, owner }: &Disowned) -> Finding {
    let (addresses, owner) = (list(addresses.iter().map(ToString::to_string)), owner.as_deref().unwrap_or("another"));
    let what = format!("network {network}: containers here have addresses that belong to host {owner} now: {addresses}");
    let meaning = "This host was out of touch with the store for so long that its addresses were given away. An overlay network leads nothing \
                   to these containers here any more; on a macvlan network they answer beside who has the addresses now.";
    let remedy = "Restart them (rsnet endpoints shows which): they get other addresses. Give those with --ip another one.";
    Finding::new("disowned", what, meaning, remedy)
}

fn disk(Disk { directory, free }: &Disk) -> Option<Finding> {
    let what = format!("{directory} has {} MB left", free >> 20);
    let meaning = "Nothing is answered before it is on disk: networks and containers can soon not be made any more.";
    (*free < LITTLE).then(|| Finding::new("disk", what, meaning, format!("Make room there: {} MB will do.", LITTLE >> 20)))
}

fn records(facts: &Facts) -> Option<Finding> {
    let what = format!("this host's store differs from what runs: {}", list(facts.records.iter().cloned()));
    let meaning = "After a restart rsnet makes the host as the store says, not as it is now.";
    let remedy = "See the log for errors of the disk; then disconnect and connect the containers named.";
    (!facts.records.is_empty()).then(|| Finding::new("records", what, meaning, remedy))
}

/// The first few, and how many more.
fn list(all: impl Iterator<Item = String>) -> String {
    let all: Vec<String> = all.collect();
    let named = all.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
    if all.len() > NAMED { format!("{named} and {} more", all.len() - NAMED) } else { named }
}

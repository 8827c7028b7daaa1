//! Packets that are followed: who drops them, how far they come, and that nothing stays of it.

use rsnet::firewall::Firewall;
use rsnet::model::{Family, Flow, Protocol, Stage, Trace, Trail};

use crate::lab::{FAMILIES, Lab, Space, at, eventually, run};

const SOURCE: u16 = 34567;

fn trace(family: Family, from: &str, to: &str) -> Trace {
    let flow = Flow { from: at(family, from).parse().unwrap(), to: at(family, to).parse().unwrap(), port: Some((Protocol::Udp, 9)) };
    Trace { flow, source: SOURCE, tunnel: None }
}

/// Sends one datagram from the source port that is followed, and another one that is not.
fn send(space: &Space, to: &str) {
    let brackets = if to.contains(':') { format!("[{to}]") } else { to.to_owned() };
    let tool = if to.contains(':') { "UDP6" } else { "UDP4" };
    space.run(&format!(
        "echo x | socat - {tool}:{brackets}:9,sourceport={SOURCE}; echo x | socat - {tool}:{brackets}:9,sourceport={}",
        SOURCE + 1
    ));
}

fn forth(trails: &[Trail]) -> Vec<&Trail> {
    trails.iter().filter(|trail| !trail.back && !trail.packed).collect()
}

#[tokio::test]
async fn who_drops_a_packet_is_told_by_table_chain_and_rule() {
    let lab = Lab::new();
    // a frame that bridges hand to the filters of IP is another packet to them than what comes out of the bridge
    for (bridged, (family, nft)) in [0, 1].into_iter().flat_map(|on| [(on, (Family::V4, "ip")), (on, (Family::V6, "ip6"))]) {
        let to = at(family, "world");
        run(&format!("sysctl -qw net.bridge.bridge-nf-call-iptables={bridged} net.bridge.bridge-nf-call-ip6tables={bridged}"));
        run(&format!(
            "nft add table inet foreign; nft add chain inet foreign f '{{ type filter hook forward priority 10; }}'
            nft add rule inet foreign f counter; nft add rule inet foreign f {nft} daddr {to} drop"
        ));
        let tracer = lab.firewall.trace(&trace(family, "a1", "world")).unwrap();
        send(&lab.a1, to);
        let trails = tracer.trails();
        let dropped = forth(&trails).into_iter().find_map(|trail| trail.dropped.clone()).unwrap_or_else(|| panic!("{trails:#?}"));
        assert_eq!((dropped.table.as_str(), dropped.chain.as_str()), ("inet foreign", "f"));
        assert!(run("nft -a list chain inet foreign f").contains(&format!("drop # handle {}", dropped.rule.unwrap())));
        run("nft flush chain inet foreign f; nft chain inet foreign f '{ policy drop; }'");
        send(&lab.a1, to);
        let trails = tracer.trails();
        let dropped = forth(&trails).into_iter().find_map(|trail| trail.dropped.clone()).unwrap_or_else(|| panic!("{trails:#?}"));
        assert_eq!((dropped.chain.as_str(), dropped.rule), ("f", None), "by the policy");
        run("nft delete table inet foreign");
    }
}

#[tokio::test]
async fn how_far_packets_and_answers_come_is_told_and_of_no_others() {
    let lab = Lab::new();
    lab.world.serve(9);
    for family in FAMILIES {
        let tracer = lab.firewall.trace(&trace(family, "a1", "world")).unwrap();
        send(&lab.a1, at(family, "world"));
        let mut trails = tracer.trails();
        let back = |trails: &[Trail]| trails.iter().any(|trail| trail.back && trail.stage == Stage::Out);
        // the server answers when it comes to it
        eventually("the answer to be seen", || {
            trails.extend(tracer.trails());
            back(&trails).then_some(())
        });
        assert!(forth(&trails).iter().any(|trail| trail.stage == Stage::Out), "{trails:#?}");
        assert!(trails.iter().all(|trail| trail.dropped.is_none() && !trail.packed), "{trails:#?}");
        // one of the frame on the bridge and one behind it, there and back: nothing of the other source port
        assert!(trails.len() <= 4, "{trails:#?}");
    }
}

#[tokio::test]
async fn who_drops_in_the_tables_of_the_old_iptables_is_told_by_their_counters() {
    let lab = Lab::new();
    lab.world.serve(9);
    for (family, iptables) in [(Family::V4, "iptables-legacy"), (Family::V6, "ip6tables-legacy")] {
        let to = at(family, "world");
        for (script, chain, rule) in [
            (format!("{iptables} -A FORWARD -s {to} -j DROP; {iptables} -A FORWARD -d {to} -j DROP"), "FORWARD", Some(2)),
            (format!("{iptables} -N MINE; {iptables} -A MINE -d {to} -j DROP; {iptables} -A FORWARD -j MINE"), "MINE", Some(1)),
            (format!("{iptables} -P FORWARD DROP; {iptables} -A FORWARD -s {to} -j DROP"), "FORWARD", None),
        ] {
            run(&script);
            let tracer = lab.firewall.trace(&trace(family, "a1", "world")).unwrap();
            send(&lab.a1, to);
            let trails = tracer.trails();
            let dropped = forth(&trails).into_iter().find_map(|trail| trail.dropped.clone()).unwrap_or_else(|| panic!("{trails:#?}"));
            let table = format!("filter of {iptables}");
            assert_eq!((dropped.table, dropped.chain.as_str(), dropped.rule), (table, chain, rule), "{script}");
            run(&format!("{iptables} -P FORWARD ACCEPT; {iptables} -F; {iptables} -X"));
            send(&lab.a1, to);
            assert_eq!(tracer.trails().iter().find(|trail| trail.dropped.is_some()), None, "{script}");
        }
    }
}

#[tokio::test]
async fn nothing_stays_of_it_and_two_may_ask_at_a_time() {
    let lab = Lab::new();
    let one = lab.firewall.trace(&trace(Family::V4, "a1", "world")).unwrap();
    let other = lab.firewall.trace(&Trace { source: SOURCE + 7, ..trace(Family::V4, "a1", "world") }).unwrap();
    assert_eq!(run("nft list tables inet").lines().count(), 2);
    drop((one, other));
    assert_eq!(run("nft list tables"), "");
}

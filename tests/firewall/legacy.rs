//! Docker's chains in the tables of `iptables-legacy`, whose own binary is the second opinion.

use std::collections::BTreeSet;
use std::time::Duration;

use rsnet::firewall::Firewall;
use rsnet::model::Entry;

use crate::lab::{name, run};
use crate::{fresh, one_of_each};

const BINARIES: [&str; 2] = ["iptables-legacy", "ip6tables-legacy"];

/// Chains, jumps, gotos, rules without a target, matches, counters: before, in and behind the chain that is changed.
const OTHERS: &str = "
    for iptables in iptables-legacy ip6tables-legacy; do
        $iptables -P FORWARD DROP -c 11 1100
        $iptables -P INPUT ACCEPT -c 12 1200
        for chain in AAA DOCKER DOCKER-USER ZZZ; do $iptables -N $chain; done
        $iptables -A INPUT -i lo -c 13 1300 -j ZZZ
        $iptables -A FORWARD -c 14 1400 -j DOCKER-USER
        $iptables -A FORWARD -o br0 -c 15 1500 -j DOCKER
        $iptables -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -c 16 1600 -j ACCEPT
        $iptables -A AAA -p tcp -m multiport --dports 1,2,3 -m comment --comment 'of mine' -c 17 1700 -j RETURN
        $iptables -A AAA -c 18 1800 -g ZZZ
        $iptables -A DOCKER-USER -p udp --dport 5353 -c 19 1900 -j AAA
        $iptables -A DOCKER-USER -i eth+ ! -o eth9 -c 20 2000
        $iptables -A DOCKER-USER -c 21 2100 -j RETURN
        $iptables -A ZZZ -p tcp --syn -c 22 2200 -j REJECT --reject-with tcp-reset
        $iptables -A ZZZ -c 23 2300 -j DOCKER
        $iptables -t nat -A POSTROUTING -o eth0 -c 24 2400 -j MASQUERADE
    done";

fn saved(binary: &str) -> String {
    run(&format!("{binary}-save -c | grep -v '^#'"))
}

fn ours(link: &str) -> String {
    let rule = |side| format!("[0:0] -A FORWARD -{side} {link} -m comment --comment \"rsnet: decided in table inet rsnet\" -j ACCEPT\n");
    rule("i") + &rule("o")
}

#[tokio::test]
async fn forward_gets_our_rules_behind_docker_user_and_all_else_stays_byte_for_byte() {
    let firewall = fresh();
    run(OTHERS);
    let before = BINARIES.map(saved);
    let jump = "[14:1400] -A FORWARD -j DOCKER-USER\n";
    let with = |links: &[&str]| {
        before.clone().map(|saved| saved.replace(jump, &(jump.to_owned() + &links.iter().copied().map(ours).collect::<String>())))
    };
    assert!(firewall.converge(&one_of_each()).await.unwrap() > 4);
    assert_eq!(BINARIES.map(saved), with(&["rsb-+"]));
    assert_eq!(firewall.converge(&one_of_each()).await.unwrap(), 0, "a second time");
    // A link with a name of the user's comes and goes.
    let mine = [Entry::Segment { link: name("mine0") }];
    firewall.apply(&[], &mine).await.unwrap();
    assert_eq!(BINARIES.map(saved), with(&["mine0", "rsb-+"]));
    firewall.apply(&mine, &[]).await.unwrap();
    assert_eq!(BINARIES.map(saved), with(&["rsb-+"]));
    // Docker takes its jump out and in; somebody deletes a rule, and puts a second jump behind ours.
    run("iptables-legacy -D FORWARD -j DOCKER-USER; iptables-legacy -I FORWARD -j DOCKER-USER");
    assert_eq!(firewall.converge(&one_of_each()).await.unwrap(), 0);
    run("iptables-legacy -D FORWARD 2; ip6tables-legacy -A FORWARD -i eth0 -j DOCKER-USER");
    assert_eq!(firewall.converge(&one_of_each()).await.unwrap(), 5);
    assert_eq!(firewall.converge(&one_of_each()).await.unwrap(), 0);
    assert!(run("ip6tables-legacy -S FORWARD").ends_with(&ours("rsb-+").replace("[0:0] ", "")));
    firewall.clear().await.unwrap();
    let own_jump = |saved: &str| saved.replace("[14:1400] -A FORWARD -j DOCKER-USER\n", "[0:0] -A FORWARD -j DOCKER-USER\n");
    assert_eq!(saved("iptables-legacy"), own_jump(&before[0]));
    run("iptables-legacy -F; iptables-legacy -X; iptables-legacy -N STILL-WORKS; iptables-legacy -A FORWARD -j STILL-WORKS");
}

#[tokio::test]
async fn counters_go_on_counting() {
    let firewall = fresh();
    run("ip link set lo up; iptables-legacy -N DOCKER-USER; iptables-legacy -A INPUT -i lo; iptables-legacy -A INPUT -j DOCKER-USER");
    let counted = || run("iptables-legacy -L INPUT 1 -v -n -x").split_whitespace().next().unwrap().parse::<u32>().unwrap();
    run("ping -c 3 -i 0.01 127.0.0.1");
    let before = counted();
    assert!(before >= 6, "{before}");
    firewall.converge(&BTreeSet::new()).await.unwrap();
    assert_eq!(counted(), before);
    run("ping -c 3 -i 0.01 127.0.0.1");
    assert_eq!(counted(), before + 6);
}

#[tokio::test]
async fn where_nobody_uses_legacy_tables_none_is_made() {
    let firewall = fresh();
    let tables = || run("cat /proc/thread-self/net/ip_tables_names /proc/thread-self/net/ip6_tables_names");
    firewall.converge(&one_of_each()).await.unwrap();
    firewall.clear().await.unwrap();
    assert_eq!(tables(), "");
    run("iptables-legacy -t nat -N MINE");
    firewall.converge(&one_of_each()).await.unwrap();
    assert_eq!(tables(), "nat\n");
}

#[tokio::test]
async fn a_dropping_forward_chain_without_docker_gets_the_rules_at_its_head_until_docker_comes() {
    in_forward("nft").await;
}

#[tokio::test]
async fn so_does_a_legacy_one() {
    in_forward("legacy").await;
}

/// ufw, and an engine that is not running yet.
async fn in_forward(kind: &str) {
    let firewall = fresh();
    run(&format!("for i in iptables-{kind} ip6tables-{kind}; do $i -A FORWARD -m conntrack --ctstate INVALID -j DROP; done"));
    let rules = || ["iptables", "ip6tables"].map(|binary| run(&format!("{binary}-{kind} -S | grep -v INPUT | grep -v OUTPUT")));
    let before = rules();
    firewall.converge(&one_of_each()).await.unwrap();
    assert_eq!(rules(), before, "{kind}: what accepts needs no rules");
    run(&format!("iptables-{kind} -P FORWARD DROP; ip6tables-{kind} -P FORWARD DROP"));
    let before = rules();
    assert_eq!(firewall.converge(&one_of_each()).await.unwrap(), 4);
    for (now, before) in rules().iter().zip(&before) {
        let head: Vec<_> = now.lines().filter(|line| line.contains("rsb-+")).collect();
        assert_eq!(head.len(), 2);
        assert_eq!(now.lines().position(|line| line == head[0]), Some(1), "{now}");
        assert_eq!(now.lines().filter(|line| !line.contains("rsb-+")).collect::<Vec<_>>(), before.lines().collect::<Vec<_>>());
    }
    assert_eq!(firewall.converge(&one_of_each()).await.unwrap(), 0);
    run(&format!("for i in iptables-{kind} ip6tables-{kind}; do $i -N DOCKER-USER; $i -I FORWARD -j DOCKER-USER; done"));
    assert_eq!(firewall.converge(&one_of_each()).await.unwrap(), 0, "they stand behind the jump");
    run(&format!("iptables-{kind} -P FORWARD ACCEPT; ip6tables-{kind} -P FORWARD ACCEPT"));
    assert_eq!(firewall.converge(&one_of_each()).await.unwrap(), 0, "where Docker is they stay");
    run(&format!("for i in iptables-{kind} ip6tables-{kind}; do $i -F; $i -X; done"));
    firewall.converge(&one_of_each()).await.unwrap();
    firewall.clear().await.unwrap();
    assert!(!rules().concat().contains("rsb-"));
}

#[tokio::test]
async fn a_legacy_chain_that_somebody_flushes_wakes_within_a_second_or_two() {
    let firewall = fresh();
    let mut changes = firewall.changes();
    tokio::task::yield_now().await;
    for change in
        ["iptables-legacy -N DOCKER-USER", "iptables-legacy -A DOCKER-USER -j RETURN", "iptables-legacy -F", "ip6tables-legacy -N MINE"]
    {
        run(change);
        tokio::time::timeout(Duration::from_secs(3), changes.recv()).await.expect(change).expect("the firewall lives");
    }
    assert!(tokio::time::timeout(Duration::from_millis(2500), changes.recv()).await.is_err(), "nothing changed");
}

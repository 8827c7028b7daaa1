//! The allocator against a naive model, and the edges of subnets.

use std::net::IpAddr;

use ipnet::IpNet;
use proptest::prelude::*;
use rsnet::addresses::{AddressError, DefaultPool, DockerDefaults, Pool, PoolError, Record, Space, State};

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn pool(subnet: &str, range: Option<&str>) -> Pool {
    Pool::new(net(subnet), range.map(net)).unwrap()
}

fn all_of(mut pool: Pool) -> Vec<String> {
    std::iter::from_fn(|| pool.allocate().ok()).map(|record| record.address.to_string()).collect()
}

/// Lists instead of trees: what was never handed out, what is held, and what was freed in the order it was.
#[derive(Clone)]
struct Model {
    usable: Vec<IpAddr>,
    window: Vec<IpAddr>,
    held: Vec<IpAddr>,
    freed: Vec<IpAddr>,
}

impl Model {
    fn next(&self) -> Option<IpAddr> {
        let new = |at: &&IpAddr| !self.held.contains(at) && !self.freed.contains(at);
        let freed = || self.freed.iter().find(|at| self.window.contains(at));
        self.window.iter().find(new).or_else(freed).copied()
    }

    fn hold(&mut self, at: IpAddr) {
        self.freed.retain(|freed| *freed != at);
        assert!(!self.held.contains(&at), "{at} was given twice");
        self.held.push(at);
    }

    fn release(&mut self, at: IpAddr) -> bool {
        let held = self.held.contains(&at);
        if held {
            self.held.retain(|other| *other != at);
            self.freed.push(at);
        }
        held
    }
}

#[derive(Debug, Clone)]
enum Call {
    Allocate,
    Gateway,
    Take(u8),
    Release(u8),
    Rebuild,
}

fn calls() -> impl Strategy<Value = Vec<Call>> {
    let call = prop_oneof![
        6 => Just(Call::Allocate),
        1 => Just(Call::Gateway),
        2 => any::<u8>().prop_map(Call::Take),
        5 => any::<u8>().prop_map(Call::Release),
        1 => Just(Call::Rebuild),
    ];
    proptest::collection::vec(call, 0..200)
}

/// The caller's disk: one record per address, the newest replacing the older.
fn keep(disk: &mut std::collections::HashMap<IpAddr, Record>, record: Record) {
    disk.insert(record.address, record);
}

fn run(subnet: IpNet, range: Option<IpNet>, calls: Vec<Call>) {
    let addresses: Vec<IpAddr> = match subnet {
        IpNet::V4(net) => (net.network().to_bits()..=net.broadcast().to_bits()).map(|bits| IpAddr::V4(bits.into())).collect(),
        IpNet::V6(net) => (net.network().to_bits()..=net.broadcast().to_bits()).map(|bits| IpAddr::V6(bits.into())).collect(),
    };
    let usable: Vec<IpAddr> = match (subnet, addresses.len()) {
        (_, 1 | 2) => addresses.clone(),
        (IpNet::V4(_), all) => addresses[1..all - 1].to_vec(),
        (IpNet::V6(_), _) => addresses[1..].to_vec(),
    };
    let window = usable.iter().copied().filter(|at| range.is_none_or(|range| range.contains(at))).collect();
    let mut model = Model { usable, window, held: vec![], freed: vec![] };
    let Ok(mut pool) = Pool::new(subnet, range) else {
        assert!(model.window.is_empty());
        return;
    };
    let mut disk = std::collections::HashMap::new();
    for call in calls {
        match call {
            Call::Allocate => {
                let got = pool.allocate();
                assert_eq!(got.as_ref().ok().map(|record| record.address), model.next());
                got.into_iter().for_each(|record| {
                    model.hold(record.address);
                    keep(&mut disk, record)
                });
            }
            Call::Gateway => {
                let got = pool.allocate_gateway();
                let lowest = model.window.iter().find(|at| !model.held.contains(at)).copied();
                assert_eq!(got.as_ref().ok().map(|record| record.address), lowest);
                got.into_iter().for_each(|record| {
                    model.hold(record.address);
                    keep(&mut disk, record)
                });
            }
            Call::Take(at) => {
                let at = addresses[usize::from(at) % addresses.len()];
                let got = pool.take(at);
                assert_eq!(got.is_ok(), model.usable.contains(&at) && !model.held.contains(&at));
                got.into_iter().for_each(|record| {
                    model.hold(record.address);
                    keep(&mut disk, record)
                });
            }
            Call::Release(at) => {
                let at = addresses[usize::from(at) % addresses.len()];
                let got = pool.release(at);
                assert_eq!(got.is_some(), model.release(at));
                got.into_iter().for_each(|record| keep(&mut disk, record));
            }
            Call::Rebuild => {
                pool = Pool::new(subnet, range).unwrap();
                disk.values().for_each(|record| pool.restore(*record).unwrap());
            }
        }
        let mut persisted: Vec<_> = disk.values().copied().collect();
        persisted.sort_by_key(|record| record.address);
        assert_eq!(pool.records().collect::<Vec<_>>(), persisted);
        assert_eq!(pool.held(), model.held.len() as u128);
    }
}

proptest! {
    #[test]
    fn any_order_of_calls_answers_as_the_naive_model(subnet in 0..8_usize, range in 0..4_u32, calls in calls()) {
        let subnet = net(["10.9.8.0/27", "10.9.8.64/28", "10.9.8.0/30", "10.9.8.0/31", "10.9.8.9/32", "fd00::/124", "fd00::8/127", "fd00::7/128"][subnet]);
        let wide = subnet.max_prefix_len() - subnet.prefix_len();
        let range = (range > 0 && u32::from(wide) >= range).then(|| {
            let prefix = subnet.prefix_len() + range as u8;
            let parts: Vec<_> = subnet.subnets(prefix).unwrap().collect();
            parts[range as usize % parts.len()]
        });
        run(subnet, range, calls);
    }
}

#[test]
fn the_ends_of_a_subnet_are_excluded_as_docker_does() {
    assert_eq!(all_of(pool("10.0.0.0/30", None)), ["10.0.0.1", "10.0.0.2"]);
    assert_eq!(all_of(pool("10.0.0.0/31", None)), ["10.0.0.0", "10.0.0.1"]);
    assert_eq!(all_of(pool("10.0.0.7/32", None)), ["10.0.0.7"]);
    assert_eq!(all_of(pool("fd00::/126", None)), ["fd00::1", "fd00::2", "fd00::3"]);
    assert_eq!(all_of(pool("fd00::/127", None)), ["fd00::", "fd00::1"]);
    assert_eq!(all_of(pool("fd00::9/128", None)), ["fd00::9"]);
}

#[test]
fn a_range_is_where_unnamed_addresses_come_from_and_named_ones_may_lie_outside() {
    let mut pool = pool("172.28.0.0/16", Some("172.28.5.0/24"));
    assert_eq!(pool.allocate_gateway().unwrap().address, ip("172.28.5.0"));
    assert_eq!(pool.allocate().unwrap().address, ip("172.28.5.1"));
    assert_eq!(pool.take(ip("172.28.200.1")).unwrap().state, State::Held);
    assert!(matches!(pool.take(ip("172.28.200.1")), Err(AddressError::Taken { .. })));
    assert!(matches!(pool.take(ip("172.28.255.255")), Err(AddressError::Reserved { .. })));
    assert!(matches!(pool.take(ip("172.29.0.1")), Err(AddressError::Outside { .. })));
    assert!(matches!(pool.take(ip("fd00::1")), Err(AddressError::Outside { .. })));
}

#[test]
fn exhaustion_names_the_pool_and_what_to_do() {
    let mut pool = pool("10.0.0.0/30", None);
    pool.allocate().unwrap();
    pool.allocate().unwrap();
    let text = pool.allocate().unwrap_err().to_string();
    assert_eq!(
        text,
        "allocate an address in 10.0.0.0/30: all 2 held addresses leave none free; remove containers or create a network with a larger subnet"
    );
}

#[test]
fn the_largest_subnets_work_to_their_last_address() {
    let mut pool = pool("8000::/1", None);
    let last = ip("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff");
    assert_eq!(pool.take(last).unwrap().address, last);
    assert_eq!(pool.allocate().unwrap().address, ip("8000::1"));
    assert!(matches!(Pool::new(net("::/0"), None), Err(PoolError::Everything { .. })));
}

#[test]
fn in_a_64_freed_addresses_rest_long_but_their_records_do_not_grow_for_ever() {
    let mut pool = pool("fd00::/64", None);
    let first = pool.allocate().unwrap().address;
    pool.release(first);
    let reused = (0..100_000).find(|_| {
        let next = pool.allocate().unwrap().address;
        pool.release(next);
        next == first
    });
    assert_eq!(reused, Some(65_536));
    assert_eq!(pool.records().count(), 65_537);
}

#[test]
fn contradicting_records_are_refused() {
    let mut pool = pool("10.0.0.0/24", None);
    let freed = |at: &str| Record { address: ip(at), state: State::Freed(3) };
    pool.restore(freed("10.0.0.5")).unwrap();
    assert!(matches!(pool.restore(freed("10.0.0.6")), Err(AddressError::Contradiction { .. })));
    assert!(matches!(pool.restore(freed("10.0.0.5")), Err(AddressError::Contradiction { .. })));
    assert!(matches!(pool.restore(freed("10.0.1.5")), Err(AddressError::Outside { .. })));
}

#[test]
fn a_record_is_small_and_reads_well() {
    let record = Record { address: ip("10.0.0.5"), state: State::Freed(3) };
    let text = serde_json::to_string(&record).unwrap();
    assert_eq!(text, r#"{"address":"10.0.0.5","state":{"freed":3}}"#);
    assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record);
}

#[test]
fn an_overlapping_subnet_is_refused_with_both_named() {
    let mut space = Space::default();
    space.request(net("10.5.8.0/24"), None).unwrap();
    let refused = |space: &mut Space, subnet| space.request(net(subnet), None).unwrap_err().to_string();
    assert!(
        refused(&mut space, "10.5.0.0/16").starts_with("subnet 10.5.0.0/16 overlaps 10.5.8.0/24, already a pool; choose another --subnet")
    );
    assert!(
        refused(&mut space, "10.5.8.128/25")
            .starts_with("subnet 10.5.8.128/25 overlaps 10.5.8.0/24, already a pool; choose another --subnet")
    );
    assert!(
        refused(&mut space, "10.5.8.7/24").starts_with("subnet 10.5.8.0/24 overlaps 10.5.8.0/24, already a pool; choose another --subnet")
    );
    space.request(net("10.5.9.0/24"), None).unwrap();
    assert!(space.release(&net("10.5.8.0/24")).is_some() && space.release(&net("10.5.8.0/24")).is_none());
    space.request(net("10.5.8.0/25"), None).unwrap();
}

#[test]
fn a_range_must_be_inside_its_subnet_and_hold_an_address() {
    let mut space = Space::default();
    let mut ask = |range| space.request(net("10.0.0.0/24"), Some(net(range))).map(|pool| pool.subnet());
    assert!(matches!(ask("10.0.1.0/25"), Err(PoolError::RangeOutside { .. })));
    assert!(matches!(ask("10.0.0.0/23"), Err(PoolError::RangeOutside { .. })));
    assert!(matches!(ask("fd00::/64"), Err(PoolError::RangeOutside { .. })));
    assert!(matches!(ask("10.0.0.0/32"), Err(PoolError::RangeEmpty { .. })));
    assert_eq!(ask("10.0.0.0/24"), Ok(net("10.0.0.0/24")));
}

#[test]
fn chosen_pools_differ_until_there_are_none_and_avoid_what_the_host_routes() {
    let mut space = Space::default();
    space.request(net("172.18.4.0/24"), None).unwrap();
    let in_use = [net("0.0.0.0/0"), net("172.17.0.0/16"), net("172.20.0.0/14"), net("192.168.1.0/24")];
    let mut chosen = vec![];
    let error = loop {
        match space.choose(&DockerDefaults::ipv4(), &in_use) {
            Ok(pool) => chosen.push(pool.subnet()),
            Err(error) => break error,
        }
    };
    assert_eq!(chosen[..3], [net("172.19.0.0/16"), net("172.24.0.0/16"), net("172.25.0.0/16")]);
    assert_eq!(chosen.len(), 15 - 2 - 4 + 16 - 1);
    assert!(!chosen.contains(&net("192.168.0.0/20")) && chosen.contains(&net("192.168.16.0/20")));
    assert_eq!(error, PoolError::Exhausted { tried: 31 });
    space.release(&net("172.25.0.0/16"));
    assert_eq!(space.choose(&DockerDefaults::ipv4(), &in_use).unwrap().subnet(), net("172.25.0.0/16"));
}

#[test]
fn ipv6_pools_are_64s_of_the_given_48() {
    let mut space = Space::default();
    let defaults = DockerDefaults::ipv6("fd12:3456:789a::/48".parse().unwrap());
    let mut choose = || space.choose(&defaults, &[net("::/0")]).unwrap().subnet();
    assert_eq!([choose(), choose()], [net("fd12:3456:789a::/64"), net("fd12:3456:789a:1::/64")]);
}

#[test]
fn a_default_that_cannot_be_cut_gives_no_pool() {
    let defaults = [DefaultPool { base: net("10.0.0.0/24"), size: 16 }];
    assert_eq!(Space::default().choose(&defaults, &[]).unwrap_err(), PoolError::Exhausted { tried: 0 });
}

#[test]
fn a_confined_pool_gives_from_its_blocks_only_and_says_when_they_run_short() {
    let mut pool = Pool::new("10.50.0.0/24".parse().unwrap(), None).unwrap();
    let gateway = pool.allocate_gateway().unwrap().address;
    let early = pool.allocate().unwrap().address;
    let blocks = ["10.50.0.32/30".parse().unwrap(), "10.50.0.0/30".parse().unwrap()];
    pool.release(early);
    pool.confine(&blocks, &["10.50.0.32".parse().unwrap()]);
    assert_eq!(gateway.to_string(), "10.50.0.1");
    assert!(pool.covers("10.50.0.33".parse().unwrap()) && !pool.covers("10.50.0.36".parse().unwrap()));
    assert_eq!(pool.release("10.50.0.32".parse().unwrap()), None, "nobody has it who could give it back");
    let mut given = Vec::new();
    while let Ok(record) = pool.allocate() {
        given.push((record.address.to_string(), pool.is_short()));
    }
    let expected = [("10.50.0.33", false), ("10.50.0.34", true), ("10.50.0.35", true), ("10.50.0.3", true), ("10.50.0.2", true)];
    assert_eq!(given, expected.map(|(address, short)| (address.to_owned(), short)), "what was freed comes last");
    pool.take("10.50.0.77".parse().unwrap()).expect("a named one may lie anywhere");
}

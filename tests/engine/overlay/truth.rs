//! What is wrong in what was seen of several hosts: rows that lead elsewhere than to who holds an address, addresses that two held at once.
//!
//! Pure. Hosts are numbers. Must not: know how anything was looked at, that is the witness's work.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

/// A row of a host's: what is for these addresses is led to a host, itself perhaps, or to nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    pub to: IpNet,
    pub leads: Option<usize>,
}

/// All hosts at a moment. Who holds what is looked at before the rows and again after them: only what held still counts.
#[derive(Clone, Debug, Default)]
pub struct Look {
    /// Since the first look.
    pub at: Duration,
    pub before: Vec<BTreeSet<IpAddr>>,
    pub rows: Vec<Vec<Row>>,
    pub after: Vec<BTreeSet<IpAddr>>,
    /// Hosts whose rsnet is away, or just back: they hear of nothing.
    pub deaf: BTreeSet<usize>,
}

/// A host leads what is for an address to one that does not hold it (none: to nobody), and another does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Wrong {
    pub on: usize,
    pub address: IpAddr,
    pub leads: Option<usize>,
    pub holder: usize,
    /// Nobody could tell this host.
    pub deaf: bool,
}

/// A host had an address, as far as was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holding {
    pub address: IpAddr,
    pub host: usize,
    pub from: Duration,
    pub until: Duration,
}

/// The wrong rows of a moment. A host's most special row decides; an address that two hold is not theirs to be wrong about.
pub fn wrong(look: &Look) -> Vec<Wrong> {
    let mut holders: BTreeMap<IpAddr, Vec<usize>> = BTreeMap::new();
    for (host, (before, after)) in look.before.iter().zip(&look.after).enumerate() {
        before.intersection(after).for_each(|address| holders.entry(*address).or_default().push(host));
    }
    let single = holders.into_iter().filter_map(|(address, hosts)| if let [holder] = hosts[..] { Some((address, holder)) } else { None });
    let wrong = |(address, holder): (IpAddr, usize)| {
        look.rows.iter().enumerate().filter_map(move |(on, rows)| {
            let decides = rows.iter().filter(|row| row.to.contains(&address)).max_by_key(|row| row.to.prefix_len())?;
            (decides.leads != Some(holder)).then_some(Wrong { on, address, leads: decides.leads, holder, deaf: look.deaf.contains(&on) })
        })
    };
    single.flat_map(wrong).collect()
}

/// Who had what from when to when, of looks in their order. What is not seen in one look has ended with the one before.
pub fn holdings(looks: &[Look]) -> Vec<Holding> {
    let (mut open, mut done): (BTreeMap<(IpAddr, usize), Holding>, Vec<Holding>) = Default::default();
    for look in looks {
        let seen: BTreeSet<(IpAddr, usize)> =
            look.before.iter().enumerate().flat_map(|(host, held)| held.iter().map(move |address| (*address, host))).collect();
        let ended: Vec<_> = open.keys().filter(|key| !seen.contains(*key)).copied().collect();
        done.extend(ended.iter().filter_map(|key| open.remove(key)));
        for (address, host) in seen {
            let holding = Holding { address, host, from: look.at, until: look.at };
            open.entry((address, host)).or_insert(holding).until = look.at;
        }
    }
    done.extend(open.into_values());
    done
}

/// Pairs of hosts that had one address at one time.
pub fn doubles(holdings: &[Holding]) -> Vec<(Holding, Holding)> {
    let mut sorted = holdings.to_vec();
    sorted.sort_by_key(|holding| (holding.address, holding.from));
    let pairs = sorted.iter().enumerate().flat_map(|(at, one)| {
        let same = sorted[at + 1..].iter().take_while(|other| other.address == one.address);
        same.filter(|other| other.host != one.host && other.from <= one.until).map(|other| (*one, *other))
    });
    pairs.collect()
}

/// A host could not reach the store from then until then, and had these blocks as it began.
#[derive(Clone, Debug)]
pub struct Cut {
    pub host: usize,
    pub from: Duration,
    pub until: Duration,
    pub blocks: Vec<IpNet>,
}

/// What a host began to hold while it was cut off, and that is not of the blocks that it had.
pub fn outside(holdings: &[Holding], cuts: &[Cut]) -> Vec<Holding> {
    let strange = |holding: &&Holding| {
        let during = cuts.iter().filter(|cut| cut.host == holding.host && (cut.from..cut.until).contains(&holding.from));
        during.into_iter().any(|cut| !cut.blocks.iter().any(|block| block.contains(&holding.address)))
    };
    holdings.iter().filter(strange).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "10.50.0.5";

    fn held(hosts: &[&[&str]]) -> Vec<BTreeSet<IpAddr>> {
        hosts.iter().map(|host| host.iter().map(|address| address.parse().unwrap()).collect()).collect()
    }

    fn row(to: &str, leads: Option<usize>) -> Row {
        Row { to: to.parse().unwrap(), leads }
    }

    fn look(before: &[&[&str]], rows: Vec<Vec<Row>>, after: &[&[&str]]) -> Look {
        Look { at: Duration::ZERO, before: held(before), rows, after: held(after), deaf: BTreeSet::new() }
    }

    fn at(second: u64, hosts: &[&[&str]]) -> Look {
        Look { at: Duration::from_secs(second), before: held(hosts), ..Look::default() }
    }

    #[test]
    fn a_row_to_another_host_than_the_holder_is_wrong_and_so_is_one_to_nobody() {
        let rows = vec![vec![row("10.50.0.0/26", Some(0))], vec![row("10.50.0.0/26", Some(0))], vec![row("10.50.0.0/16", None)]];
        let seen = wrong(&look(&[&[], &[A], &[]], rows, &[&[], &[A], &[]]));
        let told: Vec<_> = seen.iter().map(|wrong| (wrong.on, wrong.leads, wrong.holder)).collect();
        assert_eq!(told, [(0, Some(0), 1), (1, Some(0), 1), (2, None, 1)]);
    }

    #[test]
    fn a_wrong_row_of_a_host_without_rsnet_is_told_as_such() {
        let rows = || vec![vec![row("10.50.0.0/26", Some(0))], vec![row("10.50.0.0/26", Some(0))]];
        let seen = wrong(&Look { deaf: [1].into(), ..look(&[&[], &[A]], rows(), &[&[], &[A]]) });
        assert_eq!(seen.iter().map(|wrong| wrong.deaf).collect::<Vec<_>>(), [false, true]);
    }

    #[test]
    fn the_most_special_row_decides() {
        let rows = vec![vec![row("10.50.0.5/32", Some(1)), row("10.50.0.0/26", Some(0)), row("10.50.0.0/16", None)]];
        assert_eq!(wrong(&look(&[&[], &[A]], rows, &[&[], &[A]])), []);
        let rows = vec![vec![row("10.50.0.0/26", Some(1)), row("10.50.0.5/32", Some(0))]];
        assert_eq!(wrong(&look(&[&[], &[A]], rows, &[&[], &[A]])).len(), 1);
    }

    #[test]
    fn what_came_or_went_while_the_rows_were_read_is_no_witness() {
        let rows = || vec![vec![row("10.50.0.0/26", Some(0))], vec![]];
        assert_eq!(wrong(&look(&[&[], &[A]], rows(), &[&[], &[]])), []);
        assert_eq!(wrong(&look(&[&[], &[]], rows(), &[&[], &[A]])), []);
        assert_eq!(wrong(&look(&[&[A], &[A]], rows(), &[&[A], &[A]])), [], "two hold it: that is another fault");
    }

    #[test]
    fn an_address_that_two_hold_at_one_time_is_found_whoever_began() {
        for (first, second) in [([&[A][..], &[]], [&[A][..], &[A]]), ([&[], &[A][..]], [&[A][..], &[A]])] {
            let seen = doubles(&holdings(&[at(0, &first), at(1, &second), at(2, &[&[], &[]])]));
            assert_eq!(seen.len(), 1, "{seen:?}");
        }
        let inside = [at(0, &[&[A], &[]]), at(1, &[&[A], &[A]]), at(2, &[&[A], &[]]), at(3, &[&[A], &[A]])];
        assert_eq!(doubles(&holdings(&inside)).len(), 2, "each time");
    }

    #[test]
    fn one_after_the_other_is_no_double() {
        let looks = [at(0, &[&[A], &[]]), at(1, &[&[], &[A]]), at(2, &[&[A], &[]])];
        assert_eq!(holdings(&looks).len(), 3);
        assert_eq!(doubles(&holdings(&looks)), []);
    }

    #[test]
    fn what_a_host_that_was_cut_off_took_of_others_is_found_and_nothing_else() {
        let second = Duration::from_secs;
        let cut = Cut { host: 0, from: second(1), until: second(3), blocks: vec!["10.50.0.16/28".parse().unwrap()] };
        let holding = |host, address: &str, from| Holding { address: address.parse().unwrap(), host, from: second(from), until: second(9) };
        let strange = holding(0, A, 2);
        let all = [strange, holding(0, A, 0), holding(0, A, 3), holding(1, A, 2), holding(0, "10.50.0.17", 2)];
        assert_eq!(outside(&all, &[cut]), [strange]);
    }
}

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::PoolError;
use super::runs::Runs;
use crate::model::{address_of, number_of};

/// Pools of up to this many addresses (an IPv4 /12) hand out every address once before one comes back.
const SMALL: u128 = 1 << 20;

/// In a larger pool (an IPv6 /64), this many freed addresses rest; beyond it the one freed longest ago goes before a new one. Without
/// such an end the records of freed addresses would grow for as long as the network lives.
const RESTING: usize = 1 << 16;

/// What became of one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// In use.
    Held,
    /// Free again. The number grows with every release in the pool: the lowest was freed longest ago.
    Freed(u64),
}

/// The state of one address after a change: what the caller persists, one per address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The address, of the pool's family.
    pub address: IpAddr,
    /// What it is now.
    pub state: State,
}

/// Why an address was not given, or a record not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Every usable address of the window is held.
    #[error(
        "allocate an address in {window}: all {held} held addresses leave none free; remove containers or create a network with a larger subnet"
    )]
    Exhausted {
        /// The range if the pool has one, else the subnet.
        window: IpNet,
        /// Held addresses in the whole pool.
        held: u128,
    },
    /// The address is not in the subnet.
    #[error("allocate {address} in {subnet}: it is outside the subnet; choose an address inside it")]
    Outside {
        /// What was asked.
        address: IpAddr,
        /// The pool.
        subnet: IpNet,
    },
    /// The subnet's network, broadcast or subnet-router anycast (RFC 4291 §2.6.1) address.
    #[error("allocate {address} in {subnet}: it stands for the subnet itself or for all of it; choose another address")]
    Reserved {
        /// What was asked.
        address: IpAddr,
        /// The pool.
        subnet: IpNet,
    },
    /// Somebody holds it.
    #[error("allocate {address} in {subnet}: already in use; choose another address or release this one")]
    Taken {
        /// What was asked.
        address: IpAddr,
        /// The pool.
        subnet: IpNet,
    },
    /// A record contradicts one that was restored before.
    #[error(
        "restore {address} in {subnet}: recorded twice, or freed with a number another address has; the store was altered by something else"
    )]
    Contradiction {
        /// The record's address.
        address: IpAddr,
        /// The pool.
        subnet: IpNet,
    },
}

/// One subnet and the state of its addresses.
///
/// Never the same address twice; addresses never handed out come first (lowest first), then the one freed longest ago (in pools of more
/// than 2^20 addresses no more than 65,536 freed ones rest). Every call is O(log n).
#[derive(Debug, Clone)]
pub struct Pool {
    subnet: IpNet,
    range: Option<IpNet>,
    /// Offsets of the subnet that may be used at all, inclusive.
    usable: (u128, u128),
    /// Offsets that are given without being named, inclusive: the usable parts of the range, of the subnet, or of what it is confined to.
    windows: Vec<(u128, u128)>,
    /// Ever handed out. Held is what is in here and not in `freed`.
    touched: Runs,
    freed: BTreeMap<u128, u64>,
    /// `freed` of the windows the other way round: longest ago first.
    resting: BTreeMap<u64, u128>,
    next_number: u64,
    held: u128,
    /// Those of them that are in the windows.
    held_within: u128,
    /// Those of them that nobody here has: they belong to the host, or to others.
    kept: BTreeSet<u128>,
}

impl Pool {
    /// A pool with nothing handed out. Host bits of `subnet` and `range` are dropped.
    pub fn new(subnet: IpNet, range: Option<IpNet>) -> Result<Self, PoolError> {
        let (subnet, range) = (subnet.trunc(), range.map(|range| range.trunc()));
        if subnet.prefix_len() == 0 {
            return Err(PoolError::Everything { subnet });
        }
        if let Some(range) = range.filter(|range| !subnet.contains(range)) {
            return Err(PoolError::RangeOutside { range, subnet });
        }
        let usable = usable(subnet);
        let window = range.map_or(usable, |range| within(usable, subnet, range));
        if window.0 > window.1 {
            return Err(PoolError::RangeEmpty { range: range.unwrap_or(subnet), subnet });
        }
        Ok(Self {
            subnet,
            range,
            usable,
            windows: vec![window],
            touched: Runs::default(),
            freed: BTreeMap::new(),
            resting: BTreeMap::new(),
            next_number: 0,
            held: 0,
            held_within: 0,
            kept: BTreeSet::new(),
        })
    }

    /// The subnet, without host bits.
    pub fn subnet(&self) -> IpNet {
        self.subnet
    }

    /// The part that addresses are taken from when none is named.
    pub fn range(&self) -> Option<IpNet> {
        self.range
    }

    /// Gives no address unnamed from now on that is not in one of `blocks`, and none of `kept`. Gives those that were kept and are no more:
    /// they are held until they are released.
    pub fn confine(&mut self, blocks: &[IpNet], kept: &[IpAddr]) -> Vec<IpAddr> {
        let windows = blocks.iter().filter(|block| self.subnet.contains(*block)).map(|block| within(self.usable, self.subnet, *block));
        self.windows = windows.filter(|(first, last)| first <= last).collect();
        let kept: BTreeSet<u128> = kept.iter().filter_map(|address| self.offset(*address).ok()).collect();
        for &at in &kept {
            if !self.is_held(at) {
                self.hold(at);
            }
        }
        let held = |(first, last): &(u128, u128)| self.touched.count(*first, *last) - self.freed.range(first..=last).count() as u128;
        self.held_within = self.windows.iter().map(held).sum();
        self.resting = self.freed.iter().filter(|&(&at, _)| self.is_in_window(at)).map(|(&at, &number)| (number, at)).collect();
        let before = std::mem::replace(&mut self.kept, kept);
        before.difference(&self.kept).map(|&at| self.address(at)).collect()
    }

    /// Whether this address is given unnamed, when its turn comes.
    pub fn covers(&self, address: IpAddr) -> bool {
        self.offset(address).is_ok_and(|at| self.is_in_window(at))
    }

    /// Whether so little of what is given unnamed is free that one more window is worth having: less than half of it, and less than the
    /// largest window.
    pub fn is_short(&self) -> bool {
        let free = self.capacity() - self.held_within;
        let largest = self.windows.iter().map(|(first, last)| last - first + 1).max().unwrap_or(0);
        free == 0 || (free * 2 < self.capacity() && free < largest)
    }

    /// Of the addresses that are given unnamed: how many are held, and how many there are.
    pub fn fill(&self) -> (u128, u128) {
        (self.held_within, self.capacity())
    }

    fn capacity(&self) -> u128 {
        self.windows.iter().map(|(first, last)| last - first + 1).sum()
    }

    fn is_in_window(&self, at: u128) -> bool {
        self.windows.iter().any(|(first, last)| (first..=last).contains(&&at))
    }

    /// How many addresses are held.
    pub fn held(&self) -> u128 {
        self.held
    }

    /// The next free address of the range, or of the subnet if it has none.
    pub fn allocate(&mut self) -> Result<Record, AddressError> {
        let fresh = self.fresh();
        let rested = self.resting.first_key_value().map(|(_, &at)| at);
        let at = if self.must_reuse() { rested } else { fresh.or(rested) };
        at.map(|at| self.hold(at)).ok_or_else(|| self.exhausted())
    }

    /// The gateway when none is named: the lowest free address of the range or subnet, as Docker's own IPAM gives it.
    pub fn allocate_gateway(&mut self) -> Result<Record, AddressError> {
        let freed = self.windows.iter().filter_map(|&(first, last)| self.freed.range(first..=last).next()).map(|(&at, _)| at).min();
        let lowest = self.fresh().into_iter().chain(freed).min();
        lowest.map(|at| self.hold(at)).ok_or_else(|| self.exhausted())
    }

    /// Exactly this address, anywhere in the subnet: a static, gateway or auxiliary one may lie outside the range.
    pub fn take(&mut self, address: IpAddr) -> Result<Record, AddressError> {
        let subnet = self.subnet;
        let at = self.offset(address)?;
        if at < self.usable.0 || at > self.usable.1 {
            return Err(AddressError::Reserved { address, subnet });
        }
        if self.is_held(at) {
            return Err(AddressError::Taken { address, subnet });
        }
        Ok(self.hold(at))
    }

    /// Frees an address. `None`, and no change, when it was not held, for releases may come twice, or is kept.
    pub fn release(&mut self, address: IpAddr) -> Option<Record> {
        let at = self.offset(address).ok().filter(|at| self.is_held(*at) && !self.kept.contains(at))?;
        let number = self.next_number;
        self.held -= 1;
        self.held_within -= u128::from(self.is_in_window(at));
        self.rest(at, number);
        Some(Record { address, state: State::Freed(number) })
    }

    /// Takes over a persisted record. Records may come in any order, each address once, before any other change.
    pub fn restore(&mut self, record: Record) -> Result<(), AddressError> {
        let Record { address, state } = record;
        let at = self.offset(address)?;
        let number_taken = matches!(state, State::Freed(number) if self.resting.contains_key(&number));
        if self.touched.contains(at) || number_taken {
            return Err(AddressError::Contradiction { address, subnet: self.subnet });
        }
        match state {
            State::Held => {
                self.hold(at);
            }
            State::Freed(number) => self.rest(at, number),
        }
        Ok(())
    }

    /// Every address with a state, lowest first: what [`Pool::restore`] takes.
    pub fn records(&self) -> impl Iterator<Item = Record> + '_ {
        self.touched
            .iter()
            .map(|at| Record { address: self.address(at), state: self.freed.get(&at).map_or(State::Held, |&number| State::Freed(number)) })
    }

    fn fresh(&self) -> Option<u128> {
        self.windows.iter().find_map(|&(first, last)| self.touched.first_gap(first, last))
    }

    fn must_reuse(&self) -> bool {
        self.capacity() > SMALL && self.resting.len() > RESTING
    }

    fn is_held(&self, at: u128) -> bool {
        self.touched.contains(at) && !self.freed.contains_key(&at)
    }

    fn hold(&mut self, at: u128) -> Record {
        self.touched.insert(at);
        if let Some(number) = self.freed.remove(&at) {
            self.resting.remove(&number);
        }
        self.held += 1;
        self.held_within += u128::from(self.is_in_window(at));
        Record { address: self.address(at), state: State::Held }
    }

    fn rest(&mut self, at: u128, number: u64) {
        self.touched.insert(at);
        self.freed.insert(at, number);
        if self.is_in_window(at) {
            self.resting.insert(number, at);
        }
        self.next_number = self.next_number.max(number.saturating_add(1));
    }

    fn exhausted(&self) -> AddressError {
        AddressError::Exhausted { window: self.range.unwrap_or(self.subnet), held: self.held }
    }

    fn offset(&self, address: IpAddr) -> Result<u128, AddressError> {
        if !self.subnet.contains(&address) {
            return Err(AddressError::Outside { address, subnet: self.subnet });
        }
        Ok(number_of(address) - number_of(self.subnet.network()))
    }

    fn address(&self, at: u128) -> IpAddr {
        address_of(self.subnet, number_of(self.subnet.network()) + at)
    }
}

/// Offsets of `subnet` that a container may have, inclusive. IPv4 loses its network and broadcast address except in a /31 (RFC 3021) or
/// /32; IPv6 loses the subnet-router anycast address except in a /127 (RFC 6164) or /128.
fn usable(subnet: IpNet) -> (u128, u128) {
    let last = number_of(subnet.broadcast()) - number_of(subnet.network());
    match subnet {
        _ if last <= 1 => (0, last),
        IpNet::V4(_) => (1, last - 1),
        IpNet::V6(_) => (1, last),
    }
}

/// The part of `usable` that lies in `range`.
fn within(usable: (u128, u128), subnet: IpNet, range: IpNet) -> (u128, u128) {
    let base = number_of(subnet.network());
    let (first, last) = (number_of(range.network()) - base, number_of(range.broadcast()) - base);
    (usable.0.max(first), usable.1.min(last))
}

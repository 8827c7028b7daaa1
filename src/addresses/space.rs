use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::Pool;

/// Why a pool was not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// It shares addresses with one of the space's pools.
    #[error(
        "subnet {subnet} overlaps {pool}, already a pool; choose another --subnet. Macvlan networks can have it behind two parents: name each \
         network's, --ipam-opt parent=LINK"
    )]
    Overlap {
        /// What was asked.
        subnet: IpNet,
        /// The pool in its way; the same subnet if it was asked twice.
        pool: IpNet,
    },
    /// The range is not a part of the subnet.
    #[error("range {range} is not inside subnet {subnet}; choose an --ip-range inside it")]
    RangeOutside {
        /// What was asked.
        range: IpNet,
        /// Its subnet.
        subnet: IpNet,
    },
    /// The range holds nothing but the subnet's network or broadcast address.
    #[error("range {range} holds no usable address of subnet {subnet}; choose a larger --ip-range")]
    RangeEmpty {
        /// What was asked.
        range: IpNet,
        /// Its subnet.
        subnet: IpNet,
    },
    /// Prefix length 0.
    #[error("subnet {subnet} is every address there is; choose a smaller --subnet")]
    Everything {
        /// What was asked.
        subnet: IpNet,
    },
    /// Each default subnet is a pool or in use on the host.
    #[error(
        "choose a subnet: all {tried} default subnets are pools already or in use on this host; name one with --subnet or remove networks that are not needed"
    )]
    Exhausted {
        /// How many default subnets there are.
        tried: usize,
    },
}

/// A part of the address space that default pools are cut from: `size` is the prefix length of each.
///
/// A `size` shorter than the base's prefix, or longer than the family allows, gives no pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DefaultPool {
    /// What is cut.
    pub base: IpNet,
    /// Prefix length of a piece.
    pub size: u8,
}

impl DefaultPool {
    fn subnets(self) -> impl Iterator<Item = IpNet> {
        self.base.subnets(self.size).into_iter().flatten()
    }
}

/// The sizes Docker uses when nothing is configured (moby `daemon/libnetwork/ipamutils`).
#[derive(Debug, Clone, Copy)]
pub struct DockerDefaults;

impl DockerDefaults {
    /// 172.17.0.0/16 to 172.31.0.0/16, then 192.168.0.0/16 in pieces of /20.
    pub fn ipv4() -> Vec<DefaultPool> {
        let cut = |a, b, prefix, size| DefaultPool { base: Ipv4Net::new_assert(Ipv4Addr::new(a, b, 0, 0), prefix).into(), size };
        let sixteens = (17..=31).map(|second| cut(172, second, 16, 16));
        sixteens.chain([cut(192, 168, 16, 20)]).collect()
    }

    /// The /64s of a unique local /48 (RFC 4193). Which /48 is the host's own affair, decided by the caller.
    pub fn ipv6(ula: Ipv6Net) -> Vec<DefaultPool> {
        vec![DefaultPool { base: ula.into(), size: 64 }]
    }
}

/// All pools of one of Docker's address spaces, both families. They never overlap, so a subnet names its pool.
#[derive(Debug, Clone, Default)]
pub struct Space(BTreeMap<IpNet, Pool>);

impl Space {
    /// Makes a pool of exactly this subnet. Subnets in use by the host are the user's affair here, as with Docker.
    pub fn request(&mut self, subnet: IpNet, range: Option<IpNet>) -> Result<&mut Pool, PoolError> {
        let pool = Pool::new(subnet, range)?;
        let subnet = pool.subnet();
        if let Some(pool) = self.overlapping(subnet) {
            return Err(PoolError::Overlap { subnet, pool });
        }
        Ok(self.0.entry(subnet).or_insert(pool))
    }

    /// Makes a pool of the first default subnet that overlaps neither a pool nor one of `in_use` (what the host routes; default routes
    /// in it are ignored). The engine may ask again and again and keep every answer: each differs from all kept ones.
    pub fn choose(&mut self, defaults: &[DefaultPool], in_use: &[IpNet]) -> Result<&mut Pool, PoolError> {
        let free = |subnet: &IpNet| {
            let mut routed = in_use.iter().filter(|net| net.prefix_len() > 0);
            self.overlapping(*subnet).is_none() && !routed.any(|net| overlap(net, subnet))
        };
        let found = defaults.iter().flat_map(|default| default.subnets()).find(free);
        let tried = || defaults.iter().flat_map(|default| default.subnets()).count();
        let subnet = found.ok_or_else(|| PoolError::Exhausted { tried: tried() })?;
        self.request(subnet, None)
    }

    /// Takes a pool out with all of its addresses; `None` if there is no such pool: releases may come twice.
    pub fn release(&mut self, subnet: &IpNet) -> Option<Pool> {
        self.0.remove(subnet)
    }

    /// The pool of this subnet.
    pub fn pool(&self, subnet: &IpNet) -> Option<&Pool> {
        self.0.get(subnet)
    }

    /// The pool of this subnet, to change its addresses.
    pub fn pool_mut(&mut self, subnet: &IpNet) -> Option<&mut Pool> {
        self.0.get_mut(subnet)
    }

    /// The pool that holds this address.
    pub fn pool_of(&self, address: IpAddr) -> Option<&Pool> {
        self.overlapping(address.into()).and_then(|subnet| self.0.get(&subnet))
    }

    /// All pools, IPv4 first, in order of their subnets.
    pub fn pools(&self) -> impl Iterator<Item = &Pool> {
        self.0.values()
    }

    /// Pools do not overlap, so only the one before and the one after `subnet` can overlap it.
    fn overlapping(&self, subnet: IpNet) -> Option<IpNet> {
        let before = self.0.range(..=subnet).next_back();
        let after = self.0.range(subnet..).next();
        before.into_iter().chain(after).map(|(pool, _)| *pool).find(|pool| overlap(pool, &subnet))
    }
}

fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

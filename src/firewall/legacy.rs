//! The tables of `iptables-legacy` (x_tables): the same rules in their `FORWARD` where the engine runs with it.
//!
//! A table is one block of entries which is read, rebuilt with our rules and replaced as a whole, as the `iptables-legacy` binary does it:
//! `include/uapi/linux/netfilter_ipv4/ip_tables.h`, `netfilter_ipv6/ip6_tables.h`, `netfilter/x_tables.h`. All that is not ours stays as it
//! is, its counters too. Only tables that `/proc/net/ip_tables_names` names are asked for: asking for another would create it. The kernel
//! reports no changes of these tables: their sizes are looked at every second ([`sizes`]), all of them whenever everything is.
//!
//! The options reach netfilter through any socket of the family; an unconnected UDP socket needs no right of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::model::{Family, IfName};

use super::docker::{COMMENT, Links, TABLE, USER, is_dockers};
use super::expression::interface;

/// `IPT_SO_GET_INFO`, `IPT_SO_GET_ENTRIES`; `IPT_SO_SET_REPLACE`, `IPT_SO_SET_ADD_COUNTERS`. Those of IPv6 are the same.
const GET_INFO: i32 = 64;
const GET_ENTRIES: i32 = 65;
const SET_REPLACE: i32 = 64;
const SET_ADD_COUNTERS: i32 = 65;

/// Of `struct ipt_getinfo`, and of `ipt_get_entries` and `xt_counters_info` without what follows.
const INFO: usize = 84;
const HEAD: usize = 40;
const TABLE_NAME: usize = 32;
const HOOKS: usize = 5;
const FORWARD_HOOK: usize = 2;
/// In the order of the hooks.
const CHAINS: [&str; HOOKS] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];
/// `struct xt_entry_target` and `xt_entry_match`: size, name, revision; the target's verdict or error name follows.
const PART: usize = 32;
const PART_NAME: Range<usize> = 2..31;
const COMMENT_SIZE: usize = 256;
/// Held by `iptables-legacy` while it replaces a table.
const LOCK: &str = "/run/xtables.lock";
/// Half a second in all.
const LOCK_ATTEMPTS: usize = 50;
const LOCK_PAUSE: std::time::Duration = std::time::Duration::from_millis(10);

/// `-NF_ACCEPT - 1`, `-NF_DROP - 1`.
const ACCEPT: i32 = -2;
const DROP: i32 = -1;

/// Where the parts of `struct ipt_entry` and `ip6t_entry` stand.
struct Layout {
    level: i32,
    family: AddressFamily,
    names: &'static str,
    /// `iniface`; `outiface` and the masks of both follow, 16 bytes each.
    interfaces: usize,
    inverted: usize,
    /// `nfcache`, behind which stand the offsets of the target and of the next entry.
    cache: usize,
    /// Of the whole, which ends with counters; the matches follow.
    length: usize,
}

const V4: Layout = Layout {
    level: libc::SOL_IP,
    family: AddressFamily::Inet,
    names: "/proc/thread-self/net/ip_tables_names",
    interfaces: 16,
    inverted: 83,
    cache: 84,
    length: 112,
};

const V6: Layout = Layout {
    level: libc::SOL_IPV6,
    family: AddressFamily::Inet6,
    names: "/proc/thread-self/net/ip6_tables_names",
    interfaces: 64,
    inverted: 132,
    cache: 136,
    length: 168,
};

/// `IPT_INV_VIA_OUT`, `IP6T_INV_VIA_OUT`.
const INVERTED_OUT: u8 = 2;

fn layout(family: Family) -> &'static Layout {
    match family {
        Family::V4 => &V4,
        Family::V6 => &V6,
    }
}

/// Makes our rules in the table of this family be exactly those for `links`; says how many were not so. Works in the network namespace of
/// the calling thread.
pub fn converge(family: Family, links: &Links) -> io::Result<usize> {
    let wanted = rules(layout(family), links);
    let Some(filter) = Filter::open(family)? else { return Ok(0) };
    if filter.read()?.edited(&wanted)?.is_none() {
        return Ok(0);
    }
    let _lock = lock()?;
    for _ in 0..3 {
        let table = filter.read()?;
        let Some(edited) = table.edited(&wanted)? else { return Ok(0) };
        match filter.replace(&table, &edited) {
            // Somebody without the lock was faster.
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => continue,
            replaced => return replaced.map(|()| edited.differences),
        }
    }
    Err(io::Error::new(io::ErrorKind::ResourceBusy, "it was changed during each of three attempts"))
}

/// What [`converge`] would do, in words.
pub fn compare(family: Family, links: &Links) -> io::Result<Option<String>> {
    let Some(filter) = Filter::open(family)? else { return Ok(None) };
    let edited = filter.read()?.edited(&rules(layout(family), links))?;
    Ok(edited.map(|edited| format!("change {} rules of FORWARD in iptables-legacy, {family}", edited.differences)))
}

/// How many entries the table of each family has, and how large it is; nothing where it is not.
pub fn sizes() -> [Option<[u8; 8]>; 2] {
    Family::BOTH.map(|family| Filter::open(family).ok()??.info().ok()?.last_chunk().copied())
}

/// Links that Docker's chains of this family name as its own.
pub fn dockers(family: Family) -> io::Result<BTreeSet<IfName>> {
    match Filter::open(family)? {
        Some(filter) => filter.read()?.dockers(),
        None => Ok(BTreeSet::new()),
    }
}

/// How many packets each rule has dropped, and each chain's policy.
pub type Dropped = BTreeMap<Dropper, u64>;

/// Who drops, as `iptables-legacy -L --line-numbers` shows it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Dropper {
    pub chain: String,
    /// None: the chain's policy.
    pub rule: Option<u64>,
}

/// How it stands now. Nothing where the table is not.
pub fn dropped(family: Family) -> io::Result<Dropped> {
    Filter::open(family)?.map_or_else(|| Ok(Dropped::new()), |filter| filter.read()?.dropped())
}

/// The lock of `iptables-legacy`, where its file can be seen. Whoever has it replaces a table and gives it back within milliseconds.
fn lock() -> io::Result<Option<Flock<File>>> {
    let mut file = match File::open(LOCK) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    for _ in 0..LOCK_ATTEMPTS {
        file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(Some(lock)),
            Err((file, _)) => file,
        };
        std::thread::sleep(LOCK_PAUSE);
    }
    Err(io::Error::new(io::ErrorKind::ResourceBusy, format!("{LOCK} is held by another process")))
}

fn rules(layout: &Layout, links: &Links) -> Vec<Vec<u8>> {
    let both = |(name, whole): (String, bool)| [0, 16].map(|side| rule(layout, side, &name, whole));
    links.patterns().into_iter().flat_map(both).collect()
}

/// An entry that accepts what has this interface at `side` (0 in, 16 out): a comment as match, `ACCEPT` as target.
fn rule(layout: &Layout, side: usize, name: &str, whole: bool) -> Vec<u8> {
    let mut entry = vec![0; layout.length];
    // `iptables` shows the plus, the mask is what counts.
    let shown = interface(&if whole { name.to_owned() } else { format!("{name}+") });
    let at = layout.interfaces + side;
    entry[at..at + 16].copy_from_slice(&shown);
    entry[at + 32..at + 32 + name.len() + usize::from(whole)].fill(0xff);
    let target = entry.len() + PART + COMMENT_SIZE;
    let next = target + PART + 8;
    entry[layout.cache + 4..layout.cache + 6].copy_from_slice(&(target as u16).to_ne_bytes());
    entry[layout.cache + 6..layout.cache + 8].copy_from_slice(&(next as u16).to_ne_bytes());
    entry.extend(part("comment", PART + COMMENT_SIZE));
    entry.extend(COMMENT.as_bytes());
    entry.resize(target, 0);
    entry.extend(part("", PART + 8));
    entry.extend(ACCEPT.to_ne_bytes());
    entry.resize(next, 0);
    entry
}

/// The head of a match or a target of this size.
fn part(name: &str, size: usize) -> Vec<u8> {
    let mut part = (size as u16).to_ne_bytes().to_vec();
    part.extend(name.as_bytes());
    part.resize(PART, 0);
    part
}

/// The table `filter` of one family.
struct Filter {
    layout: &'static Layout,
    socket: OwnedFd,
}

/// A table as the kernel gives it.
struct Table {
    layout: &'static Layout,
    info: [u8; INFO],
    block: Vec<u8>,
    /// The entries, in order.
    entries: Vec<Range<usize>>,
}

/// A table as it is to be.
struct Edited {
    hooks: [u32; HOOKS],
    underflows: [u32; HOOKS],
    block: Vec<u8>,
    /// Of each entry, which it was before.
    origins: Vec<Option<usize>>,
    differences: usize,
}

impl Filter {
    fn open(family: Family) -> io::Result<Option<Self>> {
        let layout = layout(family);
        match fs::read_to_string(layout.names) {
            Ok(names) if names.lines().any(|name| name == TABLE) => {}
            Ok(_) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        }
        let socket = socket(layout.family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
        Ok(Some(Filter { layout, socket }))
    }

    fn info(&self) -> io::Result<[u8; INFO]> {
        let mut info = [0; INFO];
        info[..TABLE.len()].copy_from_slice(TABLE.as_bytes());
        self.get(GET_INFO, &mut info)?;
        Ok(info)
    }

    fn read(&self) -> io::Result<Table> {
        let info = self.info()?;
        let size = word(&info, INFO - 4)?;
        let mut block = vec![0; HEAD + size as usize];
        block[..TABLE.len()].copy_from_slice(TABLE.as_bytes());
        block[TABLE_NAME..TABLE_NAME + 4].copy_from_slice(&size.to_ne_bytes());
        self.get(GET_ENTRIES, &mut block)?;
        let block = block.split_off(HEAD);
        let entries = entries(self.layout, &block)?;
        Ok(Table { layout: self.layout, info, block, entries })
    }

    /// The new table begins to count at zero; what was counted before is added to it.
    fn replace(&self, old: &Table, new: &Edited) -> io::Result<()> {
        let mut counted = vec![[0_u64; 2]; old.entries.len()];
        let numbers = [word(&old.info, TABLE_NAME)?, new.origins.len() as u32, new.block.len() as u32];
        let numbers = numbers.into_iter().chain(new.hooks).chain(new.underflows).chain([counted.len() as u32]);
        let mut request = head(numbers);
        request.extend((counted.as_mut_ptr() as usize).to_ne_bytes());
        request.extend(&new.block);
        self.set(SET_REPLACE, &request)?;
        let mut sums = head([new.origins.len() as u32, 0]);
        let sum = |origin: &Option<usize>| origin.and_then(|index| counted.get(index).copied()).unwrap_or_default();
        sums.extend(new.origins.iter().flat_map(sum).flat_map(u64::to_ne_bytes));
        self.set(SET_ADD_COUNTERS, &sums)
    }

    fn get(&self, option: i32, buffer: &mut [u8]) -> io::Result<()> {
        let mut length = buffer.len() as libc::socklen_t;
        // SAFETY: the kernel writes at most `length` bytes to the buffer, which has as many.
        let result =
            unsafe { libc::getsockopt(self.socket.as_raw_fd(), self.layout.level, option, buffer.as_mut_ptr().cast(), &raw mut length) };
        Errno::result(result).map(drop).map_err(io::Error::from)
    }

    fn set(&self, option: i32, request: &[u8]) -> io::Result<()> {
        let length = request.len() as libc::socklen_t;
        // SAFETY: the kernel reads the request's bytes. `SET_REPLACE` also writes a pair of counters for each entry of the old table to the
        // address within: it refuses any number but the old table's own, and `replace` gives it room for as many as it tells.
        let result = unsafe { libc::setsockopt(self.socket.as_raw_fd(), self.layout.level, option, request.as_ptr().cast(), length) };
        Errno::result(result).map(drop).map_err(io::Error::from)
    }
}

/// The table's name and numbers.
fn head(numbers: impl IntoIterator<Item = u32>) -> Vec<u8> {
    let mut head = TABLE.as_bytes().to_vec();
    head.resize(TABLE_NAME, 0);
    head.extend(numbers.into_iter().flat_map(u32::to_ne_bytes));
    head
}

fn entries(layout: &Layout, block: &[u8]) -> io::Result<Vec<Range<usize>>> {
    let mut entries = Vec::new();
    let mut at = 0;
    while at < block.len() {
        let length = usize::from(half(block, at + layout.cache + 6)?);
        if length < layout.length + PART || at + length > block.len() {
            return Err(strange());
        }
        entries.push(at..at + length);
        at += length;
    }
    Ok(entries)
}

impl Table {
    /// With our rules in the place for them and nowhere else; nothing if that is so.
    fn edited(&self, wanted: &[Vec<u8>]) -> io::Result<Option<Edited>> {
        let place = self.place()?;
        let ours: Vec<usize> = (0..self.entries.len()).filter(|index| self.is_ours(*index)).collect();
        let mut missing: Vec<&Vec<u8>> = if place.is_some() { wanted.iter().collect() } else { Vec::new() };
        let mut gone = BTreeSet::new();
        for index in ours {
            let here = place.as_ref().is_some_and(|place| place.chain.contains(&index));
            match missing.iter().position(|wanted| here && self.is(index, wanted)) {
                Some(found) => drop(missing.remove(found)),
                None => drop(gone.insert(index)),
            }
        }
        if missing.is_empty() && gone.is_empty() {
            return Ok(None);
        }
        self.rebuilt(&gone, place.map_or(0, |place| place.before), &missing).map(Some)
    }

    /// All entries but `gone`, and `new` ones before one of them. Jumps and hooks lead to what is inserted before their goal; the end of a
    /// chain stays its end.
    fn rebuilt(&self, gone: &BTreeSet<usize>, before: usize, new: &[&Vec<u8>]) -> io::Result<Edited> {
        let (mut block, mut origins) = (Vec::new(), Vec::new());
        let (mut goals, mut ends) = (BTreeMap::new(), BTreeMap::new());
        for (index, entry) in self.entries.iter().enumerate() {
            goals.insert(entry.start, block.len());
            if index == before {
                block.extend(new.iter().copied().flatten());
                origins.extend(new.iter().map(|_| None));
            }
            ends.insert(entry.start, block.len());
            if !gone.contains(&index) {
                block.extend(&self.block[entry.clone()]);
                origins.push(Some(index));
            }
        }
        self.redirect(&mut block, &goals)?;
        let (hooks, underflows) = (self.moved(TABLE_NAME + 4, &goals)?, self.moved(TABLE_NAME + 4 + 4 * HOOKS, &ends)?);
        Ok(Edited { hooks, underflows, block, origins, differences: gone.len() + new.len() })
    }

    /// Gives the jumps in the new block their new goals.
    fn redirect(&self, block: &mut [u8], goals: &BTreeMap<usize, usize>) -> io::Result<()> {
        for entry in entries(self.layout, block)? {
            let target = entry.start + usize::from(half(block, entry.start + self.layout.cache + 4)?);
            let verdict = standard(block, target)?;
            if let Some(goal) = verdict.and_then(|verdict| usize::try_from(verdict).ok()) {
                let moved = *goals.get(&goal).ok_or_else(strange)? as i32;
                block[target + PART..target + PART + 4].copy_from_slice(&moved.to_ne_bytes());
            }
        }
        Ok(())
    }

    /// The five offsets at `at` of the info, those of hooks that the table has not as they are.
    fn moved(&self, at: usize, to: &BTreeMap<usize, usize>) -> io::Result<[u32; HOOKS]> {
        let valid = word(&self.info, TABLE_NAME)?;
        let mut moved = [0; HOOKS];
        for (hook, moved) in moved.iter_mut().enumerate() {
            let old = word(&self.info, at + 4 * hook)?;
            *moved = if valid & 1 << hook == 0 { old } else { *to.get(&(old as usize)).ok_or_else(strange)? as u32 };
        }
        Ok(moved)
    }

    /// Where our rules belong in `FORWARD`, if it drops or there is a `DOCKER-USER`: behind the jump to that, or at the head.
    fn place(&self) -> io::Result<Option<Place>> {
        let hooks = TABLE_NAME + 4 + 4 * FORWARD_HOOK;
        let (first, policy) = (self.index(word(&self.info, hooks)?)?, self.index(word(&self.info, hooks + 4 * HOOKS)?)?);
        let user = self.chains()?.into_iter().find(|(name, _)| *name == USER).map(|(_, chain)| self.entries[chain.start].start as i32);
        if user.is_none() && self.verdict(policy)? != Some(DROP) {
            return Ok(None);
        }
        let asks_user = |index: &usize| user.is_some() && self.verdict(*index).ok().flatten() == user;
        let before = (first..policy).rev().find(asks_user).map_or(first, |jump| jump + 1);
        Ok(Some(Place { chain: before..policy + 1, before }))
    }

    /// The chains that were made by somebody, without their heads, with their feet.
    fn chains(&self) -> io::Result<Vec<(&str, Range<usize>)>> {
        let mut heads = Vec::new();
        for index in 0..self.entries.len() {
            let target = self.target(index)?;
            if text(&self.block, target + PART_NAME.start..target + PART_NAME.end)? == "ERROR" {
                heads.push((index, text(&self.block, target + PART..self.entries[index].end)?));
            }
        }
        // The last head is the table's end. A chain has a foot at least.
        let pairs = heads.windows(2).filter(|pair| pair[1].0 > pair[0].0 + 1);
        Ok(pairs.map(|pair| (pair[0].1, pair[0].0 + 1..pair[1].0)).collect())
    }

    /// By each rule that drops or rejects.
    fn dropped(&self) -> io::Result<Dropped> {
        let mut dropped = Dropped::new();
        let made = self.chains()?.into_iter().map(|(name, chain)| (name, chain, None));
        for (name, chain, policy) in self.hooked()?.into_iter().chain(made) {
            for (index, number) in chain.zip(1..) {
                let target = self.target(index)?;
                let rejects = text(&self.block, target + PART_NAME.start..target + PART_NAME.end)? == "REJECT";
                if rejects || standard(&self.block, target)? == Some(DROP) {
                    let rule = (policy != Some(index)).then_some(number);
                    dropped.insert(Dropper { chain: name.to_owned(), rule }, self.packets(index)?);
                }
            }
        }
        Ok(dropped)
    }

    /// The chains of hooks, with their policies, which come last.
    fn hooked(&self) -> io::Result<Vec<Chain<'_>>> {
        let mut hooked = Vec::new();
        let valid = word(&self.info, TABLE_NAME)?;
        for (hook, name) in CHAINS.into_iter().enumerate().filter(|(hook, _)| valid & 1 << hook != 0) {
            let at = TABLE_NAME + 4 + 4 * hook;
            let (first, policy) = (self.index(word(&self.info, at)?)?, self.index(word(&self.info, at + 4 * HOOKS)?)?);
            hooked.push((name, first..policy + 1, Some(policy)));
        }
        Ok(hooked)
    }

    /// Of the entry at an offset.
    fn index(&self, offset: u32) -> io::Result<usize> {
        self.entries.iter().position(|entry| entry.start == offset as usize).ok_or_else(strange)
    }

    /// How many an entry has counted: `struct xt_counters`, which ends what all entries have.
    fn packets(&self, index: usize) -> io::Result<u64> {
        let counters = self.bytes(index).get(self.layout.length - 16..).and_then(<[u8]>::first_chunk);
        counters.map(|bytes| u64::from_ne_bytes(*bytes)).ok_or_else(strange)
    }

    /// Interfaces that a rule in a chain of Docker's names as the outgoing one.
    fn dockers(&self) -> io::Result<BTreeSet<IfName>> {
        let mut found = BTreeSet::new();
        for (_, chain) in self.chains()?.into_iter().filter(|(name, _)| is_dockers(name)) {
            for entry in chain.map(|index| self.entries[index].start) {
                let out = entry + self.layout.interfaces + 16;
                let name = text(&self.block, out..out + 16)?;
                let whole = self.block.get(out + 32 + name.len()) == Some(&0xff);
                let inverted = self.block.get(entry + self.layout.inverted).is_some_and(|flags| flags & INVERTED_OUT != 0);
                found.extend(name.parse::<IfName>().ok().filter(|_| whole && !inverted));
            }
        }
        Ok(found)
    }

    fn bytes(&self, index: usize) -> &[u8] {
        &self.block[self.entries[index].clone()]
    }

    /// Where the entry's target is in the block.
    fn target(&self, index: usize) -> io::Result<usize> {
        let start = self.entries[index].start;
        let target = start + usize::from(half(&self.block, start + self.layout.cache + 4)?);
        if target + PART > self.entries[index].end { Err(strange()) } else { Ok(target) }
    }

    /// The verdict or, as a number from zero on, the jump's goal, if the entry has such a target.
    fn verdict(&self, index: usize) -> io::Result<Option<i32>> {
        standard(&self.block, self.target(index)?)
    }

    /// It bears our comment.
    fn is_ours(&self, index: usize) -> bool {
        let comment = self.layout.length + PART;
        let (name, said) = (self.layout.length + PART_NAME.start, [COMMENT.as_bytes(), &[0]].concat());
        let entry = self.bytes(index);
        entry.get(name..).is_some_and(|rest| rest.starts_with(b"comment\0"))
            && entry.get(comment..).is_some_and(|rest| rest.starts_with(&said))
    }

    /// The same but for what the kernel notes in it.
    fn is(&self, index: usize, rule: &[u8]) -> bool {
        let (entry, cache) = (self.bytes(index), self.layout.cache);
        let compared = [0..cache, cache + 4..cache + 8, self.layout.length..rule.len()];
        entry.len() == rule.len() && compared.into_iter().all(|range| entry.get(range.clone()) == rule.get(range))
    }
}

/// A chain's name, its entries, and the policy among them where it has one.
type Chain<'t> = (&'t str, Range<usize>, Option<usize>);

/// The part of a chain where our rules may stand, and the entry before which they are put.
struct Place {
    chain: Range<usize>,
    before: usize,
}

/// The verdict, or as a number from zero on the jump's goal, of a target without a name.
fn standard(block: &[u8], target: usize) -> io::Result<Option<i32>> {
    match text(block, target + PART_NAME.start..target + PART_NAME.end)? {
        "" => word(block, target + PART).map(|verdict| Some(verdict.cast_signed())),
        _ => Ok(None),
    }
}

/// Up to the first NUL.
fn text(block: &[u8], range: Range<usize>) -> io::Result<&str> {
    let bytes = block.get(range).ok_or_else(strange)?;
    let length = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    str::from_utf8(&bytes[..length]).map_err(|_| strange())
}

fn word(block: &[u8], at: usize) -> io::Result<u32> {
    block.get(at..).and_then(<[u8]>::first_chunk).map(|bytes| u32::from_ne_bytes(*bytes)).ok_or_else(strange)
}

fn half(block: &[u8], at: usize) -> io::Result<u16> {
    block.get(at..).and_then(<[u8]>::first_chunk).map(|bytes| u16::from_ne_bytes(*bytes)).ok_or_else(strange)
}

fn strange() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the kernel's table is not laid out as expected")
}

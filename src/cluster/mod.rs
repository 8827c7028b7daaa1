//! CLUSTER: which hosts take part in a network, and whose which of its blocks is.
//!
//! Knows the store and nothing of kernels, Docker or modes. What is decided is decided in pure functions ([`admit`] for networks, [`side`]
//! for this host's blocks, [`roll`] for the others); the rest of the room reads the store for them and writes what they say. Two rules stand above all others:
//!
//! - A block has one host. It is claimed by compare-and-set, used only by who holds it, and a host that finds it taken never uses it again.
//! - What a host heard stays until the store says otherwise in words. A store that is silent, or that lost its records, says nothing.
//!
//! Nothing is written for a container. docs/store.md tells the keys, and what a change costs.

mod admit;
mod blocks;
mod error;
mod hash;
mod hearsay;
mod hosts;
mod join;
mod lodge;
mod mac;
mod record;
mod roll;
mod run;
mod settle;
mod side;
mod single;
mod text;
mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use ipnet::IpNet;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::model::{Agreement, Mac, Member, OnLink, Roster, Segment, Share};
use crate::store::{Entry, Lease, Leases, StoreError};

pub use error::Error;
pub use hearsay::{Inquiry, Taken};
pub use view::{Host, Standing, View};

use record::{HostRecord, Owner};
use roll::Roll;
use side::Side;
use view::{Network, Told};

/// This host.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Its name, the same in all networks: letters, digits, `.`, `_`, `-`.
    pub host: String,
    /// What tells this machine from another that had or gets the name: random, kept on its disk for as long as what it holds.
    pub id: String,
}

/// By which way this host's tunnels leave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    /// Its outer address.
    pub vtep: IpAddr,
    /// Bytes: what a packet from there may have.
    pub mtu: u32,
    /// Where that is, see [`Share::on_link`].
    pub on_link: Option<OnLink>,
}

/// A network that this host is to take part in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// What it is known by. In any order.
    pub subnets: Vec<IpNet>,
    /// Addresses of the subnets that belong to no host: gateways, and what the user keeps for others.
    pub reserved: Vec<IpAddr>,
    /// What must be equal on all hosts.
    pub options: BTreeMap<String, String>,
    /// Numbers that VXLAN devices of others have on this host.
    pub foreign_vnis: BTreeSet<u32>,
    /// Only addresses are shared. No number, no address of the hosts' own in their blocks.
    pub segment: Option<Segment>,
}

impl Wanted {
    /// What is compared with other hosts, in an order that does not depend on how it was typed.
    fn agreement(&self) -> Agreement {
        let subnets: BTreeSet<IpNet> = self.subnets.iter().map(IpNet::trunc).collect();
        let reserved: BTreeSet<IpAddr> = self.reserved.iter().copied().collect();
        let (subnets, reserved) = (subnets.into_iter().collect(), reserved.into_iter().collect());
        Agreement { subnets, reserved, options: self.options.clone(), segment: None }
    }

    /// Its subnets, of which nothing is known yet.
    fn sides(&self) -> Vec<Side> {
        let Agreement { subnets, reserved, .. } = self.agreement();
        subnets.into_iter().map(|subnet| Side { reserved: reserved.clone(), ..Side::new(subnet, self.segment.as_ref()) }).collect()
    }
}

/// How long things take. The default is for use; tests have less time.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// A host that does not renew its lease for so long counts as gone; Consul takes up to twice as long. At least 10 s there.
    pub lease: Duration,
    /// A host that is gone for so long may lose a block to one that finds no free one.
    pub grace: Duration,
    /// After the store lost its records, what was heard before counts for so long.
    pub rebuild: Duration,
    /// Between two readings of a prefix that changes all the time.
    pub breath: Duration,
    /// Between two tries of what the store did not take.
    pub again: Duration,
    /// How long the owner of an address may take to say whether it can be had.
    pub answer: Duration,
    /// Blocks that a crash left to this host are looked for so often, the first time after a random part of it.
    pub sweep: Duration,
    /// No call waits longer for the store.
    pub limit: Duration,
}

/// So often others may be faster.
const TRIES: usize = 100;
/// Breaths.
const LONGEST_PAUSE: usize = 32;

impl Times {
    /// How long one who hears that something changed waits before it reads what: who changed it has mostly more to change. Half a second
    /// where a thousand hosts read it, nothing where there are few.
    pub fn lull(&self, records: usize) -> Duration {
        self.pause(records).saturating_sub(self.breath) / 16
    }

    /// How long, at least, hosts that change at the same time, where there are so many, are left to it before one reads what they changed.
    pub fn pause(&self, records: usize) -> Duration {
        let breaths = (1 + records / 64).min(LONGEST_PAUSE);
        self.breath * u32::try_from(breaths).unwrap_or(1)
    }
}

impl Default for Times {
    fn default() -> Self {
        let s = Duration::from_secs;
        let (lease, breath) = (s(30), Duration::from_millis(500));
        Times { lease, grace: s(3600), rebuild: 3 * lease, breath, again: s(1), answer: s(5), sweep: s(3600), limit: s(9) }
    }
}

/// Who knows which addresses of this host's blocks are in use: asked when another host wants one.
#[async_trait]
pub trait Lender: Send + Sync {
    /// Keeps an address for another host, durably, before it answers; or says who has it. Until [`Lender::restore`], or until
    /// [`Standing::kept`] had it and has it no more.
    async fn lend(&self, address: IpAddr, to: &str) -> Result<(), String>;

    /// The same with any address of this host's blocks that is free, and which.
    async fn lend_any(&self, subnet: IpNet, to: &str) -> Result<IpAddr, String>;

    /// The other host does not take it, or gave it back before it was in [`Standing::kept`].
    async fn restore(&self, address: IpAddr);
}

/// This host's part in all networks that hosts share.
pub struct Cluster {
    store: Arc<dyn Leases>,
    me: Owner,
    times: Times,
    state: Mutex<State>,
    views: watch::Sender<Arc<View>>,
    /// Whoever reads blocks in order to write them is alone in that.
    writes: tokio::sync::Mutex<()>,
    lease: tokio::sync::Mutex<Option<Lease>>,
    /// As of when the hosts' records were read last; none: all are to be read. Who reads them is alone in that, too.
    read: tokio::sync::Mutex<Option<run::Shards>>,
    /// There is something to write.
    work: Notify,
    /// This host's own records are to be written again.
    enrol: Notify,
    /// All hosts' records are to be read again.
    reread: Notify,
    lender: OnceLock<Arc<dyn Lender>>,
    /// The last failure that was told.
    told: Mutex<String>,
}

/// What this host knows. Never locked across a call of the store.
#[derive(Default)]
struct State {
    /// None: not known yet. What is held stands; nothing can be joined.
    uplink: Option<Uplink>,
    networks: Vec<Network>,
    /// What the last view says of them.
    told: Vec<Told>,
    roll: Roll,
    /// The same for people.
    hosts: Roster<Host>,
    /// The version of this host's own record as it last wrote or read it.
    own: Option<u64>,
    /// The same of the last that said all that this host holds; none since its start.
    vouched: Option<u64>,
    /// The record of all networks as last heard.
    heard_networks: Option<Entry>,
    in_touch: bool,
    /// Subnets where the store may not say what this host holds.
    unsettled: BTreeSet<IpNet>,
    /// The same of this host's record.
    unsettled_record: bool,
    /// The same of the networks' record.
    unsettled_networks: bool,
    /// MACs that users of this host chose, by the first subnet of their network.
    macs: BTreeMap<(IpNet, Mac), mac::Held>,
    /// Addresses that other hosts were asked for: granted, they are not strays.
    asking: BTreeSet<IpNet>,
    /// Subnets of which any address was asked for, and until when what others gave, more than one perhaps, is no stray: an owner that never
    /// hears of what it lent never hears that it came back.
    borrowing: BTreeMap<IpNet, Instant>,
    /// What was given meanwhile and is not held. It is told like what is, so that who gave it hears of it, and hears of its return.
    granted: BTreeMap<IpNet, Vec<IpNet>>,
    /// What this host lent and was not heard to be in anybody's hands yet, and when the store is asked whether it is.
    lent: BTreeMap<(IpNet, IpAddr), Instant>,
}

impl State {
    fn side(&mut self, subnet: IpNet) -> Option<&mut Side> {
        self.networks.iter_mut().flat_map(|network| &mut network.sides).find(|side| side.subnet == subnet)
    }

    fn sides(&self) -> impl Iterator<Item = &Side> {
        self.networks.iter().flat_map(|network| &network.sides)
    }

    /// What this host tells the others: what it holds, `with` what it is about to.
    fn record(&self, me: &Owner, with: &[Side]) -> Option<HostRecord> {
        let Uplink { vtep, .. } = *self.uplink.as_ref()?;
        let replaced = |side: &&Side| with.iter().any(|with| with.subnet == side.subnet);
        let sides: Vec<&Side> = self.sides().filter(|side| !replaced(side)).chain(with).filter(|side| side.is_told()).collect();
        let own = sides.iter().filter_map(|side| side.own.clone()).flatten().collect();
        let homes = sides.iter().filter_map(|side| side.lodging).collect();
        let granted =
            |side: &Side| self.granted.get(&side.subnet).into_iter().flatten().filter(|net| !side.mine.contains(net)).copied().collect();
        let blocks = sides.iter().map(|side| (side.subnet, [side.mine.clone(), granted(side)].concat())).collect();
        Some(HostRecord { id: me.id.clone(), vtep, blocks, own, homes })
    }

    /// What is heard to be lent comes back when that is heard.
    fn review_lent(&mut self) {
        let roll = &self.roll;
        self.lent.retain(|(subnet, address), _| roll.within(*subnet, blocks::single(*address)).next().is_none());
    }

    /// What follows for the hosts from what was heard of them, in whichever order.
    fn review_hosts(&mut self) {
        for name in self.roll.review() {
            let host = self.roll.hosts.get(&name).map(|known| Host {
                name: name.clone(),
                vtep: known.record.vtep,
                alive: self.roll.alive.contains(&name),
                gone_since: self.roll.gone.get(&name).map(|(_, since)| *since),
            });
            self.hosts.set(&name, host);
        }
    }
}

impl Cluster {
    /// Asks nobody yet.
    pub fn new(store: Arc<dyn Leases>, identity: Identity, times: Times) -> Result<Arc<Self>, Error> {
        let sound = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let Identity { host, id } = identity;
        if host.is_empty() || host == "." || host == ".." || !host.chars().all(sound) {
            return Err(Error::Name { host });
        }
        let me = Owner { host, id };
        let state = State { roll: Roll::new(&me.host), ..State::default() };
        let (state, views) = (Mutex::new(state), watch::Sender::new(Arc::default()));
        let (work, enrol, reread, lender) = (Notify::new(), Notify::new(), Notify::new(), OnceLock::new());
        let (writes, lease, read, told) = Default::default();
        Ok(Arc::new(Cluster { store, me, times, state, views, writes, lease, read, work, enrol, reread, lender, told }))
    }

    /// Who answers for this host's addresses. The first one counts.
    pub fn lend_by(&self, lender: Arc<dyn Lender>) {
        let _ = self.lender.set(lender);
    }

    /// What this host last heard, whole, after every change. The first is empty, or what [`Cluster::resume`] told.
    pub fn views(&self) -> watch::Receiver<Arc<View>> {
        self.views.subscribe()
    }

    /// By which way the tunnels leave from now on.
    pub fn leave_by(&self, uplink: Uplink) {
        let vtep = uplink.vtep;
        let moved = self.change(|state| {
            let moved = state.uplink.replace(uplink).map(|old| old.vtep) != Some(vtep);
            state.unsettled_record |= moved;
            moved
        });
        if moved {
            self.enrol.notify_one();
        }
    }

    /// What this host held by its own disk when it started: it goes on holding that, whatever the store does. All of it must be told before
    /// [`Cluster::run`]: what nobody told is given back. No I/O.
    pub fn resume(&self, wanted: Wanted, held: Share) {
        self.change(|state| {
            state.uplink.get_or_insert(Uplink { vtep: held.mine.vtep, mtu: held.mtu, on_link: held.on_link.clone() });
            let sides: Vec<Side> = wanted.sides().into_iter().map(|side| remembered(side, &held)).collect();
            held.peers.iter().for_each(|peer| remember(&mut state.roll, peer, &sides));
            state.unsettled_record = true;
            state.unsettled_networks = true;
            state.networks.push(Network { wanted, vni: held.vni, sides });
        });
    }

    /// Which addresses this host itself has now on a segment where it shares a network. No I/O.
    pub fn stand_at(&self, subnets: &[IpNet], own: &[IpAddr]) {
        self.change(|state| {
            for side in state.networks.iter_mut().flat_map(|network| &mut network.sides).filter(|side| subnets.contains(&side.subnet)) {
                let here: Vec<IpAddr> = own.iter().copied().filter(|own| side.subnet.contains(own)).collect();
                if side.own.as_ref().is_some_and(|known| *known != here) {
                    side.own = Some(here);
                    state.unsettled_record = true;
                }
            }
        });
    }

    /// Changes what is known, and tells it if it shows.
    fn change<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let mut state = self.state.lock();
        let result = change(&mut state);
        state.review_hosts();
        state.review_lent();
        if !state.unsettled.is_empty() || state.unsettled_networks || state.unsettled_record {
            self.work.notify_one();
        }
        let view = Arc::new(self.view(&mut state));
        self.views.send_if_modified(|seen| {
            let differs = *seen != view;
            *seen = view;
            differs
        });
        result
    }

    /// Looks at what is known.
    fn known<R>(&self, look: impl FnOnce(&State) -> R) -> R {
        look(&self.state.lock())
    }

    /// A view costs what changed, not what there is: a thousand hosts have thousands of peers each.
    fn view(&self, state: &mut State) -> View {
        let vtep = state.uplink.as_ref().map(|uplink| uplink.vtep);
        View { networks: self.standings(state), hosts: state.hosts.clone(), in_touch: state.in_touch, vtep }
    }

    fn standings(&self, state: &mut State) -> Vec<Arc<Standing>> {
        let Some(uplink) = &state.uplink else { return vec![] };
        let (mut before, news) = (std::mem::take(&mut state.told), state.roll.news());
        let tell = |network: &Network| match before.iter().position(|told| told.is_of(network, uplink)) {
            Some(at) => before.swap_remove(at).hear(&news, &self.me, &state.roll, &self.times),
            None => Told::new(network, &self.me, uplink, &state.roll, &self.times),
        };
        state.told = state.networks.iter().map(tell).collect();
        state.told.iter().map(|told| told.standing.clone()).collect()
    }

    /// No answer is waited for without end: what the store then still does is found and set right later.
    async fn within<T>(&self, action: String, call: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let limit = self.times.limit;
        tokio::time::timeout(limit, call).await.unwrap_or(Err(Error::Slow { action, limit }))
    }
}

/// Tries until it is done; none: what it relied on was another's by then.
async fn contend<T, A>(action: &str, attempt: impl Fn() -> A) -> Result<T, Error>
where
    A: Future<Output = Result<Option<T>, Error>>,
{
    for _ in 0..TRIES {
        if let Some(done) = attempt().await? {
            return Ok(done);
        }
    }
    Err(Error::Contended { action: action.to_owned() })
}

/// What was done, or none: somebody else was faster.
fn unless_contended<T>(done: Result<T, StoreError>) -> Result<Option<T>, StoreError> {
    match done {
        Err(StoreError::Conflict { .. }) => Ok(None),
        done => done.map(Some),
    }
}

/// A subnet as this host's disk has it.
fn remembered(mut side: Side, held: &Share) -> Side {
    side.mine = held.mine.blocks.iter().copied().filter(|block| side.subnet.contains(block)).collect();
    let lodging = lodgings(&side, &held.mine).next();
    Side { lodging, ..side }
}

/// Which of a host's own addresses are no part of a block that it has.
fn lodgings<'a>(side: &'a Side, member: &'a Member) -> impl Iterator<Item = IpAddr> + 'a {
    let single = |home: &IpAddr| member.blocks.contains(&blocks::single(*home));
    member.homes.iter().copied().filter(move |home| side.own.is_none() && side.subnet.contains(home) && single(home))
}

/// What this host's disk has of another.
fn remember(roll: &mut Roll, peer: &Member, sides: &[Side]) {
    let empty = || HostRecord { id: String::new(), vtep: peer.vtep, blocks: BTreeMap::new(), own: vec![], homes: vec![] };
    let mut record = roll.hosts.get(&peer.host).map_or_else(empty, |known| (*known.record).clone());
    for side in sides {
        let blocks: Vec<IpNet> = peer.blocks.iter().copied().filter(|block| side.subnet.contains(block)).collect();
        if !blocks.is_empty() || side.own.is_some() {
            record.blocks.insert(side.subnet, blocks);
        }
        record.homes.extend(lodgings(side, peer));
        let own = peer.homes.iter().copied().filter(|home| side.own.is_some() && side.subnet.contains(home));
        record.own.extend(own);
    }
    roll.remember(&peer.host, record);
}

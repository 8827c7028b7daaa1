//! Networks that hosts share: what this host agrees on with the others, and what it hears of them.
//!
//! Of a container's start only what is new to this host waits: an address comes from its own blocks, and rests while others may not have
//! heard whose it is; where the blocks are full, the start waits for the next one. What the others do reaches the host as a new plan of the network.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use super::state::{Live, declare_network};
use super::{Agent, Error, NewAddress};
use crate::addresses::AddressError;
use crate::cluster::{self, Lender, View, Wanted};
use crate::drivers::{self, Mode};
use crate::model::{Agreement, Network, NetworkId, Share};

/// So often other containers may be faster.
const TRIES: usize = 5;

/// When what failed is tried again.
const AGAIN: Duration = Duration::from_secs(2);

/// The hosts that share networks, as this one last heard, for people.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Hosts {
    /// Whether the store answered last time.
    pub in_touch: bool,
    pub hosts: Vec<HostSeen>,
}

/// One of them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HostSeen {
    pub name: String,
    /// By which the others reach it.
    pub address: IpAddr,
    pub alive: bool,
    /// For how many seconds this host has seen it dead.
    pub gone_for: Option<u64>,
}

/// A host that will not come back.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Forget {
    pub host: String,
}

/// What the cluster is asked for.
pub fn wanted(Agreement { subnets, reserved, options, segment }: Agreement, foreign_vnis: BTreeSet<u32>) -> Wanted {
    Wanted { subnets, reserved, options, segment, foreign_vnis }
}

impl Agent {
    /// Agrees with the other hosts on a network that is to be made here. Of a segment, which is there without them, a host that has no
    /// store with others has the addresses to itself.
    pub(super) async fn share(&self, network: Network, mode: Arc<dyn Mode>) -> Result<(Network, Arc<dyn Mode>), Error> {
        let with_others = |agreement: &Agreement| agreement.segment.is_none() || self.settings.shared;
        let Some(agreement) = mode.agreement().filter(with_others) else { return Ok((network, mode)) };
        let wanted = wanted(agreement, self.kernel.surroundings().await?.vnis);
        let network = Network { share: Some(self.cluster.join(&wanted).await?), ..network };
        let mode = drivers::open(&network)?.into();
        Ok((network, mode))
    }

    /// Follows what the others do until the process ends.
    pub async fn follow(&self) {
        let mut views = self.cluster.views();
        loop {
            views.mark_unchanged();
            let taken = self.take_in().await;
            if let Err(error) = &taken {
                warn!(%error, "what other hosts did could not be followed whole; trying again");
                self.reconciler.look_again();
            }
            tokio::select! {
                () = tokio::time::sleep(AGAIN), if taken.is_err() => {}
                changed = views.changed() => if changed.is_err() { return },
                () = self.joined.notified() => {}
                () = self.short.notified() => self.grow().await,
            }
        }
    }

    /// Makes all that is heard so. No address of a block is given before the block is on disk, nor after it is another host's.
    async fn take_in(&self) -> Result<(), Error> {
        self.confine().await;
        for id in self.stale(&self.view()) {
            self.hear(&id).await?;
        }
        self.confine().await;
        Ok(())
    }

    /// The networks of which something new is heard.
    fn stale(&self, view: &View) -> Vec<NetworkId> {
        let state = self.state.lock();
        let stale = state
            .shared()
            .filter(|(live, agreement)| heard(view, agreement).is_some_and(|share| live.network.share.as_ref() != Some(share)));
        stale.map(|(live, _)| live.network.id.clone()).collect()
    }

    /// Makes what is heard of a network so. There is no way back to what was: it is not true any more.
    async fn hear(&self, id: &NetworkId) -> Result<(), Error> {
        let _held = self.locks.hold(id.as_str()).await;
        // what is heard by now: a call may have been faster
        let view = self.view();
        let share = self.state.lock().shared().find(|(live, _)| live.network.id == *id).and_then(|(_, agreement)| heard(&view, &agreement));
        let share = share.ok_or_else(|| Error::UnknownNetwork(id.clone()))?.clone();
        let network = Network { share: Some(share), ..self.network(id)? };
        let mode: Arc<dyn Mode> = drivers::open(&network)?.into();
        let before = self.state.lock().mode(id).map_or_else(Vec::new, |mode| mode.warnings());
        let news = mode.warnings().into_iter().filter(|warning| !before.contains(warning));
        news.for_each(|warning| warn!(network = %id, "{warning}"));
        let (kept, made) = self.make(declare_network(id, Some((&network, &*mode)))).await;
        kept?;
        self.adopt(network, mode).await?;
        Ok(made?)
    }

    /// Lets containers have addresses of this host's blocks only, those that it holds and has on disk, less those kept for others.
    pub(super) async fn confine(&self) {
        let stored = self.state.lock().blocks();
        let returned = self.addressing.lock().await.confine(&self.view(), &stored);
        for (subnet, address) in returned {
            if let Err(error) = self.free(&subnet.to_string(), address).await {
                warn!(%error, %address, "an address that was kept for another host could not be freed");
            }
        }
    }

    /// Leaves what no network here is a part of any more.
    pub(super) async fn leave_unused(&self) {
        let _creating = self.locks.hold("create").await;
        self.leave_unused_alone().await;
    }

    /// The same, for whoever makes a network.
    pub(super) async fn leave_unused_alone(&self) {
        for unused in self.view().networks.iter().filter(|joined| !joined.subnets.iter().any(|subnet| self.is_shared(*subnet))) {
            self.cluster.leave(&unused.subnets).await;
        }
    }

    /// Takes an address that a user chose and that is not in this host's blocks.
    pub(super) async fn claim(&self, subnet: IpNet, address: IpAddr) -> Result<(), Error> {
        if !self.is_shared(subnet) || self.addressing.lock().await.covers(subnet, address) {
            return Ok(());
        }
        self.cluster.claim(subnet, address).await?;
        self.take_in().await
    }

    /// One more block for each pool that has little left.
    async fn grow(&self) {
        let short = self.addressing.lock().await.short();
        for subnet in short.into_iter().filter(|subnet| self.is_shared(*subnet)) {
            let _growing = self.locks.hold(&format!("grow {subnet}")).await;
            if let Err(error) = self.grow_one(subnet).await {
                warn!(%subnet, %error, "no block of addresses ahead; trying again with the next container");
            }
        }
    }

    async fn grow_one(&self, subnet: IpNet) -> Result<(), Error> {
        let block = self.cluster.grow(subnet).await?;
        let network = self.network_at(block.addr());
        info!(network = network.as_ref().map(display), %subnet, %block, "this host has one more block of addresses");
        Ok(())
    }

    /// An address where this host has none left: containers came faster than blocks ahead, and wait for the next one. `dry` says so.
    pub(super) async fn take_more(&self, new: &NewAddress, dry: Error) -> Result<IpNet, Error> {
        let Some(subnet) = new.pool.parse().ok().filter(|subnet| self.is_shared(*subnet)) else { return Err(dry) };
        let _growing = self.locks.hold(&format!("grow {subnet}")).await;
        // a block ahead may have come and not be taken in yet
        match self.take_heard(new).await {
            Err(Error::Address(AddressError::Exhausted { .. })) => {}
            taken => return taken,
        }
        for _ in 0..TRIES {
            self.grow_or_borrow(subnet).await?;
            match self.take_heard(new).await {
                // another container, which did not have to wait, was faster
                Err(Error::Address(AddressError::Exhausted { .. })) => {}
                taken => return taken,
            }
        }
        Err(dry)
    }

    /// One more block, or where none is left one address of another host's.
    async fn grow_or_borrow(&self, subnet: IpNet) -> Result<(), Error> {
        match self.grow_one(subnet).await {
            Err(Error::Cluster(cluster::Error::Exhausted { .. })) => {}
            grown => return grown,
        }
        let address = self.cluster.borrow(subnet).await?;
        let network = self.network_at(subnet.addr());
        info!(network = network.as_ref().map(display), %subnet, %address, "no block is left; this host borrowed an address");
        Ok(())
    }

    async fn take_heard(&self, new: &NewAddress) -> Result<IpNet, Error> {
        self.take_in().await?;
        self.take(new).await
    }

    /// Gives an address back that was claimed alone.
    pub(super) async fn give_back(&self, subnet: IpNet, address: IpAddr) {
        let alone = |live: &Live| live.network.share.as_ref().is_some_and(|share| share.mine.blocks.contains(&IpNet::from(address)));
        let alone = self.state.lock().networks.values().any(alone);
        if alone {
            self.cluster.release(subnet, address).await;
            self.confine().await;
        }
    }

    /// What the cluster last heard.
    pub(super) fn view(&self) -> Arc<View> {
        self.cluster.views().borrow().clone()
    }

    /// The networks that hosts share, with all subnets of each.
    pub fn shared_networks(&self) -> Vec<(NetworkId, Vec<IpNet>)> {
        self.state.lock().shared().map(|(live, agreement)| (live.network.id.clone(), agreement.subnets)).collect()
    }

    /// The hosts that share networks.
    pub fn hosts(&self) -> Hosts {
        let view = self.view();
        let gone_for = |since: SystemTime| since.elapsed().unwrap_or_default().as_secs();
        let seen = |host: &cluster::Host| HostSeen {
            name: host.name.clone(),
            address: host.vtep,
            alive: host.alive,
            gone_for: host.gone_since.map(gone_for),
        };
        Hosts { in_touch: view.in_touch, hosts: view.hosts.iter().map(seen).collect() }
    }

    /// Addresses of containers here that are not this host's any more, by their network, as people know it, and by whose they are, where that is known.
    pub fn disowned(&self) -> BTreeMap<(String, Option<String>), BTreeSet<IpAddr>> {
        let (view, state, mut disowned) = (self.view(), self.state.lock(), BTreeMap::<_, BTreeSet<IpAddr>>::new());
        for (live, share) in state.networks.values().filter_map(|live| Some((live, live.network.share.as_ref()?))) {
            let addresses = live.endpoints.values().flat_map(|known| &known.endpoint.addresses).map(IpNet::addr);
            for address in addresses.filter(|address| !share.mine.has(*address)) {
                disowned.entry((self.names.show(&live.network.id), owner(&view, share, address))).or_default().insert(address);
            }
        }
        disowned
    }

    /// Frees all that a dead host had.
    pub async fn forget_host(&self, Forget { host }: &Forget) -> Result<Hosts, Error> {
        self.cluster.forget(host).await?;
        Ok(self.hosts())
    }

    /// Tells the others which addresses this host itself has on segments.
    pub(super) fn stand(&self) {
        let shared: Vec<Agreement> = self.state.lock().shared().map(|(_, agreement)| agreement).collect();
        for Agreement { subnets, segment, .. } in shared {
            segment.iter().for_each(|segment| self.cluster.stand_at(&subnets, &segment.own));
        }
    }

    /// Whether hosts share this network.
    pub fn shares(&self, network: &NetworkId) -> bool {
        self.state.lock().networks.get(network).is_some_and(|live| live.network.share.is_some())
    }

    /// The network that hosts share and that has this address: for the log.
    fn network_at(&self, address: IpAddr) -> Option<NetworkId> {
        let state = self.state.lock();
        let mut shared = state.shared();
        let found = shared.find(|(_, agreement)| agreement.subnets.iter().any(|subnet| subnet.contains(&address)));
        found.map(|(live, _)| live.network.id.clone())
    }

    fn tell_lent(&self, address: IpAddr, to: &str) {
        info!(network = self.network_at(address).as_ref().map(display), %address, host = to, "lent to another host");
    }

    fn is_shared(&self, subnet: IpNet) -> bool {
        self.state.lock().shared().any(|(_, agreement)| agreement.subnets.contains(&subnet))
    }
}

fn heard<'v>(view: &'v View, agreement: &Agreement) -> Option<&'v Share> {
    Some(&view.of(*agreement.subnets.first()?)?.share)
}

/// Whose an address is that was this host's.
fn owner(view: &View, share: &Share, address: IpAddr) -> Option<String> {
    let lost = view.networks.iter().flat_map(|standing| &standing.lost).find(|(block, _)| block.contains(&address));
    let told = lost.map(|(_, owner)| owner.clone()).filter(|owner| !owner.is_empty());
    told.or_else(|| share.holder(address).map(|member| member.host.clone()))
}

/// Another host's user wants an address that is in a block of this one.
#[async_trait]
impl Lender for Agent {
    async fn lend(&self, address: IpAddr, to: &str) -> Result<(), String> {
        let pool = self.addressing.lock().await.pool_of(&[], address).ok_or("it is of no pool of this host's")?;
        let wanted = NewAddress { pool, address: Some(address), gateway: false, mac: None };
        self.take(&wanted).await.map_err(|error| error.to_string())?;
        self.tell_lent(address, to);
        Ok(())
    }

    async fn lend_any(&self, subnet: IpNet, to: &str) -> Result<IpAddr, String> {
        let wanted = NewAddress { pool: subnet.to_string(), address: None, gateway: false, mac: None };
        let lent = self.take(&wanted).await.map_err(|_| "has none free".to_owned())?;
        self.tell_lent(lent.addr(), to);
        Ok(lent.addr())
    }

    async fn restore(&self, address: IpAddr) {
        let pool = self.addressing.lock().await.pool_of(&[], address);
        let Some(pool) = pool else { return };
        if let Err(error) = self.release_address(&pool, address).await {
            warn!(%error, %address, "an address that another host did not take could not be freed");
        }
    }
}
